"""Overlaps of nearest neighbours: exact means over permutations, sets written out, planted structure."""

import itertools

import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    CycleNeighbours,
    MutualNeighbours,
    clamp_outliers,
    compare_label_overlap,
    compare_representations,
    cycle_neighbours,
    cycle_neighbours_mean,
    label_overlap,
    mutual_neighbours,
    mutual_neighbours_mean,
    nearest_neighbours,
    neighbour_overlaps,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_sets(x, k, metric):
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    closeness = -torch.cdist(x, x) if metric == "euclidean" else x @ x.T
    return [set(sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(closeness[i, j]))[:k]) for i in range(len(x))]


@pytest.mark.parametrize("metric", ["cosine", "inner", "euclidean"])
def test_neighbours_overlap_and_cycle_are_those_of_the_sets_written_out(metric):
    x, y, k = normal(40, 4, 0) + 1, normal(40, 6, 1) - 0.5, 5
    a, b = slow_sets(x, k, metric), slow_sets(y, k, metric)
    assert [set(row) for row in nearest_neighbours(x, k=k, metric=metric).tolist()] == a
    assert mutual_neighbours(x, y, k=k, metric=metric) == pytest.approx(sum(len(s & t) for s, t in zip(a, b, strict=True)) / (40 * k))
    cycles = sum(any(i in a[j] for j in b[i]) for i in range(40)) / 40
    assert cycle_neighbours(x, y, k=k, metric=metric) == pytest.approx(cycles)
    overlaps = neighbour_overlaps(x, y, k=k, metric=metric)
    assert overlaps.tolist() == pytest.approx([len(s & t) / k for s, t in zip(a, b, strict=True)])


def test_nearest_come_first_and_never_include_the_point_itself():
    x = normal(50, 3, 2)
    ids = nearest_neighbours(x, k=49, metric="euclidean")
    assert (ids.sort(dim=1).values == torch.tensor([[j for j in range(50) if j != i] for i in range(50)])).all()
    lengths = (x[:, None] - x[ids]).norm(dim=2)
    assert (lengths[:, 1:] >= lengths[:, :-1] - 1e-9).all()


def test_scikit_learn_finds_the_same_neighbours():
    from sklearn.neighbors import NearestNeighbors

    x = normal(80, 6, 3)
    for metric in ("euclidean", "cosine"):
        theirs = NearestNeighbors(n_neighbors=8, metric=metric, algorithm="brute").fit(x.numpy()).kneighbors(return_distance=False)
        assert (nearest_neighbours(x, k=8, metric=metric).numpy() == theirs).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_means_over_all_permutations_are_exactly_the_closed_forms(k, unchecked):
    x, y = normal(6, 3, 4), normal(6, 2, 5)
    orders = [torch.tensor(order) for order in itertools.permutations(range(6))]
    mutual, cycle = MutualNeighbours(k=k), CycleNeighbours(k=k)
    a, b = mutual.prepare(x), mutual.prepare(y)
    assert sum(mutual.score(a, b, order) for order in orders) / 720 == pytest.approx(mutual_neighbours_mean(6, k), abs=1e-12)
    assert sum(cycle.score(a, b, order) for order in orders) / 720 == pytest.approx(cycle_neighbours_mean(x, k=k), abs=1e-12)


def test_null_of_the_mutual_overlap_at_the_platonic_sizes():
    assert mutual_neighbours_mean(1024, 10) == pytest.approx(0.0098, abs=5e-5)
    x, y = normal(1024, 20, 6), normal(1024, 20, 7)
    assert mutual_neighbours(x, y, k=10) == pytest.approx(0.0098, abs=0.003)


def test_overlap_is_one_under_rotation_and_scale():
    x = normal(100, 8, 8)
    turned = 4 * x @ torch.linalg.qr(normal(8, 8, 9)).Q
    assert mutual_neighbours(x, turned) == 1.0
    assert mutual_neighbours(x, turned, metric="inner") == 1.0
    assert mutual_neighbours(x, turned + 7, metric="euclidean") == 1.0


@pytest.mark.parametrize("measure", [MutualNeighbours(k=4), CycleNeighbours(k=4)], ids=lambda m: type(m).__name__)
def test_a_permuted_score_is_the_score_of_permuted_rows(measure):
    x, y = normal(50, 3, 10), normal(50, 3, 10) + 0.4 * normal(50, 3, 11)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    assert measure.score(measure.prepare(x), measure.prepare(y), order) == pytest.approx(measure(x, y[order]))


@pytest.mark.parametrize("measure", [MutualNeighbours(k=5), CycleNeighbours(k=3)], ids=lambda m: type(m).__name__)
def test_permutation_p_values_of_overlaps_are_calibrated(measure, unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        null = compare_representations(measure, normal(40, 3, seed), normal(40, 4, 5000 + seed), n_null=19, generator=generator)
        # Overlaps are counts: ties are broken at random, as the exact test would.
        return null.p_greater - torch.rand((), generator=generator).item() * max(0.0, null.p_greater + null.p_less - 1 - 1 / 20)

    check_calibrated(p, n_draws=150)


def test_label_overlap_is_a_share_of_equal_labels_with_its_exact_null():
    x = torch.cat([normal(30, 4, 12), normal(20, 4, 13) + 20])
    labels = torch.tensor([0] * 30 + [1] * 20)
    assert label_overlap(x, labels, k=10) == 1.0
    ids = nearest_neighbours(x, k=3, metric="euclidean")
    mixed = torch.arange(50) % 3
    assert label_overlap(x, mixed, k=3) == pytest.approx(float((mixed[ids] == mixed[:, None]).double().mean()))
    found = compare_label_overlap(x, labels, k=10, n_null=300, generator=torch.Generator().manual_seed(0))
    expected = (30 * 29 + 20 * 19) / (50 * 49)
    assert found.value == 1.0 and found.p_greater == pytest.approx(1 / 301) and found.null_mean == pytest.approx(expected, abs=0.01)


def test_p_values_of_the_label_overlap_are_calibrated(unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, (40,), generator=generator)
        return compare_label_overlap(normal(40, 3, seed), labels, k=7, n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=150)


def test_clamping_takes_hold_of_massive_entries_alone():
    x = normal(200, 30, 14)
    wild = x.clone()
    wild[:, 3] = 1000.0
    bound = float(wild.abs().quantile(0.95, dim=1).mean())
    assert clamp_outliers(wild).abs().max() == pytest.approx(bound)
    kept = wild.abs() < bound
    assert torch.equal(clamp_outliers(wild)[kept], wild[kept])
    assert torch.equal(clamp_outliers(torch.ones(3, 5)), torch.ones(3, 5))


MEASURES = [
    Measure("mutual neighbours", lambda x, y: mutual_neighbours(x, y, k=6), rotation=True, scale=True, translation=False, linear=False,
            pair=True, blocked=lambda x, y, size: MutualNeighbours(k=6, block_elements=size)(x, y)),
    Measure("Euclidean neighbours", lambda x, y: mutual_neighbours(x, y, k=6, metric="euclidean"), rotation=True, scale=True,
            translation=True, linear=False, pair=True),
    Measure("cycle neighbours", lambda x, y: cycle_neighbours(x, y, k=3), rotation=True, scale=True, translation=None, linear=None,
            pair=True, blocked=lambda x, y, size: CycleNeighbours(k=3, block_elements=size)(x, y)),
    Measure("mean of the cycle score", lambda x: cycle_neighbours_mean(x, k=4), rotation=True, scale=True, translation=False, linear=False),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_neighbour_measure_has_the_properties_of_its_definition(measure):
    check(measure)


def test_bad_input_is_refused_with_a_reason():
    x = normal(10, 3, 15)
    for k in (0, 10):
        with pytest.raises(ConfigError, match=r"k must be in 1\.\.9"):
            nearest_neighbours(x, k=k)
    zero = x.clone()
    zero[4] = 0
    with pytest.raises(ConfigError, match="no zero row"):
        nearest_neighbours(zero, k=2)
    assert nearest_neighbours(zero, k=2, metric="euclidean").shape == (10, 2)
    with pytest.raises(ConfigError, match="one label per stimulus"):
        label_overlap(x, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ConfigError, match="quantile"):
        clamp_outliers(x, quantile=0.0)
    with pytest.raises(ConfigError, match="n_null"):
        compare_representations(MutualNeighbours(k=2), x, x, n_null=1, generator=torch.Generator())


def test_equal_points_are_each_others_neighbours():
    x = torch.cat([normal(5, 3, 16)] * 2)
    ids = nearest_neighbours(x, k=1, metric="euclidean").flatten()
    assert torch.equal(ids, (torch.arange(10) + 5) % 10)
