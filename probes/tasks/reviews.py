"""Sentences rated by people, from four kinds of source: film reviews, product reviews, newspaper editorials, tweets.

    sentiment    mean rating >= threshold against <= -threshold        rating: -4 (most negative) .. 4 (most positive), mean of 20 people
    rating       the mean rating itself, a number
    origin       which of the four sources a text is from

Hutto & Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. The data are inside the source
package vaderSentiment 0.5 on PyPI, which is downloaded once with pip and checked by SHA-256; it is never installed and nothing of it runs.
"""

import io
import logging
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from probes.tasks.task import Task, numbered
from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import digest_file
from sae.storage import lock, user_cache_dir, write_bytes

PACKAGE = "vaderSentiment==0.5"
PACKAGE_FILE = "vaderSentiment-0.5.zip"
PACKAGE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
TABLE = "hutto_ICWSM_2014/{}_GroundTruth.txt"
PIP_SECONDS = 300

Origin = Literal["films", "products", "editorials", "tweets"]
TABLES = {"films": "movieReviewSnippets", "products": "amazonReviewSnippets", "editorials": "nytEditorialSnippets", "tweets": "tweets"}
WRITERS = {
    "films": "Rotten Tomatoes reviews",
    "products": "Amazon reviews",
    "editorials": "New York Times editorials",
    "tweets": "public tweets",
}

logger = logging.getLogger(__name__)


class Rated(NamedTuple):
    """One rated text."""

    text: str
    """The text."""
    rating: float
    """Mean rating, -4 to 4."""
    document: str
    """What it is part of: a review or an editorial; for films and tweets, where the source does not say, itself."""


def sentiment(folder: str | Path | None = None, *, threshold: float = 1.0, origin: Origin = "films") -> Task:
    """Whether people rated a text positive: mean rating >= threshold against <= -threshold on a scale of -4 to 4.

    `folder` keeps the source package (None: the workbench's own cache). Groups are reviews or editorials; of films and tweets the source
    does not say which sentences belong together, so every one is a group of its own.
    Raises SaeError when the package cannot be fetched, FormatError when it is not the one expected.
    """
    if not 0 <= threshold < 4:
        raise ConfigError(f"threshold must be in [0, 4), got {threshold} (sentiment)")
    rated = [entry for entry in rated_texts(folder, origin) if entry.rating and abs(entry.rating) >= threshold]
    y = np.array([int(entry.rating > 0) for entry in rated], dtype=np.int64)
    return _task("sentiment", rated, y, ("negative", "positive"), (origin,))


def rating(folder: str | Path | None = None, *, origin: Origin = "films") -> Task:
    """How people rated a text on average, from -4 (most negative) to 4: a number. Texts, groups and errors as in `sentiment`."""
    rated = rated_texts(folder, origin)
    return _task("rating", rated, np.array([entry.rating for entry in rated]), (), (origin,))


def origin(folder: str | Path | None = None, *, origins: Sequence[Origin] = get_args(Origin)) -> Task:
    """Which kind of source a text is from: a film review, a product review, an editorial, a tweet. Groups as in `sentiment`.

    Product reviews are all in lower case in the source, so their texts are recognised by that alone: leave them out of `origins`, or keep
    in mind that a probe reads it. A text that occurs in several sources is left out. Raises as `sentiment` does.
    """
    if len(set(origins)) < 2 or len(set(origins)) != len(origins):
        raise ConfigError(f"origins must be two or more different ones of {', '.join(get_args(Origin))}, got {list(origins)} (origin)")
    found = [(entry, label) for label, name in enumerate(origins) for entry in rated_texts(folder, name)]
    times: dict[str, int] = {}
    for entry, _ in found:
        times[entry.text] = times.get(entry.text, 0) + 1
    kept = [(entry._replace(document=f"{label} {entry.document}"), label) for entry, label in found if times[entry.text] == 1]
    return _task("origin", [entry for entry, _ in kept], np.array([label for _, label in kept], dtype=np.int64), tuple(origins), origins)


def _task(name: str, rated: Sequence[Rated], y: np.ndarray, classes: tuple[str, ...], origins: Sequence[str]) -> Task:
    texts = " and ".join(WRITERS[origin] for origin in origins)
    return Task(
        name,
        "text",
        tuple(entry.text for entry in rated),
        y,
        numbered([entry.document for entry in rated]),
        classes,
        f"{', '.join(origins)} of {PACKAGE} (PyPI), fetched on demand",
        f"package MIT; the texts are quoted from {texts}",
    )


def rated_texts(folder: str | Path | None = None, origin: Origin = "films") -> list[Rated]:
    """Every different text of one source with its rating, in the source's order. Raises as `sentiment` does."""
    if origin not in get_args(Origin):
        raise ConfigError(f"origin must be one of {', '.join(get_args(Origin))}, got {origin!r} (rated_texts)")
    name = TABLE.format(TABLES[origin])
    table = _table(_package(Path(folder) if folder is not None else user_cache_dir() / "assets"), name)
    found: dict[str, Rated] = {}
    for number, line in enumerate(table.rstrip("\n").split("\n"), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise FormatError(f"{name} line {number} must have 3 columns, got {len(fields)}")
        whole, text = fields[0].split("_")[0] if "_" in fields[0] else f"text {fields[0]}", fields[2].strip()
        if text:
            found.setdefault(text, Rated(text, _number(fields[1], f"{name} line {number}"), whole))
    return list(found.values())


def _number(field: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise FormatError(f"{where} must have a number in its second column, got {field!r}") from None
    if not -4 <= value <= 4:
        raise FormatError(f"{where} must have a rating from -4 to 4, got {field!r}")
    return value


def _package(folder: Path) -> Path:
    """The source package in `folder`, downloaded if it is not there."""
    path = folder / PACKAGE_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f".{PACKAGE_FILE}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                fetched = _download(Path(scratch))
                _check_package(fetched)
                write_bytes(path, fetched.read_bytes())
    _check_package(path)
    return path


def _download(scratch: Path) -> Path:
    arguments = ["download", "--no-deps", "--no-binary", "vaderSentiment", "--dest", str(scratch), PACKAGE]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    logger.info("downloading %s", PACKAGE)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SaeError(f"{PACKAGE} could not be fetched: {error}") from error
    if result.returncode or not (scratch / PACKAGE_FILE).exists():
        last = " | ".join(result.stderr.strip().splitlines()[-3:]) or f"pip left {sorted(path.name for path in scratch.iterdir())}"
        raise SaeError(f"{PACKAGE} could not be fetched (the era task needs no download): {last}")
    return scratch / PACKAGE_FILE


def _check_package(path: Path) -> None:
    found = digest_file(path)
    if found != PACKAGE_SHA256:
        raise FormatError(f"{path} must have SHA-256 {PACKAGE_SHA256}, got {found}; remove it to fetch it again")


def _table(path: Path, name: str) -> str:
    """A table of rated texts, read from the archive inside the package; nothing is unpacked on disk."""
    try:
        with zipfile.ZipFile(path) as package, tarfile.open(fileobj=io.BytesIO(package.read(ARCHIVE))) as archive:
            member = archive.extractfile(name)
            if member is None:
                raise FormatError(f"{path}: {name} is not a file")
            return member.read().decode("utf-8").replace("\r\n", "\n")
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} does not hold {name}: {error}") from error
