"""Compiled loops of the neighbour search: the filter that a tile of rough squared distances passes through, and the exact distances behind it.

    lower_ij = q_i + q_j + p_ij - e_ij,    e_ij = slack |x_i||x_j|        q = (1 - ROUNDING) |x|^2, p = -2 x_i . x_j in float32
    upper_ij = lower_ij + 2 e_ij + 2 ROUNDING (|x_i|^2 + |x_j|^2)

enclose the squared distance. The k-th smallest upper bound a row has seen is never below its k-th smallest distance, so an entry whose lower
bound lies above it is not among the k nearest. Each row keeps what passes in a list of fixed capacity; a full list is thinned out by the
same rule. A list that stays full marks its row as undecided.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled

UNDECIDED = -1
"""Count of a row whose list overflowed."""
ROUNDING = np.float32(2.0**-20)
"""Bounds the relative rounding of the few float32 sums around the product."""
LANES = 64
"""Entries that one vector test covers."""


@compiled
def thin_out(r: int, k: int, slack: float, squares, lengths, limits, uppers, ids, counts) -> None:
    """Drop what cannot be among the k nearest of row r from its list, and lower its limit."""
    n = counts[r]
    kth = np.partition(uppers[r, :n], k - 1)[k - 1]
    limits[r] = min(limits[r], kth)
    kept = 0
    for c in range(n):
        j = ids[r, c]
        error = slack * lengths[r] * lengths[j] + np.float32(2) * ROUNDING * (squares[r] + squares[j])
        if uppers[r, c] - np.float32(2) * error <= limits[r]:
            uppers[r, kept], ids[r, kept] = uppers[r, c], j
            kept += 1
    counts[r] = kept


@compiled
def offer(r: int, j: int, p, k: int, slack, squares, lengths, limits, uppers, ids, counts) -> None:
    """Enter row j in the list of row r."""
    total = squares[r] + squares[j]
    c = counts[r]
    uppers[r, c] = total + p + slack * lengths[r] * lengths[j] + ROUNDING * total
    ids[r, c] = j
    counts[r] = c + 1
    if c + 1 == uppers.shape[1]:
        thin_out(r, k, slack, squares, lengths, limits, uppers, ids, counts)
        if 8 * counts[r] > 7 * uppers.shape[1]:
            counts[r], limits[r] = UNDECIDED, -np.inf


@compiled
def scan_rows(product, first: int, other: int, k: int, slack, squares, lengths, limits, uppers, ids, counts) -> None:
    """Offer the columns of a tile (rows `other`... of the cloud) to the lists of its rows (`first`...)."""
    m, n = product.shape
    one = np.float32(1) - ROUNDING
    for i in range(m):
        r = first + i
        own, reach, row = one * squares[r], slack * lengths[r], product[i]
        for start in range(0, n, LANES):
            stop = min(start + LANES, n)
            limit, hits = limits[r] - own, np.int32(0)
            for j in range(start, stop):
                hits |= np.int32(one * squares[other + j] + row[j] - reach * lengths[other + j] <= limit)
            if hits == 0:
                continue
            for j in range(start, stop):
                lower = one * squares[other + j] + row[j] - reach * lengths[other + j]
                if lower <= limits[r] - own and other + j != r and counts[r] >= 0:
                    offer(r, other + j, row[j], k, slack, squares, lengths, limits, uppers, ids, counts)


@compiled
def scan_columns(product, first: int, other: int, k: int, slack, squares, lengths, limits, uppers, ids, counts) -> None:
    """Offer the rows of a tile to the lists of its columns; the tile must not touch the diagonal."""
    m, n = product.shape
    one = np.float32(1) - ROUNDING
    for i in range(m):
        r = first + i
        own, reach, row = one * squares[r], slack * lengths[r], product[i]
        for start in range(0, n, LANES):
            stop = min(start + LANES, n)
            hits = np.int32(0)
            for j in range(start, stop):
                c = other + j
                hits |= np.int32(one * squares[c] + row[j] - reach * lengths[c] <= limits[c] - own)
            if hits == 0:
                continue
            for j in range(start, stop):
                c = other + j
                if one * squares[c] + row[j] - reach * lengths[c] <= limits[c] - own and counts[c] >= 0:
                    offer(c, r, row[j], k, slack, squares, lengths, limits, uppers, ids, counts)


@compiled
def settle(
    points, inverse_scale: float, first: int, stop: int, k: int, slack, squares, lengths, limits, uppers, ids, counts, out, out_ids
) -> None:
    """The k nearest of rows first..stop-1 by float64 distances of what their lists hold; equal distances in the order of the row numbers."""
    d = points.shape[1]
    exact = np.empty(uppers.shape[1], np.float64)
    for r in range(first, stop):
        if counts[r] < 0:
            continue
        thin_out(r, k, slack, squares, lengths, limits, uppers, ids, counts)
        n = counts[r]
        candidates = np.sort(ids[r, :n])
        own = points[r]
        for c in range(n):
            row, total = points[candidates[c]], 0.0
            for i in range(d):
                difference = (np.float64(own[i]) - np.float64(row[i])) * inverse_scale
                total += difference * difference
            exact[c] = total
        order = np.argsort(exact[:n], kind="mergesort")
        for c in range(k):
            out[r, c] = np.sqrt(exact[order[c]]) / inverse_scale
            out_ids[r, c] = candidates[order[c]]
