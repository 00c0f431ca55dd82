"""A text as a strip of tokens, each on the colour scale, each a link where the page has more to say about it."""

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from sae.inspection.format import level, number, visible
from sae.inspection.passages import Look
from sae.inspection.server.context import Source

LOOK = Look("page")


def rarity(source: Source) -> Float[np.ndarray, "d_sae"]:
    """Bits that a firing of each latent is worth: -log2 of its density, at most those of a single firing in the corpus."""
    return -np.log2(np.maximum(source.index.statistics.density, 1.0 / max(source.index.n_tokens, 1)))


def most_bits(source: Source) -> float:
    """End of the scale of salience: a feature at its largest value that fires once in the corpus."""
    return max(math.log2(max(source.index.n_tokens, 1)), 1.0)


def salience_scale(source: Source) -> str:
    """What colours a token when no feature is chosen: the strongest of many features is strong at nearly every token, a rare one seldom is."""
    return (
        f"the most salient feature: share of its largest value times -log₂ of its density, 0 to {number(most_bits(source))} bits "
        "(once in the corpus)"
    )


def salience(source: Source, latents: Int[np.ndarray, "n"], values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """|value| / largest magnitude in the corpus, at most 1, times `rarity`: bits."""
    statistics = source.index.statistics
    peaks = np.maximum(np.abs(statistics.max), np.abs(statistics.min))[latents]
    return np.minimum(np.abs(values) / np.maximum(peaks, 1e-30), 1.0) * rarity(source)[latents]


def strip(
    tokens: Sequence[str],
    values: Sequence[float],
    scale: float,
    *,
    special: Sequence[bool] | None = None,
    link: Callable[[int], str] | None = None,
    chosen: int | None = None,
    notes: Sequence[str] | None = None,
    swap: str = "",
) -> Markup:
    """The tokens in a row; `special` ones (which the dictionary never saw) are faint, `link(i)` is where token i leads, `notes` is what the
    pointer is told beside the value."""
    parts = []
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        shown = escape(visible(token, spaces=not token.strip(" ")))
        if special is not None and special[i]:
            parts.append(f'<span class="special" title="not encoded">{shown}</span>')
            continue
        heat = LOOK.heat(level(value, scale), value < 0)
        said = f"{visible(token, spaces=True)}  {number(value)}" if value else visible(token, spaces=True)
        note = f"  {notes[i]}" if notes else ""
        data = f' data-v="{value:.5g}"' if value else ""
        inner = f'<bdi{heat} title="{escape(said + note)}"{data}>{shown}</bdi>'
        if link:
            current = ' class="chosen" aria-current="true"' if i == chosen else ""
            inner = f'<a{current} href="{escape(link(i))}"{swap and f" data-swap={chr(34)}{swap}{chr(34)}"}>{inner}</a>'
        parts.append(inner + ("\n" if token.endswith("\n") else ""))
    return Markup('<p class="strip">{}</p>').format(Markup("".join(parts)))


def share_bar(share: float) -> Markup:
    """A bar as long as |share| of its place; blue below zero."""
    colour = ' class="cold"' if share < 0 else ""
    return Markup(
        f'<svg class="share" viewBox="0 0 64 9" aria-hidden="true"><rect{colour} width="{64 * min(abs(share), 1):.1f}" height="9" rx="2"></rect></svg>'
    )
