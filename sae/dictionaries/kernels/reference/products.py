"""The kernels in torch: the oracle, and what runs where no compiled kernels do.

    top                the k largest of x R^T + b per row, in blocks of rows: pre-activations of the whole batch are never held
    above              the entries of x R^T + b above a floor, likewise
    weighted_rows      y[r] = sum_s v[r,s] W[i[r,s]]                       z W, for codes z held as (values v, indices i)
    row_dots           v[r,s] = y[r] . W[i[r,s]]                           the entries of y W^T at the slots
    weighted_rows_t    dW[j] = sum over (r,s) with i[r,s] = j of v[r,s] y[r]    z^T y
    decode_error       residual = target - z W, and its row_dots

The three products are each other's derivatives. Where the slots cover an eighth of the latents or more they go through the dense matrix,
which is then the faster way; otherwise none of them touches one.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

ENCODE_BLOCK_BYTES = 4 << 20
"""Pre-activations held at once, in bytes: small enough to stay in the cache between the product and the selection."""
DENSE_SHARE = 8
"""The products are dense from k slots of at least d_sae / DENSE_SHARE on."""


class Slots(NamedTuple):
    """Some latents of each row and a value for each."""

    values: Float[Tensor, "n k"]
    """Their values; a slot with value 0 is not active."""
    indices: Int[Tensor, "n k"]
    """Their numbers."""


def top(x: Float[Tensor, "n d_in"], rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], k: int, signed: bool) -> Slots:
    """The k largest of x rows^T + bias per row by falling value, negative ones set to 0; with `signed` by falling |value|."""
    parts = [_largest(block, k, signed) for block in _pre_acts(x, rows, bias)]
    return Slots(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


def _largest(pre_acts: Tensor, k: int, signed: bool) -> Slots:
    if signed:
        indices = pre_acts.abs().topk(k).indices
        return Slots(pre_acts.gather(1, indices), indices)
    values, indices = pre_acts.topk(k)
    return Slots(values.relu_(), indices)


def above(
    x: Float[Tensor, "n d_in"], rows: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, "d_sae"], floor: Float[Tensor, "d_sae"]
) -> Slots:
    """The entries of x rows^T + bias above `floor`, by rising latent, in as many slots as the fullest row needs; unused slots are 0."""
    parts = [_above(block, floor) for block in _pre_acts(x, rows, bias)]
    width = max([1, *(part.values.shape[1] for part in parts)])
    pad = torch.nn.functional.pad
    return Slots(*(torch.cat([pad(field, (0, width - field.shape[1])) for field in fields]) for fields in zip(*parts, strict=True)))


def _above(pre_acts: Tensor, floor: Tensor) -> Slots:
    kept = pre_acts > floor
    counts = kept.sum(1)
    row, indices = kept.nonzero(as_tuple=True)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max()) if len(counts) else 0
    slots = Slots(pre_acts.new_zeros(len(pre_acts), width), torch.zeros(len(pre_acts), width, dtype=torch.long, device=row.device))
    slots.values[row, place] = pre_acts[row, indices]
    slots.indices[row, place] = indices
    return slots


def _pre_acts(x: Tensor, rows: Tensor, bias: Tensor):
    """Blocks of x rows^T + bias; each is overwritten by the next."""
    n_rows = max(1, ENCODE_BLOCK_BYTES // (len(rows) * x.element_size()))
    buffer = x.new_empty(min(n_rows, len(x)), len(rows))
    for block in x.split(n_rows):
        yield torch.addmm(bias, block, rows.T, out=buffer[: len(block)])


def is_dense(k: int, d_sae: int) -> bool:
    """Whether codes with k slots are multiplied as a dense matrix."""
    return DENSE_SHARE * k >= d_sae


def dense(values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], d_sae: int) -> Float[Tensor, "n d_sae"]:
    """z[r, i[r,s]] = sum of the values of the slots that hold it."""
    return values.new_zeros(len(values), d_sae).scatter_add_(1, indices, values)


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]."""
    if is_dense(values.shape[1], len(rows)):
        return dense(values, indices, len(rows)) @ rows
    return embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def row_dots(y: Float[Tensor, "n width"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]) -> Float[Tensor, "n k"]:
    """v[r,s] = y[r] . rows[indices[r,s]]."""
    n, k = indices.shape
    if is_dense(k, len(rows)):
        return (y @ rows.T).gather(1, indices)
    starts = torch.arange(0, n * k + 1, k, device=y.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        pattern = torch.sparse_csr_tensor(
            starts, indices.reshape(-1).long(), y.new_zeros(n * k), (n, rows.shape[0]), check_invariants=False
        )
    return torch.sparse.sampled_addmm(pattern, y, rows.T, beta=0.0).values().view(n, k)


def weighted_rows_t(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], y: Float[Tensor, "n width"], d_sae: int
) -> Float[Tensor, "d_sae width"]:
    """dW[j] = sum of values[r,s] y[r] over the slots (r,s) that hold latent j, as one weighted sum of rows per latent."""
    if is_dense(values.shape[1], d_sae):
        return dense(values, indices, d_sae).T @ y
    flat = indices.reshape(-1)
    # A 16-bit key sorts three times faster; torch has no counting sort.
    slots = (flat.to(torch.int16) if d_sae <= 1 << 15 else flat).sort(stable=True).indices
    starts = flat.new_zeros(d_sae + 1)
    torch.cumsum(torch.bincount(flat, minlength=d_sae), 0, out=starts[1:])
    of_row = torch.div(slots, indices.shape[1], rounding_mode="floor")
    return embedding_bag(of_row, y, starts, per_sample_weights=values.reshape(-1)[slots], mode="sum", include_last_offset=True)


def scattered_sum(values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], d_sae: int) -> Float[Tensor, "d_sae"]:
    """b[j] = sum of values[r,s] over the slots that hold latent j."""
    return values.new_zeros(d_sae).index_add_(0, indices.reshape(-1), values.reshape(-1))


def decode_error(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"], target: Float[Tensor, "n width"]
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n k"]]:
    """(residual, dots): residual = target - z rows, dots = row_dots(residual, indices, rows)."""
    residual = target - weighted_rows(values, indices, rows)
    return residual, row_dots(residual, indices, rows)


def keep_largest_(answers: Float[Tensor, "n m"], k: int) -> None:
    """ReLU, then every entry that is not among the k largest of its row set to 0, in place."""
    answers.relu_()
    if k < answers.shape[1]:
        kept = answers.topk(k)
        answers.zero_().scatter_(1, kept.indices, kept.values)


def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m width"]) -> Float[Tensor, "n width"]:
    """a b; other backends may round to bfloat16, so it serves AuxK only."""
    return a @ b


@dataclass(frozen=True, eq=False)
class Revival:
    """AuxK of the latents asked, and its gradient."""

    error: float
    """sum |residual - e_hat|^2."""
    grad_enc: Float[Tensor, "m d_in"]
    """Gradient of the error in their rows of the encoder."""
    grad_bias: Float[Tensor, "m"]
    """In their biases."""
    grad_dec: Float[Tensor, "m d_out"]
    """In their atoms."""


def revive(
    x: Float[Tensor, "n d_in"],
    residual: Float[Tensor, "n d_out"],
    rows_enc: Float[Tensor, "m d_in"],
    bias: Float[Tensor, "m"],
    rows_dec: Float[Tensor, "m d_out"],
    k: int,
) -> Revival:
    """How badly the k strongest answers a = x E^T + b of m latents explain `residual`, e_hat = a D, and the gradient of that, with x and
    residual held fixed; other backends may round to bfloat16.
    """
    kept = torch.addmm(bias, x, rows_enc.T)
    keep_largest_(kept, min(k, len(bias)))
    rest = residual - kept @ rows_dec
    pull = (rest @ rows_dec.T).mul_(kept > 0).mul_(-2)
    error = float(torch.linalg.vector_norm(rest, dim=1).double().square().sum())
    return Revival(error, pull.T @ x, pull.sum(0), -2 * (kept.T @ rest))


def project_(grad: Float[Tensor, "m width"], atoms: Float[Tensor, "m width"]) -> float:
    """g_i <- g_i - (g_i . d_i) d_i for unit atoms d_i, in place; returns the sum of squares of the result."""
    grad.addcmul_(atoms, torch.linalg.vecdot(grad, atoms)[:, None], value=-1)
    return sum_squares(grad)


def sum_squares(grad: Float[Tensor, "*shape"]) -> float:
    """Sum of the squares of all entries."""
    return float(torch.linalg.vector_norm(grad, dtype=torch.float64)) ** 2


def adam_(
    parameter: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *, rate: float, betas: tuple[float, float], epsilon: float,
    step: int, scale: float, unit_rows: bool,
) -> None:  # fmt: skip
    """One step of Adam on the gradient scale * grad, in place; `step` counts from 1. With `unit_rows` rows are then given norm 1.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   p <- p - rate (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + epsilon)
    (Kingma & Ba 2015, 1412.6980 algorithm 1).
    """
    grad = grad * scale
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    spread = (exp_avg_sq / (1 - betas[1] ** step)).sqrt_().add_(epsilon)
    parameter.addcdiv_(exp_avg, spread, value=-rate / (1 - betas[0] ** step))
    if unit_rows:
        unit_rows_(parameter)


def unit_rows_(rows: Float[Tensor, "m width"]) -> None:
    """Every row divided by its norm, in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))
