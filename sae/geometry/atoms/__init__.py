"""Atoms and codes of dictionaries compared."""
