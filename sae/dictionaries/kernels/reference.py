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
N_SPARE = 24
"""Candidates beyond k when selecting in bfloat16; on language-model activations 1 row in 4,000 then needs a second look."""


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
    d_sae = W_enc.shape[1]
    shortlist = activation.widened(N_SPARE, d_sae)
    if selects_in_bfloat16(x, d_sae, shortlist.k):
        return _encode_from_shortlist(x, W_enc, bias, activation, shortlist)
    n_rows = max(1, ENCODE_BLOCK_BYTES // (d_sae * x.element_size()))
    pre_acts = x.new_empty(min(n_rows, max(len(x), 1)), d_sae)
    parts = [activation(torch.addmm(bias, block, W_enc, out=pre_acts[: len(block)])) for block in x.split(n_rows)]
    return Slots(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


def selects_in_bfloat16(x: Float[Tensor, "n d_in"], d_sae: int, n_candidates: int) -> bool:
    """Whether `encode` looks for candidates in bfloat16 first: where the CPU has it in hardware and the product is what takes the time."""
    in_hardware = x.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return in_hardware and x.dtype == torch.float32 and len(x) >= 32 and 16 * n_candidates <= d_sae


def _encode_from_shortlist(x: Tensor, W_enc: Tensor, bias: Tensor, activation: Activation, shortlist: Activation) -> Slots:
    """The same slots as in float32: candidates from a bfloat16 product, their exact values, and a proof per row that none was missed.

    Rounding x and w to bfloat16 (unit roundoff u = 2^-9) moves x . w by at most (2u + u^2) |x| |w|, and rounding the product by
    u |x . w|. With `lowest` the shortlist's last entry, every latent that is not on it is therefore below

        lowest + 2u (|lowest| + max |bias|) + (2u + u^2 + d_in 2^-23) |x| max |w|

    Rows whose last kept value does not exceed that are computed again in float32.
    """
    rows, d_sae = W_enc.T.contiguous(), W_enc.shape[1]
    low_rows = rows.bfloat16()
    slack = (2.0**-8 + 2.0**-18 + x.shape[1] * 2.0**-23) * float(torch.linalg.vector_norm(rows, dim=1).max())
    largest_bias = float(bias.abs().max())
    n_rows = max(1, ENCODE_BLOCK_BYTES // (d_sae * x.element_size()))
    pre_acts = x.new_empty(min(n_rows, len(x)), d_sae)
    parts = []
    for block in x.split(n_rows):
        rough = torch.add(torch.nn.functional.linear(block.bfloat16(), low_rows), bias, out=pre_acts[: len(block)])
        candidates = shortlist(rough)
        values, position = activation(row_dots(block, candidates.indices, rows) + bias[candidates.indices])
        indices = candidates.indices.gather(1, position)
        lowest = candidates.values[:, -1]
        bound = lowest + 2.0**-8 * (lowest + largest_bias) + slack * torch.linalg.vector_norm(block, dim=1)
        unproved = (values[:, -1] <= bound).nonzero().view(-1)
        if len(unproved):
            values[unproved], indices[unproved] = activation(torch.addmm(bias, block[unproved], W_enc))
        parts.append(Slots(values, indices))
    return Slots(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))
