"""How well a dictionary reconstructs activations, and how sparsely.

    FVU                 = sum_t ||x_t - x_hat_t||^2 / sum_t ||x_t - x_bar||^2        x_bar: mean of the evaluated tokens
    explained variance  = 1 - FVU                                                     the only definition used here
    FVU of dimension j  = sum_t (x_tj - x_hat_tj)^2 / sum_t (x_tj - x_bar_j)^2
    relative error      = mean_t  ||x_t - x_hat_t||^2 / ||x_t||^2
    cosine              = mean_t  x_t . x_hat_t / (||x_t|| ||x_hat_t||)
    norm ratio          = mean_t  ||x_hat_t|| / ||x_t||
    reconstruction bias = sum_t ||x_hat_t||^2 / sum_t x_t . x_hat_t                   1: unbiased, below 1: shrunk
    L0                  = mean_t  number of non-zero codes of token t
    density_i           = share of tokens on which latent i is non-zero
    dead share          = share of latents that are non-zero on no evaluated token

All in the language model's activation space, on the tokens given, summed in float64. The reconstruction bias is that of Rajamanoharan et al.
(2024), arXiv 2404.16014, section 4. FVU of predicting the mean is 1 by definition; `pca_fvu` gives the FVU of the best linear code with the
same number of real coefficients per token, the baseline a sparse code has to be read against.

Numbers of other libraries under the same names are not these. The mean over dimensions of FVU, as scikit-learn's r2_score and torchmetrics
average it unless asked not to, weighs a dimension that hardly varies like one that carries the signal; FVU is the mean weighted by variance. The "legacy"
explained variance of SAELens and llamascopium is a mean over tokens of 1 - ||e_t||^2 / ||x_t - x_bar||^2, which tokens near the mean decide.
dictionary_learning takes the variance of the residual, so that a constant error costs nothing, and averages over batches. SAEBench's formula
squares the mean over dimensions of E[x^2] where the squared length of the mean belongs: 447 for a variance of 210 in one batch. Whatever is
averaged over batches depends on their size.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.activations import AbsTopK, Activation, Gated, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError
from sae.evaluation.token_sums import Totals


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The scores of one dictionary on one set of tokens; the formulas are in the module's text."""

    fvu: float
    """Fraction of variance unexplained, summed over tokens before dividing."""
    explained_variance: float
    """1 - fvu."""
    cosine: float
    """Mean cosine between an activation and its reconstruction."""
    norm_ratio: float
    """Mean ratio of the reconstruction's norm to the activation's."""
    reconstruction_bias: float
    """E||x_hat||^2 / E[x . x_hat]."""
    l0: float
    """Mean number of non-zero codes per token."""
    dead_share: float
    """Share of latents that never fired on these tokens."""
    n_tokens: int
    """Number of tokens evaluated."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Scores together with the firing counts they summarise."""

    scores: Reconstruction
    """The scalar scores."""
    firing_counts: Int[Tensor, " d_sae"]
    """On how many of the tokens each latent was non-zero."""


def reconstruction(dictionary: Dictionary, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Measured:
    """The reconstruction scores of `dictionary` over all rows of all `batches` (activation space), in one pass.

    Raises ConfigError when there are no rows, or when the activations do not vary (FVU has no meaning then).
    """
    total = _Sums(dictionary.d_in)
    counts = torch.zeros(dictionary.d_sae, dtype=torch.int64)
    was_training = dictionary.training
    dictionary.eval()
    with torch.no_grad():
        for acts in batches:
            codes = dictionary.encode(acts).merged()
            total.add(acts.double(), dictionary.decode(codes).double())
            fired = codes.indices[codes.values != 0].to("cpu", torch.int64)
            counts += torch.bincount(fired, minlength=dictionary.d_sae)
    dictionary.train(was_training)
    fvu = total.errors / total.variance("reconstruction")
    scores = Reconstruction(
        fvu=fvu,
        explained_variance=1 - fvu,
        cosine=total.cosines / total.n,
        norm_ratio=total.ratios / total.n,
        reconstruction_bias=total.hat_squares / total.dots if total.dots else math.inf,
        l0=int(counts.sum()) / total.n,
        dead_share=float((counts == 0).double().mean()),
        n_tokens=total.n,
    )
    return Measured(scores, counts)


class _Sums:
    """Running float64 sums over tokens."""

    def __init__(self, d_in: int):
        self.n = 0
        self.mean_sum = torch.zeros(d_in, dtype=torch.float64)
        self.squares = self.errors = self.hat_squares = self.dots = self.cosines = self.ratios = 0.0

    def variance(self, where: str) -> float:
        """Total squared deviation from the mean. Raises ConfigError when there is none."""
        if self.n == 0:
            raise ConfigError(f"batches must hold at least one row, got none ({where})")
        variance = self.squares - float(self.mean_sum @ self.mean_sum) / self.n
        if not variance > 1e-12 * self.squares:
            raise ConfigError(f"activations must vary for FVU to be defined, got {self.n} rows that are all equal ({where})")
        return variance

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        norm, norm_hat, dot = x.norm(dim=1), x_hat.norm(dim=1), (x * x_hat).sum(1)
        tiny = torch.finfo(torch.float64).tiny
        self.n += len(x)
        self.mean_sum += x.sum(0).cpu()
        self.squares += float((x * x).sum())
        self.errors += float(((x - x_hat) ** 2).sum())
        self.hat_squares += float((norm_hat**2).sum())
        self.dots += float(dot.sum())
        self.cosines += float((dot / (norm * norm_hat).clamp_min(tiny)).sum())
        self.ratios += float((norm_hat / norm.clamp_min(tiny)).sum())


class ErrorCurve(NamedTuple):
    """FVU as a function of how many latents per token may be used."""

    k: tuple[int, ...]
    """Number of selections per token."""
    fvu: tuple[float, ...]
    """FVU when the code is cut after that many selections."""


def error_versus_k(dictionary: Autoencoder | MatchingPursuit, batches: Iterable[Float[Tensor, "_ d_in"]], ks: Sequence[int]) -> ErrorCurve:
    """FVU when each token may use k selections, for every k in `ks`, from one encode at max(ks).

    An autoencoder is cut after its k largest latents (whatever threshold it was trained with), a pursuit after k steps: the same as encoding
    anew with each k. Training used one k or threshold, so the curve also says how the dictionary copes with another. Raises ConfigError for a
    k below 1 or above d_sae, and for a Gated autoencoder.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"ks must hold positive integers, got {list(ks)} (error_versus_k)")
    ks = sorted(set(ks))
    errors = torch.zeros(len(ks), dtype=torch.float64)
    sums = _Sums(dictionary.d_in)
    with torch.no_grad():
        for acts in batches:
            sums.add(acts.double(), acts.double())
            errors += _squared_errors(dictionary, acts, ks).double().sum(0).cpu()
    return ErrorCurve(tuple(ks), tuple((errors / sums.variance("error_versus_k")).tolist()))


def _squared_errors(dictionary: Autoencoder | MatchingPursuit, acts: Float[Tensor, "n d_in"], ks: list[int]) -> Float[Tensor, "n n_ks"]:
    """|acts - acts_hat|^2 of every row after each k selections."""
    if isinstance(dictionary, MatchingPursuit):
        pursuit = dictionary.pursue(acts, max(ks))
        errors = pursuit.energies[:, ks] / dictionary.scaling.scale**2
        rows = pursuit.steps.rows
        return errors if rows is None else errors * rows.scale.square()[:, None]
    codes = dictionary.with_activation(_ranked(dictionary, max(ks))).encode(acts)
    cut = (SparseCodes(codes.indices[:, :k], codes.values[:, :k], codes.counts.clamp(max=k), codes.d_sae, codes.rows) for k in ks)
    return torch.stack([(acts - dictionary.decode(part)).square().sum(1) for part in cut], dim=1)


def _ranked(dictionary: Autoencoder, k: int) -> Activation:
    """The activation that keeps the k strongest latents of a row under the dictionary's own weights."""
    activation = dictionary.config.activation
    if isinstance(activation, Gated):
        raise ConfigError("dictionary must rank its latents by their pre-activations, which Gated does not (error_versus_k)")
    return AbsTopK(k) if isinstance(activation, AbsTopK) else TopK(k)


def pca_fvu(fit: Iterable[Float[Tensor, "_ d_in"]], batches: Iterable[Float[Tensor, "_ d_in"]], ks: Sequence[int]) -> ErrorCurve:
    """FVU on `batches` of the first k principal components fitted on `fit`: the dense baseline with k real coefficients per token."""
    n, total, second = 0, None, None
    for acts in fit:
        x = acts.double()
        n, total = n + len(x), x.sum(0) + (0 if total is None else total)
        second = x.T @ x + (0 if second is None else second)
    if n < 2 or total is None or second is None:
        raise ConfigError(f"fit must hold at least two rows, got {n} (pca_fvu)")
    mean = total / n
    _, vectors = torch.linalg.eigh(second / n - torch.outer(mean, mean))
    components = vectors.flip(1)
    sums, captured, residual = _Sums(len(mean)), torch.zeros(len(mean), dtype=torch.float64), 0.0
    for acts in batches:
        x = acts.double()
        sums.add(x, x)
        captured += ((x - mean) @ components).square().sum(0)
        residual += float((x - mean).square().sum())
    variance = sums.variance("pca_fvu")
    return ErrorCurve(tuple(ks), tuple((residual - float(captured[:k].sum())) / variance for k in ks))


def fvu(totals: Totals) -> Float[Tensor, " draws"]:
    """FVU: squared error over squared deviation from the mean, both summed over tokens and dimensions."""
    return totals.errors().sum(1) / totals.variance().sum(1)


def dimension_fvu(totals: Totals) -> Float[Tensor, "draws d_out"]:
    """FVU of each dimension; nan for one that does not vary."""
    variance = totals.variance()
    return torch.where(variance > 1e-12 * variance.amax(1, keepdim=True), totals.errors() / variance, torch.nan)


def per_token(totals: Totals, name: str) -> Float[Tensor, " draws"]:
    """The mean over tokens of one of `token_sums.SCALARS`: cosine, norm ratio, relative error, L0."""
    return totals.scalar(name) / totals.scalar("tokens")


def reconstruction_bias(totals: Totals) -> Float[Tensor, " draws"]:
    """E||x_hat||^2 / E[x . x_hat]: 1 where the error is orthogonal to the reconstruction, c for x_hat = c x; nan for x_hat = 0.

    The relative reconstruction bias gamma of Rajamanoharan et al. (2024), arXiv 2404.16014, section 4: 1 / gamma is the factor by which the
    reconstruction would have to be multiplied for the least squared error; an L1 penalty makes it less than 1.
    """
    return totals.scalar("hat_squares") / totals.scalar("dots")


def captured_energy(acts: Float[Tensor, "n d"], mean: Float[Tensor, " d"], components: Float[Tensor, "d k"]) -> Float[Tensor, " n"]:
    """|(x - mean) V|^2 of each row: what a linear code with orthonormal columns V keeps of its squared distance from the mean. float64."""
    return ((acts.double() - mean.double()).float() @ components.float()).double().square().sum(1)


def principal_components(covariance: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d k"]:
    """The k eigenvectors of largest variance, as columns. Raises ConfigError for a k outside 0..d."""
    if not 0 <= k <= len(covariance):
        raise ConfigError(f"k must be in 0..d={len(covariance)}, got {k} (principal_components)")
    return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :k]
