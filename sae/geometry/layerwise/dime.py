"""DiME, the difference of matrix entropies: how much two views share, without a model of either.

    DiME = E_P S(K_A o P K_B P^T) - S(K_A o K_B),        P a random permutation, o the entrywise product, S the matrix entropy

Skean et al. 2023 (arXiv 2301.08164). K_A and K_B are the Gram matrices of the views with unit diagonals (cosines of the rows). Pairs that belong
together make their product more structured than pairs at random. c equal clusters in both views give ln c. Rows that are all orthogonal give 0
and not the largest value: the product is the identity under every permutation.

The matrices are n x n by definition, and the permutation is one of rows; published code that takes d x d covariances where n > d permutes
coordinates, another thing. So this is for some hundred to a few thousand prompts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.layerwise.contrast import require_pair
from sae.geometry.layerwise.entropy import renyi_entropy
from sae.geometry.layerwise.preparation import Preparation, prepared
from sae.geometry.nulls import NullStatistic, compare

LARGEST = 4096
"""Most rows: three float64 matrices of 128 MiB."""


def dime(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n m"],
    *,
    alpha: float = 1.0,
    centred: bool = False,
    n_permutations: int = 10,
    generator: torch.Generator,
) -> float:
    """DiME in nats; row i of `first` and row i of `second` are of one prompt, and their widths may differ. Time n^3 per permutation.

    `centred` removes the mean of each view first. Raises ConfigError for fewer than 2 or more than 4096 rows, views of different lengths,
    NaN or Inf, a row without a direction, and n_permutations < 1.
    """
    if n_permutations < 1:
        raise ConfigError(f"n_permutations must be at least 1, got {n_permutations} (dime)")
    joint, permuted = _entropies(first, second, alpha, centred, n_permutations, generator)
    return (permuted.mean() - joint).item()


def compare_dime(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n m"],
    *,
    alpha: float = 1.0,
    centred: bool = False,
    n_null: int,
    generator: torch.Generator,
) -> NullStatistic:
    """DiME of `n_null` permutations, against what each of these permutations gives in place of the true pairing.

    Draw k is E_P S - S(K_A o P_k K_B P_k^T), so the null mean is 0 by construction and the p-value is that of the permutation test on
    the joint entropy. Errors as `dime`, and n_null < 2.
    """
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null} (compare_dime)")
    joint, permuted = _entropies(first, second, alpha, centred, n_null, generator)
    return compare((permuted.mean() - joint).item(), permuted.mean() - permuted)


def _entropies(
    first: Tensor, second: Tensor, alpha: float, centred: bool, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
    if len(first) > LARGEST or len(first) != len(second):
        raise ConfigError(
            f"first and second must have as many rows, at most {LARGEST} (take a sample of the prompts), got {len(first)} and {len(second)} (dime)"
        )
    left, right = (_gram(view, centred) for view in (first, second))
    joint = renyi_entropy(torch.linalg.eigvalsh(left * right), alpha=alpha)
    permuted = []
    for _ in range(n):
        order = torch.randperm(len(left), generator=generator, device=generator.device).to(left.device)
        permuted.append(renyi_entropy(torch.linalg.eigvalsh(left * right[order][:, order]), alpha=alpha))
    return joint, torch.stack(permuted)


def _gram(view: Tensor, centred: bool) -> Float[Tensor, "n n"]:
    require_pair(view, view, minimum=2, where="dime")
    rows: Preparation = "centred-unit" if centred else "unit"
    unit = prepared(view, rows)
    zero = (unit == 0).all(dim=1)
    if zero.any():
        raise ConfigError(f"first and second must have no zero row{' after centring' if centred else ''}, got {int(zero.sum())} (dime)")
    return unit @ unit.T
