"""Moments of activations, and the norm above which a token counts as an outlier.

    threshold = ratio * median |a|    mu = (1/n) sum a    total variance = (1/n) sum |a - mu|^2    Sigma = (1/n) sum (a - mu)(a - mu)^T

All in float64, block by block; blocks are merged in a fixed order (Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
computing sample variances", 1979), so one store always gives the same bits. The first position of a row and some separators carry norms a
hundred times the median (Sun et al., "Massive activations in large language models", arXiv 2402.17762), so that any mean that includes
them is meaningless.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import FormatError

BLOCK_ELEMENTS = 2**17  # a block in float64 fits in the cache: three times faster than one that does not


class Moments(NamedTuple):
    """Sums over some rows of activations."""

    n: int
    """Number of rows."""
    mean: Float[np.ndarray, "width"]
    """Their mean."""
    deviation: float
    """Sum over rows of |a - mean|^2."""


def usable(
    norms: Float[Tensor, "n_tokens"], *, context: int, skipped_positions: tuple[int, ...], threshold: float
) -> Bool[Tensor, "n_tokens"]:
    """True where a token is used: its position in its row is not skipped, and its norm is at most `threshold`."""
    keep = norms.double() <= threshold
    keep.view(-1, context)[:, list(skipped_positions)] = False
    return keep


def median_norm(norms: Float[Tensor, "n_tokens"], *, context: int, skipped_positions: tuple[int, ...]) -> float:
    """Median norm over the positions that are not skipped; of an even number of them, the mean of the middle two."""
    kept = np.delete(norms.numpy().reshape(-1, context), skipped_positions, axis=1)
    return float(np.median(kept.astype(np.float64)))


def blocks(acts: Float[Tensor, "n width"]) -> Iterator[Float[np.ndarray, "rows width"]]:
    """The rows in float64, in order, a megabyte at a time; no block when there is no row."""
    if len(acts) == 0:
        return
    for piece in torch.split(acts, max(1, BLOCK_ELEMENTS // acts.shape[1])):
        yield piece.double().numpy()


def moments(acts: Float[Tensor, "n width"]) -> Moments:
    """Number, mean and summed squared deviation of the rows."""
    total = Moments(0, np.zeros(acts.shape[1]), 0.0)
    for block in blocks(acts):
        mean = block.mean(axis=0)
        centred = block - mean
        total = merge(total, Moments(len(block), mean, float((centred * centred).sum())))
    return total


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of `a` and `b` together: mean_a + (mean_b - mean_a) n_b / n, and the squared distance of the means is added."""
    n = a.n + b.n
    if n == 0:
        return a
    shift = b.mean - a.mean
    return Moments(n, a.mean + shift * (b.n / n), a.deviation + b.deviation + float(shift @ shift) * (a.n * b.n / n))


def centred_norm_sum(acts: Float[Tensor, "n width"], mean: Float[np.ndarray, "width"]) -> float:
    """Sum over rows of |a - mean|."""
    return sum(float(np.linalg.norm(block - mean, axis=1).sum()) for block in blocks(acts))


def scatter(acts: Float[Tensor, "n width"], mean: Float[np.ndarray, "width"]) -> Float[np.ndarray, "width width"]:
    """Sum over rows of (a - mean)(a - mean)^T."""
    total = np.zeros((acts.shape[1], acts.shape[1]))
    for block in blocks(acts):
        centred = block - mean
        total += centred.T @ centred
    return total


def check_finite(acts: Float[Tensor, "n width"], *, site: str, first_token: int, context: int) -> None:
    """Raises FormatError naming the site, row and position of the first activation that is NaN or infinite."""
    finite = torch.isfinite(acts).all(dim=1)
    if not bool(finite.all()):
        token = first_token + int((~finite).nonzero()[0, 0])
        where = f"row {token // context}, position {token % context}"
        raise FormatError(f"{site} has NaN or infinite activations at {int((~finite).sum())} tokens here, the first in {where}")
