"""Geometry of atoms, activations and codes: arrays in, numbers with their nulls out. Nothing here reads or writes a file."""
