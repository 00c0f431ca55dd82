"""What a language model reads its next token from: the rows of the unembedding, the token of each row, the norm before it.

    logits(x) = W_U N(x),      N(x) = gain * c / sqrt(mean(c^2) + eps) + bias,      c = x, or x - mean(x) where the norm is centred

Analyses of the rows alone (`probes.causal`, `probes.hierarchy`, the logit lens) need no forward pass and take plain arrays. Rows that no
text can reach, and copies of other rows, are left out: they make the covariance of the rows singular, or count a token twice.
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int

from sae.errors import ConfigError
from sae.models.language_model import norm_gain

if TYPE_CHECKING:
    from sae.models.language_model import LanguageModel

SMALL = 1e-3
"""Length scale at which the epsilon of a norm is measured: its square, 1e-6, is of the size of the usual ones."""


@dataclass(frozen=True, eq=False)
class FinalNorm:
    """The norm between the residual stream and the unembedding: a LayerNorm, or an RMSNorm where it is not centred."""

    gain: Float[np.ndarray, " d_model"]
    """What each coordinate is multiplied with after the division by the scale."""
    bias: Float[np.ndarray, " d_model"]
    """What is added to each coordinate at the end."""
    eps: float
    """What is added to the mean square under the root."""
    centred: bool
    """Whether the mean over the coordinates is subtracted first."""

    def __post_init__(self) -> None:
        if self.gain.shape != self.bias.shape or self.eps < 0:
            sizes = f"gain {list(self.gain.shape)}, bias {list(self.bias.shape)}, eps {self.eps}"
            raise ConfigError(f"gain and bias must have the same shape and eps must be at least 0, got {sizes} (FinalNorm)")

    def scale(self, x: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... 1"]:
        """sqrt(mean(c^2) + eps): what the norm divides by."""
        return np.sqrt(np.square(self.centre(x)).mean(axis=-1, keepdims=True) + self.eps)

    def centre(self, x: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... d_model"]:
        """x, with the mean over coordinates subtracted where the norm does that."""
        return x - x.mean(axis=-1, keepdims=True) if self.centred else x

    def apply(self, x: Float[np.ndarray, "... d_model"]) -> Float[np.ndarray, "... d_model"]:
        """N(x), float64."""
        wide = np.asarray(x, dtype=np.float64)
        return self.gain * self.centre(wide) / self.scale(wide) + self.bias


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The distinct rows of an unembedding. Made by `read_unembedding` or, from arrays, `clean_unembedding`."""

    rows: Float[np.ndarray, "n d_model"]
    """gamma(y), float64: what the logit of each token is the inner product with."""
    tokens: tuple[str, ...]
    """Text of each row's token, with its leading space where it has one."""
    token_ids: Int[np.ndarray, " n"]
    """Number of each row in the model's vocabulary."""
    n_vocab: int
    """Rows that the model has, with those that were left out."""
    norm: FinalNorm | None
    """The norm that the residual stream goes through first; None where there is none, or it is not known."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        for row, token in enumerate(self.tokens):
            rows.setdefault(token, row)
        return rows

    def row_of(self, token: str) -> int | None:
        """The row of a token by its exact text, None where there is no such token."""
        return self._row_of.get(token)

    def row_of_word(self, word: str) -> int | None:
        """The row of the token that is a space and the word: a word that is one token inside a text; None for other words."""
        return self._row_of.get(f" {word}")


def clean_unembedding(
    rows: Float[np.ndarray, "n d_model"] | Float[torch.Tensor, "n d_model"],
    tokens: Sequence[str | None],
    *,
    norm: FinalNorm | None = None,
) -> Unembedding:
    """The rows in float64 without those of no token (None in `tokens`), rows of zeros, and rows equal to an earlier one.

    Raises ConfigError for a number of tokens that is not that of the rows, values that are not finite, a norm of another width, and
    fewer than two rows left.
    """
    wide = rows.detach().cpu().double().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows, dtype=np.float64)
    if len(tokens) != len(wide):
        raise ConfigError(f"tokens must name every row of the unembedding ({len(wide)}), got {len(tokens)} (clean_unembedding)")
    if norm is not None and len(norm.gain) != wide.shape[1]:
        raise ConfigError(f"norm must have the width of the rows, {wide.shape[1]}, got {len(norm.gain)} (clean_unembedding)")
    finite = np.isfinite(wide).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ConfigError(
            f"rows must be finite, got {len(bad)} that are not, the first is row {bad[0]}; leave them out (clean_unembedding)"
        )
    keep = np.array([token is not None for token in tokens], dtype=bool) & wide.any(axis=1)
    keep &= _first_of_its_kind(wide)
    if keep.sum() < 2:
        raise ConfigError(
            f"rows must hold at least 2 that are distinct and not zero, got {int(keep.sum())} of {len(wide)} (clean_unembedding)"
        )
    ids = np.flatnonzero(keep)
    texts = tuple(str(tokens[i]) for i in ids)
    return Unembedding(wide if keep.all() else wide[ids], texts, ids, len(wide), norm)


def _first_of_its_kind(rows: Float[np.ndarray, "n d_model"]) -> np.ndarray:
    """Which rows equal no earlier row, bit for bit; without a sorted copy of the matrix."""
    seen: set[bytes] = set()
    first = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(np.ascontiguousarray(rows) + 0.0):  # + 0.0: minus zero is zero
        key = hashlib.blake2b(row, digest_size=16).digest()
        first[i] = key not in seen
        seen.add(key)
    return first


def read_unembedding(source: "LanguageModel | str | Path") -> Unembedding:
    """The unembedding of a language model, or of the model in a folder (or of whatever else `LanguageModel.load` takes).

    Raises what `LanguageModel.load` and `clean_unembedding` raise.
    """
    from sae.models.language_model import LanguageModel

    model = source if isinstance(source, LanguageModel) else LanguageModel.load(source, dtype=torch.float32)
    tokens = [None if token == f"<unused {i}>" else token for i, token in enumerate(model.vocabulary())]
    return clean_unembedding(model.unembedding(), tokens, norm=_final_norm(model))


def _final_norm(model: "LanguageModel") -> FinalNorm | None:
    """The state of the final norm, measured: N(0) = bias, and eps from a short input, so that no convention of storing it matters."""
    try:
        norm, d_model = model.final_norm(), model.shape.d_model
    except ConfigError:  # the model has none
        return None
    with torch.no_grad():
        gain, centred = norm_gain(norm, d_model)
        device = gain.device
        x = SMALL * (1.0 - 2.0 * (torch.arange(d_model) % 2)) * (1.0 + torch.arange(d_model) / d_model)
        x = (x - x.mean()).to(device)
        wide = copy.deepcopy(norm).float()
        bias, spread = wide(torch.zeros_like(x)), (wide(x) - wide(-x)).double()
        usable = gain.abs() > 1e-3 * gain.abs().max()
        squared_scale = (2 * gain.double() * x.double() / spread)[usable].square().median()
        eps = max(float(squared_scale - x.double().square().mean()), 0.0)
    return FinalNorm(gain.double().cpu().numpy(), bias.double().cpu().numpy(), eps, centred)
