"""The moment estimate of a nuclear norm: unbiased moments, the quadratic program, and less bias than the plug-in."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from sae.errors import ConfigError
from sae.geometry.representations import cross_covariance_moments, nuclear_norm_estimate, shape_similarity_estimate
from sae.geometry.representations.moments import GRID, square_root_polynomial


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_moment(x, y, p):
    """The average over all increasing chains of 2p different rows, one by one."""
    total, m = 0.0, len(x)
    for rows in itertools.combinations(range(m), 2 * p):
        product = 1.0
        for step, row in enumerate(rows):
            after = rows[(step + 1) % (2 * p)]
            product *= float(x[row] @ x[after]) if step % 2 == 0 else float(y[row] @ y[after])
        total += product
    return total / math.comb(m, 2 * p)


def test_moments_are_averages_over_increasing_chains_of_different_rows():
    x, y = normal(9, 3, 0), normal(9, 4, 1)
    expected = [slow_moment(x, y, p) for p in (1, 2, 3, 4)]
    assert cross_covariance_moments(x, y, n_moments=4).tolist() == pytest.approx(expected, rel=1e-10)


def test_moments_are_unbiased_where_the_plug_in_is_not():
    mixing = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.5, 0.2]], dtype=torch.float64)
    squares = torch.linalg.eigvalsh(mixing @ mixing.T)  # S = E[x y^T] = mixing, x standard
    truth = torch.stack([squares.pow(p).sum() for p in (1, 2)])
    found, plug_in = [], []
    for seed in range(2000):
        x = normal(12, 2, seed)
        y = x @ mixing + normal(12, 3, 10_000 + seed)
        found.append(cross_covariance_moments(x, y, n_moments=2))
        plug_in.append(float((x.T @ y / 12).square().sum()))
    draws = torch.stack(found)
    errors = (draws.mean(dim=0) - truth) / (draws.std(dim=0) / 2000**0.5)
    assert errors.abs().max() < 3
    assert (sum(plug_in) / 2000 - float(truth[0])) / float(truth[0]) > 0.3


def test_the_first_moment_does_not_depend_on_the_order_of_the_rows():
    x, y = normal(20, 3, 2), normal(20, 3, 3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    first, second = cross_covariance_moments(x, y, n_moments=2), cross_covariance_moments(x[order], y[order], n_moments=2)
    assert float(first[0]) == pytest.approx(float(second[0]))
    assert abs(float(first[1] - second[1])) > 1e-6


def test_the_polynomial_without_variance_is_the_minimax_one():
    roots = np.linspace(0, 1, GRID)
    powers = roots[:, None] ** (2 * np.arange(1, 5))
    ones = np.ones((GRID, 1))
    rows = np.vstack([np.hstack([-powers, -ones]), np.hstack([powers, -ones])])
    best = linprog(np.append(np.zeros(4), 1), A_ub=rows, b_ub=np.concatenate([-roots, roots]), bounds=[(None, None)] * 5)
    gamma, error = square_root_polynomial(1e-12 * torch.eye(4, dtype=torch.float64), width=5, bias_weight=1.0)
    assert error == pytest.approx(best.fun, rel=1e-3)
    assert np.abs(powers @ gamma.numpy() - roots).max() == pytest.approx(error)


@pytest.mark.parametrize("bias_weight", [0.3, 1.0, 1.7])
def test_no_nearby_polynomial_has_a_smaller_objective(bias_weight):
    factor = normal(6, 6, 4) * torch.logspace(-2, 1, 6, dtype=torch.float64)[:, None]
    covariance = 1e-3 * factor @ factor.T
    gamma, error = square_root_polynomial(covariance, width=5, bias_weight=bias_weight)
    roots = torch.linspace(0, 1, GRID, dtype=torch.float64)
    powers = roots[:, None] ** (2 * torch.arange(1, 7))

    def objective(g):
        worst = float((powers @ g - roots).abs().max())
        return float((2 - bias_weight) * g @ covariance @ g) + bias_weight * 25 * worst**2

    value = objective(gamma)
    assert error == pytest.approx(float((powers @ gamma - roots).abs().max()))
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1e-2, 1e-1):
        for _ in range(100):
            step = scale * torch.randn(6, generator=generator, dtype=torch.float64) * gamma.abs()
            assert objective(gamma + step) >= value * (1 - 1e-6)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_a_general_solver_finds_no_smaller_objective_nor_another_polynomial(width):
    factor = normal(4, 4, 9)
    covariance = 1e-2 * factor @ factor.T
    gamma, error = square_root_polynomial(covariance, width=width, bias_weight=1.0)
    roots = np.linspace(0, 1, GRID)
    basis, triangle = np.linalg.qr(roots[:, None] ** (2 * np.arange(1, 5)))
    quadratic = np.linalg.inv(triangle).T @ covariance.numpy() @ np.linalg.inv(triangle)
    start = basis.T @ roots
    rows = np.vstack([np.hstack([basis, np.ones((GRID, 1))]), np.hstack([-basis, np.ones((GRID, 1))])])
    bounds = np.concatenate([roots, -roots])
    theirs = minimize(
        lambda v: v[:-1] @ quadratic @ v[:-1] + width**2 * v[-1] ** 2,
        np.append(start, np.abs(roots - basis @ start).max()),
        constraints={"type": "ineq", "fun": lambda v: rows @ v - bounds, "jac": lambda v: rows},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert float(gamma @ covariance @ gamma) + width**2 * error**2 == pytest.approx(theirs.fun, rel=1e-3)
    assert error == pytest.approx(theirs.x[-1], rel=2e-2)


def test_a_larger_bias_weight_buys_less_bias_for_more_variance():
    x, y = normal(80, 6, 5), normal(80, 6, 6)
    found = [nuclear_norm_estimate(x, x + 2 * y, n_moments=6, bias_weight=a) for a in (0.1, 1.0, 1.9)]
    assert found[0].bias_bound > found[1].bias_bound > found[2].bias_bound
    assert found[0].standard_error < found[1].standard_error < found[2].standard_error


def test_independent_representations_get_about_zero_where_the_plug_in_says_five():
    found = [nuclear_norm_estimate(normal(120, 20, s), normal(120, 20, 50 + s)) for s in range(8)]
    assert all(each.plug_in > 5 for each in found)
    assert abs(sum(each.value for each in found) / 8) < 1


def test_a_rotated_copy_gets_the_nuclear_norm_of_its_covariance_in_any_units():
    rotation = torch.linalg.qr(normal(8, 8, 7)).Q
    scales = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    found = []
    for seed in range(6):
        x = normal(150, 8, 100 + seed) * scales
        found.append(nuclear_norm_estimate(3 * x, x @ rotation, n_moments=6))
    truth = 3 * float(scales.square().sum())
    assert sum(each.value for each in found) / 6 == pytest.approx(truth, rel=0.08)
    x = normal(150, 8, 100) * scales
    small = nuclear_norm_estimate(1e-3 * x, x @ rotation, n_moments=6)
    assert small.value * 3000 == pytest.approx(nuclear_norm_estimate(3 * x, x @ rotation, n_moments=6).value, rel=1e-6)
    assert shape_similarity_estimate(x, x @ rotation, n_moments=6) == pytest.approx(1, abs=0.15)


def test_bad_input_is_refused_with_a_reason():
    x = normal(20, 3, 8)
    with pytest.raises(ConfigError, match=r"n_moments must be in 1\.\.M/2=10"):
        cross_covariance_moments(x, x, n_moments=11)
    with pytest.raises(ConfigError, match="at most 4096 rows"):
        cross_covariance_moments(torch.zeros(4097, 1), torch.zeros(4097, 1))
    with pytest.raises(ConfigError, match="20 and 19 rows"):
        cross_covariance_moments(x, x[:19])
    with pytest.raises(ConfigError, match="NaN or Inf"):
        cross_covariance_moments(x, x / 0)
    with pytest.raises(ConfigError, match="bias_weight"):
        nuclear_norm_estimate(x, x, n_moments=2, bias_weight=2.0)
    with pytest.raises(ConfigError, match="n_groups"):
        nuclear_norm_estimate(x, x, n_moments=2, n_groups=21)
    with pytest.raises(ConfigError, match="at most half the stimuli left"):
        nuclear_norm_estimate(x, x, n_moments=10)
    with pytest.raises(ConfigError, match="orthogonal"):
        nuclear_norm_estimate(x, torch.zeros(20, 2), n_moments=2)
