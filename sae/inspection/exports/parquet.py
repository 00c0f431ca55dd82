"""A whole index as Parquet tables, for DuckDB, Spark or Trino, on a disk or behind an address.

    summary.parquet      a row for each latent, by `latent`: every statistic, histogram, steps, driving tokens, logit effects, related
    cards.parquet        latent, record: all that a card shows, as JSON (`sae.inspection.records.FeatureRecord`)
    entries.parquet      latent, token, value, step: every non-zero value, by (latent, token)
    positions.parquet    document, token, place, latent, value, step: the same by (document, token, place), for what fires on a text
    tokens.parquet       token, row, position, token_id, document: the corpus, by `token`
    documents.parquet    document, n_tokens, first_token, labels (JSON)
    vocabulary.parquet   token_id, text
    manifest.json        written last: provenance, size and SHA-256 of each file

`token` is the flat index row * context + position; `place` is the place of the latent within the token's codes, which for a matching
pursuit is the order of selection; `step` is the step of its first selection from 0, and null for an autoencoder. Values are the float32 of
the index with their signs: nothing is lost. Rows are sorted and in groups (4,096 for a row a latent, 131,072 for entries), with page index
and declared order, so a reader fetches what it asks for and not the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from sae.fingerprint import to_json
from sae.inspection.exports.folder import Export, chosen, clean, export_folder, json_line
from sae.inspection.exports.provenance import Provenance, provenance_of
from sae.inspection.exports.tables import TableWriter
from sae.inspection.index import FeatureIndex
from sae.inspection.records import FeatureRecord

FORMAT = "parquet"
SUMMARY_ROWS, CARD_ROWS, ENTRY_ROWS = 4096, 64, 131_072
"""Rows of a group: of a row a latent, of cards (tens of kilobytes each), of entries."""
TOKENS_AT_ONCE = 1 << 20


def write_parquet(
    index: FeatureIndex, folder: str | Path, *, latents: Iterable[int] | None = None, provenance: Provenance | None = None
) -> Path:
    """Write the chosen latents (None: all) as Parquet tables, and the whole corpus; returns the folder.

    `sae.inspection.duckdb_index.DuckDBIndex` reads it. Rows are sorted by latent whatever the order asked for. Raises ConfigError for a
    bad latent, FormatError when the folder holds something else.
    """
    selected, texts = chosen(index, latents), provenance or provenance_of(index)
    rows = sorted(selected)
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=texts) as export:
        facts = {"index": index.digest, "dictionary": index.manifest.source.dictionary_digest, **_words(texts)}
        _write_latents(index, export, rows, facts)
        _write_entries(index, export, rows, facts)
        _write_positions(index, export, None if isinstance(selected, range) else rows, facts)
        _write_corpus(index, export, facts)
        if not isinstance(selected, range):
            export.notes.append("Only the chosen latents are in the tables: what fires beside them is not to be seen.")
        export.facts |= {"context": index.table.context, "index_manifest": to_json(index.manifest)}
    return Path(folder)


def _words(texts: Provenance) -> dict[str, str]:
    return {field.name: clean(getattr(texts, field.name)) for field in fields(texts)}


def _write_latents(index: FeatureIndex, export: Export, rows: Sequence[int], facts: Mapping[str, str]) -> None:
    """`summary.parquet` and `cards.parquet`."""
    import pyarrow as pa

    statistics = {f.name: np.asarray(getattr(index.statistics, f.name)) for f in fields(index.statistics)}
    statistics = {name: array for name, array in statistics.items() if array.ndim == 1 and len(array) == index.d_sae}
    own = [pa.field(name, pa.from_numpy_dtype(array.dtype)) for name, array in statistics.items()]
    summary = pa.schema([pa.field("latent", pa.int32()), pa.field("alive", pa.bool_()), *own, *_nested()])
    cards = pa.schema([("latent", pa.int32()), ("record", pa.string())])
    order = {"sorted_by": ["latent"], "facts": facts}
    with (
        TableWriter(export.file("summary.parquet"), summary, group_rows=SUMMARY_ROWS, **order) as writer,
        TableWriter(export.file("cards.parquet"), cards, group_rows=CARD_ROWS, **order) as card_writer,
    ):
        for begin in range(0, len(rows), CARD_ROWS):
            part = rows[begin : begin + CARD_ROWS]
            records = [index.record(latent) for latent in part]
            card_writer.append({"latent": part, "record": [json_line(record) for record in records]})
            numbers = {name: array[part] for name, array in statistics.items()}
            lists = [_nested_row(record) for record in records]
            nested = {name: [row[name] for row in lists] for name in lists[0]}
            writer.append({"latent": part, "alive": [record.alive for record in records], **numbers, **nested})


def _nested() -> list[Any]:
    """The columns of `summary.parquet` that hold lists."""
    import pyarrow as pa

    numbers, near = pa.list_(pa.float64()), [("relation", pa.string()), ("latent", pa.int32())]
    near = pa.struct([*near, ("value", pa.float64()), ("n_together", pa.int64())])
    word = [("token_id", pa.int32()), ("token", pa.string())]
    driving = pa.struct([*word, ("n_active", pa.int64()), ("n_occurrences", pa.int64()), ("mass", pa.float64()), ("share", pa.float64())])
    effect = pa.struct([*word, ("effect", pa.float32())])
    columns = {
        "density_low": pa.float64(),
        "density_high": pa.float64(),
        "histogram_edges": numbers,
        "histogram_counts": pa.list_(pa.int64()),
    }
    columns |= {"quantile_levels": numbers, "quantile_values": numbers, "steps": pa.list_(pa.int64()), "driving_tokens": pa.list_(driving)}
    columns |= {"promoted": pa.list_(effect), "suppressed": pa.list_(effect), "related": pa.list_(near)}
    return [pa.field(name, kind) for name, kind in columns.items()]


def _nested_row(record: FeatureRecord) -> dict[str, Any]:
    def words(items: tuple[Any, ...], names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"token": clean(item.token), **{name: getattr(item, name) for name in names}} for item in items]

    return {
        "density_low": record.density_low,
        "density_high": record.density_high,
        "histogram_edges": record.histogram.edges,
        "histogram_counts": record.histogram.counts,
        "quantile_levels": [float(level) for level in record.quantiles],
        "quantile_values": list(record.quantiles.values()),
        "steps": record.steps,
        "driving_tokens": words(record.driving_tokens, ("token_id", "n_active", "n_occurrences", "mass", "share")),
        "promoted": words(record.promoted, ("token_id", "effect")),
        "suppressed": words(record.suppressed, ("token_id", "effect")),
        "related": [
            {"relation": relation, "latent": near.index, "value": near.value, "n_together": near.n_together}
            for relation, latents in record.related.items()
            for near in latents
        ],
    }


def _write_entries(index: FeatureIndex, export: Export, rows: Sequence[int], facts: Mapping[str, str]) -> None:
    """`entries.parquet`, latent by latent."""
    import pyarrow as pa

    schema = pa.schema([("latent", pa.int32()), ("token", pa.int64()), ("value", pa.float32()), ("step", pa.uint16())])
    order = {"sorted_by": ["latent", "token"], "group_rows": ENTRY_ROWS, "facts": facts}
    with TableWriter(export.file("entries.parquet"), schema, **order) as writer:
        for latent in rows:
            found = index.entries(latent)
            if len(found.ids):
                columns = {"latent": np.full(len(found.ids), latent, np.int32), "token": found.ids, "value": found.values}
                writer.append(columns | {"step": _steps(found.steps, len(found.ids))})


def _steps(steps: np.ndarray | None, n: int) -> Any:
    return [None] * n if steps is None else np.asarray(steps).astype(np.uint16)


def _write_positions(index: FeatureIndex, export: Export, rows: Sequence[int] | None, facts: Mapping[str, str]) -> None:
    """`positions.parquet` and `documents.parquet`, document by document."""
    import pyarrow as pa

    wanted = None if rows is None else np.isin(np.arange(index.d_sae), rows)
    entry = [("latent", pa.int32()), ("value", pa.float32()), ("step", pa.uint16())]
    positions = pa.schema([("document", pa.int64()), ("token", pa.int64()), ("place", pa.int32()), *entry])
    documents = pa.schema([("document", pa.int64()), ("n_tokens", pa.int64()), ("first_token", pa.int64()), ("labels", pa.string())])
    order = {"sorted_by": ["document", "token", "place"], "group_rows": ENTRY_ROWS, "facts": facts}
    own = {"sorted_by": ["document"], "group_rows": SUMMARY_ROWS, "facts": facts}
    with (
        TableWriter(export.file("positions.parquet"), positions, **order) as writer,
        TableWriter(export.file("documents.parquet"), documents, **own) as document_writer,
    ):
        for document in index.document_ids.tolist():
            view = index.document(document)
            n_active = np.diff(view.start)
            place = np.arange(len(view.latents)) - np.repeat(view.start[:-1], n_active)
            columns = {
                "document": np.full(len(view.latents), document, np.int64),
                "token": np.repeat(view.token_index, n_active),
                "place": place,
                "latent": view.latents,
                "value": view.values,
            }
            kept = slice(None) if wanted is None else wanted[view.latents]
            columns = {name: np.asarray(column)[kept] for name, column in columns.items()}
            n = len(columns["latent"])
            if n:
                writer.append(columns | {"step": _steps(None if view.steps is None else np.asarray(view.steps)[kept], n)})
            labels = json_line({str(name): value for name, value in view.labels.items()})
            first = {"n_tokens": [len(view.token_index)], "first_token": [int(view.token_index[0])]}
            document_writer.append({"document": [document], **first, "labels": [labels]})


def _write_corpus(index: FeatureIndex, export: Export, facts: Mapping[str, str]) -> None:
    """`tokens.parquet` and `vocabulary.parquet`."""
    import pyarrow as pa

    table, context = index.table, index.table.context
    place = [("token", pa.int64()), ("row", pa.int32()), ("position", pa.int32())]
    schema = pa.schema([*place, ("token_id", pa.int32()), ("document", pa.int64())])
    ids, documents = table.ids.reshape(-1), table.documents.reshape(-1)
    with TableWriter(export.file("tokens.parquet"), schema, sorted_by=["token"], group_rows=ENTRY_ROWS, facts=facts) as writer:
        for begin in range(0, table.n_tokens, TOKENS_AT_ONCE):
            token = np.arange(begin, min(begin + TOKENS_AT_ONCE, table.n_tokens))
            columns = {"token": token, "row": token // context, "position": token % context}
            writer.append(columns | {"token_id": ids[token], "document": documents[token]})
    words = pa.schema([("token_id", pa.int32()), ("text", pa.string())])
    with TableWriter(export.file("vocabulary.parquet"), words, sorted_by=["token_id"], group_rows=SUMMARY_ROWS, facts=facts) as writer:
        texts = [clean(text) for text in index.texts]
        writer.append({"token_id": np.arange(len(texts)), "text": texts})
