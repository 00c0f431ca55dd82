"""The logistic loss of every row at once, with its first two derivatives: loops that compile to vector instructions.

    e = exp(-|m|),   p> = 1 / (1 + e),   p< = e p>          probabilities of the likelier and the less likely class at the decision m
    loss = log(1 + e) + max(-s m, 0),      r = -s w p(wrong),      D = w p> p<

exp: |m| = n log 2 + x with |x| <= log 2 / 2, and 13 terms of Taylor's series of exp(-x), 1 ulp; 2^-n through the exponent's bits.
log(1 + e) = 2 artanh(e / (2 + e)), 14 terms of its series at arguments up to 1/3, relative error 1e-14. Neither has a branch.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled

LARGEST = 700.0
"""exp(-700) is the last that is far from underflow; a row further out counts as there."""
LOG2_E, LOG_2_HIGH, LOG_2_LOW = 1.4426950408889634, 0.693145751953125, 1.4286068203094172e-06
BIAS, MANTISSA = 1023, 52
(C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13) = (
    (-1.0) ** i / float(np.prod(np.arange(1, i + 1, dtype=np.float64))) for i in range(2, 14)
)


@compiled
def _split_exponential(margin: np.ndarray, fraction: np.ndarray, bits: np.ndarray) -> None:
    """fraction[i] 2^-n = exp(-|margin[i]|), with the double 2^-n as an integer in bits[i]."""
    for i in range(len(margin)):
        a = min(abs(margin[i]), LARGEST)
        n = np.floor(a * LOG2_E + 0.5)
        x = (a - n * LOG_2_HIGH) - n * LOG_2_LOW
        bits[i] = (BIAS - np.int64(n)) << MANTISSA
        y = (((((C13 * x + C12) * x + C11) * x + C10) * x + C9) * x + C8) * x + C7
        y = ((((y * x + C6) * x + C5) * x + C4) * x + C3) * x + C2
        fraction[i] = (y * x - 1.0) * x + 1.0


@compiled
def _derivatives(
    e: np.ndarray, power: np.ndarray, s: np.ndarray, margin: np.ndarray, weight: np.ndarray, r: np.ndarray, d: np.ndarray
) -> None:
    """r and D of every row; `e` is multiplied by `power` on the way."""
    for i in range(len(margin)):
        decay = e[i] * power[i]
        e[i] = decay
        likely = 1.0 / (1.0 + decay)
        unlikely = decay * likely
        r[i] = -s[i] * weight[i] * (likely if s[i] * margin[i] < 0 else unlikely)
        d[i] = weight[i] * likely * unlikely


@compiled
def _loss(e: np.ndarray, s: np.ndarray, margin: np.ndarray, weight: np.ndarray) -> float:
    """sum_i w_i (log(1 + e_i) + max(-s_i m_i, 0))."""
    total = 0.0
    for i in range(len(margin)):
        t = e[i] / (2.0 + e[i])
        q = t * t
        h = (((((1 / 27 * q + 1 / 25) * q + 1 / 23) * q + 1 / 21) * q + 1 / 19) * q + 1 / 17) * q + 1 / 15
        h = ((((((h * q + 1 / 13) * q + 1 / 11) * q + 1 / 9) * q + 1 / 7) * q + 1 / 5) * q + 1 / 3) * q + 1.0
        total += weight[i] * (2.0 * t * h - min(s[i] * margin[i], 0.0))
    return total


@compiled
def logistic_step(
    base: np.ndarray, along: np.ndarray, size: float, s: np.ndarray, weight: np.ndarray, margin: np.ndarray, r: np.ndarray, d: np.ndarray
) -> float:
    """The summed loss at the decisions base + size * along, which it writes to `margin`, with r and D of every row; all float64 [n]."""
    for i in range(len(base)):
        margin[i] = base[i] + size * along[i]
    bits, e = np.empty(len(base), np.int64), np.empty(len(base))
    _split_exponential(margin, e, bits)
    _derivatives(e, bits.view(np.float64), s, margin, weight, r, d)
    return _loss(e, s, margin, weight)


@compiled
def standardise(columns: np.ndarray, share: np.ndarray, rounding: float, z: np.ndarray, mean: np.ndarray, inverse_sd: np.ndarray) -> None:
    """z, mean and 1 / sd of every row of `columns` [k, n] under the row shares, which sum to 1; a variance of at most rounding * mean^2
    is none, and its z and 1 / sd are 0.
    """
    for j in range(len(columns)):
        total = 0.0
        for i in range(len(share)):
            z[j, i] = columns[j, i]
            total += share[i] * z[j, i]
        variance = 0.0
        for i in range(len(share)):
            z[j, i] -= total
            variance += share[i] * z[j, i] * z[j, i]
        inverse = 1 / np.sqrt(variance) if variance > rounding * total * total else 0.0
        for i in range(len(share)):
            z[j, i] *= inverse
        mean[j], inverse_sd[j] = total, inverse
