"""Your own labelled texts as a task: rows in memory, files of CSV, JSON, JSON lines or Parquet, and data sets of `datasets`.

    row[text], row[label], row[group]?, row[span]?   --->   Task

A label that is a string, a boolean or a whole number names a class; one that is a fraction is a number to predict. Every fault names the
row and says what to do.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probes.tasks.task import MIN_PER_CLASS, Task, numbered
from sae.activations.corpus.files import BUILDERS, Reading, find_files, kind_of, rows, stamp
from sae.errors import ConfigError, FormatError

MAX_CLASSES = 100
TABLES = {".csv": ",", ".tsv": "\t"}
Asked = Literal["classes", "number"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a row is what, and how its labels are meant."""

    text: str = "text"
    """The text."""
    label: str = "label"
    """The answer."""
    group: str | None = None
    """What splits keep together (document, author, ...); None: every text by itself."""
    span: tuple[str, str] | None = None
    """Columns with the first character and the one after the last that a row is about; None: a row is about its whole text."""
    target: Asked | None = None
    """Whether labels are classes or numbers; None: numbers if any of them is a fraction, else classes."""
    classes: tuple[str, ...] | None = None
    """The classes in the order wanted (of two, the second is the positive one); None: all there are, sorted."""

    def __post_init__(self) -> None:
        if self.target not in (None, "classes", "number"):
            raise ConfigError(f"target must be 'classes', 'number' or None, got {self.target!r} (Columns)")
        if self.target == "number" and self.classes is not None:
            raise ConfigError(f"classes must be left out where target is 'number', got {list(self.classes)} (Columns)")

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are needed."""
        return tuple(filter(None, (self.text, self.label, self.group, *(self.span or ()))))


def task_from_rows(
    found: Iterable[Mapping[str, Any]],
    columns: Columns | None = None,
    *,
    name: str = "task",
    source: str = "rows given",
    licence: str = "not stated",
    min_per_class: int = MIN_PER_CLASS,
) -> Task:
    """The task of rows in memory, each a mapping from column to value.

    Raises ConfigError, naming the row, for a column that is not there, a text that is none or blank, a label that is missing or not
    finite, labels of different types, a span outside of its text; and, with the counts, for a class with fewer than `min_per_class` rows.

    >>> task_from_rows([{"text": "What a film", "label": "good"}, ...], name="mine")
    >>> task_from_rows(rows, Columns(text="review", label="stars", group="author", target="number"))
    """
    columns = columns or Columns()
    table = [_checked(row, columns, f"row {number}") for number, row in enumerate(found)]
    if not table:
        raise ConfigError(f"rows must hold at least one row, got none ({source})")
    y, classes = _labels([row[columns.label] for row in table], columns)
    groups = numbered([row[columns.group] if columns.group else row[columns.text] for row in table])
    if columns.span is None:
        return Task(
            name,
            "text",
            tuple(row[columns.text] for row in table),
            y,
            groups,
            classes,
            source,
            licence,
            min_per_class=min_per_class,
        )
    texts = tuple(dict.fromkeys(row[columns.text] for row in table))
    number_of = {text: number for number, text in enumerate(texts)}
    spans = [(number_of[row[columns.text]], *(row[column] for column in columns.span)) for row in table]
    places = np.array(spans, dtype=np.int64)
    return Task(name, "token", texts, y, groups, classes, source, licence, spans=places, min_per_class=min_per_class)


def task_from_file(
    path: str | Path,
    columns: Columns | None = None,
    *,
    name: str | None = None,
    licence: str = "not stated",
    encoding: str = "utf-8",
    min_per_class: int = MIN_PER_CLASS,
) -> Task:
    """The task in a file: .csv or .tsv with a line of headings, .json, .jsonl or .parquet (also .gz, .xz, .bz2, .zst of the last three).

    In CSV a column whose every entry is a number is read as numbers. `name` None is the file's. Raises ConfigError as `task_from_rows` does
    and for a file that is not there or of another kind, FormatError, naming the line, for one that cannot be read.

    >>> task_from_file("reviews.csv", Columns(text="review", label="verdict", group="film"))
    """
    columns, path = columns or Columns(), Path(path)
    found = list(_csv(path, columns, encoding) if path.suffix in TABLES else _records(path, columns, encoding))
    return task_from_rows(found, columns, name=name or path.stem, source=path.name, licence=licence, min_per_class=min_per_class)


def task_from_dataset(
    dataset: Any,
    columns: Columns | None = None,
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    licence: str = "not stated",
    min_per_class: int = MIN_PER_CLASS,
) -> Task:
    """The task in a data set: one loaded with `datasets` (one split of it), or the name of one on the hub, of which `split` is read.

    A column of class numbers with names (`ClassLabel`) has these names as classes. Raises ConfigError as `task_from_rows` does, and
    for a data set that cannot be reached.
    """
    import datasets

    columns = columns or Columns()
    if isinstance(dataset, str):
        what, name = f"data set {dataset}, split {split}", name or dataset.split("/")[-1]
        try:
            dataset = datasets.load_dataset(dataset, subset, split=split, revision=revision)
        except (OSError, ValueError, RuntimeError, LookupError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{what} cannot be loaded: {reason}; check the name and the connection, or download it and give a file"
            ) from error
    elif isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        what = f"data set {getattr(dataset.info, 'dataset_name', None) or 'given'}"
    else:
        raise ConfigError(
            f"dataset must be a Dataset with one split, or a name on the hub, got a {type(dataset).__name__} (task_from_dataset)"
        )
    feature = (dataset.features or {}).get(columns.label)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    found: Iterable[Mapping[str, Any]] = dataset
    if names is not None:
        _present(dataset.column_names or columns.names, columns, what)
        found = ({**row, columns.label: names[row[columns.label]] if row[columns.label] >= 0 else None} for row in dataset)
    return task_from_rows(found, columns, name=name or "task", source=what, licence=licence, min_per_class=min_per_class)


def _present(there: Iterable[str], columns: Columns, where: str) -> None:
    there = list(there)
    for column in columns.names:
        if column not in there:
            raise ConfigError(
                f"{where} has no column {column!r}; its columns are {', '.join(map(repr, there))}: say which is what with Columns"
            )


def _checked(row: Mapping[str, Any], columns: Columns, where: str) -> Mapping[str, Any]:
    _present(row, columns, where)
    text = row[columns.text]
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{columns.text!r} of {where} must be a text that is not blank, got {text!r}: leave the row out")
    for column in columns.span or ():
        if isinstance(row[column], bool) or not isinstance(row[column], (int, np.integer)):
            raise ConfigError(f"{column!r} of {where} must be the number of a character, got {row[column]!r}")
    if columns.group and row[columns.group] is None:
        raise ConfigError(f"{columns.group!r} of {where} is missing: give every row a group, or leave the row out")
    return row


def _plain(label: Any, row: int, columns: Columns) -> str | bool | int | float:
    """A label as a Python value. Raises ConfigError for one that is missing, or not a string, boolean or number."""
    value = label.item() if isinstance(label, np.generic) else label
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, str) and not value.strip()):
        raise ConfigError(f"{columns.label!r} of row {row} must be a label, got {label!r}: leave the row out, or label it")
    if not isinstance(value, (str, bool, int, float)):
        raise ConfigError(f"{columns.label!r} of row {row} must be a string, a boolean or a number, got a {type(value).__name__}")
    return value


def _labels(labels: Sequence[Any], columns: Columns) -> tuple[np.ndarray, tuple[str, ...]]:
    """(y, classes) of a column of labels."""
    values = [_plain(label, row, columns) for row, label in enumerate(labels)]
    kinds = {"number" if type(value) in (int, float) else type(value).__name__: row for row, value in reversed([*enumerate(values)])}
    if len(kinds) > 1:
        examples = ", ".join(f"{kind} (row {row}: {values[row]!r})" for kind, row in sorted(kinds.items(), key=lambda item: item[1]))
        raise ConfigError(f"{columns.label!r} must hold labels of one type, got {examples}: write them all in one way")
    numeric = "number" in kinds
    if columns.target == "number" or (columns.target is None and any(type(value) is float for value in values)):
        if not numeric:
            raise ConfigError(f"{columns.label!r} must hold numbers where target is 'number', row 0 has {values[0]!r}")
        return np.array(values, dtype=np.float64), ()
    names = [str(value) for value in values]
    order = {str(value): None for value in sorted(set(values), key=lambda value: (value, str(value)))}
    classes = tuple(order) if columns.classes is None else columns.classes
    other = next((row for row, label in enumerate(names) if label not in classes), None)
    if other is not None:
        raise ConfigError(
            f"{columns.label!r} of row {other} must be one of classes {list(classes)}, got {names[other]!r}: leave the row out"
        )
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f"{columns.label!r} has {len(classes)} different labels, at most {MAX_CLASSES} can be classes: set target='number'?"
        )
    if len(classes) < 2:
        raise ConfigError(f"{columns.label!r} must have two classes or more, got {len(names)} rows of {classes[0]!r} alone")
    return np.array([classes.index(label) for label in names], dtype=np.int64), classes


def _records(path: Path, columns: Columns, encoding: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a JSON or Parquet file."""
    files = find_files(path) if path.suffix and not path.is_dir() else []
    if not files or kind_of(files) == "text":
        allowed = ", ".join([*TABLES, *(suffix for suffix, kind in BUILDERS.items() if kind != "text")])
        raise ConfigError(f"path must be a file that ends in {allowed}, got {path} (task_from_file)")
    reading = Reading(columns=tuple(dict.fromkeys(columns.names)), encoding=encoding)
    for row in rows(files, [stamp(file) for file in files], reading):
        _present(row.values, columns, row.place)
        yield row.values


def _csv(path: Path, columns: Columns, encoding: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table with a line of headings; labels and spans that are numbers throughout are numbers."""
    reading = Reading(columns=columns.names, encoding=encoding)
    try:
        with open(path, encoding=reading.codec, newline="") as file:
            reader = csv.DictReader(file, delimiter=TABLES[path.suffix], strict=True)
            _present(reader.fieldnames or (), columns, str(path))
            found = []
            for row in reader:
                if None in row or None in row.values():
                    wrong = "more" if None in row else "fewer"
                    raise FormatError(
                        f"line {reader.line_num} of {path} has {wrong} fields than there are headings: quote texts with commas"
                    )
                found.append(row)
    except FileNotFoundError:
        raise ConfigError(f"path {str(path)!r} is no file (task_from_file)") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is no CSV in {encoding} ({error}); save it anew as UTF-8, or give its encoding") from error
    for column in (columns.label, *(columns.span or ())):
        for row, value in zip(found, _numbers([row[column] for row in found]), strict=True):
            row[column] = value
    yield from found


def _numbers(entries: list[str]) -> Sequence[str | int | float]:
    """The entries as whole numbers, else as numbers, if every one is such; else as they are."""
    for kind in (int, float):
        try:
            return [kind(entry) for entry in entries]
        except ValueError:
            continue
    return entries
