"""Sparse products and the one-layer encoder in torch: the oracle, and fast on a CPU without a compiler.

    weighted_rows      y[r] = sum_s v[r,s] W[i[r,s]]                       z W, for codes z held as (values v, indices i)
    row_dots           v[r,s] = y[r] . W[i[r,s]]                           the entries of y W^T at the slots
    weighted_rows_t    dW[j] = sum over (r,s) with i[r,s] = j of v[r,s] y[r]    z^T y
    encode             activation(x W_enc + bias), in blocks of rows: pre-activations of the whole batch are never held

The first three are each other's derivatives; none of them touches a dense [n, d_sae] matrix.
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.dictionaries.activations import Activation, Slots

ENCODE_BLOCK_BYTES = 4 << 20
"""Pre-activations held at once by `encode`, in bytes: small enough to stay in the cache between the product and the selection."""


def weighted_rows(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "n width"]:
    """y[r] = sum_s values[r,s] rows[indices[r,s]]."""
    return embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def row_dots(y: Float[Tensor, "n width"], indices: Int[Tensor, "n k"], rows: Float[Tensor, "d_sae width"]) -> Float[Tensor, "n k"]:
    """v[r,s] = y[r] . rows[indices[r,s]]."""
    n, k = indices.shape
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


def encode(
    x: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_in d_sae"], bias: Float[Tensor, "d_sae"], activation: Activation
) -> Slots:
    """activation(x W_enc + bias), block of rows by block of rows."""
    n_rows = max(1, ENCODE_BLOCK_BYTES // (W_enc.shape[1] * x.element_size()))
    pre_acts = x.new_empty(min(n_rows, max(len(x), 1)), W_enc.shape[1])
    parts = []
    for block in x.split(n_rows):
        parts.append(activation(torch.addmm(bias, block, W_enc, out=pre_acts[: len(block)])))
    return Slots(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))
