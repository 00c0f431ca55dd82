"""Nearest atoms against brute force; the law of the largest random cosine against simulation and recorded values."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from sae.errors import ConfigError
from sae.geometry.nulls import compare, random_directions
from sae.geometry.similarity import max_cosine_null, max_cosine_p_value, nearest_atoms, nearest_atoms_to


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def all_cosines(left, right):
    left, right = left.numpy(), right.numpy()
    return np.array([[np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y)) for y in right] for x in left])


@pytest.mark.parametrize("block_elements", [1, 150, 2**24])
def test_nearest_atoms_are_those_of_brute_force(block_elements):
    atoms = gaussian(40, 6)
    cosines = all_cosines(atoms, atoms)
    others = cosines[~np.eye(40, dtype=bool)].reshape(40, 39)
    np.fill_diagonal(cosines, -np.inf)
    found = nearest_atoms(atoms, n_neighbours=5, n_bins=23, block_elements=block_elements)
    np.testing.assert_array_equal(found.atom_ids.numpy(), np.argsort(-cosines, axis=1)[:, :5])
    np.testing.assert_allclose(found.cosines.numpy(), -np.sort(-cosines, axis=1)[:, :5], rtol=1e-12)
    np.testing.assert_array_equal(found.histogram.numpy(), np.histogram(others, bins=found.bin_edges.numpy())[0])
    assert found.histogram.sum() == 40 * 39


@pytest.mark.parametrize("block_elements", [1, 100, 2**24])
def test_nearest_atoms_to_queries_are_those_of_brute_force(block_elements):
    queries, atoms = gaussian(9, 6), gaussian(30, 6, seed=1)
    cosines = all_cosines(queries, atoms)
    found = nearest_atoms_to(queries, atoms, n_neighbours=30, n_bins=10, block_elements=block_elements)
    np.testing.assert_array_equal(found.atom_ids.numpy(), np.argsort(-cosines, axis=1))
    np.testing.assert_allclose(found.cosines.numpy(), -np.sort(-cosines, axis=1), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(found.histogram.numpy(), np.histogram(cosines, bins=10, range=(-1, 1))[0])


def test_neighbours_of_planted_twins_are_each_other_and_opposites_are_not_near():
    atoms = torch.linalg.qr(gaussian(12, 12)).Q
    twins = torch.cat([atoms, atoms + 0.1 * gaussian(12, 12, seed=1) / 12**0.5, -atoms])
    found = nearest_atoms(twins, n_neighbours=1)
    assert found.atom_ids[:24, 0].tolist() == [*range(12, 24), *range(12)]
    assert found.cosines[24:].max() < 0.5


def test_neighbours_do_not_depend_on_scale_rotation_or_order():
    atoms = gaussian(30, 8)
    expected = nearest_atoms(atoms, n_neighbours=4)
    turn = torch.linalg.qr(gaussian(8, 8, seed=1)).Q
    scales = torch.rand(30, 1, generator=seeded(2), dtype=torch.float64) + 0.01
    order = torch.randperm(30, generator=seeded(3))
    for other in (atoms * scales, atoms @ turn):
        found = nearest_atoms(other, n_neighbours=4)
        assert torch.equal(found.atom_ids, expected.atom_ids)
        assert torch.equal(found.histogram, expected.histogram)
    permuted = nearest_atoms(atoms[order], n_neighbours=4)
    assert torch.equal(order[permuted.atom_ids], expected.atom_ids[order])


def test_exact_duplicates_and_opposites_fall_in_the_end_bins():
    atoms = gaussian(1, 7, dtype=torch.float32) * torch.tensor([[1.0], [3.0], [-0.7]])
    found = nearest_atoms(atoms, n_neighbours=2, n_bins=50)
    assert found.histogram[-1] == 2
    assert found.histogram[0] == 4
    assert found.cosines.abs().max() <= 1


def test_histogram_counts_are_exact_beyond_two_to_the_24():
    found = nearest_atoms(torch.ones(4200, 1), n_neighbours=1, n_bins=2)
    assert found.histogram.tolist() == [0, 4200 * 4199]


def test_half_precision_atoms_are_compared_in_float32():
    atoms = gaussian(30, 16).to(torch.bfloat16)
    found = nearest_atoms(atoms, n_neighbours=3)
    assert found.cosines.dtype == torch.float32
    torch.testing.assert_close(found.cosines.double(), nearest_atoms(atoms.double(), n_neighbours=3).cosines, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n_atoms", "d_in", "recorded"), [(4096, 512, 0.160), (16384, 768, 0.143), (24576, 768, 0.147)])
def test_mean_of_the_largest_random_cosine_is_the_recorded_one_and_below_the_formula(n_atoms, d_in, recorded):
    mean = max_cosine_null(n_atoms, d_in, n_null=4000, generator=seeded(0)).mean().item()
    assert mean == pytest.approx(recorded, abs=1.5e-3)
    assert 1.08 < math.sqrt(2 * math.log(n_atoms) / d_in) / mean < 1.14


@pytest.mark.parametrize(("n_atoms", "d_in"), [(1, 2), (50, 3), (300, 24)])
def test_law_of_the_largest_cosine_is_that_of_simulated_directions(n_atoms, d_in):
    like = torch.empty(1, d_in, dtype=torch.float64)
    fixed = random_directions(1, like, generator=seeded(1))[0]
    simulated = torch.stack([(random_directions(n_atoms, like, generator=seeded(100 + s)) @ fixed).max() for s in range(400)])
    drawn = max_cosine_null(n_atoms, d_in, n_null=4000, generator=seeded(2))
    assert kstest(simulated.numpy(), drawn.numpy()).pvalue > 0.01
    assert kstest(max_cosine_p_value(simulated, n_atoms, d_in).numpy(), "uniform").pvalue > 0.01


def test_cosine_on_the_circle_has_its_closed_form_tail():
    cosines = torch.tensor([-1.0, -0.5, 0.0, 0.3, 1.0], dtype=torch.float64)
    one = torch.arccos(cosines) / math.pi
    torch.testing.assert_close(max_cosine_p_value(cosines, 1, 2), one)
    torch.testing.assert_close(max_cosine_p_value(cosines, 7, 2), 1 - (1 - one) ** 7)


def test_tiny_p_values_keep_their_digits():
    # In R^5 the density of a cosine is 3/4 (1 - c^2): the tail beyond c = 1 - 2t is 3t^2 - 2t^3, here far below the spacing of floats at 1.
    p = max_cosine_p_value(torch.tensor([1 - 2**-34], dtype=torch.float64), 1000, 5)
    assert p.item() == pytest.approx(1000 * 3 * 2**-70, rel=1e-6, abs=0)


def test_nearest_cosine_of_a_random_atom_is_ordinary_and_of_a_twin_is_not():
    atoms = gaussian(200, 32)
    null = max_cosine_null(200, 32, n_null=199, generator=seeded(5))
    found = nearest_atoms_to(gaussian(1, 32, seed=6), atoms, n_neighbours=1)
    assert compare(found.cosines.item(), null).p_greater > 0.02
    twin = nearest_atoms_to(atoms[:1] + 0.05, atoms, n_neighbours=1)
    assert compare(twin.cosines.item(), null).p_greater == pytest.approx(1 / 200)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_atoms(torch.eye(4), n_neighbours=4), r"n_neighbours must be in 1\.\.3 for 4 atoms, got 4 \(nearest_atoms\)"),
        (lambda: nearest_atoms(torch.eye(4), n_neighbours=0), "n_neighbours"),
        (lambda: nearest_atoms(torch.zeros(4, 3), n_neighbours=1), "atoms must have no zero row, got 4 of 4"),
        (lambda: nearest_atoms(torch.full((4, 3), math.nan), n_neighbours=1), "finite"),
        (lambda: nearest_atoms(torch.eye(4), n_neighbours=1, n_bins=0), "n_bins must be at least 1"),
        (lambda: nearest_atoms_to(torch.zeros(1, 4), torch.eye(4), n_neighbours=1), "queries must have no zero row"),
        (lambda: nearest_atoms_to(torch.ones(1, 4), torch.eye(4), n_neighbours=5), r"in 1\.\.4 for 4 atoms"),
        (lambda: max_cosine_null(10, 1, n_null=3, generator=seeded(0)), "d_in at least 2"),
        (lambda: max_cosine_null(10, 4, n_null=0, generator=seeded(0)), "n_null must be at least 1"),
        (lambda: max_cosine_p_value(torch.tensor([1.5]), 10, 4), r"cosines must be in -1\.\.1, got 1\.5"),
        (lambda: max_cosine_p_value(torch.tensor([math.nan]), 10, 4), "cosines must be"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
