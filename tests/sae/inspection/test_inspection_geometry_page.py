"""The page of a geometry battery, and its figures in both renderers: the same numbers, names and null marks everywhere."""

import json
import re
from html.parser import HTMLParser

import pytest

from sae.errors import ConfigError
from sae.evaluation.batteries import Finding, Group, Results
from sae.evaluation.batteries.wording import interval_text, null_text, p_text, value_text
from sae.evaluation.figures import Axis, Figure, HeatMap, Rule, Series
from sae.inspection import Fact, write_report
from sae.inspection.charts import figure_chart
from sae.inspection.geometry_page import distance, findings_json, geometry_report, rule, write_findings
from sae.inspection.heatmaps import strength
from sae.inspection.interactive import NULL, to_plotly
from sae.inspection.svg import PALETTE, log_ticks

HOSTILE = "<script>alert('x')</script>"


def a_finding(name="q", subject="", value=1.5, p=0.001, stands_out="yes", n_null=999, **more):
    null = {"null_mean": None, "null_sd": None, "n_null": None} if p is None else {"null_mean": 0.25, "null_sd": 0.5, "n_null": n_null}
    options = {"measure": "one", "unit": "", "alternative": "greater", "null": "" if p is None else "draws", "meaning": "It means this.",
               "source": "Someone 2001", "note": "", "tries": 1} | null | more  # fmt: skip
    return Finding(name=name, subject=subject, value=value, p=p, stands_out=stands_out, **options)


def figures():
    line = Figure(
        "Curve", Axis("rank", scale="log"), Axis("share", "bits", "log"),
        (Series("chance", (1, 10, 100), (1.0, 0.5, 0.1), (0.9, 0.4, 0.05), (1.1, 0.6, 0.2), role="null"),
         Series("atoms", (1, 10, 100), (3.0, 0.4, 0.02))),
        (Rule("x", 20.0, "here"), Rule("y", 0.3, "bound")), "A caption.",
    )  # fmt: skip
    bars = Figure("Counts", Axis("cosine"), Axis("share"), (
        Series("atoms", (0.0, 0.5, 1.0), (0.2, 0.8), mark="bars"), Series("chance", (0.0, 0.5, 1.0), (0.9, 0.1), mark="bars", role="null")))  # fmt: skip
    cloud = Figure("Plane", Axis("component 1"), Axis("component 2"), (
        Series("tokens", tuple(float(i % 7) for i in range(60)), tuple(float(i % 5) for i in range(60)), mark="points"),), equal=True)  # fmt: skip
    names = ("TwoNN", "GRIDE", "ML")
    dots = Figure("Estimators", Axis("estimator", names=names), Axis("dimension"), (
        Series("estimates", (0, 1, 2), (5.0, 6.0, 7.0), (4.0, 5.5, 6.5), (6.0, 6.5, 7.5), mark="points", labels=names),))  # fmt: skip
    layers = tuple(str(i) for i in range(30))
    heat = HeatMap("CKA", Axis("site", names=layers), Axis("site", names=layers), tuple(tuple(1 - abs(i - j) / 30 for j in range(30)) for i in range(30)),
                   "CKA", 0.0, 1.0, "Near layers are alike.")  # fmt: skip
    signed = HeatMap(
        "Cosines",
        Axis("latent", names=("a", "b", "c")),
        Axis("latent", names=("a", "b")),
        ((1.0, -0.5, None), (0.25, 0.0, -1.0)),
        "cosine",
        -1.0,
        1.0,
    )
    frontier = Figure("Frontier", Axis("L0", scale="log"), Axis("FVU", scale="log"), (
        Series("a", (31.9,), (0.2,), (0.1,), (0.3,), mark="points", labels=("a",), named=True),
        Series("b", (32.0,), (0.201,), mark="points", labels=("b",), named=True),
        Series("c", (38.0,), (0.15,), mark="points", labels=("c",), named=True)))  # fmt: skip
    return line, bars, cloud, dots, heat, signed, frontier


def results(findings=None):
    findings = findings or (
        a_finding("first", value=2.0, unit="atoms"),
        a_finding("second", "a site", 0.123456, p=0.4, stands_out="no", note="100 tokens"),
        a_finding("second", "another site", 0.223456, p=0.3, stands_out="no"),
        a_finding("third", value=3.14, p=None, stands_out="no null"),
        a_finding(f"fourth {HOSTILE}", HOSTILE, 9.0, p=0.05, n_null=19, stands_out="too few draws"),
    )
    group = Group("one", "atoms", f"Title {HOSTILE}", "What is asked.", tuple(findings), figures(), ("A note.",), {"n_null": 99}, 1.5, 0, 1)
    return Results((group,), (("two", f"cannot {HOSTILE}"),), 0.05, 7)


class Reader(HTMLParser):
    """Texts of the cells of tables, rows of them, and the tags."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.cell, self.tags = [], None, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    data = geometry_report(results(), title=f"Geometry {HOSTILE}", facts=[Fact("Dictionary", HOSTILE)])
    write_report(data, folder / "report")
    write_findings(results(), folder / "findings.json", inputs={})
    return folder


def test_every_number_of_the_tables_is_one_of_the_findings(page):
    found = [f for group in json.loads((page / "findings.json").read_text())["groups"] for f in group["findings"]]
    reader = Reader((page / "report" / "index.html").read_text())
    listed = [row for row in reader.rows if len(row) == 7 and row[5] in ("yes", "no", "no null", "too few draws")]
    assert len(listed) == len(found) == 5
    for row, f in zip(listed, found, strict=True):
        finding = Finding(**f)
        expected = [value_text(finding), null_text(finding), p_text(finding), f["stands_out"]]
        assert [" ".join((text or "–").split()) for text in expected] == row[2:6]
        assert row[0] == f["name"]
        assert row[1] in (f["subject"], "–")


def test_the_page_says_what_numbers_mean_once_and_what_stands_out_first(page):
    html = (page / "report" / "index.html").read_text()
    reader = Reader(html)
    seconds = [row for row in reader.rows if row and row[0] == "second"]
    assert "It means this. Null: draws. Source: Someone 2001. 100 tokens." in seconds[0][-1]
    assert seconds[1][-1] == ""
    assert html.index("Furthest from chance") < html.index("Findings")
    assert "1 of 4 numbers that have a null stand out: Benjamini–Hochberg over all 4" in html
    assert "marked “too few draws”; there is 1." in html
    assert "What could not be measured" in html
    assert "seed 7" in html
    assert re.search(r'<td class="x best"><bdi>yes</bdi>', html)


def test_many_numbers_are_spans_first_and_all_of_them_behind_the_figures(tmp_path):
    sites = [f"blocks.{i}.hook_resid_post" for i in range(15)]
    findings = [a_finding("rank", site, 10.0 + i, stands_out="yes" if i % 3 else "no") for i, site in enumerate(sites)]
    findings += [a_finding("slope", site, None if i == 2 else -1.0 * i, p=None, stands_out="no null") for i, site in enumerate(sites)]
    write_report(geometry_report(results(findings), title="Many", facts=[]), tmp_path / "report")
    html = (tmp_path / "report" / "index.html").read_text()
    rows = Reader(html).rows
    assert ["rank", "15", "10 to 24", "0.250", "10 of 15"] in [row[:5] for row in rows]
    assert ["slope", "15", "−14 to 0", "–", "no null"] in [row[:5] for row in rows]
    listed = [row for row in rows if len(row) == 7 and row[0] in ("rank", "slope")]
    assert [row[1] for row in listed] == sites * 2
    assert html.index("<figure>") < html.index("<summary>All 30 numbers</summary>")
    # The overview names a quantity once, where it is furthest from its null.
    first = next(row for row in rows if row[0] == "rank")
    assert first[1] == sites[14]


def test_what_is_hostile_is_escaped_and_nothing_is_loaded_from_elsewhere(page):
    html = (page / "report" / "index.html").read_text()
    assert html.count("<script") == 1
    assert not re.search(r"https?://|@import|style=", html)


def test_the_text_of_nulls_and_p_values():
    assert null_text(a_finding()) == "0.250 ± 0.50 (n=999)"
    assert null_text(a_finding(n_null=None)) == "0.250 ± 0.50 (exact)"
    assert null_text(a_finding(p=None)) == "–"
    assert (p_text(a_finding()), p_text(a_finding(p=0.002)), p_text(a_finding(p=None))) == ("≤0.0010", "0.0020", "–")
    assert p_text(a_finding(p=1e-200, n_null=None)) == "<10⁻¹²"
    assert (value_text(a_finding(value=3.0, unit="atoms")), value_text(a_finding(value=None))) == ("3 atoms", None)
    assert distance(a_finding()) == pytest.approx(2.5)
    assert distance(a_finding(p=None)) is None
    assert "0 of 0" in rule(Results((), (), 0.05, 0))


def test_findings_json_holds_the_rule_the_settings_and_the_figures():
    data = findings_json(results(), inputs={"Store": "x"})
    assert data["rule"] == {"method": "Benjamini-Hochberg", "rate": 0.05, "n": 4}
    assert data["groups"][0]["settings"] == {"n_null": 99}
    assert [f["title"] for f in data["groups"][0]["figures"]] == [f.title for f in figures()]
    assert data["inputs"] == {"Store": "x"}


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: figure.title)
def test_both_renderers_show_the_same_names_axes_and_nulls(figure):
    svg, plotly = str(figure_chart(figure)), to_plotly(figure)
    assert "nan" not in svg
    layout = plotly.layout
    assert layout.title.text == figure.title
    for axis, drawn in ((figure.x, layout.xaxis), (figure.y, layout.yaxis)):
        label = axis.label + (f" ({axis.unit})" if axis.unit else "")
        assert drawn.title.text == label
        assert f">{label}</text>" in svg
        assert (drawn.type == "log") == (axis.scale == "log")
    if isinstance(figure, HeatMap):
        assert [list(row) for row in plotly.data[0].z] == [list(row) for row in figure.values]
        assert svg.count('class="cell') >= sum(v is not None for row in figure.values for v in row)
        return
    assert [rule.label for rule in figure.rules] == [note.text for note in layout.annotations]
    assert all(rule.label in svg for rule in figure.rules)
    for i, series in enumerate(figure.series):
        trace = next(t for t in plotly.data if t.name == series.name)
        colour = NULL if series.role == "null" else PALETTE[[s.name for s in figure.series if s.role == "result"].index(series.name)]
        assert trace.line.color == colour, i
        assert (trace.line.dash == "dash") == (series.role == "null")
        assert colour in svg
        assert tuple(trace.y)[: len(series.y)] == series.y
        assert len(figure.series) == 1 or f">{series.name}</text>" in svg


def test_a_null_is_dashed_and_grey_and_a_log_axis_has_ticks_in_the_drawing():
    svg = str(figure_chart(figures()[0]))
    assert re.search(r'<polyline[^>]*class="line null"[^>]*stroke-dasharray="5 4"', svg)
    assert re.search(r'<polygon[^>]*class="band null"', svg)
    for tick in ("0.1", "1", "10", "100"):
        assert f">{tick}</text>" in svg


def test_labels_stand_beside_their_points_and_not_on_each_other():
    svg = str(figure_chart(figures()[-1]))
    places = {
        name: (float(x), float(y)) for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*class="name halo[^>]*>(a|b)<', svg)
    }
    assert set(places) == {"a", "b"}
    assert abs(places["a"][1] - places["b"][1]) >= 15
    points = [float(x) for x in re.findall(r'<circle[^>]*cx="([\d.]+)"', svg)]
    assert 0 < abs(places["a"][0] - points[0]) < 24
    with pytest.raises(ConfigError, match="named must be False without labels of points"):
        Series("a", (1.0,), (1.0,), mark="points", named=True)


def test_a_log_axis_of_near_values_is_widened_and_keeps_round_ticks():
    svg = str(figure_chart(figures()[-1]))
    ticks = [float(tick) for tick in re.findall(r'text-anchor="middle"[^>]*>([\d.]+)</text>', svg)]
    assert ticks == [30.0, 40.0]
    assert log_ticks(0.13, 0.65) == pytest.approx([0.2, 0.4, 0.6])
    assert log_ticks(1, 1000) == [1.0, 10.0, 100.0, 1000.0]


def test_intervals_and_formulas_have_their_place_and_empty_columns_none(tmp_path):
    found = [a_finding("first", value=0.25, p=None, stands_out="no null", low=0.22, high=0.28, formula="sum_t |x_t| < 3"),
             a_finding("second", value=2.0, p=None, stands_out="no null")]  # fmt: skip
    write_report(geometry_report(results(found), title="Intervals", facts=[]), tmp_path / "report")
    html = (tmp_path / "report" / "index.html").read_text()
    rows = Reader(html).rows
    assert ["quantity", "value", "95 % interval", "What it means"] in rows
    assert ["first", "0.2500", "0.220 to 0.280", "sum_t |x_t| < 3It means this. Source: Someone 2001."] in rows
    assert ["second", "2", "–", "It means this. Source: Someone 2001."] in rows
    assert '<span class="formula">sum_t |x_t| &lt; 3</span>' in html


def test_an_interval_is_written_to_two_digits_of_its_width():
    def text(low, high):
        return interval_text(a_finding(value=(low + high) / 2, low=low, high=high))

    assert text(0.1307, 0.1388) == "0.1307 to 0.1388"
    assert text(0.1, 0.3) == "0.10 to 0.30"
    assert text(-12.34, 56.78) == "−12 to 57"
    assert text(32.0, 32.0) == "32"
    assert text(1e-9, 2e-9) == "1×10⁻⁹ to 2×10⁻⁹"
    assert text(-0.001, 0.02) == "−0.001 to 0.020"
    assert interval_text(a_finding()) is None


def test_a_plane_has_the_same_unit_on_both_axes():
    svg = str(figure_chart(figures()[2]))
    points = [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(points) == 60
    width, height = (max(p[k] for p in points) - min(p[k] for p in points) for k in (0, 1))
    assert width / 6 == pytest.approx(height / 4, rel=1e-3)
    assert to_plotly(figures()[2]).layout.yaxis.scaleanchor == "x"


def test_heat_maps_fade_to_nothing_at_the_low_end_and_at_zero():
    one_sided, two_sided = figures()[4:6]
    assert [strength(v, one_sided) for v in (0.0, 0.5, 1.0, 2.0)] == [0.0, 0.5, 1.0, 1.0]
    assert [strength(v, two_sided) for v in (-1.0, 0.0, 0.25)] == [-1.0, 0.0, 0.25]
    assert str(figure_chart(two_sided)).count("<rect") == 5 + 12  # the empty cell is not drawn


def test_figures_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="values must be 1 rows of 2 numbers like the names of the axes"):
        HeatMap("h", Axis("x", names=("a", "b")), Axis("y", names=("c",)), ((1.0,),), "v", 0.0, 1.0)
    with pytest.raises(ConfigError, match="low must be below high"):
        HeatMap("h", Axis("x", names=("a",)), Axis("y", names=("c",)), ((1.0,),), "v", 1.0, 1.0)
    with pytest.raises(ConfigError, match="equal must be False on a log axis"):
        Figure("f", Axis("x", scale="log"), Axis("y"), (Series("a", (1.0,), (1.0,)),), equal=True)
    with pytest.raises(ConfigError, match="scale must be linear for an axis of names"):
        Axis("x", scale="log", names=("a",))
    with pytest.raises(ConfigError, match="labels must be 2 to match x"):
        Series("a", (1.0, 2.0), (1.0, 2.0), labels=("one",))
    with pytest.raises(ConfigError, match="x must ascend"):
        Series("a", (1.0, 1.0, 2.0), (1.0, 2.0), mark="bars")
