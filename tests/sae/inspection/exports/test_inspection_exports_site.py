"""The folder of pages: complete, free of the network, safe, and alive in a browser."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from sae.inspection.exports import static_site
from sae.inspection.exports.static_site import write_html
from tests.sae.inspection.exports.exported import EVIL, KINDS, TEXTS, hostile_index, small_index


class Page(HTMLParser):
    """What a page links, loads and holds."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.inline, self.ids, self.tags, self.text = [], [], [], set(), [], ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a":
            self.links.append(found["href"])
        elif tag == "script" or (tag == "link" and found["rel"] == "stylesheet"):
            self.loads.append(found.get("src") or found.get("href"))
            self.inside = tag if tag == "script" else ""
        self.inline += [name for name in found if name.startswith("on") or name == "style"] + (["style"] if tag == "style" else [])

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script" and data.strip():
            self.inline.append(data)
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_every_link_of_every_page_leads_to_a_file_of_the_folder(kind, tmp_path):
    folder = write_html(small_index(kind), tmp_path / "site", latents=[9, 0, 4, 11], provenance=TEXTS)
    pages = sorted(folder.rglob("*.html"))
    assert [str(page.relative_to(folder)) for page in pages] == [f"features/{i}.html" for i in (0, 11, 4, 9)] + ["index.html"]
    for path in pages:
        page = Page(path)
        assert page.loads == [("" if path.name == "index.html" else "../") + f"assets/{name}" for name in static_site.ASSETS]
        assert page.inline == []
        for link in page.links + page.loads:
            name, _, anchor = link.partition("#")
            target = (path.parent / name) if name else path
            assert not re.match(r"[a-z]+:|/", link), link
            assert target.is_file(), link
            assert not anchor or anchor in Page(target).ids, link
        assert "http" not in path.read_text().replace("http-equiv", "")


def test_the_table_lists_the_chosen_features_and_pages_follow_each_other_in_their_order(tmp_path):
    index = small_index("pursuit")
    folder = write_html(index, tmp_path / "site", latents=[9, 0, 4], provenance=TEXTS)
    table = Page(folder / "index.html")
    assert [link for link in table.links if link.startswith("features/")] == [f"features/{i}.html" for i in (9, 0, 4)]
    for word in ("Small Dictionary", "3 of the 20 latents", "Tiny/Model-1", "public domain", "revision: abc123", index.digest):
        assert word in table.text
    middle = (folder / "features/0.html").read_text()
    assert '<link rel="prev" href="9.html">' in middle
    assert '<link rel="next" href="4.html">' in middle
    assert "2 of 3" in Page(folder / "features/0.html").text
    assert 'rel="prev"' not in (folder / "features/9.html").read_text()
    assert 'rel="next"' not in (folder / "features/4.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_shows_random_passages_near_misses_and_what_fires_together(kind, tmp_path):
    index = small_index(kind)
    latent = next(i for i in range(index.d_sae) if index.record(i).near_miss_examples and index.record(i).related["coactivation"])
    record = index.record(latent)
    folder = write_html(index, tmp_path / "site", latents=[latent, record.related["coactivation"][0].index])
    page = Page(folder / f"features/{latent}.html")
    n_passages = sum(map(len, (record.examples, record.negative_examples[:10], record.random_examples, record.near_miss_examples)))
    n_passages += sum(len(interval.examples) for interval in record.intervals)
    assert (folder / f"features/{latent}.html").read_text().count('class="passage"') == n_passages
    for words in ("Random firings", "Near misses", record.near_miss_definition, "Co-active", "Correlated"):
        assert words in page.text
    for name in ("coactivation", "correlation"):
        assert all(f"#{near.index}" in page.text for near in record.related[name])


def test_a_dead_feature_has_a_row_and_a_page_that_say_so(tmp_path):
    folder = write_html(small_index("autoencoder"), tmp_path / "site", latents=[0])
    assert "dead on this corpus" in Page(folder / "index.html").text
    assert "Dead on this corpus" in Page(folder / "features/0.html").text
    assert "not recorded" in Page(folder / "index.html").text


def test_above_a_number_of_features_the_table_is_without_passages(tmp_path, monkeypatch):
    index = small_index("autoencoder")
    assert 'class="snippet"' in (write_html(index, tmp_path / "a", latents=[4, 5]) / "index.html").read_text()
    monkeypatch.setattr(static_site, "MAX_SNIPPETS", 1)
    assert 'class="snippet"' not in (write_html(index, tmp_path / "b", latents=[4, 5]) / "index.html").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_are_shown_and_never_become_markup(kind, tmp_path):
    index = hostile_index(kind)
    folder = write_html(index, tmp_path / "site", title=EVIL[1])
    for path in folder.rglob("*.html"):
        page = Page(path)
        assert page.inline == []
        assert page.tags.count("script") == 1
        assert "img" not in page.tags
    assert EVIL[1] in Page(folder / "index.html").text


# --- in a browser ------------------------------------------------------------------------------------------------------------------------

chromium = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=chromium)
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    context = browser.new_context()
    opened, problems = context.new_page(), []
    opened.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    yield opened
    context.close()
    assert problems == []


def shown(page):
    return page.locator("#features tbody tr:visible").evaluate_all("rows => rows.map((row) => Number(row.id.slice(1)))")


def test_features_are_found_sorted_and_opened_from_the_disk_with_the_state_in_the_address(page, tmp_path):
    index = small_index("pursuit")
    page.goto(f"file://{write_html(index, tmp_path / 'site')}/index.html")
    assert shown(page) == list(range(20))
    page.keyboard.press("/")
    page.keyboard.type("#1")
    page.wait_for_function("document.getElementById('found').textContent.includes('of')")
    assert shown(page) == [1, *range(10, 20)]
    page.click("th[data-sort=density] button")
    density = index.statistics.density
    assert shown(page) == sorted([1, *range(10, 20)], key=lambda latent: (-density[latent], latent))
    assert page.get_attribute("th[data-sort=density]", "aria-sort") == "descending"
    page.click("th[data-sort=density] button")
    order = sorted([1, *range(10, 20)], key=lambda latent: (density[latent], latent))
    assert shown(page) == order
    address = page.url
    assert address.endswith("#q=%231&sort=density&order=ascending")
    page.goto("about:blank")
    page.goto(address)
    assert shown(page) == order
    page.press("#find", "Enter")
    page.wait_for_url(f"**/features/{order[0]}.html")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/features/{order[0] + 1}.html")
    page.click("a.home")
    page.wait_for_url(f"**/index.html#f{order[0] + 1}")


def test_dead_features_can_be_hidden_and_nothing_depends_on_the_script(page, browser, tmp_path):
    index = small_index("autoencoder")
    folder = write_html(index, tmp_path / "site")
    page.goto(f"file://{folder}/index.html")
    page.check("#dead")
    page.wait_for_function("document.getElementById('found').textContent.includes('of')")
    assert shown(page) == [latent for latent in range(20) if index.statistics.n_active[latent]]
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"file://{folder}/index.html")
    assert plain.locator("#features tbody tr").count() == 20
    assert not plain.locator(".finder").is_visible()
    plain.click("#features tbody a >> nth=4")
    assert plain.locator("h1").inner_text().startswith("#4")
    context.close()


def test_hostile_texts_run_nothing_in_a_browser(page, tmp_path):
    folder = write_html(hostile_index("pursuit"), tmp_path / "site", latents=range(6))
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    for name in ["index", *(f"features/{i}" for i in range(6))]:
        page.goto(f"file://{folder}/{name}.html")
    page.goto(f"file://{folder}/index.html#q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&sort=constructor&order=x")
    assert page.input_value("#find") == "<img src=x onerror=alert(1)>"
    assert asked == []
