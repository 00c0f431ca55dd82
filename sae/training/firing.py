"""Dead latents, counted in tokens.

    since[j] = number of tokens since latent j last had a value other than 0;        j is dead when since[j] > dead_tokens

The count is kept to the token, not to the batch: cutting the same tokens into batches of another size gives the same counts. A selected
latent whose value is 0 has not fired.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes


def tokens_since_fired(since: Int[Tensor, "d_sae"], codes: SparseCodes) -> Int[Tensor, "d_sae"]:
    """The counts after the rows of `codes`, in order, have been seen: 0 for a latent that is active in the last row."""
    n = len(codes)
    row = torch.arange(n, device=since.device)[:, None].expand_as(codes.indices)
    fired = torch.where(codes.values.detach() != 0, row, -1)
    last = torch.full_like(since, -1).scatter_reduce_(0, codes.indices.reshape(-1).long(), fired.reshape(-1), "amax")
    return torch.where(last >= 0, n - 1 - last, since + n)
