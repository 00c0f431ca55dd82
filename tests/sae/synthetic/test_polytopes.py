"""Polytopes: exact dimensionalities of exact vertices, and names that survive rotation, order, lengths and noise."""

import math

import pytest
import torch

from sae.errors import ConfigError
from sae.synthetic.polytopes import (
    arrangement,
    bipyramid,
    catalogue,
    cross_polytope,
    cube,
    describe,
    polygon,
    simplex,
    square_antiprism,
    tegum,
)
from sae.synthetic.superposition import feature_dimensionality

EXACT = [
    ("digon", simplex(1), [1 / 2] * 2),
    ("triangle", simplex(2), [2 / 3] * 3),
    ("triangle as a polygon", polygon(3), [2 / 3] * 3),
    ("square", polygon(4), [1 / 2] * 4),
    ("pentagon", polygon(5), [2 / 5] * 5),
    ("hexagon", polygon(6), [1 / 3] * 6),
    ("heptagon", polygon(7), [2 / 7] * 7),
    ("tetrahedron", simplex(3), [3 / 4] * 4),
    ("5-cell", simplex(4), [4 / 5] * 5),
    ("octahedron", cross_polytope(3), [1 / 2] * 6),
    ("cube", cube(), [3 / 8] * 8),
    ("square as a cube", cube(2), [1 / 2] * 4),
    ("triangular bipyramid", bipyramid(3), [2 / 3] * 3 + [1 / 2] * 2),
    ("pentagonal bipyramid", bipyramid(5), [2 / 5] * 5 + [1 / 2] * 2),
    ("tight square antiprism", square_antiprism(), [3 / 8] * 8),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "vertices", "expected"), EXACT, ids=[name for name, _, _ in EXACT])
def test_exact_polytopes_have_their_exact_dimensionalities_and_fill_their_space(name, vertices, expected):
    D = feature_dimensionality(vertices.T)
    assert D.tolist() == pytest.approx(expected, abs=1e-12)
    assert float(D.sum()) == pytest.approx(vertices.shape[1], abs=1e-12) == int(torch.linalg.matrix_rank(vertices))
    assert torch.allclose(vertices.norm(dim=1), torch.ones(len(vertices), dtype=torch.float64))
    assert torch.allclose(vertices.sum(0), torch.zeros(vertices.shape[1], dtype=torch.float64), atol=1e-12)


def test_simplices_polygons_and_cubes_have_the_cosines_of_their_definition():
    gram = simplex(4) @ simplex(4).T
    assert torch.allclose(gram[~torch.eye(5, dtype=torch.bool)], torch.tensor(-1 / 4, dtype=torch.float64))
    assert float((polygon(7) @ polygon(7).T)[2, 3]) == pytest.approx(math.cos(2 * math.pi / 7))
    assert sorted({round(float(c), 9) for c in (cube() @ cube().T).flatten()}) == pytest.approx([-1, -1 / 3, 1 / 3, 1])


@pytest.mark.parametrize(("height_squared", "stated"), [(1 / 3, 0.375), (0.2612, 0.3664), (0.3141, 0.3744), (0.6, None)])
def test_the_antiprisms_dimensionality_follows_its_height(height_squared, stated):
    D = feature_dimensionality(square_antiprism(height_squared).T)
    formula = 1 / (4 * (1 - height_squared) ** 2 + 8 * height_squared**2)
    assert D.tolist() == pytest.approx([formula] * 8)
    assert formula <= 0.375 + 1e-12
    assert stated is None or formula == pytest.approx(stated, abs=1e-4)


def test_the_equal_edge_antiprism_has_equal_edges_at_the_stated_height():
    vertices = square_antiprism(0.2612)
    across, around = (vertices[0] - vertices[1]).norm(), (vertices[0] - vertices[2]).norm()
    assert float(across) == pytest.approx(float(around), abs=1e-3)


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_every_named_polytope_is_found_again_turned_shuffled_stretched_and_noisy(name):
    vertices = catalogue()[name]
    n, dimension = vertices.shape
    generate = generator(n + 10 * dimension)
    rotation = torch.linalg.qr(torch.randn(dimension + 2, dimension + 2, generator=generate, dtype=torch.float64)).Q[:, :dimension]
    order = torch.randperm(n, generator=generate)
    lengths = 0.7 + 0.6 * torch.rand(n, generator=generate, dtype=torch.float64)
    noise = 0.02 * torch.randn(dimension + 2, n, generator=generate, dtype=torch.float64)
    W = torch.zeros(dimension + 2, n + 3, dtype=torch.float64)
    W[:, 2 : n + 2] = rotation @ vertices[order].T * lengths + noise
    W[:, -1] = 0.05  # an ignored feature
    (found,) = arrangement(W)
    assert (found.name, found.dimension, found.features) == (name, dimension, tuple(range(2, n + 2)))
    assert 0 < found.deviation < 0.15


def test_an_arrangement_falls_apart_into_its_orthogonal_pieces():
    parts = tegum(polygon(5), simplex(1), torch.ones(1, 1, dtype=torch.float64), simplex(1))
    order = [9, 0, 5, 1, 7, 2, 6, 3, 8, 4]  # column i is vertex order[i]
    pieces = arrangement(parts[order].T)
    assert [(piece.name, piece.features) for piece in pieces] == [
        ("digon", (0, 8)),
        ("pentagon", (1, 3, 5, 7, 9)),
        ("digon", (2, 6)),
        ("dedicated", (4,)),
    ]
    assert sum(piece.dimension for piece in pieces) == 5
    assert describe(pieces) == "pentagon + 2 digons + 1 dedicated"


@pytest.mark.parametrize(
    ("vertices", "words"),
    [(polygon(4), "2 digons"), (cross_polytope(3), "3 digons"), (bipyramid(3), "triangle + digon"), (torch.eye(3).double(), "3 dedicated")],
)
def test_products_are_described_by_their_factors(vertices, words):
    assert describe(arrangement(vertices.T)) == words


def test_features_that_lie_nowhere_special_are_called_irregular():
    random = torch.randn(3, 7, generator=generator(0), dtype=torch.float64)
    assert describe(arrangement(random)) == "irregular (7 in 3)"
    bent = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.2]]).double()  # three in the plane, no triangle
    (piece,) = arrangement(bent.T)
    assert piece.name == "irregular" and piece.deviation > 0.15
    lifted = torch.cat([polygon(5), torch.full((5, 1), 0.25, dtype=torch.float64)], dim=1)  # cosines near a pentagon's, but not in a plane
    assert describe(arrangement(lifted.T)) == "irregular (5 in 3)"
    same = torch.tensor([[1.0], [0.9]]).double()  # two features in one direction are no digon
    assert describe(arrangement(same.T)) == "irregular (2 in 1)"


def test_nothing_represented_is_nothing():
    assert arrangement(torch.full((2, 4), 0.1)) == ()
    assert describe(()) == "nothing"


def test_arguments_out_of_range_are_refused_by_name():
    for call, name in (
        (lambda: simplex(0), "dimension"),
        (lambda: polygon(2), "n_vertices"),
        (lambda: cube(0), "dimension"),
        (lambda: cross_polytope(0), "dimension"),
        (lambda: square_antiprism(1.0), "height_squared"),
        (lambda: arrangement(torch.eye(2), tolerance=0.5), "tolerance"),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            call()
