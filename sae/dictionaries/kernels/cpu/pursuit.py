"""Matching pursuit in compiled loops: correlations from fast products, every decision from float32 ones.

    c ~ D r;    J = {j: c_j >= d_{j'} . r - t},  j' = argmax c;    j_t = argmax over J of d_j . r,    a_t = d_{j_t} . r
    r <- r - a_t d_{j_t};    c <- c - a_t G[j_t]  or the product again

The approximate correlations c (of `gram`: eight-bit products, errors below t with probability 1 - 3e-10 per row and step) say only where to
look. Every atom that could be the largest gets its correlation with the exact residual; coefficients and residual are those of float32
arithmetic, and an atom is missed only if the error of c exceeds t. The bound t is checked on every atom that is looked at: a row in which it
fails, or where more than `MAX_CANDIDATES` atoms are within t of the largest (late steps, where |r| has become small against |x|), gets
its correlations anew from its residual, in eight bits and, if that does not help, in float32.
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.dictionaries.kernels.cpu.gram import UNITS, Quantised, gram_of, multiplies_integers, products, quantise_, quantised
from sae.dictionaries.kernels.cpu.lanes import BLOCK, LANES, lanes_at_least, largest_of_block, lower_block, prefetch, scale_block
from sae.dictionaries.kernels.cpu.loops import compiled_finite
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.reference import Path

GRAM_BYTES = 1 << 30
"""A Gram matrix (two bytes an entry) is built up to this size; beyond it correlations are multiplied out again at every step."""
BLOCK_BYTES = 5 << 19
"""Correlations held at once per thread, in bytes: they stay in the cache between the product and the loops."""
MAX_CANDIDATES = 512
"""Atoms of one row and step that may be looked at exactly; where there are more, the row's correlations are multiplied out again."""
REFRESH_ABOVE = 64
"""The same for correlations that have been updated since they were multiplied out: beyond it a new product costs less."""
N_SIGMA = 8.0
"""t in standard deviations of the error of c."""
SWEEP_BYTES = 1 << 30
"""The reverse sweep's gradient buffers, one per thread, hold at most this much together (at least one is used)."""
FINISHED, PAUSED, STUCK = 0, 1, 2
"""A row has taken all its steps; needs new correlations; needs them in float32."""
EPSILON = float(np.finfo(np.float32).eps)
LOWEST = np.float32(-3e38)
"""Below every correlation; finite because the loops are compiled for finite numbers."""


def gram_fits(d_sae: int) -> bool:
    """Whether a Gram matrix of two bytes an entry fits in GRAM_BYTES."""
    return 2 * d_sae * d_sae <= GRAM_BYTES


def uses_gram(n: int, k: int, d_sae: int) -> bool:
    """Whether pursuit builds G: it must fit and cost less (d_sae^2 / 2 dots) than recomputing (n (k - 1) d_sae dots)."""
    return gram_fits(d_sae) and d_sae <= 2 * n * (k - 1)


def uses_integers(n: int, k: int, d_sae: int, d_in: int) -> bool:
    """Whether rounding D to eight bits pays, which costs as much as multiplying about 120 rows with D in float32."""
    return multiplies_integers() and n * k >= 128 and n >= 16 and d_sae * d_in >= 1 << 16


def pursue(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    tol: float | None,
    signed: bool,
    gram: Shaped[Tensor, "d_sae d_sae"] | None = None,
) -> Path:
    """The pursuit of every row of x: at most k steps, fewer once |r| <= tol |x| or when no correlation exceeds the rounding error of
    |x|. `gram` is the atoms' `gram(atoms)`, or D D^T in float32; without it one is built where `uses_gram` says so.
    """
    (n, d_in), d_sae = x.shape, len(atoms)
    x, atoms = x.contiguous(), atoms.contiguous()
    low = quantised(atoms) if uses_integers(n, k, d_sae, d_in) else None
    shared = gram is None and low is not None
    if gram is None and uses_gram(n, k, d_sae):
        gram = gram_of(atoms if low is None else low)
    path = Path(recycled(n, k), recycled(n, k, dtype=torch.long), torch.zeros(n, dtype=torch.long), recycled(n, k + 1), recycled(n, d_in))
    run = _Run(path, atoms, low, gram, shared, 0.0 if tol is None else tol, signed)
    size = max(16, min(128, BLOCK_BYTES // (4 * d_sae), -(-n // team.size())))

    def block(number: int) -> None:
        first, last = number * size, min((number + 1) * size, n)
        path.residual[first:last] = x[first:last]
        run(torch.arange(first, last))

    team.each(block, -(-n // size))
    return path


class _Run:
    """What the blocks of one pursuit share."""

    def __init__(self, path: Path, atoms: Tensor, low: Quantised | None, gram: Tensor | None, shared: bool, tol: float, signed: bool):
        self.path, self.atoms, self.low, self.shared = path, atoms, low, shared
        self.tol, self.mask = np.float32(tol), np.int32(0x7FFFFFFF if signed else -1)
        self.gram = torch.empty(0, 0, dtype=torch.int16) if gram is None else gram
        self.ones = torch.ones(len(atoms))
        scales = torch.zeros(len(atoms)) if low is None else low.scales
        self.rounding = torch.cat([scales, scales.square().max()[None]])

    def __call__(self, rows: Tensor) -> None:
        """Pursue the given rows of the path to their end: products for those that need them, then steps until they need new ones."""
        in_float = torch.full((len(rows),), self.low is None)
        while len(rows):
            state = torch.empty(len(rows), dtype=torch.int8)
            for exact in (False, True):
                chosen = (in_float == exact).nonzero().view(-1)
                if len(chosen):
                    state[chosen] = self.steps(rows[chosen], exact)
            left = state != FINISHED
            rows, in_float = rows[left], (state[left] == STUCK) | (self.low is None)

    def steps(self, rows: Tensor, exact: bool) -> Tensor:
        """As many steps of the rows as one product with D allows; their states."""
        path, first, last = self.path, int(rows[0]), int(rows[-1])
        residual = path.residual[first : last + 1] if last - first + 1 == len(rows) else path.residual[rows]
        scales, state = torch.zeros(len(rows)), torch.empty(len(rows), dtype=torch.int8)
        if exact:
            raw, factor = products(residual, self.atoms), self.ones
        else:
            assert self.low is not None
            integers = torch.empty(len(rows), self.low.integers.shape[1], dtype=torch.int8)
            quantise_(residual, integers, scales)
            raw, factor = products(integers, self.low.integers), self.low.scales
        _steps(
            rows.numpy(), raw.numpy().reshape(-1), scales.numpy(), factor.numpy(), self.atoms.numpy(), self.gram.numpy().reshape(-1),
            self.rounding.numpy(), self.bound(exact), exact, self.tol, self.mask, *(field.numpy() for field in path), state.numpy(),
        )  # fmt: skip
        return state

    def bound(self, exact: bool) -> np.ndarray:
        """Weights (|r_0|^2, |r_t|^2, sum a^2, a Gram entry's unit): c_j has variance (s_j^2 (w_0 |r_0|^2 + w_1 |r_t|^2) + s_x^2 + w_2 sum a_t^2
        s_{j_t}^2 + unit^2 sum a_t^2) / 12, r_0 being the residual that was multiplied out. See the text of `gram`.
        """
        with_gram = self.gram.numel() > 0
        unit = 0.0 if self.gram.dtype == torch.float32 else 1.0 / UNITS
        shared, given = (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)
        if exact:
            shared, given = (2.0, 0.0, 1.0), (0.0, 0.0, 0.0)
        return np.array([*(shared if self.shared or not with_gram else given), unit], np.float32)


@compiled_finite
def _dot(rows, j, y):
    """rows[j] . y; a view of the row would be counted and released every time."""
    total = np.float32(0)
    for i in range(y.size):
        total += rows[j, i] * y[i]
    return total


@compiled_finite
def _score(value, mask):
    return abs(value) if mask > 0 else value


@compiled_finite
def _scale_row(c, m, raw, start, factor, scale, mask):
    """c = scale * factor * raw[start : start + n]; m = maxima of the blocks' lanes and, after them, of what is left over."""
    n_blocks = c.size // BLOCK
    for b in range(n_blocks):
        scale_block(c, m, b, raw, start, factor, scale, mask)
    rest = LOWEST
    for j in range(n_blocks * BLOCK, c.size):
        c[j] = np.float32(raw[start + j]) * scale * factor[j]
        rest = max(rest, _score(c[j], mask))
    m[n_blocks * LANES] = rest


@compiled_finite
def _lower_row(c, m, gram, start, a, mask):
    """c -= a * gram[start : start + n]; m as in `_scale_row`."""
    n_blocks = c.size // BLOCK
    for b in range(n_blocks):
        lower_block(c, m, b, gram, start, a, mask)
    rest = LOWEST
    for j in range(n_blocks * BLOCK, c.size):
        c[j] -= a * np.float32(gram[start + j])
        rest = max(rest, _score(c[j], mask))
    m[n_blocks * LANES] = rest


@compiled_finite
def _candidates(c, m, threshold, mask, found):
    """Atoms whose score is at least the threshold, into `found`: their number, or found.size + 1 if there are more than it holds."""
    n_blocks, n_found = c.size // BLOCK, 0
    for b in range(n_blocks):
        bits = lanes_at_least(m, b, threshold)
        lane = 0
        while bits:
            if bits & 1:
                for j in range(b * BLOCK + lane, (b + 1) * BLOCK, LANES):
                    if _score(c[j], mask) >= threshold:
                        if n_found == found.size:
                            return n_found + 1
                        found[n_found] = j
                        n_found += 1
            bits >>= 1
            lane += 1
    if m[n_blocks * LANES] >= threshold:
        for j in range(n_blocks * BLOCK, c.size):
            if _score(c[j], mask) >= threshold:
                if n_found == found.size:
                    return n_found + 1
                found[n_found] = j
                n_found += 1
    return n_found


@compiled_finite
def _prefetch(c, found, n_found, near, first, d_in, atoms_flat, gram, mask):
    """Ask for the atoms that will likely be looked at, then for the Gram row of the likeliest."""
    for s in range(n_found):
        if _score(c[found[s]], mask) >= near:
            for i in range(0, d_in, 16):
                prefetch(atoms_flat, found[s] * d_in + i)
    for i in range(0, c.size if gram.size else 0, 32):
        prefetch(gram, first * c.size + i)


@compiled_finite
def _select(c, m, r, atoms, atoms_flat, gram, rounding, spread, noise, floor, certain, fresh, mask, found):
    """(j, d_j . r) of the largest score d . r; j = -1 where c does not tell well enough and must be multiplied out again.

    c_j is off by at most 8 sqrt((spread s_j^2 + noise) / 12) + floor; `certain`: c is float32's own product.
    """
    n, nothing = c.size, np.float32(0)
    best = largest_of_block(m, 0)
    for b in range(1, m.size // BLOCK):
        best = max(best, largest_of_block(m, b))
    widest = np.sqrt(np.float32(N_SIGMA**2 / 12) * (spread * rounding[n] + noise)) + floor
    n_found = _candidates(c, m, best - 2 * widest, mask, found)
    if n_found > found.size:
        if not certain:
            return -1, nothing
        n_found = min(_candidates(c, m, best, mask, found), found.size)
    first = found[0]
    for s in range(1, n_found):
        if _score(c[found[s]], mask) > _score(c[first], mask):
            first = found[s]
    _prefetch(c, found, n_found, best - widest, first, r.size, atoms_flat, gram, mask)
    guess, n_exact = _dot(atoms, first, r), 0
    j, value = first, guess
    for s in range(n_found):
        i = found[s]
        reach = np.sqrt(np.float32(N_SIGMA**2 / 12) * (spread * rounding[i] * rounding[i] + noise)) + floor
        if i == first:
            exact = guess
        elif _score(c[i], mask) + reach < _score(value, mask):
            continue
        else:
            exact = _dot(atoms, i, r)
            n_exact += 1
        if not certain and (abs(exact - c[i]) > reach or (n_exact > REFRESH_ABOVE and not fresh)):
            return -1, nothing
        c[i] = exact
        if _score(exact, mask) > _score(value, mask) or (_score(exact, mask) == _score(value, mask) and i < j):
            j, value = i, exact
    return j, value


@compiled_finite
def _subtract(r, atoms, j, a):
    """r -= a d_j; the sum of squares of the result."""
    left = np.float32(0)
    for i in range(r.size):
        r[i] -= a * atoms[j, i]
        left += r[i] * r[i]
    return left


@compiled_finite
def _steps(
    rows, raw, scales, factor, atoms, gram, rounding, bound, exact, tol, mask, values, indices, counts, energies, residual, state
):  # fmt: skip
    """Steps of the given rows from the correlations raw * scales * factor with their residuals: to their end with a Gram matrix, one without."""
    n, k = factor.size, values.shape[1]
    atoms_flat = atoms.reshape(-1)
    c, found = np.empty(n, np.float32), np.empty(MAX_CANDIDATES, np.int64)
    m = np.full((n // BLOCK * LANES // BLOCK + 1) * BLOCK, LOWEST, np.float32)
    unit = bound[3] if bound[3] > 0 else np.float32(1)
    for position in range(rows.size):
        row = rows[position]
        r, first = residual[row], counts[row]
        if first == 0:
            energies[row, 0] = _dot(residual, row, r)
        left = energies[row, first]
        floor = np.float32(EPSILON) * np.sqrt(energies[row, 0])
        enough = max(tol * tol * energies[row, 0], floor * floor)
        before, noise, blur = left, scales[position] * scales[position], np.float32(2.0**-20) * np.sqrt(left)
        _scale_row(c, m, raw, position * n, factor, scales[position] if not exact else np.float32(1), mask)
        t, end = first, FINISHED
        while t < k and left > enough:
            certain = exact and t == first
            spread = np.float32(0) if certain else bound[0] * before + bound[1] * left
            j, a = _select(c, m, r, atoms, atoms_flat, gram, rounding, spread, noise, blur, certain, t == first, mask, found)
            if j < 0:
                end = PAUSED if t > first else STUCK
                break
            if _score(a, mask) <= floor:
                break
            values[row, t], indices[row, t] = a, j
            left = _subtract(r, atoms, j, a)
            t += 1
            energies[row, t] = left
            if t == k:
                break
            if gram.size == 0:
                end = PAUSED
                break
            noise += a * a * (bound[2] * rounding[j] * rounding[j] + bound[3] * bound[3])
            _lower_row(c, m, gram, np.int64(j) * n, a * unit, mask)
        counts[row], state[position] = t, end
        if end == FINISHED:
            for s in range(t, k):
                values[row, s], indices[row, s], energies[row, s + 1] = 0, 0, left


def reverse_sweep(
    path: Path, atoms: Float[Tensor, "d_sae d_in"], grad_values: Float[Tensor, "n k"], grad_residual: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "d_sae d_in"]]:
    """(dL/dx, dL/datoms) of a pursuit with its selection fixed, from dL/dvalues and dL/dresidual.

    Rows are split among as many gradient buffers as there are threads, in one fixed way, and the buffers added in one fixed order: the result
    is the same to the bit from run to run on one number of threads.
    """
    n, d_in = path.residual.shape
    d_sae = len(atoms)
    grad_x = recycled(n, d_in)
    n_parts = max(1, min(team.size(), n, SWEEP_BYTES // max(1, atoms.numel() * 4)))
    parts = [recycled(d_sae, d_in) for _ in range(n_parts)]
    bounds = [n * part // n_parts for part in range(n_parts + 1)]
    arrays = [tensor.contiguous().numpy() for tensor in (path.values, path.indices, path.counts, path.residual, atoms, grad_values)]
    outside = grad_residual.contiguous().numpy()

    def sweep(part: int) -> None:
        parts[part].zero_()
        _sweep(bounds[part], bounds[part + 1], *arrays, outside, grad_x.numpy(), parts[part].numpy())

    team.each(sweep, n_parts)
    rest = parts[1:]
    rows_each = -(-d_sae // team.size())

    def add(block: int) -> None:
        rows = slice(block * rows_each, (block + 1) * rows_each)
        for other in rest:
            parts[0][rows] += other[rows]

    if rest:
        team.each(add, team.size())
    return grad_x, parts[0]


@compiled_finite
def _sweep(first, last, values, indices, counts, residual, atoms, grad_values, grad_residual, grad_x, grad_atoms):
    """Rows first..last of the reverse sweep: r_{t-1} = r_t + a d, u = h - g . d, dD_j += u r_{t-1} - a g, g += u d."""
    r = np.empty(atoms.shape[1], np.float32)
    for row in range(first, last):
        g = grad_x[row]
        g[:] = grad_residual[row]
        r[:] = residual[row]
        for t in range(counts[row] - 1, -1, -1):
            a, j = values[row, t], indices[row, t]
            d, sums = atoms[j], grad_atoms[j]
            u = grad_values[row, t] - _dot(atoms, j, g)
            for i in range(r.size):
                old, slope = r[i] + a * d[i], g[i]
                r[i] = old
                sums[i] += u * old - a * slope
                g[i] = slope + u * d[i]
