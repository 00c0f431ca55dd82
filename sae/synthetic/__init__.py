"""Data with known answers: planted features, hierarchies."""
