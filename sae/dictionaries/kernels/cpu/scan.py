"""The loops of `top`: candidates from rough pre-activations, then the k largest among their exact values.

A rough pre-activation p is off by at most t. Per row, `upper` holds p + t of the candidates seen; `floor` is a value that k latents are
known to reach, the k-th largest p - t so far. A latent with p + t below it cannot be among the k largest.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled, compiled_finite, kth_key, order_keys

GROUP = 32
"""Latents whose largest upper bound is compared with the floor before any one is looked at."""
OVERFLOW = -1
"""Count of a row whose candidates did not fit."""
SORTED_INSERTION = 64
"""Up to this k the kept values are held in order while candidates come; beyond it all are sorted at the end."""


@compiled_finite
def scan(
    rough: np.ndarray, first: int, x_scale: np.ndarray, slack: np.ndarray, w_scale: np.ndarray, spread: np.ndarray, bias: np.ndarray,
    signed: bool, k: int, floors: np.ndarray, counts: np.ndarray, upper: np.ndarray, latents: np.ndarray,
) -> None:  # fmt: skip
    """Add to each row's candidates those of a tile of latents first, first + 1, ...

    p = x_scale[r] w_scale[j] rough[r, j - first] + bias[j], its absolute value if signed; t = slack[r] spread[j].
    """
    n, width = rough.shape
    capacity = upper.shape[1]
    w_scale, w_spread, w_bias = w_scale[first : first + width], spread[first : first + width], bias[first : first + width]
    keys = np.empty(capacity, np.int32)
    lower = np.empty(capacity, np.float32)
    for r in range(n):
        if counts[r] == OVERFLOW:
            continue
        tile, s, t = rough[r], x_scale[r], slack[r]
        for start in range(0, width, GROUP):
            stop = min(start + GROUP, width)
            best = np.float32(-np.inf)
            if signed:
                for c in range(start, stop):
                    best = max(best, abs(s * tile[c] * w_scale[c] + w_bias[c]) + t * w_spread[c])
            else:
                for c in range(start, stop):
                    best = max(best, s * tile[c] * w_scale[c] + w_bias[c] + t * w_spread[c])
            if not best > floors[r]:
                continue
            if counts[r] + GROUP > capacity:
                shrink(r, t, spread, k, floors, counts, upper, latents, keys, lower)
                if counts[r] + GROUP > capacity:
                    counts[r] = OVERFLOW
                    break
            count, floor, row, numbers = counts[r], floors[r], upper[r], latents[r]
            for c in range(start, stop):
                p = s * tile[c] * w_scale[c] + w_bias[c]
                u = (abs(p) if signed else p) + t * w_spread[c]
                row[count] = u
                numbers[count] = first + c
                count += np.int32(u > floor)
            counts[r] = count


@compiled
def shrink(
    r: int, t: float, spread: np.ndarray, k: int, floors: np.ndarray, counts: np.ndarray, upper: np.ndarray, latents: np.ndarray,
    keys: np.ndarray, lower: np.ndarray,
) -> None:  # fmt: skip
    """Raise the floor of row r to the k-th largest lower bound of its candidates, and drop the candidates below it.

    With t = 0 exactly k stay: of equal ones the first seen.
    """
    count, row, numbers = counts[r], upper[r], latents[r]
    if count <= k:
        return
    for i in range(count):
        lower[i] = row[i] - 2 * t * spread[numbers[i]]
    bits = lower.view(np.int32)
    order_keys(bits, count, keys)
    floor_key = kth_key(keys, count, k)
    floor = np.float32(np.inf)
    n_above = 0
    for i in range(count):
        if keys[i] >= floor_key:
            floor = min(floor, lower[i])
            n_above += keys[i] > floor_key
    n_equal, kept = k - n_above, 0
    for i in range(count):
        keep = row[i] >= floor
        if t == 0 and keep and keys[i] == floor_key:
            keep = n_equal > 0
            n_equal -= 1
        row[kept], numbers[kept] = row[i], numbers[i]
        kept += keep
    counts[r], floors[r] = kept, max(floors[r], floor)


@compiled
def dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    """a . b in float32, in as many partial sums as a vector register holds."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def settle(
    x: np.ndarray, rows: np.ndarray, bias: np.ndarray, signed: bool, k: int, floors: np.ndarray, counts: np.ndarray, upper: np.ndarray,
    latents: np.ndarray, slack: np.ndarray, spread: np.ndarray, values: np.ndarray, indices: np.ndarray,
) -> None:  # fmt: skip
    """Exact values of the candidates, and the k largest of them by falling value, for every row that has not overflowed.

    The k candidates with the highest upper bounds come first; any other is computed only if its bound exceeds the k-th exact value so far.
    """
    capacity = upper.shape[1]
    keys, lower = np.empty(capacity, np.int32), np.empty(capacity, np.float32)
    for r in range(len(x)):
        if counts[r] == OVERFLOW:
            continue
        shrink(r, slack[r], spread, k, floors, counts, upper, latents, keys, lower)
        count, row, numbers = counts[r], upper[r], latents[r]
        highest_first(row, numbers, count, k, keys)
        if k <= SORTED_INSERTION:
            n_kept = settle_in_order(x[r], rows, bias, signed, k, row, numbers, count, values[r], indices[r])
        else:
            n_kept = settle_by_sorting(x[r], rows, bias, signed, k, row, numbers, count, values[r], indices[r])
        if not signed:
            for s in range(n_kept):
                values[r, s] = max(values[r, s], np.float32(0))
        fill(values[r], indices[r], n_kept, k)


@compiled
def highest_first(row: np.ndarray, numbers: np.ndarray, count: int, k: int, keys: np.ndarray) -> None:
    """Move the k candidates with the highest upper bounds to the front."""
    if count <= k:
        return
    order_keys(row.view(np.int32), count, keys)
    threshold = kth_key(keys, count, k)
    front = 0
    for i in range(count):
        if keys[i] >= threshold and front < k:
            row[front], row[i] = row[i], row[front]
            numbers[front], numbers[i] = numbers[i], numbers[front]
            front += 1


@compiled
def settle_in_order(
    x: np.ndarray, rows: np.ndarray, bias: np.ndarray, signed: bool, k: int, row: np.ndarray, numbers: np.ndarray, count: int,
    values: np.ndarray, indices: np.ndarray,
) -> int:  # fmt: skip
    """Insert each candidate's exact value into the k kept so far; how many are kept."""
    kept, smallest = 0, np.float32(-np.inf)
    for i in range(count):
        if kept == k and row[i] <= smallest:
            continue
        j = numbers[i]
        value = dot(x, rows[j]) + bias[j]
        score = abs(value) if signed else value
        if kept == k:
            if not score > smallest:
                continue
            kept -= 1
        place = kept
        while place > 0 and (abs(values[place - 1]) if signed else values[place - 1]) < score:
            values[place], indices[place] = values[place - 1], indices[place - 1]
            place -= 1
        values[place], indices[place] = value, j
        kept += 1
        if kept == k:
            smallest = abs(values[k - 1]) if signed else values[k - 1]
    return kept


@compiled
def settle_by_sorting(
    x: np.ndarray, rows: np.ndarray, bias: np.ndarray, signed: bool, k: int, row: np.ndarray, numbers: np.ndarray, count: int,
    values: np.ndarray, indices: np.ndarray,
) -> int:  # fmt: skip
    """Compute every candidate's exact value, sort, and keep k; how many are kept."""
    scores = np.empty(count, np.float32)
    for i in range(count):
        j = numbers[i]
        row[i] = dot(x, rows[j]) + bias[j]
        scores[i] = -abs(row[i]) if signed else -row[i]
    order = np.argsort(scores, kind="mergesort")
    kept = min(k, count)
    for s in range(kept):
        values[s], indices[s] = row[order[s]], numbers[order[s]]
    return kept


@compiled
def fill(values: np.ndarray, indices: np.ndarray, n_kept: int, k: int) -> None:
    """Give the slots after the first n_kept value 0 and the lowest latents that the row does not hold yet."""
    if n_kept >= k:
        return
    held = np.sort(indices[:n_kept])
    latent = place = 0
    for s in range(n_kept, k):
        while place < n_kept and held[place] == latent:
            place, latent = place + 1, latent + 1
        values[s], indices[s] = 0, latent
        latent += 1
