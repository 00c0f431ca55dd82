"""Persistent homology: closed forms of polygons, a plain boundary-matrix reduction, ripser where it is, invariances, nulls; cones and orders."""

import itertools
import math

import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.topology import (
    compare_axis_share,
    compare_loops,
    compare_order,
    cone_of,
    farthest_points,
    loop_statistics,
    order_resultant,
    persistence,
    persistence_of_distances,
    polygon_loop,
)
from sae.geometry.topology.circles import class_orders
from sae.geometry.topology.persistence import _deaths, _lune_vertices


def generator(seed):
    return torch.Generator().manual_seed(seed)


def cloud(n, d, seed):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def polygon(n, radius=1.0):
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def noisy_circle(n, sd, seed):
    angles = 2 * math.pi * torch.rand(n, generator=generator(seed), dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1) + sd * cloud(n, 2, seed + 1)


def by_boundary_matrix(points):
    """(deaths of pieces, loops): all simplices in the order of the filtration, columns of the boundary added modulo 2 from left to right."""
    n = len(points)
    distance = torch.cdist(points, points).tolist()
    simplices = [(0.0, (i,)) for i in range(n)]
    for size in (2, 3):
        for corners in itertools.combinations(range(n), size):
            simplices.append((max(distance[i][j] for i, j in itertools.combinations(corners, 2)), corners))
    simplices.sort(key=lambda entry: (entry[0], len(entry[1]), entry[1]))
    number = {corners: i for i, (_, corners) in enumerate(simplices)}
    pivots, pairs = {}, []
    for i, (_, corners) in enumerate(simplices):
        column = {number[corners[:k] + corners[k + 1 :]] for k in range(len(corners))} if len(corners) > 1 else set()
        while column and max(column) in pivots:
            column ^= pivots[max(column)]
        if column:
            pivots[max(column)] = column
            pairs.append((max(column), i))
    pieces = [simplices[death][0] for birth, death in pairs if len(simplices[birth][1]) == 1]
    loops = [(simplices[birth][0], simplices[death][0]) for birth, death in pairs if len(simplices[birth][1]) == 2]
    return sorted(pieces), sorted((b, d) for b, d in loops if d > b + 1e-12)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 12, 13, 50, 51, 60])
def test_a_polygon_has_one_loop_from_its_side_to_the_chord_of_a_third_of_it(n):
    found = persistence(polygon(n, radius=2.5))
    birth, death = polygon_loop(n, radius=2.5)
    assert (birth, death) == pytest.approx((5 * math.sin(math.pi / n), 5 * math.sin(math.pi * math.ceil(n / 3) / n)))
    torch.testing.assert_close(found.loops, torch.tensor([[birth, death]], dtype=torch.float64))
    torch.testing.assert_close(found.pieces, torch.full((n - 1,), birth, dtype=torch.float64))


def test_polygons_of_the_reference_have_its_numbers():
    for n, birth, death in ((7, 0.868, 1.9499), (12, 0.5176, 1.73205), (50, 0.1256, 1.7526), (51, 0.1231, 1.73205)):
        assert persistence(polygon(n)).loops[0].tolist() == pytest.approx([birth, death], abs=5e-4)
    assert loop_statistics(polygon(7)).relative == pytest.approx(1 - 0.8678 / 1.9499, abs=1e-3)


@pytest.mark.parametrize(("n", "d", "seed"), [(4, 2, 0), (9, 2, 1), (14, 2, 2), (14, 3, 3), (12, 8, 4), (3, 5, 5), (2, 1, 6)])
def test_diagrams_are_those_of_the_boundary_matrix(n, d, seed):
    points = cloud(n, d, seed)
    pieces, loops = by_boundary_matrix(points)
    found = persistence(points)
    assert sorted(found.pieces.tolist()) == pytest.approx(pieces)
    assert [tuple(row) for row in sorted(found.loops.tolist())] == [pytest.approx(each) for each in loops]
    assert (found.lifetimes().diff() <= 0).all()


def test_equal_distances_do_not_confuse_the_reduction():
    square = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()  # 9 squares, each a loop from 1 to sqrt 2
    found = persistence(square)
    torch.testing.assert_close(found.loops, torch.tensor([[1.0, 2**0.5]] * 9, dtype=torch.float64))
    again = torch.cat([square, square[:5]])
    torch.testing.assert_close(persistence(again).loops, found.loops)
    assert (persistence(again).pieces == 0).sum() == 5


def test_diagrams_are_those_of_ripser():
    ripser = pytest.importorskip("ripser").ripser
    for points in (cloud(120, 3, 7), noisy_circle(150, 0.1, 8), cloud(60, 40, 9)):
        pieces, loops = (torch.from_numpy(each) for each in ripser(points.numpy())["dgms"])
        found = persistence(points)
        torch.testing.assert_close(found.pieces.sort().values, pieces[:-1, 1].double().sort().values, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.loops.sort(dim=0).values, loops.double().sort(dim=0).values, atol=1e-5, rtol=0)


def test_torch_gives_what_the_compiled_loops_give(monkeypatch):
    for points in (cloud(70, 3, 10), noisy_circle(80, 0.05, 11), torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))):
        compiled = persistence(points)
        for function in (_deaths, _lune_vertices):
            monkeypatch.setitem(function.__globals__, "_has_numba", lambda: False)
        assert torch.equal(compiled.loops, persistence(points).loops)
        monkeypatch.undo()


def test_distances_and_points_give_the_same():
    points = cloud(30, 4, 12)
    found = persistence_of_distances(torch.cdist(points, points))
    torch.testing.assert_close(found.loops, persistence(points).loops)


def test_one_long_loop_stands_out_of_a_noisy_circle_and_none_of_a_gaussian():
    found = loop_statistics(noisy_circle(300, 0.1, 13))
    lifetimes = persistence(noisy_circle(300, 0.1, 13)).lifetimes()
    assert lifetimes[0].item() == pytest.approx(1.25, abs=0.15)
    assert found.ratio > 10
    assert found.gap == pytest.approx(1 - 1 / found.ratio)
    gaussian = persistence(cloud(300, 2, 14)).lifetimes()
    assert gaussian[0] < 0.4
    assert loop_statistics(cloud(300, 2, 14)).ratio < 2.5


def test_a_planted_circle_in_many_dimensions_is_above_gaussians_of_its_covariance():
    ring = torch.cat([noisy_circle(120, 0.05, 15) * torch.tensor([1.0, 0.8]), 0.1 * cloud(120, 6, 16)], 1)
    found = compare_loops(ring, n_null=19, generator=generator(17))
    assert found.lifetime.p_greater == 1 / 20
    assert found.gap.p_greater == 1 / 20
    assert found.lifetime.value > found.lifetime.null_mean + 5 * found.lifetime.null_sd


def test_exchanged_radii_keep_a_ring_about_the_mean_and_break_one_that_is_not():
    centred = compare_loops(polygon(60) + 0.02 * cloud(60, 2, 33), null="radii", n_null=19, generator=generator(34))
    assert centred.lifetime.value == pytest.approx(centred.lifetime.null_mean, abs=0.1)
    inside = 0.05 * cloud(120, 2, 35)
    inside[:, 0] -= 1  # a knot of points on a ring moves the mean there, where radii are of all sizes
    off_centre = compare_loops(torch.cat([polygon(60), inside]), null="radii", n_null=19, generator=generator(34))
    assert off_centre.lifetime.p_greater == 1 / 20


def test_p_values_of_loops_are_uniform_for_gaussians():
    def p(seed):
        return compare_loops(cloud(16, 2, seed) * torch.tensor([1.0, 0.7]), n_null=9, generator=generator(1000 + seed)).lifetime.p_greater

    check_calibrated(p, n_draws=100)


def test_farthest_points_cover_the_cloud():
    points = cloud(300, 3, 18)
    found = farthest_points(points, n_points=40)
    distances = torch.cdist(points, points[found.row_ids])
    assert found.covering_radius == pytest.approx(distances.amin(1).max().item())
    between = torch.pdist(points[found.row_ids]).min().item()
    assert between >= found.covering_radius - 1e-12  # each was farther from the others than what is left
    assert len(found.row_ids.unique()) == 40
    assert farthest_points(points, n_points=300).covering_radius == 0
    # The subsample's diagram is within twice the covering radius of the cloud's.
    ring = noisy_circle(400, 0.05, 19)
    part = farthest_points(ring, n_points=100)
    assert persistence(ring).loops[0].sub(persistence(ring[part.row_ids]).loops[0]).abs().max() <= 2 * part.covering_radius


MEASURES = [
    Measure(
        "longest loops",
        lambda x: persistence(x).lifetimes()[:5],
        rotation=True,
        scale=False,
        translation=True,
        linear=False,
    ),
    Measure("lifetime of a loop", lambda x: loop_statistics(x).lifetime, rotation=True, scale=True, translation=True, linear=False),
    Measure(
        "gap of a loop", lambda x: loop_statistics(x, max_points=40).gap, rotation=True, scale=True, translation=True, linear=False,
        single_tolerance=1e-3,
    ),
    Measure("cone", lambda x: cone_of(x).axis_share, rotation=True, scale=True, translation=False, linear=False),
    Measure("share of a cone's plane", lambda x: cone_of(x).plane_share, rotation=True, scale=True, translation=False, linear=False),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_measures_of_loops_have_the_properties_of_their_definitions(measure):
    check(measure)


def cone(n, d, axis_share, seed):
    m, u, v = torch.linalg.qr(cloud(d, 3, seed)).Q.T
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64)[:, None] / n
    return axis_share**0.5 * m + (1 - axis_share) ** 0.5 * (angles.cos() * u + angles.sin() * v)


@pytest.mark.parametrize("axis_share", [0.0, 0.3, 0.671, 0.95])
def test_a_planted_cone_is_found(axis_share):
    atoms = cone(9, 40, axis_share, 20)
    found = cone_of(atoms * torch.linspace(0.5, 3, 9).double()[:, None])
    assert found.axis_share == pytest.approx(axis_share, abs=1e-12)
    assert found.mean_cosine == pytest.approx(axis_share * (1 + 1 / 8) - 1 / 8)
    assert (found.plane_share, found.balance) == (pytest.approx(1), pytest.approx(1))
    assert order_resultant(found.angles) == pytest.approx(1)
    cosines = atoms @ atoms.T
    assert found.mean_cosine == pytest.approx(((cosines.sum() - 9) / 72).item())
    if axis_share:
        torch.testing.assert_close(found.axis * axis_share**0.5, atoms.mean(0))


def test_mean_cosine_of_the_shipped_days_makes_a_cone_of_the_reference():
    assert cone_of(cone(9, 12, 0.671, 21)).mean_cosine == pytest.approx(0.63, abs=1e-3)
    atoms = cone(9, 12, 0.671, 21)
    assert (atoms[0] @ atoms[1]).item() == pytest.approx(0.923, abs=1e-3)


def test_random_directions_share_one_nth_and_circles_less():
    atoms = cloud(20, 30, 22)
    null = compare_axis_share(atoms, n_null=400, generator=generator(23))
    assert null.null_mean == pytest.approx(1 / 20, abs=0.003)
    assert compare_axis_share(polygon(20) @ cloud(2, 30, 24), n_null=99, generator=generator(25)).p_less == 1 / 100
    assert compare_axis_share(cone(20, 30, 0.5, 26), n_null=99, generator=generator(25)).p_greater == 1 / 100


def test_p_values_of_cones_and_orders_are_uniform_where_there_is_neither():
    check_calibrated(lambda seed: compare_axis_share(cloud(6, 5, seed), n_null=19, generator=generator(seed + 500)).p_greater)
    check_calibrated(lambda seed: compare_order(cloud(9, 4, seed), n_null=19, generator=generator(seed + 500)).p_greater)


def test_order_around_a_circle_is_one_for_every_start_and_sense_and_is_that_of_all_shifts():
    angles = 2 * math.pi * torch.arange(12, dtype=torch.float64) / 12
    for turned in (angles + 1.234, -angles + 0.3, angles + 7 * math.pi):
        assert order_resultant(turned) == pytest.approx(1)
    random = 2 * math.pi * torch.rand(8, generator=generator(27), dtype=torch.float64)
    targets = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    shifts = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)[:, None]
    best = max((random - sense * targets - shifts).cos().mean(1).max().item() for sense in (1, -1))
    assert order_resultant(random) == pytest.approx(best, abs=1e-6)


def test_points_in_order_are_told_from_points_out_of_order():
    ring = polygon(10) @ cloud(2, 20, 28) + 0.05 * cloud(10, 20, 29)
    assert compare_order(ring, n_null=199, generator=generator(30)).p_greater == 1 / 200
    shuffled = ring[torch.tensor([3, 8, 0, 5, 1, 9, 6, 2, 7, 4])]
    assert compare_order(shuffled, n_null=199, generator=generator(30)).p_greater > 0.1


def test_degenerate_clouds_give_their_limits_or_a_reason():
    same = torch.ones(6, 3)
    assert persistence(same).pieces.tolist() == [0.0] * 5
    assert persistence(same).loops.shape == (0, 2)
    line = torch.arange(8.0)[:, None]
    assert persistence(line).loops.shape == (0, 2)
    assert (loop_statistics(line).lifetime, loop_statistics(line).ratio, loop_statistics(line).gap) == (0, 0, 0)
    assert loop_statistics(polygon(6)).ratio == math.inf
    equal = cone_of(torch.ones(5, 4))
    assert (equal.axis_share, equal.plane_share, equal.balance) == (pytest.approx(1), 0, 0)
    opposite = cone_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert (opposite.mean_cosine, opposite.axis.tolist()) == (-1, [0.0, 0.0])
    with pytest.raises(ConfigError, match="coincide"):
        loop_statistics(same)
    with pytest.raises(ConfigError, match="line"):
        compare_order(torch.arange(6.0)[:, None] * torch.ones(6, 3), n_null=9, generator=generator(0))
    with pytest.raises(ConfigError, match="farthest_points"):
        persistence(torch.zeros(501, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: persistence_of_distances(x), "symmetric"),
        (lambda x: persistence_of_distances(x[:, :3]), "square"),
        (lambda x: persistence_of_distances(torch.ones(4, 4)), "diagonal"),
        (lambda x: farthest_points(x, n_points=7), "n_points"),
        (lambda x: loop_statistics(x, max_points=501), "max_points"),
        (lambda x: compare_loops(x, null="uniform", n_null=5, generator=generator(0)), "null must be|Literal"),
        (lambda x: compare_loops(x, n_null=1, generator=generator(0)), "n_null"),
        (lambda x: polygon_loop(2), "n must be"),
        (lambda x: cone_of(x * 0), "zero row"),
        (lambda x: order_resultant(torch.zeros(2)), "at least 3"),
        (lambda x: compare_order(x[:3], n_null=5, generator=generator(0)), "at least 4"),
        (lambda x: class_orders(5, n_null=1, generator=generator(0)), "n_null"),
        (lambda x: compare_axis_share(x, n_null=1, generator=generator(0)), "n_null"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(Exception, match=message):
        call(cloud(6, 6, 31).abs())
