"""What parallel differences chance gives.

cos^2 ~ Beta(1/2, (D - 1)/2)     two independent uniform directions of R^D (a coordinate of a uniform point on the sphere)
D = 1 / E[(u.u')^2]              the participation ratio of E[u u^T]: uniform directions of R^D give D
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError


def effective_dimension(directions: Float[Tensor, "n d"]) -> float:
    """D = 1 / mean (u_i.u_j)^2 over pairs i != j of unit rows, from the d x d second moment; infinite where all pairs are orthogonal.

    Raises ConfigError for fewer than 2 rows.
    """
    n, d = directions.shape
    if n < 2:
        raise ConfigError(f"directions must be at least 2, got {n} (effective_dimension)")
    moment = directions.new_zeros(d, d, dtype=torch.float64)
    own = 0.0
    for block in directions.split(16384):
        moment += (block.T @ block).double()
        own += block.double().square().sum(dim=1).square().sum().item()
    return n * (n - 1) / max(moment.square().sum().item() - own, 1e-300)


def cosine_p_value(cosines: Float[Tensor, " n"], dimension: float) -> Float[Tensor, " n"]:
    """P(|cos| >= |c|) of two independent uniform directions in `dimension` (a real number > 1) dimensions; float64.

    Raises ConfigError for a dimension <= 1 and cosines outside [-1, 1].
    """
    from scipy import special

    c = cosines.detach().double().cpu()
    if not dimension > 1 or not (c.abs() <= 1).all():
        raise ConfigError(f"dimension must exceed 1 and cosines lie in -1..1, got {dimension} and {c[:4].tolist()} (cosine_p_value)")
    # 1 - c^2 is Beta((D - 1)/2, 1/2): the lower tail keeps its digits where c is near 1.
    p = special.betainc((dimension - 1) / 2, 0.5, ((1 - c.abs()) * (1 + c.abs())).numpy())
    return torch.from_numpy(p).to(cosines.device)
