"""Coherence and Babel against closed forms, brute force in float64 and invariances."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from sae.errors import ConfigError
from sae.geometry.coherence import (
    babel,
    coactivated_babel,
    compare_babel,
    compare_coactivated_babel,
    compare_coherence,
    guaranteed_sparsity,
    mutual_coherence,
    welch_bound,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def polygon(n):
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def simplex(n):
    """n + 1 vectors of R^(n+1) with equal pairwise cosines -1/n, spanning n dimensions."""
    return torch.eye(n + 1, dtype=torch.float64) - 1 / (n + 1)


def spikes_and_hadamard():
    return torch.cat([torch.eye(64), torch.from_numpy(hadamard(64)).float() / 8])


def babel_by_hand(atoms, order):
    """mu_1(order) by the definition: every atom, every set of `order` others."""
    w = atoms.double().numpy()
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    gram = np.abs(w @ w.T)
    n = len(w)
    return max(sum(gram[i, j] for j in chosen) for i in range(n) for chosen in combinations([j for j in range(n) if j != i], order))


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (polygon(3), [0.5, 1.0]),
        (polygon(5), [0.8090169944, 1.6180339887, 1.9270509831, 2.2360679775]),
        (simplex(3), [1 / 3, 2 / 3, 1.0]),
        (simplex(4), [0.25, 0.5, 0.75, 1.0]),
        (torch.eye(6), [0.0] * 5),
    ],
    ids=["triangle", "pentagon", "tetrahedron", "simplex", "orthonormal"],
)
def test_babel_has_its_closed_form(atoms, expected):
    assert babel(atoms, max_order=len(expected)).tolist() == pytest.approx(expected, abs=1e-9)
    assert mutual_coherence(atoms) == pytest.approx(expected[0], abs=1e-9)


def test_spikes_and_hadamard_have_babel_r_eighths_and_guarantee_four_atoms():
    curve = babel(spikes_and_hadamard(), max_order=12)
    assert curve.tolist() == pytest.approx([r / 8 for r in range(1, 13)], abs=1e-6)
    assert guaranteed_sparsity(curve) == 4


def test_guaranteed_sparsity_is_zero_for_coherent_atoms_and_unbounded_for_orthonormal_ones():
    assert guaranteed_sparsity(torch.tensor([1.0, 1.5])) == 0
    assert guaranteed_sparsity(babel(torch.eye(9), max_order=8)) == 8


@pytest.mark.parametrize("order", [1, 2, 3])
def test_babel_equals_the_maximum_over_all_sets(order):
    atoms = gaussian(9, 4, seed=order)
    assert babel(atoms, max_order=order)[-1].item() == pytest.approx(babel_by_hand(atoms, order), rel=1e-12)


def test_babel_does_not_depend_on_blocks_scale_sign_order_or_rotation():
    atoms = gaussian(60, 3, seed=1)
    expected = babel(atoms, max_order=59)
    scales = torch.rand(60, 1, generator=seeded(2), dtype=torch.float64) * 1e3 + 1e-3
    signs = torch.where(torch.rand(60, 1, generator=seeded(3)) < 0.5, -1.0, 1.0)
    turned = atoms @ torch.from_numpy(Rotation.random(random_state=4).as_matrix())
    for other in (atoms * scales, atoms * signs, atoms.flip(0), turned, atoms * 1e-300):
        torch.testing.assert_close(babel(other, max_order=59), expected, rtol=1e-12, atol=0)
    for block_elements in (1, 61, 1000):
        torch.testing.assert_close(babel(atoms, max_order=59, block_elements=block_elements), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_babel_in_a_narrow_type_stays_near_float64(dtype, tolerance):
    atoms = gaussian(80, 16)
    torch.testing.assert_close(babel(atoms.to(dtype), max_order=10), babel(atoms, max_order=10), rtol=tolerance, atol=0)


def test_babel_rises_no_faster_than_r_times_the_coherence():
    curve = babel(gaussian(100, 12), max_order=99)
    steps = curve.diff()
    assert (steps >= 0).all()
    assert (curve <= curve[0] * torch.arange(1, 100) + 1e-12).all()


def test_coherence_of_a_repeated_or_opposite_atom_is_one():
    atoms = gaussian(10, 6)
    assert mutual_coherence(torch.cat([atoms, -3 * atoms[4:5]])) == pytest.approx(1.0, abs=1e-12)


def test_welch_bound_is_met_by_simplices_and_never_beaten():
    assert welch_bound(3, 2) == pytest.approx(0.5)
    assert welch_bound(4, 3) == pytest.approx(1 / 3)
    assert welch_bound(5, 2) == pytest.approx(0.6124, abs=5e-5)
    assert welch_bound(65536, 2304) == pytest.approx(0.0205, abs=5e-5)
    assert welch_bound(24576, 768) == pytest.approx(0.0355, abs=5e-5)
    assert welch_bound(5, 8) == 0
    for seed in range(20):
        assert mutual_coherence(gaussian(15, 6, seed=seed)) >= welch_bound(15, 6)


def coactive_by_hand(atoms, supports, max_order):
    sums, samples = np.zeros(max_order), np.zeros(max_order, dtype=int)
    for support in supports:
        for order in range(1, min(max_order, len(support) - 1) + 1):
            sums[order - 1] += babel_by_hand(atoms[support], order)
            samples[order - 1] += 1
    return sums / samples, samples


def packed(supports, n_slots, *, filler=0):
    indices = torch.full((len(supports), n_slots), filler)
    for row, support in enumerate(supports):
        indices[row, : len(support)] = torch.tensor(support, dtype=torch.int64)
    return indices, torch.tensor([len(support) for support in supports])


SUPPORTS = [[3, 1, 7, 8], [2], [], [0, 5], [9, 4, 6, 1, 0], [8, 2, 3]]


@pytest.mark.parametrize("block_elements", [1, 70, 2**24])
@pytest.mark.parametrize("filler", [0, -1, 999])
def test_coactivated_babel_averages_the_babel_of_each_support(block_elements, filler):
    atoms = gaussian(10, 4, seed=5)
    indices, counts = packed(SUPPORTS, 7, filler=filler)
    found = coactivated_babel(atoms, indices, counts, max_order=4, block_elements=block_elements)
    expected, samples = coactive_by_hand(atoms, SUPPORTS, 4)
    assert found.values.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert found.n_samples.tolist() == samples.tolist() == [4, 3, 2, 1]


def test_coactivated_babel_of_all_atoms_is_babel():
    atoms = gaussian(12, 5)
    every = torch.arange(12)[None].repeat(3, 1).int()
    found = coactivated_babel(atoms, every, torch.tensor([12, 12, 12]), max_order=11)
    torch.testing.assert_close(found.values, babel(atoms, max_order=11))


def test_coactivated_babel_ignores_the_order_within_a_row():
    atoms = gaussian(10, 4, seed=5)
    forward = coactivated_babel(atoms, *packed(SUPPORTS, 5), max_order=3)
    backward = coactivated_babel(atoms, *packed([support[::-1] for support in SUPPORTS], 5), max_order=3)
    torch.testing.assert_close(forward.values, backward.values)


def test_random_dictionary_is_not_told_from_its_null():
    p = [compare_coherence(gaussian(12, 8, seed=seed), n_null=19, generator=seeded(1000 + seed)).p_greater for seed in range(100)]
    # Monte-Carlo p-values are uniform on 1/20 .. 1; half a step of jitter makes them continuous.
    jittered = np.array(p) - np.random.default_rng(0).random(100) / 20
    assert kstest(jittered, "uniform").pvalue > 0.01


def test_planted_near_duplicates_stand_out_from_the_null_and_more_so_when_closer():
    atoms = gaussian(64, 32)
    scores = []
    for distance in (0.6, 0.3, 0.1):
        twin = atoms[:1] + distance * gaussian(1, 32, seed=1) * atoms[0].norm() / 32**0.5
        found = compare_coherence(torch.cat([atoms, twin]), n_null=19, generator=seeded(2))
        assert found.p_greater == pytest.approx(1 / 20)
        assert found.n_null == 19
        scores.append((found.value - found.null_mean) / found.null_sd)
    assert scores == sorted(scores)


def test_orthonormal_dictionary_lies_below_its_null_at_every_order():
    found = compare_babel(torch.eye(32), max_order=5, n_null=19, generator=seeded(0))
    assert found.p_less.tolist() == pytest.approx([1 / 20] * 5)
    assert found.p_greater.tolist() == [1.0] * 5


def test_null_of_coactivation_sees_selection_of_orthogonal_atoms_that_the_global_babel_misses():
    basis = torch.linalg.qr(gaussian(8, 8)).Q
    atoms = torch.cat([basis, basis + 0.3 * gaussian(8, 8, seed=1) / 8**0.5])  # every atom has a near twin
    rows = torch.stack([torch.randperm(8, generator=seeded(s))[:4] for s in range(50)])  # of which only the first ever fires
    counts = torch.full((50,), 4)
    permuted = compare_coactivated_babel(atoms, rows, counts, max_order=3, null="permutation", n_null=99, generator=seeded(3))
    assert permuted.values.max() < 1e-6
    assert (permuted.p_less <= 0.02).all()
    assert compare_coherence(atoms, n_null=99, generator=seeded(4)).p_greater <= 0.02
    against_random = compare_coactivated_babel(atoms, rows, counts, max_order=3, null="directions", n_null=19, generator=seeded(5))
    assert (against_random.p_less <= 1 / 20 + 1e-12).all()


def test_permutation_null_is_exact_when_every_row_names_every_atom():
    atoms = gaussian(6, 4)
    every = torch.arange(6)[None]
    found = compare_coactivated_babel(atoms, every, torch.tensor([6]), max_order=5, null="permutation", n_null=5, generator=seeded(0))
    torch.testing.assert_close(found.null_mean, found.values)
    assert (found.null_sd < 1e-12).all()


def test_same_seed_gives_the_same_null():
    atoms = gaussian(20, 6)
    first = compare_babel(atoms, max_order=3, n_null=5, generator=seeded(7))
    again = compare_babel(atoms, max_order=3, n_null=5, generator=seeded(7))
    other = compare_babel(atoms, max_order=3, n_null=5, generator=seeded(8))
    assert torch.equal(first.null_mean, again.null_mean)
    assert not torch.equal(first.null_mean, other.null_mean)


def test_parameters_give_values_without_gradients_and_stay_unchanged():
    atoms = torch.nn.Parameter(gaussian(10, 4, dtype=torch.float32))
    before = atoms.detach().clone()
    curve = babel(atoms, max_order=2)
    assert not curve.requires_grad
    assert torch.equal(atoms.detach(), before)


def with_row(atoms, row, value):
    atoms = atoms.clone()
    atoms[row] = value
    return atoms


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: babel(with_row(w, 3, 0.0), max_order=1), "zero row, got 1 of 6, first row 3"),
        (lambda w: babel(with_row(w, 2, math.nan), max_order=1), "finite, got NaN or Inf in 1 of 6 rows, first in row 2"),
        (lambda w: babel(with_row(w, 5, math.inf), max_order=1), "finite"),
        (lambda w: babel(w[:1], max_order=1), "at least 2 rows"),
        (lambda w: babel(w, max_order=0), r"max_order must be in 1\.\.n_atoms-1=5, got 0 \(babel\)"),
        (lambda w: babel(w, max_order=6), r"max_order must be in 1\.\.n_atoms-1=5, got 6 \(babel\)"),
        (lambda w: babel(w, max_order=1, block_elements=0), "block_elements must be"),
        (lambda w: welch_bound(1, 3), "n_atoms must be at least 2"),
        (
            lambda w: coactivated_babel(w, torch.tensor([[0, 6]]), torch.tensor([2]), max_order=1),
            r"indices must be in 0\.\.n_atoms-1=5, got 6",
        ),
        (lambda w: coactivated_babel(w, torch.tensor([[0, -1]]), torch.tensor([2]), max_order=1), "indices must be in"),
        (lambda w: coactivated_babel(w, torch.tensor([[1, 2, 1]]), torch.tensor([3]), max_order=1), "repeat in row 0"),
        (lambda w: coactivated_babel(w, torch.tensor([[0, 1]]), torch.tensor([3]), max_order=1), "counts must"),
        (
            lambda w: coactivated_babel(w, torch.tensor([[0, 1]]), torch.tensor([2]), max_order=2),
            r"max_order must be in 1\.\.max\(counts\)-1=1",
        ),
        (lambda w: coactivated_babel(w, torch.tensor([[0, 1]]), torch.tensor([1]), max_order=1), "max_order must"),
        (lambda w: compare_coherence(w, n_null=1, generator=seeded(0)), "n_null must be at least 2, got 1"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call(gaussian(6, 4))
