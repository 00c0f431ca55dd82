"""What a tile of cosines leaves behind, in one pass over it while it is in the cache.

    tile[r, c] = <w_i, w_j>,   i = first_row + r,   j = first_column + c
    bin of a cosine v          floor((v + 1) n_bins / 2)

A row keeps its nearest others and its largest absolute cosines in sorted lists; `gate` holds for every row what |v| has to reach to change
either. Nearly all values reach nobody's gate, and are only compared (a vector loop) and counted in the histogram. Equal cosines are ordered
by number, so that the lists do not depend on the order in which tiles come.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled

CHUNK = 64
"""Values that are compared at once, before any is looked at alone."""


@compiled
def offer(v: float, i: int, j: int, cosines: np.ndarray, atom_ids: np.ndarray, absolute: np.ndarray, gate: np.ndarray) -> None:
    """Put atom j with cosine v into the lists of row i if it belongs there, and raise its gate."""
    n_near, n_largest = cosines.shape[1], absolute.shape[1]
    last = n_near - 1
    if n_near > 0 and (v > cosines[i, last] or (v == cosines[i, last] and j < atom_ids[i, last])):
        place = last
        while place > 0 and (v > cosines[i, place - 1] or (v == cosines[i, place - 1] and j < atom_ids[i, place - 1])):
            cosines[i, place], atom_ids[i, place] = cosines[i, place - 1], atom_ids[i, place - 1]
            place -= 1
        cosines[i, place], atom_ids[i, place] = v, j
    size, last = abs(v), n_largest - 1
    if n_largest > 0 and size > absolute[i, last]:
        place = last
        while place > 0 and size > absolute[i, place - 1]:
            absolute[i, place] = absolute[i, place - 1]
            place -= 1
        absolute[i, place] = size
    if n_near == 0:
        gate[i] = absolute[i, n_largest - 1]
    elif n_largest == 0:
        gate[i] = cosines[i, n_near - 1]
    else:
        gate[i] = min(cosines[i, n_near - 1], absolute[i, n_largest - 1])


@compiled
def count(values: np.ndarray, bins: np.ndarray, parts: np.ndarray) -> None:
    """Add one to the bin of every value, in eight histograms by turns: an increment need not wait for the one before."""
    n, n_bins = len(values), parts.shape[1]
    one, scale = values.dtype.type(1), values.dtype.type(n_bins / 2)
    lowest, highest = np.int32(0), np.int32(n_bins - 1)
    for c in range(n):
        bins[c] = min(max(np.int32((values[c] + one) * scale), lowest), highest)
    whole = n - n % 8
    for c in range(0, whole, 8):
        for part in range(8):
            parts[part, bins[c + part]] += 1
    for c in range(whole, n):
        parts[0, bins[c]] += 1


@compiled
def scan(
    tile: np.ndarray, first_row: int, first_column: int, layout: int,
    cosines: np.ndarray, atom_ids: np.ndarray, absolute: np.ndarray, gate: np.ndarray, histogram: np.ndarray,
) -> None:  # fmt: skip
    """Offer every value of the tile to its row and add it to the histogram, if that has bins.

    layout 0: the columns are other vectors, and get nothing; 1: a tile above the diagonal, whose values are offered to their columns too;
    2: a tile on the diagonal, of which only what lies above it is looked at, likewise for both.
    """
    n_rows, n_columns = tile.shape
    one = tile.dtype.type(1)
    bins, parts = np.empty(n_columns, np.int32), np.zeros((8, len(histogram)), np.int64)
    for r in range(n_rows):
        i, row = first_row + r, tile[r]
        start = r + 1 if layout == 2 else 0
        if len(histogram) > 0:
            count(row[start:], bins, parts)
        for begin in range(start, n_columns, CHUNK):
            end = min(begin + CHUNK, n_columns)
            own, n_hits = gate[i], np.int32(0)
            if layout == 0:
                for c in range(begin, end):
                    n_hits = np.int32(n_hits + np.int32(abs(row[c]) >= own))
            else:
                for c in range(begin, end):
                    size = abs(row[c])
                    n_hits = np.int32(n_hits + np.int32((size >= own) | (size >= gate[first_column + c])))
            if n_hits > 0:
                for c in range(begin, end):
                    v, j = min(max(row[c], -one), one), first_column + c
                    if abs(v) >= gate[i]:
                        offer(v, i, j, cosines, atom_ids, absolute, gate)
                    if layout > 0 and abs(v) >= gate[j]:
                        offer(v, j, i, cosines, atom_ids, absolute, gate)
    for part in range(8):
        for number in range(len(histogram)):
            histogram[number] += parts[part, number]
