"""Any measure of likeness over all pairs of layers, and the largest of them against its own null.

The best of L x L' layer pairs is larger than a typical pair even where nothing is shared: its null is the best pair after the same shuffle of
the stimuli in every layer of the second model,

    p = (1 + #{max_ab s(x_a, P y_b) >= max_ab s(x_a, y_b)}) / (1 + n_null)

To say which single pairs stand out, each is compared with the largest of all pairs, too (Westfall & Young 1993, max-T), which bounds the chance
of one false entry in the whole matrix. There every pair is first put on its own scale, z = (s - mean) / sd over the data and its shuffles: the
bias of a measure grows with the width of a layer's spectrum, and would hide pairs of low bias behind pairs of high bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.representations.stimuli import RepresentationMeasure, require_same_stimuli, stimulus_orders


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """A measure over all pairs of layers. Within one model the diagonal compares a layer with itself and is left out of `maximum`."""

    values: Float[Tensor, "first second"]
    """The measure of each pair of layers; larger is more alike. float64, like all below."""
    null_mean: Float[Tensor, "first second"]
    """Mean over permutations of the stimuli."""
    null_sd: Float[Tensor, "first second"]
    """Standard deviation over permutations."""
    n_null: int
    """Number of permutations."""
    p_greater: Float[Tensor, "first second"]
    """p-value of each pair alone, not corrected for their number."""
    p_family: Float[Tensor, "first second"]
    """p-value of each pair against the largest z of all pairs: one false entry below alpha with probability at most alpha. Take 99 permutations or
    more: with few of them, an entry that is far out widens its own scale."""
    maximum: NullStatistic
    """The largest pair, against the largest pair after each permutation."""
    best: tuple[int, int]
    """Which pair that is."""
    calibrated: Float[Tensor, "first second"]
    """(value - null mean) / (1 - null mean): 0 by chance and 1 at the top, for measures whose top is 1."""


def layer_matrix(
    measure: RepresentationMeasure, first: Sequence[Tensor], second: Sequence[Tensor] | None = None
) -> Float[Tensor, "first second"]:
    """measure(first[a], second[b]) of all pairs; within one model where `second` is None. Each layer is prepared once.

    Raises ConfigError for no layer, layers with different numbers of stimuli, and as the measure; a NaN of the measure stays.
    """
    a, b = _prepared(measure, first, second)
    return _scores(measure, a, b, None, within=second is None)


def compare_layers(
    measure: RepresentationMeasure,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | None = None,
    *,
    n_null: int,
    generator: torch.Generator,
) -> LayerComparison:
    """`layer_matrix` with its null: `n_null` permutations of the stimuli, each the same for all layers of the second model.

    Costs (1 + n_null) scores per pair of layers. Raises ConfigError as `layer_matrix`, for NaN scores, n_null < 2, and a single layer within
    one model.

        found = compare_layers(MutualNeighbours(k=10), layers_of_a, layers_of_b, n_null=99, generator=generator)
        found.maximum.value, found.maximum.p_greater     # the Platonic score, and its honest p-value
    """
    within = second is None
    if within and len(first) < 2:
        raise ConfigError(f"first must hold at least 2 layers when compared with itself, got {len(first)} (compare_layers)")
    a, b = _prepared(measure, first, second)
    values = _scores(measure, a, b, None, within=within)
    orders = stimulus_orders(len(first[0]), n_null, generator=generator)
    draws = torch.stack([_scores(measure, a, b, order.to(first[0].device), within=within) for order in orders])
    if values.isnan().any() or draws.isnan().any():
        raise ConfigError(f"{measure} must be defined for every pair of layers, got NaN; choose another variant of it (compare_layers)")
    counted = ~torch.eye(len(values), dtype=torch.bool) if within else torch.ones_like(values, dtype=torch.bool)
    largest = draws[:, counted].amax(dim=1)
    place = int(values.masked_fill(~counted, -torch.inf).argmax())
    mean = draws.mean(dim=0)
    return LayerComparison(
        values=values,
        null_mean=mean,
        null_sd=draws.std(dim=0),
        n_null=n_null,
        p_greater=(1 + (draws >= values).sum(dim=0)).double() / (1 + n_null),
        p_family=_family(values, draws, counted),
        maximum=compare(float(values.flatten()[place]), largest),
        best=divmod(place, values.shape[1]),
        calibrated=(values - mean) / (1 - mean),
    )


def _prepared(measure: RepresentationMeasure, first: Sequence[Tensor], second: Sequence[Tensor] | None) -> tuple[list[Any], list[Any]]:
    if len(first) == 0 or (second is not None and len(second) == 0):
        raise ConfigError("first and second must hold at least 1 layer each, got none (layers)")
    for layer in [*first, *(second or ())]:
        require_same_stimuli(first[0], layer, where="layers")
    a = [measure.prepare(layer) for layer in first]
    return a, a if second is None else [measure.prepare(layer) for layer in second]


def _scores(measure: RepresentationMeasure, a: list[Any], b: list[Any], order: Tensor | None, *, within: bool) -> Tensor:
    """All pairs. Within one model a symmetric measure is computed once per pair: s(x_a, P x_b) and s(x_b, P x_a) have the same law."""
    scores = torch.empty(len(a), len(b), dtype=torch.float64)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            if within and measure.symmetric and j < i:
                scores[i, j] = scores[j, i]
            else:
                scores[i, j] = measure.score(left, right, order)
    return scores


def _family(values: Tensor, draws: Tensor, counted: Tensor) -> Tensor:
    """max-T p-values. The data are among what mean and sd are taken over, as every shuffle is: all stay exchangeable under the null."""
    together = torch.cat([values[None], draws])
    spread = together.std(dim=0)
    z = (together - together.mean(dim=0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
    largest = z[1:, counted].amax(dim=1)
    return (1 + (largest[:, None, None] >= z[0]).sum(dim=0)).double() / (1 + len(draws))
