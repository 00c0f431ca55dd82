"""Measurements of a dictionary: how well it reconstructs activations, and what the reconstruction does to the language model."""
