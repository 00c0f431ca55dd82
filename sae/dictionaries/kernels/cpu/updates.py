"""What happens to gradients, each in one pass over the memory: projection, norm, Adam with unit rows.

project_       g_i <- g_i - (g_i . d_i) d_i
sum_squares    sum g^2
adam_          m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  w <- w - rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon);
               rows then divided by their norm                                          Kingma & Ba 2015 (1412.6980) algorithm 1
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.loops import arrays, compiled
from sae.dictionaries.kernels.cpu.rows import dot

BLOCK_BYTES = 1 << 19
"""What a member of the team takes at a time of each array."""


def project_(grad: Float[Tensor, "m width"], atoms: Float[Tensor, "m width"]) -> float:
    """Remove from each row of `grad` its part along the (unit) row of `atoms`, in place; the sum of squares of what is left."""
    (g,), (d,) = (_writable(grad),), arrays(atoms)
    return _sum_over_blocks(lambda part: project_rows(g[part], d[part]), g)


def sum_squares(grad: Float[Tensor, "..."]) -> float:
    """The sum of squares of all entries, accumulated in float64."""
    (flat,) = arrays(grad.detach().reshape(-1, grad.shape[-1] if grad.ndim else 1))
    return _sum_over_blocks(lambda part: squares(flat[part]), flat)


def adam_(
    parameter: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    exp_avg: Float[Tensor, "*shape"],
    exp_avg_sq: Float[Tensor, "*shape"],
    *,
    rate: float,
    betas: tuple[float, float],
    epsilon: float,
    step: int,
    scale: float,
    unit_rows: bool,
) -> None:
    """One step of Adam with gradient scale * grad, in place; `step` counts from 1. With `unit_rows` every row is then divided by its
    norm (a row of zeros stays).
    """
    p, m, v = (_writable(tensor) for tensor in (parameter, exp_avg, exp_avg_sq))
    (g,) = arrays(grad.reshape(p.shape))
    first, second = betas
    numbers = np.array(
        [scale, first, second, rate / (1 - first**step), 1 / math.sqrt(1 - second**step), epsilon, 1 - first, 1 - second], np.float32
    )

    def block(part: slice) -> None:
        adam_rows(p[part], g[part], m[part], v[part], numbers, unit_rows)

    _each_block(block, p)


def _writable(tensor: Tensor) -> np.ndarray:
    """The tensor's own memory as a matrix."""
    return tensor.detach().view(-1, tensor.shape[-1] if tensor.ndim else 1).numpy()


def _each_block(function, rows: np.ndarray) -> int:
    n_rows = max(1, BLOCK_BYTES // max(1, rows.shape[1] * rows.itemsize))
    n_blocks = -(-len(rows) // n_rows)
    team.each(lambda b: function(slice(b * n_rows, (b + 1) * n_rows)), n_blocks)
    return n_blocks


def _sum_over_blocks(function, rows: np.ndarray) -> float:
    """The sum of function(block), added in the order of the blocks whoever computes them."""
    parts: dict[int, float] = {}

    def block(part: slice) -> None:
        parts[part.start] = function(part)

    _each_block(block, rows)
    return float(sum(parts[start] for start in sorted(parts)))


@compiled
def project_rows(grad: np.ndarray, atoms: np.ndarray) -> float:
    """g_i -= (g_i . d_i) d_i; the sum of squares of the result."""
    total = 0.0
    for i in range(len(grad)):
        g, d = grad[i], atoms[i]
        along = dot(g, d)
        part = np.float32(0)
        for c in range(len(g)):
            left = g[c] - along * d[c]
            g[c] = left
            part += left * left
        total += part
    return total


@compiled
def squares(rows: np.ndarray) -> float:
    """The sum of squares, per row in float32, over rows in float64."""
    total = 0.0
    for i in range(len(rows)):
        total += dot(rows[i], rows[i])
    return total


@compiled
def adam_rows(
    parameter: np.ndarray, grad: np.ndarray, exp_avg: np.ndarray, exp_avg_sq: np.ndarray, numbers: np.ndarray, unit_rows: bool
) -> None:
    """The update of a block of rows."""
    scale, first, second, rate, inverse_root, epsilon, rest_first, rest_second = numbers
    for i in range(len(parameter)):
        w, g, m, v = parameter[i], grad[i], exp_avg[i], exp_avg_sq[i]
        norm = np.float32(0)
        for c in range(len(w)):
            d = scale * g[c]
            average = first * m[c] + rest_first * d
            average_sq = second * v[c] + rest_second * d * d
            m[c], v[c] = average, average_sq
            new = w[c] - rate * average / (np.sqrt(average_sq) * inverse_root + epsilon)
            w[c] = new
            norm += new * new
        if unit_rows and norm > 0:
            inverse = np.float32(1) / np.sqrt(norm)
            for c in range(len(w)):
                w[c] *= inverse
