"""Activations of a language model on disk: corpora (`corpus`), capture (`collect`), the store (`store`), batches and scaling from it."""
