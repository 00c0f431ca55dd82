from dataclasses import replace

import numpy as np
import pytest

from probes.problem import Problem
from probes.tasks import Task
from sae.errors import ConfigError


def text_task(counts=(30, 40), **other):
    y = np.repeat(np.arange(len(counts)), counts)
    n = len(y)
    classes = tuple(f"class {i}" for i in range(len(counts)))
    values = {"texts": tuple(f"text {i}" for i in range(n)), "y": y, "groups": np.arange(n) // 2, "classes": classes, **other}
    return Task("t", "text", source="here", licence="none", **values)


def token_task(n=60, **other):
    texts = tuple(f"word{i} other{i}" for i in range(n))
    spans = np.array([(i, 0, len(f"word{i}")) if i % 2 else (i, len(f"word{i} "), len(texts[i])) for i in range(n)])
    values = {"texts": texts, "y": np.arange(n) % 2, "groups": np.arange(n), "classes": ("other", "word"), "spans": spans, **other}
    return Task("spans", "token", source="here", licence="none", **values)


def number_task(n=50, **other):
    values = {"texts": tuple(f"text {i}" for i in range(n)), "y": np.linspace(-1, 1, n), "groups": np.arange(n), "classes": (), **other}
    return Task("rating", "text", source="here", licence="none", **values)


def test_target_follows_the_number_of_classes():
    assert [task.target for task in (text_task(), text_task((20, 30, 25)), number_task())] == ["binary", "classes", "number"]
    assert text_task((20, 30, 25)).counts == {"class 0": 20, "class 1": 30, "class 2": 25}
    assert number_task().counts == {}


def test_row_is_a_text_or_the_characters_of_a_span():
    assert text_task().row_text(7) == "text 7"
    assert [token_task().row_text(i) for i in (4, 5)] == ["other4", "word5"]


def changes():
    """A task and the same with one thing changed, for every field that decides what a probe would be fitted to."""
    task = token_task()
    other = np.array(task.spans)
    other[3, 1] += 1
    swapped = task.y.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    groups = task.groups.copy()
    groups[5] = 4
    return task, {
        "name": replace(task, name="another"),
        "texts": replace(task, texts=(*task.texts[:-1], task.texts[-1] + "!")),
        "an unused text": replace(task, texts=(*task.texts, "more")),
        "y": replace(task, y=swapped),
        "groups": replace(task, groups=groups),
        "classes": replace(task, classes=("word", "other")),
        "spans": replace(task, spans=other),
        "source": replace(task, source="there"),
        "licence": replace(task, licence="some"),
        "rows": task.take(np.arange(1, 60)),
    }


def test_digest_changes_with_anything_and_only_then():
    task, changed = changes()
    assert task.digest == replace(task).digest == token_task().digest
    digests = {name: other.digest for name, other in changed.items()}
    assert len({task.digest, *digests.values()}) == 1 + len(digests), digests
    assert replace(task, min_per_class=5).digest == task.digest


def test_text_border_does_not_matter_only_which_text_it_is():
    """Moving a character from one text to the next is another task."""
    one = text_task(texts=tuple(["ab", "c"] + ["x"] * 68))
    two = text_task(texts=tuple(["a", "bc"] + ["x"] * 68))
    assert one.digest != two.digest


def test_take_keeps_the_texts_of_spans_and_cuts_those_of_texts():
    rows = np.array([5, 3, 50, 9])
    few = replace(token_task(), min_per_class=1).take(rows)
    assert few.texts == token_task().texts
    assert [few.row_text(i) for i in range(4)] == [token_task().row_text(i) for i in rows]
    cut = replace(text_task(), min_per_class=1).take(rows)
    assert cut.texts == tuple(f"text {i}" for i in rows)
    assert cut.y.tolist() == text_task().y[rows].tolist()
    assert cut.groups.tolist() == text_task().groups[rows].tolist()


@pytest.mark.parametrize("make", [text_task, token_task, lambda: text_task((25, 40, 60))])
def test_subsample_has_as_many_of_each_class(make):
    task = make()
    n = min(task.counts.values()) - 1
    small, again, other = (task.subsample(n, seed=seed) for seed in (1, 1, 2))
    assert set(small.counts.values()) == {n}
    rows = [small.row_text(i) for i in range(len(small))]
    assert rows == [again.row_text(i) for i in range(len(again))] != [other.row_text(i) for i in range(len(other))]
    whole = [task.row_text(i) for i in range(len(task))]
    where = [whole.index(row) for row in rows]
    assert where == sorted(set(where))
    assert small.y.tolist() == task.y[where].tolist()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.75, 1 / 3])
@pytest.mark.parametrize("n", [None, 60, 121])
def test_balanced_has_the_share_that_was_asked_for(share, n):
    task = replace(text_task((400, 150)), min_per_class=1)
    made = task.balanced(share, n, seed=3)
    positive, total = made.counts["class 1"], len(made)
    assert abs(positive - share * total) <= 0.5
    if n is None:  # no larger task of that share exists
        n_more = total + 2
        assert round(n_more * share) > 150 or n_more - round(n_more * share) > 400
    else:
        assert total == n
    assert made.texts == task.balanced(share, n, seed=3).texts != task.balanced(share, n, seed=4).texts


def test_sample_draws_from_numbers():
    task = number_task()
    some = task.sample(20, seed=5)
    assert len(some) == 20
    assert np.isin(some.y, task.y).all()
    assert (np.diff(some.y) > 0).all()


def test_examples_show_rows_of_every_class():
    table = token_task().examples(4)
    assert [row[0] for row in table.rows] == ["other"] * 4 + ["word"] * 4
    for answer, group, shown in table.rows:
        assert f"»{answer}{group}«" in shown
    assert len(number_task().examples(3).rows) == 3


NAN = np.where(np.arange(50) == 7, np.nan, 1.0)
BAD_SPAN = np.array([(i, 0, 4) for i in range(60)])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: text_task((30, 4)), ["at least 20 texts of each class", "30 of 'class 0' and 4 of 'class 1'", "min_per_class"]),
        (lambda: text_task((30, 40, 3, 50, 60, 70)), ["3 of 'class 2'", "30 of 'class 0'", "and 2 other classes"]),
        (lambda: text_task((60, 0)), ["0 of 'class 1'"]),
        (lambda: text_task((60,)), ["two classes or more", "['class 0']"]),
        (lambda: text_task(classes=("a", "a")), ["all different", "['a', 'a']"]),
        (lambda: text_task(classes=("no", "yes"), y=np.repeat([True, False], 35)), ["task_from_rows", "booleans"]),
        (lambda: text_task(classes=("no", "yes"), y=np.repeat(["no", "yes"], 35)), ["task_from_rows", "strings"]),
        (lambda: text_task(classes=("no", "yes"), y=np.repeat([1, 2], 35)), ["y must hold 0 and 1", "[1, 2]"]),
        (lambda: text_task((20, 20, 20), y=np.repeat([0, 1, 5], 20)), ["y must hold 0..2", "[0, 1, 5]"]),
        (lambda: number_task(y=NAN), ["finite numbers", "1 of 50"]),
        (lambda: number_task(y=np.array(["a"] * 50)), ["finite numbers", "50 of 50"]),
        (lambda: text_task(texts=("text", " \n", *["x"] * 68)), ["must not be blank", "texts[1]", "leave that row out"]),
        (lambda: text_task(texts=("",) * 70), ["must not be blank", "texts[0]"]),
        (lambda: token_task(spans=BAD_SPAN + np.array([0, 4, 0])), ["0 <= begin < end", "spans[0] is [0, 4, 4]"]),
        (lambda: token_task(spans=BAD_SPAN + np.array([0, 0, 40])), ["spans[0] is [0, 0, 44]"]),
        (lambda: token_task(spans=BAD_SPAN + np.array([1, 0, 0])), ["text in 0..59", "spans[59] is [60, 0, 4]"]),
        (lambda: token_task(spans=BAD_SPAN - np.array([0, 1, 0])), ["spans[0] is [0, -1, 4]"]),
        (lambda: token_task(spans=None), ["spans must be given for kind 'token'"]),
        (lambda: text_task(spans=np.zeros((70, 3), dtype=int)), ["and only then, kind is 'text'"]),
        (lambda: token_task(y=np.arange(59) % 2), ["one entry per span", "60 spans, 59 labels, 60 groups"]),
        (lambda: text_task().subsample(31), ["n_per_class must be in 20..30", "got 31"]),
        (lambda: number_task().subsample(20), ["use sample(n)"]),
        (lambda: number_task().sample(51), ["n must be in 1..50", "got 51"]),
        (lambda: text_task((20, 20, 20)).balanced(), ["needs a task of two classes", "3 to answer"]),
        (lambda: text_task().balanced(1.0), ["positive_share must be between 0 and 1", "1.0"]),
        (lambda: text_task().balanced(0.5, 61), ["n must be in 1..60", "30 of 'class 0' and 40 of 'class 1'"]),
        (lambda: text_task().balanced(0.05), ["at least 20", "class 1"]),
    ],
)
def test_bad_task_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


def test_kind_that_there_is_not_is_an_error(unchecked):
    with pytest.raises(ConfigError, match="kind must be one of text, token, got 'word'"):
        replace(text_task(), kind="word")


def test_groups_of_one_member_and_one_group_are_both_allowed():
    assert len(np.unique(text_task(groups=np.arange(70)).groups)) == 70
    assert len(np.unique(text_task(groups=np.zeros(70, dtype=int)).groups)) == 1


def test_task_gives_what_a_problem_takes():
    for task in (text_task(), text_task((20, 20, 20)), number_task(), token_task()):
        assert Problem(task.name, np.arange(len(task)), task.y, task.groups, task.classes).target == task.target
