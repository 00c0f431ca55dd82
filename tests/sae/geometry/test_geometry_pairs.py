"""One pass over pairs: lists, Babel function and histogram against brute force, in tiles and in blocks, and class-wise Babel functions."""

import math

import numpy as np
import pytest
import torch

from sae.errors import ConfigError
from sae.geometry import pairs as module
from sae.geometry.coherence import babel, class_babel, compare_babel, compare_coherence, mutual_coherence, null_directions
from sae.geometry.pairs import atom_pairs
from sae.geometry.similarity import nearest_atoms


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.fixture(params=["tiles", "blocks"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "_has_numba", lambda: request.param == "tiles")
    return request.param


@pytest.mark.parametrize("block_elements", [49, 900, 2**24])
def test_one_pass_gives_what_brute_force_gives(way, block_elements):
    atoms = gaussian(83, 9)
    w = atoms.numpy() / np.linalg.norm(atoms.numpy(), axis=1, keepdims=True)
    cosines = w @ w.T
    off = ~np.eye(83, dtype=bool)
    found = atom_pairs(atoms, n_neighbours=6, max_order=11, n_bins=37, block_elements=block_elements)
    signed, absolute = np.where(off, cosines, -9), np.where(off, np.abs(cosines), -9)
    np.testing.assert_array_equal(found.atom_ids.numpy(), np.argsort(-signed, axis=1)[:, :6])
    np.testing.assert_allclose(found.cosines.numpy(), -np.sort(-signed, axis=1)[:, :6], rtol=1e-12)
    np.testing.assert_allclose(found.largest.numpy(), -np.sort(-absolute, axis=1)[:, :11], rtol=1e-12)
    np.testing.assert_array_equal(found.histogram.numpy(), np.histogram(cosines[off], bins=37, range=(-1, 1))[0])
    assert found.coherence == pytest.approx(absolute.max(), rel=1e-12)
    np.testing.assert_allclose(found.babel.numpy(), (-np.sort(-absolute, axis=1)[:, :11]).cumsum(axis=1).max(axis=0), rtol=1e-12)


def test_one_pass_equals_the_three_measures_alone(way):
    atoms = gaussian(70, 8, dtype=torch.float32)
    found = atom_pairs(atoms, n_neighbours=5, max_order=7)
    alone = nearest_atoms(atoms, n_neighbours=5)
    assert torch.equal(found.atom_ids, alone.atom_ids) and torch.equal(found.histogram, alone.histogram)
    torch.testing.assert_close(found.babel, babel(atoms, max_order=7))
    assert found.coherence == pytest.approx(mutual_coherence(atoms), rel=1e-6)


def test_threads_and_tiles_leave_the_same_lists(monkeypatch):
    monkeypatch.setattr(module, "TILE", 16)
    atoms = torch.cat([gaussian(90, 6, dtype=torch.float32), gaussian(20, 6, dtype=torch.float32)])  # the last 20 repeat the first
    n_threads = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(atom_pairs(atoms, n_neighbours=4, max_order=3))
    finally:
        torch.set_num_threads(n_threads)
    for other in found[1:]:
        assert torch.equal(other.atom_ids, found[0].atom_ids) and torch.equal(other.cosines, found[0].cosines)
        assert torch.equal(other.largest, found[0].largest) and torch.equal(other.histogram, found[0].histogram)


def test_equally_near_atoms_are_listed_by_number():
    found = atom_pairs(torch.eye(6).repeat_interleave(5, dim=0), n_neighbours=2, max_order=2)
    assert found.atom_ids[:5].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert found.histogram.sum() == 30 * 29 and found.histogram[-1] == 30 * 4 and found.histogram[100] == 30 * 25


def test_long_lists_are_left_to_torch_and_are_the_same():
    atoms = gaussian(200, 12)
    long, short = babel(atoms, max_order=180), babel(atoms, max_order=100)
    torch.testing.assert_close(long[:100], short, rtol=1e-12, atol=0)
    assert atom_pairs(atoms, n_neighbours=150, max_order=3).cosines.shape == (200, 150)


def test_class_babel_is_babel_of_the_atoms_of_the_class():
    basis = torch.linalg.qr(gaussian(6, 6)).Q
    atoms = torch.cat([basis, basis[:3] + 0.2 * gaussian(3, 6, seed=1)])
    indices = torch.tensor([[0, 1, 2], [2, 3, 0], [0, 6, 1], [7, 1, 0], [4, 0, 0]])
    counts, labels = torch.tensor([3, 2, 2, 2, 1]), torch.tensor([0, 0, 1, 1, 3])
    found = class_babel(atoms, indices, counts, labels, max_order=4)
    torch.testing.assert_close(found[0, :3], babel(atoms[[0, 1, 2, 3]], max_order=3))
    torch.testing.assert_close(found[1, :3], babel(atoms[[0, 1, 6, 7]], max_order=3))
    assert found[0, :3].max() < 1e-6 < 0.5 < found[1, 0]
    assert found[0, 3].isnan() and found[2:].isnan().all()
    often = class_babel(atoms, indices, counts, labels, max_order=1, min_share=0.6)
    assert often[0].isnan().all()  # latent 2 alone fires in both rows


def test_null_of_the_covariance_keeps_a_cone_that_uniform_directions_lose():
    cone = gaussian(150, 12) + 4 * torch.eye(12, dtype=torch.float64)[0]
    kept = null_directions(cone, null="covariance", generator=seeded(1))
    unit = cone / cone.norm(dim=1, keepdim=True)
    assert (kept.mean(0) - unit.mean(0)).norm() < 0.1 < (unit.mean(0)).norm()
    assert compare_coherence(cone, n_null=19, generator=seeded(2)).p_greater == pytest.approx(1 / 20)
    assert compare_coherence(cone, n_null=19, generator=seeded(2), null="covariance").p_greater > 0.1
    twins = torch.cat([cone, cone[:1] * 1.01 + 0.001])
    assert compare_coherence(twins, n_null=19, generator=seeded(3), null="covariance").p_greater == pytest.approx(1 / 20)
    assert compare_babel(cone, max_order=3, n_null=9, generator=seeded(4), null="covariance").p_greater.min() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atom_pairs(torch.eye(4), n_neighbours=4, max_order=1), r"n_neighbours must be in 1\.\.n_atoms-1=3, got 4"),
        (lambda: atom_pairs(torch.eye(4), n_neighbours=1, max_order=0), "max_order must be in"),
        (lambda: atom_pairs(torch.eye(4), n_neighbours=1, max_order=1, n_bins=0), "n_bins must be at least 1"),
        (lambda: atom_pairs(torch.eye(4), n_neighbours=1, max_order=1, block_elements=0), "block_elements must be"),
        (lambda: atom_pairs(torch.zeros(4, 2), n_neighbours=1, max_order=1), "no zero row, got 4 of 4"),
        (lambda: atom_pairs(torch.full((4, 2), math.nan), n_neighbours=1, max_order=1), "finite"),
        (
            lambda: class_babel(torch.eye(3), torch.tensor([[5]]), torch.tensor([1]), torch.tensor([0]), max_order=1),
            r"indices must be in 0\.\.n",
        ),
        (lambda: class_babel(torch.eye(3), torch.tensor([[1]]), torch.tensor([1]), torch.tensor([-1]), max_order=1), "labels must be"),
        (lambda: class_babel(torch.eye(3), torch.tensor([[1]]), torch.tensor([1]), torch.tensor([0]), max_order=0), "max_order at least 1"),
    ],
)
def test_bad_input_of_a_pass_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
