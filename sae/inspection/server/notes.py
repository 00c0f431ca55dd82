"""What people and explainers say about features: explanations with their scores, notes and lists, in one SQLite file.

    notes = Notes.open("notes.sqlite")
    notes.add_explanation(dictionary_digest, 7, "months of the year", method="human", author="ada")
    notes.labels(dictionary_digest)        # {7: "months of the year"}: of each feature the newest by a person, else the newest

A feature is named by the digest of its dictionary and its index, so what is said about it outlives the index it was said over, and two
dictionaries never share a word. Only indexes of what was computed are immutable; this file is the one thing that a server writes.
"""

import datetime
import json
import math
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import FormatError

VERSION = 1
HUMAN = "human"
"""Method of what a person wrote."""
TABLES = """
create table explanations (id integer primary key, dictionary text not null, feature integer not null, text text not null,
                           method text not null, author text not null, created text not null);
create index explanations_of on explanations (dictionary, feature);
create table scores (id integer primary key, explanation integer not null references explanations (id) on delete cascade,
                     method text not null, value real not null, details text not null, created text not null);
create index scores_of on scores (explanation);
create table notes (dictionary text not null, feature integer not null, text text not null, changed text not null,
                    primary key (dictionary, feature));
create table lists (name text primary key, title text not null, description text not null, changed text not null);
create table items (list text not null references lists (name) on delete cascade, place integer not null, dictionary text not null,
                    feature integer not null, comment text not null, primary key (list, place));
"""


@dataclass(frozen=True)
class Score:
    """How well an explanation does in a test."""

    method: str
    """Name of the test."""
    value: float
    """What it gave."""
    details: Mapping[str, Any]
    """Whatever the test keeps, as JSON."""
    created: str
    """When, UTC, ISO 8601."""


@dataclass(frozen=True)
class Explanation:
    """What a person or a program says that a feature means."""

    id: int
    """Its number in the file."""
    index: int
    """Latent id."""
    text: str
    """What it says."""
    method: str
    """`human`, or the name of what wrote it."""
    author: str
    """The person, or the model that was asked."""
    created: str
    """When, UTC, ISO 8601."""
    scores: tuple[Score, ...] = ()
    """Its scores, oldest first."""


@dataclass(frozen=True)
class ListItem:
    """A feature in a list."""

    dictionary: str
    """Digest of its dictionary."""
    index: int
    """Latent id."""
    comment: str = ""
    """Why it is there."""


@dataclass(frozen=True)
class Collection:
    """A named list of features."""

    name: str
    """Its name, as in addresses."""
    title: str
    """What people read."""
    description: str
    """What it is about."""
    changed: str
    """When it was last written, UTC, ISO 8601."""
    items: tuple[ListItem, ...]
    """Its features, in order."""


class Notes:
    """The file; safe to use from several threads. Every method that writes is one transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self.connection, self.lock = path, connection, threading.RLock()
        self.version = 0

    @staticmethod
    def open(path: str | Path) -> "Notes":
        """The file at `path`, made when it is not there. Raises FormatError when it is something else."""
        path, connection = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
            version = connection.execute("pragma user_version").fetchone()[0]
            if version == 0 and not connection.execute("select 1 from sqlite_master").fetchone():
                connection.executescript(f"begin; {TABLES} pragma user_version = {VERSION}; commit;")
                version = VERSION
            if version != VERSION:
                raise FormatError(f"it is no file of notes of version {VERSION} (found version {version})")
            connection.execute("pragma foreign_keys = on")
            connection.execute("pragma journal_mode = wal")
        except (sqlite3.Error, OSError, FormatError) as error:
            if connection is not None:
                connection.close()
            raise FormatError(f"{path} cannot be used as a file of notes: {error}") from error
        return Notes(path, connection)

    def close(self) -> None:
        """Close the file."""
        with self.lock:
            self.connection.close()

    def labels(self, dictionary: str) -> dict[int, str]:
        """The label of every feature that has one: its newest explanation by a person, else its newest."""
        rows = self._rows("select feature, text from explanations where dictionary = ? order by (method = ?), id", dictionary, HUMAN)
        return dict(rows)

    def label(self, dictionary: str, feature: int) -> str | None:
        """The label of one feature."""
        rows = self._rows(
            "select text from explanations where dictionary = ? and feature = ? order by (method = ?) desc, id desc limit 1",
            dictionary,
            feature,
            HUMAN,
        )
        return rows[0][0] if rows else None

    def explanations(self, dictionary: str, feature: int) -> tuple[Explanation, ...]:
        """What is said about a feature, newest first."""
        columns = "id, feature, text, method, author, created"
        rows = self._rows(f"select {columns} from explanations where dictionary = ? and feature = ? order by id desc", dictionary, feature)
        return tuple(Explanation(*row, scores=self._scores(row[0])) for row in rows)

    def explanation(self, number: int) -> tuple[str, Explanation] | None:
        """(digest of the dictionary, explanation) of this number, or None."""
        columns = "dictionary, id, feature, text, method, author, created"
        rows = self._rows(f"select {columns} from explanations where id = ?", number)
        return (rows[0][0], Explanation(*rows[0][1:], scores=self._scores(number))) if rows else None

    def search(self, dictionary: str, text: str, *, limit: int) -> list[tuple[int, str, str]]:
        """(latent id, "label" or "note", text) of explanations and notes that hold `text`, whatever its case, by latent id."""
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        return self._rows(
            "select feature, 'label', text from explanations where dictionary = ?1 and text like ?2 escape '\\' "
            "union select feature, 'note', text from notes where dictionary = ?1 and text like ?2 escape '\\' order by 1, 2, 3 limit ?3",
            dictionary,
            pattern,
            limit,
        )

    def add_explanation(self, dictionary: str, feature: int, text: str, *, method: str = HUMAN, author: str = "") -> Explanation:
        """Add an explanation and return it."""
        created = _now()
        cursor = self._write(
            "insert into explanations (dictionary, feature, text, method, author, created) values (?, ?, ?, ?, ?, ?)",
            (dictionary, feature, text, method, author, created),
        )
        return Explanation(int(cursor.lastrowid or 0), feature, text, method, author, created)

    def remove_explanation(self, number: int) -> bool:
        """Remove an explanation with its scores; whether it was there."""
        return self._write("delete from explanations where id = ?", (number,)).rowcount > 0

    def add_score(self, explanation: int, method: str, value: float, details: Mapping[str, Any] | None = None) -> Score:
        """Add a score to an explanation and return it."""
        if not math.isfinite(value):
            raise FormatError(f"value must be finite, got {value!r} (Notes.add_score)")
        score = Score(method, value, dict(details or {}), _now())
        self._write(
            "insert into scores (explanation, method, value, details, created) values (?, ?, ?, ?, ?)",
            (explanation, method, value, json.dumps(score.details, allow_nan=False), score.created),
        )
        return score

    def note(self, dictionary: str, feature: int) -> tuple[str, str] | None:
        """(text, when it was written) of the note on a feature, or None."""
        rows = self._rows("select text, changed from notes where dictionary = ? and feature = ?", dictionary, feature)
        return rows[0] if rows else None

    def set_note(self, dictionary: str, feature: int, text: str) -> None:
        """Write the note on a feature over an earlier one."""
        self._write("insert or replace into notes values (?, ?, ?, ?)", (dictionary, feature, text, _now()))

    def remove_note(self, dictionary: str, feature: int) -> bool:
        """Remove the note on a feature; whether there was one."""
        return self._write("delete from notes where dictionary = ? and feature = ?", (dictionary, feature)).rowcount > 0

    def lists(self) -> tuple[Collection, ...]:
        """Every list, by name."""
        return tuple(self._collection(*row) for row in self._rows("select name, title, description, changed from lists order by name"))

    def collection(self, name: str) -> Collection | None:
        """The list of this name, or None."""
        rows = self._rows("select name, title, description, changed from lists where name = ?", name)
        return self._collection(*rows[0]) if rows else None

    def set_list(self, name: str, *, title: str, description: str = "", items: Sequence[ListItem] = ()) -> None:
        """Write a list over an earlier one of the same name."""
        rows = [(name, place, item.dictionary, item.index, item.comment) for place, item in enumerate(items)]
        with self.lock, self.connection:
            self.connection.execute("delete from lists where name = ?", (name,))
            self.connection.execute("insert into lists values (?, ?, ?, ?)", (name, title, description, _now()))
            self.connection.executemany("insert into items values (?, ?, ?, ?, ?)", rows)
            self.version += 1

    def remove_list(self, name: str) -> bool:
        """Remove a list; whether it was there."""
        return self._write("delete from lists where name = ?", (name,)).rowcount > 0

    def stamp(self) -> str:
        """Changes whenever anything is written, here or by another process: part of the ETag of what shows labels."""
        with self.lock:
            return f"{self.version}.{self.connection.execute('pragma data_version').fetchone()[0]}"

    def _scores(self, explanation: int) -> tuple[Score, ...]:
        rows = self._rows("select method, value, details, created from scores where explanation = ? order by id", explanation)
        return tuple(Score(method, value, json.loads(details), created) for method, value, details, created in rows)

    def _collection(self, name: str, title: str, description: str, changed: str) -> Collection:
        items = self._rows("select dictionary, feature, comment from items where list = ? order by place", name)
        return Collection(name, title, description, changed, tuple(ListItem(*item) for item in items))

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with self.lock:
            return self.connection.execute(query, values).fetchall()

    def _write(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        with self.lock, self.connection:
            self.version += 1
            return self.connection.execute(statement, values)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
