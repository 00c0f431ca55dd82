"""The two loops of persistent homology, compiled; `persistence` calls these where numba is, and does the same in torch where it is not."""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def lune_vertices(rank: np.ndarray, heads: np.ndarray, tails: np.ndarray, out: np.ndarray) -> None:
    """out[e] = the first vertex both of whose edges to the ends of edge e come before it, or -1. Rank -1 marks edges that are left out."""
    n = rank.shape[0]
    for e in range(heads.shape[0]):
        out[e] = -1
        first, second = rank[heads[e]], rank[tails[e]]
        for v in range(n):
            if 0 <= first[v] < e and 0 <= second[v] < e:
                out[e] = v
                break


@compiled
def flip_coboundary(rank: np.ndarray, head: int, tail: int, bits: np.ndarray) -> int:
    """Adds the triangles over one edge to a set of triangles, modulo 2; returns the first of them, or -1.

    Triangle (e, v), e its last edge and v the vertex opposite, is bit e n + v.
    """
    n = rank.shape[0]
    own = rank[head, tail]
    least = np.int64(-1)
    for v in range(n):
        first, second = np.int64(rank[head, v]), np.int64(rank[tail, v])
        if first < 0 or second < 0:
            continue
        last, opposite = np.int64(own), v
        if first > last:
            last, opposite = first, tail
        if second > last:
            last, opposite = second, head
        bit = last * n + opposite
        bits[bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
        if least < 0 or bit < least:
            least = bit
    return least


@compiled
def first_bit(bits: np.ndarray, start: int) -> int:
    """The first bit at or after the word that holds bit `start`, or -1."""
    for word in range(start >> 6, bits.shape[0]):
        if bits[word]:
            bit = np.int64(word) << 6
            rest = bits[word]
            while not rest & np.uint64(1):
                rest >>= np.uint64(1)
                bit += 1
            return bit
    return np.int64(-1)


@compiled
def reduce_columns(
    rank: np.ndarray, heads: np.ndarray, tails: np.ndarray, lune: np.ndarray, columns: np.ndarray, deaths: np.ndarray
) -> None:
    """deaths[c] = the last edge of the triangle at which the class born at edge columns[c] dies, or -1 if it does not.

    `columns` holds the edges that may give birth to a loop, the latest first; see `persistence`.
    """
    n, n_edges = rank.shape[0], heads.shape[0]
    bits = np.zeros((n_edges * n >> 6) + 1, dtype=np.uint64)
    parity = np.zeros(n_edges, dtype=np.bool_)
    pivots = np.empty(len(columns), dtype=np.int64)
    starts = np.zeros(len(columns) + 1, dtype=np.int64)
    stored = np.empty(1024, dtype=np.int64)
    touched = np.empty(1024, dtype=np.int64)
    for c in range(len(columns)):
        n_touched = 1
        touched[0] = columns[c]
        parity[columns[c]] = True
        pivot = first_bit(bits, max(flip_coboundary(rank, heads[columns[c]], tails[columns[c]], bits), 0))
        deaths[c] = -1
        while pivot >= 0:
            edge = pivot // n
            owner = -1
            for other in range(c):
                if pivots[other] == pivot:
                    owner = other
                    break
            if owner < 0 and lune[edge] != pivot - edge * n:
                deaths[c] = edge
                break
            begin, end = (starts[owner], starts[owner + 1]) if owner >= 0 else (0, 1)
            for s in range(begin, end):
                added = stored[s] if owner >= 0 else edge
                if n_touched == len(touched):
                    touched = np.concatenate((touched, np.empty_like(touched)))
                touched[n_touched] = added
                n_touched += 1
                parity[added] ^= True
                flip_coboundary(rank, heads[added], tails[added], bits)
            pivot = first_bit(bits, pivot)
        pivots[c] = pivot
        size = starts[c]
        for t in range(n_touched):
            if parity[touched[t]]:
                parity[touched[t]] = False
                flip_coboundary(rank, heads[touched[t]], tails[touched[t]], bits)
                if size == len(stored):
                    stored = np.concatenate((stored, np.empty_like(stored)))
                stored[size] = touched[t]
                size += 1
        starts[c + 1] = size
