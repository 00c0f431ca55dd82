"""Null statistics: counting by hand, and calibration."""

import math

import pytest
import torch
from scipy.stats import kstest

from sae.errors import ConfigError
from sae.geometry.nulls import compare, compare_curve, p_value, random_directions


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_p_values_count_the_draws_at_least_as_extreme_and_ties_count_against():
    found = compare(3.0, [1.0, 2.0, 3.0, 4.0])
    assert found.p_greater == pytest.approx((1 + 2) / 5)
    assert found.p_less == pytest.approx((1 + 3) / 5)
    assert (found.value, found.null_mean, found.n_null) == (3.0, 2.5, 4)
    assert found.null_sd == pytest.approx(math.sqrt(5 / 3))


def test_p_value_is_never_zero():
    assert compare(9.0, [0.0] * 99).p_greater == pytest.approx(0.01)
    assert compare(9.0, [0.0] * 99).p_less == 1


def test_curve_is_compared_point_by_point():
    draws = torch.randn(30, 4, generator=seeded(0), dtype=torch.float64)
    values = torch.tensor([0.0, -9.0, 9.0, 0.3], dtype=torch.float64)
    curve = compare_curve(values, draws)
    from_list = compare_curve(values, list(draws))
    for i in range(4):
        single = compare(values[i].item(), draws[:, i])
        assert curve.p_greater[i].item() == single.p_greater == from_list.p_greater[i].item()
        assert curve.p_less[i].item() == single.p_less
        assert curve.null_mean[i].item() == pytest.approx(single.null_mean)
        assert curve.null_sd[i].item() == pytest.approx(single.null_sd)


def test_p_values_are_uniform_under_the_null():
    draws = torch.randn(200, 100, generator=seeded(1), dtype=torch.float64)
    p = torch.tensor([compare(row[0].item(), row[1:]).p_greater for row in draws])
    jittered = p.double() - torch.rand(200, generator=seeded(2), dtype=torch.float64) / 100
    assert kstest(jittered.numpy(), "uniform").pvalue > 0.01


def test_random_directions_are_unit_and_fill_the_sphere_evenly():
    directions = random_directions(20000, torch.empty(1, 5, dtype=torch.float64), generator=seeded(3))
    assert directions.dtype == torch.float64
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20000, dtype=torch.float64))
    torch.testing.assert_close(directions.T @ directions / 20000, torch.eye(5, dtype=torch.float64) / 5, atol=0.01, rtol=0)
    assert directions.mean(dim=0).abs().max() < 0.015


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare(1.0, [2.0]), "n_null must be at least 2, got 1"),
        (lambda: compare(math.nan, [2.0, 3.0]), "NaN"),
        (lambda: compare(1.0, [2.0, math.nan]), "NaN"),
        (lambda: p_value(torch.zeros(1), torch.zeros(0, 1), alternative="less"), "at least 1 null draw"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_draws_given_as_numbers_tie_with_an_equal_value():
    third = 1 / 3  # not a float32
    assert compare(third, [third, 0.0, 0.0]).p_greater == 0.5
    assert compare(third, [third, 1.0, 1.0]).p_less == 0.5
