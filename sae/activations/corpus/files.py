"""Files of text, JSON and Parquet as rows, one at a time: which file, which place in it, the values of its columns.

    files --open, decompress, decode--> text --split or parse--> Row(place, values)

Every fault names the file, the place in it and what to do. `datasets` reads such files too, but ignores `encoding` in compressed ones, takes
[ and ] in a file's name for a pattern and finds nothing, turns strings that look like dates into dates, and names no file in its errors.
A byte order mark at the start of a file is dropped, and in text files every line end becomes "\\n"; NUL characters are kept.
"""

import bz2
import codecs
import glob
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae.activations.corpus.documents import EncodingErrors, check_encoding_errors
from sae.errors import ConfigError, FormatError

BUILDERS = {".txt": "text", ".text": "text", ".md": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
BLOCK = 1 << 20
SampleBy = Literal["document", "paragraph", "line"]


class Row(NamedTuple):
    """One row of a file."""

    place: str
    """Where it is, for messages: "line 3 of a.jsonl"."""
    values: Mapping[str, Any]
    """Column name to value."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read."""

    columns: tuple[str, ...]
    """The columns that are needed."""
    sample_by: SampleBy = "document"
    """What one row of a text file is: the file, a run of lines without a blank one among them, or a line."""
    encoding: str = "utf-8"
    """How text and JSON are encoded, by the name Python knows it under."""
    encoding_errors: EncodingErrors = "strict"
    """What happens to bytes that are not text in that encoding: an error, or U+FFFD in their place."""

    def __post_init__(self) -> None:
        check_encoding_errors(self.encoding_errors)
        if self.sample_by not in ("document", "paragraph", "line"):
            raise ConfigError(f"sample_by must be 'document', 'paragraph' or 'line', got {self.sample_by!r}")
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise ConfigError(f"encoding must be one that Python knows, such as 'utf-8' or 'latin-1', got {self.encoding!r}") from error

    @property
    def codec(self) -> str:
        """The encoding, in the variant that drops a byte order mark."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding


def find_files(source: "str | Path | Sequence[str | Path]") -> list[Path]:
    """The files that `source` names, sorted within a pattern; empty when it can only be a folder or a name on the hub.

    A file that is there is taken by its name, even if the name has the characters of a pattern in it.
    """
    patterns = [source] if isinstance(source, (str, Path)) else list(source)
    if not patterns:
        raise ConfigError("source must name at least one file, got an empty list (from_dataset)")
    files = []
    for pattern in patterns:
        if not isinstance(pattern, (str, Path)):
            raise ConfigError(f"source must be files, a hub name, or a Dataset with one split, got a list with a {type(pattern).__name__}")
        matches = [str(pattern)] if Path(pattern).is_file() else glob.glob(str(pattern), recursive=True)
        found = sorted(Path(match) for match in matches if Path(match).is_file())
        can_be_else = pattern is source and (Path(pattern).is_dir() or isinstance(pattern, str))
        if not found and (not can_be_else or kind(Path(pattern)) or glob.has_magic(str(pattern))):
            raise ConfigError(f"source {str(pattern)!r} matches no file (from_dataset)")
        files += found
    return files


def kind(path: Path) -> str | None:
    """ "text", "json" or "parquet", by the file's suffix before that of a compression; None for any other."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return BUILDERS.get(suffixes[-1]) if suffixes else None


def kind_of(files: Sequence[Path]) -> str:
    """The one kind of all `files`. Raises ConfigError when they differ or a file is of none."""
    kinds = {kind(file) for file in files}
    found = kinds.pop()
    if kinds or found is None:
        names = ", ".join(sorted({"".join(file.suffixes) or file.name for file in files}))
        raise ConfigError(f"source files must all be of one kind out of {', '.join(BUILDERS)}, got {names} (from_dataset)")
    return found


class Stamp(NamedTuple):
    """What a file looked like when its corpus was made."""

    size: int
    """Bytes."""
    changed: int
    """Time of the last change, in nanoseconds."""


def stamp(path: Path) -> Stamp:
    """The size and time of last change of the file. Raises FormatError when it cannot be looked at."""
    try:
        found = path.stat()
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read any more ({error.strerror}); put it back, or make the corpus from what is there"
        ) from error
    return Stamp(found.st_size, found.st_mtime_ns)


def rows(files: Sequence[Path], stamps: Sequence[Stamp], reading: Reading) -> Iterator[Row]:
    """The rows of all files, in their order. Raises FormatError naming the file at fault, and the place in it where that is known."""
    for path, expected in zip(files, stamps, strict=True):
        if stamp(path) != expected:
            raise FormatError(
                f"{path} has changed since the corpus was made from it, so its digest is of other text; make the corpus again"
            )
        readers: dict[str, Callable[[Path, Reading], Iterator[Row]]] = {"text": _text, "json": _json, "parquet": _parquet}
        try:
            yield from readers[kind_of([path])](path, reading)
        except UnicodeDecodeError as error:
            raise FormatError(_undecodable(path, reading, error)) from error
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise FormatError(f"{path} is cut off or not compressed as its name says ({error}); fetch or write it again") from error
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error}; if it is compressed it may be cut off: fetch or write it again") from error


def _binary(path: Path) -> Any:  # a binary file, of one of several unrelated classes
    """The file's bytes, decompressed as its suffix says."""
    if path.suffix == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(path.suffix, open)(path, "rb")


def _open(path: Path, reading: Reading) -> io.TextIOWrapper:
    return io.TextIOWrapper(_binary(path), encoding=reading.codec, errors=reading.encoding_errors)


def _undecodable(path: Path, reading: Reading, error: UnicodeDecodeError) -> str:
    """Which byte in which line of the file is not text in the encoding, and what can be done."""
    decoder = codecs.getincrementaldecoder(reading.codec)("strict")
    line, reason = 1, error.reason
    with _binary(path) as file:
        likely_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with _binary(path) as file:
        while block := file.read(BLOCK):
            try:
                line += decoder.decode(block).count("\n")
            except UnicodeDecodeError as found:
                line += found.object[: found.start].count(b"\n")
                reason = f"byte 0x{found.object[found.start]:02x}: {found.reason}"
                break
    advice = (
        "it begins as UTF-16 does: give encoding='utf-16'"
        if likely_utf16
        else "give the encoding it has (encoding='latin-1', 'cp1252', ...)"
    )
    remedies = f"{advice}, convert the file, or put U+FFFD in such places with encoding_errors='replace'"
    return f"line {line} of {path} is not text in {reading.encoding} ({reason}); {remedies}"


def _text(path: Path, reading: Reading) -> Iterator[Row]:
    with _open(path, reading) as file:
        if reading.sample_by == "document":
            yield Row(str(path), {"text": file.read()})
            return
        pieces: Iterable[tuple[int, str]] = ((number, line.rstrip("\n")) for number, line in enumerate(file, start=1))
        for number, piece in _paragraphs(pieces) if reading.sample_by == "paragraph" else pieces:
            yield Row(f"line {number} of {path}", {"text": piece})


def _paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Runs of lines that are not blank, each with the number of its first line."""
    first, held = 0, []
    for number, line in lines:
        if line.strip():
            first = first if held else number
            held.append(line)
        elif held:
            yield first, "\n".join(held)
            held = []
    if held:
        yield first, "\n".join(held)


def _json(path: Path, reading: Reading) -> Iterator[Row]:
    """JSON lines, or one array of objects, told apart by the first character."""
    with _open(path, reading) as file:
        first, number = file.read(1), 1
        while first.isspace():
            number += first == "\n"
            first = file.read(1)
        if first == "[":
            for index, value in enumerate(_array(file, path)):
                yield _row(value, f"entry {index} of {path}")
            return
        for at, line in enumerate(itertools.chain([first + file.readline()], file), start=number):
            if line.strip():
                yield _json_line(line, f"line {at} of {path}")


def _json_line(line: str, place: str) -> Row:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        advice = "write one JSON object a line, or one array of objects"
        raise FormatError(f"{place} is not JSON ({error}): {line.strip()[:60]!r}; {advice}") from error
    return _row(value, place)


def _row(value: Any, place: str) -> Row:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise FormatError(f"{place} must be a JSON object, column name to value, got {str(value)[:60]!r}")
    return Row(place, value)


def _array(file: io.TextIOWrapper, path: Path) -> Iterator[Any]:
    """The values of a JSON array whose "[" has been read, about one of them in memory at a time."""
    decoder, held, at, size, ended = json.JSONDecoder(), "", 0, BLOCK, False
    while True:
        while at < len(held) and held[at] in " \t\r\n,":
            at += 1
        if at < len(held) and held[at] == "]":
            return
        try:
            value, end = decoder.raw_decode(held, at)
        except (json.JSONDecodeError, RecursionError) as error:
            if ended:
                raise FormatError(f"{path} is not a JSON array ({error}); write it again, or write one object a line") from error
            end = len(held)
        if end < len(held):  # a number that ends with what has been read may go on
            yield value
            at, size = end, BLOCK
        else:
            more = file.read(size)
            held, at, size, ended = held[at:] + (more or " "), 0, 2 * size, not more


def _parquet(path: Path, reading: Reading) -> Iterator[Row]:
    """Strings are given as bytes: what is not UTF-8 among them is found, and replaced if that is asked for, where they are decoded."""
    import pyarrow
    import pyarrow.parquet

    number, columns = 0, list(reading.columns)
    try:
        with _binary(path) as source, pyarrow.parquet.ParquetFile(_seekable(source, path)) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise no_column(column, str(path), file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1000, columns=columns):
                arrays = [_values(batch.column(column), reading.encoding_errors) for column in columns]
                for values in zip(*arrays, strict=True):
                    yield Row(f"row {number} of {path}", dict(zip(columns, values, strict=True)))
                    number += 1
    except UnicodeDecodeError as error:
        where = f"row {number} of {path}, or one of the 999 after it,"
        advice = "write it again, or put U+FFFD in such places with encoding_errors='replace'"
        raise FormatError(f"{where} has a string that is not UTF-8 ({error.reason}); {advice}") from error
    except pyarrow.ArrowException as error:
        raise FormatError(f"{path} is damaged or no Parquet file, after row {number}: {error}; fetch or write it again") from error


def no_column(column: str, where: str, columns: Iterable[str]) -> ConfigError:
    """The error for a column that is not there."""
    return ConfigError(f"{where} has no column {column!r}; its columns are {', '.join(sorted(columns))} (from_dataset)")


def _seekable(source: Any, path: Path) -> Any:
    return io.BytesIO(source.read()) if path.suffix in COMPRESSIONS else source  # the table of contents is at the end


def _values(array: Any, encoding_errors: EncodingErrors) -> list[Any]:
    """The Python values of an Arrow array; strings are decoded here, for Arrow knows only the strict way."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    wider = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    if array.type not in wider:
        return array.to_pylist()
    return [None if value is None else value.decode("utf-8", encoding_errors) for value in array.cast(wider[array.type]).to_pylist()]
