"""How a row of activations is stored, and what that loses.

    bfloat16, float16, float32      the rounded row; its norm |a| beside it, in float32
    int8                            q = round(127 a / max |a_i|), eight bits a number;      a ~ q * |a| / |q|

In eight bits the norm that every row carries anyway is also its scale, and comes out exact: only the direction is rounded. What is lost is
reported with a store as the fraction of the variance, see `SiteSummary.storage_fvu`.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.errors import FormatError

LEVELS = 127.0


def narrow_(
    acts: Float[Tensor, "n width"], stored: Shaped[Tensor, "n width"], norms: Float[Tensor, "n"], *, where: str = "activations"
) -> None:
    """Store the rows in `stored`, in its dtype, and their norms in `norms` (float32): of the stored rows, for int8 of the given ones.

    Raises FormatError when a finite activation is too large for the dtype. NaN and infinite ones are left for the norms to show.
    """
    if stored.dtype == torch.int8:
        torch.linalg.vector_norm(acts, dim=1, dtype=torch.float32, out=norms)
        wide = acts.float()
        scale = LEVELS / wide.abs().amax(dim=1, keepdim=True)
        stored.copy_((wide * torch.where(torch.isfinite(scale), scale, 0.0)).round_().nan_to_num_(0.0))
        return
    stored.copy_(acts)
    torch.linalg.vector_norm(stored, dim=1, dtype=torch.float32, out=norms)
    if stored.dtype == torch.float16 and not bool(torch.isfinite(norms).all()) and bool(torch.isfinite(acts).all()):
        largest = float(acts.abs().max())
        raise FormatError(f"float16 cannot hold {where} of size {largest:.4g}, above 65504: capture with dtype 'bfloat16' or 'float32'")


def widen(stored: Shaped[Tensor, "n width"], norms: Float[Tensor, "n"]) -> Float[Tensor, "n width"]:
    """The rows in float32. A row of zeros stays one."""
    if stored.dtype != torch.int8:
        return stored.float()
    wide = stored.float()
    lengths = torch.linalg.vector_norm(wide, dim=1)
    return wide.mul_((norms / lengths.clamp(min=1.0)).unsqueeze(1))


def is_exact(source: torch.dtype, storage: torch.dtype) -> bool:
    """Whether every number of one dtype is one of the other."""
    return storage != torch.int8 and torch.promote_types(source, storage) == storage
