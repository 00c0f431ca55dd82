"""Findings: numbers beside what chance gives, and the rule that says which of them stand out.

    p_(1) <= ... <= p_(m)      p-values of the m findings that have a null
    stands out  <=>  p <= p_(k),   k = max{ i : p_(i) <= q i / m }            Benjamini & Hochberg, J. R. Stat. Soc. B 57 (1995), 289-300

Of the findings that stand out by chance alone the expected share is at most q where the p-values are independent or positively dependent.
A Monte-Carlo p of n draws is never below 1 / (1 + n): a value beyond all its draws that the rule does not let stand out is called
`too few draws`, which means that more of them could decide it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, benjamini_hochberg

Alternative = Literal["greater", "less", "two-sided"]
StandsOut = Literal["yes", "no", "too few draws", "no null"]
RATE = 0.05
"""Expected share of chance among what stands out."""


@dataclass(frozen=True)
class Quantity:
    """What a number is: the part of a finding that is the same on every input."""

    name: str
    """Short name, unique in its measure."""
    meaning: str
    """What it says about a dictionary or a cloud of activations, in a sentence, with what high and low values mean."""
    source: str
    """Where the definition is from."""
    unit: str = ""
    """Unit; empty for a pure number."""
    alternative: Alternative = "two-sided"
    """Which side of the null counts as an effect."""
    null: str = ""
    """What the null is, in words; empty where there is none."""
    formula: str = ""
    """The definition, as it is printed beside the number; empty where `meaning` says it."""


@dataclass(frozen=True)
class Number:
    """One measured value with its null."""

    quantity: str
    """Name of the `Quantity`."""
    value: float | None
    """The value; None where it is not defined."""
    subject: str = ""
    """What was measured where there are several: a site, a cluster, a pair."""
    null_mean: float | None = None
    """Mean of the null draws, or the exact mean."""
    null_sd: float | None = None
    """Standard deviation of the null."""
    n_null: int | None = None
    """Number of draws; None where there is no null, or where its law is exact."""
    p: float | None = None
    """p-value on the quantity's side; None where there is no null."""
    note: str = ""
    """Sizes, intervals, and what else helps to read it."""
    tries: int = 1
    """How many the subject was chosen from; `p` is corrected for it, p = 1 - (1 - p_single)^tries."""
    low: float | None = None
    """Lower end of a 95 % interval of the value; None where there is none."""
    high: float | None = None
    """Upper end of the interval."""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None) or (self.low is not None and self.value is None):
            raise ConfigError(
                f"low and high must come together and with a value, got {self.low} and {self.high} (Number {self.quantity!r})"
            )
        for name in ("value", "null_mean", "null_sd", "p", "low", "high"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} must be finite or None, got {value} (Number {self.quantity!r})")
        if self.p is not None and not (0 <= self.p <= 1 and self.null_mean is not None and self.value is not None):
            raise ConfigError(f"p must be in 0..1 and come with a value and a null, got {self.p} (Number {self.quantity!r})")


@dataclass(frozen=True)
class Finding:
    """A number with what it is, what it means, and whether it stands out."""

    name: str
    """Name of the quantity."""
    subject: str
    """What was measured where there are several; or empty."""
    measure: str
    """The measure that gave it."""
    value: float | None
    """The value; None where it is not defined."""
    unit: str
    """Its unit; empty for a pure number."""
    null_mean: float | None
    """Mean of the null."""
    null_sd: float | None
    """Standard deviation of the null."""
    n_null: int | None
    """Number of null draws; None for an exact law, or no null."""
    p: float | None
    """p-value; None without a null."""
    alternative: Alternative
    """Which side of the null counts."""
    null: str
    """What the null is, in words."""
    meaning: str
    """What the number says, in a sentence."""
    source: str
    """Where the definition is from."""
    note: str
    """Sizes and intervals."""
    tries: int
    """How many the subject was chosen from; `p` is corrected for it."""
    stands_out: StandsOut
    """After the correction for the number of findings."""
    low: float | None = None
    """Lower end of a 95 % interval of the value; None where there is none."""
    high: float | None = None
    """Upper end of the interval."""
    formula: str = ""
    """The definition of the value; empty where `meaning` says it."""


def of_null(quantity: Quantity, found: NullStatistic, *, subject: str = "", note: str = "", tries: int = 1) -> Number:
    """The number of a statistic that has null draws, with the p-value of the quantity's side; two-sided is twice the smaller one.

    A subject chosen as the best of `tries` has its p-value corrected for the choice.
    """
    p = {
        "greater": found.p_greater,
        "less": found.p_less,
        "two-sided": min(1.0, 2 * min(found.p_greater, found.p_less)),
    }[quantity.alternative]
    return Number(quantity.name, found.value, subject, found.null_mean, found.null_sd, found.n_null, of_tries(p, tries), note, tries)


def of_tries(p: float, tries: int) -> float:
    """1 - (1 - p)^tries: the chance that the smallest of so many independent p-values is at most p (Sidak 1967)."""
    return p if tries == 1 else -math.expm1(tries * math.log1p(-p)) if p < 1 else 1.0


def finding(quantity: Quantity, number: Number, *, measure: str) -> Finding:
    """The finding, not yet judged: it stands out in nothing."""
    if quantity.name != number.quantity:
        raise ConfigError(f"number must be of {quantity.name!r}, got one of {number.quantity!r} (finding)")
    return Finding(
        name=quantity.name,
        subject=number.subject,
        measure=measure,
        value=number.value,
        unit=quantity.unit,
        null_mean=number.null_mean,
        null_sd=number.null_sd,
        n_null=number.n_null,
        p=number.p,
        alternative=quantity.alternative,
        null=quantity.null if number.null_mean is not None else "",
        meaning=quantity.meaning,
        source=quantity.source,
        note=number.note,
        tries=number.tries,
        stands_out="no null" if number.p is None else "no",
        low=number.low,
        high=number.high,
        formula=quantity.formula,
    )


def judged(findings: Sequence[Finding], *, rate: float = RATE) -> list[Finding]:
    """The same findings, each saying whether it stands out among them all by the rule of the module's text. Raises ConfigError for a rate
    outside (0, 1).
    """
    if not 0 < rate < 1:
        raise ConfigError(f"rate must be inside (0, 1), got {rate} (judged)")
    threshold = largest_rejected([f.p for f in findings if f.p is not None], rate)
    return [replace(f, stands_out=_verdict(f, threshold)) for f in findings]


def largest_rejected(p_values: Sequence[float], rate: float) -> float:
    """The largest p-value that is rejected at that rate of false discoveries; 0 where none is, and p-values of 0 are rejected always."""
    p = torch.tensor(p_values, dtype=torch.float64)
    return max(p[benjamini_hochberg(p) <= rate].tolist(), default=0.0)


def _verdict(found: Finding, threshold: float) -> StandsOut:
    if found.p is None:
        return "no null"
    if found.p <= threshold:
        return "yes"
    return "too few draws" if found.p <= smallest_p(found) * (1 + 1e-9) else "no"


def smallest_p(found: Finding) -> float:
    """The smallest p that the finding's null could have given; 0 for an exact law."""
    if found.n_null is None:
        return 0.0
    return of_tries((2 if found.alternative == "two-sided" else 1) / (1 + found.n_null), found.tries)
