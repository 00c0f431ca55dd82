"""The pages in a browser: the main paths, with script and without, in light and dark. Nothing is asked of another machine and nothing complains."""

import shutil
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.sae.inspection.pages.page_server import addresses, context_of, create_app

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return context_of(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def base(context):
    """The address of a running server."""
    server = uvicorn.Server(uvicorn.Config(create_app(context), host="127.0.0.1", port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """Pages of one test, whose requests and complaints are kept."""

    def __init__(self, browser, base):
        self.browser, self.base, self.foreign, self.complaints, self.contexts = browser, base, [], [], []

    def page(self, address="/", **options):
        context = self.browser.new_context(base_url=self.base, **{"viewport": {"width": 1280, "height": 900}} | options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", self._asked)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(address)
        return page

    def _asked(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname not in LOOPBACK:
            self.foreign.append(request.url)


@pytest.fixture
def visit(browser, base):
    visit = Visit(browser, base)
    yield visit
    for context in visit.contexts:
        context.close()
    assert visit.foreign == []
    assert visit.complaints == []


def ready(page):
    """Waits until the modules have run."""
    page.wait_for_selector("html[data-script=ready]", state="attached")
    return page


def until(page, expression):
    """Waits until the expression is true; the policy of the pages keeps the browser from polling it itself."""
    deadline = time.monotonic() + 20
    while True:
        try:
            if page.evaluate(expression):
                return
        except playwright.Error as error:  # a page that is being left
            if "context was destroyed" not in str(error).lower():
                raise
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


def shoot(page, folder, name):
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 5_000


def test_from_the_sources_to_a_feature(visit, tmp_path):
    page = visit.page()
    shoot(page, tmp_path, "sources")
    page.click("text=topk")
    assert page.locator("tbody tr").count() > 5
    shoot(page, tmp_path, "table")
    first = page.locator("tbody th a").first
    name = first.inner_text()
    first.click()
    assert page.locator("h1").inner_text().startswith(name)
    assert page.locator("#examples .kwic-line").count() > 0
    shoot(page, tmp_path, "feature")


def test_slash_focuses_the_search_which_finds_tokens_and_numbers(visit):
    page = ready(visit.page("/s/topk"))
    page.keyboard.press("/")
    page.keyboard.type("w3")
    page.keyboard.press("Enter")
    page.wait_for_url("**/s/topk?q=w3")
    assert "best first" in page.locator(".count").inner_text()
    assert page.locator("tbody tr").count() > 1
    page.fill("#find", "#8")
    page.press("#find", "Enter")
    page.wait_for_url("**/s/topk/f/8")


def test_sorting_swaps_the_table_and_the_address_and_back_undoes_it(visit):
    page = ready(visit.page("/s/topk"))
    page.evaluate("window.stays = true")
    before = page.locator("tbody th").all_inner_texts()
    page.click("thead >> text=density")
    page.wait_for_url("**/s/topk?sort=density")
    page.wait_for_selector("th[aria-sort=descending] >> text=density")
    after = page.locator("tbody th").all_inner_texts()
    assert sorted(before) == sorted(after) and before != after
    page.click("thead >> text=density")
    page.wait_for_url("**/s/topk?sort=density&order=asc")
    page.wait_for_selector("th[aria-sort=ascending] >> text=density")
    page.go_back()
    page.go_back()
    until(page, "!location.search")
    until(page, f"document.querySelector('tbody th')?.innerText === {before[0]!r}")
    assert page.evaluate("window.stays")


def test_filtering_by_the_form_and_by_a_bar(visit):
    page = ready(visit.page("/s/topk"))
    page.fill("input[name=token]", "w3")
    page.click("text=Filter")
    page.wait_for_url("**/s/topk?token=w3&alive=alive")
    page.wait_for_selector("text=features match")
    chips = page.locator("tbody tr").first.locator(".chips")
    assert chips.count() == 1
    page.click("text=clear")
    page.wait_for_selector("text=most telling first")
    page.locator(".distribution a").first.click()
    page.wait_for_url("**min_density=**")
    assert page.locator("tbody tr").count() >= 1


def test_tabs_and_contexts_change_the_passages_and_the_address(visit):
    page = ready(visit.page("/s/topk/f/14"))
    page.click(".tabs >> text=Across the range")
    page.wait_for_url("**tab=intervals")
    page.wait_for_selector("#examples h3")
    page.click(".contexts >> text=full")
    page.wait_for_url("**tab=intervals&context=full")
    page.wait_for_selector(".prose-passage")
    page.reload()
    assert page.locator(".prose-passage").count() > 0


def test_pointing_at_a_token_marks_its_value_in_the_histogram(visit):
    page = ready(visit.page("/s/topk/f/14"))
    token = page.locator("#examples bdi[data-v]").first
    token.hover()
    marker = page.locator("svg.values .marker")
    marker.wait_for(state="attached")
    chart = page.locator("svg.values")
    value, low, high, left, right = (
        float(each)
        for each in (token.get_attribute("data-v"), *(chart.get_attribute(f"data-{name}") for name in ("low", "high", "left", "right")))
    )
    assert float(marker.get_attribute("x1")) == pytest.approx(left + (value - low) / (high - low) * (right - left), abs=0.01)
    assert "of its firings" in page.locator("#tip").inner_text()
    page.mouse.move(5, 5)
    marker.wait_for(state="detached")
    assert token.get_attribute("title")


def test_keys_turn_pages_and_help_says_which(visit):
    page = ready(visit.page("/s/topk?sort=max"))
    order = [text.removeprefix("#") for text in page.locator("tbody th").all_inner_texts()]
    page.locator("tbody th a").nth(1).click()
    page.wait_for_url(f"**/s/topk/f/{order[1]}?sort=max")
    for key, expected in (("ArrowRight", order[2]), ("ArrowLeft", order[1]), ("ArrowLeft", order[0])):
        ready(page).keyboard.press(key)
        page.wait_for_url(f"**/s/topk/f/{expected}?sort=max")
    ready(page).keyboard.press("2")
    page.wait_for_url("**tab=intervals**")
    page.keyboard.press("t")
    assert page.evaluate("document.activeElement.id") == "test"
    page.keyboard.type("r?")
    assert page.input_value("#test") == "r?"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog#shortcuts").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    page.wait_for_url("**/s/topk?sort=max")
    ready(page).keyboard.press("r")
    page.wait_for_url("**/s/topk/f/*")


def test_a_typed_text_shows_tokens_and_features_and_sorts_by_a_token(visit, tmp_path):
    page = ready(visit.page("/s/topk/text"))
    page.keyboard.press("t")
    page.keyboard.type("some lengthy words")
    page.keyboard.press("Enter")
    page.wait_for_url("**/s/topk/text?text=some+lengthy+words**")
    ready(page)
    assert page.locator(".strip a").count() == 3
    page.click(".strip a:nth-of-type(2)")
    page.wait_for_url("**at=2**")
    page.wait_for_selector("text=Features at")
    assert page.locator("#encoded tbody tr").count() == 2
    before = page.locator(".strip bdi").nth(0).get_attribute("class")
    page.locator("#encoded tbody tr", has_text="#12").hover()
    until(page, "document.querySelector('.strip bdi').className === ''")
    assert "on this text" in page.locator("#means").inner_text()
    page.mouse.move(5, 5)
    until(page, f"document.querySelector('.strip bdi').className === {before!r}")
    shoot(page, tmp_path, "text")


def test_the_test_box_colours_the_text_by_the_feature(visit):
    page = ready(visit.page("/s/topk/f/3"))
    page.fill("#test", "some words")
    page.press("#test", "Enter")
    page.wait_for_selector("#testing .strip")
    assert "Fires on 2 tokens" in page.locator("#testing").inner_text()
    assert "text=some+words" in page.url
    page.fill("#test", "word " * 60)
    page.press("#test", "Enter")
    page.wait_for_selector("text=limit is 50")


def test_features_are_compared_side_by_side(visit, tmp_path):
    page = ready(visit.page("/s/topk/compare"))
    page.fill("#test", "8, 14")
    page.press("#test", "Enter")
    page.wait_for_selector("text=Every two of them")
    assert page.locator(".column").count() == 2
    page.fill("#test", "3")
    page.press("#test", "Enter")
    until(page, "document.querySelectorAll('.column').length === 3")
    assert page.locator(".block tbody tr").count() == 3
    page.locator(".column bdi[data-v]").first.hover()
    page.wait_for_selector(".column >> nth=0 >> .marker", state="attached")
    shoot(page, tmp_path, "compare")
    page.locator("text=remove").first.click()
    until(page, "document.querySelectorAll('.column').length === 2")


def test_the_map_is_drawn_named_searched_and_leads_to_features(visit, tmp_path):
    page = ready(visit.page("/s/topk/map"))
    page.wait_for_selector("#map.drawn canvas")
    coloured = """c => {
      const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      let n = 0;
      for (let i = 3; i < data.length; i += 4) n += data[i] > 0;
      return n;
    }"""
    assert page.locator("canvas").evaluate(coloured) > 50
    points = page.request.get("/s/topk/map.json").json()
    box = page.locator("canvas").bounding_box()
    x, y = (box["x"] + 20 + (box["width"] - 40) * points["x"][4], box["y"] + 20 + (box["height"] - 40) * (1 - points["y"][4]))
    page.mouse.move(x + 1, y)
    page.wait_for_selector("#tip:visible")
    name = page.locator("#tip bdi").inner_text().split()[0]
    page.fill("#map-find", name)
    assert page.locator("#map-said").inner_text() == "1 found"
    shoot(page, tmp_path, "map")
    page.click("text=largest value")
    page.wait_for_url("**by=max")
    page = ready(visit.page("/s/topk/map"))
    page.wait_for_selector("#map.drawn canvas")
    page.mouse.click(x + 1, y)
    page.wait_for_url(f"**/s/topk/f/{name.removeprefix('#')}")


def test_a_document_shows_what_fires_at_a_token(visit, tmp_path):
    page = ready(visit.page("/s/topk/f/8"))
    page.locator(".more a").first.click()
    page.wait_for_url("**/doc/**at=**")
    assert page.locator(".strip .chosen").count() == 1
    assert "#8" in page.locator("aside tbody").inner_text()
    ready(page)
    other = page.locator(".strip a:not(.chosen)").first
    at = parse_qs(urlsplit(other.get_attribute("href")).query)["at"][0]
    other.click()
    until(page, f"location.search.includes('at={at}&') && document.querySelectorAll('.strip a.chosen').length === 1")
    assert f"at={at}&" not in page.locator(".strip a.chosen").get_attribute("href")  # once more, and no token is chosen
    shoot(page, tmp_path, "document")


def test_a_label_is_added_without_leaving_the_page(visit):
    page = ready(visit.page("/s/topk/f/13"))
    page.fill("#new-label", "a <b>name</b>")
    page.press("#new-label", "Enter")
    page.wait_for_selector("h1 >> text=a <b>name</b>")
    assert page.locator("h1 b").count() == 0


def test_a_list_is_made_and_a_feature_kept_in_it(visit):
    page = ready(visit.page("/lists"))
    page.fill("input[name=name]", "months")
    page.fill("input[name=title]", "Months of the year")
    page.click("text=Make a list")
    page.click("tbody >> text=Months of the year")
    assert "The list is empty" in page.locator("tbody").inner_text()
    page = ready(visit.page("/s/topk/f/14"))
    page.select_option("#to-list", "months")
    page.fill("#list-comment", "a reason")
    page.click("text=Keep")
    page.click(".labels-box p a")
    assert "a reason" in page.locator("tbody").inner_text()
    page = ready(visit.page("/s/topk/f/13"))
    page.select_option("#to-list", "kept")
    page.click("text=Keep")
    page.wait_for_selector("text=are not served; it is left as it is")


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_follows_the_system_the_button_and_the_address(visit, tmp_path):
    dark = ready(visit.page("/s/topk/f/8", color_scheme="dark"))
    light = ready(visit.page("/s/topk/f/8", color_scheme="light"))
    night, day = background(dark), background(light)
    assert night != day
    shoot(dark, tmp_path, "dark")
    light.click("#theme")
    assert background(light) == night
    light.goto("/s/topk")
    assert background(light) == night
    ready(light).keyboard.press("d")
    assert background(light) == day
    assert background(visit.page("/s/topk?theme=dark", color_scheme="light")) == night


def test_without_script_links_and_forms_do_everything(visit, tmp_path):
    page = visit.page("/", java_script_enabled=False)
    page.click("text=topk")
    page.click("thead >> text=density")
    assert "sort=density" in page.url
    page.fill("input[name=token]", "w3")
    page.click("text=Filter")
    assert "token=w3" in page.url and "sort=density" in page.url
    page.locator("tbody th a").first.click()
    page.click(".tabs >> text=Across the range")
    assert page.locator("#examples h3").count() > 0
    page.click(".contexts >> text=full")
    assert page.locator(".prose-passage").count() > 0
    page.fill("#test", "some words")
    page.click("button >> text=Encode")
    assert page.locator("#testing .strip").count() == 1
    page.locator(".prose-passage .more, .prose-passage a").first.click()
    assert page.locator(".strip .chosen").count() == 1
    page.goto("/s/topk/map")
    assert page.locator("#map svg a").count() > 5
    page.locator("#map svg a").first.click(force=True)
    assert "/f/" in page.url
    page.goto("/s/topk/text?text=some+words")
    page.click(".strip a:nth-of-type(1)")
    assert "Features at" in page.locator("#encoded").inner_text()
    page.fill("#find", "w3")
    page.press("#find", "Enter")
    assert "q=w3" in page.url
    page.click("#theme")
    assert "theme=dark" in page.url
    shoot(page, tmp_path, "no-script")


CHECK = """() => {
  const named = (e) => (e.getAttribute("aria-label") || e.getAttribute("title") || e.textContent || e.labels?.[0]?.textContent || "").trim();
  const shown = (e) => e.checkVisibility() && !e.closest("[aria-hidden=true]");
  const found = [];
  for (const e of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, canvas, svg[role=img]"))
    if (shown(e) && !named(e) && !e.labels?.length) found.push("unnamed " + e.outerHTML.slice(0, 90));
  const levels = [...document.querySelectorAll("h1, h2, h3")].filter(shown).map((e) => Number(e.tagName[1]));
  if (levels[0] !== 1 || levels.filter((l) => l === 1).length !== 1) found.push("headings " + levels);
  if (document.documentElement.scrollWidth > innerWidth + 1) {
    const beyond = (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, .right");
    const wide = [...document.querySelectorAll("body *")].filter((e) => shown(e) && beyond(e));
    found.push("wider than the window: " + wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 120)).join(" | "));
  }
  return found;
}"""


def test_every_page_names_its_parts_and_fits_the_window(visit, context):
    page = visit.page()
    for address in addresses(context):
        page.goto(address)
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(CHECK) == [], (address, width)


def test_focus_is_visible_on_everything_that_the_tab_key_reaches(visit):
    page = ready(visit.page("/s/topk/f/8"))
    for _ in range(25):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return e === document.body || s.outlineStyle !== 'none' || s.borderColor === getComputedStyle(document.querySelector('a')).color; })()"
        )
        assert seen, page.evaluate("document.activeElement.outerHTML")


def test_print_leaves_out_what_paper_cannot_use(visit, tmp_path):
    page = ready(visit.page("/s/topk/f/8", color_scheme="dark"))
    page.emulate_media(media="print")
    assert background(page) == "rgb(255, 255, 255)"
    assert not page.locator("header").is_visible()
    assert page.locator("#examples .kwic-line").first.is_visible()
    shoot(page, tmp_path, "print")
