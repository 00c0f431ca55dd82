"""The symmetric pass over tiles of the float32 product, by a team of threads; needs numba.

Each member takes a tile, multiplies it with one thread and lets its rows and its columns keep what may be near. The lists of a block of rows
are under that block's lock while a tile is read into them. What comes out does not depend on the order of the tiles: the lists hold all
candidates within the error bound, and exact distances decide.
"""

import threading

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.geometry.dimension.neighbour_loops import UNDECIDED, scan_columns, scan_rows, settle
from sae.geometry.dimension.neighbours import TILE_ROWS


def search(
    points: Float[Tensor, "n d"], centred: Float[Tensor, "n d"], scale: float, k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Int[Tensor, " undecided"]]:
    """Distances and row numbers of the k nearest, and the rows where the bound on float32's error decides too little.

    `centred` are the points less their mean over `scale`, a power of two; distances are those of `points` themselves.
    """
    n, d = centred.shape
    capacity = min(4 * k + 128, max(n, 8))
    left = centred.float()
    right = (-2 * left).T
    squares = centred.square().sum(dim=1).float().numpy()
    lengths = np.sqrt(squares) * np.float32(1 + 2.0**-20)
    slack = np.float32(2 * (d + 4) * 2.0**-24)
    limits = np.full(n, np.inf, np.float32)
    uppers, ids = np.empty((n, capacity), np.float32), np.empty((n, capacity), np.int32)
    counts = np.zeros(n, np.int64)
    lists = (k, slack, squares, lengths, limits, uppers, ids, counts)
    starts = range(0, n, TILE_ROWS)
    tiles = [(a, b) for a in starts for b in starts if b >= a]
    locks = {a: threading.Lock() for a in starts}
    own = threading.local()

    def tile(t: int) -> None:
        a, b = tiles[t]
        rows, columns = left[a : a + TILE_ROWS], right[:, b : b + TILE_ROWS]
        if not hasattr(own, "buffer"):
            own.buffer = torch.empty(TILE_ROWS * TILE_ROWS)
        product = own.buffer[: len(rows) * columns.shape[1]].view(len(rows), columns.shape[1])
        torch.mm(rows, columns, out=product)
        with locks[a]:
            scan_rows(product.numpy(), a, b, *lists)
        if b > a:
            with locks[b]:
                scan_columns(product.numpy(), a, b, *lists)

    distances, neighbour_ids = torch.empty(n, k, dtype=torch.float64), torch.empty(n, k, dtype=torch.int64)
    exact = points.numpy()

    def finish(block: int) -> None:
        first = block * TILE_ROWS
        settle(exact, 1 / scale, first, min(first + TILE_ROWS, n), *lists, distances.numpy(), neighbour_ids.numpy())

    with team.gathered():
        team.each(tile, len(tiles))
        team.each(finish, len(starts))
    return distances, neighbour_ids, torch.from_numpy((counts == UNDECIDED).nonzero()[0])
