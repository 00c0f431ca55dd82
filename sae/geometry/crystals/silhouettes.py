"""Silhouettes of labelled points.

    s_i = (b_i - a_i) / max(a_i, b_i),    a_i = mean distance to the others of its label, b_i = least mean distance to another label

Rousseeuw 1987, J. Comput. Appl. Math. 20. A point alone with its label has s = 0.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import BLOCK_ELEMENTS, require_points, row_blocks


def silhouettes(points: Float[Tensor, "n d"], labels: Int[Tensor, " n"], *, block_elements: int = BLOCK_ELEMENTS) -> Float[Tensor, " n"]:
    """The silhouette of every point, Euclidean, float64, in [-1, 1]. Time n^2 d; memory a few times `block_elements`.

    Raises ConfigError for NaN or Inf, as many labels as points must be, and fewer than 2 labels.
    """
    require_points(points, minimum=2, argument="points", where="silhouettes")
    names, own = torch.unique(labels, return_inverse=True)
    if len(labels) != len(points) or len(names) < 2:
        raise ConfigError(f"labels must be {len(points)} of at least 2 kinds, got {len(labels)} of {len(names)} (silhouettes)")
    x = points.detach().double()
    member = torch.nn.functional.one_hot(own, len(names)).double()
    sizes = member.sum(dim=0)
    found = x.new_empty(len(x))
    for block in row_blocks(len(x), len(x), block_elements, where="silhouettes"):
        mean_to = torch.cdist(x[block], x, compute_mode="donot_use_mm_for_euclid_dist") @ member
        mine = own[block, None]
        inside = mean_to.gather(1, mine).flatten() / (sizes[own[block]] - 1).clamp(min=1)
        outside = (mean_to / sizes).scatter(1, mine, torch.inf).amin(dim=1)
        largest = torch.maximum(inside, outside)
        value = (outside - inside) / largest.where(largest > 0, 1.0)
        found[block] = value.where(sizes[own[block]] > 1, 0.0)
    return found
