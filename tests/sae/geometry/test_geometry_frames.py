"""Dimensionality, interference and frame potential against closed forms, brute force, invariances and nulls."""

import math

import numpy as np
import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.frames import compare_dimensionality, compare_frame_potential, feature_dimensionality, frame
from sae.synthetic import polytopes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def by_hand(atoms):
    """D and interference as they are defined, atom by atom."""
    w = atoms.double().numpy()
    dimensionality, interference = [], []
    for i in range(len(w)):
        hat = w[i] / math.sqrt(w[i] @ w[i])
        projections = np.array([(hat @ w[j]) ** 2 for j in range(len(w))])
        dimensionality.append(w[i] @ w[i] / projections.sum())
        interference.append(np.delete(projections, i).sum())
    return np.array(dimensionality), np.array(interference)


@pytest.mark.parametrize(
    ("vertices", "expected"),
    [
        (torch.eye(5, dtype=torch.float64), [1.0] * 5),
        (polytopes.simplex(1), [1 / 2] * 2),
        (polytopes.simplex(2), [2 / 3] * 3),
        (polytopes.simplex(3), [3 / 4] * 4),
        (polytopes.polygon(5), [2 / 5] * 5),
        (polytopes.square_antiprism(), [3 / 8] * 8),
        (polytopes.square_antiprism(0.25), [0.3636363636] * 8),
        (polytopes.bipyramid(3), [2 / 3] * 3 + [1 / 2] * 2),
    ],
    ids=["orthogonal", "digon", "triangle", "tetrahedron", "pentagon", "tight antiprism", "antiprism of height 1/2", "bipyramid"],
)
def test_dimensionality_of_a_polytope_has_its_closed_form_at_any_size(vertices, expected):
    for size in (1.0, 37.0, 1e-60):
        assert feature_dimensionality(size * vertices).tolist() == pytest.approx(expected, abs=1e-9)
    assert frame(vertices).total_dimensionality <= vertices.shape[1] + 1e-9


@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (8, 8)])
def test_dimensionality_and_interference_are_those_of_the_definition(shape):
    atoms = gaussian(*shape, seed=1) * (0.1 + torch.rand(shape[0], 1, generator=seeded(2), dtype=torch.float64))
    found = frame(atoms)
    dimensionality, interference = by_hand(atoms)
    np.testing.assert_allclose(found.dimensionality.numpy(), dimensionality, rtol=1e-10)
    np.testing.assert_allclose(found.interference.numpy(), interference, rtol=1e-9)
    gram = (atoms @ atoms.T).numpy()
    assert found.potential == pytest.approx((gram**2).sum(), rel=1e-10)
    assert found.rank == np.linalg.matrix_rank(atoms.numpy())
    singular = np.linalg.svd(atoms.numpy(), compute_uv=False) ** 2
    assert found.upper_bound == pytest.approx(singular[0], rel=1e-10)
    assert found.lower_bound == pytest.approx(singular[-1] if shape[0] >= shape[1] else 0.0, rel=1e-9)
    assert found.dimensions_per_feature == pytest.approx(shape[1] / (atoms**2).sum().item())


def test_total_dimensionality_never_exceeds_the_rank_and_reaches_it_for_tight_frames():
    for seed in range(20):
        found = frame(gaussian(12, 5, seed=seed) * (1 + seed))
        assert found.total_dimensionality < found.rank == 5
        assert found.potential >= found.potential_bound
    tight = torch.linalg.qr(gaussian(40, 7)).Q  # columns orthonormal: W^T W = 1
    found = frame(tight)
    assert found.total_dimensionality == pytest.approx((tight.norm(dim=1) ** 2).sum().item()) == pytest.approx(7)
    assert found.tightness == pytest.approx(1) and found.lower_bound == pytest.approx(found.upper_bound) == pytest.approx(1)


def test_unit_atoms_have_potential_of_at_least_n_squared_over_d():
    unit = torch.nn.functional.normalize(gaussian(50, 8))
    found = frame(unit)
    assert found.potential_bound == pytest.approx(50**2 / 8) and found.potential > found.potential_bound
    assert found.dimensions_per_feature == pytest.approx(8 / 50)
    assert frame(polytopes.polygon(5)).potential == pytest.approx(25 / 2)
    few = frame(2 * torch.eye(5)[:3])  # fewer atoms than dimensions: orthogonal ones have the smallest potential
    assert few.potential == pytest.approx(3 * 16) == pytest.approx(few.potential_bound) and few.lower_bound == 0


def test_isotropic_random_dictionary_gives_every_atom_d_over_n():
    unit = torch.nn.functional.normalize(gaussian(4000, 40))
    assert feature_dimensionality(unit).mean().item() == pytest.approx(40 / 4000, rel=0.03)


def test_a_zero_atom_has_no_dimension_and_disturbs_nobody():
    atoms = gaussian(9, 4)
    with_zero = torch.cat([atoms, torch.zeros(1, 4, dtype=torch.float64)])
    found, alone = frame(with_zero), frame(atoms)
    assert found.dimensionality[-1] == 0 and found.interference[-1] == 0
    torch.testing.assert_close(found.dimensionality[:-1], alone.dimensionality)


def test_copies_of_one_atom_share_one_dimension():
    atoms = torch.cat([torch.eye(3), torch.eye(3)[:1].repeat(3, 1)])
    assert feature_dimensionality(atoms).tolist() == pytest.approx([1 / 4, 1, 1, 1 / 4, 1 / 4, 1 / 4])


@pytest.mark.parametrize(
    "measure",
    [
        Measure("dimensionality", lambda x: frame(x).total_dimensionality, rotation=True, scale=True, translation=False, linear=False),
        Measure(
            "tightness",
            lambda x: frame(x).tightness,
            rotation=True,
            scale=True,
            translation=False,
            linear=False,
            blocked=lambda x, size: frame(x, block_elements=size).tightness,
        ),
    ],
    ids=str,
)
def test_frames_have_the_properties_of_their_definition(measure):
    check(measure)


def test_p_values_of_random_atoms_are_uniform():
    check_calibrated(
        lambda seed: compare_dimensionality(gaussian(12, 5, seed=seed), n_null=19, generator=seeded(500 + seed)).p_less, n_draws=120
    )


def test_crowded_atoms_have_less_dimension_and_more_potential_than_chance_but_not_than_their_covariance():
    crowded = gaussian(200, 16) * torch.linspace(0.1, 2, 16, dtype=torch.float64)
    for compare_ in (compare_dimensionality, compare_frame_potential):
        found = compare_(crowded, n_null=19, generator=seeded(0))
        assert min(found.p_less, found.p_greater) == pytest.approx(1 / 20)
    assert compare_frame_potential(crowded, n_null=19, generator=seeded(0)).p_greater == pytest.approx(1 / 20)
    # Normalising a Gaussian of the unit atoms' covariance makes it a little rounder than they are.
    matched, isotropic = (
        compare_dimensionality(crowded, n_null=19, generator=seeded(1), null=null) for null in ("covariance", "directions")
    )
    assert abs(matched.value - matched.null_mean) < 0.2 * abs(isotropic.value - isotropic.null_mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frame(torch.zeros(3, 4)), "all be zero, got 3 zero rows"),
        (lambda: frame(torch.zeros(0, 4)), "at least 1 rows"),
        (lambda: frame(torch.full((3, 4), math.nan)), "finite"),
        (lambda: compare_dimensionality(torch.eye(3), n_null=1, generator=seeded(0)), "n_null must be at least 2"),
    ],
)
def test_bad_input_of_frames_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
