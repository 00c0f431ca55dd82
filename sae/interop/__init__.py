"""Dictionaries in the formats of others, read and written.

Each format is a module with exactly `read(path)` and `write(dictionary, path)`; `formats` knows them all and recognises a file by what is in
it, `files` reads what strangers wrote without trusting it, `hub` is the one module that reaches the network, `card` writes a model card.
"""
