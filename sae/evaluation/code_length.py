"""Lengths of codes in bits per token: which latents are active, and how strongly.

    p_i     = n_i / N                                                          share of the N tokens on which latent i is active
    H2(p)   = -p log2 p - (1 - p) log2(1 - p)
    H(c)    = -sum_j (c_j / n) log2(c_j / n) + (m - 1) / (2 n ln 2)            m different symbols seen in n draws
    L_i     = H2(p_i) + p_i H(symbols of latent i | active)                    bits per token of latent i
    L       = sum_i L_i

Ayonrinde, Pearce & Sharkey 2024 (2410.11179): latents are coded one by one ("independent additivity"), so that each can be read without the
others and any set of latents costs the sum of its members. The entropy of values is taken over the active tokens only; that a latent is
silent is paid for once, by H2. The second term of H is the correction of Miller & Madow (1955), applied to H2 as well: the plug-in entropy
is too low by that much to first order. It is still too low for a latent with few firings, so results say how many bits rest on those.

A symbol is a non-zero integer, the number of a value's bin; negative values have negative symbols, so the sign is part of the symbol.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError


@dataclass(frozen=True, eq=False)
class SymbolCounts:
    """How often each latent was active with each symbol; only the pairs that occur."""

    latents: Int[Tensor, " n_pairs"]
    """Latent of each pair, ascending."""
    symbols: Int[Tensor, " n_pairs"]
    """Its symbol, never 0."""
    counts: Int[Tensor, " n_pairs"]
    """On how many tokens the pair occurs."""
    n_tokens: int
    """Number of tokens N, those without active latents included."""
    d_sae: int
    """Number of latents."""

    def firings(self) -> Int[Tensor, " d_sae"]:
        """n_i: on how many tokens each latent is active."""
        return self._sum(self.counts)

    def different(self) -> Int[Tensor, " d_sae"]:
        """m_i: how many different symbols each latent has."""
        return self._sum(torch.ones_like(self.counts))

    def weighted(self, values: Float[Tensor, " n_pairs"]) -> Float[Tensor, " d_sae"]:
        """Per latent, the sum over its symbols of a number per pair; float64."""
        return self._sum(values.double())

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.d_sae).index_add_(0, self.latents, values)


def count_symbols(latents: Int[Tensor, " m"], symbols: Int[Tensor, " m"], *, n_tokens: int, d_sae: int) -> SymbolCounts:
    """Counts of the m active slots of n_tokens tokens, given as (latent, symbol); symbol 0 is not active. A token names a latent at most once.

    Raises ConfigError for a latent outside 0..d_sae-1, or one with more firings than there are tokens.
    """
    if len(latents) and not (int(latents.min()) >= 0 and int(latents.max()) < d_sae):
        raise ConfigError(f"latents must be in 0..d_sae-1={d_sae - 1}, got {int(latents.min())}..{int(latents.max())} (count_symbols)")
    active = symbols != 0
    latents, symbols = latents[active].long(), symbols[active].long()
    reach = int(symbols.abs().max()) if len(symbols) else 0
    pairs, counts = torch.unique(latents * (2 * reach + 1) + symbols + reach, return_counts=True)
    latents, symbols = pairs // (2 * reach + 1), pairs % (2 * reach + 1) - reach
    counted = SymbolCounts(latents, symbols, counts, n_tokens, d_sae)
    if d_sae and int(counted.firings().max()) > n_tokens:
        raise ConfigError(
            f"a latent may be active at most once per token, n_tokens={n_tokens}, got {int(counted.firings().max())} (count_symbols)"
        )
    return counted


def binary_entropy(p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """H2(p) in bits, 0 at p = 0 and p = 1; float64. Raises ConfigError for p outside [0, 1]."""
    p = p.double()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ConfigError(f"p must be in [0, 1], got {float(p.min())}..{float(p.max())} (binary_entropy)")
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def entropy(counts: Int[Tensor, " m"], *, corrected: bool = True) -> float:
    """H in bits of a distribution seen as counts; with the correction of Miller and Madow unless `corrected` is False. 0 for no counts."""
    seen = counts[counts > 0].double()
    n = float(seen.sum())
    if not n:
        return 0.0
    return float(-(seen / n * (seen / n).log2()).sum()) + (_missing(len(seen), n) if corrected else 0.0)


def index_bits(counts: SymbolCounts, *, corrected: bool = True) -> Float[Tensor, " d_sae"]:
    """H2(p_i) of each latent: bits per token to say on which tokens it is active. 0 for a latent that is always or never active."""
    n_i = counts.firings().double()
    varies = (n_i > 0) & (n_i < counts.n_tokens)
    extra = _missing(2, counts.n_tokens) if corrected else 0.0
    return binary_entropy(n_i / max(counts.n_tokens, 1)) + extra * varies


def value_bits(counts: SymbolCounts, *, corrected: bool = True) -> Float[Tensor, " d_sae"]:
    """p_i H(symbol | active) of each latent: bits per token to say its value where it is active. 0 for a latent that never is."""
    n_i, c = counts.firings().double(), counts.counts.double()
    plug_in = n_i * n_i.clamp(min=1).log2() - counts.weighted(c * c.log2())
    extra = (counts.different() - 1).clamp(min=0) / (2 * math.log(2)) if corrected else 0.0
    return (plug_in + extra).clamp(min=0) / max(counts.n_tokens, 1)


def adaptive_bits(counts: SymbolCounts, n_symbols: Int[Tensor, " d_sae"]) -> Float[Tensor, " d_sae"]:
    """Bits per token of each latent under a code that starts without knowing any probability: achievable, and an upper bound to L_i.

    The estimator of Krichevsky & Trofimov (1981): after n symbols of which c_j were j, the next is j with probability
    (c_j + 1/2) / (n + M/2), M = 2 for active or not and M = `n_symbols` for the value. It pays for learning the probabilities, about
    log2(n) / 2 bits for each, which an entropy does not; for N large against the number of symbols the two agree.
    """
    n_i, total = counts.firings().double(), torch.tensor(float(counts.n_tokens), dtype=torch.float64)
    activity = _trofimov(n_i) + _trofimov(total - n_i) - torch.lgamma(total + 1)
    used = n_i > 0
    half = n_symbols.double().clamp(min=1) / 2
    values = counts.weighted(_trofimov(counts.counts.double())) + torch.lgamma(half) - torch.lgamma(n_i + half)
    return -(activity + values * used) / math.log(2) / max(counts.n_tokens, 1)


def naive_bits(l0: float | int, d_sae: int, bits_per_value: float | int) -> float:
    """L0 (B + log2 F): every active latent by its number among F and its value with B bits; the paper's upper bound (section 2).

    It bounds L when L0 >= e: sum_i H2(p_i) <= L0 log2(e F / L0). Below that the naive code is the shorter, because it does not say how many
    latents are active.
    """
    return l0 * (bits_per_value + math.log2(d_sae))


def subset_bits(cardinalities: Int[Tensor, " n"], d_sae: int, *, corrected: bool = True) -> float:
    """E[log2 C(F, k_t)] + H(k): the set of active latents as one of C(F, k), after the number k_t of them, which costs nothing only if fixed.

    Latents are coded together here, so this is a length of the code as a whole and no latent has a share of it. It knows nothing of which
    latents are frequent. Raises ConfigError for a cardinality outside 0..d_sae.
    """
    if not len(cardinalities):
        return 0.0
    k = cardinalities.double()
    if int(k.min()) < 0 or int(k.max()) > d_sae:
        raise ConfigError(f"cardinalities must be in 0..d_sae={d_sae}, got {int(k.min())}..{int(k.max())} (subset_bits)")
    total = torch.tensor(float(d_sae), dtype=torch.float64)
    choices = torch.lgamma(total + 1) - torch.lgamma(k + 1) - torch.lgamma(total - k + 1)
    return float(choices.mean()) / math.log(2) + entropy(torch.bincount(cardinalities.long()), corrected=corrected)


def hierarchical_bits(
    p_parent: Float[Tensor, "*shape"], p_child_if_on: Float[Tensor, "*shape"], p_child_if_off: Float[Tensor, "*shape"] | None = None
) -> Float[Tensor, "*shape"]:
    """H2(P) + P(P) H2(C | P) + (1 - P(P)) H2(C | not P): index bits per token of a parent and of a child that is coded given the parent.

    Without `p_child_if_off` the child is never active without its parent, and is coded only where the parent is. Never more than the
    H2(P) + H2(C) of independent coding: for P(P) = 0.2 and P(C | P) = 0.25, 0.8842 instead of 1.0083 bits.
    """
    off = torch.zeros_like(p_child_if_on) if p_child_if_off is None else p_child_if_off
    p = p_parent.double()
    return binary_entropy(p) + p * binary_entropy(p_child_if_on) + (1 - p) * binary_entropy(off)


def hierarchical_index_bits(codes: SparseCodes, parents: Int[Tensor, " d_sae"], *, corrected: bool = True) -> Float[Tensor, " d_sae"]:
    """Index bits of each latent when it is coded given whether its parent is active; `parents[i]` is -1 for a latent without one.

    A child's share is P(P) H2(C | P) + (1 - P(P)) H2(C | not P), the second term 0 when the child implies the parent. The sum over latents
    is the length of a decodable code, as parents come before children. Raises ConfigError when the parents have a cycle or do not fit.
    """
    if parents.shape != (codes.d_sae,) or not bool(((parents >= -1) & (parents < codes.d_sae)).all()):
        raise ConfigError(
            f"parents must hold d_sae={codes.d_sae} numbers in -1..d_sae-1, got shape {list(parents.shape)} (hierarchical_index_bits)"
        )
    has = parents >= 0
    _check_forest(parents)
    on = (codes.csr() != 0).astype(float).tocsc()
    n_i = torch.from_numpy(on.sum(0)).view(-1)
    above = on[:, parents.clamp(min=0).cpu().numpy()]
    both = torch.from_numpy(on.multiply(above).sum(0)).view(-1)
    n = torch.full_like(n_i, len(codes))
    n_parent = torch.where(has.cpu(), n_i[parents.clamp(min=0).cpu()], n)
    both = torch.where(has.cpu(), both, n_i)
    return (_bernoulli(both, n_parent, corrected) + _bernoulli(n_i - both, n - n_parent, corrected)) / max(len(codes), 1)


def _bernoulli(on: Tensor, n: Tensor, corrected: bool) -> Tensor:
    """n H2(on / n) in bits, with the correction where both answers occur."""
    varies = (on > 0) & (on < n)
    return n * binary_entropy(on / n.clamp(min=1)) + (varies / (2 * math.log(2)) if corrected else 0.0)


def _check_forest(parents: Int[Tensor, " d_sae"]) -> None:
    top: Bool[Tensor, " d_sae"] = parents < 0
    while True:
        reached = top | ((parents >= 0) & top[parents.clamp(min=0)])
        if bool((reached == top).all()):
            break
        top = reached
    if not bool(top.all()):
        raise ConfigError(f"parents must have no cycle, got one through latent {int((~top).nonzero()[0])} (hierarchical_index_bits)")


def _missing(n_different: int, n_draws: float | int) -> float:
    """What the plug-in entropy lacks, in bits, to first order in 1 / n_draws."""
    return (n_different - 1) / (2 * n_draws * math.log(2))


def _trofimov(counts: Tensor) -> Tensor:
    """ln of Gamma(c + 1/2) / Gamma(1/2)."""
    return torch.lgamma(counts + 0.5) - math.lgamma(0.5)
