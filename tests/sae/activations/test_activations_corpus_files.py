"""Corpora from files: every kind, compression, name and encoding, and what a damaged file is told."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sae.activations.corpus import beginning, from_dataset, from_texts, mixture, shuffled
from sae.errors import ConfigError, FormatError

TEXTS = [
    "The first document.",
    "naïve — deuxième\nsecond line",
    "第三份文件。",
    "nul \x00 inside",
    "\u2028 separators \x0b\x85 are no line ends",
]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def texts(corpus):
    return [document.text for document in corpus.documents()]


def written(path, kind, values):
    """The bytes of a file of that kind, written without the code under test."""
    rows = [{"text": value, "number": i} for i, value in enumerate(values)]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, indent=1).encode()
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path.with_suffix(".plain"))
        return path.with_suffix(".plain").read_bytes()
    return values[0].encode()


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "parquet"])
def test_every_kind_of_file_reads_alike_under_every_compression(tmp_path, kind, compression, streaming):
    path = tmp_path / f"corpus.{kind}{compression}"
    data = written(path, kind, TEXTS)
    if compression == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
    else:
        path.write_bytes(COMPRESS[compression](data))
    columns = [] if kind == "txt" else ["number"]
    corpus = from_dataset(path, label_columns=columns, streaming=streaming)
    expected = TEXTS[:1] if kind == "txt" else TEXTS
    assert texts(corpus) == expected
    assert texts(corpus) == expected
    if columns:
        assert [document.labels["number"] for document in corpus.documents()] == list(range(len(TEXTS)))


@pytest.mark.parametrize("name", ["a[1].txt", "b*.txt", "c?.txt", "with space é.txt", "a::b.txt", ".hidden.txt", "hash#%20.txt"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_file_is_taken_by_its_name_whatever_the_name(tmp_path, name, streaming):
    folder = tmp_path / "données [1]"
    folder.mkdir()
    (folder / name).write_text(f"text of {name}")
    (folder / "bb.txt").write_text("not this one")
    (folder / "a1.txt").write_text("nor this one")
    assert texts(from_dataset(folder / name, streaming=streaming)) == [f"text of {name}"]
    assert texts(from_dataset([str(folder / name)], streaming=streaming)) == [f"text of {name}"]


def test_many_files_come_in_the_order_of_their_names_or_of_the_list(tmp_path):
    for i in range(300):
        (tmp_path / f"{i:03}.jsonl").write_text(json.dumps({"text": f"document {i}"}) + "\n")
    corpus = from_dataset(str(tmp_path / "*.jsonl"))
    assert texts(corpus) == [f"document {i}" for i in range(300)]
    assert [document.id for document in corpus.documents()] == list(range(300))
    assert corpus.name == "000.jsonl and 299 more"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.jsonl").write_text('{"text": "deep"}\n')
    assert len(texts(from_dataset(str(tmp_path / "**" / "*.jsonl")))) == 301
    assert texts(from_dataset([tmp_path / "007.jsonl", tmp_path / "003.jsonl"])) == ["document 7", "document 3"]


def test_what_looks_like_a_date_or_a_number_stays_a_string(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "2020-01-01", "day": "1999-12-31"}\n{"text": "12", "day": "x"}\n')
    assert texts(from_dataset(file, label_columns=["day"])) == ["2020-01-01", "12"]
    assert texts(from_dataset(file, streaming=False)) == ["2020-01-01", "12"]


def test_rows_may_differ_in_columns_and_null_text_is_no_text(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "meta": 1}\n\n{"text": null}\n{"meta": {"x": []}}\n{"text": " \\n"}\n{"meta": "m", "text": "e"}\n')
    with caplog.at_level("INFO"):
        found = [(document.id, document.text) for document in from_dataset(file).documents()]
    assert found == [(0, "a"), (4, "e")]
    assert "a.jsonl: left out 3 documents without text" in caplog.text


def test_a_json_array_is_read_a_value_at_a_time(tmp_path, monkeypatch):
    generator = random.Random(0)
    values = ["".join(generator.choices('abc\\"[]{},é\n', k=generator.randrange(200))) + "." for _ in range(200)]
    file = tmp_path / "a.json"
    monkeypatch.setattr("sae.activations.corpus.files.BLOCK", 64)
    for indent in (None, 2):
        file.write_text(" \n" + json.dumps([{"text": value} for value in values], indent=indent))
        assert texts(from_dataset(file)) == values
    file.write_text(json.dumps(values))
    assert texts(from_dataset(file)) == values
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"corpus 'a.json' is empty"):
        texts(from_dataset(file))


def test_text_files_split_into_paragraphs_at_blank_lines(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\n\none\ntwo\nthree\n \n\nfour\n\n\n\nfive")
    assert texts(from_dataset(file, sample_by="paragraph")) == ["one\ntwo\nthree", "four", "five"]
    with pytest.raises(ConfigError, match=r"line 3 of .*a\.txt has no column 'year'; its columns are text"):
        texts(from_dataset(file, sample_by="paragraph", label_columns=["year"]))


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_byte_order_marks_are_dropped_and_line_ends_become_newlines(tmp_path, compression):
    compress = COMPRESS[compression]
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt{compression}").write_bytes(compress(b"\xef\xbb\xbfone\r\ntwo\rthree\x00"))
    corpus = from_dataset(str(tmp_path / f"*.txt{compression}"))
    assert texts(corpus) == ["one\ntwo\nthree\x00"] * 2
    (tmp_path / f"a.jsonl{compression}").write_bytes(compress(b'\xef\xbb\xbf{"text": "a\\r\\n"}\r\n{"text": "\xef\xbb\xbfb"}\r\n'))
    assert texts(from_dataset(tmp_path / f"a.jsonl{compression}")) == ["a\r\n", "\ufeffb"]


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_the_encoding_given_is_used_also_in_compressed_files(tmp_path, compression, encoding):
    text = "café naïve"
    (tmp_path / f"a.txt{compression}").write_bytes(COMPRESS[compression](text.encode(encoding)))
    row = json.dumps({"text": text}, ensure_ascii=False)
    (tmp_path / f"a.jsonl{compression}").write_bytes(COMPRESS[compression](f"{row}\n{row}\n".encode(encoding)))
    assert texts(from_dataset(tmp_path / f"a.txt{compression}", encoding=encoding)) == [text]
    assert texts(from_dataset(tmp_path / f"a.jsonl{compression}", encoding=encoding)) == [text, text]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("compression", ["", ".xz"])
def test_bytes_that_are_not_utf8_are_an_error_that_names_file_line_and_remedies_or_are_replaced(tmp_path, compression, streaming):
    text, table = tmp_path / f"a.txt{compression}", tmp_path / f"a.jsonl{compression}"
    text.write_bytes(COMPRESS[compression](b"good line\n" * 400_000 + b"caf\xe9 au lait\n"))
    table.write_bytes(COMPRESS[compression](b'{"text": "fine"}\n{"text": "caf\xe9"}\n'))
    with pytest.raises(
        FormatError, match=r"line 400001 of .*a\.txt.* is not text in utf-8 \(byte 0xe9: .*encoding='latin-1'.*encoding_errors='replace'"
    ):
        texts(from_dataset(text, streaming=streaming))
    with pytest.raises(FormatError, match=r"line 2 of .*a\.jsonl.* is not text in utf-8 \(byte 0xe9: .*encoding_errors='replace'"):
        texts(from_dataset(table, streaming=streaming))
    assert texts(from_dataset(table, streaming=streaming, encoding_errors="replace")) == ["fine", "caf\ufffd"]
    assert texts(from_dataset(text, streaming=streaming, encoding_errors="replace"))[0].endswith("caf\ufffd au lait\n")
    assert from_dataset(table, encoding_errors="replace").digest != from_dataset(table).digest
    assert from_dataset(table, encoding="latin-1").digest != from_dataset(table).digest


def test_a_utf16_file_read_as_utf8_is_told_so(tmp_path):
    (tmp_path / "a.txt").write_bytes("hello".encode("utf-16"))
    with pytest.raises(FormatError, match=r"line 1 of .*a\.txt is not text in utf-8 .*it begins as UTF-16 does: give encoding='utf-16'"):
        texts(from_dataset(tmp_path / "a.txt"))


def test_a_parquet_string_that_is_not_utf8_is_named_or_replaced_and_bytes_are_decoded(tmp_path):
    raw = pyarrow.array([b"fine", b"caf\xe9", None], pyarrow.binary())
    broken = pyarrow.Table.from_arrays([pyarrow.array(raw).view(pyarrow.string())], ["text"])
    pyarrow.parquet.write_table(broken, tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=r"row 0 of .*a\.parquet, or one of the 999 after it, has a string that is not UTF-8"):
        texts(from_dataset(tmp_path / "a.parquet"))
    assert texts(from_dataset(tmp_path / "a.parquet", encoding_errors="replace")) == ["fine", "caf\ufffd"]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([raw], ["text"]), tmp_path / "b.parquet")
    with pytest.raises(FormatError, match=r"'text' of row 1 of .*b\.parquet holds bytes that are not text in utf-8"):
        texts(from_dataset(tmp_path / "b.parquet"))
    assert texts(from_dataset(tmp_path / "b.parquet", encoding="latin-1")) == ["fine", "café"]


def test_lone_surrogates_are_an_error_that_names_the_place_or_are_replaced(tmp_path):
    import datasets

    lone, pair = "bad \ud83d half", "\ud83d\ude00"
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + json.dumps({"text": lone, "label": lone}) + "\n")
    corpus = from_dataset(tmp_path / "a.jsonl")
    with pytest.raises(
        FormatError, match=r"'text' of line 2 of .*a\.jsonl has the lone surrogate .* at character 4.*encoding_errors='replace'"
    ):
        texts(corpus)
    assert texts(from_dataset(tmp_path / "a.jsonl", encoding_errors="replace")) == ["ok", "bad \ufffd half"]
    with pytest.raises(
        ConfigError, match=r"text must be Unicode that UTF-8 can write, that of document 1 has the lone surrogate .* at character 4"
    ):
        from_texts(["fine", lone])
    with pytest.raises(ConfigError, match=r"label must be Unicode that UTF-8 can write, that of document 0"):
        from_texts(["fine"], [{"label": lone}])
    assert texts(from_texts(["fine", lone + pair], encoding_errors="replace")) == ["fine", "bad \ufffd half\U0001f600"]
    loaded = datasets.IterableDataset.from_generator(lambda: iter([{"text": lone}]))
    with pytest.raises(FormatError, match=r"'text' of row 0 of .* has the lone surrogate"):
        from_dataset(loaded)
    assert texts(from_dataset(loaded, encoding_errors="replace")) == ["bad \ufffd half"]


def cut(data):
    return data[:-20]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt.gz", cut(gzip.compress(os.urandom(3000))), r"a\.txt\.gz is cut off or not compressed as its name says .*fetch or write it again"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz is cut off or not compressed as its name says"),
        ("a.txt.xz", cut(lzma.compress(b"text" * 3000)), r"a\.txt\.xz is cut off or not compressed"),
        ("a.txt.bz2", cut(bz2.compress(b"text" * 3000)), r"a\.txt\.bz2 is cut off or not compressed"),
        ("a.txt.bz2", b"plain", r"a\.txt\.bz2 cannot be read: Invalid data stream; .*fetch or write it again"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst cannot be read: .*fetch or write it again"),
        ("a.parquet", b"PAR1 nothing", r"a\.parquet is damaged or no Parquet file, after row 0: .*fetch or write it again"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 of .*a\.jsonl is not JSON .*: '\{\"text\":'; write one JSON object a line"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"line 2 of .*a\.jsonl must be a JSON object, column name to value, got '\[1\]'"),
        ("a.json", b'{\n  "text": "a"\n}\n', r"line 1 of .*a\.json is not JSON .*; write one JSON object a line, or one array of objects"),
        ("a.json", b'[{"text": "a"}, {"text": ', r"a\.json is not a JSON array .*; write it again"),
        ("a.json", b"[1, 2]", r"entry 0 of .*a\.json must be a JSON object, column name to value, got '1'"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, data, message, streaming):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=message):
        texts(from_dataset(tmp_path / name, streaming=streaming))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz"])
def test_an_empty_file_is_an_empty_corpus(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    for streaming in (True, False):
        with pytest.raises(ConfigError, match=rf"corpus '{name}' is empty: it yields no document with any text"):
            texts(from_dataset(tmp_path / name, streaming=streaming))


def test_files_that_change_or_vanish_after_the_corpus_was_made_are_an_error(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    corpus = from_dataset(file)
    assert texts(corpus) == ["one"]
    file.write_text("other")
    with pytest.raises(FormatError, match=r"a\.txt has changed since the corpus was made from it.*make the corpus again"):
        texts(corpus)
    file.unlink()
    with pytest.raises(FormatError, match=r"a\.txt cannot be read any more \(No such file or directory\); put it back"):
        texts(corpus)


def test_an_unreadable_file_and_a_read_only_cache_are_errors_that_say_what_to_do(tmp_path, monkeypatch):
    import datasets.config

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("one")
    with monkeypatch.context() as patch:
        patch.setattr("sae.activations.corpus.tables.digest_file", refuse)
        with pytest.raises(FormatError, match=r"a\.txt cannot be read: Permission denied; check that it is there and readable"):
            from_dataset(tmp_path / "a.txt")
    (tmp_path / "no folder").write_text("a file is in the way")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "no folder")
    with pytest.raises(FormatError, match=r"a\.txt cannot be copied to the cache of datasets: .*; streaming=True needs no copy"):
        texts(from_dataset(tmp_path / "a.txt", streaming=False))


def test_the_arrow_copy_is_made_once_and_used_again(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"t{i}", "b": i, "a": "x"}) + "\n" for i in range(20)))
    corpus = from_dataset(tmp_path / "a.jsonl", label_columns=["b", "a"], streaming=False)
    first = list(corpus.documents())
    assert first == list(from_dataset(tmp_path / "a.jsonl", label_columns=["b", "a"]).documents())
    monkeypatch.setattr("sae.activations.corpus.tables.rows", lambda *args: pytest.fail("the files are read again"))
    assert list(corpus.documents()) == first
    assert list(from_dataset(tmp_path / "a.jsonl", label_columns=["b", "a"], streaming=False).documents()) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "utf-99"}, r"encoding must be one that Python knows, such as 'utf-8' or 'latin-1', got 'utf-99'"),
        ({"encoding": "hex"}, r"encoding must be one that Python knows, .* got 'hex'"),
        ({"max_documents": 0}, r"max_documents must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named_before_any_file_is_read(options, message):
    with pytest.raises(ConfigError, match=message):
        from_dataset("missing.txt", **options)


def test_a_folder_that_datasets_saved_or_that_holds_a_data_set_is_read(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    table.save_to_disk(tmp_path / "saved")
    assert texts(from_dataset(tmp_path / "saved")) == ["a", "b"]
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "splits")
    assert texts(from_dataset(str(tmp_path / "splits"), split="test")) == ["b"]
    with pytest.raises(ConfigError, match=r"split must be one of train, test in .*splits, got 'valid'"):
        from_dataset(tmp_path / "splits", split="valid")
    (tmp_path / "clone" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet")
    table.select([0]).to_parquet(tmp_path / "clone" / "data" / "test-00000-of-00001.parquet")
    corpus = from_dataset(tmp_path / "clone")
    assert texts(corpus) == ["a", "b"]
    assert texts(from_dataset(str(tmp_path / "clone"), split="test")) == ["a"]
    assert corpus.digest == from_dataset(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet").digest
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match=r"source '.*nothing' is a folder that datasets cannot open: .*; give its files"):
        from_dataset(tmp_path / "nothing")


def test_faults_below_datasets_come_out_with_row_cause_and_remedy(monkeypatch):
    import datasets

    def broken():
        yield {"text": "a"}
        raise OSError("the disk is gone")

    with pytest.raises(FormatError, match=r"cannot be read from row 1 on: OSError: the disk is gone; look at") as caught:
        from_dataset(datasets.IterableDataset.from_generator(broken))
    assert caught.value.__cause__ is not None

    class Builder:
        hash = "c" * 40

    def wrapped(*args, **options):
        try:
            raise ValueError('Bad split: dev. Available splits: ["train"]')
        except ValueError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **options: Builder())
    monkeypatch.setattr(datasets, "load_dataset", wrapped)
    corpus = from_dataset("owner/name", split="dev")
    with pytest.raises(FormatError, match=r"split 'dev' of owner/name cannot be opened: ValueError: Bad split: dev\. .*; check the split"):
        texts(corpus)

    def ambiguous(*args, **options):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'fr']")

    monkeypatch.setattr(datasets, "load_dataset_builder", ambiguous)
    with pytest.raises(
        ConfigError, match=r"source 'owner/name' cannot be opened with subset=None, revision=None: ValueError: .*choose another"
    ):
        from_dataset("owner/name")


def test_a_shuffle_keeps_ids_is_seeded_and_holds_a_bounded_number_of_documents(monkeypatch):
    corpus = from_texts([f"document {i}" for i in range(500)])
    mixed = shuffled(corpus, seed=1)
    assert sorted(texts(mixed)) == sorted(texts(corpus))
    assert texts(mixed) == texts(mixed) == texts(shuffled(corpus, seed=1)) != texts(shuffled(corpus, seed=2))
    assert all(document.text == f"document {document.id}" for document in mixed.documents())
    assert len({corpus.digest, mixed.digest, shuffled(corpus, seed=2).digest}) == 3
    ids = [document.id for document in mixed.documents()]
    assert abs(sum(ids[:250]) / 250 - 249.5) < 40  # uniform: standard error 6.5
    monkeypatch.setattr("sae.activations.corpus.documents.SHUFFLED_DOCUMENTS", 20)
    ids = [document.id for document in shuffled(corpus, seed=1).documents()]
    assert sorted(ids) == list(range(500)) != ids
    assert all(number <= place + 20 for place, number in enumerate(ids))
    monkeypatch.setattr("sae.activations.corpus.documents.SHUFFLED_CHARACTERS", 100)
    ids = [document.id for document in shuffled(corpus, seed=1).documents()]
    assert sorted(ids) == list(range(500)) != ids
    assert all(number <= place + 10 for place, number in enumerate(ids))
    assert sum(abs(number - place) for place, number in enumerate(ids)) > 3 * 500  # the buffer stays full
    assert shuffled(corpus, seed=1).digest != mixed.digest


def test_a_seed_takes_files_in_a_random_order(tmp_path, monkeypatch):
    monkeypatch.setattr("sae.activations.corpus.documents.SHUFFLED_DOCUMENTS", 1)
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"{i:02}")
    found = texts(from_dataset(str(tmp_path / "*.txt"), shuffle_seed=3))
    assert sorted(found) == [f"{i:02}" for i in range(30)]
    assert sum(int(text) for text in found[:15]) > 15 * 9  # in the order of their names, the first half has a mean of 7


def test_a_seed_shuffles_files_and_documents_and_a_maximum_takes_the_first_of_them(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text("\n".join(f"{i}{j}" for j in range(9)))
    pattern = str(tmp_path / "*.txt")
    plain = from_dataset(pattern, sample_by="line")
    mixed = from_dataset(pattern, sample_by="line", shuffle_seed=3)
    assert sorted(texts(mixed)) == texts(plain) != texts(mixed)
    assert texts(mixed) == texts(from_dataset(pattern, sample_by="line", shuffle_seed=3, streaming=False))
    some = from_dataset(pattern, sample_by="line", shuffle_seed=3, max_documents=5)
    assert texts(some) == texts(mixed)[:5]
    assert texts(beginning(plain, 5)) == texts(plain)[:5] == texts(from_dataset(pattern, sample_by="line", max_documents=5))
    assert len({plain.digest, mixed.digest, some.digest, beginning(plain, 5).digest, beginning(plain, 6).digest}) == 5
    with pytest.raises(ConfigError, match=r"n_documents must be at least 1, got 0"):
        beginning(plain, 0)


PASS = """
import hashlib, sys
from sae.activations.corpus import from_dataset, mixture, shuffled
first = from_dataset(sys.argv[1] + "/*.jsonl", label_columns=["n"], shuffle_seed=5)
second = from_dataset(sys.argv[1] + "/words.txt", sample_by="line")
corpus = shuffled(mixture([first, second], seed=2), seed=9)
state = hashlib.sha256()
for document in corpus.documents():
    state.update(repr((document.id, document.text, sorted(document.labels.items()))).encode())
print(corpus.digest, state.hexdigest())
"""


def test_two_processes_read_equal_documents_under_equal_digests(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jsonl").write_text("".join(json.dumps({"text": f"{i} {j}", "n": j}) + "\n" for j in range(40)))
    (tmp_path / "words.txt").write_text("\n".join(f"word {i}" for i in range(60)))
    command = [sys.executable, "-c", PASS, str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[3]
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout.split()
    first = from_dataset(str(tmp_path / "*.jsonl"), label_columns=["n"], shuffle_seed=5)
    corpus = shuffled(mixture([first, from_dataset(tmp_path / "words.txt", sample_by="line")], seed=2), seed=9)
    state = hashlib.sha256()
    for document in corpus.documents():
        state.update(repr((document.id, document.text, sorted(document.labels.items()))).encode())
    assert found == [corpus.digest, state.hexdigest()]
