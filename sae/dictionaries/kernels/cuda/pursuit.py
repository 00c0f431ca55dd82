"""Matching pursuit in one launch, and its gradient.

With the Gram matrix G = D D^T at hand one program per row takes all k steps with the row's correlations c in registers; a step reads one row
of G and nothing else:

    j = argmax c,    a = c[j],    c <- c - a G[j]                                        until a row has k atoms or stops

Without it every step selects by `selection.largest` from the residual r, in two looks, and r <- r - a d_j.

The reverse sweep is one program per row as well, with r and g = dL/dr in registers. What a step adds to its atom's gradient,

    u_t = h_t - g_t . d_t,    u_t r_{t-1} - a_t g_t,        r_{t-1} = r_t + a_t d_t,    g_{t-1} = g_t + u_t d_t

is written down, and added up per atom in order: the sum has one value.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cuda.launch import block, float32_products, launch, warps
from sae.dictionaries.kernels.cuda.selection import largest, looks_twice, rough
from sae.dictionaries.kernels.cuda.sparse import segment_sums_, weighted_rows
from sae.dictionaries.kernels.reference import Path
from sae.dictionaries.kernels.reference.pursuit import uses_gram

MOST_ATOMS_IN_REGISTERS = 1 << 14
"""Widest dictionary whose correlations one program holds; a Gram matrix of a wider one is not used."""
BLOCK_BYTES = 1 << 28
"""Correlations, or additions to atoms' gradients, held at once, in bytes."""


@triton.jit
@no_type_check
def _pursue(
    correlations, energies, gram, values, indices, d_sae, k, rounding, share, SIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d_sae
    c = tl.load(correlations + row * d_sae + columns, mask=inside, other=0.0 if SIGNED else float("-inf"))
    energy = tl.load(energies + row)
    floor, enough = rounding * tl.sqrt_rn(energy), share * energy
    t = 0
    while t < k:
        score = tl.abs(c) if SIGNED else c
        size = tl.max(score, 0)
        j = tl.min(tl.where(score == size, columns, BLOCK), 0)
        a = tl.sum(tl.where(columns == j, c, 0.0), 0) if SIGNED else size
        if (size > floor) & (energy > enough):
            tl.store(values + row * k + t, a)
            tl.store(indices + row * k + t, j.to(tl.int64))
            energy -= a * a
            t += 1
            if t < k:
                c -= a * tl.load(gram + j.to(tl.int64) * d_sae + columns, mask=inside, other=0.0)
        else:
            t = k


@triton.jit(do_not_specialize=["t"])
@no_type_check
def _step(
    residual, energies, floors, limits, best, chosen, atoms, values, indices, t, k, width, SIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    a, j, energy = tl.load(best + row), tl.load(chosen + row), tl.load(energies + row)
    going = ((tl.abs(a) if SIGNED else a) > tl.load(floors + row)) & (energy > tl.load(limits + row))
    a = tl.where(going, a, 0.0)  # then nothing changes, and the row stays stopped
    r = tl.load(residual + row * width + columns, mask=inside, other=0.0)
    r -= a * tl.load(atoms + j * width + columns, mask=inside, other=0.0)
    tl.store(residual + row * width + columns, r, mask=inside)
    tl.store(energies + row, energy - a * a)
    tl.store(values + row * k + t, a)
    tl.store(indices + row * k + t, tl.where(going, j, 0))


@triton.jit
@no_type_check
def _reverse_sweep(
    values, indices, counts, residual, atoms, grad_values, grad_residual, grad_x, additions, k, width, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(grad_residual + row * width + columns, mask=inside, other=0.0)
    r = tl.load(residual + row * width + columns, mask=inside, other=0.0)
    slot = row * k + tl.load(counts + row)
    while slot > row * k:
        slot -= 1
        a = tl.load(values + slot)
        d = tl.load(atoms + tl.load(indices + slot) * width + columns, mask=inside, other=0.0)
        u = tl.load(grad_values + slot) - tl.sum(g * d, 0)
        r += a * d
        tl.store(additions + slot * width + columns, u * r - a * g, mask=inside)
        g += u * d
    tl.store(grad_x + row * width + columns, g, mask=inside)


def pursue(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    tol: float | None,
    signed: bool,
    gram_matrix: Float[Tensor, "d_sae d_sae"] | None = None,
) -> Path:
    """The pursuit of every row of x: at most k steps, fewer once |r| <= tol |x| or when no correlation exceeds the rounding error of |x|.
    `gram_matrix` is atoms atoms^T where the caller has it.
    """
    n, d_sae = len(x), len(atoms)
    if gram_matrix is None and d_sae <= MOST_ATOMS_IN_REGISTERS and uses_gram(n, k, d_sae, x.element_size()):
        with float32_products():
            gram_matrix = atoms @ atoms.T
    values, indices = x.new_zeros(n, k), torch.zeros(n, k, dtype=torch.long, device=x.device)
    energy = x.square().sum(1)
    share = -1.0 if tol is None else tol * tol
    if gram_matrix is not None and d_sae <= MOST_ATOMS_IN_REGISTERS:
        _select_by_gram(x, atoms, gram_matrix, energy, share, signed, values, indices)
    else:
        _select_by_residual(x, atoms, energy, share, signed, values, indices)
    energies = torch.cat([energy[:, None], (energy[:, None] - values.square().cumsum(1)).clamp_(min=0)], dim=1)
    return Path(values, indices, (values != 0).sum(1), energies, x - weighted_rows(values, indices, atoms))


def _select_by_gram(
    x: Tensor, atoms: Tensor, gram: Tensor, energy: Tensor, share: float, signed: bool, values: Tensor, indices: Tensor
) -> None:
    """Fill values and indices [n, k] in place; they hold 0 where a row has stopped."""
    d_sae, BLOCK = len(atoms), block(len(atoms), most=MOST_ATOMS_IN_REGISTERS)
    n_rows = max(1, BLOCK_BYTES // (d_sae * x.element_size()))
    for start in range(0, len(x), n_rows):
        part = slice(start, start + n_rows)
        with float32_products():
            correlations = x[part] @ atoms.T
        launch(
            _pursue, (len(correlations),), correlations, energy[part], gram, values[part], indices[part], d_sae, values.shape[1],
            torch.finfo(x.dtype).eps, share, SIGNED=signed, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=16, most=32),
        )  # fmt: skip


def _select_by_residual(x: Tensor, atoms: Tensor, energy: Tensor, share: float, signed: bool, values: Tensor, indices: Tensor) -> None:
    """The same without a Gram matrix."""
    (n, width), k = x.shape, values.shape[1]
    residual, left = x.clone(memory_format=torch.contiguous_format), energy.clone()
    floors, limits = torch.finfo(x.dtype).eps * energy.sqrt(), share * energy
    bias = atoms.new_zeros(len(atoms))
    rough_atoms = rough(atoms, bias) if looks_twice(x, len(atoms), 1) else None
    BLOCK = block(width, most=1 << 20)
    for t in range(k):
        best, chosen = largest(residual, atoms, bias, 1, signed, rough_atoms)
        launch(
            _step, (n,), residual, left, floors, limits, best, chosen, atoms, values, indices, t, k, width,
            SIGNED=signed, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=8),
        )  # fmt: skip
        if t % 8 == 7 and not bool(values[:, t].any()):
            return


def reverse_sweep(
    path: Path, atoms: Float[Tensor, "d_sae d_in"], grad_values: Float[Tensor, "n k"], grad_residual: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "d_sae d_in"]]:
    """(dL/dx, dL/datoms) of a pursuit with its selection fixed, from dL/dvalues and dL/dresidual; see the module's text."""
    (n, width), k = path.residual.shape, path.values.shape[1]
    values, indices, residual = path.values.contiguous(), path.indices.contiguous(), path.residual.contiguous()
    grad_values, grad_residual = grad_values.contiguous(), grad_residual.contiguous()
    grad_x, grad_atoms = torch.empty_like(grad_residual), torch.zeros_like(atoms)
    n_rows = max(1, BLOCK_BYTES // (k * width * atoms.element_size()))
    additions = atoms.new_empty(min(n_rows, n) * k, width)
    BLOCK = block(width, most=1 << 20)
    for start in range(0, n, n_rows):
        part = slice(start, start + n_rows)
        launch(
            _reverse_sweep, (len(values[part]),), values[part], indices[part], path.counts[part], residual[part], atoms,
            grad_values[part], grad_residual[part], grad_x[part], additions, k, width, BLOCK=BLOCK, n_warps=warps(BLOCK, per_thread=8),
        )  # fmt: skip
        segment_sums_(grad_atoms, additions, values[part], indices[part], k=1, weighted=False, add=True)
    return grad_x, grad_atoms
