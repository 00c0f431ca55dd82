"""Cards and reports: what they show, what they escape, and what they do not contain."""

import json
import re
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.inspection import (
    METRICS,
    TELLING_DEFINITION,
    Axis,
    Column,
    Fact,
    FeatureList,
    Figure,
    ReportData,
    Row,
    Rule,
    Section,
    Series,
    Table,
    metric_table,
    write_report,
)
from sae.inspection.charts import figure_chart
from sae.inspection.display import tail
from sae.inspection.format import bits, level, number, passage, percent, visible
from sae.inspection.records import Example
from sae.inspection.report import best_cells
from sae.inspection.svg import Scale, spread
from sae.inspection.vocabulary import bytes_text, piece_text
from tests.sae.inspection.planted_store import (
    HOSTILE,
    built,
    hostile_vocabulary,
    random_autoencoder,
    random_model,
    random_pursuit,
    random_store,
)

ELEMENTS = {
    "html", "head", "meta", "title", "link", "script", "body", "a", "header", "nav", "main", "footer", "section", "aside", "div", "span",
    "h1", "h2", "h3", "p", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure",
    "figcaption", "bdi", "br", "i", "code", "strong", "svg", "rect", "line", "text", "polyline", "polygon", "circle",
}  # fmt: skip
EMPTY = {"meta", "link", "br"}


class Reader(HTMLParser):
    """Collects elements and attributes, and checks that they nest."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.open, self.content = set(), [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.content.append(data)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    folder, store = tmp_path_factory.mktemp("indexes"), random_store()
    labels = {int(d): {"party": HOSTILE} for d in store.documents.unique()}
    options = {"model": random_model(), "vocabulary": hostile_vocabulary(), "labels": labels}
    one = built(folder / "one", store, random_autoencoder(), name=f"TopK {HOSTILE}", **options)
    return one, built(folder / "two", store, random_pursuit(), name="Pursuit", **options)


@pytest.fixture(scope="module")
def cards(indexes):
    """Skin -> the HTML of cards of both dictionaries, dead latents included."""
    return {skin: [index[i].html(skin) for index in indexes for i in (0, 3, 5, 7, 11, 19)] for skin in ("page", "notebook")}


def report(indexes):
    lists = tuple(
        FeatureList(index.manifest.source.dictionary, TELLING_DEFINITION, tuple(index.record(i) for i in (3, 0, 7))) for index in indexes
    )
    figure = Figure(
        f"Error {HOSTILE}", Axis("k", "latents", "log"), Axis("FVU"),
        (Series(HOSTILE, (1.0, 2.0, 4.0), (0.9, 0.5, 0.2)), Series("null", (1.0, 4.0), (0.95, 0.9), (0.9, 0.8), (1.0, 0.95), role="null")),
        rules=(Rule("y", 0.3, HOSTILE), Rule("x", 2.0, "trained")),
    )  # fmt: skip
    bars = Figure("Cosines", Axis("cosine"), Axis("share"), (Series("atoms", (0.0, 0.5, 1.0), (0.2, 0.8), mark="bars"),))
    probes = Table(
        "Probes", (Column("Features"), Column("AUROC", definition="Area.", better="higher")),
        (Row((HOSTILE, 0.8)), Row(("Shuffled labels", 0.5), role="control"), Row(("Dense", 0.9), role="baseline"), Row(("other", 0.7))),
    )  # fmt: skip
    sections = (
        Section("Dictionaries", f"Text {HOSTILE}.\n\nMore.", (metric_table({"TopK": {"fvu": 0.2}, "Pursuit": {"fvu": 0.1}}), probes)),
    )
    return ReportData(
        f"Report {HOSTILE}", "sub", (Fact("Model", HOSTILE, "note"),), (*sections, Section("Geometry", figures=(figure, bars))), lists
    )


@pytest.fixture(scope="module")
def folder(indexes, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report"
    assert write_report(report(indexes), path) == path / "index.html"
    return path


def pages(folder):
    return sorted(folder.rglob("*.html"))


def test_everything_hostile_is_escaped_in_every_page_and_card(cards, folder):
    texts = [page.read_text() for page in pages(folder)]
    alone = cards["page"] + cards["notebook"]
    for html in texts + alone:
        reader = Reader(html)
        assert reader.elements <= ELEMENTS
        assert not any(name.startswith("on") or name in ("src", "srcdoc") for tag, name, _ in reader.attributes if tag != "script")
        assert "\u202e" not in html
    assert any("alert" in "".join(Reader(html).content) for html in alone)
    assert all(Reader(html).elements.isdisjoint({"script"}) for html in alone)
    assert (folder / "index.html").read_text().count("<script") == 1


def test_the_notebook_skin_has_no_script_no_style_element_and_no_address(indexes, cards):
    for html in cards["notebook"]:
        reader = Reader(html)
        assert reader.elements.isdisjoint({"script", "style", "link", "img", "iframe", "a"})
        assert not any(name in ("src", "href") for _, name, _ in reader.attributes)
        assert not re.search(r"https?://|url\(", html)
    assert indexes[0][3]._repr_html_() == cards["notebook"][1]
    assert 'style="background-color:rgba(' in cards["notebook"][1]


def test_the_page_skin_has_no_inline_style(cards, folder):
    for html in cards["page"] + [page.read_text() for page in pages(folder)]:
        assert not any(name == "style" for _, name, _ in Reader(html).attributes)
        assert "<style" not in html


def test_a_report_loads_nothing_from_elsewhere_and_every_link_leads_somewhere(folder):
    for page in pages(folder):
        for tag, name, value in Reader(page.read_text()).attributes:
            if name in ("href", "src"):
                parts = urlsplit(value)
                assert parts.scheme in ("", "data"), (page, value)
                if parts.scheme == "" and parts.path:
                    assert (page.parent / parts.path).resolve().is_file(), (page, tag, value)
                if parts.fragment and not parts.path:
                    assert f'id="{parts.fragment}"' in page.read_text()
    for file in folder.rglob("*"):
        if file.suffix in (".html", ".css", ".js"):
            assert not re.search(r"https?://|@import|url\(|//cdn", file.read_text()), file


def test_feature_pages_lead_to_the_previous_and_the_next(indexes, folder):
    name = sorted(p.name for p in (folder / "features").iterdir())[0]
    first, middle, last = ((folder / "features" / name / f"{i}.html").read_text() for i in (3, 0, 7))
    assert '<link rel="next" href="0.html">' in first
    assert 'rel="prev"' not in first
    assert '<link rel="prev" href="3.html">' in middle
    assert '<link rel="next" href="7.html">' in middle
    assert '<link rel="prev" href="0.html">' in last
    assert 'rel="next"' not in last
    assert "2 of 3" in middle


def test_the_same_data_gives_the_same_bytes_and_goes_through_json(indexes, folder, tmp_path):
    data = report(indexes)
    write_report(data, tmp_path / "again")
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((folder / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    assert from_json(ReportData, json.loads((folder / "report.json").read_text())) == data == from_json(ReportData, to_json(data))


def test_a_report_replaces_a_report_and_nothing_else(indexes, tmp_path):
    data = report(indexes)
    write_report(data, tmp_path / "report")
    (tmp_path / "report" / "features" / "stale.html").write_text("old")
    write_report(data, tmp_path / "report")
    assert not (tmp_path / "report" / "features" / "stale.html").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FormatError, match="holds something that is not a report"):
        write_report(data, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_controls_baselines_and_the_best_result_are_marked(indexes, folder):
    html = (folder / "index.html").read_text()
    assert '<tr class="control">' in html
    assert '<span class="role">control</span>' in html
    assert '<tr class="baseline">' in html
    assert '<span class="role">baseline</span>' in html
    probes = report(indexes).sections[0].tables[1]
    assert [best_cells(probes, row) for row in probes.rows] == [{1}, set(), set(), set()]
    table = metric_table({"a": {"fvu": 0.2, "l0": 3}, "b": {"fvu": 0.1, "l0": 4}})
    assert [best_cells(table, row) for row in table.rows] == [{2}, set()]


def test_every_measure_is_printed_with_its_definition():
    values = dict.fromkeys(METRICS, 0.5)
    table = metric_table({"a": values})
    assert [row.note for row in table.rows] == [metric.definition for metric in METRICS.values()]
    assert all(len(metric.definition) > 5 for metric in METRICS.values())
    with pytest.raises(ConfigError, match="unknown measure 'fuv'; known: fvu"):
        metric_table({"a": {"fuv": 0.1}})


def test_pursuit_cards_show_selection_steps_and_blue_for_negative_values(indexes):
    topk, pursuit = indexes
    signed = next(card for card in pursuit if card.record.negative_examples)
    html = signed.html("page")
    assert "Selection step" in html
    assert "Most negative passages" in html
    assert re.search(r'class="t b\d+', html)
    assert "fixed to this feature" in html
    plain = topk[3].html("page")
    assert "Selection step" not in plain
    assert not re.search(r'class="t b\d+', plain.split("Logit effects")[0])


def test_charts_have_descriptions_axis_names_and_units(indexes, folder):
    html = (folder / "index.html").read_text()
    charts = re.findall(r"<svg[^>]*>", html)
    assert charts
    assert all('role="img"' in c and "aria-label=" in c for c in charts)
    assert "k (latents)" in html
    assert ">FVU<" in html
    assert re.search(r"<text[^>]*>coefficient</text>", indexes[1][3].html())
    assert re.search(r"<text[^>]*>activation</text>", indexes[0][3].html())


def test_an_unknown_skin_bad_series_and_clashing_lists_are_refused(indexes, tmp_path):
    card = indexes[0][3]
    with pytest.raises(ConfigError, match="skin must be 'page' or 'notebook', got 'dark'"):
        card.html("dark")
    with pytest.raises(ConfigError, match=r"y must have 2 numbers to match x, got 1 \(Series 'a'\)"):
        Series("a", (1.0, 2.0), (1.0,))
    with pytest.raises(ConfigError, match="must be finite"):
        Series("a", (1.0,), (float("nan"),))
    with pytest.raises(ConfigError, match="low must have 1 numbers"):
        Series("a", (1.0,), (1.0,), (), (2.0,))
    with pytest.raises(ConfigError, match="x must be positive on a log axis, got 0"):
        Figure("f", Axis("x", scale="log"), Axis("y"), (Series("a", (0.0,), (1.0,)),))
    with pytest.raises(ConfigError, match="rows must have 1 cells like the columns, got 2"):
        Table("t", (Column("a"),), (Row((1, 2)),))
    with pytest.raises(ConfigError, match="got 'a' twice"):
        write_report(ReportData("t", features=(FeatureList("A", "", ()), FeatureList("a", "", ()))), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_extreme_figures_are_drawn_without_error():
    for figure in (
        Figure("one point", Axis("x"), Axis("y"), (Series("a", (1.0,), (0.0,)),)),
        Figure("flat", Axis("x", scale="log"), Axis("y", scale="log"), (Series("a", (3.0, 30.0), (2.0, 2.0)),)),
        Figure("negative", Axis("x"), Axis("y"), (Series("a", (-1.0, 0.0), (-5.0, -5.0)),)),
        Figure("log bars", Axis("x"), Axis("y", scale="log"), (Series("a", (0.0, 1.0, 2.0), (0.0, 3.0), mark="bars"),)),
    ):
        svg = str(figure_chart(figure))
        assert "nan" not in svg
        assert "inf" not in svg.replace("info", "")
        for value in re.findall(r'(?:x|y|cx|cy|x1|x2|y1|y2)="(-?[\d.]+)"', svg):
            assert -200 <= float(value) <= 800


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0, "0"), (12, "12"), (1234567, "1\u202f234\u202f567"), (0.12345, "0.123"), (-2.5, "−2.50"),
     (9.999, "10.0"), (123.4, "123"),
     (4.2e-5, "4.2×10⁻⁵"), (6.02e23, "6.02×10²³"), (None, "–"), (1000.0, "1\u202f000")],
)  # fmt: skip
def test_numbers_are_written_for_reading(value, text):
    assert number(value) == text


def test_shares_and_bits_are_written_for_reading():
    assert (percent(0.5), percent(0), percent(1.0), percent(0.00012)) == ("50\u202f%", "0\u202f%", "100\u202f%", "0.012\u202f%")
    assert (bits(-0.001), bits(1.239), bits(-0.5)) == ("0.00", "1.24", "−0.50")


def test_invisible_characters_have_glyphs():
    assert visible(" a\tb\n", spaces=True) == "·a⇥b↵"
    assert visible(" a") == " a"
    assert visible("") == "∅"
    assert visible("\x1b\x00\u202e\u200b") == "⟨1B⟩␀⟨202E⟩⟨200B⟩"


def test_byte_pieces_are_named():
    assert bytes_text(b"caf\xc3\xa9") == "café"
    assert bytes_text(b"a\xe2\x80") == "a⟨E2⟩⟨80⟩"
    assert bytes_text(b"\xe2\x80x\xffy") == "⟨E2⟩⟨80⟩x⟨FF⟩y"
    assert piece_text("<0xE2>") == "⟨E2⟩"
    assert piece_text("â") == "⟨E2⟩"
    assert piece_text("Ġdog") == " dog"
    assert piece_text("日") == "日"


def test_levels_are_thirty_two_equal_steps_fixed_to_the_peak():
    assert [level(v, 8.0) for v in (0.0, 1e-9, 0.25, 0.26, -8.0, 8.0)] == [0, 1, 1, 2, 32, 32]
    assert {level(i / 1000, 1.0) for i in range(1, 1001)} == set(range(1, 33))


def test_a_passage_keeps_every_token_in_order():
    example = Example(1, 0, 2, (" a", "b\n", "<i>", "c", "\n", " d"), (0.0, 0.0, 2.0, 0.0, -1.0, 0.0), 2, {})
    p = passage(example, 2.0)
    assert [s.text for s in p.left] == [" ab↵"]
    assert p.left[0].breaks
    assert (p.peak.text, p.peak.level, p.peak.title) == ("<i>", 32, "<i>  2.00")
    assert [(s.text, s.level, s.negative) for s in p.right] == [("c", 0, False), ("↵", 16, True), (" d", 0, False)]
    assert [s.text for s in tail(p.left, 2)] == ["b↵"]


def test_labels_are_moved_apart_within_their_room():
    assert spread([10.0, 11.0, 50.0], 16, 0, 100) == [10.0, 26.0, 50.0]
    assert spread([98.0, 99.0], 16, 0, 100) == [84.0, 100.0]
    assert Scale(1.0, 100.0, 0, 200, log=True)(10.0) == pytest.approx(100)
