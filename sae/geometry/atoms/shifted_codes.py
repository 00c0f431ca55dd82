"""Whether latents of two dictionaries agree token by token, or only because documents differ: matching against shifted tokens.

    within    every document of B is turned by a random number of its own tokens     keeps what a document is about, and neighbours
    between   the documents of B are turned by a random number of documents          keeps neighbours only

Tokens of a document are alike, so permuting single tokens would give a null that is too narrow. A turn keeps the order of the tokens and so
their autocorrelation (a circular shift; Harris 2020, "Nonsense correlations in neuroscience", bioRxiv 2020.11.29.402719). Every draw is paired
anew, with the same method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms.correlation import CodeMoments, Method, best_correlations, code_moments, latent_pairs
from sae.geometry.nulls import NullStatistic, compare

Shift = Literal["within", "between"]
"""What is turned; the module's text says what each keeps."""
ROWS_PER_PRODUCT = 16_384
"""Tokens whose products are formed at a time."""


@dataclass(frozen=True)
class CodeComparison:
    """How well the latents of two dictionaries match by their codes, each number with what shifted tokens give in the same search."""

    forward: NullStatistic
    """Mean over A's living latents of the best correlation with a latent of B."""
    backward: NullStatistic
    """The same from B to A."""
    paired: NullStatistic
    """Mean correlation of the one-to-one pairs."""
    shares: tuple[NullStatistic, ...]
    """For every threshold, the pairs above it over the size of the smaller dictionary, dead latents counted in the size."""
    thresholds: tuple[float, ...]
    """The thresholds."""
    n_pairs: int
    """Number of pairs."""
    n_dead: tuple[int, int]
    """Latents without a correlation on these tokens, in A and in B."""


def shifted_tokens(document_ids: Int[Tensor, " n"], shift: Shift, *, generator: torch.Generator) -> Int[Tensor, " n"]:
    """The order in which B's tokens are read in one null draw, a permutation of 0..n-1; documents are runs of equal ids.

    "within" turns each document by 1..length-1 tokens (documents of one token stay), "between" the list of documents by 1..n_documents-1.
    Raises ConfigError for another shift, and where nothing can be turned.
    """
    if shift not in get_args(Shift):
        raise ConfigError(f"shift must be one of {list(get_args(Shift))}, got {shift!r} (shifted_tokens)")
    ids = document_ids.detach().cpu()
    opens = torch.ones(len(ids), dtype=torch.bool)
    opens[1:] = ids[1:] != ids[:-1]
    starts = opens.nonzero()[:, 0]
    lengths = torch.diff(starts, append=torch.tensor([len(ids)]))
    tokens = torch.arange(len(ids))
    if shift == "between":
        if len(starts) < 2:
            raise ConfigError(f"document_ids must hold at least 2 documents to turn them, got {len(starts)}; use 'within' (shifted_tokens)")
        first = int(torch.randint(1, len(starts), (1,), generator=generator))
        return tokens.roll(-int(starts[first]))
    if not bool((lengths > 1).any()):
        raise ConfigError("document_ids must hold a document of at least 2 tokens to turn it, got none; use 'between' (shifted_tokens)")
    turns = 1 + (torch.rand(len(starts), generator=generator, dtype=torch.float64) * (lengths - 1)).long()
    document = opens.cumsum(0) - 1
    return starts[document] + (tokens - starts[document] + turns[document]) % lengths[document]


def compare_codes(
    codes_a: SparseCodes,
    codes_b: SparseCodes,
    document_ids: Int[Tensor, " n"],
    *,
    shift: Shift = "within",
    method: Method = "optimal",
    thresholds: Sequence[float] = (0.5, 0.7),
    n_null: int = 19,
    generator: torch.Generator,
) -> CodeComparison:
    """Best correlations in both directions and one-to-one pairs of the latents of two dictionaries on the same tokens, beside shifted tokens.

    Each draw costs what the value costs, n k_A k_B and the pairing. Raises ConfigError for sizes that differ, n_null < 2, and dictionaries
    without a living latent.
    """
    if not len(codes_a) == len(codes_b) == len(document_ids):
        sizes = [len(codes_a), len(codes_b), len(document_ids)]
        raise ConfigError(f"codes_a, codes_b and document_ids must have one row per token, got {sizes} (compare_codes)")
    moments = _moments(codes_a, codes_b)
    dead = (int(moments.dead_a.sum()), int(moments.dead_b.sum()))
    if dead[0] == codes_a.d_sae or dead[1] == codes_b.d_sae:
        raise ConfigError(
            f"both dictionaries must have a latent that varies, got {dead} dead of {codes_a.d_sae, codes_b.d_sae} (compare_codes)"
        )
    value, n_pairs = _scores(moments, method, thresholds)
    draws = []
    for _ in range(n_null):
        order = shifted_tokens(document_ids, shift, generator=generator)
        draws.append(_scores(_moments(codes_a, codes_b[order]), method, thresholds)[0])
    compared = [compare(each, [draw[i] for draw in draws]) for i, each in enumerate(value)]
    return CodeComparison(*compared[:3], tuple(compared[3:]), tuple(thresholds), n_pairs, dead)


def _moments(codes_a: SparseCodes, codes_b: SparseCodes) -> CodeMoments:
    parts = [slice(start, start + ROWS_PER_PRODUCT) for start in range(0, max(len(codes_a), 1), ROWS_PER_PRODUCT)]
    return code_moments((codes_a[part], codes_b[part]) for part in parts)


def _scores(moments: CodeMoments, method: Method, thresholds: Sequence[float]) -> tuple[list[float], int]:
    pairs = latent_pairs(moments, method=method)
    shares = [pairs.share_above(threshold) for threshold in thresholds]
    paired = pairs.mean if len(pairs.rows) else 0.0
    return [best_correlations(moments).mean, best_correlations(moments.swapped()).mean, paired, *shares], len(pairs.rows)
