"""Rows as documents: files, folders, data sets on the hub and data sets already loaded, with a column of text and columns of labels.

    rows --column--> text, labels --blank ones left out--> Document --shuffled, the first so many--> Corpus

A document's id is the number of its row. The digest covers the bytes of files, the commit of a hub data set, the documents of a loaded one,
and every option that selects, decodes or orders them.
"""

import hashlib
import json
import lzma
import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.activations.corpus.documents import (
    Corpus,
    Document,
    EncodingErrors,
    Labels,
    beginning,
    lone_surrogate,
    shuffled,
    without_blanks,
    without_surrogates,
)
from sae.activations.corpus.files import Reading, Row, SampleBy, find_files, kind_of, no_column, rows, stamp
from sae.errors import ConfigError, FormatError, SaeError
from sae.fingerprint import canonical, digest, digest_file

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, kw_only=True)
class Rendering(ABC):
    """How the value of one column becomes the text of a document."""

    column: str
    """The column."""
    encoding_errors: EncodingErrors = "strict"
    """What happens to what is not text."""
    special_tokens: bool = False
    """Whether the text spells special tokens that are to be tokens."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """All that the text depends on beside the value, as JSON."""

    @abstractmethod
    def text(self, value: Any, place: str) -> str | None:
        """The text, None where there is none. Raises SaeError naming `place`."""


@dataclass(frozen=True, kw_only=True)
class PlainText(Rendering):
    """The text is the value: a string, or bytes in the encoding given."""

    encoding: str = "utf-8"
    """Encoding of bytes."""

    def identity(self) -> Mapping[str, Any]:
        """The options."""
        return {"text_column": self.column, "encoding": self.encoding, "encoding_errors": self.encoding_errors}

    def text(self, value: Any, place: str) -> str | None:
        """The value itself; None for null. Raises ConfigError for another type, FormatError for what is not text."""
        if value is None:
            return None
        if not isinstance(value, (str, bytes)):
            raise ConfigError(f"text_column must hold strings, {self.column!r} of {place} holds a {type(value).__name__}")
        return decoded(value, f"{self.column!r} of {place}", self.encoding, self.encoding_errors)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where rows come from, and which of them are taken in which order."""

    source: Any
    """Files, a folder, a name on the hub, or a loaded data set."""
    label_columns: tuple[str, ...]
    """Columns that become labels."""
    subset: str | None
    """The configuration of a hub data set."""
    split: str
    """The split."""
    streaming: bool
    """Whether nothing is copied."""
    revision: str | None
    """The revision of a hub data set."""
    licence: str
    """Licence of the texts."""
    shuffle_seed: int | None
    """Seed of the order; None: the order there is."""
    max_documents: int | None
    """How many documents at most; None: all."""

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise ConfigError(f"max_documents must be at least 1, got {self.max_documents}; leave it out for all documents")


def from_dataset(
    source: "str | Path | Sequence[str | Path] | datasets.Dataset | datasets.IterableDataset",
    *,
    text_column: str = "text",
    label_columns: Sequence[str] = (),
    subset: str | None = None,
    split: str = "train",
    streaming: bool = True,
    sample_by: SampleBy = "document",
    revision: str | None = None,
    licence: str = "not stated",
    encoding: str = "utf-8",
    encoding_errors: EncodingErrors = "strict",
    shuffle_seed: int | None = None,
    max_documents: int | None = None,
) -> Corpus:
    """The documents of a dataset: the column `text_column` of every row, with the columns `label_columns` as labels.

    `source` is a file, a glob pattern or a list of files (.txt, .md, .json, .jsonl, .parquet, also .gz, .bz2, .xz, .zst), a folder that
    `datasets` saved or that holds such a data set, a name on the hub (`owner/name`, of which `subset` is one configuration, pinned with
    `revision`), or a dataset that is already loaded. The digest covers the bytes of files, the commit of a hub dataset, the texts and labels
    of a loaded one. A document's id is the number of its row; rows without text are left out, and their number is logged.

    With `streaming` nothing is copied and one row is in memory at a time; without, `datasets` keeps an Arrow copy in its own cache.
    `sample_by` says what one document of a text file is: the file, a paragraph (lines up to a blank one) or a line. `encoding` is that of
    text and JSON files and of columns of bytes; what is not text in it is an error, or U+FFFD with encoding_errors="replace". A byte order
    mark that opens a file is dropped, line ends of text files become "\\n", NUL characters are kept.

    `shuffle_seed` takes the files in a random order and passes the documents through `shuffled`; `max_documents` takes the first so many of
    what comes then. Raises ConfigError for missing files, unknown columns and an empty corpus, FormatError for files that cannot be read,
    naming the file, the place in it and what to do.
    """
    reading = Reading(columns=(text_column, *label_columns), sample_by=sample_by, encoding=encoding, encoding_errors=encoding_errors)
    origin = Origin(
        source=source,
        label_columns=tuple(label_columns),
        subset=subset,
        split=split,
        streaming=streaming,
        revision=revision,
        licence=licence,
        shuffle_seed=shuffle_seed,
        max_documents=max_documents,
    )
    return corpus_from(origin, PlainText(column=text_column, encoding=encoding, encoding_errors=encoding_errors), reading)


def corpus_from(origin: Origin, rendering: Rendering, reading: Reading) -> Corpus:
    """The corpus of the rows of `origin`, each of which is rendered to the text of a document."""
    corpus = _all_rows(origin, rendering, reading)
    if origin.shuffle_seed is not None:
        corpus = shuffled(corpus, seed=origin.shuffle_seed)
    return corpus if origin.max_documents is None else beginning(corpus, origin.max_documents)


def _all_rows(origin: Origin, rendering: Rendering, reading: Reading) -> Corpus:
    source: Any = origin.source
    if isinstance(source, (str, Path, Sequence)):
        files = find_files(source)
        if not files and not Path(source).is_dir():  # type: ignore[arg-type]  # a list gives files, or an error
            return _from_hub(str(source), origin, rendering)
        found = files or _folder(Path(source), origin.subset, origin.split)  # type: ignore[arg-type]
        if isinstance(found, list):
            return _from_files(found, origin, rendering, reading)
        source = found
    return _from_loaded(source, origin, rendering)


def _identity(source: Any, origin: Origin, rendering: Rendering) -> dict[str, Any]:
    return {"dataset": source, "split": origin.split, "label_columns": list(origin.label_columns), **rendering.identity()}


def _from_files(files: list[Path], origin: Origin, rendering: Rendering, reading: Reading) -> Corpus:
    kind = kind_of(files)
    if origin.shuffle_seed is not None:
        random.Random(origin.shuffle_seed).shuffle(files)
    stamps = [stamp(file) for file in files]
    try:
        hashes = [digest_file(file) for file in files]
    except OSError as error:
        raise FormatError(f"{error.filename or files[0]} cannot be read: {error.strerror}; check that it is there and readable") from error
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    identity = _identity(hashes, origin, rendering)
    if kind == "text":
        identity["sample_by"] = reading.sample_by

    def documents() -> Iterator[Document]:
        return _documents(rows(files, stamps, reading), origin, rendering, name)

    corpus = Corpus(name, digest(identity), origin.licence, documents, rendering.special_tokens)
    return corpus if origin.streaming else _copied(corpus)


def _copied(corpus: Corpus) -> Corpus:
    """The same corpus, read from an Arrow copy that `datasets` makes on the first pass and keeps in its cache under the digest."""

    def documents() -> Iterator[Document]:
        import datasets

        def generate() -> Iterator[dict[str, Any]]:
            for document in corpus.documents():
                yield {"id": document.id, "text": document.text, "labels": json.dumps(document.labels)}

        kinds = {"id": datasets.Value("int64"), "text": datasets.Value("large_string"), "labels": datasets.Value("string")}
        try:
            copy = datasets.Dataset.from_generator(generate, features=datasets.Features(kinds), fingerprint=corpus.digest)
        except _failures() as error:
            advice = "streaming=True needs no copy, and HF_DATASETS_CACHE says where copies go"
            raise _explained(error, f"{corpus.name} cannot be copied to the cache of datasets", advice) from error
        for row in _guarded(copy, corpus.name):
            yield Document(row.values["id"], row.values["text"], json.loads(row.values["labels"]), corpus.special_tokens)

    return replace(corpus, source=documents)


def _from_hub(name: str, origin: Origin, rendering: Rendering) -> Corpus:
    commit = _commit(name, origin.subset, origin.revision)

    def documents() -> Iterator[Document]:
        import datasets

        options = {"split": origin.split, "streaming": origin.streaming, "revision": origin.revision or commit}
        try:
            loaded = datasets.load_dataset(path=name, name=origin.subset, **options)
        except _failures() as error:
            advice = "check the split and the connection, or download the data set and give its files"
            raise _explained(error, f"split {origin.split!r} of {name} cannot be opened", advice) from error
        return _documents(_guarded(loaded, name), origin, rendering, name)

    identity = _identity({"hub": name, "subset": origin.subset, "commit": commit}, origin, rendering)
    return Corpus(name, digest(identity), origin.licence, documents, rendering.special_tokens)


def _from_loaded(loaded: Any, origin: Origin, rendering: Rendering) -> Corpus:
    import datasets

    if not isinstance(loaded, (datasets.Dataset, datasets.IterableDataset)):
        raise ConfigError(f"source must be files, a hub name, or a Dataset with one split, got a {type(loaded).__name__} (from_dataset)")
    name = getattr(loaded.info, "dataset_name", None) or "dataset"

    def documents() -> Iterator[Document]:
        return _documents(_guarded(loaded, name), origin, rendering, name)

    state = hashlib.sha256(b"dataset")
    for document in documents():
        state.update(canonical([document.id, document.text, document.labels, document.special_tokens]).encode("ascii"))
    return Corpus(name, state.hexdigest(), origin.licence, documents, rendering.special_tokens)


def _folder(path: Path, subset: str | None, split: str) -> Any:
    """What is in a folder: the Dataset that `datasets` saved there, or the list of the files that its card (or its layout) gives the split."""
    import datasets

    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            found: Any = saved if isinstance(saved, Mapping) else {split: saved}
        else:
            found = datasets.load_dataset_builder(str(path), subset).config.data_files or {}
    except _failures() as error:
        advice = "give its files, as in 'folder/*.jsonl'"
        raise _explained(error, f"source {str(path)!r} is a folder that datasets cannot open", advice, ConfigError) from error
    if split not in found:
        raise ConfigError(f"split must be one of {', '.join(map(str, found)) or 'none'} in {path}, got {split!r} (from_dataset)")
    return found[split] if isinstance(found[split], datasets.Dataset) else [Path(file) for file in found[split]]


def _commit(name: str, subset: str | None, revision: str | None) -> str:
    """The commit of a hub dataset, as `datasets` resolves it."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
    except OSError as error:  # no connection, no such name, no such revision: all of these
        what = f"source {name!r} is neither a file here nor a dataset that can be reached on the hub"
        raise _explained(error, what, "check the name and the connection", ConfigError) from error
    except _failures() as error:
        what = f"source {name!r} cannot be opened with subset={subset!r}, revision={revision!r}"
        raise _explained(error, what, "choose another, or download the data set and give its files", ConfigError) from error
    if not builder.hash:
        raise ConfigError(f"source {name!r} has no commit that could name its contents; download it and give its files (from_dataset)")
    return builder.hash


def _documents(found: Iterable[Row], origin: Origin, rendering: Rendering, name: str) -> Iterator[Document]:
    def texts() -> Iterator[tuple[int, str | None, Labels]]:
        for number, row in enumerate(found):
            if rendering.column not in row.values and number == 0:
                raise no_column(rendering.column, row.place, row.values)
            text = rendering.text(row.values.get(rendering.column), row.place)
            yield number, text, _labels(row, origin, rendering) if text and text.strip() else {}

    return without_blanks(texts(), name, special_tokens=rendering.special_tokens)


def _labels(row: Row, origin: Origin, rendering: Rendering) -> Labels:
    labels: dict[str, str | int] = {}
    for column in origin.label_columns:
        if column not in row.values:
            raise no_column(column, row.place, row.values)
        value = row.values[column]
        if not isinstance(value, (str, int)):
            raise ConfigError(f"label_columns must hold strings or integers, {column!r} of {row.place} holds {value!r}")
        if isinstance(value, str):
            value = decoded(value, f"{column!r} of {row.place}", "utf-8", rendering.encoding_errors)
        labels[column] = value
    return labels


def decoded(value: str | bytes, where: str, encoding: str, encoding_errors: EncodingErrors) -> str:
    """`value` as text that UTF-8 can write. Raises FormatError, saying `where`, for what is not text, unless it is to be replaced by U+FFFD."""
    if isinstance(value, bytes):
        try:
            return decoded(value.decode(encoding, encoding_errors), where, encoding, encoding_errors)
        except UnicodeDecodeError as error:
            advice = "give the encoding it has, or encoding_errors='replace'"
            raise FormatError(
                f"{where} holds bytes that are not text in {encoding} ({error.reason}, byte {error.start}); {advice}"
            ) from error
    at = lone_surrogate(value)
    if at is None:
        return value
    if encoding_errors == "strict":
        advice = "write it again, or put U+FFFD in such places with encoding_errors='replace'"
        raise FormatError(f"{where} has the lone surrogate {value[at]!r} at character {at}, which is no text; {advice}")
    return without_surrogates(value)


def _failures() -> tuple[type[BaseException], ...]:
    """What `datasets` and those below it raise for data, files and connections that are not as they should be."""
    import pyarrow
    from datasets.exceptions import DatasetsError

    usual = (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, ImportError, StopIteration)
    return (*usual, zlib.error, lzma.LZMAError, pyarrow.ArrowException, DatasetsError)


def _guarded(loaded: Any, name: str) -> Iterator[Row]:
    """The rows of a data set; whatever goes wrong below becomes a FormatError that says after which row, and why."""
    number = 0
    try:
        for values in loaded:
            yield Row(f"row {number} of {name}", values)
            number += 1
    except _failures() as error:
        advice = "look at the data set with datasets alone, or download it and give its files"
        raise _explained(error, f"{name} cannot be read from row {number} on", advice) from error


def _explained(error: BaseException, what: str, advice: str, kind: Callable[[str], SaeError] = FormatError) -> SaeError:
    """An error that says what failed, why, and what to do; where the reason is one of our own errors, that one."""
    from datasets.exceptions import DatasetsError

    below: BaseException | None = error
    while below is not None:
        if isinstance(below, SaeError):
            return type(below)(str(below))
        below = below.__cause__ or below.__context__
    while isinstance(error, DatasetsError) and error.__cause__ is not None:  # which only say that something went wrong
        error = error.__cause__
    return kind(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}; {advice}")
