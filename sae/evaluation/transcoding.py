"""How well a transcoder explains one site's activations by another's, and the linear map it has to be read against.

    FVU          = sum_t |y_t - y_hat_t|^2 / sum_t |y_t - y_bar|^2        y: activations of the output site, y_bar: their mean over the evaluated tokens
    linear map   y_hat = mu_y + (x - mu_x) B_r,   B_r = argmin over rank r of the squared error on the tokens it is fitted on

B_r is B V_r V_r^T with B the least-squares map and V_r the r leading eigenvectors of B^T cov(x) B, the covariance of what B predicts (reduced-rank
regression; Izenman 1975, J. Multivariate Analysis 5, 248-264). Its r numbers per token stand where PCA stands for autoencoders.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.evaluation.reconstruction import ErrorCurve

Pair = tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]


@dataclass(frozen=True)
class Transcoding:
    """The scores of one transcoder on one set of tokens."""

    fvu: float
    """Fraction of the output's variance unexplained, summed over tokens before dividing."""
    l0: float
    """Mean number of non-zero codes per token."""
    dead_share: float
    """Share of latents that never fired on these tokens."""
    n_tokens: int
    """Number of tokens evaluated."""


@torch.no_grad()
def transcoding(dictionary: Dictionary, pairs: Iterable[Pair]) -> Transcoding:
    """The scores of `dictionary` over all rows of (activations of its input site, of its output site). A linear path of its own is included.

    Raises ConfigError when there are no rows, or when the output does not vary.
    """
    spread, error, n_active = _Spread(), 0.0, 0
    fired = torch.zeros(dictionary.d_sae, dtype=torch.bool)
    for acts, target in pairs:
        spread.add(target)
        error += float((target.double() - dictionary(acts).double()).square().sum())
        codes = dictionary.encode(acts)
        active = codes.values != 0
        n_active += int(active.sum())
        fired[codes.indices[active].to("cpu", torch.long)] = True
    fvu = error / spread.variance("transcoding")
    return Transcoding(fvu, n_active / spread.n, float((~fired).double().mean()), spread.n)


class _Spread:
    """Running sums for the variance about the mean, float64."""

    def __init__(self) -> None:
        self.n, self.squares, self.total = 0, 0.0, torch.zeros(())

    def add(self, y: Tensor) -> None:
        y = y.double().cpu()
        self.n, self.squares, self.total = self.n + len(y), self.squares + float(y.square().sum()), self.total + y.sum(0)

    def variance(self, where: str) -> float:
        if not self.n:
            raise ConfigError(f"pairs must hold at least one row, got none ({where})")
        variance = self.squares - float(self.total @ self.total) / self.n
        if not variance > 1e-12 * self.squares:
            raise ConfigError(f"the output must vary for FVU to be defined, got {self.n} rows that are all equal ({where})")
        return variance


def linear_fvu(fit: Iterable[Pair], pairs: Iterable[Pair], ranks: Sequence[int]) -> ErrorCurve:
    """FVU on `pairs` of the best linear maps of the given ranks fitted on `fit`; see the module's text. Computed in float64.

    Raises ConfigError for fewer than two rows to fit on, or ranks below 1.
    """
    if not ranks or min(ranks) < 1:
        raise ConfigError(f"ranks must hold positive integers, got {list(ranks)} (linear_fvu)")
    n, sums, xx, xy = 0, (torch.zeros(()), torch.zeros(())), torch.zeros(()), torch.zeros(())
    for acts, target in fit:
        x, y = acts.double(), target.double()
        n, sums, xx, xy = n + len(x), (sums[0] + x.sum(0), sums[1] + y.sum(0)), xx + x.T @ x, xy + x.T @ y
    if n < 2:
        raise ConfigError(f"fit must hold at least two rows, got {n} (linear_fvu)")
    mean_x, mean_y = sums[0] / n, sums[1] / n
    cov_xx, cov_xy = xx / n - torch.outer(mean_x, mean_x), xy / n - torch.outer(mean_x, mean_y)
    full = torch.linalg.pinv(cov_xx, hermitian=True) @ cov_xy
    leading = torch.linalg.eigh(full.T @ cov_xx @ full).eigenvectors.flip(1)
    spread, errors = _Spread(), torch.zeros(len(ranks), dtype=torch.float64)
    for acts, target in pairs:
        y, predicted = target.double() - mean_y, (acts.double() - mean_x) @ full
        spread.add(target)
        for i, rank in enumerate(ranks):
            basis = leading[:, :rank]
            errors[i] += (y - predicted @ basis @ basis.T).square().sum()
    return ErrorCurve(tuple(ranks), tuple((errors / spread.variance("linear_fvu")).tolist()))
