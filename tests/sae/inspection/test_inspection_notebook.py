"""What a notebook shows of a battery: every number beside its null, escaped, and no more rows than asked for."""

import re

from sae.evaluation.batteries import Finding, Group, Results
from sae.evaluation.figures import Axis, Figure, Series
from sae.inspection.notebook import group_views, summary


def a_finding(name, subject="", value=2.0, stands_out="yes", p=0.001):
    null = {"null_mean": None, "null_sd": None, "n_null": None} if p is None else {"null_mean": 0.25, "null_sd": 0.5, "n_null": 999}
    return Finding(
        name=name, subject=subject, measure="one", value=value, unit="", p=p, alternative="greater", null="draws" if p else "",
        meaning=f"What {name} means.", source="Someone 2001", note="", tries=1, stands_out=stands_out, **null,
    )  # fmt: skip


def results(*findings, figures=()):
    group = Group("one", "atoms", "One <b>measure</b>", "What it asks.", findings, figures, (), {}, 1.0, 0, 1)
    return Results((group,), (), 0.05, 0)


def test_a_view_shows_value_null_p_and_verdict_and_says_once_what_each_quantity_means():
    found = results(
        a_finding("first", "a <script>"), a_finding("first", "b", p=None, stands_out="no null"), a_finding("second", value=None)
    )
    html = group_views(found)[0]._repr_html_()
    assert "0.25" in html and "0.5" in html and "n=999" in html.replace("\u202f", ",")
    assert html.count("What first means.") == 1 and html.count("What second means.") == 1
    assert "<script>" not in html and "One &lt;b&gt;" in html
    cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", html)]
    assert cells[:3] == ["first", "a &lt;script&gt;", "2"] and cells[5] == "yes" and cells[11] == "no null" and cells[14] == "–"
    assert "first, b: 2; null –; p –; stands out: no null" in repr(group_views(found)[0])


def test_of_a_long_table_some_rows_of_every_quantity_are_shown_and_the_rest_counted():
    found = results(*(a_finding(name, f"layer {i}") for name in ("first", "second") for i in range(30)))
    html = group_views(found, n_rows=8)[0]._repr_html_()
    assert html.count("<tr") == 1 + 8 and "52 more rows are not shown" in html
    for name in ("first", "second"):
        assert all(f"layer {i}<" in html for i in (0, 29)) and name in html
    assert "more rows" not in group_views(found, n_rows=60)[0]._repr_html_()


def test_figures_of_a_view_are_those_of_its_measure_and_the_summary_gives_the_rule():
    figure = Figure("Curve", Axis("layer"), Axis("nats"), (Series("model", (0, 1), (1.0, 2.0)),))
    found = results(a_finding("first"), a_finding("second", stands_out="no", p=0.5), figures=(figure,))
    (drawn,) = group_views(found)[0].figures()
    assert list(drawn.data[0].y) == [1.0, 2.0] and drawn.layout.title.text == "Curve"
    assert summary(found).startswith("1 of 2 numbers")
