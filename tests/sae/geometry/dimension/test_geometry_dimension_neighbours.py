"""The search for neighbours against all distances in float64, on clouds that its error bound finds easy, hard and too hard."""

import importlib.util
import math

import pytest
import torch

from sae.errors import ConfigError
from sae.geometry.dimension import distinct_rows, nearest_neighbours
from sae.geometry.dimension.intervals import log_distances, log_distances_within, random_part


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=seeded(seed), dtype=dtype)


def brute(points, k):
    """Distances and ids of the k nearest by all differences in float64; of equal distances the lower row number first."""
    points = points.double()
    every = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    values, ids = every.sort(dim=1, stable=True)
    return values[:, :k], ids[:, :k]


def outlier(n, d):
    points = gaussian(n, d)
    points[3] = 1e4
    return points


def tight_pairs(n, d):
    """Points in pairs 10^-6 apart at distances of order 1: float32 cannot tell the partner's distance from 0."""
    return gaussian(n // 2, d).repeat_interleave(2, dim=0) + 1e-6 * gaussian(n, d, seed=1)


CLOUDS = {
    "isotropic": gaussian(1300, 20),
    "anisotropic in float32, far from 0": gaussian(1100, 60, dtype=torch.float32) * torch.linspace(0.1, 3, 60) + 7,
    "low rank": gaussian(900, 3) @ gaussian(3, 40, seed=1),
    "one far outlier": outlier(700, 10),
    "tight pairs": tight_pairs(800, 6),
    "two tight clusters": torch.cat([1e-5 * gaussian(400, 4), 1 + 1e-5 * gaussian(400, 4, seed=1)]),
    "few points": gaussian(60, 5),
    "one dimension": gaussian(600, 1),
    "huge": gaussian(600, 5) * 1e150,
    "tiny": gaussian(600, 5) * 1e-150,
}


@pytest.mark.parametrize("k", [1, 24, 128])
@pytest.mark.parametrize("name", CLOUDS)
def test_neighbours_are_those_of_all_distances(name, k):
    points = CLOUDS[name]
    found = nearest_neighbours(points, n_neighbours=k)
    distances, ids = brute(points, min(k, len(points) - 1))
    assert torch.allclose(found.distances, distances, rtol=1e-9, atol=0)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.row_ids, torch.arange(len(points)))
    assert found.n_duplicates == 0


def test_equal_distances_are_taken_in_the_order_of_the_rows():
    grid = torch.cartesian_prod(*[torch.arange(9.0)] * 3)
    found = nearest_neighbours(grid, n_neighbours=13)
    distances, ids = brute(grid, 13)
    assert torch.equal(found.distances, distances)
    assert torch.equal(found.ids, ids)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="compares the compiled search with the plain one")
def test_compiled_and_plain_search_agree_and_so_do_all_tile_sizes(monkeypatch):
    from sae.geometry.dimension import neighbours, tiles

    points = gaussian(1500, 12) * torch.linspace(0.2, 2, 12, dtype=torch.float64)
    compiled = nearest_neighbours(points, n_neighbours=20)
    for size in (97, 512, 4000):
        monkeypatch.setattr(tiles, "TILE_ROWS", size)
        again = nearest_neighbours(points, n_neighbours=20)
        assert torch.equal(again.ids, compiled.ids)
        assert torch.equal(again.distances, compiled.distances)
    monkeypatch.setattr(neighbours, "COMPILED_FROM", 10**9)
    for size in (1, 20_000, 2**24):
        plain = nearest_neighbours(points, n_neighbours=20, block_elements=size)
        assert torch.equal(plain.ids, compiled.ids)
        assert torch.allclose(plain.distances, compiled.distances, rtol=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="looks into the compiled search")
def test_rows_that_float32_cannot_decide_are_left_to_float64_and_no_others():
    from sae.geometry.dimension.tiles import search

    tight = torch.cat([1e-5 * gaussian(700, 4), 1 + 1e-5 * gaussian(700, 4, seed=1)])
    for points, expected in ((gaussian(1400, 4), 0), (tight, 1400)):
        centred = points - points.mean(dim=0)
        scale = 2.0 ** math.ceil(math.log2(centred.abs().max().item()))
        assert len(search(points, centred / scale, scale, 8)[2]) == expected


def test_equal_rows_are_merged_into_the_first_and_zero_has_no_sign():
    points = gaussian(40, 3)
    points[7, 1] = 0.0
    minus = points[7].clone()
    minus[1] = -0.0
    cloud = torch.cat([points, points[5:9], minus[None], points[:1]])
    assert torch.equal(distinct_rows(cloud), torch.arange(40))
    found = nearest_neighbours(cloud.flip(0), n_neighbours=4)
    assert found.n_duplicates == 6
    assert torch.equal(cloud.flip(0)[found.row_ids], found.points)
    assert len(torch.unique(found.points, dim=0)) == 40


def test_rows_whose_sums_of_bits_collide_are_still_compared(monkeypatch):
    draw = torch.randint

    def twos(*arguments, **options):
        return draw(*arguments, **options) * 0  # every factor 1: rows with permuted entries collide

    points = torch.cat([gaussian(30, 4), gaussian(30, 4).flip(1), gaussian(30, 4)[:10]])
    monkeypatch.setattr(torch, "randint", twos)
    assert torch.equal(distinct_rows(points), torch.arange(60))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_measured_exactly_as_they_are(dtype):
    points = gaussian(700, 6).to(dtype)
    found = nearest_neighbours(points, n_neighbours=5)
    wide = nearest_neighbours(points.double(), n_neighbours=5)
    assert torch.equal(found.ids, wide.ids)
    assert torch.allclose(found.distances, wide.distances, rtol=1e-12)
    assert found.points.dtype == torch.float32


@pytest.mark.parametrize("compiled", [True, False])
def test_neighbours_within_a_part_are_found_from_those_of_the_whole(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    points = gaussian(300, 4)
    neighbours = nearest_neighbours(points, n_neighbours=64)
    kept = random_part(300, 150, seeded(2), torch.device("cpu"))
    found = log_distances_within(kept, neighbours, (1, 3, 12))
    expected = brute(points[kept], 12)[0].log()
    for order in (1, 3, 12):
        assert torch.allclose(found.at[order], expected[:, order - 1], rtol=1e-12)
    assert torch.allclose(found.sum_below, expected[:, :11].sum(dim=1), rtol=1e-12)
    every = log_distances_within(torch.ones(300, dtype=torch.bool), neighbours, (2, 5))
    whole = log_distances(neighbours, (2, 5))
    assert torch.allclose(every.at[5], whole.at[5], rtol=1e-12)
    assert torch.allclose(every.sum_below, whole.sum_below)


@pytest.mark.parametrize("compiled", [True, False])
def test_points_with_too_few_neighbours_in_the_part_are_left_out(monkeypatch, compiled):
    if not compiled:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    neighbours = nearest_neighbours(gaussian(200, 3), n_neighbours=6)
    kept = random_part(200, 100, seeded(2), torch.device("cpu"))
    enough = kept[neighbours.ids[kept]].sum(dim=1) >= 4
    found = log_distances_within(kept, neighbours, (2, 4))
    assert 0 < len(found.at[2]) == int(enough.sum()) < 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_neighbours(gaussian(30, 3), n_neighbours=0), "n_neighbours must be at least 1, got 0"),
        (lambda: nearest_neighbours(torch.full((30, 3), math.nan), n_neighbours=2), "finite"),
        (lambda: nearest_neighbours(torch.ones(30, 3), n_neighbours=2), "at least 3 distinct rows, got 1 among 30"),
        (lambda: nearest_neighbours(gaussian(30, 3), n_neighbours=2, block_elements=0), "block_elements"),
        (lambda: log_distances(nearest_neighbours(gaussian(30, 3), n_neighbours=4), (1, 5)), "orders must be in 1..4"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
