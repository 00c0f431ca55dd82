"""The measures of a dictionary, each with the definition that is printed beside it.

    metric_table({"TopK": {"fvu": 0.21, "l0": 32.0}, "Matching pursuit": {"fvu": 0.17, "l0": 31.6}})

is a table with one row per measure, one column per dictionary, and the definitions.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sae.errors import ConfigError
from sae.inspection.report_data import Column, Row, Table


class Metric(NamedTuple):
    """A measure of a dictionary."""

    name: str
    """As shown."""
    unit: str
    """Its unit; empty for a pure number."""
    better: Literal["", "higher", "lower"]
    """Which direction is good."""
    definition: str
    """What it is, in a sentence."""


METRICS: Mapping[str, Metric] = {
    "fvu": Metric(
        "FVU",
        "",
        "lower",
        "Fraction of variance unexplained: summed squared error over the summed squared distance of the activations from their mean.",
    ),
    "explained_variance": Metric("Explained variance", "", "higher", "1 − FVU."),
    "cosine": Metric("Cosine", "", "higher", "Mean cosine between an activation and its reconstruction."),
    "norm_ratio": Metric("Norm ratio", "", "", "Mean of |reconstruction| / |activation|; below 1 the dictionary shrinks."),
    "l0": Metric("L0", "latents per token", "", "Mean number of different latents that are not zero on a token."),
    "density": Metric("Density", "", "", "Mean share of tokens on which a latent fires: L0 / d_sae."),
    "alive": Metric("Alive", "", "higher", "Share of latents that fire on at least one of the tokens looked at."),
    "ce_clean": Metric("CE clean", "nats per token", "", "Cross-entropy of the language model's next-token prediction, untouched."),
    "ce_spliced": Metric("CE spliced", "nats per token", "lower", "The same with the activations replaced by their reconstruction."),
    "ce_mean_ablated": Metric("CE mean-ablated", "nats per token", "", "The same with the activations replaced by their mean over tokens."),
    "ce_zero_ablated": Metric("CE zero-ablated", "nats per token", "", "The same with the activations replaced by zero."),
    "ce_recovered_mean": Metric(
        "CE recovered, against mean",
        "",
        "higher",
        "(CE mean-ablated − CE spliced) / (CE mean-ablated − CE clean): 1 is no damage, 0 is as bad as the mean.",
    ),
    "ce_recovered_zero": Metric(
        "CE recovered, against zero",
        "",
        "higher",
        "The same against zero ablation, which flatters: zero is far from any activation the model has seen.",
    ),
    "kl": Metric(
        "KL",
        "nats per token",
        "lower",
        "Mean divergence of the spliced model's next-token distribution from the clean one's, KL(clean ‖ spliced).",
    ),
}
"""The measures by key, in the order shown."""


def metric_table(
    values: Mapping[str, Mapping[str, float | int | None]], *, title: str = "Dictionaries", caption: str = "", notes: tuple[str, ...] = ()
) -> Table:
    """Measures as rows, dictionaries as columns; `values[dictionary][key]` with keys of `METRICS`, absent ones a dash.

    Measures that no dictionary has are left out. Raises ConfigError for an unknown key.
    """
    for dictionary, measured in values.items():
        for key in measured:
            if key not in METRICS:
                raise ConfigError(f"values[{dictionary!r}] has the unknown measure {key!r}; known: {', '.join(METRICS)} (metric_table)")
    rows = []
    for key, metric in METRICS.items():
        cells = tuple(measured.get(key) for measured in values.values())
        if any(cell is not None for cell in cells):
            label = metric.name + (f" ({metric.unit})" if metric.unit else "")
            rows.append(Row((label, *cells), note=metric.definition, better=metric.better))
    columns = (Column("Measure"), *(Column(name) for name in values))
    return Table(title, columns, tuple(rows), caption=caption, notes=notes)
