"""Type a text in a notebook and see its features at once. Optional: it needs `anywidget`, the extra `widgets`.

widget = text_widget(index.attach(live), "The nation and the people.")
widget                                # shows a text field and the features; without a kernel, the features of the text it was left with
widget.found                          # the TextFeatures shown
"""

from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from sae.errors import ConfigError
from sae.inspection.index import FeatureIndex
from sae.inspection.text_features import TextFeatures

MISSING = (
    "a widget needs the package anywidget: pip install 'sae-workbench[widgets]'; index.on(text) shows the same without it (text_widget)"
)


def text_widget(index: FeatureIndex, text: str = "", *, n: int = 20) -> Any:
    """A widget with a text field and the `n` strongest features of what is in it, as `index.on` shows them.

    Its traits: `text` (set it, and the features follow), `html`, `status`; its attribute `found` is the last `TextFeatures`, or None. A text
    that cannot be encoded is said so in `status`. Its mime bundle holds the features as static HTML too, so an exported notebook shows
    them. Raises ConfigError without anywidget, and for an index without a live encoder.
    """
    made = _widget_class()
    if index.live is None:
        raise ConfigError("index has no live encoder, which a widget needs: index.attach(Live(model, dictionary, site)) (text_widget)")
    return made(index, text, n)


@cache
def _widget_class() -> type:
    """The class, made when it is first asked for: its base is in an optional package."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ConfigError(MISSING) from error

    class TextWidget(anywidget.AnyWidget):
        """A text field and its features."""

        _esm = resources.files("sae.inspection").joinpath("assets/widget.js").read_text(encoding="utf-8")
        text = traitlets.Unicode("").tag(sync=True)
        html = traitlets.Unicode("").tag(sync=True)
        status = traitlets.Unicode("").tag(sync=True)

        def __init__(self, index: FeatureIndex, text: str, n: int) -> None:
            super().__init__(text=text)
            self.index, self.n = index, n
            self.found: TextFeatures | None = None
            self._show(text)
            self.observe(self._encode, names="text")

        def _encode(self, change: Any) -> None:
            self._show(change["new"])

        def _show(self, text: str) -> None:
            self.found, status = features_of(self.index, text, self.n)
            with self.hold_sync():
                self.html = "" if self.found is None else self.found._repr_html_()
                self.status = status

        def _repr_mimebundle_(self, **options: Any) -> Any:
            return with_static(
                super()._repr_mimebundle_(**options), static(self.text, self.html, self.status), repr(self.found or self.status)
            )

    return TextWidget


def features_of(index: FeatureIndex, text: str, n: int) -> tuple[TextFeatures | None, str]:
    """The features of a text, or None, and what to say about it."""
    if not text.strip():
        return None, "Nothing typed yet."
    try:
        found = index.on(text, n=n)
    except ConfigError as error:
        return None, str(error)
    return found, f"{len(found.texts[0].tokens)} tokens, {found.n_found} features"


def static(text: str, html: str, status: str) -> str:
    """What the widget shows, without it."""
    if html:
        return html
    return str(Markup("<p>{}</p><p>{}</p>").format(text, status))


def with_static(bundle: Any, html: str, text: str) -> Any:
    """A mime bundle with the same as HTML and as text; a bundle may come with metadata, as a pair."""
    data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
    data = {**(data or {}), "text/html": html, "text/plain": text}
    return (data, *metadata) if metadata else data
