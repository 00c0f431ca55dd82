"""The kernels as differentiable functions: forward and backward are sparse products, never a dense graph.

`encode` may also ask some latents for their whole column of pre-activations, and `squared_error` takes such a column block: AuxK. The two
pass their gradients straight into the rows of those latents, without a second gradient of the full size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.dictionaries.kernels.dispatch import kernels_for, products_for
from sae.dictionaries.kernels.reference import Path
from sae.dictionaries.kernels.rules import Rule


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder keeps of a batch."""

    values: Float[Tensor, "n k"]
    """Value of each slot; 0 in unused ones."""
    indices: Int[Tensor, "n k"]
    """Latent of each slot."""
    answers: Float[Tensor, "n m"]
    """Pre-activations of the m latents that were asked."""


@dataclass(frozen=True, eq=False)
class Errors:
    """How far a decoding is from its target."""

    error: Float[Tensor, ""]
    """sum |target - z W_dec - b_dec|^2; differentiable."""
    revival: Float[Tensor, ""]
    """sum |residual - e_hat|^2 with the residual held fixed; differentiable; 0 where nobody was asked."""
    residual: Float[Tensor, "n d_out"]
    """target - z W_dec - b_dec; detached."""


class WeightedRows(torch.autograd.Function):
    """y = z W for codes z."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, rows)
        return products_for(rows, values.shape[1]).weighted_rows(values, indices, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, rows = ctx.saved_tensors
        kernels, grad = products_for(rows, values.shape[1]), grad.contiguous()
        grad_values = kernels.row_dots(grad, indices, rows) if ctx.needs_input_grad[0] else None
        grad_rows = kernels.weighted_rows_t(values, indices, grad, len(rows)) if ctx.needs_input_grad[2] else None
        return grad_values, None, grad_rows


class Encode(torch.autograd.Function):
    """values, indices = rule((x - shift) W_enc + b_enc), and the whole pre-activations of the latents that are asked."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, W_enc: Tensor, b_enc: Tensor, rule: Rule, asked: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels, rows = kernels_for(W_enc), W_enc.T.contiguous()
        centred = x.contiguous() if shift is None else x - shift
        values, indices = rule.select(kernels, centred, rows, b_enc)
        answers = x.new_zeros(len(x), 0) if asked is None else kernels.product(centred, rows[asked].T).add_(b_enc[asked])
        ctx.save_for_backward(centred, W_enc, values, indices, asked)
        ctx.mark_non_differentiable(indices)
        return values, indices, answers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, _: Tensor, grad_answers: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values, indices, asked = ctx.saved_tensors
        kernels, d_sae = kernels_for(W_enc), W_enc.shape[1]
        products = products_for(W_enc.T, values.shape[1])
        grad = (grad_values * (values != 0)).contiguous()
        grad_rows = products.weighted_rows_t(grad, indices, centred, d_sae)
        grad_b_enc = kernels.scattered_sum(grad, indices, d_sae)
        grad_x = products.weighted_rows(grad, indices, W_enc.T.contiguous()) if ctx.needs_input_grad[0] else None
        if asked is not None:
            grad_answers = grad_answers.contiguous()
            grad_rows[asked] += kernels.product(grad_answers.T, centred)
            grad_b_enc[asked] += grad_answers.sum(0)
            if grad_x is not None:
                grad_x += grad_answers @ W_enc.T[asked]
        # sum over rows of dL/dx, without dL/dx: the rows of W_enc^T weighted by the bias gradient
        grad_shift = -(W_enc @ grad_b_enc) if ctx.needs_input_grad[1] else None
        return grad_x, grad_shift, grad_rows.T, grad_b_enc, None, None


class SquaredError(torch.autograd.Function):
    """sum |target - z W - b|^2, and the same for what the asked latents add to it (AuxK)."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor, answers: Tensor | None,
        asked: Tensor | None, k_aux: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        kernels = kernels_for(W_dec)
        residual, dots = products_for(W_dec, values.shape[1]).decode_error(values, indices, W_dec, target - b_dec)
        error, revival = torch.linalg.vector_norm(residual).square(), residual.new_zeros(())
        kept = rest = None
        if asked is not None:
            kept = answers.clone()
            kernels.keep_largest_(kept, k_aux)
            rest = residual - kernels.product(kept, W_dec[asked])
            revival = torch.linalg.vector_norm(rest).square()
        ctx.save_for_backward(values, indices, W_dec, residual, dots, asked, kept, rest)
        ctx.mark_non_differentiable(residual)
        return error, revival, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor, grad_revival: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec, residual, dots, asked, kept, rest = ctx.saved_tensors
        kernels, g = kernels_for(W_dec), -2 * float(grad_error)
        grad_W_dec = products_for(W_dec, values.shape[1]).weighted_rows_t(values * g, indices, residual, len(W_dec))
        grad_answers = None
        if asked is not None:
            pull = rest * (-2 * float(grad_revival))
            grad_W_dec[asked] += kernels.product(kept.T, pull)
            grad_answers = kernels.product(pull, W_dec[asked].T).mul_(kept > 0)
        grad_target = residual * -g if ctx.needs_input_grad[4] else None
        return dots * g, None, grad_W_dec, residual.sum(0) * g, grad_target, grad_answers, None, None


class Pursue(torch.autograd.Function):
    """values and residual of a matching pursuit, differentiable with the selection fixed; indices, counts and energies are not."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, atoms: Tensor, k: int, tol: float | None, signed: bool, gram_matrix: Tensor | None
    ) -> tuple[Tensor, ...]:
        path = kernels_for(atoms).pursue(x, atoms, k, tol, signed, gram_matrix)
        ctx.save_for_backward(atoms, *path)
        ctx.mark_non_differentiable(path.indices, path.counts, path.energies)
        return tuple(path)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        atoms, *fields = ctx.saved_tensors
        grad_x, grad_atoms = kernels_for(atoms).reverse_sweep(Path(*fields), atoms, grads[0].contiguous(), grads[4].contiguous())
        return grad_x, grad_atoms, None, None, None, None


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]; differentiable in `values` and `rows`."""
    return WeightedRows.apply(values, indices, rows)


def encode(
    x: Float[Tensor, "n d_in"],
    shift: Float[Tensor, "d_in"] | None,
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    rule: Rule,
    asked: Int[Tensor, "m"] | None = None,
) -> Encoded:
    """What `rule` keeps of (x - shift) W_enc + b_enc, and the asked latents' columns of it; differentiable in x and every parameter."""
    return Encoded(*Encode.apply(x, shift, W_enc, b_enc, rule, asked))


def squared_error(
    encoded: Encoded,
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, "d_out"],
    target: Float[Tensor, "n d_out"],
    asked: Int[Tensor, "m"] | None = None,
    k_aux: int = 0,
) -> Errors:
    """Squared error of z W_dec + b_dec, and of e_hat = the k_aux largest positive answers of each row times their atoms, against what the
    first leaves. Differentiable in the values, answers, W_dec, b_dec and target; e_hat in its own answers and atoms only.
    """
    return Errors(*SquaredError.apply(encoded.values, encoded.indices, W_dec, b_dec, target, encoded.answers, asked, k_aux))


def pursue(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    tol: float | None,
    signed: bool,
    gram_matrix: Shaped[Tensor, "d_sae d_sae"] | None = None,
) -> Path:
    """Matching pursuit of the rows of x over unit atoms; `values` and `residual` are differentiable in x and atoms, the selection held
    fixed. `gram_matrix` is the running kernels' `gram(atoms)` where the caller has it (see `memo`).
    """
    return Path(*Pursue.apply(x.contiguous(), atoms, k, tol, signed, gram_matrix))
