"""Findings in words: a value with its unit, its interval, its null and its p-value as text, in pages, notebooks and on the console."""

import math

from sae.evaluation.batteries.findings import Finding, smallest_p
from sae.evaluation.numbers import number


def value_text(found: Finding, digits: int = 4) -> str | None:
    """The value with its unit; None where it is not defined."""
    if found.value is None:
        return None
    return _plain(found.value, digits) + (f" {found.unit}" if found.unit else "")


def _plain(value: float, digits: int) -> str:
    whole = value.is_integer() and 1 <= abs(value) < 1e6
    return number(int(value) if whole else value, digits)


def interval_text(found: Finding) -> str | None:
    """The ends of the 95 % interval, to two digits of its width; None where there is none."""
    if found.low is None or found.high is None:
        return None
    width = found.high - found.low
    if width <= 0:
        return _plain(found.low, 4)
    decimals = max(0, 1 - math.floor(math.log10(width)))
    if decimals > 6 or max(abs(found.low), abs(found.high)) >= 1e5:
        return f"{number(found.low, 4)} to {number(found.high, 4)}"
    return " to ".join(f"{round(end, decimals) + 0.0:.{decimals}f}".replace("-", "−") for end in (found.low, found.high))


def null_text(found: Finding, *, short: bool = False) -> str:
    """The null as mean ± standard deviation and its number of draws; a dash where there is none."""
    if found.null_mean is None:
        return "–"
    spread = "" if found.null_sd is None else f" ± {number(found.null_sd, 2)}"
    draws = (
        "exact"
        if found.n_null is None and found.p is not None
        else ""
        if found.n_null is None
        else f"n={found.n_null:,}".replace(",", "\u202f")
    )
    return f"{number(found.null_mean)}{spread}" + (f" ({draws})" if draws and not short else "")


def p_text(found: Finding) -> str:
    """The p-value; `≤` where the null could not give a smaller one."""
    if found.p is None:
        return "–"
    if found.p <= 1e-12:
        return "<10⁻¹²"
    return ("≤" if found.p <= smallest_p(found) * (1 + 1e-9) else "") + number(found.p, 2)
