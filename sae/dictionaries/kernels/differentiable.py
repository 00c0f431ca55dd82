"""The kernels as differentiable functions: forward and backward are the sparse products of `reference` and `pursuit`, never a dense graph.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.dictionaries.activations import Activation, Slots
from sae.dictionaries.kernels import pursuit, reference


class WeightedRows(torch.autograd.Function):
    """y = z W for codes z."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, rows)
        return reference.weighted_rows(values, indices, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, rows = ctx.saved_tensors
        grad = grad.contiguous()
        grad_values = reference.row_dots(grad, indices, rows) if ctx.needs_input_grad[0] else None
        grad_rows = reference.weighted_rows_t(values, indices, grad, len(rows)) if ctx.needs_input_grad[2] else None
        return grad_values, None, grad_rows


class Encode(torch.autograd.Function):
    """values, indices = activation((x - b_dec) W_enc + b_enc)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, b_dec: Tensor, W_enc: Tensor, b_enc: Tensor, activation: Activation
    ) -> tuple[Tensor, Tensor]:
        centred = x - b_dec
        values, indices = reference.encode(centred, W_enc, b_enc, activation)
        ctx.save_for_backward(centred, W_enc, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values, indices = ctx.saved_tensors
        d_sae = W_enc.shape[1]
        grad = grad_values * (values > 0)
        grad_b_enc = reference.scattered_sum(grad, indices, d_sae)
        grad_W_enc = reference.weighted_rows_t(grad, indices, centred, d_sae).T if ctx.needs_input_grad[2] else None
        grad_x = reference.weighted_rows(grad, indices, W_enc.T.contiguous()) if ctx.needs_input_grad[0] else None
        # sum over rows of dL/dx, without dL/dx: the rows of W_enc^T weighted by the bias gradient
        grad_b_dec = -(W_enc @ grad_b_enc) if ctx.needs_input_grad[1] else None
        return grad_x, grad_b_dec, grad_W_enc, grad_b_enc, None


class Pursue(torch.autograd.Function):
    """values and residual of a matching pursuit, differentiable with the selection fixed; indices, counts and energies are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, atoms: Tensor, k: int, tol: float | None, signed: bool) -> tuple[Tensor, ...]:
        path = pursuit.select(x, atoms, k, tol, signed)
        ctx.save_for_backward(atoms, *path)
        ctx.mark_non_differentiable(path.indices, path.counts, path.energies)
        return tuple(path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        atoms, *fields = ctx.saved_tensors
        grad_x, grad_atoms = pursuit.reverse_sweep(pursuit.Path(*fields), atoms, grads[0], grads[4])
        return grad_x, grad_atoms, None, None, None


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]; differentiable in `values` and `rows`."""
    return WeightedRows.apply(values, indices, rows)


def encode(
    x: Float[Tensor, "n d_in"],
    b_dec: Float[Tensor, "d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    activation: Activation,
) -> Slots:
    """activation((x - b_dec) W_enc + b_enc); the values are differentiable in x and every parameter."""
    return Slots(*Encode.apply(x, b_dec, W_enc, b_enc, activation))


def pursue(x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], k: int, tol: float | None, signed: bool) -> pursuit.Path:
    """Matching pursuit of the rows of x over unit atoms; `values` and `residual` are differentiable in x and atoms, the selection held
    fixed.
    """
    return pursuit.Path(*Pursue.apply(x, atoms, k, tol, signed))


def pursue_orthogonally(
    x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], k: int, tol: float | None, signed: bool
) -> pursuit.Path:
    """Orthogonal matching pursuit: coefficients by least squares on the selected atoms, differentiable in x and atoms, the selection
    held fixed.
    """
    with torch.no_grad():
        path = pursuit.select_orthogonally(x.detach(), atoms.detach(), k, tol, signed)
    values = refitted(x, atoms, path.indices, path.counts)
    return path._replace(values=values, residual=x - weighted_rows(values, path.indices, atoms))


def refitted(
    x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "n k"], counts: Int[Tensor, "n"]
) -> Float[Tensor, "n k"]:
    """argmin_a |x - sum_s a_s d_{i_s}|^2 over the first `counts` slots of each row; 0 elsewhere."""
    k = indices.shape[1]
    identity = torch.eye(k, dtype=x.dtype, device=x.device)
    chunk = max(1, (64 << 20) // (k * x.shape[1] * x.element_size()))
    parts = []
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        active = torch.arange(k, device=x.device) < counts[rows, None]
        chosen = atoms[indices[rows]] * active[:, :, None]
        system = chosen @ chosen.mT + identity * ~active[:, None, :]
        target = torch.einsum("nkd,nd->nk", chosen, x[rows])
        parts.append(torch.cholesky_solve(target[:, :, None], torch.linalg.cholesky(system)).squeeze(2))
    return torch.cat(parts) if parts else x.new_zeros(0, k)
