"""Numbers with their intervals over documents, from sums by document."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.findings import Number
from sae.evaluation.bootstrap import LEAST_DOCUMENTS, of_draws, resampled

Statistic = Callable[[Float[Tensor, "draws n_terms"]], Float[Tensor, " draws"]]


class Scorer:
    """Turns statistics of a table of sums into numbers; all of them are resampled alike, once."""

    def __init__(self, table: Float[Tensor, "n_units n_terms"], *, seed: int):
        self._total = table.double().sum(0, keepdim=True)
        self._n_units = len(table)
        self._draws = resampled(table, seed=seed) if len(table) >= LEAST_DOCUMENTS else None

    def value(self, statistic: Statistic) -> float | None:
        """The statistic of all documents; None where it is not defined."""
        found = float(statistic(self._total)[0])
        return found if math.isfinite(found) else None

    def number(self, quantity: str, statistic: Statistic, *, subject: str = "", note: str = "") -> Number:
        """The statistic of all documents with its interval; without a value where it is not defined."""
        value = self.value(statistic)
        found = None if value is None or self._draws is None else of_draws(statistic(self._draws), self._n_units)
        low, high = found or (None, None)
        return Number(quantity, value, subject, note=note, low=low, high=high)


def ratio(above: int, below: int) -> Statistic:
    """One column over another."""

    def statistic(total: Tensor) -> Tensor:
        return total[:, above] / total[:, below]

    return statistic


def share(above: Float[Tensor, " draws"], below: Float[Tensor, " draws"]) -> Float[Tensor, " draws"]:
    """above / below, and nan where `below` is not positive: a share of nothing is none."""
    return torch.where(below > 0, above / below, torch.nan)
