"""One pass over all pairs of atoms: nearest neighbours, largest absolute cosines, coherence, Babel function and the histogram of cosines.

    C = W W^T        rows w_i of W of unit norm;  F^2 cosines that are never stored

C is symmetric, so on a CPU only the tiles on and above its diagonal are multiplied, F^2 d / 2 multiply-adds instead of F^2 d, and every value
is given to its row and to its column. Tiles are worked through by one thread each: multiplied with torch, and reduced by a compiled loop
while they are in the cache. Elsewhere (another device, no numba, long lists) rows are walked in blocks with torch's own `topk`.
"""

import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import isqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, row_blocks, unit_rows

TILE = 1024
"""Rows and columns of a tile: 4 MiB of float32, of which the products are as fast as those of larger ones."""
LONGEST_LIST = 128
"""Longer lists are left to torch: insertion takes time in proportion to their length."""


@dataclass(frozen=True, eq=False)
class AtomPairs:
    """What one pass over all pairs of a dictionary's atoms leaves."""

    cosines: Float[Tensor, "n_atoms n_neighbours"]
    """Signed cosines with the nearest other atoms, descending; float32, or float64 for float64 input."""
    atom_ids: Int[Tensor, "n_atoms n_neighbours"]
    """Numbers of those atoms; on a CPU the lower one first where two are equally near, elsewhere in the order of torch."""
    largest: Float[Tensor, "n_atoms max_order"]
    """Largest absolute cosines of each atom with others, descending."""
    histogram: Int[Tensor, " n_bins"]
    """Number of ordered pairs of different atoms per bin: each pair counts twice."""
    bin_edges: Float[Tensor, " n_bins+1"]
    """Edges of the bins, equally spaced over [-1, 1], float64; a bin holds its lower edge, the last one both."""

    @property
    def babel(self) -> Float[Tensor, " max_order"]:
        """mu_1(1), ..., mu_1(max_order): the largest over atoms of the sum of an atom's r largest absolute cosines (float64)."""
        return self.largest.double().cumsum(dim=1).amax(dim=0)

    @property
    def coherence(self) -> float:
        """mu: the largest absolute cosine between two different atoms."""
        return self.largest[:, 0].max().item()


def atom_pairs(
    atoms: Float[Tensor, "n_atoms d_in"], *, n_neighbours: int, max_order: int, n_bins: int = 200, block_elements: int = BLOCK_ELEMENTS
) -> AtomPairs:
    """Neighbours, largest absolute cosines and histogram of the atoms in one pass; see the fields of the result.

    Atoms are normalised first. Time F^2 d / 2 multiply-adds; memory F (n_neighbours + max_order) and a tile per thread. Raises ConfigError
    for fewer than 2 atoms, a zero or non-finite atom, `n_neighbours` or `max_order` outside 1..F-1, and n_bins < 1.
    """
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="atom_pairs")
    for name, value in (("n_neighbours", n_neighbours), ("max_order", max_order)):
        if not 1 <= value < len(rows):
            raise ConfigError(f"{name} must be in 1..n_atoms-1={len(rows) - 1}, got {value} (atom_pairs)")
    if n_bins < 1:
        raise ConfigError(f"n_bins must be at least 1, got {n_bins} (atom_pairs)")
    lists = walk(
        rows, None, n_neighbours=n_neighbours, max_order=max_order, n_bins=n_bins, block_elements=block_elements, where="atom_pairs"
    )
    return AtomPairs(lists.cosines, lists.atom_ids, lists.largest, lists.histogram, bin_edges(n_bins, rows))


def bin_edges(n_bins: int, like: Tensor) -> Float[Tensor, " n_edges"]:
    """Edges of `n_bins` equal bins over [-1, 1], float64, on the device of `like`."""
    return torch.linspace(-1, 1, n_bins + 1, dtype=torch.float64, device=like.device)


@dataclass(frozen=True, eq=False)
class Lists:
    """What `walk` keeps of the products; empty where nothing was asked for."""

    cosines: Float[Tensor, "n n_neighbours"]
    """Largest signed cosines of each row, descending."""
    atom_ids: Int[Tensor, "n n_neighbours"]
    """Whose they are."""
    largest: Float[Tensor, "n max_order"]
    """Largest absolute cosines of each row, descending."""
    histogram: Int[Tensor, " n_bins"]
    """Number of (row, other) pairs per bin, in 64 bits."""

    @staticmethod
    def empty(rows: Float[Tensor, "n d_in"], n_neighbours: int, max_order: int, n_bins: int) -> "Lists":
        """Lists of nothing yet: values below every cosine."""
        return Lists(
            cosines=rows.new_full((len(rows), n_neighbours), -2),
            atom_ids=torch.full((len(rows), n_neighbours), torch.iinfo(torch.int64).max, device=rows.device),
            largest=rows.new_full((len(rows), max_order), -1),
            histogram=torch.zeros(n_bins, dtype=torch.int64, device=rows.device),
        )


def walk(
    rows: Float[Tensor, "n d_in"],
    others: Float[Tensor, "n_atoms d_in"] | None,
    *,
    n_neighbours: int,
    max_order: int,
    n_bins: int,
    block_elements: int,
    where: str,
) -> Lists:
    """Reductions of the products of unit `rows` with unit `others`, or with each other (`None`), a row then being left out of its own lists.

    Lengths of 0 are allowed for what is not wanted. Raises ConfigError for `block_elements` outside 1..2**24.
    """
    if not 1 <= block_elements <= BLOCK_ELEMENTS:
        raise ConfigError(f"block_elements must be in 1..{BLOCK_ELEMENTS}, got {block_elements} ({where})")
    short = max(n_neighbours, max_order) <= LONGEST_LIST
    fast = rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64) and short and _has_numba()
    way = _by_tiles if fast else _by_blocks
    return way(rows, others, Lists.empty(rows, n_neighbours, max_order, n_bins), block_elements)


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _by_blocks(rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"] | None, lists: Lists, block_elements: int) -> Lists:
    columns = rows if others is None else others
    for block in row_blocks(len(rows), len(columns), block_elements, where="walk"):
        product = (rows[block] @ columns.T).clamp_(-1, 1)
        if others is None:
            product.diagonal(offset=block.start).fill_(-2)  # below every cosine, and outside the histogram
        lists.cosines[block], lists.atom_ids[block] = product.topk(lists.cosines.shape[1], dim=1)
        if len(lists.histogram):
            lists.histogram.add_(product.histc(len(lists.histogram), min=-1, max=1).long())
        if lists.largest.shape[1]:
            absolute = product.abs_()
            if others is None:
                absolute.diagonal(offset=block.start).fill_(-1)
            lists.largest[block] = absolute.topk(lists.largest.shape[1], dim=1).values
    return lists


def _by_tiles(rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"] | None, lists: Lists, block_elements: int) -> Lists:
    from sae.dictionaries.kernels.cpu import team
    from sae.geometry.pair_loops import scan

    side = max(1, min(TILE, isqrt(block_elements)))
    columns = rows if others is None else others
    gate = rows.new_full((len(rows),), -2)
    arrays = [tensor.numpy() for tensor in (lists.cosines, lists.atom_ids, lists.largest, gate)]
    tiles = _tiles(len(rows), None if others is None else len(columns), side)
    locks = [threading.Lock() for _ in range(-(-len(rows) // side))]
    counting = threading.Lock()

    def work(number: int) -> None:
        r, c, layout = tiles[number]
        tile = rows[r * side : (r + 1) * side] @ columns[c * side : (c + 1) * side].T
        counts = torch.zeros_like(lists.histogram)
        with _held(locks, r, c if layout == 1 else r):
            scan(tile.numpy(), r * side, c * side, layout, *arrays, counts.numpy())
        with counting:
            lists.histogram.add_(counts)

    _each(team.each, work, len(tiles))
    if others is None:
        lists.histogram.mul_(2)
    return lists


def _each(each: Callable[[Callable[[int], None], int], None], work: Callable[[int], None], n_tiles: int) -> None:
    """All tiles; a single one by the caller, whose product then uses all of torch's threads."""
    if n_tiles == 1:
        work(0)
    else:
        each(work, n_tiles)


def _tiles(n_rows: int, n_columns: int | None, side: int) -> list[tuple[int, int, int]]:
    """(row of tiles, column of tiles, layout of `scan`), by diagonals, so that tiles next to each other seldom share rows."""
    n_down = -(-n_rows // side)
    if n_columns is None:
        return [(r, r + offset, 1 if offset else 2) for offset in range(n_down) for r in range(n_down - offset)]
    n_across = -(-n_columns // side)
    return [(r, (r + offset) % n_across, 0) for offset in range(n_across) for r in range(n_down)]


class _held:
    """Both locks, taken in the order of their numbers, so that nobody waits in a circle."""

    def __init__(self, locks: list[threading.Lock], first: int, second: int):
        self.locks = [locks[number] for number in sorted({first, second})]

    def __enter__(self) -> None:
        for lock in self.locks:
            lock.acquire()

    def __exit__(self, *error: object) -> None:
        for lock in self.locks:
            lock.release()
