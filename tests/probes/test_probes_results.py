"""Tables and problems: what is shown, and what is refused before any work is done."""

from dataclasses import dataclass

import numpy as np
import pytest

from probes.figures import band, new_figure
from probes.problem import Problem
from probes.results import Result, Table, show
from sae.errors import ConfigError


def table():
    return Table(
        "scores", ("method", "k", "AUC", "null"), (("a<b>", 1, 0.98765, None), ("dense", 1234, 0.5, float("nan"))), "chance is 0.5"
    )


def test_text_aligns_numbers_right_and_words_left():
    lines = table().text().splitlines()
    assert lines[0] == "scores" and lines[-1] == "chance is 0.5"
    assert lines[1].split() == ["method", "k", "AUC", "null"]
    assert lines[2].startswith("a<b>    ") and "0.988" in lines[2] and lines[2].endswith("–")
    assert lines[3].startswith("dense   1,234  0.500")


def test_html_escapes_every_cell_and_says_the_note():
    html = table().html()
    assert "a&lt;b&gt;" in html and "<b>" not in html
    assert "chance is 0.5" in html and html.count("<tr>") == 3


def test_records_are_rows_by_heading():
    assert table().records()[0] == {"method": "a<b>", "k": 1, "AUC": 0.98765, "null": None}
    assert table().column("k") == [1, 1234]
    with pytest.raises(ConfigError, match="method, k, AUC, null"):
        table().column("F1")


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="one cell per column"):
        Table("t", ("a", "b"), ((1,),))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.12345, "0.123"),
        (-3.0, "-3.000"),
        (123456.7, "123,457"),
        (1e-5, "1e-05"),
        (0.0, "0.000"),
    ],
)
def test_cells_are_shown_at_the_precision_they_have(cell, text):
    assert show(cell) == text


def test_a_result_shows_its_table_everywhere():
    class Found(Result):
        def table(self):
            return table()

        def figure(self):
            return new_figure("t", "x (tokens)", "y")

    assert str(Found()) == table().text() and Found()._repr_html_() == table().html()
    assert Found().figure().layout.xaxis.title.text == "x (tokens)"
    assert band("#0072b2") == "rgba(0,114,178,0.15)"


def test_a_problem_knows_what_it_predicts():
    rows, groups = np.arange(4), np.zeros(4, dtype=np.int64)
    assert Problem("p", rows, np.array([0, 1, 1, 0]), groups, ("no", "yes")).target == "binary"
    assert Problem("p", rows, np.array([0, 1, 2, 0]), groups, ("a", "b", "c")).target == "classes"
    assert Problem("p", rows, np.array([0.5, 1, 2, 0]), groups, ()).target == "number"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": np.arange(3)}, "3 rows, 4 labels, 4 groups"),
        ({"rows": np.array([-1, 0, 1, 2])}, "at least 0, got -1"),
        ({"y": np.array([0, 1, 2, 0])}, r"must hold 0\.\.1"),
        ({"y": np.array([0.0, 1, 1, 0])}, r"must hold 0\.\.1"),
        ({"classes": ("one",)}, "two classes or more"),
        ({"classes": (), "y": np.array([0.0, np.nan, 1, np.inf])}, "2 entries"),
    ],
)
def test_a_problem_that_does_not_fit_together_is_refused(changed, message):
    given = {"rows": np.arange(4), "y": np.array([0, 1, 1, 0]), "groups": np.zeros(4, dtype=np.int64), "classes": ("no", "yes")}
    with pytest.raises(ConfigError, match=message):
        Problem("p", **(given | changed))


@pytest.mark.parametrize("shown", ["table", "result"])
def test_a_notebook_shows_the_table_and_not_the_fields(shown):
    from IPython.core.formatters import DisplayFormatter

    @dataclass(frozen=True)
    class Found(Result):
        values: np.ndarray

        def table(self):
            return table()

        def figure(self):
            return new_figure("found", "k", "AUC")

    found = Found(np.zeros(10_000))
    assert repr(found) == str(found) == table().text()
    data, _ = DisplayFormatter().format(table() if shown == "table" else found)
    assert data["text/plain"] == table().text()
    assert data["text/html"] == table().html()
