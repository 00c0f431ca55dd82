"""The pages as HTML: complete without script, escaped, with nothing that a strict policy forbids, every state in the address."""

import math
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("httpx")
from starlette.testclient import TestClient

from sae.inspection.server.security import POLICY
from tests.sae.inspection.pages.page_server import HOSTILE, addresses, context_of, create_app

EMPTY = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; elements must nest."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.open, self.scripts, self.ids = [], [], [], [], []
        self.labelled, self.fields, self.parts = set(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append((tag, given))
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "label" and "for" in given:
            self.labelled.add(given["for"])
        if tag in ("input", "select", "textarea") and given.get("type") != "hidden":
            self.fields.append((given, "label" in self.open))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.parts.append(data)
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.parts).split())

    def links(self):
        return [value for tag, name, value in self.attributes if name in ("href", "src", "action")]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return context_of(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(context):
    with TestClient(create_app(context), base_url="http://127.0.0.1", follow_redirects=False) as client:
        client.headers["accept"] = "text/html"
        yield client


@pytest.fixture(scope="module")
def pages(client, context):
    """Address -> page."""
    found = {}
    for address in addresses(context):
        answer = client.get(address)
        assert answer.status_code == 200, (address, answer.text[-2000:])
        found[address] = answer.text
    return found


def test_no_page_has_an_inline_script_style_or_handler(pages, client):
    for address, html in pages.items():
        page = Page(html)
        assert not any(name == "style" or name.startswith("on") for _, name, _ in page.attributes), address
        assert page.scripts == [], address
        assert not any(tag in ("style", "img", "object", "embed", "base") for tag, _ in page.elements), address
    assert client.get("/").headers["content-security-policy"] == POLICY


def test_pages_lead_to_this_server_only(pages):
    for address, html in pages.items():
        for link in Page(html).links():
            assert link.startswith(("/", "#")) or link == "data:,", (address, link)
            assert not link.startswith("//"), (address, link)
        assert not re.search(r"url\(|@import|srcset=|javascript:", html), address


def test_hostile_tokens_labels_and_names_are_text(pages):
    seen = 0
    for address, html in pages.items():
        assert "<script>alert" not in html, address
        assert "onerror=alert(1)>" not in html, address
        assert "\u202e" not in html, address
        page = Page(html)
        assert not any(name in ("onmouseover", "onerror") for _, name, _ in page.attributes), address
        seen += HOSTILE in page.text
    assert seen > 30


def test_hostile_parameters_are_echoed_as_text(client):
    for address in (
        f"/s/topk?q={HOSTILE}", f"/s/topk?token={HOSTILE}", f"/s/topk?label={HOSTILE}", f"/s/{HOSTILE}", f"/s/topk/f/{HOSTILE}",
        f"/s/topk?sort={HOSTILE}", f"/s/topk/text?text={HOSTILE}", f"/s/topk/f/8?text={HOSTILE}", f"/s/topk/f/8?theme={HOSTILE}", f"/lists/{HOSTILE}",
    ):  # fmt: skip
        html = client.get(address).text
        assert "<script>alert" not in html, address
        Page(html)


def test_every_field_has_a_label_and_every_id_is_unique(pages):
    for address, html in pages.items():
        page = Page(html)
        for given, inside in page.fields:
            assert inside or given.get("id") in page.labelled or "aria-label" in given, (address, given)
        ids = [value for _, name, value in page.attributes if name == "id"]
        assert len(ids) == len(set(ids)), (address, sorted(i for i in ids if ids.count(i) > 1))
        assert page.elements[0] == ("html", page.elements[0][1]) and page.elements[0][1]["lang"] == "en", address


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/s/nope", 404), ("/s/topk/f/99999", 404), ("/s/topk/f/1e3", 422), ("/s/topk/f/-1", 422), ("/s/topk/f/NaN", 422),
        ("/s/topk/f/" + "9" * 30, 404), ("/s/topk/f/8?tab=best", 422), ("/s/topk/f/8?context=17", 422), ("/s/topk?sort=nothing", 422),
        ("/s/topk?min_density=nan", 422), ("/s/topk?min_density=1_0", 422), ("/s/topk?page=0", 422), ("/s/topk?page=999", 404),
        ("/s/topk?size=100000", 422), ("/s/topk/compare?f=1&f=2&f=3&f=4&f=5", 422), ("/s/topk/compare?f=x", 422), ("/s/topk/map?by=age", 422),
        ("/s/topk/doc/abc", 422), ("/s/topk/doc/4", 404), ("/s/topk/text?text=a&at=77", 422), ("/s/topk/f/8?text=" + "x" * 8001, 422),
        ("/results/geometry.angles/0", 404), ("/results/../etc", 404), ("/lists/none", 404), ("/assets/none.css", 404), ("/assets/../page.py", 404),
        ("/s/topk/f/8?text=a%00b", 422), ("/?embed=2", 200),
    ],
)  # fmt: skip
def test_bad_addresses_are_refused_with_a_page_that_says_why(client, address, status):
    answer = client.get(address)
    assert answer.status_code == status
    if status != 200:
        assert "Traceback" not in answer.text
        Page(answer.text)


def test_a_text_that_is_too_long_is_refused_with_the_limit(client):
    answer = client.get("/s/topk/text", params={"text": "word " * 60})
    assert answer.status_code == 422
    assert "limit is 50" in Page(answer.text).text


def test_a_dead_feature_says_so(client, context):
    dead = int((context.registry.get("topk").index.statistics.n_active == 0).argmax())
    page = Page(client.get(f"/s/topk/f/{dead}").text)
    assert "Dead on this corpus" in page.text


def test_without_a_model_pages_say_the_command_that_loads_it(tmp_path):
    with TestClient(create_app(context_of(tmp_path, live=False, notes=False)), base_url="http://127.0.0.1") as client:
        for address in ("/s/topk/text?text=some+words", "/s/topk/f/8?text=some+words"):
            answer = client.get(address, headers={"accept": "text/html"})
            assert answer.status_code == 200
            assert "sae serve INDEX --model default --dictionary" in Page(answer.text).text
        for address in ("/lists", "/s/topk", "/s/topk/f/8"):
            assert client.get(address, headers={"accept": "text/html"}).status_code == 200


def test_another_sites_link_does_not_make_the_model_work(client):
    address = "/s/topk/text?text=some+words+of+their+own"
    foreign = client.get(address, headers={"sec-fetch-site": "cross-site"}).text
    plain = client.get(address).text
    assert "Features of the text" in Page(plain).text
    assert "Features of the text" not in Page(foreign).text
    assert "some words" in Page(foreign).text


def rows_of(html):
    return [int(i) for i in re.findall(r'<th scope="row"><a href="/s/\w+/f/(\d+)', html)]


def test_the_table_sorts_and_filters_as_the_address_says(client, context):
    s = context.registry.get("topk").index.statistics
    alive = [i for i in range(len(s.density)) if s.n_active[i]]
    assert rows_of(client.get("/s/topk?sort=density").text) == sorted(alive, key=lambda i: (-s.density[i], i))
    assert rows_of(client.get("/s/topk?sort=density&order=asc").text) == sorted(alive, key=lambda i: (s.density[i], i))
    assert rows_of(client.get("/s/topk?sort=index&alive=all").text) == list(range(len(s.density)))
    assert rows_of(client.get("/s/topk?sort=index&alive=dead").text) == [i for i in range(len(s.density)) if not s.n_active[i]]
    middle = float(sorted(s.density[alive])[len(alive) // 2])
    assert rows_of(client.get(f"/s/topk?sort=index&min_density={middle}").text) == [i for i in alive if s.density[i] >= middle]
    assert rows_of(client.get("/s/topk?label=LABEL").text) == [8]
    assert rows_of(client.get("/s/topk?sort=label").text)[0] == 8
    assert rows_of(client.get("/s/topk?sort=max&size=5&page=2").text) == sorted(alive, key=lambda i: (-s.max[i], i))[5:10]


def test_the_token_filter_looks_at_all_driving_tokens(client, context):
    index = context.registry.get("topk").index
    expected = [i for i in range(index.d_sae) if any("w3" in d.token for d in index.record(i).driving_tokens)]
    assert rows_of(client.get("/s/topk?sort=index&token=W3").text) == expected


def test_a_search_for_a_number_leads_to_the_feature(client):
    answer = client.get("/s/topk?q=%238")
    assert (answer.status_code, answer.headers["location"]) == (303, "/s/topk/f/8")


def test_bars_of_the_distributions_lead_to_the_latents_they_count(client, context):
    html = client.get("/s/topk?sort=index").text
    s = context.registry.get("topk").index.statistics
    bars = re.findall(r'<a href="([^"]*min_density[^"]*)"><g>.*?<title>density [^:]*: (\d+)</title>', html)
    assert len(bars) > 3
    total = 0
    for href, count in bars:
        total += int(count)
        low, high = (float(parse_qs(urlsplit(href.replace("&amp;", "&")).query)[f"{end}_density"][0]) for end in ("min", "max"))
        assert all(low * (1 - 1e-5) <= s.density[i] <= high * (1 + 1e-5) for i in rows_of(client.get(href.replace("&amp;", "&")).text))
    assert total == int((s.n_active > 0).sum())


def test_previous_and_next_follow_the_table_that_the_feature_was_opened_from(client):
    order = rows_of(client.get("/s/topk?sort=max").text)
    html = client.get(f"/s/topk/f/{order[3]}?sort=max&context=5").text
    links = dict(re.findall(r'<link rel="(prev|next)" href="([^"]*)"', html))
    assert links == {"prev": f"/s/topk/f/{order[2]}?context=5&amp;sort=max", "next": f"/s/topk/f/{order[4]}?context=5&amp;sort=max"}


def test_random_leads_to_a_feature_that_fires(client, context):
    s = context.registry.get("topk").index.statistics
    for _ in range(20):
        answer = client.get("/s/topk/random")
        assert answer.status_code == 303
        assert s.n_active[int(answer.headers["location"].rsplit("/", 1)[1])] > 0


def test_an_embedded_page_has_no_menu_and_keeps_being_embedded(client):
    page = Page(client.get("/s/topk/f/8?embed=1").text)
    assert not any(tag in ("header", "footer", "nav") for tag, _ in page.elements)
    assert all("embed=1" in link for link in page.links() if link.startswith("/s/topk/f/8?tab"))


def test_the_theme_of_the_address_is_kept_by_every_link(client):
    page = Page(client.get("/s/topk/f/8?theme=dark").text)
    assert page.elements[0][1]["data-theme"] == "dark"
    own = [link for tag, given in page.elements if tag == "a" and (link := given.get("href", "")).startswith("/s/")]
    assert own
    assert all("theme=" in link for link in own if not link.endswith("/json"))


def test_a_typed_text_is_ranked_at_the_token_that_was_clicked(client):
    page = Page(client.get("/s/topk/text?text=some+lengthy+words&at=2&order=value").text)
    assert "Features at ·lengthy" in page.text
    assert re.findall(r"#(\d+)", page.text[page.text.index("Features at") :])[:2] == ["12", "3"]


def test_passages_show_as_much_context_as_asked_for(client, context):
    index = context.registry.get("topk").index
    lengths = {}
    for context_name in ("5", "16", "full"):
        html = client.get(f"/s/topk/f/8?context={context_name}").text
        section = html[html.index('id="examples"') : html.index('id="testing"')]
        lengths[context_name] = len(re.sub("<[^>]*>", "", section[section.index('class="passages"') :]))
    assert lengths["5"] < lengths["16"] <= lengths["full"]
    example = index.record(8).examples[0]
    start, stop = index.table.window(example.row * index.table.context + example.position, 99, 99)
    assert f"row {example.row}, position {example.position}" in client.get("/s/topk/f/8?context=full").text
    assert stop - start >= len(example.tokens)


def test_assets_are_a_fixed_list_with_entity_tags(client):
    answer = client.get("/assets/viewer.css")
    assert answer.headers["content-type"].startswith("text/css")
    again = client.get("/assets/viewer.css", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    versioned = re.search(r'href="(/assets/viewer\.css\?v=\w+)"', client.get("/").text)
    assert "immutable" in client.get(versioned[1]).headers["cache-control"]


def test_modules_of_our_own_need_nothing_from_elsewhere(client):
    from sae.inspection.server.pages.static import ASSETS

    for name in ASSETS:
        text = client.get(f"/assets/{name}").text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name


def test_a_record_with_few_passages_is_the_whole_record_cut(context):
    from dataclasses import replace

    for source in context.registry:
        for latent in (3, 8, 14):
            whole, cut = source.index.record(latent), source.index.record(latent, passages={"top": 1, "random": 2})
            intervals = tuple(replace(interval, examples=()) for interval in whole.intervals)
            few = {
                "examples": whole.examples[:1],
                "negative_examples": (),
                "random_examples": whole.random_examples[:2],
                "near_miss_examples": (),
            }
            assert cut == replace(whole, intervals=intervals, **few)
            n = source.index.reader.n_passages(latent)
            assert (n["top"], n["bottom"], n["random"]) == (len(whole.examples), len(whole.negative_examples), len(whole.random_examples))
            assert n["intervals"] == sum(len(interval.examples) for interval in whole.intervals)


def test_a_document_is_coloured_by_the_rarest_strong_feature_of_each_token(client, context):
    source = next(iter(context.registry))
    index = source.index
    document = next(int(i) for i in index.document_ids if len(index.document(int(i)).latents) > 20)
    view, statistics = index.document(document), index.statistics
    expected = []
    for i in range(len(view.start) - 1):
        here = slice(int(view.start[i]), int(view.start[i + 1]))
        bits = [
            min(abs(v) / max(abs(statistics.max[j]), abs(statistics.min[j])), 1) * -math.log2(statistics.density[j])
            for j, v in zip(view.latents[here].tolist(), view.values[here].tolist(), strict=True)
        ]
        expected += [max(bits)] if bits and max(bits) > 0 else []
    html = client.get(f"/s/{source.name}/doc/{document}").text
    found = [float(value) for tag, name, value in Page(html).attributes if tag == "bdi" and name == "data-v"]
    assert found[: len(expected)] == pytest.approx(expected, rel=1e-3)
    assert f"{math.log2(index.n_tokens):.3g}"[:3] in Page(html).text
