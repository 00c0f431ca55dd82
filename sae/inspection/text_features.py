"""What a dictionary sees in a text: the strongest feature of every token, and all features that fire, ranked with evidence.

    of_max(i)   = |v| / largest |value| of the feature in the corpus                              v its value of largest magnitude here
    surprise(i) = -log2 [ (1 + tokens of the corpus where the feature is at least v) / (1 + N) ]  bits; at most v for a negative v

Surprise is the empirical tail probability of the value: a feature that is always on says little even when it is large, one that is seldom
this strong says much. Each text is one row; masked tokens (the first of a row) have no features, as in the index.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from markupsafe import Markup

from sae.errors import ConfigError, FormatError
from sae.inspection.encoded import EncodedText, LiveEncoder
from sae.inspection.format import level, number, visible
from sae.inspection.listing import frame, line, strongest, styled, table, tokens
from sae.inspection.passages import Look
from sae.inspection.reading import ReadableIndex
from sae.inspection.records import Example

Order = Literal["value", "surprise", "of_max"]
DEFINITIONS = {
    "value": "Ranked by the value of largest magnitude in the text.",
    "surprise": "Ranked by surprise.",
    "of_max": "Ranked by the share of the feature's largest magnitude in the corpus.",
}
TEXT_DEFINITION = (
    "of max: share of the feature's largest magnitude in the corpus. surprise: bits, minus the logarithm of the share of the corpus's tokens "
    "on which the feature is at least this strong. Under each token stands its feature of largest magnitude, coloured by its share of that "
    "feature's largest; masked tokens have none."
)
STORED = 2.0**-11
"""Relative precision of the values of an index: one that is smaller by no more than that counts as equal."""
N_TITLE = 5
"""Features named when the pointer is on a token."""


@dataclass(frozen=True)
class TextFeature:
    """A feature that fires in the texts."""

    index: int
    """Latent id."""
    value: float
    """Its value of largest magnitude."""
    text: int
    """The text it has it in."""
    position: int
    """The token of that text."""
    step: int | None
    """Step of the pursuit (from 1) at which it was first selected there; None for an autoencoder."""
    n_active: int
    """Tokens of the texts on which it fires."""
    of_max: float
    """|value| over its largest magnitude in the corpus; above 1 where this text goes beyond it, infinite for one that never fired there."""
    surprise: float | None
    """Bits: how seldom it is at least this strong in the corpus; None for an index without entries."""


@dataclass(frozen=True)
class TextFeatures:
    """Texts with what fires in them. A notebook shows a strip of tokens for each text, and the ranked features."""

    texts: tuple[EncodedText, ...]
    """The texts, token by token."""
    features: tuple[TextFeature, ...]
    """The first of the features that fire, ranked."""
    n_found: int
    """How many different features fire."""
    by: Order
    """What they are ranked by."""
    index: ReadableIndex = field(repr=False, compare=False)
    """Where the features are described."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Latent ids, in the order."""
        return tuple(feature.index for feature in self.features)

    @property
    def definition(self) -> str:
        """What the numbers are."""
        return f"{DEFINITIONS[self.by]} {TEXT_DEFINITION}"

    def values(self, latent: int, text: int = 0) -> tuple[float, ...]:
        """The value of a latent at every token of a text; 0 where it does not fire."""
        encoded = self.texts[text]
        pairs = zip(encoded.latents, encoded.values, strict=True)
        return tuple(next((value for found, value in zip(*pair, strict=True) if found == latent), 0.0) for pair in pairs)

    def _repr_html_(self) -> str:
        peaks = _peaks(self.index)
        strips = [_strip(text, peaks) for text in self.texts]
        title = f"{self.n_found} features in {len(self.texts)} text{'s' * (len(self.texts) != 1)}"
        return frame(title, [*strips, self._table()], self.definition)

    def _table(self) -> Markup:
        pursuit = any(found.step is not None for found in self.features)
        titles = [("feature", "th-num"), ("value", "th-num"), *[("step", "th-num")] * pursuit, ("of max", "th-num"), ("surprise", "th-num")]
        titles += [("tokens", "th-num"), ("", "th"), ("here", "th"), ("driven by", "th"), ("", "th"), ("strongest in the corpus", "th")]
        rows = []
        for found in self.features:
            r = self.index.record(found.index)
            shown = strongest(r)
            never = (styled("td", "left", ""), styled("td", "right", "never fires"))
            surprise = "–" if found.surprise is None else f"{found.surprise:.1f}"
            numbers = [number(found.value), *[str(found.step)] * pursuit, _share(found.of_max), surprise, number(found.n_active)]
            rows.append(
                [
                    styled("td", "id", f"#{found.index}"),
                    *(styled("td", "num", text) for text in numbers),
                    *line(self._example(found), max(r.peak, abs(found.value)), left=22, right=16),
                    styled("td", "cell", tokens([d.token for d in r.driving_tokens[:3]])),
                    *(line(shown[0], r.peak, left=22, right=16) if shown else never),
                ]
            )
        return table(titles, rows) if rows else styled("p", "muted", "No feature fires.")

    def _example(self, found: TextFeature) -> Example:
        values = self.values(found.index, found.text)
        return Example(-1, found.text, found.position, self.texts[found.text].tokens, values, found.position, {})

    def __repr__(self) -> str:
        lines = [f"{self.n_found} features in {len(self.texts)} texts, by {self.by.replace('_', ' ')}"]
        for found in self.features:
            token = visible(self.texts[found.text].tokens[found.position], spaces=True)
            driving = " ".join(visible(d.token, spaces=True) for d in self.index.record(found.index).driving_tokens[:3])
            lines.append(f"  #{found.index:<6} {number(found.value):>7} on {token}, {_share(found.of_max)} of max; driven by {driving}")
        return "\n".join(lines)


def on_texts(
    index: ReadableIndex,
    live: LiveEncoder | None,
    texts: str | Sequence[str],
    *,
    n: int = 20,
    by: Order = "value",
    max_density: float = 1.0,
) -> TextFeatures:
    """The features of a text, or of several: the `n` first in the order `by`, and the codes of every token.

    Only features with a density of at most `max_density` in the corpus are ranked. Raises ConfigError without a live encoder, for texts
    that cannot be encoded (empty, too long, not text), n < 1, an unknown `by` and a density outside 0..1.
    """
    if live is None:
        raise ConfigError(
            "this index has no live encoder, which encoding a text needs: index = index.attach(Live(model, dictionary, site)), with Live from "
            "sae.inspection.live (FeatureIndex.on)"
        )
    if by not in DEFINITIONS:
        raise ConfigError(f"by must be one of {', '.join(DEFINITIONS)}, got {by!r} (FeatureIndex.on)")
    if isinstance(n, bool) or n < 1:
        raise ConfigError(f"n must be at least 1, got {n!r} (FeatureIndex.on)")
    if not 0 <= max_density <= 1:
        raise ConfigError(f"max_density must be in 0..1, got {max_density} (FeatureIndex.on)")
    encoded = tuple(live.encode([texts] if isinstance(texts, str) else texts))
    return rank(index, encoded, n=n, by=by, max_density=max_density)


def rank(index: ReadableIndex, texts: Sequence[EncodedText], *, n: int = 20, by: Order = "value", max_density: float = 1.0) -> TextFeatures:
    """The features of texts that are encoded already, ranked; see `on_texts`. Ties by larger magnitude, then latent id."""
    best: dict[int, tuple[float, int, int, int | None]] = {}
    counts: dict[int, int] = {}
    for t, text in enumerate(texts):
        for position, (latents, values) in enumerate(zip(text.latents, text.values, strict=True)):
            steps = text.steps[position] if text.steps is not None else [None] * len(latents)
            for latent, value, step in zip(latents, values, steps, strict=True):
                counts[latent] = counts.get(latent, 0) + 1
                if abs(value) > abs(best.get(latent, (0.0,))[0]):
                    best[latent] = (value, t, position, None if step is None else step + 1)
    density, peaks = index.statistics.density, _peaks(index)
    allowed = [latent for latent in best if density[latent] <= max_density]
    if by != "surprise":  # the numbers of those left out need not be read
        key = {i: abs(best[i][0]) / (peaks[i] or 1e-300) if by == "of_max" else abs(best[i][0]) for i in allowed}
        allowed = sorted(allowed, key=lambda i: (-key[i], -abs(best[i][0]), i))[:n]
    features = [_feature(index, latent, *best[latent], counts[latent], float(peaks[latent])) for latent in allowed]
    if by == "surprise":
        features = sorted(features, key=lambda f: (-(f.surprise or 0.0), -abs(f.value), f.index))[:n]
    return TextFeatures(tuple(texts), tuple(features), len(best), by, index)


def _feature(
    index: ReadableIndex, latent: int, value: float, text: int, position: int, step: int | None, n_active: int, peak: float
) -> TextFeature:
    try:
        values = index.entries(latent).values
    except FormatError:  # a summary bundle without entries
        surprise = None
    else:
        bound = value * (1 - STORED)
        stronger = int((values >= bound).sum() if value > 0 else (values <= bound).sum())
        surprise = float(-np.log2((1 + stronger) / (1 + index.n_tokens)))
    return TextFeature(latent, value, text, position, step, n_active, abs(value) / peak if peak else float("inf"), surprise)


def _peaks(index: ReadableIndex) -> np.ndarray:
    return np.maximum(np.abs(index.statistics.max), np.abs(index.statistics.min))


def _share(share: float) -> str:
    return "new" if np.isinf(share) else f"{100 * share:.0f}\u202f%"


def _strip(text: EncodedText, peaks: np.ndarray) -> Markup:
    """The tokens of a text, under each its strongest feature."""
    boxes = []
    for token, special, latents, values in zip(text.tokens, text.is_special, text.latents, text.values, strict=True):
        boxes.append(_box(token, special, latents, values, peaks))
        if token.endswith("\n"):
            boxes.append(Markup("<br>"))
    return Markup('<div style="margin:0 0 10px 0;max-width:1160px;line-height:1.25">{}</div>').format(Markup("").join(boxes))


def _box(token: str, special: bool, latents: Sequence[int], values: Sequence[float], peaks: np.ndarray) -> Markup:
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:N_TITLE]
    shown = visible(token, spaces=not token.strip(" "))
    if not order:
        about = "masked: the first of its row, or an outlier" if special else "no feature fires"
        return _boxed(shown, "", about, "", faint=special)
    first = order[0]
    places = level(values[first], max(float(peaks[latents[first]]), abs(values[first])))
    style = Look("notebook").heat(places, values[first] < 0)
    title = f"{visible(token, spaces=True)}: " + ", ".join(f"#{latents[i]} {number(values[i])}" for i in order)
    return _boxed(shown, f"#{latents[first]}", title, style, faint=False)


def _boxed(token: str, below: str, title: str, heat: str, *, faint: bool) -> Markup:
    top = Markup("<bdi {}>{}</bdi>").format(Markup(heat), token)
    bottom = Markup('<span style="font-size:10px;opacity:.62">{}</span>').format(below or Markup("&nbsp;"))
    whole = "display:inline-block;text-align:center;white-space:pre;margin:0 2px 5px 0" + (";opacity:.5" if faint else "")
    return Markup('<span style="{}" title="{}">{}<br>{}</span>').format(whole, title, top, bottom)
