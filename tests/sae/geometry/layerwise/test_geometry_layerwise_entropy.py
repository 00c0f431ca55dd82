"""Matrix entropies against closed forms, direct formulas, and the properties of their definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.layerwise import (
    MatchedGaussian,
    compare_matrix_entropy,
    compare_prompt_entropy,
    matrix_entropy,
    pooled_tokens,
    prompt_entropies,
    renyi_entropy,
    von_neumann_entropy,
)

ALPHAS = (0.0, 0.3, 0.9999, 1.0, 1.0001, 2.0, 7.0, 400.0, math.inf)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(lengths, d, seed=0):
    tokens = gaussian(sum(lengths), d, seed=seed) * torch.linspace(0.5, 2, d, dtype=torch.float64) + gaussian(1, d, seed=seed + 1)
    return tokens, torch.tensor(lengths)


def direct(points, alpha, rows):
    """S_a by the definition, on the Gram matrix, in numpy."""
    z = points.numpy()
    if "centred" in rows:
        z = z - z.mean(axis=0)
    if "unit" in rows:
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
    p = np.linalg.eigvalsh(z @ z.T)
    p = p[p > 1e-11 * p.max()]
    p = p / p.sum()
    if alpha == 1:
        return -(p * np.log(p)).sum()
    if math.isinf(alpha):
        return -np.log(p.max())
    peak = p.max()
    return (alpha * np.log(peak) + np.log(((p / peak) ** alpha).sum())) / (1 - alpha)


def test_points_on_a_circle_have_the_entropy_of_two_directions():
    angles = torch.arange(50, dtype=torch.float64) * 2 * math.pi / 50
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    for alpha in ALPHAS:
        assert matrix_entropy(circle, alpha=alpha) == pytest.approx(math.log(2), abs=1e-9)
    assert von_neumann_entropy(circle) == pytest.approx(0.6931, abs=1e-4)


def test_gaussian_points_have_the_entropy_that_no_clamping_gives():
    found = [matrix_entropy(gaussian(200, 64, seed=s), rows="centred-unit") for s in range(3)]
    assert np.mean(found) == pytest.approx(4.009, abs=0.01)


@pytest.mark.parametrize("k", [1, 5, 9])
def test_k_equal_eigenvalues_have_entropy_ln_k_for_every_order(k):
    values = torch.cat([torch.full((k,), 0.7), torch.zeros(4)])
    for alpha in ALPHAS:
        assert renyi_entropy(values, alpha=alpha).item() == pytest.approx(math.log(k), abs=1e-9)


def test_entropy_falls_with_its_order_and_is_continuous_at_one():
    values = gaussian(30).exp()
    found = [renyi_entropy(values, alpha=alpha).item() for alpha in ALPHAS]
    assert all(a > b for a, b in itertools.pairwise(found))
    middle = renyi_entropy(values).item()
    p = values / values.sum()
    slope = -((p.log() + middle).square() * p).sum().item() / 2  # dS/da at 1: -var(ln p) / 2
    for step in (1e-4, 1e-8, 1e-12):
        for sign in (-1, 1):
            assert renyi_entropy(values, alpha=1 + sign * step).item() == pytest.approx(middle + sign * step * slope, abs=1e-7)


@pytest.mark.parametrize("rows", ["raw", "unit", "centred", "centred-unit"])
@pytest.mark.parametrize(("n", "d"), [(30, 7), (7, 30), (12, 12)])
def test_entropy_is_that_of_the_gram_matrix_whichever_product_is_smaller(rows, n, d):
    points = gaussian(n, d, seed=n) @ gaussian(d, d, seed=d) + gaussian(1, d, seed=3)
    for alpha in (0.5, 1.0, 2.0, 3.5, math.inf):
        assert matrix_entropy(points, alpha=alpha, rows=rows) == pytest.approx(direct(points, alpha, rows), abs=1e-9)


def test_second_order_is_minus_the_logarithm_of_the_purity():
    points = gaussian(20, 6)
    gram = points @ points.T
    expected = -math.log(float(gram.square().sum() / gram.trace() ** 2))
    assert matrix_entropy(points, alpha=2.0) == pytest.approx(expected, rel=1e-10)


def test_normalisations_divide_by_what_they_are_named_for():
    points = gaussian(20, 6)
    value, ln_n, ln_d = matrix_entropy(points), math.log(20), math.log(6)
    units = {"none": 1, "max": ln_d, "rows": ln_n, "columns": ln_d, "product": ln_n * ln_d}
    for name, unit in units.items():
        assert matrix_entropy(points, normalisation=name) == pytest.approx(value / unit, rel=1e-12)
    assert matrix_entropy(torch.eye(8), normalisation="max") == pytest.approx(1)


@pytest.mark.parametrize("rows", ["raw", "unit", "centred", "centred-unit"])
@pytest.mark.parametrize("d", [3, 40])
def test_entropy_of_ragged_prompts_is_that_of_each_prompt_alone(rows, d):
    tokens, lengths = ragged([5, 17, 2, 9, 1, 17], d)
    for alpha in (1.0, 2.0, 0.5):
        for normalisation in ("none", "max"):
            arguments = {"alpha": alpha, "rows": rows, "normalisation": normalisation}
            alone = [matrix_entropy(part, **arguments) for part in tokens.split(lengths.tolist())]
            for size in (1, 300, 2**24):
                found = prompt_entropies(tokens, lengths, **arguments, block_elements=size)
                np.testing.assert_allclose(found.numpy(), alone, atol=1e-10)


def test_what_has_no_entropy_is_nan():
    assert math.isnan(matrix_entropy(gaussian(1, 4), rows="centred"))
    assert math.isnan(matrix_entropy(torch.full((6, 3), 0.1), rows="centred-unit"))
    assert math.isnan(matrix_entropy(torch.zeros(5, 3)))
    assert math.isnan(matrix_entropy(gaussian(1, 4), normalisation="max"))
    assert matrix_entropy(gaussian(1, 4)) == 0
    tokens = torch.full((7, 3), 0.3)
    assert prompt_entropies(tokens, torch.tensor([4, 3]), rows="centred-unit").isnan().all()


def test_pooling_is_the_mean_of_the_tokens_and_centring_before_it_removes_the_mean():
    tokens, lengths = ragged([4, 1, 6], 5)
    parts = tokens.split(lengths.tolist())
    torch.testing.assert_close(pooled_tokens(tokens, lengths), torch.stack([part.mean(0) for part in parts]))
    assert pooled_tokens(tokens, lengths, rows="centred").abs().max() < 1e-12
    unit = [(part - part.mean(0)) / (part - part.mean(0)).norm(dim=1, keepdim=True) for part in (parts[0], parts[2])]
    found = pooled_tokens(tokens, lengths, rows="centred-unit")
    torch.testing.assert_close(found[[0, 2]], torch.stack([part.mean(0) for part in unit]))
    assert (found[1] == 0).all()


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (9, 8), (8, 8)])
def test_matched_gaussian_has_exactly_the_mean_and_covariance_of_the_points(n, d):
    points = gaussian(n, d, seed=n) @ gaussian(d, d, seed=d) + 3
    drawn = MatchedGaussian.of(points).draw(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), points.mean(0))
    torch.testing.assert_close(drawn.T.cov(), points.T.cov())
    assert (drawn - points).norm() > 0.5 * (points - points.mean(0)).norm()
    flat = MatchedGaussian.of(torch.full((5, 3), 0.1)).draw(torch.Generator())
    torch.testing.assert_close(flat, torch.full((5, 3), 0.1).double())


def test_unit_rows_of_a_bimodal_cloud_stand_out_and_those_of_a_gaussian_do_not():
    generator = torch.Generator().manual_seed(0)
    sides = gaussian(200, 6) * 0.3
    sides[:, 0] += 3 * torch.where(torch.arange(200) % 2 == 0, 1.0, -1.0)
    found = compare_matrix_entropy(sides, null="gaussian", rows="centred-unit", n_null=39, generator=generator)
    assert found.p_less == 1 / 40 and found.value < found.null_mean - 5 * found.null_sd
    isotropic = compare_matrix_entropy(gaussian(200, 6), null="isotropic", n_null=39, generator=generator)
    assert abs(isotropic.value - isotropic.null_mean) < 3 * isotropic.null_sd


def test_prompts_of_like_tokens_have_less_entropy_than_shuffled_ones():
    lengths = torch.tensor([8] * 20)
    tokens = gaussian(160, 12) + 2 * torch.repeat_interleave(gaussian(20, 12, seed=1), lengths, dim=0)
    for null in ("shuffled", "gaussian"):
        found = compare_prompt_entropy(tokens, lengths, null=null, n_null=19, generator=torch.Generator().manual_seed(0))
        assert found.p_less == 1 / 20 and found.null_sd > 0
        assert found.value == pytest.approx(prompt_entropies(tokens, lengths).mean().item())
    isotropic = compare_prompt_entropy(gaussian(160, 12), lengths, null="isotropic", n_null=19, generator=torch.Generator().manual_seed(1))
    assert abs(isotropic.value - isotropic.null_mean) < 3 * isotropic.null_sd


def test_p_values_of_entropies_are_uniform_under_their_null(unchecked):
    spread = torch.tensor([2.0, 1.0, 0.5])

    def isotropic(seed):
        cloud = gaussian(10, 3, seed=seed)
        generator = torch.Generator().manual_seed(10_000 + seed)
        return compare_matrix_entropy(cloud, null="isotropic", n_null=19, generator=generator).p_less

    def skew(seed):
        cloud = gaussian(10, 3, seed=seed) * spread + 0.3
        generator = torch.Generator().manual_seed(10_000 + seed)
        return compare_matrix_entropy(cloud, null="gaussian", rows="unit", n_null=19, generator=generator).p_greater

    def shuffled(seed):
        tokens = gaussian(12, 3, seed=seed).exp()
        generator = torch.Generator().manual_seed(10_000 + seed)
        return compare_prompt_entropy(tokens, torch.tensor([5, 3, 4]), null="shuffled", n_null=19, generator=generator).p_less

    for p_value in (isotropic, skew, shuffled):
        check_calibrated(p_value, n_draws=120)


def one_prompt(x, **arguments):
    return prompt_entropies(x, torch.tensor([len(x)]), **arguments)


MEASURES = [
    Measure("matrix entropy", matrix_entropy, rotation=True, scale=True, translation=False, linear=False),
    Measure("centred entropy", lambda x: matrix_entropy(x, rows="centred"), rotation=True, scale=True, translation=True, linear=False),
    Measure("von Neumann entropy", von_neumann_entropy, rotation=True, scale=True, translation=False, linear=False),
    Measure(
        "Renyi entropy of unit rows",
        lambda x: matrix_entropy(x, alpha=2.5, rows="centred-unit", normalisation="max"),
        rotation=True,
        scale=True,
        translation=True,
        linear=False,
    ),
    Measure(
        "prompt entropy",
        one_prompt,
        rotation=True,
        scale=True,
        translation=False,
        linear=False,
        blocked=lambda x, size: one_prompt(x, block_elements=size),
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_entropy_has_the_properties_of_its_definition(measure):
    check(measure)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: matrix_entropy(gaussian(4, 3), alpha=-1.0), "alpha must be at least 0"),
        (lambda: matrix_entropy(gaussian(4, 3), rows="white"), "rows must be one of"),
        (lambda: matrix_entropy(gaussian(4, 3), normalisation="trace"), "normalisation must be one of"),
        (lambda: renyi_entropy(torch.tensor([1.0, math.nan])), "finite"),
        (lambda: prompt_entropies(gaussian(5, 3), torch.tensor([2, 2])), "add up to the 5 rows"),
        (lambda: prompt_entropies(gaussian(5, 3), torch.tensor([5, 0])), "at least 1"),
        (lambda: pooled_tokens(gaussian(5, 3), torch.tensor([4])), "add up"),
        (lambda: compare_matrix_entropy(gaussian(5, 3), null="gaussian", n_null=3, generator=torch.Generator()), "keeps the entropy"),
        (lambda: compare_matrix_entropy(gaussian(5, 3), null="wishart", n_null=3, generator=torch.Generator()), "null must be"),
        (
            lambda: compare_prompt_entropy(gaussian(5, 3), torch.tensor([5]), null="order", n_null=3, generator=torch.Generator()),
            "null must be",
        ),
        (lambda: MatchedGaussian.of(gaussian(1, 3)), "at least 2 rows"),
    ],
)
def test_bad_input_to_entropies_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()
