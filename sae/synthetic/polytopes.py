"""Polytopes that features form in superposition: exact vertices, and the name of what a weight matrix has learned.

    digon 1/2 · triangle 2/3 · n-gon 2/n (n >= 3) · simplex d/(d+1) · tight square antiprism and cube 3/8        D of every vertex

Directions in orthogonal subspaces do not interfere, so a set of features falls apart into the connected pieces of the graph "not
orthogonal", and every piece is named by itself. A square is two digons, an octahedron three, a triangular bipyramid a triangle and a digon:
the tegum products of Elhage et al. 2022 (2209.10652), "The geometry of superposition". Vertices are rows, of norm 1, and sum to zero.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from sae.errors import ConfigError
from sae.synthetic.superposition import represented

DEDICATED = "dedicated"
"""A feature with a direction that no other feature touches."""
IRREGULAR = "irregular"
"""A connected piece that is none of the named polytopes."""


def simplex(dimension: int) -> Float[Tensor, "n_vertices dimension"]:
    """dimension + 1 directions with pairwise cosine -1/dimension: digon, triangle, tetrahedron, ...; D = dimension / (dimension + 1)."""
    _require("dimension", dimension, 1, "simplex")
    n = dimension + 1
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    values, vectors = torch.linalg.eigh(centred)
    return _unit(vectors[:, values > 0.5])


def polygon(n_vertices: int) -> Float[Tensor, "n_vertices 2"]:
    """n >= 3 directions at equal angles in the plane; D = 2/n."""
    _require("n_vertices", n_vertices, 3, "polygon")
    angles = torch.arange(n_vertices, dtype=torch.float64) * (2 * math.pi / n_vertices)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cube(dimension: int = 3) -> Float[Tensor, "n_vertices dimension"]:
    """The 2^dimension directions (+-1, ..., +-1) / sqrt(dimension); D = dimension / 2^dimension, a half of it being each vertex's antipode."""
    _require("dimension", dimension, 1, "cube")
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * dimension).reshape(-1, dimension)
    return signs / math.sqrt(dimension)


def square_antiprism(height_squared: float = 1 / 3) -> Float[Tensor, "8 3"]:
    """Two squares at heights +-h, turned by 45 degrees; D = 1 / (4 (1 - h^2)^2 + 8 h^4).

    3/8 at h^2 = 1/3, where it is a tight frame; 0.3664 with equal edges (h^2 = 0.2612), 0.3744 as the Thomson problem's answer (0.3141).
    """
    if not 0 < height_squared < 1:
        raise ConfigError(f"height_squared must be inside (0, 1), got {height_squared} (square_antiprism)")
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    radius, sign = math.sqrt(1 - height_squared), 1 - 2 * (torch.arange(8) % 2)
    return torch.stack([radius * angles.cos(), radius * angles.sin(), sign * math.sqrt(height_squared)], dim=1)


def tegum(*parts: Float[Tensor, "_ _"]) -> Float[Tensor, "n_vertices dimension"]:
    """The parts side by side in orthogonal subspaces: a vertex keeps the dimensionality it has in its part."""
    return torch.block_diag(*parts)


def cross_polytope(dimension: int) -> Float[Tensor, "n_vertices dimension"]:
    """`dimension` digons: square, octahedron, ...; D = 1/2."""
    _require("dimension", dimension, 1, "cross_polytope")
    return tegum(*[simplex(1)] * dimension)


def bipyramid(n_sides: int) -> Float[Tensor, "n_vertices 3"]:
    """A polygon and a digon; triangular: D = 2/3 three times and 1/2 twice."""
    return tegum(polygon(n_sides), simplex(1))


def catalogue() -> dict[str, Float[Tensor, "n_vertices dimension"]]:
    """The connected polytopes that have a name here. Square, octahedron and bipyramids are missing: they fall apart."""
    polygons = {"pentagon": 5, "hexagon": 6, "heptagon": 7, "octagon": 8}
    return {
        "digon": simplex(1),
        "triangle": simplex(2),
        "tetrahedron": simplex(3),
        "5-cell": simplex(4),
        **{name: polygon(n) for name, n in polygons.items()},
        "square antiprism": square_antiprism(),
        "cube": cube(),
    }


@dataclass(frozen=True)
class Polytope:
    """One connected piece of an arrangement of features."""

    name: str
    """"dedicated" for a single feature, a name of `catalogue()`, or "irregular"."""
    features: tuple[int, ...]
    """Its features, by column of W."""
    dimension: int
    """Dimension of the space they span, directions shorter than a tenth of the longest not counted."""
    deviation: float
    """Largest difference between a cosine here and its counterpart in the closest polytope of as many vertices and dimensions; 0 for a
    single feature, inf where there is none."""


def arrangement(W: Float[Tensor, "d_hidden n_features"], *, tolerance: float = 0.15) -> tuple[Polytope, ...]:
    """The polytopes that the represented features of W form, by their first feature.

    Two features belong together when a chain of |cosines| above `tolerance` joins them. A piece has a name when its cosines are within
    `tolerance` of the polytope's: every vertex's sorted cosines to the others are compared, under the best pairing of vertices. Lengths play
    no part, except that features with |W_i| < 0.2 are left out. Raises ConfigError for a tolerance outside (0, 0.5).
    """
    if not 0 < tolerance < 0.5:
        raise ConfigError(f"tolerance must be inside (0, 0.5), got {tolerance} (arrangement)")
    kept = represented(W).nonzero().flatten()
    unit = _unit(W[:, kept].T.double())
    cosines = unit @ unit.T
    n_pieces, piece = connected_components((cosines.abs() > tolerance).numpy(), directed=False)
    pieces = [np.flatnonzero(piece == i) for i in range(n_pieces)]
    named = catalogue()
    found = []
    for members in pieces:
        dimension = int((torch.linalg.svdvals(unit[members]) > 0.1 * torch.linalg.matrix_norm(unit[members], 2)).sum())
        name, deviation = _closest(cosines[members][:, members], dimension, named, tolerance)
        found.append(Polytope(name, tuple(kept[members].tolist()), dimension, deviation))
    return tuple(sorted(found, key=lambda polytope: polytope.features))


def describe(polytopes: Sequence[Polytope]) -> str:
    """The arrangement in words, largest pieces first: "pentagon", "2 digons + 1 dedicated", "irregular (7 in 3)", "nothing"."""
    names = Counter()
    for polytope in sorted(polytopes, key=lambda p: (-len(p.features), p.name)):
        size = f" ({len(polytope.features)} in {polytope.dimension})" if polytope.name == IRREGULAR else ""
        names[polytope.name, size] += 1
    plural = {"dedicated": "dedicated", "irregular": "irregular"}
    parts = [
        f"{name}{size}" if count == 1 and name != DEDICATED else f"{count} {plural.get(name, name + 's')}{size}"
        for (name, size), count in names.items()
    ]
    return " + ".join(parts) or "nothing"


def _closest(
    cosines: Float[Tensor, "n n"], dimension: int, named: dict[str, Float[Tensor, "n_vertices dimension"]], tolerance: float
) -> tuple[str, float]:
    n = len(cosines)
    if n == 1:
        return DEDICATED, 0.0
    distances = {name: _deviation(cosines, vertices @ vertices.T) for name, vertices in named.items() if vertices.shape == (n, dimension)}
    if not distances:
        return IRREGULAR, math.inf
    name = min(distances, key=lambda candidate: distances[candidate])
    return (name if distances[name] <= tolerance else IRREGULAR), distances[name]


def _deviation(cosines: Float[Tensor, "n n"], model: Float[Tensor, "n n"]) -> float:
    """Largest difference between the rows' sorted entries, rows paired so that the sum of their largest differences is least."""
    rows, columns = cosines.sort(dim=1).values, model.sort(dim=1).values
    differences = (rows[:, None] - columns[None]).abs().amax(2).numpy()
    return float(differences[linear_sum_assignment(differences)].max())


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _require(name: str, value: int, least: int, where: str) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value} ({where})")
