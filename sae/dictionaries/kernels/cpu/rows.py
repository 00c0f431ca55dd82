"""Rows of a matrix, gathered by number: their dots with one vector, their weighted sum. Eight at a time, so that the vector or the sum passes
through the registers once for eight rows, and eight rows are on their way from memory together.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled


@compiled
def dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    """a . b in float32, in as many partial sums as a vector register holds."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def dots(y: np.ndarray, rows: np.ndarray, numbers: np.ndarray, start: int, stop: int, out: np.ndarray) -> None:
    """out[s] = y . rows[numbers[s]] for s in start..stop-1. The last row fills up an incomplete eight."""
    last = stop - 1
    for s in range(start, stop, 8):
        r0, r1, r2, r3 = rows[numbers[s]], rows[numbers[min(s + 1, last)]], rows[numbers[min(s + 2, last)]], rows[numbers[min(s + 3, last)]]
        r4, r5 = rows[numbers[min(s + 4, last)]], rows[numbers[min(s + 5, last)]]
        r6, r7 = rows[numbers[min(s + 6, last)]], rows[numbers[min(s + 7, last)]]
        t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = np.float32(0)
        for c in range(len(y)):
            v = y[c]
            t0 += v * r0[c]
            t1 += v * r1[c]
            t2 += v * r2[c]
            t3 += v * r3[c]
            t4 += v * r4[c]
            t5 += v * r5[c]
            t6 += v * r6[c]
            t7 += v * r7[c]
        out[min(s + 7, last)], out[min(s + 6, last)], out[min(s + 5, last)], out[min(s + 4, last)] = t7, t6, t5, t4
        out[min(s + 3, last)], out[min(s + 2, last)], out[min(s + 1, last)], out[s] = t3, t2, t1, t0


@compiled
def add_weighted(weights: np.ndarray, rows: np.ndarray, numbers: np.ndarray, n: int, y: np.ndarray) -> None:
    """y += sum of weights[s] rows[numbers[s]] for s < n. The last row, with weight 0, fills up an incomplete eight."""
    last, none = n - 1, np.float32(0)
    for s in range(0, n, 8):
        r0, r1, r2, r3 = rows[numbers[s]], rows[numbers[min(s + 1, last)]], rows[numbers[min(s + 2, last)]], rows[numbers[min(s + 3, last)]]
        r4, r5 = rows[numbers[min(s + 4, last)]], rows[numbers[min(s + 5, last)]]
        r6, r7 = rows[numbers[min(s + 6, last)]], rows[numbers[min(s + 7, last)]]
        w0, w1 = weights[s], weights[s + 1] if s + 1 < n else none
        w2, w3 = weights[s + 2] if s + 2 < n else none, weights[s + 3] if s + 3 < n else none
        w4, w5 = weights[s + 4] if s + 4 < n else none, weights[s + 5] if s + 5 < n else none
        w6, w7 = weights[s + 6] if s + 6 < n else none, weights[s + 7] if s + 7 < n else none
        for c in range(len(y)):
            y[c] += (w0 * r0[c] + w1 * r1[c] + w2 * r2[c] + w3 * r3[c]) + (w4 * r4[c] + w5 * r5[c] + w6 * r6[c] + w7 * r7[c])
