"""Texts to matrices: what a language model, and dictionaries on top of it, say of each text.

    acts[i]  = pool_t a_it            a_it: activation of token t of text i, one forward pass for all
    codes[i] = pool_t z(a_it)         z: the codes of a dictionary, kept sparse

A separator opens every text, as it opens every document in captured activations. Its position is left out, and with it the massive
activation that first positions carry (Sun et al., "Massive Activations in Large Language Models", 2024, arXiv 2402.17762); so are tokens
whose norm is above `max_norm_ratio` times the median of their text. Padding is on the right, where a causal model cannot see it, and is
never pooled.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.models.sites import Site

Pooling = Literal["mean", "last", "max"]


@runtime_checkable
class CapturingModel(Protocol):
    """What is needed of a language model; `sae.models.language_model.LanguageModel` has it."""

    @property
    def separator_id(self) -> int:
        """Token that opens a document."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def capture(self, tokens: Tensor, sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        """Activations [batch, context, width] at each site."""
        ...


class PooledFeatures(NamedTuple):
    """One row per text."""

    acts: Float[np.ndarray, "n d_model"]
    """Pooled activations, float32."""
    codes: dict[str, sparse.csr_matrix]
    """Pooled codes [n, d_sae] of each dictionary, float32."""
    n_tokens: Int[np.ndarray, " n"]
    """Tokens pooled, per text."""


def pooled_features(
    model: CapturingModel,
    texts: Sequence[str],
    site: Site,
    dictionaries: Mapping[str, Dictionary] | None = None,
    *,
    pooling: Pooling = "mean",
    context: int = 128,
    batch_rows: int = 16,
    separator: bool = True,
    max_norm_ratio: float = 6.0,
) -> PooledFeatures:
    """Activations at `site` and the codes of every dictionary, pooled over the tokens of each text, in one pass of the model.

    pooling: "mean" over tokens; "max" over tokens, where a latent that is silent on one token counts there as 0; "last" token. Texts longer
    than `context` tokens (separator included) are cut at the end. Without `separator`, the first token of the text is what is left out.
    Texts run in order of length, `batch_rows` at a time: memory goes with batch_rows * context * width.

    Raises ConfigError for an unknown pooling, a text with no token to pool, activations that are not finite, a dictionary of another width.
    """
    if pooling not in get_args(Pooling):
        raise ConfigError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r} (pooled_features)")
    if context < 2 or batch_rows < 1 or not max_norm_ratio >= 1:
        given = f"context={context}, batch_rows={batch_rows}, max_norm_ratio={max_norm_ratio}"
        raise ConfigError(f"context must be at least 2, batch_rows and max_norm_ratio at least 1, got {given} (pooled_features)")
    dictionaries = dict(dictionaries or {})
    for name, dictionary in dictionaries.items():
        if dictionary.d_in != site.width:
            raise ConfigError(f"dictionaries[{name!r}] must have d_in={site.width}, the width of {site.name}, got {dictionary.d_in}")
    rows = _rows(model, texts, context, separator)
    order = np.argsort([len(row) for row in rows], kind="stable")
    acts, n_tokens = np.empty((len(rows), site.width), dtype=np.float32), np.empty(len(rows), dtype=np.int64)
    codes: dict[str, list[sparse.csr_matrix]] = {name: [] for name in dictionaries}
    for start in range(0, len(rows), batch_rows):
        batch = order[start : start + batch_rows]
        tokens = _token_acts(model, [rows[i] for i in batch], site, max_norm_ratio, batch)
        n_tokens[batch] = [len(x) for x in tokens]
        acts[batch] = torch.stack([_pool_acts(x, pooling) for x in tokens]).cpu().numpy()
        for name, dictionary in dictionaries.items():
            with torch.no_grad():
                z = dictionary.encode(torch.cat(tokens)).csr()
            codes[name].append(_pool_codes(z, n_tokens[batch], pooling))
    back = np.argsort(order)
    return PooledFeatures(
        acts, {name: sparse.csr_matrix(sparse.vstack(parts, format="csr"))[back] for name, parts in codes.items()}, n_tokens
    )


def pooled_activations(
    model: CapturingModel, texts: Sequence[str], site: Site, *, pooling: Pooling = "mean", context: int = 128, batch_rows: int = 16
) -> Float[np.ndarray, "n d_model"]:
    """The `acts` of `pooled_features`, with no dictionary."""
    return pooled_features(model, texts, site, pooling=pooling, context=context, batch_rows=batch_rows).acts


def _rows(model: CapturingModel, texts: Sequence[str], context: int, separator: bool) -> list[list[int]]:
    if isinstance(texts, str) or len(texts) == 0:
        raise ConfigError(f"texts must be a non-empty sequence of strings, got {texts!r} (pooled_features)")
    opening = [model.separator_id] if separator else []
    rows = [[*opening, *ids][:context] for ids in model.tokenize(texts)]
    for i, row in enumerate(rows):
        if len(row) < 2:
            raise ConfigError(
                f"texts[{i}] must have a token after the first position, got {len(row)} tokens of {texts[i]!r} (pooled_features)"
            )
    return rows


def _token_acts(
    model: CapturingModel, rows: Sequence[Sequence[int]], site: Site, max_norm_ratio: float, numbers: Sequence[int] | np.ndarray
) -> list[Float[Tensor, "_ d_model"]]:
    """The activations (float32) of each row's tokens that count."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows])
    captured = model.capture(tokens, [site])[site]
    kept = []
    for row, acts, number in zip(rows, captured, numbers, strict=True):
        x = acts[1 : len(row)].float()
        norm = x.norm(dim=1)
        if not bool(norm.isfinite().all()):
            raise ConfigError(f"activations at {site.name} must be finite, texts[{number}] gives NaN or Inf (pooled_features)")
        kept.append(x[norm <= max_norm_ratio * norm.median()])
    return kept


def _pool_acts(x: Float[Tensor, "tokens d_model"], pooling: str) -> Float[Tensor, " d_model"]:
    if pooling == "last":
        return x[-1]
    return x.amax(dim=0) if pooling == "max" else x.double().mean(dim=0).float()


def _pool_codes(z: sparse.csr_matrix, counts: np.ndarray, pooling: str) -> sparse.csr_matrix:
    """Rows of `z`, `counts` at a time, pooled into one row each."""
    ends = np.cumsum(counts)
    if pooling == "last":
        return sparse.csr_matrix(z[ends - 1], dtype=np.float32)
    if pooling == "max":
        parts = [z[end - count : end].max(axis=0) for end, count in zip(ends, counts, strict=True)]
        return sparse.csr_matrix(sparse.vstack(parts), dtype=np.float32)
    starts = np.concatenate([[0], ends])
    average = sparse.csr_matrix((np.repeat(1 / counts, counts), np.arange(ends[-1]), starts), shape=(len(counts), int(ends[-1])))
    return sparse.csr_matrix(average @ z, dtype=np.float32)
