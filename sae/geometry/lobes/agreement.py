"""Do two partitions of latents agree: adjusted mutual information against shuffled labels, and over a range of numbers of lobes.

    AMI = (MI(a, b) - E MI) / ((H(a) + H(b)) / 2 - E MI)          Vinh, Epps & Bailey 2010; 0 for independent labels, 1 for the same

Permuting labels changes MI alone, so its expectation and the entropies are computed once. Latents that fire more often are both nearer to
others and together with more, and this alone makes partitions agree: `strata` permutes only among latents of like frequency. Li et al. 2024
(arXiv 2410.19750) compare with 100 permutations and give the distance in standard deviations; an effect size it is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.coherence import null_directions
from sae.geometry.lobes.spectral import cosine_affinity, spectral_lobes
from sae.geometry.nulls import NullCurve, NullStatistic, compare, compare_curve


@dataclass(frozen=True, eq=False)
class LobeSweep:
    """Agreement of two families of partitions over numbers of lobes."""

    n_lobes: Int[Tensor, " n_numbers"]
    """Numbers of lobes, ascending."""
    agreement: NullCurve
    """AMI at each number against the same permutations of the latents."""
    best_n_lobes: int
    """The number with the largest AMI."""
    best: NullStatistic
    """That AMI against the largest AMI over the same numbers in each permutation: the search is in the null too."""


def compare_agreement(
    first: Int[Tensor, " n_latents"],
    second: Int[Tensor, " n_second"],
    *,
    n_null: int,
    generator: torch.Generator,
    strata: Int[Tensor, " n_strata"] | None = None,
) -> NullStatistic:
    """AMI of two labellings against permutations of the second, within `strata` if given. Latents with a negative label are left out.

    Raises ConfigError for labels of different lengths, fewer than 2 latents with both, and n_null < 2.
    """
    kept = _both_labelled([first], [second], strata)
    score = _Score(first[kept], second[kept])
    orders = _orders(kept, strata, n_null, generator)
    return compare(score(None), torch.tensor([score(order) for order in orders], dtype=torch.float64))


def sweep_agreement(
    first: Mapping[int, Int[Tensor, " n_latents"]],
    second: Mapping[int, Int[Tensor, " n_latents"]],
    *,
    n_null: int,
    generator: torch.Generator,
    strata: Int[Tensor, " n_latents"] | None = None,
) -> LobeSweep:
    """`compare_agreement` for every number of lobes that both mappings have (number -> labels), with the best number and its own null.

    Errors as `compare_agreement`; also mappings without a common number.
    """
    numbers = sorted(set(first) & set(second))
    if not numbers:
        raise ConfigError(
            f"first and second must have a number of lobes in common, got {sorted(first)} and {sorted(second)} (sweep_agreement)"
        )
    kept = _both_labelled([first[n] for n in numbers], [second[n] for n in numbers], strata)
    scores = [_Score(first[n][kept], second[n][kept]) for n in numbers]
    values = torch.tensor([score(None) for score in scores], dtype=torch.float64)
    orders = _orders(kept, strata, n_null, generator)
    draws = torch.tensor([[score(order) for score in scores] for order in orders], dtype=torch.float64).reshape(len(orders), len(numbers))
    best = int(values.argmax())
    return LobeSweep(
        n_lobes=torch.tensor(numbers),
        agreement=compare_curve(values, draws),
        best_n_lobes=numbers[best],
        best=compare(values[best].item(), draws.amax(dim=1)),
    )


def compare_agreement_with_geometry(
    lobes: Int[Tensor, " n_labels"],
    atoms: Float[Tensor, "n_latents d_in"],
    *,
    n_lobes: int,
    null: Literal["directions", "covariance"],
    n_null: int,
    generator: torch.Generator,
    seed: int,
) -> NullStatistic:
    """AMI of `lobes` with the spectral clusters of the atoms by cosine, against those of atoms without structure (`null_directions`).

    Every draw is clustered anew: the null has the cosines' own preference for some sizes of clusters. Time n_null + 1 spectral clusterings,
    F^3 up to 2,048 latents. Errors as `compare_agreement`, `spectral_lobes` and `null_directions`.
    """
    if len(lobes) != len(atoms):
        raise ConfigError(
            f"lobes must have one label for each of the {len(atoms)} atoms, got {len(lobes)} (compare_agreement_with_geometry)"
        )

    def agreement(rows: Float[Tensor, "n_latents d_in"]) -> float:
        clusters = spectral_lobes(cosine_affinity(rows), n_lobes=n_lobes, seed=seed).labels
        kept = _both_labelled([lobes], [clusters], None)
        return _Score(lobes[kept], clusters[kept])(None)

    value = agreement(atoms)
    draws = [agreement(null_directions(atoms, null=null, generator=generator)) for _ in range(n_null)]
    return compare(value, torch.tensor(draws, dtype=torch.float64))


def frequency_strata(firing: Int[Tensor, " n_latents"], *, n_strata: int) -> Int[Tensor, " n_latents"]:
    """Strata of like frequency and as nearly equal size as may be, 0 the rarest; latents that fire equally often may be parted.

    Raises ConfigError for n_strata outside 1..n_latents.
    """
    if not 1 <= n_strata <= len(firing):
        raise ConfigError(f"n_strata must be in 1..n_latents={len(firing)}, got {n_strata} (frequency_strata)")
    rank = firing.argsort(stable=True).argsort(stable=True)
    return rank * n_strata // len(firing)


class _Score:
    """AMI of two labellings, of which the second may be permuted."""

    def __init__(self, first: Int[Tensor, " n"], second: Int[Tensor, " n"]):
        from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

        a, b = (np.unique(each.cpu().numpy(), return_inverse=True)[1] for each in (first, second))
        self.first, self.second, self.width = a, b, int(b.max()) + 1
        table = contingency_matrix(a, b, sparse=True)
        self.expected = expected_mutual_information(table, len(a))
        self.entropies = _entropy(a), _entropy(b)
        self.n_cells = (int(a.max()) + 1) * self.width

    def __call__(self, order: np.ndarray | None) -> float:
        if min(self.n_cells // self.width, self.width) == 1:
            return 1.0 if self.n_cells == 1 else 0.0  # one cluster says nothing about two
        second = self.second if order is None else self.second[order]
        cells = np.bincount(self.first * self.width + second, minlength=self.n_cells) / len(second)
        cells = cells[cells > 0]
        mutual = sum(self.entropies) + (cells * np.log(cells)).sum()
        room = sum(self.entropies) / 2 - self.expected
        return float((mutual - self.expected) / (room if abs(room) > 1e-12 else np.copysign(1e-12, room)))


def _entropy(labels: np.ndarray) -> float:
    share = np.bincount(labels) / len(labels)
    return float(-(share * np.log(share)).sum())  # every label occurs


def _both_labelled(first: list[Tensor], second: list[Tensor], strata: Tensor | None) -> Int[Tensor, " n_kept"]:
    lengths = {len(each) for each in [*first, *second, *([] if strata is None else [strata])]}
    if len(lengths) > 1:
        raise ConfigError(f"labels and strata must be of one length, got {sorted(lengths)} (compare_agreement)")
    kept = torch.stack([each.cpu() >= 0 for each in [*first, *second]]).all(dim=0).nonzero().flatten()
    if len(kept) < 2:
        raise ConfigError(f"at least 2 latents must have a label in both partitions, got {len(kept)} (compare_agreement)")
    return kept


def _orders(
    kept: Int[Tensor, " n_kept"], strata: Int[Tensor, " n_latents"] | None, n_null: int, generator: torch.Generator
) -> list[np.ndarray]:
    """Permutations of the kept latents that leave every one in its stratum."""
    stratum = torch.zeros(len(kept), dtype=torch.int64) if strata is None else strata.cpu()[kept]
    places = stratum.argsort(stable=True)
    orders = []
    for _ in range(n_null):
        shuffled = torch.randperm(len(kept), generator=generator, device=generator.device).cpu()
        order = torch.empty_like(places)
        order[places] = shuffled[stratum[shuffled].argsort(stable=True)]
        orders.append(order.numpy())
    return orders
