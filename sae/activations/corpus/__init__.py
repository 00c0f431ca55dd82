"""Text to capture activations from: re-iterable, deterministic streams of documents, each corpus with a digest of what it will yield.

    Corpus = (name, digest, licence, documents()),     Document = (id, text, labels, special_tokens)

A corpus is never held as a list of tokens, and a corpus read from files is never held at all: `documents()` starts a new pass
each time, and its memory does not grow with the corpus. Two corpora with one digest yield the same documents in the same order.
"""

from sae.activations.corpus.chats import from_chats
from sae.activations.corpus.docstrings import installed_docstrings
from sae.activations.corpus.documents import (
    MAX_DOCUMENT_ID,
    Corpus,
    Document,
    EncodingErrors,
    Labels,
    beginning,
    from_texts,
    mixture,
    shuffled,
)
from sae.activations.corpus.files import BUILDERS, COMPRESSIONS
from sae.activations.corpus.shipped import Synset, state_of_the_union, wordnet_nouns
from sae.activations.corpus.tables import from_dataset

__all__ = [
    "BUILDERS",
    "COMPRESSIONS",
    "MAX_DOCUMENT_ID",
    "Corpus",
    "Document",
    "EncodingErrors",
    "Labels",
    "Synset",
    "beginning",
    "from_chats",
    "from_dataset",
    "from_texts",
    "installed_docstrings",
    "mixture",
    "shuffled",
    "state_of_the_union",
    "wordnet_nouns",
]
