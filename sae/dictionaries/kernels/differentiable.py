"""The kernels as differentiable functions: forward and backward are sparse products, never a dense graph.

`explain` is encoding, decoding and AuxK in one, with one gradient of each parameter: what training a selecting autoencoder runs. The other
functions are its parts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.dictionaries.kernels.dispatch import difference, kernels_for, products_for
from sae.dictionaries.kernels.reference import Path, Slots
from sae.dictionaries.kernels.rules import Rule


@dataclass(frozen=True, eq=False)
class Errors:
    """How far a decoding is from its target."""

    error: Float[Tensor, ""]
    """sum |target - z W_dec - b_dec|^2; differentiable."""
    residual: Float[Tensor, "n d_out"]
    """target - z W_dec - b_dec; detached."""
    slots: Slots
    """The codes z, detached."""
    revival: Float[Tensor, ""]
    """sum |residual - e_hat|^2 with the residual held fixed; differentiable; 0 where no latent was asked."""


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
        products, grad = products_for(rows, values.shape[1]), grad.contiguous()
        grad_values = products.row_dots(grad, indices, rows) if ctx.needs_input_grad[0] else None
        grad_rows = products.weighted_rows_t(values, indices, grad, len(rows)) if ctx.needs_input_grad[2] else None
        return grad_values, None, grad_rows


class Encode(torch.autograd.Function):
    """values, indices = rule((x - shift) W_enc + b_enc)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, W_enc: Tensor, b_enc: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        centred = x.contiguous() if shift is None else difference(x, shift)
        values, indices = rule.select(kernels_for(W_enc), centred, W_enc.T.contiguous(), b_enc)
        ctx.save_for_backward(centred, W_enc, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, values, indices = ctx.saved_tensors
        grad_x, grad_rows, grad_bias = _encoder_gradient(grad_values, values, indices, centred, W_enc, ctx.needs_input_grad[0])
        # sum over rows of dL/dx, without dL/dx: the rows of W_enc^T weighted by the bias gradient
        grad_shift = -(W_enc @ grad_bias) if ctx.needs_input_grad[1] else None
        return grad_x, grad_shift, grad_rows.T, grad_bias, None


class Explain(torch.autograd.Function):
    """Encode by a rule, decode, compare with the target; and ask some latents to explain what is left (AuxK)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor | None, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor, rule: Rule,
        asked: Tensor | None, k_aux: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        kernels, rows = kernels_for(W_dec), W_enc.T.contiguous()
        centred = x.contiguous() if shift is None else difference(x, shift)
        values, indices = rule.select(kernels, centred, rows, b_enc)
        # In an autoencoder what is decoded is what was encoded, and both ends are shifted alike.
        wanted = centred if target is x and shift is b_dec else difference(target, b_dec)
        residual, dots = products_for(W_dec, values.shape[1]).decode_error(values, indices, W_dec, wanted)
        ctx.revival = None if asked is None else kernels.revive(centred, residual, rows[asked], b_enc[asked], W_dec[asked], k_aux)
        ctx.save_for_backward(centred, W_enc, W_dec, values, indices, residual, dots, asked)
        ctx.mark_non_differentiable(residual, values, indices)
        revival = residual.new_tensor(0.0 if ctx.revival is None else ctx.revival.error)
        return torch.linalg.vector_norm(residual, dim=1).square().sum(), revival, residual, values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_error: Tensor, grad_revival: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, W_dec, values, indices, residual, dots, asked = ctx.saved_tensors
        g, pull = -2 * float(grad_error), float(grad_revival)
        grad_x, grad_rows, grad_bias = _encoder_gradient(dots * g, values, indices, centred, W_enc, ctx.needs_input_grad[0])
        grad_W_dec = products_for(W_dec, values.shape[1]).weighted_rows_t(values * g, indices, residual, len(W_dec))
        grad_shift = -(W_enc @ grad_bias) if ctx.needs_input_grad[1] else None
        if asked is not None:
            grad_rows.index_add_(0, asked, ctx.revival.grad_enc, alpha=pull)
            grad_bias.index_add_(0, asked, ctx.revival.grad_bias, alpha=pull)
            grad_W_dec.index_add_(0, asked, ctx.revival.grad_dec, alpha=pull)
        grad_target = residual * -g if ctx.needs_input_grad[6] else None
        return grad_x, grad_shift, grad_rows.T, grad_bias, grad_W_dec, residual.sum(0) * g, grad_target, None, None, None


class Revive(torch.autograd.Function):
    """AuxK on its own: sum |residual - e_hat|^2 for the latents whose rows are given, x and residual held fixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, rows_enc: Tensor, bias: Tensor, rows_dec: Tensor, k: int) -> Tensor:
        ctx.revival = kernels_for(rows_dec).revive(x, residual, rows_enc, bias, rows_dec, k)
        return residual.new_tensor(ctx.revival.error)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        revival, g = ctx.revival, float(grad)
        return None, None, revival.grad_enc * g, revival.grad_bias * g, revival.grad_dec * g, None


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


def _encoder_gradient(
    grad_values: Tensor, values: Tensor, indices: Tensor, centred: Tensor, W_enc: Tensor, wants_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(dL/dx, dL/dW_enc^T, dL/db_enc) from dL/dvalues; a slot with value 0 has been cut off and has no gradient."""
    d_sae = W_enc.shape[1]
    products = products_for(W_enc.T, values.shape[1])
    grad = (grad_values * (values != 0)).contiguous()
    grad_x = products.weighted_rows(grad, indices, W_enc.T.contiguous()) if wants_x else None
    return grad_x, products.weighted_rows_t(grad, indices, centred, d_sae), products.scattered_sum(grad, indices, d_sae)


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
) -> Slots:
    """What `rule` keeps of (x - shift) W_enc + b_enc; the values are differentiable in x and every parameter."""
    return Slots(*Encode.apply(x, shift, W_enc, b_enc, rule))


def explain(
    x: Float[Tensor, "n d_in"],
    shift: Float[Tensor, "d_in"] | None,
    encoder: tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, "d_sae"]],
    decoder: tuple[Float[Tensor, "d_sae d_out"], Float[Tensor, "d_out"]],
    target: Float[Tensor, "n d_out"],
    rule: Rule,
    asked: Int[Tensor, "m"] | None = None,
    k_aux: int = 0,
) -> Errors:
    """The error of z W_dec + b_dec against the target for z = rule((x - shift) W_enc + b_enc), and what the asked latents add (AuxK): e_hat
    from the k_aux largest positive pre-activations of each row. `error` is differentiable in everything, `revival` in the asked latents'
    weights only.
    """
    error, revival, residual, values, indices = Explain.apply(x, shift, *encoder, *decoder, target, rule, asked, k_aux)
    return Errors(error, residual, Slots(values, indices), revival)


def revive(
    x: Float[Tensor, "n d_in"],
    residual: Float[Tensor, "n d_out"],
    rows_enc: Float[Tensor, "m d_in"],
    bias: Float[Tensor, "m"],
    rows_dec: Float[Tensor, "m d_out"],
    k: int,
) -> Float[Tensor, ""]:
    """AuxK of m latents: sum |residual - e_hat|^2, e_hat from the k largest positive entries of x rows_enc^T + bias; differentiable in the
    three weights.
    """
    return Revive.apply(x.detach(), residual.detach(), rows_enc, bias, rows_dec, k)


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
