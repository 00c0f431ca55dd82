"""What the formats of SAEDashboard and Neuronpedia share: identifiers, groups of passages, the arrays of a feature.

    group           bin_min   bin_max   bin_contains
    strongest       -1        max       -1
    interval        low       high      firings in (low, high] / all firings of the latent
    most negative   min       0         firings below zero / all firings of the latent

Our intervals are half-open, (low, high]: zero, which is no firing, is in none of them, so their shares and that of the negative values add
up to 1. (SAEDashboard counts both ends, and zeros in its lowest one.) The last group is there for signed codes only.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sae.errors import ConfigError
from sae.inspection.exports.folder import clean, short
from sae.inspection.exports.provenance import Provenance
from sae.inspection.index import FeatureIndex
from sae.inspection.records import Example, FeatureRecord, FeatureSource, TokenEffect

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
LAYER = re.compile(r"blocks\.(\d+)\.")
DROPPED = (
    "Selection steps of a matching pursuit, random and near-miss passages, quantiles, bits and driving tokens have no place in this "
    "format; the JSON and Parquet exports keep them."
)
SIGNED = "Negative coefficients keep their sign; the most negative passages are a group from the smallest value to 0."
HALF_OPEN = "Intervals are half-open, (bin_min, bin_max]: a value of zero is no firing and is in none of them."
NO_LOGIT_HISTOGRAM = "The distribution of the logit effects over the whole vocabulary is not kept by an index, only its two ends."
NO_NEURONS = "Alignment and correlation with neurons of the model are not part of an index."


@dataclass(frozen=True, kw_only=True)
class PeerIds:
    """How a dictionary is called there: model `gpt2-small`, layer 6, source set `res-jb`; together the source `6-res-jb`."""

    model_id: str
    """Id of the model; lower case."""
    layer: int
    """Layer that the dictionary reads."""
    source_set: str
    """Id of the set of dictionaries, one a layer; lower case."""

    def __post_init__(self) -> None:
        for name in ("model_id", "source_set"):
            if not IDENTIFIER.fullmatch(getattr(self, name)):
                what = "lower-case letters, digits, '.', '_' and '-', at most 128, a letter or digit first"
                raise ConfigError(f"{name} must be {what}, got {getattr(self, name)!r} (export)")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise ConfigError(f"layer must be an integer of at least 0, got {self.layer!r} (export)")

    @property
    def source(self) -> str:
        """Id of the source."""
        return f"{self.layer}-{self.source_set}"


def peer_ids(source: FeatureSource, provenance: Provenance, *, model_id: str | None, source_set: str | None, layer: int | None) -> PeerIds:
    """The identifiers given, lower-cased; by default the model's name, the dictionary's name, and the layer that the site names."""
    found = LAYER.match(source.site)
    return PeerIds(
        model_id=_slug(provenance.model or "model") if model_id is None else model_id.lower(),
        source_set=_slug(source.dictionary) if source_set is None else source_set.lower(),
        layer=(int(found[1]) if found else 0) if layer is None else layer,
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-._")[:128] or "unnamed"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A label of a feature."""

    text: str
    """What it says."""
    method: str = ""
    """Name of the method that made it; empty for a person."""
    model: str = ""
    """Name of the model that wrote it; empty for a person."""


Explanations = Mapping[int, Sequence[Explanation]]


class Group(NamedTuple):
    """Passages that are shown under one heading."""

    low: float
    """bin_min."""
    high: float
    """bin_max."""
    share: float
    """bin_contains."""
    examples: tuple[Example, ...]
    """The passages."""


def groups(record: FeatureRecord) -> Iterator[Group]:
    """The groups of a feature: strongest, intervals from the highest, most negative; those without passages are left out."""
    found = [Group(-1.0, short(record.max), -1.0, record.examples)]
    found += [Group(short(i.low), short(i.high), i.n_active / max(record.n_active, 1), i.examples) for i in record.intervals]
    if record.signed:
        found.append(Group(short(record.min), 0.0, share_below_zero(record), record.negative_examples))
    return (group for group in found if group.examples)


def share_below_zero(record: FeatureRecord) -> float:
    """Firings with a negative value / all firings; exact, since zero is an edge of the histogram."""
    edges, counts = record.histogram.edges, record.histogram.counts
    return sum(n for n, high in zip(counts, edges[1:], strict=True) if high <= 0) / max(record.n_active, 1)


def signed_note(index: FeatureIndex) -> list[str]:
    """The note about signs, where any value is negative."""
    return [SIGNED] if float(index.statistics.min.min(initial=0.0)) < 0 else []


def peer_text(text: str) -> str:
    """A text as these formats can hold it: valid UTF-8 without NUL, which their data bases refuse."""
    return clean(text).replace("\0", "␀")


def shorts(values: Sequence[float] | Float[np.ndarray, "n"]) -> list[float]:
    """The values with as few digits as float32 needs."""
    return [0.0 if value == 0 else short(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]


def feature_arrays(record: FeatureRecord, atom: Float[np.ndarray, "d_in"] | None) -> dict[str, Any]:
    """The fields that a feature has in both formats. What an index does not know is empty."""
    edges = record.histogram.edges
    centres = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    correlated = record.related.get("correlation", ())
    return {
        "neuron_alignment_indices": [],
        "neuron_alignment_values": [],
        "neuron_alignment_l1": [],
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [other.index for other in correlated],
        "correlated_features_l1": [],
        "correlated_features_pearson": [short(other.value) for other in correlated],
        **logit_arrays(record),
        "frac_nonzero": record.density,
        "freq_hist_data_bar_values": shorts(centres) if record.alive else [],
        "freq_hist_data_bar_heights": [float(n) for n in record.histogram.counts] if record.alive else [],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
        "vector": [] if atom is None else shorts(atom),
    }


def logit_arrays(record: FeatureRecord) -> dict[str, Any]:
    """Promoted and suppressed tokens with their effects."""

    def parts(effects: tuple[TokenEffect, ...]) -> tuple[list[str], list[float]]:
        return [peer_text(effect.token) for effect in effects], [short(effect.effect) for effect in effects]

    (up, up_values), (down, down_values) = parts(record.promoted), parts(record.suppressed)
    return {"neg_str": down, "neg_values": down_values, "pos_str": up, "pos_values": up_values}


def checked_atoms(atoms: Float[np.ndarray, "n d_in"] | None, d_sae: int) -> None:
    """Raises ConfigError unless there is an atom for each latent."""
    if atoms is not None and len(atoms) != d_sae:
        raise ConfigError(f"atoms must have a row for each of the {d_sae} latents, got {len(atoms)} (export)")


def batches(latents: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The latents in batches. Raises ConfigError for a size below 1."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"batch_size must be a positive integer, got {size!r} (export)")
    return (latents[begin : begin + size] for begin in range(0, len(latents), size))
