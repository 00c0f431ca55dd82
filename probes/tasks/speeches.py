"""Passages of speeches, labelled by what is known of the whole speech: era, party, speaker.

    document --runs of n_words words--> passages, each with its document's label and group

Passages of one document share its vocabulary as well as its label: splits must keep documents apart, or all of a speaker's.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.tasks.task import Task, numbered
from sae.errors import ConfigError

if TYPE_CHECKING:
    from sae.activations.corpus import Corpus


def era(
    corpus: "Corpus",
    *,
    year: int = 1900,
    n_words: int = 64,
    n_per_document: int | None = 16,
    group_label: str | None = None,
    seed: int = 0,
) -> Task:
    """Whether a passage was written in or after `year`. The corpus must have the label `year`.

    A row is a passage of `n_words` words; each document gives at most `n_per_document` of them, drawn by `seed`. Groups are documents, or
    with `group_label` (such as "speaker") all documents that share that label, which is stricter.
    Raises ConfigError for a missing label, or too few passages of a class.
    """
    passages = _passages(corpus, "year", n_words, n_per_document, group_label, seed)
    years = [passage.label for passage in passages if isinstance(passage.label, int)]
    if len(years) < len(passages):
        other = next(passage.label for passage in passages if not isinstance(passage.label, int))
        raise ConfigError(f"the label 'year' must be a whole number, got {other!r} (era)")
    y = np.array([int(label >= year) for label in years], dtype=np.int64)
    return _passage_task("era", corpus, passages, y, (f"before {year}", f"{year} or later"))


def party(
    corpus: "Corpus",
    *,
    parties: tuple[str, str] = ("Democratic", "Republican"),
    n_words: int = 64,
    n_per_document: int | None = 16,
    group_label: str | None = None,
    seed: int = 0,
) -> Task:
    """Which of two parties the speaker of a passage belongs to; documents of other parties are left out. Rows and groups as in `era`.

    The corpus must have the label `party`. Raises ConfigError for a missing label, a party that no document has, too few passages.
    """
    passages = _passages(corpus, "party", n_words, n_per_document, group_label, seed)
    found = sorted({str(passage.label) for passage in passages})
    missing = [name for name in parties if name not in found]
    if missing or parties[0] == parties[1]:
        raise ConfigError(f"parties must be two different labels out of {', '.join(found)}, got {list(parties)} (party)")
    passages = [passage for passage in passages if passage.label in parties]
    y = np.array([parties.index(str(passage.label)) for passage in passages], dtype=np.int64)
    return _passage_task("party", corpus, passages, y, parties)


def speaker(corpus: "Corpus", *, min_documents: int = 5, n_words: int = 64, n_per_document: int | None = 16, seed: int = 0) -> Task:
    """Who gave a passage, out of all speakers with at least `min_documents` documents; rows as in `era`, groups are documents.

    The corpus must have the label `speaker`. A speaker's documents are of one time, so this is also a finer question about the era.
    Raises ConfigError for a missing label and when fewer than two speakers have documents enough.
    """
    passages = _passages(corpus, "speaker", n_words, n_per_document, None, seed)
    documents = Counter(label for label, _ in sorted({(str(passage.label), passage.group) for passage in passages}))
    classes = tuple(sorted(name for name, n in documents.items() if n >= min_documents))
    if len(classes) < 2:
        most = ", ".join(f"{name} {n}" for name, n in documents.most_common(3))
        raise ConfigError(
            f"min_documents={min_documents} leaves {len(classes)} speakers, two are needed; the most documents: {most} (speaker)"
        )
    passages = [passage for passage in passages if str(passage.label) in classes]
    y = np.array([classes.index(str(passage.label)) for passage in passages], dtype=np.int64)
    return _passage_task("speaker", corpus, passages, y, classes)


@dataclass(frozen=True)
class _Passage:
    text: str
    label: str | int
    group: str | int


def passages(corpus: "Corpus", *, n_words: int = 64, n_per_document: int | None = 16, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts of `n_words` words cut from the documents of `corpus`, and the number of each one's document: what `era` labels."""
    found = _passages(corpus, None, n_words, n_per_document, None, seed)
    return [passage.text for passage in found], [int(passage.group) for passage in found]


def _passages(
    corpus: "Corpus", label: str | None, n_words: int, n_per_document: int | None, group_label: str | None, seed: int
) -> list[_Passage]:
    """Non-overlapping runs of `n_words` words of every document, at most `n_per_document` of each; a shorter rest is left out."""
    for name, value in (("n_words", n_words), ("n_per_document", n_per_document)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value} (tasks)")
    passages = []
    for document in corpus.documents():
        for name in filter(None, (label, group_label)):
            if name not in document.labels:
                found = f"document {document.id} of {corpus.name} has {sorted(document.labels)}"
                raise ConfigError(f"documents must have the label {name!r}, {found}")
        ends = [match.end() for match in re.finditer(r"\S+", document.text)]
        starts = [0, *ends[n_words - 1 :: n_words]]
        texts = [document.text[start:end].strip() for start, end in itertools.pairwise(starts)]
        if n_per_document is not None and len(texts) > n_per_document:
            chosen = np.random.default_rng([seed, document.id]).choice(len(texts), n_per_document, replace=False)
            texts = [texts[i] for i in sorted(chosen)]
        group = document.labels[group_label] if group_label else document.id
        passages += [_Passage(text, document.labels[label] if label else "", group) for text in texts]
    return passages


def _passage_task(name: str, corpus: "Corpus", passages: Sequence[_Passage], y: np.ndarray, classes: tuple[str, ...]) -> Task:
    groups = numbered([passage.group for passage in passages])
    return Task(name, "text", tuple(passage.text for passage in passages), y, groups, classes, f"corpus {corpus.name}", corpus.licence)
