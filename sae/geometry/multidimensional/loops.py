"""The two sweeps over angles, as compiled loops; `separability` and `mixture` choose between these and torch.

    separability   per angle: rotate, count into a table of bins^2, sum n ln n                      O(N + bins^2)
    mixture        per angle: project, order, count overlapping intervals                           O(N) plus the swaps of the order

From one angle to the next the order of the projections hardly changes, so it is carried over and mended by insertion. Every pair of points
changes places exactly once in half a turn: N^2 / 2 swaps for a whole sweep, against n_angles N log N for as many sorts.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def table_information(x: np.ndarray, y: np.ndarray, bins: int, table: np.ndarray, n_log_n: np.ndarray) -> tuple[float, int]:
    """(plug-in mutual information, nats; nonempty - rows - columns + 1) of points whose bin numbers are x[i], y[i].

    `table` has room for bins^2 counts, `n_log_n[c]` is c ln c.
    """
    n = x.shape[0]
    for cell in range(bins * bins):
        table[cell] = 0
    for i in range(n):
        table[x[i] * bins + y[i]] += 1
    column = np.zeros(bins, dtype=np.int64)
    total = 0.0
    excess = 1
    for row in range(bins):
        in_row = 0
        for other in range(bins):
            count = table[row * bins + other]
            if count > 0:
                total += n_log_n[count]
                excess += 1
                in_row += count
                column[other] += count
        if in_row > 0:
            total -= n_log_n[in_row]
            excess -= 1
    for other in range(bins):
        if column[other] > 0:
            total -= n_log_n[column[other]]
            excess -= 1
    return total / n + np.log(n), excess


@compiled
def bin_numbers(u: np.ndarray, low: float, high: float, bins: int, out: np.ndarray) -> None:
    """out[i] = the bin of u[i] among `bins` equal ones over [low, high]; what lies outside counts in the outermost."""
    scale = bins / (high - low) if high > low else 0.0
    last = np.float64(bins - 1)
    for i in range(u.shape[0]):
        out[i] = np.int32(min(max((u[i] - low) * scale, 0.0), last))


@compiled
def separability_sweep(
    x: np.ndarray, y: np.ndarray, cosines: np.ndarray, sines: np.ndarray, bins: int, box: float, information: np.ndarray, excess: np.ndarray
) -> None:
    """information[a], excess[a] (see `table_information`) of the points turned by each angle; box <= 0: bins over the range of the data."""
    n = x.shape[0]
    n_log_n = np.zeros(n + 1)
    for count in range(2, n + 1):
        n_log_n[count] = count * np.log(np.float64(count))
    table = np.zeros(bins * bins, dtype=np.int32)
    u, v = np.empty(n), np.empty(n)
    left, right = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int32)
    for a in range(cosines.shape[0]):
        c, s = cosines[a], sines[a]
        for i in range(n):
            u[i] = c * x[i] - s * y[i]
            v[i] = s * x[i] + c * y[i]
        if box > 0:
            bin_numbers(u, -box, box, bins, left)
            bin_numbers(v, -box, box, bins, right)
        else:
            bin_numbers(u, u.min(), u.max(), bins, left)
            bin_numbers(v, v.min(), v.max(), bins, right)
        information[a], excess[a] = table_information(left, right, bins, table, n_log_n)


@compiled
def raise_overlap(q: np.ndarray, epsilon: float, low: np.ndarray, high: np.ndarray, best: int) -> int:
    """The larger of `best` and the largest number of overlapping open intervals (q -+ e sqrt(q^2 + (1 - e^2) s^2)) of ascending q.

    Both ends increase with q, so the intervals j, ..., j + b overlap exactly if low[j + b] < high[j]: one comparison of two arrays tells
    whether `best` is beaten, and each time it is, `best` rises by one.
    """
    n = q.shape[0]
    square = 0.0
    for i in range(n):
        square += q[i] * q[i]
    shift = (1 - epsilon * epsilon) * square / n
    for i in range(n):
        half = epsilon * np.sqrt(q[i] * q[i] + shift)
        low[i] = q[i] - half
        high[i] = q[i] + half
    start = 0
    while start + best < n:
        beaten = 0
        stop = min(start + 512, n - best)
        for j in range(start, stop):
            beaten += low[j + best] < high[j]
        if beaten == 0:
            start = stop
        else:
            while not low[start + best] < high[start]:
                start += 1
            best += 1
    return best


@compiled
def mixture_sweep(x: np.ndarray, y: np.ndarray, cosines: np.ndarray, sines: np.ndarray, epsilon: float) -> tuple[int, int]:
    """(largest overlap over all directions, number of the first direction that has it). x and y are centred, and are put in another order.

    The angles should be ascending and close to each other: the order of one direction is mended for the next.
    """
    n = x.shape[0]
    order = np.argsort(cosines[0] * x + sines[0] * y)
    x[:] = x[order]
    y[:] = y[order]
    q, low, high = np.empty(n), np.empty(n), np.empty(n)
    best, where = 0, 0
    for a in range(cosines.shape[0]):
        c, s = cosines[a], sines[a]
        for i in range(n):
            q[i] = c * x[i] + s * y[i]
        for i in range(1, n):
            value = q[i]
            if value < q[i - 1]:
                own_x, own_y = x[i], y[i]
                j = i
                while j > 0 and q[j - 1] > value:
                    q[j], x[j], y[j] = q[j - 1], x[j - 1], y[j - 1]
                    j -= 1
                q[j], x[j], y[j] = value, own_x, own_y
        found = raise_overlap(q, epsilon, low, high, best)
        if found > best:
            best, where = found, a
    return best, where


@compiled
def sorted_mixture_sweep(x: np.ndarray, y: np.ndarray, cosines: np.ndarray, sines: np.ndarray, epsilon: float) -> tuple[int, int]:
    """The same with a sort per direction: for angles far apart, or more points than N^2 / 2 swaps are worth."""
    n = x.shape[0]
    low, high = np.empty(n), np.empty(n)
    best, where = 0, 0
    for a in range(cosines.shape[0]):
        found = raise_overlap(np.sort(cosines[a] * x + sines[a] * y), epsilon, low, high, best)
        if found > best:
            best, where = found, a
    return best, where
