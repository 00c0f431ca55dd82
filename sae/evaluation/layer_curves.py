"""The numbers of one layer, each beside its null: what `sae.evaluation.layer_quality` puts on curves."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.layer_passes import PromptBatch
from sae.geometry.layerwise import (
    MatchedGaussian,
    compare_alignment,
    compare_curvature,
    compare_dime,
    compare_info_nce,
    compare_lidar,
    compare_prompt_entropy,
    matrix_entropy,
    sampled_uniformity,
    uniformity,
    von_neumann_entropy,
    wasserstein_uniformity,
)
from sae.geometry.nulls import NullStatistic, compare, random_directions
from sae.geometry.spectrum import (
    average_cosine,
    compare_with_isotropic,
    covariance_eigenvalues,
    effective_rank,
    isoscore,
    participation_ratio,
    stable_rank,
)

METRICS = {
    "prompt_entropy": "von Neumann entropy of a prompt's tokens as they are, nats, mean over prompts; null: tokens dealt to the prompts at random",
    "prompt_entropy_centred": "the same for centred tokens of unit length, as a share of min(ln n, ln d); null: tokens dealt at random",
    "curvature": "mean angle between successive steps from token to token, radians; null: each prompt's tokens in random order",
    "dataset_entropy": "von Neumann entropy of the prompts' mean vectors, centred and of unit length, nats; null: Gaussian of equal mean and covariance",
    "von_neumann_entropy": "the same with unit length but not centred (VNE), nats; null: Gaussian of equal mean and covariance",
    "info_nce": "loss of telling a prompt's second view among all others, nats, low is good; null: views paired at random",
    "info_nce_centred": "the same with the mean of all vectors removed first; null: views paired at random",
    "lidar": "number of directions in which prompts differ by more than their views; null: views dealt to the prompts at random",
    "dime": "what the joint entropy of two views loses by their being paired rightly, nats; null: other pairings",
    "alignment": "mean squared distance of the two views, unit length, low is good; null: views paired at random",
    "uniformity": "logarithm of the mean Gaussian potential of pairs, low is even; null: directions uniform on the sphere",
    "wasserstein_uniformity": "minus the distance to an even sphere, 0 is even, -1.414 a point; null: directions uniform on the sphere",
    "average_cosine": "mean cosine of two prompts' vectors; null: directions uniform on the sphere",
    "participation_ratio": "dimensions of the prompts' vectors, by the variance of variances; null: isotropic Gaussian of as many points",
    "effective_rank": "dimensions by the entropy of the variances; null: isotropic Gaussian of as many points",
    "stable_rank": "variance over the variance of the largest direction; null: isotropic Gaussian of as many points",
    "isoscore": "0 on a line, 1 where all directions vary equally; null: isotropic Gaussian of as many points",
}
"""Name of each number -> what it says, its unit, and what it is compared with."""
PROMPT_METRICS = frozenset({"prompt_entropy", "prompt_entropy_centred", "curvature"})
"""Means over prompts, of their tokens."""
VIEW_METRICS = frozenset({"info_nce", "info_nce_centred", "lidar", "dime", "alignment"})
"""Of the mean vectors of two or more views of each prompt."""
ALL_PAIRS = 8192
"""Most prompts whose uniformity is taken over all pairs; of more, over a million random pairs."""
DIME_PROMPTS = 256
"""DiME decomposes matrices of prompts by prompts, and is taken of so many of the first prompts."""

SPECTRAL: dict[str, Callable[[Tensor], float]] = {
    "participation_ratio": participation_ratio,
    "effective_rank": lambda values: effective_rank(values, of="eigenvalues"),
    "stable_rank": stable_rank,
    "isoscore": isoscore,
}
PAIRED: dict[str, Callable[..., NullStatistic]] = {
    "info_nce": compare_info_nce,
    "info_nce_centred": partial(compare_info_nce, rows="centred-unit"),
    "alignment": compare_alignment,
}


def prompt_statistics(batch: PromptBatch, names: Sequence[str], n_null: int, seed: int) -> dict[str, NullStatistic]:
    """The means over the prompts of `batch` of the prompt metrics `names`, each with its null."""
    found = {}
    for name in names:
        options = {"n_null": n_null, "generator": torch.Generator().manual_seed(seed)}
        if name == "curvature":
            found[name] = compare_curvature(batch.tokens, batch.lengths, **options)
        elif name == "prompt_entropy":
            found[name] = compare_prompt_entropy(batch.tokens, batch.lengths, null="shuffled", **options)
        else:
            centred = {"rows": "centred-unit", "normalisation": "max"}
            found[name] = compare_prompt_entropy(batch.tokens, batch.lengths, null="shuffled", **centred, **options)
    return found


def pooled_statistics(
    pooled: Float[Tensor, "prompts d"],
    views: Float[Tensor, "prompts n_views d"] | None,
    names: Sequence[str],
    n_null: int,
    seed: int,
) -> dict[str, NullStatistic]:
    """The numbers `names` of the prompts' vectors and of those of their views, each with its null; every null starts from `seed`."""
    found = _entropies(pooled, [n for n in names if n in ("dataset_entropy", "von_neumann_entropy")], n_null, seed)
    eigenvalues = covariance_eigenvalues(pooled) if set(names) & set(SPECTRAL) else None
    for name in names:
        options = {"n_null": n_null, "generator": torch.Generator().manual_seed(seed)}
        if eigenvalues is not None and name in SPECTRAL:
            found[name] = compare_with_isotropic(eigenvalues, SPECTRAL[name], n=len(pooled), **options)
        elif views is not None and name in PAIRED:
            found[name] = PAIRED[name](views[:, 0], views[:, 1], **options)
        elif views is not None and name == "lidar":
            found[name] = compare_lidar(views, **options)
        elif views is not None and name == "dime":
            found[name] = compare_dime(views[:DIME_PROMPTS, 0], views[:DIME_PROMPTS, 1], **options)
        elif name in SPHERE:
            draws = _sphere_null(name, *pooled.shape, n_null, seed)
            found[name] = compare(SPHERE[name](pooled, torch.Generator().manual_seed(seed)), torch.tensor(draws, dtype=torch.float64))
    return {name: found[name] for name in names}


def _entropies(pooled: Tensor, names: Sequence[str], n_null: int, seed: int) -> dict[str, NullStatistic]:
    """The entropies of unit rows against Gaussian clouds of the same mean and covariance, which they share."""
    if not names:
        return {}
    measures: dict[str, Callable[[Tensor], float]] = {
        "dataset_entropy": lambda cloud: matrix_entropy(cloud, rows="centred-unit"),
        "von_neumann_entropy": von_neumann_entropy,
    }
    gaussian, generator = MatchedGaussian.of(pooled), torch.Generator().manual_seed(seed)
    clouds = (gaussian.draw(generator) for _ in range(n_null))
    draws = torch.tensor([[measures[name](cloud) for name in names] for cloud in clouds], dtype=torch.float64)
    return {name: compare(measures[name](pooled), draws[:, i]) for i, name in enumerate(names)}


SPHERE: dict[str, Callable[[Tensor, torch.Generator], float]] = {
    "uniformity": lambda points, generator: (
        uniformity(points) if len(points) <= ALL_PAIRS else sampled_uniformity(points, generator=generator)
    ),
    "wasserstein_uniformity": lambda points, _: wasserstein_uniformity(points),
    "average_cosine": lambda points, _: average_cosine(points),
}


@cache
def _sphere_null(name: str, n: int, d: int, n_null: int, seed: int) -> tuple[float, ...]:
    """The number for independent directions: one null for all layers."""
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(1, d, dtype=torch.float64)
    return tuple(SPHERE[name](random_directions(n, like, generator=generator), generator) for _ in range(n_null))
