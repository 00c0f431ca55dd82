"""A text as a strip of tokens, each on the colour scale, each a link where the page has more to say about it."""

from collections.abc import Callable, Sequence
from html import escape

from markupsafe import Markup

from sae.inspection.format import level, number, visible
from sae.inspection.passages import Look

LOOK = Look("page")


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
