"""A workbench for interpreting language models with sparse dictionaries."""
