"""Do two models' latents that answer to the same tokens also lie alike? Decoder rows of paired latents, compared as two representations.

    pairs (a_1, b_1) ... (a_m, b_m)        latents of A and B, by the correlation of their codes (sae.geometry.atoms.correlation)
    SVCCA and RSA of  W_A[a_1..m]  and  W_B[b_1..m]        m stimuli, d_A and d_B columns; null: the pairing shuffled

Lan, Torr, Meek, Khakzar, Krueger & Barez 2024 (2410.06981). The widths may differ: only the arrangement of the atoms is compared.
Departures: pairs are one-to-one and the best (the paper keeps the first of several); SVCCA keeps a fixed number of components, few beside m,
since its null is about .85 sqrt(k / m) (the paper's code keeps a single one: it compares a fraction with an absolute number); p counts the
value among its draws; the filters below do filter (in one published version their result is overwritten) and the share of pairs that they
leave is part of the result. Dictionaries of the same models with random weights are the control for the whole pipeline: pair and compare them
in the same way.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms.assignment import Pairs
from sae.geometry.nulls import NullStatistic
from sae.geometry.representations.cca import Svcca
from sae.geometry.representations.rsa import Rsa, sample_stimuli
from sae.geometry.representations.stimuli import compare_representations

MOST_COMPONENTS = 50
"""Components that SVCCA keeps at most, if none are asked for."""
PAIRS_PER_COMPONENT = 20
"""Pairs for each of them: the null mean is then at most about 0.2."""


@dataclass(frozen=True)
class Universality:
    """How alike paired latents lie in two decoders."""

    svcca: NullStatistic
    """Mean canonical correlation of the leading components, beside shuffled pairings."""
    rsa: NullStatistic
    """Spearman correlation of the two dissimilarity matrices (1 - Pearson), beside shuffled pairings."""
    n_pairs: int
    """Pairs that were compared."""
    share_kept: float
    """Those over the size of the smaller dictionary."""
    n_components: int
    """Components that SVCCA kept of each."""
    correlation: float
    """Mean similarity by which they were paired."""


def universality(
    atoms_a: Float[Tensor, "f_a d_a"],
    atoms_b: Float[Tensor, "f_b d_b"],
    pairs: Pairs,
    *,
    n_components: int | None = None,
    most_pairs: int = 2000,
    n_null: int = 99,
    generator: torch.Generator,
) -> Universality:
    """SVCCA and RSA of the decoder rows of paired latents, each beside the same pairs shuffled.

    At most `most_pairs` pairs, drawn uniformly, enter RSA, which needs m^2 memory. By default SVCCA keeps min(50, m // 20, d_A, d_B)
    components. Raises ConfigError for fewer than 20 pairs, pairs of other dictionaries, and as the two measures.
    """
    if (pairs.n_rows, pairs.n_columns) != (len(atoms_a), len(atoms_b)):
        raise ConfigError(
            f"pairs must be of dictionaries of {len(atoms_a)} and {len(atoms_b)} atoms, got {pairs.n_rows} and {pairs.n_columns} (universality)"
        )
    m = len(pairs.rows)
    if m < PAIRS_PER_COMPONENT:
        raise ConfigError(f"pairs must number at least {PAIRS_PER_COMPONENT}, got {m}; lower the minimum correlation (universality)")
    a, b = atoms_a.detach()[pairs.rows].double(), atoms_b.detach()[pairs.columns].double()
    k = min(MOST_COMPONENTS, m // PAIRS_PER_COMPONENT, a.shape[1], b.shape[1]) if n_components is None else n_components
    few = sample_stimuli(m, most_pairs, generator=generator)
    return Universality(
        svcca=compare_representations(Svcca(n_components=k), a, b, n_null=n_null, generator=generator),
        rsa=compare_representations(Rsa(), a[few], b[few], n_null=n_null, generator=generator),
        n_pairs=m,
        share_kept=m / min(len(atoms_a), len(atoms_b)),
        n_components=k,
        correlation=pairs.mean,
    )


def top_tokens(codes: SparseCodes, token_ids: Int[Tensor, " n"], *, n_top: int = 5) -> Int[Tensor, "d_sae n_top"]:
    """The token ids at the `n_top` places where each latent is largest, largest first; -1 where it is active (value > 0) less often.

    Of equal values the earlier place comes first. A token id may come twice. Raises ConfigError for sizes that differ, and n_top < 1.
    """
    if len(codes) != len(token_ids) or n_top < 1:
        raise ConfigError(
            f"token_ids must be one per row of codes, {len(codes)}, and n_top at least 1, got {len(token_ids)}, {n_top} (top_tokens)"
        )
    columns = codes.csr().tocsc()
    tokens = token_ids.detach().cpu().numpy()
    found = np.full((codes.d_sae, n_top), -1, dtype=np.int64)
    for latent in range(codes.d_sae):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        values, rows = columns.data[part], columns.indices[part]
        order = np.lexsort((rows, -values))[:n_top]
        order = order[values[order] > 0]
        found[latent, : len(order)] = tokens[rows[order]]
    return torch.from_numpy(found)


def concept_pairs(pairs: Pairs, tops_a: Int[Tensor, "f_a n_a"], tops_b: Int[Tensor, "f_b n_b"], *, excluded: Collection[int] = ()) -> Pairs:
    """The pairs whose top tokens have one in common, and none that is `excluded` (punctuation, spaces, special tokens).

    Token ids of two tokenizers cannot be compared; -1 stands for no token. Raises ConfigError for tops of other dictionaries.
    """
    if (len(tops_a), len(tops_b)) != (pairs.n_rows, pairs.n_columns):
        raise ConfigError(
            f"tops must have one row per latent, {pairs.n_rows} and {pairs.n_columns}, got {len(tops_a)} and {len(tops_b)} (concept_pairs)"
        )
    banned = torch.tensor(sorted(excluded), dtype=torch.long)
    left, right = tops_a.cpu()[pairs.rows], tops_b.cpu()[pairs.columns]
    common = ((left[:, :, None] == right[:, None, :]) & (left >= 0)[:, :, None]).any(dim=2).any(dim=1)
    clean = ~torch.isin(left, banned).any(dim=1) & ~torch.isin(right, banned).any(dim=1)
    return pairs.chosen(common & clean)
