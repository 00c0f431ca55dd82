"""Procrustes distances against scipy, the axioms of a metric, planted rotations and permutations, and the bias of the plug-in."""

import itertools
import math

import pytest
import scipy.linalg
import scipy.spatial
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    HeldOutProcrustes,
    PermutationSimilarity,
    ProcrustesSimilarity,
    canonical_correlations,
    compare_representations,
    independent_procrustes_mean,
    permutation_alignment,
    permutation_distance,
    procrustes_alignment,
    procrustes_similarity,
    shape_distance,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(d, seed):
    return torch.linalg.qr(normal(d, d, seed)).Q


@pytest.mark.parametrize("n", [40, 6])
def test_similarity_and_distance_are_those_of_scipy(n):
    x, y = normal(n, 8, 0) + 3, normal(n, 8, 1) - 1
    x0, y0 = x - x.mean(0), y - y.mean(0)
    rotation, scale = scipy.linalg.orthogonal_procrustes(y0.numpy(), x0.numpy())
    assert procrustes_similarity(x, y) == pytest.approx(scale / float(x0.norm() * y0.norm()), abs=1e-10)
    assert shape_distance(x, y, kind="euclidean") == pytest.approx(float((x0 - y0 @ torch.from_numpy(rotation)).norm()), abs=1e-8)
    _, _, disparity = scipy.spatial.procrustes(x.numpy(), y.numpy())
    assert procrustes_similarity(x, y) ** 2 == pytest.approx(1 - disparity, abs=1e-10)
    if n > 8:
        assert torch.allclose(procrustes_alignment(x, y).rotation, torch.from_numpy(rotation), atol=1e-9)


def test_orthonormal_shapes_are_apart_by_the_arc_cosine_of_their_mean_correlation():
    x, y = (torch.linalg.qr(normal(50, 6, seed) - normal(50, 6, seed).mean(0)).Q for seed in (2, 3))
    expected = math.acos(float(torch.linalg.svdvals(x.T @ y).mean()))
    assert shape_distance(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("distance", [shape_distance, permutation_distance], ids=["rotation", "permutation"])
@pytest.mark.parametrize("kind", ["angular", "euclidean"])
def test_distances_are_metrics(distance, kind):
    base = normal(30, 6, 4)
    clouds = [base + scale * normal(30, 6, 5 + i) for i, scale in enumerate((0.0, 0.3, 1.0, 3.0))] + [normal(30, 6, 20)]
    for a, b, c in itertools.permutations(clouds, 3):
        assert distance(a, c, kind=kind) <= distance(a, b, kind=kind) + distance(b, c, kind=kind) + 1e-9
        assert distance(a, b, kind=kind) == pytest.approx(distance(b, a, kind=kind), abs=1e-9)
    assert distance(base, base.clone(), kind=kind) == pytest.approx(0, abs=1e-6)
    assert distance(base, clouds[1], kind=kind) > 0.05


def test_the_distance_to_a_turned_shifted_copy_is_zero_and_angular_forgets_the_scale():
    x = normal(50, 7, 30)
    copy = x @ turn(7, 31) + 4
    assert shape_distance(x, copy, kind="euclidean") == pytest.approx(0, abs=1e-5)
    assert shape_distance(x, 9 * copy) == pytest.approx(0, abs=1e-6)
    assert shape_distance(x, 9 * copy, kind="euclidean") == pytest.approx(8 * float((x - x.mean(0)).norm()), rel=1e-9)


def test_columns_of_zeros_change_nothing():
    x, y = normal(40, 5, 32), normal(40, 7, 33)
    padded = torch.cat([x, torch.zeros(40, 4, dtype=torch.float64)], dim=1)
    for distance in (shape_distance, permutation_distance):
        assert distance(padded[:, :7], y) == pytest.approx(distance(x, y), abs=1e-10)
    assert shape_distance(padded, y) == pytest.approx(shape_distance(x, y), abs=1e-10)


def test_whitening_goes_from_procrustes_to_canonical_correlations():
    x, y = normal(80, 5, 34) @ normal(5, 5, 35), normal(80, 4, 36)
    y = y + x[:, :4]
    rho = canonical_correlations(x, y)
    assert procrustes_similarity(x, y, alpha=0.0) == pytest.approx(float(rho.sum()) / math.sqrt(5 * 4), abs=1e-9)
    stretched = x @ normal(5, 5, 37)
    assert procrustes_similarity(stretched, y, alpha=0.0) == pytest.approx(procrustes_similarity(x, y, alpha=0.0), abs=1e-9)
    assert abs(procrustes_similarity(stretched, y) - procrustes_similarity(x, y)) > 0.01
    between = [procrustes_similarity(x, stretched, alpha=a) for a in (0.0, 0.5, 1.0)]
    assert between == sorted(between, reverse=True)


def test_partial_whitening_keeps_the_variance_and_is_the_matrix_of_the_definition():
    x, y = normal(60, 4, 38) * torch.tensor([4.0, 2, 1, 0.5]) @ turn(4, 39), normal(60, 6, 40)
    alpha, x0 = 0.3, x - x.mean(0)
    covariance = x0.T @ x0
    covariance = covariance / (covariance.trace() / 4)  # mean eigenvalue 1
    whitening = torch.from_numpy(scipy.linalg.inv(scipy.linalg.sqrtm(covariance.numpy()).real))
    white = x0 @ ((1 - alpha) * whitening + alpha * torch.eye(4, dtype=torch.float64))
    y0 = y - y.mean(0)
    cosine = scipy.linalg.svdvals((white.T @ _whiten(y0, alpha)).numpy()).sum() / float(white.norm() * _whiten(y0, alpha).norm())
    assert procrustes_similarity(x, y, alpha=alpha) == pytest.approx(cosine, abs=1e-9)
    expected = (float(x0.norm()) ** 2 + float(y0.norm()) ** 2 - 2 * cosine * float(x0.norm() * y0.norm())) ** 0.5
    assert shape_distance(x, y, kind="euclidean", alpha=alpha) == pytest.approx(expected, abs=1e-8)


def _whiten(y0, alpha):
    u, s, vh = torch.linalg.svd(y0, full_matrices=False)
    return u * ((1 - alpha) + alpha * s / s.square().mean().sqrt()) @ vh


@pytest.mark.parametrize(("m", "known"), [(1000, 0.187), (200, 0.414)])
def test_independent_shapes_look_alike_by_the_known_bias_and_held_out_ones_do_not(m, known):
    draws = [procrustes_similarity(normal(m, 50, s), normal(m, 50, 100 + s)) for s in range(4)]
    assert sum(draws) / 4 == pytest.approx(known, abs=0.004)
    assert independent_procrustes_mean(m, 50) == pytest.approx(known, abs=0.011)
    held = [HeldOutProcrustes()(normal(m, 50, s), normal(m, 50, 100 + s)) for s in range(4)]
    assert abs(sum(held) / 4) < 0.02


def test_a_planted_rotation_is_found_and_scores_on_new_stimuli():
    x = normal(300, 6, 41) + 2
    rotation = turn(6, 42)
    y = (x - 2) @ rotation.T + 0.1 * normal(300, 6, 43) - 5
    found = procrustes_alignment(x[:200], y[:200])
    assert torch.allclose(found.rotation, rotation, atol=0.05)
    assert (found.apply(y[200:]) - x[200:]).abs().mean() < 0.15
    assert found.score(x[200:], y[200:]) > 0.97
    assert HeldOutProcrustes()(x, y) > 0.97


def test_an_alignment_to_a_wider_space_keeps_lengths():
    x, y = normal(100, 9, 44), normal(100, 4, 45)
    rotation = procrustes_alignment(x, y).rotation
    assert torch.allclose(rotation @ rotation.T, torch.eye(4, dtype=torch.float64), atol=1e-10)
    few = procrustes_alignment(x[:3], y[:3]).rotation  # two directions are all that three stimuli determine
    assert torch.linalg.svdvals(few).tolist() == pytest.approx([1, 1, 0, 0], abs=1e-8)


def test_a_planted_permutation_is_found_also_among_fewer_columns():
    x = normal(200, 8, 46)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    y = x[:, order] + 0.2 * normal(200, 8, 47)
    found = permutation_alignment(x, y)
    assert torch.equal(order[found], torch.arange(8))
    assert PermutationSimilarity()(x, x[:, order] * 3 - 1) == pytest.approx(1, abs=1e-12)
    narrow = permutation_alignment(x, y[:, :5])
    assert sorted(narrow[narrow >= 0].tolist()) == [0, 1, 2, 3, 4] and int((narrow < 0).sum()) == 3
    assert PermutationSimilarity()(x, y) <= procrustes_similarity(x, y)


def test_the_best_permutation_is_the_best_of_all():
    x, y = normal(30, 4, 48), normal(30, 4, 49)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    best = max(float((x0 * y0[:, list(order)]).sum()) for order in itertools.permutations(range(4)))
    assert PermutationSimilarity()(x, y) == pytest.approx(best / float(x0.norm() * y0.norm()), abs=1e-12)
    assert math.cos(permutation_distance(x, y)) == pytest.approx(best / float(x0.norm() * y0.norm()), abs=1e-12)


@pytest.mark.parametrize("measure", [ProcrustesSimilarity(), HeldOutProcrustes(2), PermutationSimilarity()],
                         ids=["plug-in", "held out", "permutation"])  # fmt: skip
def test_p_values_of_procrustes_similarities_are_calibrated(measure, unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        return compare_representations(measure, normal(20, 4, seed), normal(20, 5, 1000 + seed), n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=100)


@pytest.mark.parametrize("measure", [ProcrustesSimilarity(), ProcrustesSimilarity(0.4), HeldOutProcrustes(), PermutationSimilarity()],
                         ids=["plug-in", "whitened", "held out", "permutation"])  # fmt: skip
def test_permuted_scores_are_those_of_permuted_rows_and_grow_with_the_planted_relation(measure):
    x, noise = normal(60, 5, 50), normal(60, 5, 51)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert measure.score(measure.prepare(x), measure.prepare(noise), order) == pytest.approx(measure(x, noise[order]), abs=1e-10)
    scores = [measure(x, amount * x + noise) for amount in (0.0, 0.7, 1.5, 4.0)]
    assert scores == sorted(scores)


MEASURES = [
    Measure("Procrustes", procrustes_similarity, rotation=True, scale=True, translation=True, linear=False, pair=True),
    Measure("whitened Procrustes", lambda x, y: procrustes_similarity(x, y, alpha=0.5), rotation=True, scale=True, translation=True,
            linear=False, pair=True, single_tolerance=1e-3),
    Measure("angle", shape_distance, rotation=True, scale=True, translation=True, linear=False, pair=True),
    Measure("Euclidean shape distance", lambda x, y: shape_distance(x, y, kind="euclidean"), rotation=True, scale=False, translation=True,
            linear=False, pair=True),
    Measure("permutation angle", permutation_distance, rotation=False, scale=True, translation=True, linear=False, pair=True),
    Measure("held-out Procrustes", lambda x, y: HeldOutProcrustes(4)(x, y), rotation=True, scale=True, translation=True, linear=False,
            permutation=None, pair=True),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_shape_measure_has_the_properties_of_its_definition(measure):
    check(measure)


def test_bad_shapes_are_refused_with_a_reason():
    x = normal(10, 3, 60)
    with pytest.raises(ConfigError, match="alpha must be in"):
        procrustes_similarity(x, x, alpha=1.5)
    with pytest.raises(ConfigError, match="equal rows"):
        shape_distance(x, torch.ones(10, 2))
    with pytest.raises(ConfigError, match="10 and 9 rows"):
        procrustes_alignment(x, x[:9])
    with pytest.raises(ConfigError, match=r"n_folds must be in 2\.\.n/2=5"):
        HeldOutProcrustes(6)(x, x)
    with pytest.raises(ConfigError, match="p must be in"):
        independent_procrustes_mean(10, 10)
