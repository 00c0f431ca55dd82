"""One pass over tokens: what every score of a reconstruction is computed from, as sums by document.

    s_d = sum over the tokens t of d of (1, |y|^2, |y_hat|^2, y . y_hat, cos(y, y_hat), |y_hat| / |y|, |e|^2 / |y|^2, l0)
    S_d = sum (y - c),    Q_d = sum (y - c)^2,    E_d = sum e^2,    e = y - y_hat             each of width d_out, coordinate by coordinate

y is the activation that is explained: the input itself, and another site's in a transcoder. Squares are taken about a fixed centre c near the
mean, so that the variance Q - S^2 / n loses no digits to a large mean. The sums of any set of documents are the sum of theirs: scores do not
depend on how the tokens were cut into batches, and `sae.evaluation.bootstrap` resamples documents without looking at a token again. Memory is
that of the sums, whatever the number of tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError, FormatError

SCALARS = ("tokens", "squares", "hat_squares", "dots", "cosines", "norm_ratios", "relative_errors", "active")
"""The sums that are one number a token."""
FREQUENT = 0.02
"""Latents that fire on more than this share of the tokens have their firings counted by document."""
ROWS_PER_CHUNK = 1024


class Batch(NamedTuple):
    """Some tokens."""

    acts: Float[Tensor, "n d_in"]
    """What the dictionary reads."""
    target: Float[Tensor, "n d_out"]
    """What it explains: the same, but for a transcoder."""
    unit: Int[Tensor, " n"]
    """Document (or group of documents) of each token, numbered from 0; see `bootstrap.resampling_units`."""


@dataclass(frozen=True, eq=False)
class TokenSums:
    """The sums of one dictionary over one set of tokens."""

    scalars: Float[Tensor, "n_units n_scalars"]
    """s_d, in the order of SCALARS; float64, as all sums."""
    deviations: Float[Tensor, "n_units d_out"]
    """S_d."""
    squares: Float[Tensor, "n_units d_out"]
    """Q_d."""
    errors: Float[Tensor, "n_units d_out"]
    """E_d."""
    firings: Int[Tensor, " d_sae"]
    """On how many tokens each latent is not 0."""
    frequent: Int[Tensor, " n_frequent"]
    """The latents that fire on more than 2 % of the tokens, ascending."""
    frequent_firings: Float[Tensor, "n_units n_frequent"]
    """Their firings by document."""
    l0_counts: Int[Tensor, " most"]
    """Number of tokens by their number of active latents, from 0."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.l0_counts.sum())

    @property
    def n_units(self) -> int:
        """Number of documents, or of groups of them."""
        return len(self.scalars)

    def table(self) -> Float[Tensor, "n_units n_terms"]:
        """All sums side by side, as `Totals` reads them."""
        return torch.cat([self.scalars, self.deviations, self.squares, self.errors], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name, for a file."""
        return {field.name: getattr(self, field.name).contiguous() for field in fields(self)}

    @staticmethod
    def of_tensors(found: Mapping[str, Tensor], *, where: str) -> "TokenSums":
        """What `tensors` gave. Raises FormatError naming `where` for other names."""
        names = {field.name for field in fields(TokenSums)}
        if set(found) != names:
            raise FormatError(f"{where} must hold {', '.join(sorted(names))}, got {', '.join(sorted(found))}")
        return TokenSums(**found)


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over documents, one set of documents a row: those that were measured, or resamples of them."""

    table: Float[Tensor, "draws n_terms"]
    """The columns of `TokenSums.table`."""

    @property
    def d_out(self) -> int:
        """Width of the activations."""
        return (self.table.shape[1] - len(SCALARS)) // 3

    def scalar(self, name: str) -> Float[Tensor, " draws"]:
        """One of SCALARS."""
        return self.table[:, SCALARS.index(name)]

    def variance(self) -> Float[Tensor, "draws d_out"]:
        """Q - S^2 / n, coordinate by coordinate: squared deviations from the mean of the documents in the row. Never negative."""
        return (self._part(1) - self._part(0).square() / self.scalar("tokens")[:, None]).clamp(min=0)

    def about_centre(self) -> Float[Tensor, "draws d_out"]:
        """Q: squared deviations from the centre, coordinate by coordinate."""
        return self._part(1)

    def errors(self) -> Float[Tensor, "draws d_out"]:
        """Squared errors, coordinate by coordinate."""
        return self._part(2)

    def _part(self, i: int) -> Tensor:
        start = len(SCALARS) + i * self.d_out
        return self.table[:, start : start + self.d_out]


@torch.no_grad()
def token_sums(dictionary: Dictionary, batches: Iterable[Batch], *, n_units: int, centre: Float[Tensor, " d_out"]) -> TokenSums:
    """The sums over all rows of all batches, in one pass that encodes once. `centre` is c; any will do, one near the mean keeps digits.

    Raises ConfigError for no rows, and for activations that do not vary: FVU has no meaning then.
    """
    d_out = len(centre)
    scalars = torch.zeros(n_units, len(SCALARS), dtype=torch.float64)
    parts = [torch.zeros(n_units, d_out, dtype=torch.float64) for _ in range(3)]
    firings = torch.zeros(n_units * dictionary.d_sae, dtype=torch.int32)
    l0_counts = torch.zeros(1, dtype=torch.int64)
    was_training = dictionary.training
    dictionary.eval()
    for batch in batches:
        codes, y_hat = _explained(dictionary, batch.acts)
        unit, fired = batch.unit.cpu().long(), codes.values.cpu() != 0
        l0 = fired.sum(1)
        slots = (unit[:, None] * dictionary.d_sae + codes.indices.cpu())[fired]
        firings.index_add_(0, slots, torch.ones(len(slots), dtype=torch.int32))
        counted = torch.bincount(l0, minlength=len(l0_counts))
        counted[: len(l0_counts)] += l0_counts
        l0_counts = counted
        for rows in torch.arange(len(unit)).split(ROWS_PER_CHUNK):
            _add_(scalars, parts, unit[rows], batch.target.cpu()[rows], y_hat.cpu()[rows], l0[rows], centre.cpu())
    dictionary.train(was_training)
    by_unit = firings.view(n_units, dictionary.d_sae)
    total = by_unit.sum(0, dtype=torch.int64)
    n = int(l0_counts.sum())
    frequent = (total > FREQUENT * n).nonzero().squeeze(1)
    deviations, squares, errors = parts
    sums = TokenSums(scalars, deviations, squares, errors, total, frequent, by_unit[:, frequent].double(), l0_counts)
    _check(sums)
    return sums


def _explained(dictionary: Dictionary, acts: Float[Tensor, "n d_in"]) -> tuple[SparseCodes, Float[Tensor, "n d_out"]]:
    """Codes, a latent at most once in a row, and what they decode to; a transcoder's linear path of its own is included."""
    acts = acts.to(dictionary.W_dec.device)
    codes = dictionary.encode(acts)
    if not isinstance(dictionary, Autoencoder):
        codes = codes.merged()  # a pursuit may pick a latent twice
    elif dictionary.config.skip:
        return codes, dictionary(acts)
    return codes, dictionary.decode(codes)


def _add_(scalars: Tensor, parts: list[Tensor], unit: Tensor, y: Tensor, y_hat: Tensor, l0: Tensor, centre: Tensor) -> None:
    """Adds some tokens to the sums, in place. What is squared is a float32 number, or wider where the activations are; sums are float64."""
    y, y_hat = y.to(torch.promote_types(y.dtype, torch.float32)), y_hat.to(torch.promote_types(y_hat.dtype, torch.float32))
    error, centred = (y - y_hat).double(), (y - centre.to(y.dtype)).double()
    y, y_hat = y.double(), y_hat.double()
    squares, hat_squares, dots = (torch.linalg.vecdot(a, b) for a, b in ((y, y), (y_hat, y_hat), (y, y_hat)))
    norm, norm_hat = squares.sqrt(), hat_squares.sqrt()
    ratios = (dots / (norm * norm_hat), norm_hat / norm, torch.linalg.vecdot(error, error) / squares)
    # A vector of zeros has no direction, and nothing is relative to it: it adds 0.
    cosines, norm_ratios, relative = (torch.nan_to_num(ratio, nan=0.0, posinf=0.0) for ratio in ratios)
    terms = [torch.ones_like(dots), squares, hat_squares, dots, cosines, norm_ratios, relative, l0.double()]
    scalars.index_add_(0, unit, torch.stack(terms, dim=1))
    for part, values in zip(parts, (centred, centred.square(), error.square()), strict=True):
        part.index_add_(0, unit, values)


def _check(sums: TokenSums) -> None:
    n = sums.n_tokens
    if not n:
        raise ConfigError("batches must hold at least one row, got none (token_sums)")
    total = Totals(sums.table().sum(0, keepdim=True))
    if not float(total.variance().sum()) > 1e-12 * float(total.scalar("squares")):
        raise ConfigError(f"activations must vary for FVU to be defined, got {n} rows that are all equal (token_sums)")
