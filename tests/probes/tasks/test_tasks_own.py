import json
import lzma

import numpy as np
import pytest

from probes.tasks import Columns, task_from_dataset, task_from_file, task_from_rows
from sae.errors import ConfigError, FormatError


def rows(n=50, label=lambda i: "good" if i % 2 else "bad", **other):
    return [{"text": f'film, {i} "quoted" café', "label": label(i), "group": f"g{i // 5}", **other} for i in range(n)]


LABELS = {
    "strings": (lambda i: "good" if i % 2 else "bad", ("bad", "good")),
    "booleans": (lambda i: bool(i % 2), ("False", "True")),
    "numpy booleans": (lambda i: np.bool_(i % 2), ("False", "True")),
    "whole numbers": (lambda i: (i % 2) * 10 + 2, ("2", "12")),
    "numpy integers": (lambda i: np.int64(i % 2), ("0", "1")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_type_become_classes(kind):
    label, classes = LABELS[kind]
    task = task_from_rows(rows(label=label), Columns(group="group"), name="films", licence="mine")
    assert (task.name, task.kind, task.target, task.classes, task.licence) == ("films", "text", "binary", classes, "mine")
    assert task.y.tolist() == [i % 2 for i in range(50)]
    assert task.groups.tolist() == [i // 5 for i in range(50)]
    assert task.texts[3] == 'film, 3 "quoted" café'


def test_fractions_become_numbers_and_target_decides_where_both_could_be():
    task = task_from_rows(rows(label=lambda i: i / 4))
    assert (task.target, task.classes) == ("number", ())
    assert task.y.tolist() == [i / 4 for i in range(50)]
    assert task_from_rows(rows(label=lambda i: i % 2), Columns(target="number")).y.dtype == np.float64
    assert task_from_rows(rows(label=lambda i: float(i % 2)), Columns(target="classes")).classes == ("0.0", "1.0")
    assert task_from_rows(rows(label=lambda i: i if i % 2 else i + 0.5)).target == "number"


def test_order_of_the_classes_can_be_given():
    assert task_from_rows(rows(), Columns(classes=("good", "bad"))).y.tolist() == [1 - i % 2 for i in range(50)]


def test_without_a_group_equal_texts_are_one():
    found = rows(40) + rows(10)
    assert task_from_rows(found).groups.tolist() == [*range(40), *range(10)]


def test_spans_make_a_task_of_tokens():
    found = [{"text": f"one{i // 2} two{i // 2}", "label": i % 2, "from": 0 if i % 2 else 5, "to": 3 if i % 2 else 8} for i in range(18)]
    task = task_from_rows(found, Columns(span=("from", "to")), min_per_class=5)
    assert task.kind == "token"
    assert len(task.texts) == 9
    assert [task.row_text(i) for i in range(4)] == ["two", "one", "two", "one"]


def write(path, found):
    import csv

    import pyarrow
    import pyarrow.parquet

    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, found[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(found)
    elif path.suffix == ".json":
        path.write_text(json.dumps(found), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    elif path.suffix == ".xz":
        with lzma.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path)
    return path


FILES = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.jsonl.xz", "a.parquet"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("label", [lambda i: "good" if i % 2 else "bad", lambda i: i % 3, lambda i: i / 8 - 1])
def test_every_kind_of_file_gives_the_task_of_its_rows(tmp_path, name, label):
    found = rows(60, label)
    task = task_from_file(write(tmp_path / name, found), Columns(group="group"))
    expected = task_from_rows(found, Columns(group="group"))
    assert (task.texts, task.classes, task.y.tolist(), task.groups.tolist()) == (
        expected.texts,
        expected.classes,
        expected.y.tolist(),
        expected.groups.tolist(),
    )
    assert (task.name, task.source) == ("a" if name != "a.jsonl.xz" else "a.jsonl", name)


def test_data_set_in_memory_is_read_and_class_names_are_kept():
    datasets = pytest.importorskip("datasets")
    loaded = datasets.Dataset.from_list(rows())
    assert task_from_dataset(loaded, name="films").digest == task_from_rows(rows(), name="films", source="data set given").digest
    named = datasets.Dataset.from_dict(
        {"text": [f"t{i}" for i in range(50)], "label": [i % 2 for i in range(50)]},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zebra", "ant"])}),
    )
    task = task_from_dataset(named)
    assert task.classes == ("ant", "zebra")
    assert [task.classes[label] for label in task.y[:3]] == ["zebra", "ant", "zebra"]
    assert task_from_dataset(loaded.to_iterable_dataset()).texts == task_from_dataset(loaded).texts


def swapped(index, **values):
    found = rows()
    found[index].update(values)
    return found


def without(column):
    return [{key: value for key, value in row.items() if key != column} for row in rows()]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: task_from_rows([]), ["at least one row"]),
        (lambda: task_from_rows(without("label")), ["row 0", "no column 'label'", "'text', 'group'", "Columns"]),
        (lambda: task_from_rows(rows(), Columns(group="author")), ["no column 'author'"]),
        (lambda: task_from_rows(swapped(7, text="  ")), ["'text' of row 7", "not blank", "leave the row out"]),
        (lambda: task_from_rows(swapped(7, text=None)), ["'text' of row 7", "None"]),
        (lambda: task_from_rows(swapped(7, text=7)), ["'text' of row 7", "7"]),
        (lambda: task_from_rows(swapped(7, label=None)), ["'label' of row 7", "label it"]),
        (lambda: task_from_rows(swapped(7, label="")), ["'label' of row 7"]),
        (lambda: task_from_rows(swapped(7, label=[1])), ["row 7", "string, a boolean or a number", "list"]),
        (lambda: task_from_rows(swapped(7, label=1)), ["labels of one type", "str (row 0: 'bad')", "number (row 7: 1)"]),
        (lambda: task_from_rows(swapped(7, label=True)), ["labels of one type", "bool (row 7: True)"]),
        (lambda: task_from_rows(rows(label=lambda i: float("nan") if i == 4 else i / 3)), ["'label' of row 4", "nan"]),
        (lambda: task_from_rows(rows(label=lambda i: float("inf") if i == 4 else 1.0)), ["'label' of row 4", "inf"]),
        (lambda: task_from_rows(swapped(7, group=None), Columns(group="group")), ["'group' of row 7", "missing"]),
        (lambda: task_from_rows(rows(label=lambda i: "same")), ["two classes or more", "50 rows of 'same'"]),
        (lambda: task_from_rows(rows(label=lambda i: "rare" if i < 3 else "common")), ["at least 20", "47 of 'common'", "3 of 'rare'"]),
        (lambda: task_from_rows(rows(label=lambda i: f"c{i % 2 + (i == 9)}")), ["1 of 'c2'"]),
        (lambda: task_from_rows(rows(300, label=lambda i: i)), ["300 different labels", "at most 100", "target='number'"]),
        (lambda: task_from_rows(rows(), Columns(target="number")), ["must hold numbers", "'bad'"]),
        (lambda: task_from_rows(rows(), Columns(classes=("good", "fine"))), ["row 0 must be one of classes", "'bad'"]),
        (lambda: Columns(target="number", classes=("a", "b")), ["classes must be left out"]),
        (lambda: task_from_rows(rows(b=0, e=99), Columns(span=("b", "e"))), ["0 <= begin < end", "spans[0] is [0, 0, 99]"]),
        (lambda: task_from_rows(rows(b=0, e="9"), Columns(span=("b", "e"))), ["'e' of row 0", "number of a character", "'9'"]),
        (lambda: task_from_file("nowhere.csv"), ["nowhere.csv", "no file"]),
        (lambda: task_from_file("nowhere.jsonl"), ["nowhere.jsonl", "matches no file"]),
        (lambda: task_from_dataset([1, 2]), ["Dataset with one split", "list"]),
        (lambda: task_from_dataset("nobody/nothing-here"), ["nobody/nothing-here", "cannot be loaded", "check the name"]),
    ],
)
def test_bad_rows_are_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("a.csv", b"text,label\nx,good,more\n", ["line 2", "more fields", "quote"]),
        ("a.csv", b"text,label\nx\n", ["line 2", "fewer fields"]),
        ("a.csv", b"text,label\ncaf\xe9,good\n", ["no CSV in utf-8", "encoding"]),
        ("a.csv", b'text,label\n"never closed,good\n', ["no CSV in utf-8"]),
        ("a.csv", b"", ["no column 'text'"]),
        ("a.csv", b"words;label\nx;y\n", ["no column 'text'", "'words;label'"]),
        ("a.txt", b"hello", ["must be a file that ends in .csv, .tsv, .json", "a.txt"]),
        ("a.xlsx", b"hello", ["one kind", "a.xlsx"]),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', ["line 2", "not JSON"]),
        ("a.jsonl", b'{"text": "x"}\n', ["line 1", "no column 'label'"]),
        ("a.parquet", b"PAR1 no", ["damaged or no Parquet"]),
    ],
)
def test_bad_file_is_named(tmp_path, name, contents, words):
    path = tmp_path / name
    path.write_bytes(contents)
    with pytest.raises((ConfigError, FormatError)) as caught:
        task_from_file(path)
    assert all(word.replace("a.xlsx", ".xlsx") in str(caught.value) for word in words), caught.value


def test_other_encodings_are_read_when_they_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + "".join(f"café {i},{i % 2}\n" for i in range(40)).encode("latin-1"))
    assert task_from_file(path, encoding="latin-1").texts[3] == "café 3"
