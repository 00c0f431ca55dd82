"""Intervals over documents, for whatever is computed from sums over tokens.

    theta   = f(sum_d s_d)                           s_d: the sums of document d, one number per term; f: a ratio of them, for example
    theta*  = f(sum_d w_d s_d),   w ~ Multinomial(n; 1/n, ..., 1/n)            n documents drawn with replacement, B times
    low, high = quantiles a and 1 - a of the B values,    a = Phi(-t_{0.975, n-1} sqrt(n / (n - 1)))

Tokens of one document resemble each other, so documents are what is resampled (the cluster bootstrap: Davison & Hinkley 1997, section 3.8) and
a token never is by itself. The level a takes the place of 0.025: the percentile interval of few documents is too narrow, by the factor of
Student's t and of the variance's n / (n - 1) (the expanded percentile interval of Hesterberg 2015, The American Statistician 69, 371-386).

Only the sums are kept, n_documents x n_terms of them, whatever the number of tokens. The weights depend on n and the seed alone: numbers of one
set of documents, and dictionaries measured on it, are resampled alike.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError

LEAST_DOCUMENTS = 10
"""With fewer documents there is no interval."""
MOST_UNITS = 512
"""Documents up to which each is resampled by itself; of more, as many groups of whole documents are."""
N_DRAWS = 1000
"""Resamples."""
WEIGHTS_PER_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""


def interval(
    sums: Float[Tensor, "n_documents n_terms"],
    statistic: Callable[[Float[Tensor, "draws n_terms"]], Float[Tensor, " draws"]],
    *,
    n_draws: int = N_DRAWS,
    seed: int,
) -> Interval | None:
    """The 95 % interval of `statistic(sums over documents)`; see the module's text. `statistic` gets many totals at a time, one a row.

    None for fewer than 10 documents, for which `why_none` has the words, and where the statistic is not finite in some draw. Leave out documents
    without a token. Raises ConfigError for sums that are not finite, n_draws below 100, or a statistic of another shape.

        ce = interval(torch.stack([loss_by_document, tokens_by_document], dim=1), lambda total: total[:, 0] / total[:, 1], seed=0)
    """
    if len(sums) < LEAST_DOCUMENTS:
        return None
    draws = statistic(resampled(sums, n_draws=n_draws, seed=seed))
    if draws.shape != (n_draws,):
        raise ConfigError(f"statistic must give one number per draw, [{n_draws}], got {list(draws.shape)} (interval)")
    return of_draws(draws, len(sums))


def resampled(sums: Float[Tensor, "n_documents n_terms"], *, n_draws: int = N_DRAWS, seed: int) -> Float[Tensor, "n_draws n_terms"]:
    """sum_d w_d s_d of every draw, float64: for several statistics of the same sums. Raises ConfigError as `interval`, and for no documents."""
    n = len(sums)
    if n < 1 or n_draws < 100:
        raise ConfigError(f"there must be documents and at least 100 draws, got {n} and n_draws={n_draws} (resampled)")
    sums = sums.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(sums).all()):
        raise ConfigError(
            f"sums must be finite, got NaN or Inf in {int((~torch.isfinite(sums).all(1)).sum())} of {n} documents (resampled)"
        )
    generator = torch.Generator().manual_seed(seed)
    totals, step = [], max(1, WEIGHTS_PER_CHUNK // n)
    for first in range(0, n_draws, step):
        drawn = torch.randint(n, (min(step, n_draws - first), n), generator=generator)
        weights = torch.zeros(len(drawn), n, dtype=torch.float64)
        totals.append(weights.scatter_add_(1, drawn, torch.ones_like(weights)) @ sums)
    return torch.cat(totals)


def of_draws(draws: Float[Tensor, " draws"], n_documents: int) -> Interval | None:
    """The interval of a statistic's values in resamples of that many documents; None as for `interval`."""
    if n_documents < LEAST_DOCUMENTS or not bool(torch.isfinite(draws).all()):
        return None
    spread = scipy.stats.t.ppf(0.975, n_documents - 1) * math.sqrt(n_documents / (n_documents - 1))
    level = float(scipy.stats.norm.cdf(-spread))
    low, high = draws.double().quantile(torch.tensor([level, 1 - level], dtype=torch.float64)).tolist()
    return Interval(low, high)


def why_none(n_documents: int) -> str:
    """Why so few documents have no interval, in words; empty where they have one."""
    if n_documents >= LEAST_DOCUMENTS:
        return ""
    return f"no interval: {n_documents} documents are fewer than the {LEAST_DOCUMENTS} that a bootstrap over documents needs"


def resampling_units(document_ids: Int[Tensor, " n"], *, most: int = MOST_UNITS) -> Int[Tensor, " n"]:
    """The number, from 0, of the unit that each token's sums are added to: its document, in the order of first number.

    Where there are more than `most` documents they are dealt out to that many groups of whole documents, one after the other: groups are as
    independent as documents are, and the sums stay small however many tokens there are. Raises ConfigError for most < 10.
    """
    if most < LEAST_DOCUMENTS:
        raise ConfigError(f"most must be at least {LEAST_DOCUMENTS}, got {most} (resampling_units)")
    return torch.unique(document_ids, return_inverse=True)[1] % most


class DocumentSums:
    """Sums over the tokens of each unit, added up batch by batch in float64."""

    def __init__(self, n_units: int, n_terms: int):
        self.sums = torch.zeros(n_units, n_terms, dtype=torch.float64)

    def add_(self, unit: Int[Tensor, " n"], terms: Float[Tensor, "n n_terms"]) -> None:
        """Adds the terms of each token to its unit's sums."""
        self.sums.index_add_(0, unit.cpu().long(), terms.detach().to("cpu", torch.float64))

    def total(self) -> Float[Tensor, " n_terms"]:
        """The sums over all units."""
        return self.sums.sum(0)
