"""The measures of `sae evaluate`, a file for each subject; `registry` lists their batteries, and those that other packages offer."""
