"""Language models: sites, edits, capture, and the default model."""
