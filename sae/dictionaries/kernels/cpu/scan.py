"""The loops of `top`: candidates from rough pre-activations, then the k largest among their exact values.

A rough pre-activation p is off by at most t. Each row keeps the upper bound p + t and the lower bound p - t of the candidates seen, and a
floor that k latents are known to reach: the k-th largest lower bound so far. A latent whose upper bound is below the floor cannot be among
the k largest.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import LOWEST_KEY, compiled, compiled_finite, kth_key, order_keys
from sae.dictionaries.kernels.cpu.rows import dots
from sae.dictionaries.kernels.cpu.vectors import LANES, list_above

OVERFLOW = -1
"""Count of a row whose candidates did not fit."""
RANKED_BY_COUNTING = 512
"""Up to this many values are put in order by counting, for each, those above it: a vector loop."""


@compiled
def scan(
    rough: np.ndarray, first: int, x_scale: np.ndarray, slack: np.ndarray, w_scale: np.ndarray, spread: np.ndarray, bias: np.ndarray,
    signed: bool, k: int, floors: np.ndarray, counts: np.ndarray, upper: np.ndarray, lower: np.ndarray, latents: np.ndarray,
) -> None:  # fmt: skip
    """Add to each row's candidates those of a tile of latents first, first + 1, ...

    p = x_scale[r] w_scale[j] rough[r, j - first] + bias[j], its absolute value if signed; t = slack[r] spread[j].
    """
    n, width = rough.shape
    capacity = upper.shape[1]
    mask = np.int32(0x7FFFFFFF) if signed else np.int32(-1)
    w_scale, w_spread, w_bias = w_scale[first : first + width], spread[first : first + width], bias[first : first + width]
    keys, places = np.empty(capacity + 64, np.int32), np.empty(width + LANES, np.int32)
    vectors = width // LANES * LANES
    for r in range(n):
        if counts[r] == OVERFLOW:
            continue
        s, t = x_scale[r], slack[r]
        if first == 0:
            floors[r] = max(floors[r], first_floor(rough[r], s, t, w_scale, w_spread, w_bias, signed, k))
        count, floor, n_places = np.int64(counts[r]), floors[r], 0
        for start in range(0, vectors, LANES):
            n_places = list_above(rough, w_scale, w_bias, w_spread, r, start, s, t, floor, mask, places, n_places)
        for c in range(vectors, width):
            places[n_places] = c
            n_places += 1
        for place in range(n_places):
            c = places[place]
            p = s * w_scale[c] * np.float32(rough[r, c]) + w_bias[c]
            p, off = abs(p) if signed else p, t * w_spread[c]
            if not p + off > floor:
                continue
            if count == capacity:
                count, floor = shrink(count, floor, k, t == 0, upper[r], lower[r], latents[r], keys)
                if count == capacity:
                    count = OVERFLOW
                    break
                if not p + off > floor:
                    continue
            upper[r, count], lower[r, count], latents[r, count] = p + off, p - off, first + c
            count += 1
        counts[r], floors[r] = count, floor


@compiled_finite
def first_floor(
    tile: np.ndarray, s: float, t: float, w_scale: np.ndarray, w_spread: np.ndarray, w_bias: np.ndarray, signed: bool, k: int
) -> np.float32:
    """A value just below one that k lower bounds of the first tile reach, from the maxima of 4 k groups; -inf for a narrow tile.

    The k-th largest maximum will do, as k groups have an entry that large. It is just below, so that ties pass.
    """
    n_groups = 4 * k
    size = len(tile) // n_groups
    if size < 2:
        return np.float32(-np.inf)
    maxima, keys = np.full(n_groups, -np.inf, np.float32), np.empty(n_groups + 64, np.int32)
    for u in range(size):
        start = u * n_groups
        for g in range(n_groups):
            p = s * w_scale[start + g] * np.float32(tile[start + g]) + w_bias[start + g]
            p = (abs(p) if signed else p) - t * w_spread[start + g]
            maxima[g] = max(maxima[g], p)
    threshold = kth_key(keys, order_keys(maxima.view(np.int32), n_groups, keys), k)
    floor = np.float32(np.inf)
    for g in range(n_groups):
        if keys[g] >= threshold:
            floor = min(floor, maxima[g])
    return floor - np.float32(1e-6) * abs(floor)


@compiled
def shrink(
    count: int, floor: float, k: int, exact: bool, high: np.ndarray, low: np.ndarray, numbers: np.ndarray, keys: np.ndarray
) -> tuple[int, float]:
    """Drop the candidates below the k-th largest lower bound: (how many stay, the new floor).

    If the bounds are exact, k stay: of equal ones the first seen.
    """
    if count <= k:
        return count, floor
    floor_key = kth_key(keys, order_keys(low.view(np.int32), count, keys), k)
    raised = np.float32(np.inf)
    n_above = 0
    for i in range(count):
        if keys[i] >= floor_key:
            raised = min(raised, low[i])
        n_above += keys[i] > floor_key
    n_equal, kept = k - n_above, 0
    for i in range(count):
        keep = high[i] >= raised
        if exact and keys[i] == floor_key:
            keep = n_equal > 0
            n_equal -= 1
        high[kept], low[kept], numbers[kept] = high[i], low[i], numbers[i]
        kept += keep
    return kept, max(floor, raised)


@compiled
def settle(
    x: np.ndarray, rows: np.ndarray, bias: np.ndarray, signed: bool, k: int, counts: np.ndarray, upper: np.ndarray, latents: np.ndarray,
    values: np.ndarray, indices: np.ndarray,
) -> None:  # fmt: skip
    """Exact values of the candidates, and the k largest of them by falling value, for every row that has not overflowed.

    The k candidates with the highest upper bounds come first; any other is computed only if its bound exceeds the least of their values.
    """
    capacity = upper.shape[1]
    keys, rest = np.empty(capacity + 64, np.int32), np.empty(capacity, np.int32)
    chosen, exact, scores = np.empty(capacity, np.int32), np.empty(capacity, np.float32), np.empty(capacity, np.float32)
    for r in range(len(x)):
        count, high, numbers = counts[r], upper[r], latents[r]
        if count == OVERFLOW:
            continue
        padded = order_keys(high.view(np.int32), count, keys)
        threshold = kth_key(keys, padded, k) if count > k else LOWEST_KEY
        n = n_rest = 0
        for i in range(count):
            first = keys[i] >= threshold
            chosen[n], rest[n_rest] = numbers[i], i
            n += first
            n_rest += not first
        evaluate(x[r], rows, bias, signed, chosen, 0, n, exact, scores)
        if n_rest:
            n_first, least = n, scores[:n].min()
            for i in range(n_rest):
                chosen[n] = numbers[rest[i]]
                n += high[rest[i]] > least
            evaluate(x[r], rows, bias, signed, chosen, n_first, n, exact, scores)
        put_in_order(n, scores, exact, chosen, keys, signed, values[r], indices[r])
        fill(values[r], indices[r], min(n, k))


@compiled
def evaluate(
    x: np.ndarray, rows: np.ndarray, bias: np.ndarray, signed: bool, chosen: np.ndarray, start: int, stop: int, exact: np.ndarray,
    scores: np.ndarray,
) -> None:  # fmt: skip
    """exact[i] = x . rows[j] + bias[j] for j = chosen[i], and what it is ranked by."""
    dots(x, rows, chosen, start, stop, exact)
    for i in range(start, stop):
        exact[i] += bias[chosen[i]]
        scores[i] = abs(exact[i]) if signed else exact[i]


@compiled
def put_in_order(
    n: int, scores: np.ndarray, exact: np.ndarray, chosen: np.ndarray, keys: np.ndarray, signed: bool, values: np.ndarray,
    indices: np.ndarray,
) -> None:  # fmt: skip
    """The len(values) of the n exact values that score highest, by falling score; negative ones become 0 unless signed."""
    k = len(values)
    padded = order_keys(scores.view(np.int32), n, keys)
    if n > RANKED_BY_COUNTING:
        order = np.argsort(keys[:n], kind="mergesort")[::-1]
        for place in range(min(n, k)):
            i = order[place]
            values[place], indices[place] = exact[i] if signed or exact[i] > 0 else np.float32(0), chosen[i]
        return
    indices[:] = -1
    for i in range(n):
        key, place = keys[i], np.int32(0)
        for j in range(padded):
            place = np.int32(place + np.int32(keys[j] > key))
        while place < k and indices[place] >= 0:  # of equal ones
            place += 1
        if place < k:
            values[place], indices[place] = exact[i] if signed or exact[i] > 0 else np.float32(0), chosen[i]


@compiled
def fill(values: np.ndarray, indices: np.ndarray, n_kept: int) -> None:
    """Give the slots after the first n_kept value 0 and the lowest latents that the row does not hold yet."""
    if n_kept >= len(values):
        return
    held = np.sort(indices[:n_kept])
    latent = place = 0
    for s in range(n_kept, len(values)):
        while place < n_kept and held[place] == latent:
            place, latent = place + 1, latent + 1
        values[s], indices[s] = 0, latent
        latent += 1
