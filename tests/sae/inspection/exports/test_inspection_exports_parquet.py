"""The Parquet tables, and DuckDB's answers from them beside the index's own."""

import json
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.inspection.exports import parquet
from sae.inspection.exports.parquet import write_parquet
from sae.inspection.query import coactive, top_examples
from sae.inspection.records import FeatureRecord
from tests.sae.inspection.exports.exported import EVIL, KINDS, TEXTS, hostile_index, make_index, small_index

pq = pytest.importorskip("pyarrow.parquet")

TABLES = ("cards", "documents", "entries", "positions", "summary", "tokens", "vocabulary")


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    index = small_index(request.param)
    return index, write_parquet(index, tmp_path_factory.mktemp("parquet") / "out", provenance=TEXTS)


def columns(folder, name):
    table = pq.read_table(folder / f"{name}.parquet")
    flat = [field.name for field in table.schema if not str(field.type).startswith("list")]
    return {key: np.array(value) for key, value in table.select(flat).to_pydict().items()}


def test_entries_are_those_of_the_index_by_latent_and_token_with_sign_and_step(case):
    index, folder = case
    found, place = columns(folder, "entries"), 0
    for latent in range(index.d_sae):
        entries = index.entries(latent)
        part = slice(place, place := place + len(entries.ids))
        assert set(found["latent"][part].tolist()) <= {latent}
        assert found["token"][part].tolist() == entries.ids.tolist()
        assert np.array_equal(found["value"][part].astype(np.float32), entries.values)
        assert found["step"][part].tolist() == ([None] * len(entries.ids) if entries.steps is None else entries.steps.tolist())
    assert place == len(found["token"])


def test_positions_are_the_codes_of_every_token_in_their_order(case):
    index, folder = case
    found = columns(folder, "positions")
    keys = list(zip(found["document"].tolist(), found["token"].tolist(), found["place"].tolist(), strict=True))
    assert keys == sorted(keys)
    assert found["document"].tolist() == index.table.documents.reshape(-1)[found["token"]].tolist()
    for token in range(index.table.n_tokens):
        entries, rows = index.at_token(token), found["token"] == token
        assert found["latent"][rows].tolist() == entries.ids.tolist()
        assert found["place"][rows].tolist() == list(range(len(entries.ids)))
        assert np.array_equal(found["value"][rows].astype(np.float32), entries.values)


def test_the_summary_has_every_statistic_and_the_cards_every_record(case):
    index, folder = case
    found = columns(folder, "summary")
    assert found["latent"].tolist() == list(range(index.d_sae))
    for field in fields(index.statistics):
        expected = np.asarray(getattr(index.statistics, field.name))
        if expected.ndim == 1 and len(expected) == index.d_sae:
            assert np.array_equal(found[field.name].astype(expected.dtype), expected, equal_nan=expected.dtype.kind == "f")
    cards = pq.read_table(folder / "cards.parquet").to_pydict()["record"]
    rows = pq.read_table(folder / "summary.parquet").to_pylist()
    for latent, row in enumerate(rows):
        record = index.record(latent)
        assert from_json(FeatureRecord, json.loads(cards[latent])) == record
        assert row["histogram_counts"] == list(record.histogram.counts)
        assert row["steps"] == list(record.steps)
        assert dict(zip(map(str, row["quantile_levels"]), row["quantile_values"], strict=True)) == record.quantiles
        assert [word["token"] for word in row["driving_tokens"]] == [d.token for d in record.driving_tokens]
        found_near = [(near["relation"], near["latent"], near["value"], near["n_together"]) for near in row["related"]]
        assert found_near == [
            (name, near.index, near.value, near.n_together) for name, all_near in record.related.items() for near in all_near
        ]


def test_the_corpus_its_labels_and_the_vocabulary_are_there(case):
    index, folder = case
    tokens, documents = columns(folder, "tokens"), pq.read_table(folder / "documents.parquet").to_pylist()
    assert tokens["token"].tolist() == list(range(index.table.n_tokens))
    assert (tokens["row"] * index.table.context + tokens["position"]).tolist() == tokens["token"].tolist()
    assert tokens["token_id"].tolist() == index.table.ids.reshape(-1).tolist()
    assert columns(folder, "vocabulary")["text"].tolist() == list(index.texts)
    flat = index.table.documents.reshape(-1)
    for row in documents:
        assert json.loads(row["labels"]) == {"year": 1900 + row["document"], "title": "<b>"}
        assert (row["n_tokens"], row["first_token"]) == ((flat == row["document"]).sum(), np.flatnonzero(flat == row["document"])[0])
    assert [row["document"] for row in documents] == sorted(set(flat.tolist()))


def test_tables_are_sorted_in_exact_groups_with_page_index_and_provenance(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ENTRY_ROWS", 50)
    monkeypatch.setattr(parquet, "SUMMARY_ROWS", 8)
    monkeypatch.setattr(parquet, "CARD_ROWS", 3)
    index = small_index("pursuit")
    folder = write_parquet(index, tmp_path / "out", provenance=TEXTS)
    sizes = {"entries": 50, "positions": 50, "tokens": 50, "summary": 8, "documents": 8, "vocabulary": 8, "cards": 3}
    for name in TABLES:
        file = pq.ParquetFile(folder / f"{name}.parquet")
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert rows[:-1] == [sizes[name]] * (len(rows) - 1)
        assert 0 < rows[-1] <= sizes[name]
        group = file.metadata.row_group(0)
        assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
        assert group.column(0).has_offset_index
        assert group.column(0).has_column_index
        assert group.sorting_columns[0].column_index == 0
        words = {key.decode(): value.decode() for key, value in file.schema_arrow.metadata.items()}
        assert (words["licence"], words["revision"], words["index"]) == ("public domain", "abc123", index.digest)
    assert pq.ParquetFile(folder / "entries.parquet").num_row_groups > 5
    latents = columns(folder, "entries")["latent"]
    assert (np.diff(latents) >= 0).all()


def test_chosen_latents_are_alone_in_the_tables(tmp_path):
    index = small_index("pursuit")
    folder = write_parquet(index, tmp_path / "out", latents=[9, 4])
    assert columns(folder, "summary")["latent"].tolist() == [4, 9]
    for name in ("entries", "positions"):
        found = columns(folder, name)
        assert set(found["latent"].tolist()) == {4, 9}
        assert len(found["latent"]) == index.statistics.n_active[[4, 9]].sum()


def test_hostile_texts_come_back_as_they_were_but_for_half_surrogates(tmp_path):
    folder = write_parquet(hostile_index("autoencoder"), tmp_path / "out", latents=[4])
    expected = [EVIL[i % len(EVIL)].replace("\ud800", "\\ud800") for i in range(12)]
    assert pq.read_table(folder / "vocabulary.parquet")["text"].to_pylist() == expected
    assert list(duckdb_index(folder).texts) == expected


# --- DuckDB ------------------------------------------------------------------------------------------------------------------------------


def duckdb_index(folder, **options):
    pytest.importorskip("duckdb")
    from sae.inspection.duckdb_index import DuckDBIndex

    return DuckDBIndex(folder, **options)


def same_entries(found, expected):
    assert found.ids.tolist() == expected.ids.tolist()
    assert np.array_equal(found.values, expected.values)
    assert (found.steps is None) == (expected.steps is None)
    assert found.steps is None or found.steps.tolist() == expected.steps.tolist()


def check_parity(index, other):
    """Every question to both."""
    assert (other.digest, other.d_sae, other.n_tokens, other.manifest) == (index.digest, index.d_sae, index.n_tokens, index.manifest)
    assert list(other.texts) == list(index.texts)
    assert np.array_equal(other.table.ids, index.table.ids)
    assert np.array_equal(other.table.documents, index.table.documents)
    for field in fields(index.statistics):
        mine, its = np.asarray(getattr(index.statistics, field.name)), getattr(other.statistics, field.name)
        assert np.array_equal(its, mine, equal_nan=mine.dtype.kind == "f"), field.name
    for latent in range(index.d_sae):
        assert other.record(latent) == index.record(latent)
        same_entries(other.entries(latent), index.entries(latent))
        mine, its = coactive(index, latent, 5), other.coactive(latent, 5)
        assert (its.ids.tolist(), its.n_together.tolist()) == (mine.ids.tolist(), mine.n_together.tolist())
    for latent in range(0, index.d_sae, 3):
        for largest in (True, False):
            options = {"per_document": 2, "before": 3, "after": 2, "largest": largest}
            assert other.top_examples(latent, 6, **options) == top_examples(index, latent, 6, **options)
    for token in range(0, index.table.n_tokens, 7):
        same_entries(other.at_token(token), index.at_token(token))
    tokens = np.array([30, 5, 5, 200, 0])
    assert other.at_tokens(tokens).tolist() == index.at_tokens(tokens).tolist()
    assert other.document_ids.tolist() == index.document_ids.tolist()
    for document in index.document_ids.tolist():
        mine, its = index.document(document), other.on_document(document)
        assert (its.document, dict(its.labels), tuple(its.texts)) == (mine.document, dict(mine.labels), tuple(mine.texts))
        for name in ("token_index", "start", "latents", "values", "steps"):
            a, b = getattr(its, name), getattr(mine, name)
            assert (a is None) == (b is None)
            assert a is None or np.array_equal(a, b), name
    for options in ({}, {"by": "density", "n": 4}, {"by": "min", "ascending": True}, {"by": "max", "alive": False, "max_density": 0.2}):
        mine, its = index.top(**options), other.top(**options)
        assert (its.ids.tolist(), its.values.tolist(), its.definition) == (mine.ids.tolist(), mine.values.tolist(), mine.definition)


def test_duckdb_gives_the_answers_of_the_index(case):
    index, folder = case
    check_parity(index, duckdb_index(folder))


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**20), st.booleans(), st.integers(3, 30))
def test_duckdb_gives_the_answers_of_any_small_index(kind, seed, uneven, d_sae):
    uneven = uneven and kind == "pursuit"
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder) / "index", kind, seed=seed, uneven=uneven, d_sae=max(d_sae, 5))
        check_parity(index, duckdb_index(write_parquet(index, Path(folder) / "out")))


def test_a_table_of_duckdb_shows_itself_like_that_of_the_index(case):
    index, folder = case
    other = duckdb_index(folder)
    assert repr(other.top(by="density", n=3)) == repr(index.top(by="density", n=3))
    assert other.top(by="density", n=3)._repr_html_() == index.top(by="density", n=3)._repr_html_()


def test_an_address_is_read_through_the_connection_that_is_given(case):
    index, folder = case
    duckdb, fsspec = pytest.importorskip("duckdb"), pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe(f"/bucket/x/{file.name}", file.read_bytes())
    connection = duckdb.connect()
    connection.register_filesystem(memory)
    other = duckdb_index("memory://bucket/x/", connection=connection)
    same_entries(other.entries(4), index.entries(4))
    assert other.record(4) == index.record(4)
    with pytest.raises(FormatError, match=r"memory://bucket/none holds no complete export"):
        duckdb_index("memory://bucket/none", connection=connection)


def test_an_address_without_the_extension_says_how_to_get_it(monkeypatch):
    duckdb = pytest.importorskip("duckdb")

    def connect(*arguments):
        class Connection:
            def load_extension(self, name):
                raise duckdb.IOException("not there")

        return Connection()

    monkeypatch.setattr(duckdb, "connect", connect)
    with pytest.raises(ConfigError, match=r"httpfs.*install_extension"):
        duckdb_index("s3://bucket/x")


def test_without_duckdb_the_error_says_what_to_install(case, monkeypatch):
    import sys

    from sae.inspection.duckdb_index import DuckDBIndex

    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'sae-workbench\[sql\]'"):
        DuckDBIndex(case[1])


@pytest.mark.parametrize("value", [20, -1, True])
def test_what_is_no_latent_is_refused(case, value):
    other = duckdb_index(case[1])
    for question in (other.record, other.entries, lambda latent: other.coactive(latent, 3), lambda latent: other.top_examples(latent, 3)):
        with pytest.raises(ConfigError, match="latent must be an integer"):
            question(value)


def test_unknown_tokens_documents_and_counts_are_refused(case):
    other = duckdb_index(case[1])
    for token in (-1, other.table.n_tokens, True):
        with pytest.raises(ConfigError, match="token must be in"):
            other.at_token(token)
    with pytest.raises(ConfigError, match="document must be one of"):
        other.on_document(10**6)
    with pytest.raises(ConfigError, match="n must be at least 1"):
        other.coactive(4, 0)


def test_a_folder_name_with_quotes_is_a_name_and_no_sql(tmp_path):
    index = small_index("autoencoder")
    folder = write_parquet(index, tmp_path / "it's'); DROP TABLE x; --", latents=[4])
    assert duckdb_index(folder).record(4) == index.record(4)


def test_an_export_of_chosen_latents_answers_about_them_and_about_nothing_else(tmp_path):
    index = small_index("pursuit")
    other = duckdb_index(write_parquet(index, tmp_path / "out", latents=[9, 4]))
    same_entries(other.entries(9), index.entries(9))
    assert other.top_examples(4, 5) == top_examples(index, 4, 5)
    with pytest.raises(ConfigError, match="one of the 2 that were exported, got 5"):
        other.record(5)
    for question in (
        lambda: other.statistics,
        lambda: other.top(),
        lambda: other.coactive(4, 3),
        lambda: other.on_document(5),
        lambda: other.at_token(3),
    ):
        with pytest.raises(FormatError, match=r"2 of 20 latents; .* export the whole index"):
            question()


def test_a_damaged_table_is_named(tmp_path):
    folder = write_parquet(small_index("autoencoder"), tmp_path / "out")
    data = bytearray((folder / "entries.parquet").read_bytes())
    data[-20:] = b"x" * 20
    (folder / "entries.parquet").write_bytes(data)
    with pytest.raises(FormatError, match=r"entries\.parquet cannot be read"):
        duckdb_index(folder).entries(4)
    (folder / "entries.parquet").write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"entries\.parquet has \d+ bytes instead of"):
        duckdb_index(folder)
