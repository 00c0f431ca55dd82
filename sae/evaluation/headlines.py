"""Headlines: the dozen numbers that a researcher asks of a dictionary first, in the order in which they are read.

The other numbers of a report are no less exact; these are what a summary and a comparison show before them. Which way a number is better is
said here, once, and only where one way is better whatever the question.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sae.evaluation.batteries import Finding

Better = Literal["", "higher", "lower"]


@dataclass(frozen=True)
class Headline:
    """One line of a summary."""

    label: str
    """What the line is called."""
    measure: str
    """Name of the measure."""
    quantity: str
    """Name of the quantity."""
    better: Better = ""
    """Which way is better; empty where that depends on the question."""
    subject: str | None = ""
    """The subject that is shown; None for a line for each."""

    def of(self, findings: Iterable[Finding]) -> list[Finding]:
        """The findings that the line shows."""
        return [
            found
            for found in findings
            if (found.measure, found.name) == (self.measure, self.quantity) and (self.subject is None or found.subject == self.subject)
        ]


HEADLINES: tuple[Headline, ...] = (
    Headline("FVU", "reconstruction", "FVU", "lower"),
    Headline("FVU of principal components", "reconstruction", "FVU of PCA", subject=None),
    Headline("explained variance", "reconstruction", "explained variance", "higher"),
    Headline("cosine", "reconstruction", "cosine", "higher"),
    Headline("reconstruction bias", "reconstruction", "reconstruction bias"),
    Headline("L0", "reconstruction", "L0"),
    Headline("dead share", "reconstruction", "dead share", "lower"),
    Headline("CE increase", "downstream", "CE increase", "lower"),
    Headline("CE recovered", "downstream", "CE recovered", "higher", subject=None),
    Headline("KL", "downstream", "KL", "lower"),
    Headline("description length", "description", "description length"),
    Headline("description length, its distortion", "description", "distortion"),
    Headline("absorption fraction", "absorption", "absorption fraction", "lower"),
    Headline("full absorption rate", "absorption", "full absorption rate", "lower"),
    Headline("letters that absorption is measured on", "absorption", "letters that count"),
    Headline("split letters", "letter_splitting", "split letters"),
    Headline("probes on one latent, accuracy", "sparse_probing", "accuracy of latents", "higher", "k = 1"),
    Headline("probes on five latents, accuracy", "sparse_probing", "accuracy of latents", "higher", "k = 5"),
    Headline("probes on five dimensions, accuracy", "sparse_probing", "accuracy of dimensions", "", "k = 5"),
    Headline("probes on all dimensions, accuracy", "sparse_probing", "accuracy of all dimensions"),
    Headline("SCR, 20 latents taken away", "scr", "SCR", "", "n = 20"),
    Headline("TPP, 20 latents taken away", "tpp", "TPP", "", "n = 20"),
    Headline("disentanglement of attributes", "disentanglement", "disentanglement", "higher"),
    Headline("atoms of another seed, mean cosine of pairs", "stability", "mean cosine of pairs", "higher"),
    Headline("planted features, MCC", "recovery", "MCC", "higher"),
    Headline("planted features, firing F1", "recovery", "firing F1", "higher"),
)
"""In the order of a summary. SCR and TPP rank dictionaries unreliably, so neither way is called better."""


@dataclass(frozen=True)
class Line:
    """A line of a summary with its number."""

    label: str
    """What it is called, with the subject where there are several."""
    better: Better
    """Which way is better."""
    found: Finding
    """The number."""

    @property
    def key(self) -> tuple[str, str, str]:
        """(measure, quantity, subject)."""
        return (self.found.measure, self.found.name, self.found.subject)


def summary_lines(findings: Sequence[Finding], headlines: Sequence[Headline] = HEADLINES) -> list[Line]:
    """The headlines that were measured, in their order."""
    lines = []
    for headline in headlines:
        several = headline.of(findings)
        for found in several:
            named = f"{headline.label}, {found.subject}" if headline.subject is None and found.subject else headline.label
            lines.append(Line(named, headline.better, found))
    return lines


@dataclass(frozen=True)
class ComparedRow:
    """One number of every dictionary."""

    label: str
    """What it is called."""
    better: Better
    """Which way is better; empty where that depends on the question."""
    findings: Mapping[str, Finding]
    """The number of each dictionary that has it, by the dictionary's name."""
    best: str
    """The dictionary whose value is best, where its interval overlaps no other's; or empty."""
    headline: bool
    """Whether it is one of the headlines."""

    @property
    def title(self) -> str:
        """The label with its unit, and an arrow towards the better."""
        unit = next(iter(self.findings.values())).unit
        return self.label + (f" ({unit})" if unit else "") + {"higher": " ↑", "lower": " ↓", "": ""}[self.better]
