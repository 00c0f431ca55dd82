"""The same questions to the Parquet export of an index, answered by DuckDB: on a disk, or behind an address without fetching the files.

index = DuckDBIndex("export")                       # or "s3://bucket/export", "https://..."
index.top(by="density")  index.record(123)  index.entries(123)  index.coactive(123, n=10)  index.on_document(7)

Answers equal those of `sae.inspection.index.FeatureIndex`. Everything that a caller gives goes to DuckDB as a parameter of a prepared
statement, addresses included. DuckDB comes with `pip install sae-workbench[sql]`. Behind an address it needs its extension `httpfs`, which is
not fetched without being asked; give a `connection` of your own for credentials or another file system.
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.inspection.contexts import TokenTable, top_contexts, window_values
from sae.inspection.entries import Entries
from sae.inspection.exports.folder import MANIFEST, ExportManifest, parse_manifest, read_export
from sae.inspection.exports.parquet import FORMAT
from sae.inspection.manifest import IndexManifest
from sae.inspection.query import Coactive
from sae.inspection.reader import DocumentView, FeatureStatistics
from sae.inspection.records import Example, FeatureRecord
from sae.inspection.tables import TELLING, FeatureTable, top

INSTALL = "pip install 'sae-workbench[sql]'"
"""Brings DuckDB."""


class DuckDBIndex:
    """An index in its Parquet export. Questions are SQL; only what they ask for is read."""

    def __init__(self, source: str | Path, *, connection: Any = None) -> None:
        """`source` is a folder, or the address of one. Raises ConfigError without DuckDB, FormatError when no complete export is there."""
        self.source = str(source).rstrip("/")
        self.remote = "://" in self.source
        self.connection = _connect(self.remote) if connection is None else connection
        self.export = self._manifest()

    def _manifest(self) -> ExportManifest:
        if not self.remote:
            return read_export(self.source, FORMAT)
        import duckdb

        where = f"{self.source}/{MANIFEST}"
        try:
            rows = self.connection.cursor().execute("SELECT content FROM read_text($file)", {"file": where}).fetchall()
            data = json.loads(rows[0][0]) if rows else None
        except (duckdb.Error, OSError, json.JSONDecodeError) as error:
            raise FormatError(f"{where} cannot be read: {error}") from error
        if data is None:
            raise FormatError(f"{self.source} holds no complete export ({MANIFEST} is missing)")
        return parse_manifest(data, FORMAT, where)

    @cached_property
    def manifest(self) -> IndexManifest:
        """The manifest of the index that was exported."""
        return from_json(IndexManifest, self.export.facts["index_manifest"])

    @property
    def digest(self) -> str:
        """SHA-256 that names the index."""
        return self.export.index

    @property
    def d_sae(self) -> int:
        """Latents of the dictionary."""
        return self.export.source.d_sae

    @property
    def n_tokens(self) -> int:
        """Tokens looked at."""
        return self.export.source.n_tokens

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token id."""
        return self._columns("SELECT text FROM read_parquet($file) ORDER BY token_id", "vocabulary")["text"].tolist()

    @cached_property
    def table(self) -> TokenTable:
        """Token ids and documents of the corpus."""
        found = self._columns("SELECT token_id, document FROM read_parquet($file) ORDER BY token", "tokens")
        shape = (-1, int(self.export.facts["context"]))
        return TokenTable(found["token_id"].reshape(shape), found["document"].reshape(shape))

    @cached_property
    def document_ids(self) -> Integer[np.ndarray, "n"]:
        """Ids of the documents, ascending."""
        return self._columns("SELECT document FROM read_parquet($file) ORDER BY document", "documents")["document"]

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """One number per latent. Raises FormatError where only some latents were exported."""
        self._whole("statistics")
        found = self._columns("SELECT * FROM read_parquet($file) ORDER BY latent", "summary")
        return FeatureStatistics(**{field.name: found[field.name] for field in fields(FeatureStatistics)})

    @cached_property
    def reader(self) -> "Passages":
        """Makes passages from the corpus."""
        found = self._columns("SELECT document, labels FROM read_parquet($file)", "documents")
        labels = {int(document): json.loads(text) for document, text in zip(found["document"], found["labels"], strict=True)}
        return Passages(self.table, self.texts, labels)

    def record(self, latent: Any) -> FeatureRecord:
        """All that is shown about a latent."""
        number = self._checked(latent)
        found = self._columns("SELECT record FROM read_parquet($file) WHERE latent = $latent", "cards", latent=number)["record"]
        return from_json(FeatureRecord, json.loads(found[0]))

    def entries(self, latent: Any) -> Entries:
        """Every non-zero value of a latent, by token."""
        statement = "SELECT token, value, step FROM read_parquet($file) WHERE latent = $latent ORDER BY token"
        found = self._columns(statement, "entries", latent=self._checked(latent))
        return Entries(found["token"], found["value"], self._steps(found["step"]))

    def top_examples(
        self, latent: Any, n: int, *, per_document: int = 1, largest: bool = True, before: int = 32, after: int = 16
    ) -> list[Example]:
        """The strongest passages of a latent; see `sae.inspection.query.top_examples`."""
        entries, found = self.entries(latent), []
        tokens = top_contexts(entries.ids, entries.values, self.table, n=n, per_document=per_document, largest=largest)
        for token in tokens.tolist():
            offsets, values = window_values(entries.ids, entries.values, *self.table.window(token, before, after))
            found.append(self.reader.example(token, offsets, values, before, after))
        return found

    def top(
        self,
        *,
        by: str = TELLING,
        n: int = 20,
        ascending: bool = False,
        alive: bool = True,
        min_density: float = 0.0,
        max_density: float = 1.0,
    ) -> FeatureTable:
        """The first features in an order; see `sae.inspection.tables.top`."""
        self._whole("top")
        return top(self, by=by, n=n, ascending=ascending, alive=alive, min_density=min_density, max_density=max_density)

    def coactive(self, latent: Any, n: int) -> Coactive:
        """The `n` latents that fire most often together with `latent`, exact counts, ties by id; counted by DuckDB."""
        self._whole("coactive")
        if isinstance(n, bool) or n < 1:
            raise ConfigError(f"n must be at least 1, got {n!r} (DuckDBIndex.coactive)")
        statement = (
            "SELECT p.latent AS latent, count(*) AS n FROM read_parquet($positions) p "
            "JOIN (SELECT token FROM read_parquet($file) WHERE latent = $latent) e USING (token) "
            "WHERE p.latent <> $latent GROUP BY p.latent ORDER BY n DESC, latent LIMIT $limit"
        )
        number = self._checked(latent)
        found = self._columns(statement, "entries", positions=self._file("positions"), latent=number, limit=int(n))
        return Coactive(found["latent"].astype(np.int64), found["n"].astype(np.int64))

    def at_token(self, token: Any) -> Entries:
        """What fires at a token, in the order of encoding."""
        self._whole("at_token")
        number = self._token(token)
        found = self._columns("SELECT document FROM read_parquet($file) WHERE token = $token", "tokens", token=number)
        statement = "SELECT latent, value, step FROM read_parquet($file) WHERE document = $document AND token = $token ORDER BY place"
        rows = self._columns(statement, "positions", document=int(found["document"][0]), token=number)
        return Entries(rows["latent"].astype(np.int64), rows["value"], self._steps(rows["step"]))

    def at_tokens(self, tokens: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "nnz"]:
        """The latents of all entries at these tokens, one token after the other."""
        self._whole("at_tokens")
        statement = (
            "SELECT p.latent AS latent FROM read_parquet($file) p "
            "JOIN (SELECT unnest($tokens) AS token, generate_subscripts($tokens, 1) AS at) t USING (token) ORDER BY t.at, p.place"
        )
        return self._columns(statement, "positions", tokens=np.asarray(tokens).tolist())["latent"].astype(np.int64)

    def on_document(self, document: Any) -> DocumentView:
        """A document with what fires on each of its tokens; as `FeatureIndex.document`. Raises ConfigError for an unknown document."""
        self._whole("on_document")
        number = operator.index(document)
        labels = self._columns("SELECT labels FROM read_parquet($file) WHERE document = $document", "documents", document=number)["labels"]
        if not len(labels):
            raise ConfigError(f"document must be one of the {len(self.document_ids)} ids of the corpus, got {document!r} (DuckDBIndex)")
        statement = "SELECT token, token_id FROM read_parquet($file) WHERE document = $document ORDER BY token"
        tokens = self._columns(statement, "tokens", document=number)
        statement = "SELECT token, latent, value, step FROM read_parquet($file) WHERE document = $document ORDER BY token, place"
        rows = self._columns(statement, "positions", document=number)
        return DocumentView(
            document=number,
            labels=json.loads(labels[0]),
            token_index=tokens["token"],
            texts=tuple(self.texts[i] for i in tokens["token_id"].tolist()),
            start=np.searchsorted(rows["token"], np.r_[tokens["token"], np.iinfo(np.int64).max]),
            latents=rows["latent"].astype(np.int64),
            values=rows["value"],
            steps=self._steps(rows["step"]),
        )

    document = on_document

    def _columns(self, statement: str, name: str, **values: Any) -> Mapping[str, np.ndarray]:
        """The columns of an answer; `statement` is one of this file, `values` and the address of the table are its parameters."""
        import duckdb

        try:
            found = self.connection.cursor().execute(statement, {"file": self._file(name), **values}).fetchnumpy()
        except duckdb.Error as error:
            raise FormatError(f"{self._file(name)} cannot be read: {error}") from error
        return {column: np.asarray(array) if not np.ma.isMaskedArray(array) else array for column, array in found.items()}

    def _file(self, name: str) -> str:
        return f"{self.source}/{name}.parquet"

    def _steps(self, steps: np.ndarray) -> np.ndarray | None:
        return np.ma.getdata(steps).astype(np.int64) if self.manifest.n_steps else None

    def _token(self, token: Any) -> int:
        n = self.table.n_tokens
        if isinstance(token, bool) or not hasattr(token, "__index__") or not 0 <= operator.index(token) < n:
            raise ConfigError(f"token must be in 0..{n - 1}, got {token!r} (DuckDBIndex {self.source})")
        return operator.index(token)

    def _checked(self, latent: Any) -> int:
        allowed = f"0..d_sae-1={self.d_sae - 1}"
        if isinstance(latent, (bool, np.bool_)) or not hasattr(latent, "__index__") or not 0 <= operator.index(latent) < self.d_sae:
            raise ConfigError(f"latent must be an integer in {allowed}, got {latent!r} (DuckDBIndex {self.source})")
        number = operator.index(latent)
        if self.export.latents is not None and number not in self.export.latents:
            raise ConfigError(f"latent must be one of the {self.export.n_features} that were exported, got {number} ({self.source})")
        return number

    def _whole(self, question: str) -> None:
        if self.export.latents is not None:
            had = f"{self.export.n_features} of {self.d_sae} latents"
            raise FormatError(f"{self.source} holds {had}; {question} asks about all of them: export the whole index")


@dataclass(frozen=True)
class Passages:
    """Makes passages, as `sae.inspection.reader.RecordReader` does."""

    table: TokenTable
    """The corpus."""
    texts: list[str]
    """The text of each token id."""
    labels: Mapping[int, Mapping[str, str | int]]
    """Labels of each document."""

    def example(self, token: int, offsets: Integer[np.ndarray, "m"], values: Float[np.ndarray, "m"], before: int, after: int) -> Example:
        """The passage around a token; `offsets` (from the start of the window) and `values` are the latent's entries in it."""
        start, stop = self.table.window(token, before, after)
        row, position = divmod(token, self.table.context)
        inside = np.zeros(stop - start, np.float32)
        inside[offsets] = values
        document = int(self.table.documents[row, position])
        words = self.table.ids.reshape(-1)[start:stop].tolist()
        return Example(
            document=document,
            row=row,
            position=position,
            tokens=tuple(self.texts[i] for i in words),
            values=tuple(inside.tolist()),
            peak=token - start,
            labels=self.labels.get(document, {}),
        )


def _connect(remote: bool) -> Any:
    """A connection of its own. Raises ConfigError saying how to get DuckDB, or its extension for addresses."""
    try:
        import duckdb
    except ImportError as error:
        raise ConfigError(f"DuckDBIndex needs DuckDB, which is not installed: {INSTALL}") from error
    connection = duckdb.connect(":memory:")
    if remote:
        try:
            connection.load_extension("httpfs")
        except duckdb.Error as error:
            how = "python -c \"import duckdb; duckdb.connect().install_extension('httpfs')\""
            raise ConfigError(f"an address needs DuckDB's extension httpfs, which cannot be loaded; to install it: {how}") from error
    return connection
