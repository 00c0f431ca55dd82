"""Two representations of the same stimuli, and what is left of their likeness when the stimuli of one are shuffled.

Row i of x [n, p] and row i of y [n, q] belong to the same stimulus (token, prompt, image). A measure s(x, y) says how alike the two are; larger
is more alike. Chance is what the same measure gives for x and P y, P a random permutation of the rows:

    p = (1 + #{s(x, P y) >= s(x, y)}) / (1 + n_null)

Everything in a measure that one representation alone decides (centring, neighbours, a singular value decomposition, dissimilarities) is done
once, in `prepare`; a permuted score then costs only what joins the two. The null keeps the widths, the spectra, the number of stimuli and the
estimator, so that it holds whatever bias the value has (Cui, Kumar, Marttinen & Kaski 2022, arXiv 2202.00095; 2602.14486 for a null over layers).

Shuffling needs exchangeable stimuli: tokens of one document are not. Pool them, or take one token per document.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import require_points


class RepresentationMeasure(ABC):
    """A measure of how alike two representations of the same stimuli are: larger is more alike."""

    symmetric: bool = True
    """Whether s(x, y) = s(y, x)."""

    @abstractmethod
    def prepare(self, x: Float[Tensor, "n d"]) -> Any:
        """Everything that one representation alone decides. Raises ConfigError for too few stimuli, NaN or Inf, and no variation."""

    @abstractmethod
    def score(self, first: Any, second: Any, order: Int[Tensor, " n"] | None = None) -> float:
        """s of two prepared representations, the second with its rows taken in `order` (as they are if None)."""

    def __call__(self, x: Float[Tensor, "n p"], y: Float[Tensor, "m q"]) -> float:
        """s(x, y). Raises ConfigError unless x and y have as many rows, and as `prepare`."""
        require_same_stimuli(x, y, where=type(self).__name__)
        return float(self.score(self.prepare(x), self.prepare(y)))


def require_same_stimuli(x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, where: str) -> None:
    """Raises ConfigError unless x and y have the same number of rows."""
    if len(x) != len(y):
        raise ConfigError(
            f"x and y must have one row per stimulus each, got {len(x)} and {len(y)} rows; give the same stimuli in the same order ({where})"
        )


def centred_rows(x: Float[Tensor, "n d"], *, minimum: int, where: str) -> Float[Tensor, "n d"]:
    """x minus the mean of its rows, detached, in float64. Raises ConfigError for fewer than `minimum` rows, NaN and Inf."""
    require_points(x, minimum=minimum, argument="a representation", where=where)
    rows = x.detach().double()
    return rows - rows.mean(dim=0)


def varying_rows(x: Float[Tensor, "n d"], *, minimum: int, where: str) -> Float[Tensor, "n d"]:
    """`centred_rows`, scaled so that the mean squared row is 1. Raises ConfigError, too, where all rows are equal."""
    rows = centred_rows(x, minimum=minimum, where=where)
    largest = rows.abs().max()
    if largest <= torch.finfo(torch.float64).eps * x.detach().double().abs().max():
        raise ConfigError(f"a representation must vary over its stimuli, got {len(x)} equal rows; remove this layer ({where})")
    rows = rows / largest
    return rows / rows.square().sum(dim=1).mean().sqrt()


def narrowed(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n r"]:
    """The same rows up to a rotation, in min(n, d) columns: all inner products stay."""
    return rows if rows.shape[1] <= len(rows) else torch.linalg.qr(rows.T).R.T


def stimulus_orders(n: int, n_null: int, *, generator: torch.Generator) -> Iterator[Int[Tensor, " n"]]:
    """`n_null` independent uniform permutations of n stimuli, on the generator's device. Raises ConfigError unless n_null >= 2."""
    if n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {n_null}; 99 gives p-values down to 0.01 (stimulus_orders)")
    for _ in range(n_null):
        yield torch.randperm(n, generator=generator, device=generator.device)


def compare_representations(
    measure: RepresentationMeasure, x: Float[Tensor, "n p"], y: Float[Tensor, "m q"], *, n_null: int, generator: torch.Generator
) -> NullStatistic:
    """s(x, y) with s(x, P y) of `n_null` random permutations P of the stimuli.

    Exact (level alpha for any n) where the stimuli are exchangeable. Errors as the measure, and unless n_null >= 2.

        compare_representations(Cka(), layer_3, layer_20, n_null=199, generator=torch.Generator().manual_seed(0)).p_greater
    """
    require_same_stimuli(x, y, where="compare_representations")
    first, second = measure.prepare(x), measure.prepare(y)
    orders = stimulus_orders(len(x), n_null, generator=generator)
    draws = [measure.score(first, second, order.to(x.device)) for order in orders]
    return compare(measure.score(first, second), torch.tensor(draws, dtype=torch.float64))
