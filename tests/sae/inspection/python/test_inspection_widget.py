"""The widget: its features follow its text, it is never blank without a kernel, and its script does what it says in a browser."""

import shutil
import sys
from importlib import resources

import pytest

from sae.errors import ConfigError
from sae.inspection import widget as module
from sae.inspection.encoded import EncodedText, check_texts
from sae.inspection.widget import text_widget, with_static
from tests.sae.inspection import planted_store as ps


class Echo:
    """A live encoder without a model: latent 4 fires on every character, latent 5 takes away on every second."""

    def __init__(self, source):
        self.site_name, self.dictionary_digest, self.limit = source.site, source.dictionary_digest, 100
        self.n_calls = 0

    def atoms(self, latents):
        raise AssertionError("not asked for here")

    def tokenise(self, texts):
        raise AssertionError("not asked for here")

    def contrast(self, texts_a, texts_b, *, n=50):
        raise AssertionError("not asked for here")

    def encode(self, texts, *, top_k=None, masked=False):
        self.n_calls += 1
        check_texts(texts)
        return [self._encoded(text) for text in texts]

    def _encoded(self, text):
        n = len(text)
        latents = tuple((4, 5) if i % 2 else (4,) for i in range(n))
        values = tuple((1.0 + i, -2.0) if i % 2 else (1.0 + i,) for i in range(n))
        return EncodedText(text, tuple(text), tuple(map(ord, text)), (False,) * n, latents, values, None)


@pytest.fixture
def index(tmp_path):
    made = ps.built(tmp_path / "index", ps.random_store(), ps.random_autoencoder())
    return made.attach(Echo(made.manifest.source))


@pytest.fixture
def quiet_widgets():
    """ipywidgets without a kernel: no comm is opened."""
    pytest.importorskip("anywidget")


@pytest.mark.usefixtures("quiet_widgets")
def test_features_follow_the_text_and_are_encoded_once_each(index):
    made = text_widget(index, "<b>x")
    assert made.found == index.on("<b>x")
    before = index.live.n_calls
    assert made.html == made.found._repr_html_()
    assert "&lt;" in made.html
    assert "<b>" not in made.html
    made.text = "yz"
    assert index.live.n_calls == before + 1
    assert made.found.texts[0].text == "yz"
    assert made.status == "2 tokens, 2 features"


@pytest.mark.usefixtures("quiet_widgets")
def test_a_text_that_cannot_be_encoded_says_why_and_the_next_one_works(index):
    made = text_widget(index)
    assert (made.found, made.html, made.status) == (None, "", "Nothing typed yet.")
    made.text = "a\x00b"
    assert "NUL" in made.status
    assert made.html == ""
    made.text = "ab"
    assert made.html


@pytest.mark.usefixtures("quiet_widgets")
def test_an_exported_notebook_shows_the_features_as_html(index):
    made = text_widget(index, "abc")
    bundle = made._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/html"] == index.on("abc")._repr_html_()
    assert data["text/plain"] == repr(index.on("abc"))
    assert "application/vnd.jupyter.widget-view+json" in data
    made.text = "\x00<i>"
    data = made._repr_mimebundle_()[0]
    assert "NUL" in data["text/html"]
    assert "<i>" not in data["text/html"]


@pytest.mark.parametrize("bundle", [None, {"a": 1}, ({"a": 1}, {"m": 2})], ids=["none", "data", "with metadata"])
def test_every_kind_of_bundle_gets_the_static_page(bundle):
    found = with_static(bundle, "<p>", "text")
    data = found[0] if isinstance(found, tuple) else found
    assert data["text/html"] == "<p>"
    assert data["text/plain"] == "text"
    assert (bundle is None) or data["a"] == 1
    assert not isinstance(found, tuple) or found[1] == {"m": 2}


def test_without_the_package_the_extra_is_named(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    module._widget_class.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"pip install 'sae-workbench\[widgets\]'"):
            text_widget(index)
    finally:
        module._widget_class.cache_clear()


@pytest.mark.usefixtures("quiet_widgets")
def test_an_index_without_live_encoder_has_no_widget(index):
    index.live = None
    with pytest.raises(ConfigError, match="no live encoder"):
        text_widget(index)


def test_the_script_asks_nothing_of_any_other_place():
    script = resources.files("sae.inspection").joinpath("assets/widget.js").read_text(encoding="utf-8")
    for word in ("http", "import ", "import(", "fetch", "XMLHttpRequest", "WebSocket", "eval", "src="):
        assert word not in script


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_script_sends_what_is_typed_and_shows_what_comes_back():
    sync_api = pytest.importorskip("playwright.sync_api")
    script = resources.files("sae.inspection").joinpath("assets/widget.js").read_text(encoding="utf-8")
    fake = """
      const state = {text: "first", html: "<p>one</p>", status: "ready"}, listeners = {};
      window.saved = [];
      window.model = {get: (k) => state[k], set: (k, v) => { state[k] = v; }, save_changes: () => saved.push(state.text),
        on: (e, f) => { (listeners[e] ||= []).push(f); }, off: (e, f) => { listeners[e] = listeners[e].filter((g) => g !== f); }};
      window.answer = (k, v) => { state[k] = v; (listeners["change:" + k] || []).forEach((f) => f()); };
      let timers = new Map(), number = 0;  // nothing happens until a test lets the time pass
      window.setTimeout = (f, ms) => { timers.set(++number, f); return number; };
      window.clearTimeout = (id) => timers.delete(id);
      window.pass = () => { const due = [...timers.values()]; timers.clear(); due.forEach((f) => f()); };
      window.listening = () => Object.values(listeners).flat().length;
    """
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        errors, requests = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.set_content("<div id=here></div>")
        page.evaluate(fake + script.replace("export default { render };", "window.render = render; 0"))
        page.evaluate("window.stop = render({model, el: document.getElementById('here')}); 0")  # a function would be called
        assert page.input_value("textarea") == "first"
        assert page.inner_text("#here p") == "one"
        page.fill("textarea", "second")
        assert page.evaluate("saved") == []  # not at every key
        page.evaluate("pass()")
        assert page.evaluate("saved") == ["second"]
        assert page.inner_text("[role=status]") == "encoding …"
        page.evaluate("answer('html', '<p>two</p>'); answer('status', '3 tokens')")
        assert page.inner_text("#here p") == "two"
        assert page.inner_text("[role=status]") == "3 tokens"
        page.fill("textarea", "third")
        page.press("textarea", "Control+Enter")
        assert page.evaluate("saved") == ["second", "third"]
        page.evaluate("pass()")
        assert page.evaluate("saved") == ["second", "third"]
        page.fill("textarea", "too late")
        page.evaluate("stop(); pass()")
        assert page.evaluate("saved") == ["second", "third"]
        assert page.evaluate("listening()") == 0
        browser.close()
    assert errors == []
    assert requests == []
