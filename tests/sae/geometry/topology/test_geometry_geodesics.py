"""Geodesics on circles, grids and rolls, against a Floyd-Warshall written out and scikit-learn's Isomap."""

import math

import pytest
import torch
from universal import Measure, check

from sae.errors import ConfigError
from sae.geometry.representations import rdm, square_form, upper_triangle
from sae.geometry.topology import cloud_geodesics, geodesic_distances, geodesic_rdm, neighbour_graph, rank_transform


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def circle(n):
    angles = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def floyd_warshall(matrix, kept):
    lengths = torch.where(kept, matrix, torch.inf)
    lengths.fill_diagonal_(0)
    for middle in range(len(lengths)):
        lengths = torch.minimum(lengths, lengths[:, middle, None] + lengths[middle])
    return upper_triangle(lengths)


def test_antipodes_of_sixty_points_on_a_circle_are_sixty_half_chords_apart():
    values = rdm(circle(60), distance="euclidean")
    chord = 2 * math.sin(math.pi / 60)
    found = geodesic_distances(values, most=chord * (1 + 1e-9))
    assert float(square_form(found.values)[0, 30]) == pytest.approx(60 * math.sin(math.pi / 60), abs=1e-9)
    assert float(square_form(found.values)[0, 30]) == pytest.approx(3.14016, abs=1e-5)
    assert float(square_form(values)[0, 30]) == pytest.approx(2)
    assert found.n_components == 1 and not found.disconnected.any()
    assert torch.allclose(cloud_geodesics(circle(60), k=2).values, found.values)


@pytest.mark.parametrize("rule", [{"k": 4}, {"quantile": 0.2}, {"most": 1.2}])
def test_paths_are_those_of_floyd_and_warshall(rule):
    values = rdm(normal(40, 3, 0), distance="euclidean")
    matrix = square_form(values)
    if "k" in rule:
        order = (matrix + torch.diag(torch.full((40,), torch.inf, dtype=torch.float64))).argsort(dim=1)[:, :4]
        kept = torch.zeros(40, 40, dtype=torch.bool).scatter_(1, order, True)
        kept = kept | kept.T
    else:
        most = rule.get("most", float(values.sort().values[int(0.2 * len(values)) - 1]))
        kept = (matrix <= most) & ~torch.eye(40, dtype=torch.bool)
    slow = floyd_warshall(matrix, kept)
    found = geodesic_distances(values, **rule)
    assert torch.equal(found.disconnected, slow.isinf())
    assert torch.allclose(found.values[~found.disconnected], slow[~slow.isinf()], atol=1e-10)
    assert torch.allclose(found.values[found.disconnected], slow[~slow.isinf()].max())


def test_a_roll_is_unrolled():
    generator = torch.Generator().manual_seed(2)
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(500, generator=generator, dtype=torch.float64))
    height = 5 * torch.rand(500, generator=generator, dtype=torch.float64)
    roll = torch.stack([angle * angle.cos(), height, angle * angle.sin()], dim=1)
    arc = 0.5 * (angle * (1 + angle**2).sqrt() + torch.asinh(angle))  # length along the spiral
    flat = rdm(torch.stack([arc, height], dim=1), distance="euclidean")
    found = cloud_geodesics(roll, k=8)
    assert torch.corrcoef(torch.stack([found.values, flat]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([rdm(roll, distance="euclidean"), flat]))[0, 1] < 0.7


def test_the_closest_pair_is_an_edge_of_length_zero_not_a_missing_one():
    values = rdm(normal(25, 3, 3), distance="euclidean")
    found = geodesic_rdm(values, quantile=0.3)
    closest = int(values.argmin())
    assert float(found.values[closest]) == 0
    ranks = rank_transform(values)
    matrix = square_form(ranks)
    most = float(ranks.sort().values[math.ceil(0.3 * len(ranks)) - 1])
    slow = floyd_warshall(matrix, (matrix <= most) & ~torch.eye(25, dtype=torch.bool))
    slow = torch.where(slow.isinf(), slow[~slow.isinf()].max(), slow)
    # Sums of the same edges in another order differ in their last digit: ranks of what should be ties may differ, lengths do not.
    lengths = geodesic_distances(ranks, quantile=0.3).values
    assert torch.allclose(lengths, slow, atol=1e-12)
    assert torch.equal(found.values, rank_transform(lengths))


def test_separate_clusters_are_marked_and_get_the_largest_length():
    x = torch.cat([normal(12, 2, 4), normal(9, 2, 5) + 100])
    found = cloud_geodesics(x, k=4)
    labels = torch.tensor([0] * 12 + [1] * 9)
    across = upper_triangle(labels[:, None] != labels)
    assert found.n_components == 2 and torch.equal(found.disconnected, across)
    assert (found.values[across] == found.values[~across].max()).all()


def test_equal_points_are_joined_at_distance_zero():
    x = normal(15, 2, 6)
    x[4] = x[9]
    found = cloud_geodesics(x, k=3)
    assert float(square_form(found.values)[4, 9]) == pytest.approx(0, abs=1e-300)
    assert neighbour_graph(x, k=3)[4, 9] > 0


def test_the_neighbour_graph_is_symmetric_with_the_lengths_of_its_edges():
    x = normal(50, 4, 7)
    graph = neighbour_graph(x, k=5)
    dense = torch.from_numpy(graph.toarray())
    assert torch.equal(dense, dense.T) and ((dense > 0).sum(dim=1) >= 5).all()
    distances = torch.cdist(x, x)
    assert torch.allclose(dense[dense > 0], distances[dense > 0], atol=1e-9)
    assert graph.nnz <= 2 * 50 * 5


MEASURES = [
    Measure("geodesic distances", lambda x: cloud_geodesics(x, k=6).values.mean(), rotation=True, scale=False, translation=True,
            linear=False),
    Measure("geodesic RDM", lambda x: geodesic_rdm(rdm(x, distance="euclidean"), k=8).values.square().mean(), rotation=True, scale=True,
            translation=True, linear=None, tolerance=1e-4, single_tolerance=2e-3),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_geodesics_have_the_properties_of_their_definition(measure):
    check(measure)


def test_bad_input_is_refused_with_a_reason():
    values = rdm(normal(10, 2, 8), distance="euclidean")
    for rule in ({}, {"k": 3, "quantile": 0.1}):
        with pytest.raises(ConfigError, match="exactly one"):
            geodesic_distances(values, **rule)
        with pytest.raises(ConfigError, match="exactly one"):
            geodesic_rdm(values, **rule)
    with pytest.raises(ConfigError, match=r"k must be in 1\.\.9"):
        geodesic_distances(values, k=10)
    with pytest.raises(ConfigError, match="quantile must be in"):
        geodesic_distances(values, quantile=0.0)
    with pytest.raises(ConfigError, match="must leave an edge"):
        geodesic_distances(values, most=1e-9)
    with pytest.raises(ConfigError, match="finite dissimilarities >= 0"):
        geodesic_distances(-values, k=3)
