"""The sweeps over angles: compiled loops on a CPU that has numba, torch everywhere else. Both give the same counts.

separability_curve   information of the two coordinates at each angle
overlap_sweep        the largest share of points in a strip, and at which angle
"""

import importlib.util
import math
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ANGLES_AT_ONCE = 2**21


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def compiles(x: Tensor) -> bool:
    """Whether the compiled loops can work on tensors like x."""
    return x.device.type == "cpu" and _has_numba()


def separability_curve(
    points: Float[Tensor, "n 2"], angles: Float[Tensor, " angles"], *, bins: int, box: float
) -> tuple[Float[Tensor, " angles"], Int[Tensor, " angles"]]:
    """(plug-in mutual information in nats, nonempty cells - rows - columns + 1) of the coordinates of `points` turned by each angle.

    `points` and `angles` are float64. Bins are equal over [-box, box], what lies outside counts in the outermost; with box = 0 over the
    range of each turned coordinate.
    """
    if not compiles(points):
        return _separability_curve(points, angles, bins, box)
    from sae.geometry.multidimensional import loops

    information, excess = torch.empty_like(angles), torch.empty(len(angles), dtype=torch.int64)
    cosines, sines = angles.cos().numpy(), angles.sin().numpy()
    x, y = (points[:, i].contiguous().numpy() for i in (0, 1))
    loops.separability_sweep(x, y, cosines, sines, bins, float(box), information.numpy(), excess.numpy())
    return information, excess


def overlap_sweep(points: Float[Tensor, "n 2"], angles: Float[Tensor, " angles"], *, epsilon: float) -> tuple[int, int]:
    """(largest number of points with |v.f + c| < epsilon sqrt(E (v.f + c)^2) over c and v = (cos, sin) of each angle, number of the angle).

    `points` are centred and, like `angles`, float64. Angles that ascend in small steps are fastest.
    """
    if not compiles(points):
        return _overlap_sweep(points, angles, epsilon)
    from sae.geometry.multidimensional import loops

    x, y = (points[:, i].contiguous().clone().numpy() for i in (0, 1))
    # Half a turn makes N^2 / 2 swaps; as many sorts as angles are better than that above about N = 60,000.
    sweep = loops.mixture_sweep if len(points) < 80 * len(angles) else loops.sorted_mixture_sweep
    count, at = sweep(x, y, angles.cos().numpy(), angles.sin().numpy(), epsilon)
    return int(count), int(at)


def _separability_curve(
    points: Float[Tensor, "n 2"], angles: Float[Tensor, " angles"], bins: int, box: float
) -> tuple[Float[Tensor, " angles"], Int[Tensor, " angles"]]:
    information, excess = torch.empty_like(angles), torch.empty(len(angles), dtype=torch.int64, device=angles.device)
    x, y = points.T
    for a, angle in enumerate(angles):
        c, s = angle.cos(), angle.sin()
        turned = (c * x - s * y, s * x + c * y)
        numbers = []
        for u in turned:
            low, high = (-box, box) if box > 0 else (u.min(), u.max())
            scale = bins / (high - low) if high > low else 0.0
            numbers.append(((u - low) * scale).clamp(0, bins - 1).long())
        table = torch.bincount(numbers[0] * bins + numbers[1], minlength=bins * bins).reshape(bins, bins)
        sums = [torch.xlogy(counts.double(), counts).sum() for counts in (table, table.sum(0), table.sum(1))]
        information[a] = (sums[0] - sums[1] - sums[2]) / len(points) + math.log(len(points))
        excess[a] = (table > 0).sum() - (table.sum(0) > 0).sum() - (table.sum(1) > 0).sum() + 1
    return information, excess


def _overlap_sweep(points: Float[Tensor, "n 2"], angles: Float[Tensor, " angles"], epsilon: float) -> tuple[int, int]:
    best, at = 0, 0
    step = max(1, _ANGLES_AT_ONCE // len(points))
    for start in range(0, len(angles), step):
        part = angles[start : start + step]
        q = (torch.stack([part.cos(), part.sin()], 1) @ points.T).sort(dim=1).values
        half = epsilon * (q.square() + (1 - epsilon**2) * q.square().mean(1, keepdim=True)).sqrt()
        ended = torch.searchsorted((q + half).contiguous(), (q - half).contiguous(), right=True)
        overlap = (torch.arange(1, len(points) + 1, device=q.device) - ended).amax(1)
        if int(overlap.max()) > best:
            best, at = int(overlap.max()), start + int(overlap.argmax())
    return best, at
