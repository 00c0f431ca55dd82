"""Axial spherical k-means: unit vectors grouped by direction, a vector and its opposite being one.

    assign      argmax_c |u.m_c|,    update  m_c <- unit(sum of sign(u.m_c) u over the batch, added to what the centre has seen)

Dhillon, Marcotte & Roshan 2003, "Diametrical clustering for identifying anti-correlated gene clusters" (sign-free assignment); mini-batches and
per-centre rates after Sculley 2010.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points

BATCH = 16384


def axial_clusters(
    directions: Float[Tensor, "n d"], n_clusters: int, *, generator: torch.Generator, n_rounds: int = 4
) -> Int[Tensor, " n"]:
    """Cluster number of every row, 0..n_clusters - 1; some clusters may be empty. `n_rounds` batches of 16,384 rows move the centres.

    Time (n + n_rounds 16384) n_clusters d. Raises ConfigError for NaN or Inf, unless 1 <= n_clusters <= n, and for n_rounds < 1.
    """
    require_points(directions, minimum=1, argument="directions", where="axial_clusters")
    n = len(directions)
    if not 1 <= n_clusters <= n or n_rounds < 1:
        raise ConfigError(f"n_clusters must be in 1..{n} and n_rounds at least 1, got {n_clusters} and {n_rounds} (axial_clusters)")
    x = _unit(directions.detach().to(torch.promote_types(directions.dtype, torch.float32)))
    centres = x[torch.randperm(n, generator=generator, device=generator.device)[:n_clusters].to(x.device)].clone()
    weights = x.new_ones(n_clusters)
    for _ in range(n_rounds):
        batch = x[torch.randperm(n, generator=generator, device=generator.device)[:BATCH].to(x.device)]
        cosines, own = _nearest_axis(batch, centres)
        sums = (centres * weights[:, None]).index_add_(0, own, batch * cosines.sign()[:, None])
        weights += torch.bincount(own, minlength=n_clusters)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, _unit(sums), centres)
    return torch.cat([_nearest_axis(block, centres)[1] for block in x.split(BATCH)])


def _nearest_axis(x: Float[Tensor, "m d"], centres: Float[Tensor, "k d"]) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """Signed cosine to, and number of, the axis with the largest |cosine|; in parts, so that no m x k matrix is large."""
    cosines, own = [], []
    for part in x.split(max(1, 2**22 // len(centres))):
        product = part @ centres.T
        best = product.abs().argmax(dim=1, keepdim=True)
        cosines.append(product.gather(1, best).flatten())
        own.append(best.flatten())
    return torch.cat(cosines), torch.cat(own)


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
