"""Loops over the entries of a block of latents: statistics, and the choice of passages.

A block has `start` [m + 1] into its `tokens` (flat indices, ascending within a latent), `values` (float32) and `ordered` (the values of each
latent, ascending). The equations are those of `sae.inspection.statistics` and `sae.inspection.contexts`, whose functions are the oracles.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def below(ordered: np.ndarray, begin: int, end: int, bound: float, inclusive: int) -> int:
    """Number of entries of ordered[begin:end] that are < bound, or <= bound if `inclusive`."""
    low, high = begin, end
    while low < high:
        middle = (low + high) >> 1
        value = np.float64(ordered[middle])
        if value < bound or (inclusive == 1 and value == bound):
            low = middle + 1
        else:
            high = middle
    return low - begin


@compiled
def fill_histograms(start: np.ndarray, ordered: np.ndarray, edges: np.ndarray, histogram: np.ndarray) -> None:
    """Counts of the values between edges; the last bin holds its upper edge too."""
    n_bins = histogram.shape[1]
    for i in range(len(start) - 1):
        before = 0
        for b in range(n_bins):
            upto = start[i + 1] - start[i] if b == n_bins - 1 else below(ordered, start[i], start[i + 1], edges[i, b + 1], 0)
            histogram[i, b] = upto - before
            before = upto


@compiled
def fill_intervals(start: np.ndarray, ordered: np.ndarray, edges: np.ndarray, counts: np.ndarray) -> None:
    """counts[i, j] = values in (edges[i, j], edges[i, j + 1]]; latents whose last edge is not above 0 have none."""
    for i in range(len(start) - 1):
        if edges[i, edges.shape[1] - 1] > 0:
            before = below(ordered, start[i], start[i + 1], edges[i, 0], 1)
            for j in range(counts.shape[1]):
                upto = below(ordered, start[i], start[i + 1], edges[i, j + 1], 1)
                counts[i, j] = upto - before
                before = upto


@compiled
def fill_moments(start: np.ndarray, values: np.ndarray, mean: np.ndarray, mean_square: np.ndarray) -> None:
    """Means over the entries of each latent, 0 for none."""
    for i in range(len(start) - 1):
        total = squares = 0.0
        for p in range(start[i], start[i + 1]):
            value = np.float64(values[p])
            total += value
            squares += value * value
        n = max(start[i + 1] - start[i], 1)
        mean[i], mean_square[i] = total / n, squares / n


@compiled
def fill_documents(
    start: np.ndarray, tokens: np.ndarray, rank: np.ndarray, sizes: np.ndarray, n_documents: np.ndarray, sums: np.ndarray
) -> None:
    """n_documents[i], and sums[i] = (sum of a_d^2, sum of a_d n_d) over the documents d of latent i, a_d firings of n_d tokens."""
    active, touched = np.zeros(len(sizes), np.int32), np.empty(len(sizes), np.int32)
    for i in range(len(start) - 1):
        n = 0
        for p in range(start[i], start[i + 1]):
            d = rank[tokens[p]]
            if active[d] == 0:
                touched[n] = d
                n += 1
            active[d] += 1
        squares = products = 0.0
        for s in range(n):
            d = touched[s]
            squares += np.float64(active[d]) * active[d]
            products += np.float64(active[d]) * sizes[d]
            active[d] = 0
        n_documents[i], sums[i, 0], sums[i, 1] = n, squares, products


@compiled
def code_bits(touched: np.ndarray, n: int, learnt: np.ndarray, paid: np.ndarray, base: np.ndarray) -> float:
    """Bits paid for the tokens counted in `paid` with a code learnt from those in `learnt`, less than the corpus code needs."""
    once = twice = 0
    total = 0.0
    for s in range(n):
        count = learnt[touched[s]]
        once += count == 1
        twice += count == 2
        total += count
    discount = (once + 1) / (once + 1 + 2 * twice)
    spared = 0.0
    for s in range(n):
        spared += min(np.float64(learnt[touched[s]]), discount)
    bits = 0.0
    for s in range(n):
        v = touched[s]
        if paid[v] > 0:
            q = (max(learnt[v] - discount, 0.0) + spared * base[v]) / total
            bits += paid[v] * np.log2(q / base[v])
    return bits


@compiled
def fill_bits(start: np.ndarray, tokens: np.ndarray, ids: np.ndarray, rank: np.ndarray, base: np.ndarray, bits: np.ndarray) -> None:
    """bits[i] = held-out bits of a firing about `ids` at its token; negative ids are left out. Halves by parity of the document's rank."""
    even, odd, touched = np.zeros(len(base), np.int32), np.zeros(len(base), np.int32), np.empty(len(base), np.int32)
    for i in range(len(start) - 1):
        n = n_even = n_odd = 0
        for p in range(start[i], start[i + 1]):
            v = ids[tokens[p]]
            if v >= 0:
                if even[v] + odd[v] == 0:
                    touched[n] = v
                    n += 1
                if rank[tokens[p]] % 2 == 0:
                    even[v] += 1
                    n_even += 1
                else:
                    odd[v] += 1
                    n_odd += 1
        if n_even > 0 and n_odd > 0:
            bits[i] = (code_bits(touched, n, even, odd, base) + code_bits(touched, n, odd, even, base)) / (n_even + n_odd)
        for s in range(n):
            even[touched[s]] = odd[touched[s]] = 0


@compiled
def fill_driving(
    start: np.ndarray, tokens: np.ndarray, values: np.ndarray, ids: np.ndarray, n_vocabulary: int,
    driving: np.ndarray, active: np.ndarray, mass: np.ndarray, share: np.ndarray,
) -> None:  # fmt: skip
    """The vocabulary items with most of each latent's mass, ties by id; unused places keep what is in them."""
    counts, masses, touched = np.zeros(n_vocabulary, np.int32), np.zeros(n_vocabulary), np.empty(n_vocabulary, np.int32)
    most = driving.shape[1]
    for i in range(len(start) - 1):
        n = found = 0
        for p in range(start[i], start[i + 1]):
            v = ids[tokens[p]]
            if counts[v] == 0:
                touched[n] = v
                n += 1
            counts[v] += 1
            masses[v] += abs(np.float64(values[p]))
        total = 0.0
        for s in range(n):
            v = touched[s]
            total += masses[v]
            last = driving[i, found - 1] if found else -1
            if found < most or masses[v] > masses[last] or (masses[v] == masses[last] and v < last):
                place = min(found, most - 1)
                while place > 0 and (
                    masses[v] > masses[driving[i, place - 1]] or (masses[v] == masses[driving[i, place - 1]] and v < driving[i, place - 1])
                ):
                    driving[i, place] = driving[i, place - 1]
                    place -= 1
                driving[i, place] = v
                found = min(found + 1, most)
        for s in range(found):
            v = driving[i, s]
            active[i, s], mass[i, s], share[i, s] = counts[v], masses[v], masses[v] / (total if total > 0 else 1.0)
        for s in range(n):
            counts[touched[s]], masses[touched[s]] = 0, 0.0


@compiled
def fill_steps(start: np.ndarray, steps: np.ndarray, histogram: np.ndarray) -> None:
    """How often each latent was first selected at each step."""
    for i in range(len(start) - 1):
        for p in range(start[i], start[i + 1]):
            histogram[i, steps[p]] += 1
