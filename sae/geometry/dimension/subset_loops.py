"""The compiled loop that finds neighbours within a part of the points among the neighbours found for all of them."""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def walk(kept: np.ndarray, rows: np.ndarray, logs: np.ndarray, ids: np.ndarray, orders: np.ndarray, k: int, found: np.ndarray) -> None:
    """found[o, m] = ln of the distance from rows[m] to its orders[o]-th kept neighbour, found[-1, m] = the sum of ln below the k-th.

    NaN in all of column m where rows[m] has too few kept neighbours. `orders` ascend; `logs` and `ids` are nearest first.
    """
    n_found, n_orders = logs.shape[1], len(orders)
    for m in range(len(rows)):
        r = rows[m]
        rank, position, total = 0, 0, 0.0
        for c in range(n_found):
            if kept[ids[r, c]]:
                rank += 1
                if rank < k:
                    total += logs[r, c]
                if rank == orders[position]:
                    found[position, m] = logs[r, c]
                    position += 1
                    if position == n_orders:
                        break
        found[n_orders, m] = total
        if position < n_orders:
            found[:, m] = np.nan
