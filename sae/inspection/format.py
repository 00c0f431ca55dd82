"""How numbers and tokens are written: one way, in cards, pages and charts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sae.evaluation.numbers import number, percent
from sae.inspection.records import Example

__all__ = ["Passage", "Span", "bits", "level", "number", "passage", "percent", "token_spans", "visible"]

N_LEVELS = 32
"""Steps of the colour scale."""
GLYPHS = {
    "\n": "↵",
    "\r": "␍",
    "\t": "⇥",
    "\x0b": "␋",
    "\x0c": "␌",
    "\x00": "␀",
    "\u200b": "⟨200B⟩",
    "\u2028": "⟨2028⟩",
    "\u2029": "⟨2029⟩",
}
"""Characters that cannot be seen, and what stands for them; other control characters become `⟨1B⟩`, bidirectional controls `⟨202E⟩`."""
BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
CONTROLS = {code: f"⟨{code:02X}⟩" for code in (*range(32), *range(127, 160))}
UNSEEN = CONTROLS | {ord(c): f"⟨{ord(c):04X}⟩" for c in BIDIRECTIONAL} | {ord(c): glyph for c, glyph in GLYPHS.items()}
"""Code point of what cannot be seen -> what stands for it."""


def bits(value: float | int) -> str:
    """An amount of information: two decimals, never minus zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def visible(text: str, *, spaces: bool = False) -> str:
    """The text with glyphs for what cannot be seen. With `spaces` (a token standing alone) spaces become `·`."""
    if spaces:
        text = text.replace(" ", "·")
    return (text if text.isprintable() else text.translate(UNSEEN)) or "∅"


def level(value: float | int, peak: float | int) -> int:
    """Place of |value| on the colour scale: 0 for zero, else 1..32, equal steps of (0, peak]."""
    return min(N_LEVELS, max(1, math.ceil(N_LEVELS * abs(value) / peak - 1e-6))) if value and peak > 0 else 0


class Span(NamedTuple):
    """A run of text with one colour: a token that fires, or all tokens between two such."""

    text: str
    """What is shown."""
    level: int
    """Place on the colour scale; 0 for none."""
    negative: bool
    """Whether the value is below zero."""
    title: str
    """The token and its value, for the pointer; empty without value."""
    breaks: bool
    """Whether a line ends after it."""
    value: float = 0.0
    """The token's value."""


class Passage(NamedTuple):
    """An example cut at its peak."""

    left: list[Span]
    """Before the peak token."""
    peak: Span
    """The peak token."""
    right: list[Span]
    """After it."""


def passage(example: Example, scale: float | int, reach: int | None = None) -> Passage:
    """The example as spans, on a colour scale that ends at `scale`; with `reach`, only so many tokens on either side of the peak."""
    cells = list(zip(example.tokens, example.values, strict=True))
    at = example.peak
    start, stop = (0, len(cells)) if reach is None else (max(at - reach, 0), at + 1 + reach)
    return Passage(token_spans(cells[start:at], scale), _span(*cells[at], scale), token_spans(cells[at + 1 : stop], scale))


def _span(token: str, value: float | int, scale: float | int) -> Span:
    title = f"{visible(token, spaces=True)}  {number(value)}" if value else ""
    alone = not token.strip(" ")
    text = visible(token, spaces=alone and value != 0)
    return Span(text, level(value, scale), value < 0, title, value != 0 and token.endswith("\n"), float(value))


def token_spans(cells: Sequence[tuple[str, float]], scale: float | int) -> list[Span]:
    """(token, value) pairs as spans: one for each token with a value, one for every line of the tokens between."""
    spans: list[Span] = []
    run: list[str] = []
    for token, value in cells:
        if value == 0:
            run.append(token)
            continue
        spans += _run_spans("".join(run))
        run.clear()
        spans.append(_span(token, value, scale))
    return spans + _run_spans("".join(run))


def _run_spans(run: str) -> list[Span]:
    """The text of tokens without value, a span for each of its lines."""
    if "\n" not in run:
        return [Span(visible(run), 0, False, "", False)] if run else []
    lines = run.split("\n")
    spans = [Span(visible(part + "\n"), 0, False, "", True) for part in lines[:-1]]
    return spans + ([Span(visible(lines[-1]), 0, False, "", False)] if lines[-1] else [])
