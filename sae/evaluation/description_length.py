"""Description length of activations through a dictionary, in bits per token; and which width and sparsity make it least.

    DL(dictionary; D) = sum_i [H2(p_i) + p_i H(Q(z_i) | z_i != 0)]          Q: the coarsest quantiser with squared error <= D
    with the dictionary     DL + F d B / N                                   F atoms of d weights of B bits, sent once for N tokens

Ayonrinde, Pearce & Sharkey 2024 (2410.11179): the best of several dictionaries is the one with the least DL among those that reach the same
distortion D. A sparse code of a wide dictionary pays for its indices and its atoms, a dense code for its values. Distortion is a fraction of
variance unexplained, sum_t |a_t - a_hat_t|^2 / sum_t |a_t - a_bar|^2, in the language model's activation space; a `Scaling` is a shift and
one factor, so it is the same number in the space of `code`. A number of bits means nothing without its distortion and something to hold it
against: every result carries both, see `Baselines`.

Departures from the paper: the distortion is that of the quantised codes (theirs quantises to a stated loss as well, of a model's output on
GPT-2); the width of bins is one length in activation space instead of a number of bits per float; entropies carry the Miller-Madow correction.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.evaluation.code_length import (
    adaptive_bits,
    count_symbols,
    index_bits,
    naive_bits,
    subset_bits,
    value_bits,
)
from sae.evaluation.quantisation import ActiveValues, added_error, coarsest, fitted_quantiser

SCARCE_FIRINGS = 200
"""An entropy estimated from fewer firings of a latent than this is unreliable."""
BASELINE_ROWS = 20_000
"""Most tokens that the baselines are computed on; of more, every second, fourth, ... is taken."""
LEAST_SLACK = 1e-4
"""Share by which the distortion asked for must lie above that of the exact codes: values cost without bound as it goes to 0."""
ROWS_PER_CHUNK = 4096
SLOTS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class Baselines:
    """What the same tokens cost at the same distortion without a dictionary, in bits per token."""

    fvu: float
    """The distortion: fraction of variance unexplained."""
    dense_bits: float
    """Every coordinate rounded to one step size and entropy-coded by itself."""
    pca_bits: float
    """The same in the basis of principal components; those below the step size round to 0 and cost nothing."""
    gaussian_bits: float
    """sum_j max(0, log2(lambda_j / theta) / 2), the least any code can use for a Gaussian with these principal variances lambda_j (reverse
    water-filling, Cover & Thomas, theorem 10.3.3). Below it a dictionary has found structure that covariance does not show. Rounding each
    component costs up to 0.25 bits per component that is sent more than this bound."""
    memorised_bits: float
    """log2 N: one atom for every token, no distortion."""
    pca_basis_bits: float
    """Sending the principal components: d d B / N."""
    memorised_atoms_bits: float
    """Sending one atom per token: d B."""


@dataclass(frozen=True, eq=False)
class DescriptionLength:
    """What tokens cost through one dictionary. All `..._bits` are bits per token."""

    bits: float
    """Description length: index_bits + value_bits, the sum of `latent_bits`, and row_bits. The dictionary itself is not in it."""
    index_bits: float
    """sum_i H2(p_i): saying which latents are active."""
    value_bits: float
    """sum_i p_i H(Q(z_i) | z_i != 0): saying their values."""
    row_bits: float
    """Sending what normalisation takes from a row by itself, B bits a number; 0 where rows are not normalised. In every total here."""
    latent_bits: Float[Tensor, " d_sae"]
    """The share of each latent; a set of latents costs the sum."""
    dictionary_bits: float
    """Sending the atoms once: F d B / N; falls with the number of tokens N, which has to be stated with it."""
    adaptive_bits: float
    """`bits` under a code that learns all probabilities as it goes: no correction, no knowledge, an upper bound."""
    subset_bits: float
    """value_bits plus the active set as one of C(F, L0) after its size: latents coded together, so no longer one by one."""
    naive_bits: float
    """L0 (B + log2 F), B the mean of log2 of the number of bins over active latents: fixed-length codes."""
    bin_width: float
    """Length of a bin in activation space."""
    fvu: float
    """Distortion of the exact codes: fraction of variance unexplained."""
    fvu_quantised: float
    """Distortion of the quantised codes, to which every length here belongs."""
    l0: float
    """Mean number of active latents per token."""
    d_sae: int
    """Number of latents F."""
    n_alive: int
    """Latents active on any of the tokens."""
    scarce_share: float
    """Share of `bits` in latents with fewer than 200 firings, whose entropies are unreliable (and too low)."""
    n_tokens: int
    """Number of tokens N."""
    baselines: Baselines
    """Other codes of the same tokens at distortion `fvu_quantised`."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One dictionary of several."""

    name: Hashable
    """As it was given."""
    d_sae: int
    """Number of latents."""
    l0: float
    """Mean number of active latents per token."""
    fvu: float
    """Distortion of its exact codes."""
    length: DescriptionLength | None
    """Its description length at the common distortion; None when even its exact codes do not reach that."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Dictionaries compared at one distortion."""

    target_fvu: float
    """The distortion that all are quantised to."""
    candidates: tuple[Candidate, ...]
    """All of them, in the order given, with those that do not reach the distortion."""
    baselines: Baselines
    """Other codes at that distortion."""

    @property
    def shortest(self) -> Candidate | None:
        """The candidate with the least `bits`: best for many tokens. None when no candidate reaches the distortion."""
        return self._least(lambda length: length.bits)

    @property
    def shortest_with_dictionary(self) -> Candidate | None:
        """The candidate with the least `bits + dictionary_bits`: best for these N tokens. None when none reaches the distortion."""
        return self._least(lambda length: length.bits + length.dictionary_bits)

    def _least(self, cost: Callable[[DescriptionLength], float]) -> Candidate | None:
        costs = [(cost(each.length), place) for place, each in enumerate(self.candidates) if each.length]
        return self.candidates[min(costs)[1]] if costs else None


def description_length(
    dictionary: Dictionary,
    batches: Float[Tensor, "n d_in"] | Iterable[Float[Tensor, "_ d_in"]],
    *,
    tolerance: float | int = 0.1,
    target_fvu: float | int | None = None,
    weight_bits: float | int = 16,
) -> DescriptionLength:
    """Description length of activations through `dictionary`, in bits per token, in one pass over `batches`.

    Codes are quantised as coarsely as the squared error allows: at most 1 + tolerance times that of the exact codes, or, when `target_fvu` is
    given, at most that fraction of variance, which is what makes dictionaries comparable. `weight_bits` is B, the price of a weight. Keeps the
    sparse codes in memory, and at most 20,000 tokens for the baselines. Raises ConfigError when there are no tokens or they do not vary, when
    the exact codes miss `target_fvu`, for a tolerance below 0.0001, and for a transcoder.

        length = description_length(dictionary, store.batches(site, batch_size=4096, seed=0, split="held_out"), target_fvu=0.2)
        length.bits, length.baselines.pca_bits
    """
    measured = _measure(dictionary, batches)
    if target_fvu is None:
        _check(tolerance >= LEAST_SLACK, f"tolerance must be at least {LEAST_SLACK}, got {tolerance}")
        target_fvu = measured.fvu * (1 + tolerance)
        _check(measured.fvu > 1e-9, f"the dictionary reconstructs exactly (FVU {measured.fvu:.2g}): give target_fvu instead of a tolerance")
    _check(0 < target_fvu < math.inf, f"target_fvu must be positive, got {target_fvu}")
    _check(measured.reaches(target_fvu), f"target_fvu must be above the dictionary's own {measured.fvu:.6g}, got {target_fvu:.6g}")
    return _describe(measured, target_fvu, weight_bits, None)


def choose(
    dictionaries: Iterable[tuple[Hashable, Dictionary]],
    batches: Float[Tensor, "n d_in"] | Iterable[Float[Tensor, "_ d_in"]],
    *,
    target_fvu: float | int,
    weight_bits: float | int = 16,
) -> Choice:
    """Compare named dictionaries at one distortion and find the shortest description; one is in use at a time, so `grid` may train as it goes.

    A dictionary whose exact codes do not reach `target_fvu` stays in the table without a length. Raises ConfigError for no dictionaries and as
    `description_length` does for the batches, which are read once per dictionary.
    """
    _check(0 < target_fvu < math.inf, f"target_fvu must be positive, got {target_fvu}", "choose")
    once = not isinstance(batches, Tensor) and iter(batches) is batches
    _check(not once, "batches are read once per dictionary: give a tensor or a sequence, got an iterator", "choose")
    candidates, baselines = [], None
    for name, dictionary in dictionaries:
        measured = _measure(dictionary, batches)
        baselines = baselines or baseline_lengths(measured.sample, fvu=target_fvu, weight_bits=weight_bits, n_tokens=measured.n_tokens)
        reached = measured.reaches(target_fvu)
        length = _describe(measured, target_fvu, weight_bits, baselines) if reached else None
        candidates.append(Candidate(name, dictionary.d_sae, len(measured.active.latents) / measured.n_tokens, measured.fvu, length))
    if baselines is None:
        raise ConfigError("dictionaries must hold at least one, got none (choose)")
    return Choice(float(target_fvu), tuple(candidates), baselines)


def grid(train: Callable[[int, int], Dictionary], d_saes: Iterable[int], ks: Sequence[int]) -> Iterator[tuple[tuple[int, int], Dictionary]]:
    """((d_sae, k), train(d_sae, k)) for every width and sparsity with k <= d_sae, each trained when it is asked for."""
    return (((d_sae, k), train(d_sae, k)) for d_sae in d_saes for k in ks if k <= d_sae)


def baseline_lengths(
    acts: Float[Tensor, "n d_in"], *, fvu: float | int, weight_bits: float | int = 16, n_tokens: int | None = None
) -> Baselines:
    """The baselines of activations at a distortion. `n_tokens` is N when `acts` is a sample of them. Raises ConfigError for equal rows."""
    n_tokens, d_in = n_tokens or len(acts), acts.shape[1]
    centred = acts.double() - acts.double().mean(0)
    variances, components = torch.linalg.eigh(centred.T @ centred / len(acts))
    _check(float(variances.sum()) > 0, f"activations must vary, got {len(acts)} equal rows", "baseline_lengths")
    return Baselines(
        fvu=float(fvu),
        dense_bits=_rounded_bits(centred, fvu),
        pca_bits=_rounded_bits(centred @ components, fvu),
        gaussian_bits=gaussian_bits(variances, fvu),
        memorised_bits=math.log2(n_tokens),
        pca_basis_bits=d_in * d_in * weight_bits / n_tokens,
        memorised_atoms_bits=float(d_in * weight_bits),
    )


def gaussian_bits(variances: Float[Tensor, " d"], fvu: float | int) -> float:
    """The rate-distortion function of a Gaussian: sum_j max(0, log2(lambda_j / theta) / 2) with sum_j min(lambda_j, theta) = fvu sum lambda."""
    variances = variances.double().clamp(min=0)
    low, high = 0.0, float(variances.max())
    if fvu >= 1:
        return 0.0
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if float(variances.clamp(max=theta).sum()) < fvu * float(variances.sum()) else (low, theta)
    return float((variances[variances > high] / high).log2().sum()) / 2


def _rounded_bits(y: Float[Tensor, "n d"], fvu: float | int) -> float:
    """Bits per row of y rounded to multiples of the coarsest step with squared error at most fvu |y|^2, each column entropy-coded."""

    def error(step: float) -> float:
        return float((y - (y / step).round() * step).square().sum())

    step = coarsest(error, fvu * float(y.square().sum()), 2.5 * float(y.abs().max()), owner="baseline_lengths")
    symbols = (y / step).round().long()
    columns = torch.arange(y.shape[1], device=y.device).expand_as(symbols)
    counts = count_symbols(columns.reshape(-1), symbols.reshape(-1), n_tokens=len(y), d_sae=y.shape[1])
    return float(index_bits(counts).sum() + value_bits(counts).sum())


@dataclass(frozen=True, eq=False)
class _Measured:
    """The codes of all tokens and what the error of any quantisation of them needs."""

    active: ActiveValues
    alignments: Float[Tensor, " m"]
    atoms: Float[Tensor, "d_sae d_in"]
    squared_error: float
    variance: float
    n_tokens: int
    sample: Float[Tensor, "_ d_in"]
    n_row_numbers: int

    @property
    def fvu(self) -> float:
        return self.squared_error / self.variance

    def reaches(self, fvu: float | int) -> bool:
        return self.fvu * (1 + LEAST_SLACK) <= fvu


@torch.no_grad()
def _measure(dictionary: Dictionary, batches: Tensor | Iterable[Tensor]) -> _Measured:
    transcodes = isinstance(dictionary, Autoencoder) and dictionary.is_transcoder
    _check(not transcodes, "dictionary must explain its own input, got a transcoder, whose codes are no description of it")
    parts, alignments, sample = [], [], _Thinned(BASELINE_ROWS)
    error, squares, total = 0.0, 0.0, torch.zeros(dictionary.d_in, dtype=torch.float64)
    atoms = dictionary.W_dec.detach().float() / dictionary.scaling.scale
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        for acts in batch.split(ROWS_PER_CHUNK):
            codes = dictionary.encode(acts)
            residual = acts.double() - dictionary.decode(codes).double()
            if codes.rows is not None:  # a value counts as much in the activations as its row was scaled down
                codes = replace(codes, values=codes.values * codes.rows.scale[:, None].to(codes.values))
            parts.append(ActiveValues.of(codes))
            alignments.append(_alignments(parts[-1], residual.float(), atoms))
            error += float(residual.square().sum())
            squares += float(acts.double().square().sum())
            total += acts.double().sum(0).cpu()
            sample.add(acts)
    n_tokens = sum(len(part) for part in parts)
    _check(n_tokens > 0, "batches must hold at least one row, got none")
    variance = squares - float(total @ total) / n_tokens
    _check(variance > 1e-12 * squares, f"activations must vary, got {n_tokens} rows that are all equal")
    active = ActiveValues.concatenate(parts)
    n_row_numbers = {"none": 0, "layer_norm": 2, "constant_norm": 1}[dictionary.normalisation]
    return _Measured(active, torch.cat(alignments), atoms, error, variance, n_tokens, sample.rows(), n_row_numbers)


def _describe(measured: _Measured, target_fvu: float | int, weight_bits: float | int, baselines: Baselines | None) -> DescriptionLength:
    active, atoms, n = measured.active, measured.atoms, measured.n_tokens
    d_sae, d_in = atoms.shape

    def error(width: float) -> float:
        return measured.squared_error + added_error(active, atoms, measured.alignments, fitted_quantiser(active, atoms, width))

    reach = float((active.largest().double() * torch.linalg.vector_norm(atoms.double(), dim=1)).max()) or 1.0
    width = coarsest(error, target_fvu * measured.variance, reach, owner="description_length")
    quantiser, fvu = fitted_quantiser(active, atoms, width), error(width) / measured.variance
    counts = count_symbols(active.latents, quantiser.symbols(active.latents, active.values), n_tokens=n, d_sae=d_sae)
    index, values, firings = index_bits(counts).cpu(), value_bits(counts).cpu(), counts.firings().cpu()
    latent_bits, row_bits = index + values, float(measured.n_row_numbers * weight_bits)
    total = float(latent_bits.sum())
    signed = counts.weighted((counts.symbols < 0).float()) > 0
    n_symbols = quantiser.n_bins * (1 + signed.long())
    l0 = len(active.latents) / n
    per_value = float((firings * n_symbols.cpu().clamp(min=1).double().log2()).sum()) / max(len(active.latents), 1)
    return DescriptionLength(
        bits=total + row_bits,
        index_bits=float(index.sum()),
        value_bits=float(values.sum()),
        row_bits=row_bits,
        latent_bits=latent_bits,
        dictionary_bits=d_sae * d_in * weight_bits / n,
        adaptive_bits=float(adaptive_bits(counts, n_symbols).sum()) + row_bits,
        subset_bits=subset_bits(active.counts, d_sae) + float(values.sum()) + row_bits,
        naive_bits=naive_bits(l0, d_sae, per_value) + row_bits,
        bin_width=width,
        fvu=measured.fvu,
        fvu_quantised=fvu,
        l0=l0,
        d_sae=d_sae,
        n_alive=int((firings > 0).sum()),
        scarce_share=float(latent_bits[firings < SCARCE_FIRINGS].sum()) / total if total else 0.0,
        n_tokens=n,
        baselines=baselines or baseline_lengths(measured.sample, fvu=fvu, weight_bits=weight_bits, n_tokens=n),
    )


def _alignments(active: ActiveValues, residual: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " m"]:
    """residual . atom of every slot, without a matrix over all latents."""
    rows: Int[Tensor, " m"] = torch.arange(len(active), device=residual.device).repeat_interleave(active.counts)
    slots = zip(rows.split(SLOTS_PER_CHUNK), active.latents.long().split(SLOTS_PER_CHUNK), strict=True)
    return torch.cat([torch.linalg.vecdot(residual[row], atoms[latent]) for row, latent in slots])


class _Thinned:
    """Every s-th row of a stream of unknown length, s the least power of two that leaves at most `most` of them; whatever the batches."""

    def __init__(self, most: int):
        self.most, self.stride, self.seen, self.kept = most, 1, 0, torch.empty(0)

    def add(self, rows: Float[Tensor, "n d_in"]) -> None:
        taken = rows[(-self.seen) % self.stride :: self.stride]
        self.seen += len(rows)
        self.kept = torch.cat([self.kept, taken]) if len(self.kept) else taken
        while len(self.kept) > self.most:
            self.kept, self.stride = self.kept[::2].clone(), 2 * self.stride

    def rows(self) -> Float[Tensor, "_ d_in"]:
        return self.kept


def _check(good: bool, message: str, owner: str = "description_length") -> None:
    if not good:
        raise ConfigError(f"{message} ({owner})")
