"""Crystals among atoms: planted ones are found and verified, random and shuffled dictionaries hold none; chance by closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from universal import Measure, check

from sae.errors import ConfigError
from sae.geometry.crystals import (
    CrystalConfig,
    axial_clusters,
    compare_crystals,
    cosine_p_value,
    effective_dimension,
    find_crystals,
    shuffled_atoms,
)
from sae.geometry.nulls import benjamini_hochberg


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def planted(n_pairs=12, n_other=400, d=64, length=0.7, noise=0.02, seed=0):
    """Random unit atoms, of which `n_pairs` have a partner displaced by one vector; the rows of the pairs."""
    other = unit(gaussian(n_other, d, seed=seed))
    sources = unit(gaussian(n_pairs, d, seed=seed + 1))
    vector = length * unit(gaussian(1, d, seed=seed + 2))
    targets = sources + vector + noise * gaussian(n_pairs, d, seed=seed + 3)
    order = torch.randperm(n_other + 2 * n_pairs, generator=seeded(seed + 4))
    place = order.argsort()
    pairs = torch.stack([place[n_other : n_other + n_pairs], place[n_other + n_pairs :]], dim=1)
    return torch.cat([other, sources, targets])[order], pairs


def test_planted_parallelograms_are_found_and_nothing_else():
    atoms, pairs = planted()
    found = find_crystals(atoms, generator=seeded(0))
    expected = {frozenset((*pairs[i].tolist(), *pairs[j].tolist())) for i in range(12) for j in range(i)}
    sets = [frozenset(row) for row in found.quadruples.tolist()]
    assert len(set(sets)) == len(sets)
    assert set(sets) <= expected
    assert len(sets) > 0.9 * len(expected)
    assert found.is_parallelogram.all()
    assert (found.q_values <= 0.05).all()


def test_what_is_reported_of_a_crystal_is_its_definition():
    atoms, _ = planted()
    found = find_crystals(atoms, generator=seeded(0))
    a, b, c, d = atoms[found.quadruples].unbind(dim=1)
    first, second = b - a, d - c
    assert torch.allclose(found.cosines, torch.nn.functional.cosine_similarity(first, second), atol=1e-9)
    loss = (first - second).norm(dim=1) / ((first.norm(dim=1) + second.norm(dim=1)) / 2)
    assert torch.allclose(found.losses, loss, atol=1e-7)
    assert torch.equal(found.losses, found.losses.sort().values)
    assert all(len(set(row)) == 4 for row in found.quadruples.tolist())
    assert torch.allclose(found.p_values, cosine_p_value(found.cosines, found.effective_dimension))


def test_trapezoids_are_told_from_parallelograms():
    direction = unit(gaussian(1, 64, seed=9))
    sources = unit(gaussian(6, 64, seed=3))
    lengths = torch.tensor([0.5, 0.5, 0.5, 1.5, 1.5, 1.5], dtype=torch.float64)[:, None]
    atoms = torch.cat([unit(gaussian(300, 64)), sources, sources + lengths * direction])
    found = find_crystals(atoms, generator=seeded(0), config=CrystalConfig(min_cosine=0.95))
    for row, flat in zip(found.quadruples.tolist(), found.is_parallelogram.tolist(), strict=True):
        ends = sorted({(r - 300) % 6 for r in row})
        assert len(ends) == 2
        assert flat == ((ends[0] < 3) == (ends[1] < 3))
    assert found.is_parallelogram.sum() == 6
    assert (~found.is_parallelogram).sum() == 9


@pytest.mark.parametrize("seed", range(3))
def test_random_dictionaries_hold_no_crystals(seed):
    assert len(find_crystals(unit(gaussian(900, 48, seed=seed)), generator=seeded(seed)).quadruples) == 0


def test_number_of_crystals_stands_out_from_shuffled_dictionaries():
    atoms, _ = planted(n_other=250)
    found = compare_crystals(atoms, generator=seeded(0), n_null=4)
    assert found.value > 55
    assert found.null_mean == 0
    assert found.p_greater == pytest.approx(0.2)
    empty = compare_crystals(unit(gaussian(250, 48)), generator=seeded(0), n_null=2)
    assert (empty.value, empty.null_mean, empty.p_greater) == (0, 0, 1)


def test_differences_that_share_an_atom_are_never_compared():
    # A star: one atom in the middle, the others around it. Any two of its edges share the middle, and nothing is left to compare.
    axes = torch.linalg.qr(gaussian(48, 48)).Q
    atoms = torch.cat([axes[:1], unit(axes[0] + 0.3 * axes[1:41])])
    star = find_crystals(atoms, generator=seeded(0), config=CrystalConfig(n_neighbours=1, edges_per_cluster=10**6))
    assert (star.n_edges, star.n_tests, star.n_compared, len(star.quadruples)) == (40, 0, 0, 0)
    every = find_crystals(atoms, generator=seeded(0), config=CrystalConfig(n_neighbours=5, edges_per_cluster=10**6))
    assert every.n_compared == every.n_tests < every.n_edges * (every.n_edges - 1) // 2


def test_number_of_tests_is_that_of_pairs_without_a_common_atom():
    from sae.geometry.crystals.search import _disjoint_pairs

    pairs = torch.unique(torch.randint(0, 30, (80, 2), generator=seeded(0)).sort(dim=1).values, dim=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    rows = [set(pair) for pair in pairs.tolist()]
    expected = sum(not rows[i] & rows[j] for i in range(len(rows)) for j in range(i))
    assert _disjoint_pairs(pairs, 30) == expected


def test_four_atoms_on_a_line_and_near_copies_are_no_crystals():
    line = gaussian(1, 40, seed=2) + torch.linspace(0, 3, 8, dtype=torch.float64)[:, None] * unit(gaussian(1, 40, seed=3))
    background = unit(gaussian(200, 40))
    found = find_crystals(torch.cat([line, background]), generator=seeded(0))
    assert len(found.quadruples) == 0
    near = torch.cat([background, background + 0.2 * unit(gaussian(200, 40, seed=6))])  # c close to a and d to b: alike, and no relation
    assert len(find_crystals(near, generator=seeded(0)).quadruples) == 0
    assert len(find_crystals(near, generator=seeded(0), config=CrystalConfig(max_skew=9.0)).quadruples) > 100
    copies = torch.cat([background, background[:30] + 1e-3 * unit(gaussian(1, 40, seed=5))])
    assert len(find_crystals(copies, generator=seeded(0)).quadruples) == 0
    assert len(find_crystals(copies, generator=seeded(0), config=CrystalConfig(min_edge=0.0)).quadruples) > 0


def test_clustering_finds_planted_axes_whatever_their_sign():
    axes = torch.linalg.qr(gaussian(60, 60)).Q[:10]
    own = torch.arange(10).repeat(200)
    signs = torch.randint(2, (2000, 1), generator=seeded(1)) * 2 - 1
    rows = signs * unit(axes[own] + 0.2 * gaussian(2000, 60, seed=2))  # the noise is longer than the axis
    found = axial_clusters(rows, 40, generator=seeded(0), n_rounds=5)
    pure = sum(int(torch.bincount(own[found == cluster], minlength=10).max()) for cluster in range(40))
    assert pure > 0.95 * 2000  # .75 if a centre adds up vectors of both signs


def test_random_quadruples_have_the_loss_and_cosine_of_the_closed_form():
    w = unit(gaussian(4000, 512))
    a, b, c, d = w.view(1000, 4, 512).unbind(dim=1)
    assert (a - b - c + d).norm(dim=1).mean() == pytest.approx(2.0, abs=0.01)
    cosine = torch.nn.functional.cosine_similarity(b - a, d - c)
    assert cosine.std() == pytest.approx(1 / math.sqrt(512), rel=0.08)
    assert torch.nn.functional.cosine_similarity(b - a, d - a).mean() == pytest.approx(0.5, abs=0.01)
    uniform = cosine_p_value(cosine, 512.0)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01


def test_p_value_of_a_cosine_is_the_tail_of_its_law_to_the_smallest():
    for D in (2.0, 3.0, 7.5, 300.0):
        for c in (0.0, 0.1, -0.5, 0.99):
            beta = stats.beta((D - 1) / 2, (D - 1) / 2)
            expected = 2 * beta.sf((1 + abs(c)) / 2)
            assert cosine_p_value(torch.tensor([c], dtype=torch.float64), D).item() == pytest.approx(expected, rel=1e-6)
    assert cosine_p_value(torch.tensor([1.0]), 5.0).item() == 0.0
    tail = cosine_p_value(torch.tensor([1 - 1e-10], dtype=torch.float64), 3.0).item()
    assert tail == pytest.approx(1e-10, rel=1e-4)  # in three dimensions the cosine is uniform


def test_effective_dimension_is_that_of_pairs_by_hand():
    u = unit(gaussian(50, 9) * torch.linspace(0.1, 2, 9, dtype=torch.float64))
    squares = (u @ u.T).square().fill_diagonal_(0)
    assert effective_dimension(u) == pytest.approx(50 * 49 / squares.sum().item())
    assert effective_dimension(unit(gaussian(4000, 20))) == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("extra", [0, 500])
def test_benjamini_hochberg_is_that_of_scipy(extra):
    p = torch.rand(60, generator=seeded(0), dtype=torch.float64).pow(4)
    rest = torch.ones(extra, dtype=torch.float64)
    expected = stats.false_discovery_control(torch.cat([p, rest]).numpy())[:60]
    assert np.allclose(benjamini_hochberg(p, 60 + extra).numpy(), expected)
    assert len(benjamini_hochberg(p[:0], 10)) == 0


def test_shuffled_dictionary_keeps_the_spectrum_and_the_norms_and_loses_the_pairs():
    atoms, pairs = planted(n_pairs=60)
    other = shuffled_atoms(atoms, generator=seeded(0))
    assert torch.allclose(other.norm(dim=1), atoms.norm(dim=1))
    before, after = (torch.linalg.eigvalsh(torch.cov(x.T)) for x in (atoms, other))
    assert torch.allclose(before, after, rtol=0.35, atol=0.02 * before[-1].item())
    difference = unit(other[pairs[:, 1]] - other[pairs[:, 0]])
    assert ((difference @ difference.T).triu(1).sum() / (60 * 59 / 2)).abs() < 0.1
    assert torch.equal(other, shuffled_atoms(atoms, generator=seeded(0)))


def counted(x):
    found = find_crystals(x, generator=seeded(0), config=CrystalConfig(n_neighbours=6, level=0.99, min_cosine=0.6, edges_per_cluster=10**6))
    return torch.tensor([len(found.quadruples), found.effective_dimension, found.n_tests], dtype=torch.float64)


def test_search_over_a_single_cluster_has_the_properties_of_its_definition():
    check(Measure("crystals", counted, rotation=True, scale=True, translation=False, linear=False, single_tolerance=1e-3))


def test_same_seed_gives_the_same_crystals_and_half_precision_is_taken():
    atoms, _ = planted()
    one, same = (find_crystals(atoms, generator=seeded(5)) for _ in range(2))
    assert torch.equal(one.quadruples, same.quadruples)
    half = find_crystals(atoms.half(), generator=seeded(5))
    assert len(half.quadruples) > 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_crystals(gaussian(3, 4), generator=seeded(0)), "at least 4 rows"),
        (lambda: find_crystals(torch.cat([gaussian(9, 4), torch.zeros(1, 4)]), generator=seeded(0)), "no zero row"),
        (lambda: find_crystals(gaussian(9, 4) * math.nan, generator=seeded(0)), "finite"),
        (lambda: find_crystals(torch.ones(9, 4), generator=seeded(0)), "at least 2 differences that are not 0"),
        (lambda: find_crystals(gaussian(9, 4), generator=seeded(0), config=CrystalConfig(min_cosine=1.0)), "min_cosine"),
        (lambda: find_crystals(gaussian(9, 4), generator=seeded(0), config=CrystalConfig(n_neighbours=0)), "n_neighbours"),
        (lambda: find_crystals(gaussian(9, 4), generator=seeded(0), config=CrystalConfig(max_loss=-1.0)), "max_loss"),
        (
            lambda: find_crystals(gaussian(9, 4), generator=seeded(0), config=CrystalConfig(min_neighbour_cosine=1.0)),
            "min_neighbour_cosine=1.0",
        ),
        (lambda: compare_crystals(gaussian(9, 4), generator=seeded(0), n_null=1), "n_null"),
        (lambda: cosine_p_value(torch.tensor([0.5]), 1.0), "dimension must exceed 1"),
        (lambda: cosine_p_value(torch.tensor([1.5]), 3.0), "cosines lie in"),
        (lambda: benjamini_hochberg(torch.tensor([0.5, 1.5])), "p_values must be in 0..1"),
        (lambda: benjamini_hochberg(torch.tensor([0.5, 0.5]), 1), "n_tests=1"),
        (lambda: axial_clusters(gaussian(5, 2), 6, generator=seeded(0)), r"n_clusters must be in 1\.\.5"),
        (lambda: effective_dimension(gaussian(1, 2)), "at least 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
