"""Sparse dictionaries: what they are, how they encode, and how they are kept on disk."""
