"""Numbers about one latent, from its entries alone.

    density interval   p = a / n;  v = D / (D - 1) * sum_d (a_d - p n_d)^2 / n^2  over documents d (ratio estimator);
                       Wilson's interval at the effective size  n_eff = min(n, p (1 - p) / v)
    held-out bits      b = mean over firings of  log2 q(token) / p(token),  q learnt on the documents of the other half:
                       q(v) = max(c_v - D, 0) / c + (D m / c) p(v),  D = (n_1 + 1) / (n_1 + 1 + 2 n_2),  p the corpus frequencies
    driving tokens     mass(v) = sum of |value| over firings on v;  precision(v) = P(fires | v)

Tokens of one document are not independent draws, so a binomial interval would be far too narrow for a latent that follows a topic: the
variance is that of a cluster sample (W. G. Cochran, Sampling Techniques, 1977, ch. 6 and 9A; E. B. Wilson, JASA 22, 1927; L. Kish, Survey
Sampling, 1965).

The bits are what a reader saves, per firing, when told that the latent fires and asked for the token: a code length paid on documents
that the code has not seen, so a latent without meaning gets about zero or less, however few its firings, and no permutation is needed.
For a large sample they reach the Kullback-Leibler divergence of the tokens on firings from those of the corpus (specific information: M.
R. DeWeese and M. Meister, Network 10, 1999); q, absolute discounting with n_1 and n_2 the tokens seen once and twice of m seen ones: H.
Ney, U. Essen and R. Kneser, Computer Speech and Language 8, 1994; held-out coding as the measure: J. Rissanen, Ann. Stat. 11, 1983, and
A. P. Dawid, JRSS A 147, 1984.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson_interval(p: float, n: float) -> tuple[float, float]:
    """(low, high): Wilson's 95 % interval for a proportion `p` seen in `n` independent draws."""
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half) if p > 0 else 0.0, min(1.0, centre + half) if p < 1 else 1.0


def density_interval(documents: Integer[np.ndarray, "n"], sizes: Integer[np.ndarray, "n_documents"]) -> tuple[float, float]:
    """(low, high): the 95 % interval of a latent's density.

    `documents` holds the document (0..n_documents-1) of each firing, `sizes` the tokens of each document. With no firing, one firing in
    every token, or a single document there is no variance between documents to see, and n_eff is the number of tokens. Without
    any token it is (0, 1).
    """
    n, n_documents = int(sizes.sum()), len(sizes)
    if n == 0:
        return 0.0, 1.0
    p = len(documents) / n
    if n_documents < 2 or not 0 < p < 1:
        return wilson_interval(p, float(n))
    which, active = np.unique(documents, return_counts=True)
    size, squares = sizes[which].astype(np.float64), float((sizes.astype(np.float64) ** 2).sum())
    spread = float((active.astype(np.float64) ** 2 - 2 * p * active * size).sum()) + p**2 * squares
    variance = n_documents / (n_documents - 1) * spread / n**2
    n_effective = p * (1 - p) / variance if variance > 0 else n
    return wilson_interval(p, float(min(n, n_effective)))


def density_intervals(
    n_active: Int[np.ndarray, "m"],
    squares: Float[np.ndarray, "m"],
    products: Float[np.ndarray, "m"],
    sizes: Integer[np.ndarray, "n_documents"],
) -> Float[np.ndarray, "m 2"]:
    """`density_interval` of several latents, from their sums over documents of a_d^2 (`squares`) and a_d n_d (`products`)."""
    n, n_documents = int(sizes.sum()), len(sizes)
    if n == 0:
        return np.tile([0.0, 1.0], (len(n_active), 1))
    p, effective = n_active / n, np.full(len(n_active), float(n))
    inner = (p > 0) & (p < 1) & (n_documents >= 2)
    if inner.any():
        q = p[inner]
        spread = squares[inner] - 2 * q * products[inner] + q**2 * float((sizes.astype(np.float64) ** 2).sum())
        variance = n_documents / (n_documents - 1) * spread / n**2
        effective[inner] = np.minimum(n, np.where(variance > 0, q * (1 - q) / np.where(variance > 0, variance, 1.0), n))
    centre = (p + Z_95**2 / (2 * effective)) / (1 + Z_95**2 / effective)
    half = Z_95 / (1 + Z_95**2 / effective) * np.sqrt(p * (1 - p) / effective + Z_95**2 / (4 * effective**2))
    low, high = np.where(p > 0, np.maximum(0.0, centre - half), 0.0), np.where(p < 1, np.minimum(1.0, centre + half), 1.0)
    return np.stack([low, high], axis=1)


def quantiles_of_sorted(
    ordered: Float[np.ndarray, "nnz"], start: Int[np.ndarray, "m_and_1"], probabilities: tuple[float, ...]
) -> Float[np.ndarray, "m n_probabilities"]:
    """Quantiles (linear interpolation, as `numpy.quantile`) of each stretch ordered[start[i]:start[i + 1]], ascending; 0 for an empty one."""
    n, found = np.diff(start), np.zeros((len(start) - 1, len(probabilities)))
    alive = n > 0
    place = np.array(probabilities)[None] * (n[alive, None] - 1)
    low = np.floor(place).astype(np.int64)
    weight, begin, last = place - low, start[:-1][alive, None], n[alive, None] - 1
    a, b = (ordered[begin + np.minimum(at, last)].astype(np.float64) for at in (low, low + 1))
    found[alive] = np.where(weight < 0.5, a + (b - a) * weight, b - (b - a) * (1 - weight))
    return found


def histogram_ranges(low: Float[np.ndarray, "m"], high: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m 2"]:
    """The ends of the histogram of `value_histogram`, from the smallest and largest values of each latent (0 and 0 for none)."""
    low, high = np.minimum(0.0, low.astype(np.float64)), np.maximum(0.0, high.astype(np.float64))
    both, most = (low < 0) & (high > 0), np.maximum(high, -low)
    low, high = np.where(both, -most, low), np.where(both, most, high)
    return np.stack([low, np.where(low == high, 1.0, high)], axis=1)


class Bins(NamedTuple):
    """A histogram over equal-width bins."""

    edges: Float[np.ndarray, "bins+1"]
    """Edges, ascending."""
    counts: Int[np.ndarray, "bins"]
    """Values in each bin; the last holds its upper edge too."""


def value_histogram(values: Float[np.ndarray, "n"], *, n_bins: int) -> Bins:
    """The values in `n_bins` equal bins over [0, max], [min, 0], or, with both signs, [-m, m] with m the largest |value|; 0 is always an
    edge (n_bins even)."""
    low, high = min(0.0, float(values.min(initial=0.0))), max(0.0, float(values.max(initial=0.0)))
    if low < 0 < high:
        low, high = -max(high, -low), max(high, -low)
    if low == high:
        high = 1.0
    edges = np.linspace(low, high, n_bins + 1)
    place = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    return Bins(edges, np.bincount(np.clip(place, 0, n_bins - 1), minlength=n_bins).astype(np.int64))


def held_out_bits(ids: Integer[np.ndarray, "n"], half: Bool[np.ndarray, "n"], base: Float[np.ndarray, "vocabulary"]) -> float:
    """Bits per firing that the latent tells about the token, learnt on one half of the documents and paid on the other, both ways.

    `ids` are the token ids of the firings, `half` the half their documents belong to, `base` the frequency of every id in the corpus. Can
    be negative. 0 when the latent never fires, or in one half only.
    """
    n = len(ids)
    if n == 0 or not 0 < int(half.sum()) < n:
        return 0.0
    tokens, inverse = np.unique(ids, return_inverse=True)
    p = base[tokens]
    one = np.bincount(inverse, weights=half, minlength=len(tokens))
    other = np.bincount(inverse, minlength=len(tokens)) - one
    bits = 0.0
    for learnt, paid in ((one, other), (other, one)):
        once, twice = int((learnt == 1).sum()), int((learnt == 2).sum())
        discount = (once + 1) / (once + 1 + 2 * twice)
        q = (np.maximum(learnt - discount, 0) + np.minimum(learnt, discount).sum() * p) / learnt.sum()
        bits += float((paid * np.log2(q / p)).sum())
    return bits / n


class Driving(NamedTuple):
    """The vocabulary items with most of a latent's mass, descending; ties by token id."""

    ids: Int[np.ndarray, "m"]
    """Token ids."""
    n_active: Int[np.ndarray, "m"]
    """Firings on each."""
    mass: Float[np.ndarray, "m"]
    """Sum of |value| on each."""
    share: Float[np.ndarray, "m"]
    """mass / the latent's whole mass."""


def driving_tokens(ids: Integer[np.ndarray, "n"], values: Float[np.ndarray, "n"], *, n: int) -> Driving:
    """The `n` vocabulary items with the largest mass. Their precision is `n_active` over the item's occurrences in the corpus."""
    tokens, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    mass = np.bincount(inverse, weights=np.abs(values.astype(np.float64)), minlength=len(tokens))
    order = np.argsort(-mass, kind="stable")[:n]
    total = float(mass.sum()) or 1.0
    return Driving(tokens[order].astype(np.int64), counts[order].astype(np.int64), mass[order], mass[order] / total)


def step_histogram(steps: Shaped[np.ndarray, "n"], *, n_steps: int) -> Int[np.ndarray, "n_steps"]:
    """How often the latent was first selected at each step of the pursuit (entry 0 is the first step)."""
    return np.bincount(steps, minlength=n_steps).astype(np.int64)
