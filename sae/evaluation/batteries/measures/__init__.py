"""The measures of the batteries, one module for each kind of input."""
