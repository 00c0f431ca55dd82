"""Corpora: re-iterable, deterministic, and named by what they yield."""

import json
import sys
import tracemalloc

import pytest

from sae.activations.corpus import Document, from_dataset, from_texts, installed_docstrings, mixture, state_of_the_union, wordnet_nouns
from sae.errors import ConfigError, FormatError


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def rows(corpus):
    return [(document.id, document.text, dict(document.labels)) for document in corpus.documents()]


def test_texts_keep_their_order_and_labels_and_can_be_read_again():
    corpus = from_texts(["one", "two"], [{"n": 1}, {"n": 2}], name="numbers", licence="none")
    assert rows(corpus) == [(0, "one", {"n": 1}), (1, "two", {"n": 2})]
    assert rows(corpus) == rows(corpus)


def test_the_digest_changes_with_texts_labels_and_order_and_with_nothing_else():
    digest = from_texts(["ab", "c"], [{"n": 1}, {"n": 2}]).digest
    assert digest == from_texts(["ab", "c"], [{"n": 1}, {"n": 2}], name="other").digest
    others = [
        from_texts(["a", "bc"], [{"n": 1}, {"n": 2}]),
        from_texts(["c", "ab"], [{"n": 2}, {"n": 1}]),
        from_texts(["ab", "c"], [{"n": 1}, {"n": "2"}]),
        from_texts(["ab", "c"]),
    ]
    assert len({digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_texts([]), r"texts must hold at least one text that is not blank, got 0 texts"),
        (lambda: from_texts(["", " \n"]), r"texts must hold at least one text that is not blank, got 2 texts"),
        (lambda: from_texts("one string"), r"texts must be a sequence of strings, got one string 'one string'"),
        (lambda: from_texts(["a"], [{}, {}]), r"labels must have one entry per text, got 2 labels for 1 texts"),
        (lambda: mixture([]), r"corpora must hold at least one corpus"),
        (lambda: installed_docstrings(["no_such_package"]), r"packages must be installed, 'no_such_package' is not"),
        (lambda: installed_docstrings(["os.path"]), r"packages must be top-level package names, got 'os.path'"),
        (lambda: Document(2**31, "a", {}), r"id must be in 0..2147483647, got 2147483648"),
        (lambda: from_dataset([]), r"source must name at least one file, got an empty list"),
        (lambda: from_dataset("missing.txt"), r"source 'missing.txt' matches no file"),
        (lambda: from_dataset("nowhere/*.jsonl"), r"source 'nowhere/\*.jsonl' matches no file"),
        (lambda: from_dataset(3), r"source must be files, a hub name, or a Dataset with one split, got a int"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_hub_name_without_connection_is_an_error_that_says_so(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(ConfigError, match=r"source 'owner/name' is neither a file here nor a dataset that can be reached on the hub"):
        from_dataset("owner/name")


def test_a_hub_dataset_is_named_by_its_commit(monkeypatch):
    import datasets

    class Builder:
        hash = "c" * 40

    asked = {}
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, subset, revision: Builder())
    monkeypatch.setattr(datasets, "load_dataset", lambda **options: asked.update(options) or [{"text": "a"}, {"text": "b"}])
    corpus = from_dataset("owner/name", subset="small")
    assert [text for _, text, _ in rows(corpus)] == ["a", "b"]
    assert asked == {"path": "owner/name", "name": "small", "revision": "c" * 40, "split": "train", "streaming": True}
    first = corpus.digest
    Builder.hash = "d" * 40
    assert from_dataset("owner/name", subset="small").digest != first


@pytest.mark.parametrize("streaming", [True, False])
def test_text_files_are_documents_paragraphs_or_lines(tmp_path, streaming):
    (tmp_path / "b.txt").write_text("b first\nb second\n\nb third")
    (tmp_path / "a.txt").write_text("a only")
    pattern = str(tmp_path / "*.txt")
    by_document = from_dataset(pattern, streaming=streaming)
    assert [text for _, text, _ in rows(by_document)] == ["a only", "b first\nb second\n\nb third"]
    by_line = from_dataset(pattern, streaming=streaming, sample_by="line")
    assert [text for _, text, _ in rows(by_line)] == ["a only", "b first", "b second", "b third"]
    assert [number for number, _, _ in rows(by_line)] == [0, 1, 2, 4]  # the blank line keeps its number
    assert rows(by_line) == rows(by_line)
    assert by_line.digest != by_document.digest


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_tables_give_a_text_column_and_label_columns(tmp_path, kind):
    import datasets

    table = datasets.Dataset.from_dict({"body": ["x", "y"], "stars": [4, 5], "lang": ["en", "fr"]})
    file = tmp_path / f"reviews.{kind}"
    table.to_parquet(file) if kind == "parquet" else table.to_json(file)
    corpus = from_dataset(file, text_column="body", label_columns=["stars", "lang"], licence="CC0")
    expected = [(0, "x", {"stars": 4, "lang": "en"}), (1, "y", {"stars": 5, "lang": "fr"})]
    assert rows(corpus) == expected
    assert (corpus.name, corpus.licence) == (file.name, "CC0")
    loaded = from_dataset(table, text_column="body", label_columns=["stars", "lang"])
    assert rows(loaded) == expected
    assert rows(from_dataset(table.to_iterable_dataset(), text_column="body", label_columns=["stars", "lang"])) == expected
    assert loaded.digest != from_dataset(table, text_column="lang").digest


def test_the_digest_of_a_file_corpus_follows_the_bytes(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n')
    first = from_dataset(file).digest
    assert first == from_dataset(str(file)).digest
    file.write_text('{"text": "two"}\n')
    assert from_dataset(file).digest != first


def test_what_a_dataset_lacks_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "one", "score": 0.5}\n')
    with pytest.raises(ConfigError, match=r"a.jsonl has no column 'text'; its columns are body, score"):
        rows(from_dataset(file))
    with pytest.raises(ConfigError, match=r"a.jsonl has no column 'party'"):
        rows(from_dataset(file, text_column="body", label_columns=["party"]))
    with pytest.raises(ConfigError, match=r"label_columns must hold strings or integers, 'score' of line 1 of .*a.jsonl holds 0.5"):
        rows(from_dataset(file, text_column="body", label_columns=["score"]))
    with pytest.raises(ConfigError, match=r"text_column must hold strings, 'score' of line 1 of .*a.jsonl holds a float"):
        rows(from_dataset(file, text_column="score"))
    (tmp_path / "b.csv").write_text("x")
    with pytest.raises(ConfigError, match=r"source files must all be of one kind out of .txt, .*, got .csv, .jsonl"):
        from_dataset([file, tmp_path / "b.csv"])
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": " "}\n')
    with pytest.raises(ConfigError, match=r"corpus 'blank.jsonl' is empty"):
        rows(from_dataset(blank))


def test_streaming_memory_does_not_grow_with_the_file(tmp_path):
    def peak(n):
        file = tmp_path / f"{n}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{i} " + "word " * 8000}) + "\n" for i in range(n)))
        corpus = from_dataset(file)
        tracemalloc.start()
        count = sum(1 for _ in corpus.documents())
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == n
        return used

    peak(10)
    assert peak(1_500) < peak(750) + 8_000_000  # 60 MB of text against 30 MB


def test_a_mixture_interleaves_renumbers_and_says_where_each_document_came_from():
    parts = [
        from_texts([f"a{i}" for i in range(200)], name="a"),
        from_texts([f"b{i}" for i in range(200)], [{"k": i} for i in range(200)], name="b"),
    ]
    mixed = mixture(parts, seed=3)
    found = rows(mixed)
    assert [number for number, _, _ in found] == list(range(400))
    assert [text for _, text, labels in found if labels["corpus"] == "a"] == [f"a{i}" for i in range(200)]
    assert [labels["k"] for _, text, labels in found if labels["corpus"] == "b"] == list(range(200))
    assert 60 < sum(labels["corpus"] == "a" for _, _, labels in found[:200]) < 140
    assert rows(mixed) == found
    assert rows(mixture(parts, seed=4)) != found
    assert len({mixed.digest, mixture(parts, seed=4).digest, mixture(parts[::-1], seed=3).digest}) == 3


def test_docstrings_are_read_from_source_without_importing_anything(tmp_path, monkeypatch):
    package = tmp_path / "fragile_package"
    package.mkdir()
    text = "Long enough to be kept, whatever it says, and repeated so that it has length. " * 3
    (package / "__init__.py").write_text(f'"""{text}module."""\nraise RuntimeError("imported")\n')
    source = f'def f():\n    """{text}f."""\n\nclass C:\n    """{text}C."""\n\n    async def m(self):\n        """{text}m."""\n'
    source += '\ndef g():\n    """short"""\n'
    (package / "part.py").write_text(source + f'\ndef again():\n    """{text}f."""\n')
    (package / "broken.py").write_text("def (:\n")
    (package / "escape.py").write_text('x = "\\d"\n')
    monkeypatch.syspath_prepend(tmp_path)
    corpus = installed_docstrings(["fragile_package"])
    assert sorted(document.text.rsplit(" ", 1)[1] for document in corpus.documents()) == ["C.", "f.", "m.", "module."]
    assert {document.labels["package"] for document in corpus.documents()} == {"fragile_package"}
    assert "fragile_package" not in sys.modules
    assert len(rows(installed_docstrings(["fragile_package"], max_documents=2))) == 2
    assert installed_docstrings(["fragile_package"]).digest == corpus.digest
    (package / "part.py").write_text(source.replace("m.", "changed."))
    assert installed_docstrings(["fragile_package"]).digest != corpus.digest


def test_docstrings_of_a_real_package_are_seeded():
    first = installed_docstrings(["safetensors", "jaxtyping"], max_documents=12, min_characters=80)
    assert {document.labels["package"] for document in first.documents()} == {"safetensors", "jaxtyping"}
    assert len(rows(first)) == 12
    assert rows(first) == rows(installed_docstrings(["safetensors", "jaxtyping"], max_documents=12, min_characters=80))
    assert rows(first) != rows(installed_docstrings(["safetensors", "jaxtyping"], max_documents=12, min_characters=80, seed=1))


def test_the_shipped_addresses_have_year_speaker_and_party():
    corpus = state_of_the_union()
    found = rows(corpus)
    assert len(found) > 200
    assert sum(len(text) for _, text, _ in found) > 10_000_000
    assert set(found[0][2]) == {"year", "speaker", "party"}
    years = [labels["year"] for _, _, labels in found]
    assert min(years) == 1790
    assert max(years) >= 2020
    assert all(isinstance(year, int) for year in years)
    assert len({labels["speaker"] for _, _, labels in found}) > 40
    assert corpus.digest == state_of_the_union().digest


def test_the_shipped_nouns_form_a_hierarchy_under_entity():
    synsets = {synset.id: synset for synset in wordnet_nouns()}
    assert len(synsets) > 80_000
    assert sum(len(synset.hypernyms) for synset in synsets.values()) == 75_850
    assert sum(len(synset.instances) for synset in synsets.values()) == 8_577
    assert all(parent in synsets for synset in synsets.values() for parent in synset.hypernyms + synset.instances)
    roots = [synset for synset in synsets.values() if not synset.hypernyms and not synset.instances]
    assert [synset.lemmas for synset in roots] == [("entity",)]
    dog = next(synset for synset in synsets.values() if "dog" in synset.lemmas and "domestic_dog" in synset.lemmas)
    above, level = set(), [dog.id]
    while level:
        above.update(level)
        level = [parent for child in level for parent in synsets[child].hypernyms if parent not in above]
    assert any("animal" in synsets[parent].lemmas for parent in above)


def test_a_missing_shipped_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(FormatError, match=r"state_of_the_union.jsonl.xz does not exist: this installation lacks its package data"):
        state_of_the_union()
