"""Which latents fire together: exact counts over tokens or blocks of tokens, without an F x F table.

    X_tj = 1 where latent j fires in unit t (a token, or a block of tokens in which it fires at least once)
    C_ij = sum_t X_ti X_tj,      C_ii = n_i,      T units

Latent by latent, the units where it fires are walked and their other latents counted in a vector of F numbers: sum_t (latents of t)^2 / 2
additions in a cache, against T F^2 for the product of dense matrices. Where a unit has many latents, they are compared as rows of bits
instead: F^2 T / 128 words. Blocks of 256 tokens: Li et al. 2024 (arXiv 2410.19750), section on
"brain scale", who also take a latent to fire only above an activation of 1. Affinities of the counts are in `sae.geometry.affinity`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.affinity import Affinity, affinity, require_affinity

if TYPE_CHECKING:
    import scipy.sparse

LATENTS_PER_BLOCK = 128
"""Latents that one thread counts at a time."""
WORDS_PER_INCREMENT = 8
"""Words of 64 units that can be compared in the time of one increment."""
DENSE_LATENTS = 16_384
"""Largest F for which a dense table of the counts is handed out: 2 GiB of int64."""


@dataclass(frozen=True, eq=False)
class Firings:
    """The 0/1 matrix X, by unit and by latent; 8 bytes a firing and 4 for the place of each within its unit."""

    unit_starts: Int[Tensor, " n_unit_starts"]
    """The latents of unit t are latent_ids[unit_starts[t] : unit_starts[t + 1]], ascending."""
    latent_ids: Int[Tensor, " n_firings"]
    """Latents, unit after unit; int32."""
    latent_starts: Int[Tensor, " n_latent_starts"]
    """The units of latent j are unit_ids[latent_starts[j] : latent_starts[j + 1]], ascending."""
    unit_ids: Int[Tensor, " n_firings"]
    """Units, latent after latent; int32."""
    slots: Int[Tensor, " n_firings"]
    """Beside each of `unit_ids`: where in that unit's list the latent stands; int32."""

    @property
    def n_units(self) -> int:
        """T: tokens or blocks, those in which nothing fires included."""
        return len(self.unit_starts) - 1

    @property
    def n_latents(self) -> int:
        """F."""
        return len(self.latent_starts) - 1

    @property
    def firing(self) -> Int[Tensor, " n_latents"]:
        """n_j: units in which each latent fires."""
        return self.latent_starts.diff()

    def csr(self) -> "scipy.sparse.csr_matrix":
        """X as a sparse matrix [n_units, n_latents] of int32 ones."""
        from scipy.sparse import csr_matrix

        parts = (np.ones(len(self.latent_ids), np.int32), self.latent_ids.numpy(), self.unit_starts.numpy())
        return csr_matrix(parts, shape=(self.n_units, self.n_latents))


@dataclass(frozen=True, eq=False)
class Coactivation:
    """The pairs of latents that fire together, each once (i < j); 8 bytes a pair."""

    starts: Int[Tensor, " n_starts"]
    """The partners j > i of latent i are latent_ids[starts[i] : starts[i + 1]], ascending."""
    latent_ids: Int[Tensor, " n_pairs"]
    """Partners; int32."""
    counts: Int[Tensor, " n_pairs"]
    """C_ij, at least the `min_count` that was asked for; int32."""
    firing: Int[Tensor, " n_latents"]
    """n_i = C_ii."""
    n_units: int
    """T."""

    @property
    def first_ids(self) -> Int[Tensor, " n_pairs"]:
        """i of every pair, beside `latent_ids`; int32."""
        return torch.repeat_interleave(torch.arange(len(self.firing), dtype=torch.int32), self.starts.diff())

    def affinities(self, kind: Affinity) -> Float[Tensor, " n_pairs"]:
        """The affinity of every pair that is here (float64); see `sae.geometry.affinity`. Raises ConfigError for another `kind`."""
        return affinity(kind, self.counts, self.firing[self.first_ids], self.firing[self.latent_ids], self.n_units)

    def dense(self) -> Int[Tensor, "n_latents n_latents"]:
        """C as a symmetric table of int64 with n_i on its diagonal. Raises ConfigError for more than 16,384 latents."""
        n_latents = len(self.firing)
        if n_latents > DENSE_LATENTS:
            raise ConfigError(
                f"a dense table is for at most {DENSE_LATENTS} latents, got {n_latents}; use the pairs, or nearest_by_coactivation (dense)"
            )
        table = torch.diag(self.firing)
        rows, columns = self.first_ids.long(), self.latent_ids.long()
        table[rows, columns] = self.counts.long()
        table[columns, rows] = self.counts.long()
        return table


@dataclass(frozen=True, eq=False)
class CoactivationNeighbours:
    """For each latent, those that fire together with it, the strongest affinity first. Unused places hold id -1, count 0 and affinity 0."""

    latent_ids: Int[Tensor, "n_latents n_neighbours"]
    """Partners; the lower number first where two are equal."""
    counts: Int[Tensor, "n_latents n_neighbours"]
    """C_ij."""
    affinities: Float[Tensor, "n_latents n_neighbours"]
    """Their affinities, descending; float64."""
    firing: Int[Tensor, " n_latents"]
    """n_i."""
    n_units: int
    """T."""


def firings(
    indices: Int[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    *,
    n_latents: int,
    values: Float[Tensor, "n k_max"] | None = None,
    threshold: float = 0.0,
    block: int = 1,
    documents: Int[Tensor, " n"] | None = None,
) -> Firings:
    """Which latents fire in which unit. Row t of the codes has the latents `indices[t, :counts[t]]`; slots beyond are ignored.

    With `values` a latent fires where its value is above `threshold`, otherwise wherever it is named. A unit is `block` consecutive rows of
    one document (all rows are one document where `documents` is not given); what is left over at a document's end is dropped. A latent named
    twice in a unit fires once. On the CPU; time and memory in proportion to the firings.

    Raises ConfigError for no rows, shapes that differ, latents outside 0..n_latents-1, counts outside 0..k_max, `block` < 1, `documents`
    whose rows are not together, NaN among the values, and when no document has a whole block.
    """
    where = "firings"
    _require_rows(indices, counts, n_latents=n_latents, block=block)
    fires = torch.arange(indices.shape[1]) < counts.cpu()[:, None]
    if values is not None:
        if values.shape != indices.shape:
            raise ConfigError(f"values must have the shape of indices, {tuple(indices.shape)}, got {tuple(values.shape)} ({where})")
        if bool((values.isnan().cpu() & fires).any()):
            raise ConfigError(f"values must not be NaN in an active slot, got NaN; leave those rows out ({where})")
        fires = fires & (values.detach().cpu() > threshold)
    unit_of_row, n_units = _units(len(indices), block, documents)
    way = _sorted_by_loops if _has_numba() else _sorted_by_torch
    return way(indices.detach().cpu().contiguous(), fires, unit_of_row, n_units, n_latents)


def _require_rows(indices: Int[Tensor, "n k_max"], counts: Int[Tensor, " m"], *, n_latents: int, block: int) -> None:
    n, k_max = indices.shape
    if n_latents < 1:
        raise ConfigError(f"n_latents must be at least 1, got {n_latents} (firings)")
    if n == 0 or len(counts) != n:
        raise ConfigError(f"indices and counts must have the same number of rows, at least 1, got {n} and {len(counts)} (firings)")
    if int(counts.min()) < 0 or int(counts.max()) > k_max:
        raise ConfigError(f"counts must be in 0..k_max={k_max}, got {int(counts.min())}..{int(counts.max())} (firings)")
    if block < 1:
        raise ConfigError(f"block must be at least 1 row, got {block} (firings)")


def _units(n: int, block: int, documents: Int[Tensor, " n"] | None) -> tuple[Int[Tensor, " n"], int]:
    """(unit of each row, -1 for those left over; number of units)."""
    starts = torch.zeros(n, dtype=torch.bool)
    starts[0] = True
    if documents is not None:
        if len(documents) != n:
            raise ConfigError(f"documents must name one for each of the {n} rows, got {len(documents)} (firings)")
        documents = documents.detach().cpu()
        starts[1:] = documents[1:] != documents[:-1]
        if int(starts.sum()) != len(documents.unique()):
            raise ConfigError(
                f"documents must have their rows together, got {int(starts.sum())} runs of fewer documents; sort rows (firings)"
            )
    places = starts.nonzero().flatten()
    lengths = torch.cat([places, torch.tensor([n])]).diff()
    whole = lengths // block
    n_units = int(whole.sum())
    if n_units == 0:
        raise ConfigError(f"block must be at most the rows of the longest document, {int(lengths.max())}, got {block} (firings)")
    within = (torch.arange(n) - places.repeat_interleave(lengths)) // block
    unit = (whole.cumsum(0) - whole).repeat_interleave(lengths) + within
    return unit.masked_fill(within >= whole.repeat_interleave(lengths), -1).int(), n_units


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _sorted_by_loops(
    indices: Int[Tensor, "n k_max"], fires: Tensor, unit_of_row: Int[Tensor, " n"], n_units: int, n_latents: int
) -> Firings:
    from sae.geometry.coactivation_loops import count_firings, sort_by_latent, sort_by_unit

    ids, active, unit_of_row = indices.numpy(), fires.numpy(), unit_of_row.numpy()
    firing, stamp = np.zeros(n_latents, np.int64), np.full(n_latents, -1, np.int32)
    _refuse(int(count_firings(ids, active, unit_of_row, stamp, firing)), indices, n_latents)
    latent_starts = np.concatenate([np.zeros(1, np.int64), firing.cumsum()])
    unit_ids, slots, latent_ids = (np.empty(latent_starts[-1], np.int32) for _ in range(3))
    stamp.fill(-1)
    sort_by_latent(ids, active, unit_of_row, stamp, latent_starts[:-1].copy(), unit_ids)
    unit_starts = np.concatenate([np.zeros(1, np.int64), np.bincount(unit_ids, minlength=n_units).cumsum()])
    sort_by_unit(latent_starts, unit_ids, unit_starts, latent_ids, slots)
    return Firings(*(torch.from_numpy(each) for each in (unit_starts, latent_ids, latent_starts, unit_ids, slots)))


def _sorted_by_torch(
    indices: Int[Tensor, "n k_max"], fires: Tensor, unit_of_row: Int[Tensor, " n"], n_units: int, n_latents: int
) -> Firings:
    used = fires & (unit_of_row >= 0)[:, None]
    bad = (used & ((indices < 0) | (indices >= n_latents))).flatten().nonzero()
    _refuse(int(bad[0]) if len(bad) else -1, indices, n_latents)
    cells = (unit_of_row.long()[:, None] * n_latents + indices.long())[used].unique()
    units, latents = cells // n_latents, cells % n_latents
    unit_starts, latent_starts = (
        torch.cat([torch.zeros(1, dtype=torch.int64), each.bincount(minlength=size).cumsum(0)])
        for each, size in ((units, n_units), (latents, n_latents))
    )
    order = latents.argsort(stable=True)
    slots = torch.arange(len(cells)) - unit_starts[units]
    return Firings(unit_starts, latents.int(), latent_starts, units[order].int(), slots[order].int())


def _refuse(place: int, indices: Int[Tensor, "n k_max"], n_latents: int) -> None:
    if place >= 0:
        row, slot = divmod(place, indices.shape[1])
        raise ConfigError(
            f"indices must be in 0..n_latents-1={n_latents - 1}, got {int(indices[row, slot])} in row {row}, slot {slot}; "
            f"n_latents is the width of the dictionary that made the codes (firings)"
        )


def coactivation(fired: Firings, *, min_count: int = 1) -> Coactivation:
    """In how many units each pair of latents fires, for the pairs with at least `min_count`; exact.

    Time the smaller of sum over units of (latents)^2 / 2 and F^2 T / 128, and F^2 / 2 to read the counts out; memory 8 bytes a pair and 64 F
    a thread. Where nearly all
    pairs occur, that is half of an F x F table of int64. Raises ConfigError for min_count < 1.
    """
    if min_count < 1:
        raise ConfigError(f"min_count must be at least 1, got {min_count}; pairs that never fire together are not kept (coactivation)")
    parts = _upper_by_loops(fired, min_count) if _has_numba() else _upper_by_scipy(fired, min_count)
    sizes, ids, counts = parts
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(sizes).long().cumsum(0)])
    latent_ids = torch.cat(ids)
    ids.clear()  # a part of the pairs at a time is in memory twice
    together = torch.cat(counts)
    return Coactivation(starts=starts, latent_ids=latent_ids, counts=together, firing=fired.firing, n_units=fired.n_units)


def _arrays(fired: Firings) -> tuple[np.ndarray, ...]:
    """What the loops take: the latents as bits where that is the faster way, no bits otherwise, and the firings."""
    from sae.geometry.coactivation_loops import set_bits

    arrays = tuple(each.numpy() for each in (fired.latent_starts, fired.unit_ids, fired.slots, fired.unit_starts, fired.latent_ids))
    n_words = -(-fired.n_units // 64)
    increments = float(fired.unit_starts.diff().double().square().sum())
    by_bits = fired.n_latents**2 * n_words < WORDS_PER_INCREMENT * increments
    words = np.zeros((fired.n_latents, n_words if by_bits else 0), np.uint64)
    if by_bits:
        set_bits(arrays[0], arrays[1], words)
    return words, *arrays


def _each_block(work: Callable[[int, int], None], n_latents: int) -> None:
    from sae.dictionaries.kernels.cpu import team

    blocks = [(first, min(first + LATENTS_PER_BLOCK, n_latents)) for first in range(0, n_latents, LATENTS_PER_BLOCK)]
    team.each(lambda number: work(*blocks[number]), len(blocks))


def _upper_by_loops(fired: Firings, min_count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    from sae.geometry.coactivation_loops import upper_rows

    arrays, sizes = _arrays(fired), np.zeros(fired.n_latents, np.int64)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def work(first: int, last: int) -> None:
        found[first] = upper_rows(first, last, min_count, *arrays, sizes)

    _each_block(work, fired.n_latents)
    ids = [torch.from_numpy(found[first][0]) for first in sorted(found)]
    counts = [torch.from_numpy(found[first][1]) for first in sorted(found)]
    found.clear()
    return [torch.from_numpy(sizes)], ids, counts


def _upper_by_scipy(fired: Firings, min_count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    fires = fired.csr()
    columns, sizes, ids, counts = fires.tocsc(), [], [], []
    for first in range(0, fired.n_latents, LATENTS_PER_BLOCK):
        rows = (columns[:, first : first + LATENTS_PER_BLOCK].T @ fires).tocsr()
        rows.sort_indices()
        i = np.repeat(np.arange(first, first + rows.shape[0]), np.diff(rows.indptr))
        kept = (rows.indices > i) & (rows.data >= min_count)
        sizes.append(torch.from_numpy(np.bincount(i[kept] - first, minlength=rows.shape[0])))
        ids.append(torch.from_numpy(rows.indices[kept].astype(np.int32)))
        counts.append(torch.from_numpy(rows.data[kept].astype(np.int32)))
    return sizes, ids, counts


def nearest_by_coactivation(fired: Firings, kind: Affinity, *, n_neighbours: int) -> CoactivationNeighbours:
    """For each latent, the `n_neighbours` that fire together with it and have the largest affinity; the others are not kept.

    Only latents that share a unit are candidates: matching is large for pairs that are silent together, and does not see those here. Time
    as for two `coactivation`s, memory 16 F n_neighbours: any width. Raises ConfigError for another `kind` and n_neighbours outside 1..F-1.
    """
    number = require_affinity(kind, where="nearest_by_coactivation")
    n_latents = fired.n_latents
    if not 1 <= n_neighbours < n_latents:
        raise ConfigError(f"n_neighbours must be in 1..n_latents-1={n_latents - 1}, got {n_neighbours} (nearest_by_coactivation)")
    ids = torch.full((n_latents, n_neighbours), -1, dtype=torch.int32)
    counts, best = torch.zeros_like(ids), torch.full(ids.shape, -torch.inf, dtype=torch.float64)
    if _has_numba():
        from sae.geometry.coactivation_loops import nearest_rows

        arrays, out = _arrays(fired), [each.numpy() for each in (ids, counts, best)]
        _each_block(lambda first, last: nearest_rows(first, last, number, fired.n_units, *arrays, *out), n_latents)
    else:
        _nearest_by_scipy(fired, kind, ids, counts, best)
    best.masked_fill_(ids < 0, 0)
    return CoactivationNeighbours(latent_ids=ids, counts=counts, affinities=best, firing=fired.firing, n_units=fired.n_units)


def _nearest_by_scipy(fired: Firings, kind: Affinity, ids: Tensor, counts: Tensor, best: Tensor) -> None:
    fires, firing = fired.csr(), fired.firing
    columns = fires.tocsc()
    for first in range(0, fired.n_latents, LATENTS_PER_BLOCK):
        together = torch.from_numpy((columns[:, first : first + LATENTS_PER_BLOCK].T @ fires).toarray()).long()
        block = slice(first, first + len(together))
        values = affinity(kind, together, firing[block, None], firing[None], fired.n_units)
        together.diagonal(offset=first).fill_(0)
        values.masked_fill_(together == 0, -torch.inf)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, : ids.shape[1]]
        best[block], counts[block] = values.gather(1, order), together.gather(1, order).int()
        ids[block] = order.int().masked_fill(counts[block] == 0, -1)
