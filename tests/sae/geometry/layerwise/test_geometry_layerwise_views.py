"""InfoNCE, LiDAR, DiME: what two views of a prompt share, against closed forms and direct formulas."""

import math

import numpy as np
import pytest
import torch
from universal import Measure, anisotropic_cloud, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.layerwise import compare_dime, compare_info_nce, compare_lidar, dime, info_nce, lidar


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_orthonormal_identical_views_have_the_loss_of_their_negatives_alone():
    found = info_nce(torch.eye(64), torch.eye(64))
    assert found.loss == pytest.approx(math.log(1 + 126 * math.exp(-10)), rel=1e-9)
    assert found.loss == pytest.approx(0.00570, abs=1e-5)
    assert found.information_bound == pytest.approx(math.log(64) - found.loss)


def test_constant_views_have_the_loss_of_a_guess_and_prove_nothing():
    found = info_nce(torch.ones(64, 5), torch.ones(64, 5))
    assert found.loss == pytest.approx(math.log(127), rel=1e-9)
    assert found.loss == pytest.approx(4.844, abs=1e-3)
    assert found.information_bound < 0


@pytest.mark.parametrize("rows", ["unit", "raw"])
def test_info_nce_is_the_mean_over_both_views_of_the_cross_entropy_of_the_partner(rows):
    first, second = gaussian(9, 4), gaussian(9, 4, seed=1)
    both = torch.cat([first, second]).numpy()
    if rows == "unit":
        both = both / np.linalg.norm(both, axis=1, keepdims=True)
    logits = both @ both.T / 0.3
    losses = []
    for i in range(18):
        others = [j for j in range(18) if j != i]
        losses.append(np.log(np.exp(logits[i, others]).sum()) - logits[i, (i + 9) % 18])
    found = [info_nce(first, second, temperature=0.3, rows=rows, block_elements=size).loss for size in (1, 50, 2**20)]
    assert found == pytest.approx([np.mean(losses)] * 3, rel=1e-9)


def test_info_nce_of_pairs_that_belong_together_stands_out():
    first = gaussian(60, 8)
    second = first + 0.5 * gaussian(60, 8, seed=1)
    found = compare_info_nce(first, second, n_null=39, generator=seeded(0))
    assert found.value == pytest.approx(info_nce(first, second).loss)
    assert found.p_less == 1 / 40
    order = torch.randperm(60, generator=seeded(0))
    draw = compare_info_nce(first, second, n_null=2, generator=seeded(0))
    other = info_nce(first, second[order]).loss
    rest = 2 * draw.null_mean - other  # the other draw
    assert draw.null_sd == pytest.approx(abs(other - rest) / math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize(("rank", "expected"), [(2, 2.09), (8, 8.04), (32, 31.5)])
def test_lidar_counts_the_directions_in_which_the_prompts_differ(rank, expected):
    means = gaussian(1000, rank) @ torch.linalg.qr(gaussian(64, 64, seed=1)).Q[:rank]
    views = means[:, None] + 0.05 * gaussian(1000, 16, 64, seed=2)
    assert lidar(views) == pytest.approx(expected, rel=0.03)


def test_lidar_is_the_exponential_of_the_entropy_of_whitened_means():
    views = gaussian(30, 4, 5) * torch.linspace(0.3, 2, 5) + 2 * gaussian(30, 1, 5, seed=1)
    means = views.mean(1).numpy()
    within = (views.numpy() - means[:, None]).reshape(-1, 5)
    spread = within.T @ within / len(within) + 1e-2 * np.eye(5)
    values, axes = np.linalg.eigh(spread)
    root = axes / np.sqrt(values) @ axes.T
    p = np.linalg.eigvalsh(root @ np.cov(means.T, bias=True) @ root)
    p = p / p.sum()
    assert lidar(views, ridge=1e-2) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_lidar_of_planted_prompts_stands_out():
    views = gaussian(40, 3, 4) + torch.tensor([3.0, 0, 0, 0]) * gaussian(40, 1, 1, seed=1)
    found = compare_lidar(views, n_null=19, generator=seeded(0))
    assert found.p_less == 1 / 20 and found.value < 2 < found.null_mean


@pytest.mark.parametrize(("c", "expected"), [(2, 0.6917), (4, 1.3607)])
def test_dime_of_equal_clusters_nears_the_logarithm_of_their_number(c, expected):
    clusters = torch.eye(c).repeat_interleave(200 // c, dim=0)
    found = dime(clusters, clusters, n_permutations=50, generator=seeded(0))
    assert found == pytest.approx(expected, abs=0.005)
    assert found == pytest.approx(math.log(c), abs=0.03)


def test_dime_of_orthonormal_rows_is_zero_and_of_unrelated_views_near_zero():
    assert dime(torch.eye(40), torch.eye(40), generator=seeded(0)) == pytest.approx(0, abs=1e-12)
    found = compare_dime(gaussian(60, 5), gaussian(60, 3, seed=1), n_null=19, generator=seeded(0))
    assert abs(found.value) < 4 * found.null_sd and found.null_mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_dime_is_the_difference_of_entropies_of_entrywise_products(centred):
    first, second = gaussian(15, 4) + 1, gaussian(15, 6, seed=1) + 0.5

    def gram(view):
        z = view.numpy() - (view.numpy().mean(0) if centred else 0)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        return z @ z.T

    def entropy(matrix):
        p = np.linalg.eigvalsh(matrix / np.trace(matrix))
        p = p[p > 1e-12]
        return -(p * np.log(p)).sum()

    a, b = gram(first), gram(second)
    generator = seeded(3)
    orders = [torch.randperm(15, generator=generator).numpy() for _ in range(4)]
    expected = np.mean([entropy(a * b[np.ix_(o, o)]) for o in orders]) - entropy(a * b)
    assert dime(first, second, centred=centred, n_permutations=4, generator=seeded(3)) == pytest.approx(expected, abs=1e-10)


def test_dime_of_views_of_one_thing_stands_out():
    first = gaussian(50, 6)
    found = compare_dime(first, first @ gaussian(6, 4, seed=1) + 0.2 * gaussian(50, 4, seed=2), n_null=19, generator=seeded(0))
    assert found.p_greater == 1 / 20


def test_p_values_of_views_are_uniform_when_nothing_is_shared(unchecked):
    def of_info_nce(seed):
        return compare_info_nce(gaussian(8, 3, seed=seed), gaussian(8, 3, seed=500 + seed), n_null=19, generator=seeded(seed)).p_less

    def of_lidar(seed):
        return compare_lidar(gaussian(7, 2, 3, seed=seed).exp(), n_null=19, generator=seeded(seed)).p_less

    def of_dime(seed):
        return compare_dime(gaussian(8, 3, seed=seed), gaussian(8, 3, seed=500 + seed), n_null=19, generator=seeded(seed)).p_greater

    for p_value in (of_info_nce, of_lidar, of_dime):
        check_calibrated(p_value, n_draws=150)


def halves(x):
    return x[: len(x) // 2], x[len(x) // 2 :]


TABLE = {"rotation": True, "translation": False, "linear": False, "permutation": None}
MEASURES = [
    Measure("InfoNCE", lambda x: info_nce(*halves(x), temperature=0.5).loss, scale=True, **TABLE),
    Measure("InfoNCE of raw rows", lambda x: info_nce(*halves(x), rows="raw", temperature=5.0).loss, scale=False, **TABLE),
    Measure("DiME", lambda x: dime(*halves(x), generator=seeded(0)), scale=True, **TABLE),
    Measure(
        "LiDAR",
        lambda x: lidar(x[: len(x) // 3 * 3].reshape(-1, 3, x.shape[1]), ridge=1e-9),
        rotation=True,
        scale=True,
        translation=True,
        linear=True,
        permutation=None,
        cloud=anisotropic_cloud(n=90, d=5),
        wide=False,
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_measure_of_views_has_the_properties_of_its_definition(measure):
    check(measure)


def test_lidar_depends_on_the_unit_through_its_ridge_alone():
    views = gaussian(30, 4, 5)
    assert lidar(10 * views, ridge=1e-2) == pytest.approx(lidar(views, ridge=1e-4), rel=1e-9)
    assert lidar(10 * views, ridge=1e-1) != pytest.approx(lidar(views, ridge=1e-1), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(gaussian(1, 3), gaussian(1, 3)), "at least 2 rows"),
        (lambda: info_nce(gaussian(4, 3), gaussian(4, 3), temperature=0.0), "temperature must be positive"),
        (lambda: info_nce(gaussian(4, 3), gaussian(4, 3), rows="white"), "rows must be one of"),
        (lambda: lidar(gaussian(4, 3, 4)), "more prompts than dimensions"),
        (lambda: lidar(gaussian(9, 1, 4)), "at least 2 views"),
        (lambda: lidar(gaussian(9, 2, 4), ridge=0.0), "ridge must be positive"),
        (lambda: lidar(torch.ones(9, 2, 4)), "equal means"),
        (lambda: dime(gaussian(4, 3), gaussian(5, 3), generator=seeded(0)), "as many rows"),
        (lambda: dime(torch.zeros(4, 3), gaussian(4, 3), generator=seeded(0)), "no zero row"),
        (lambda: dime(gaussian(4, 3), gaussian(4, 3), n_permutations=0, generator=seeded(0)), "n_permutations"),
        (lambda: compare_dime(gaussian(4, 3), gaussian(4, 3), n_null=1, generator=seeded(0)), "n_null must be at least 2"),
        (lambda: dime(torch.ones(4097, 1), torch.ones(4097, 1), generator=seeded(0)), "take a sample"),
    ],
)
def test_bad_input_to_measures_of_views_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()
