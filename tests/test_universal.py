"""The properties that tests of measures rest on: each of them fails on a measure that lacks it."""

from dataclasses import replace

import pytest
import torch
from universal import Measure, check, check_blocks, check_calibrated, check_degenerate, check_invariances, check_types

from sae.errors import ConfigError


def refused(x):
    if len(x) < 1 or not x.isfinite().all():
        raise ConfigError("x must be finite rows")
    return x.double()


def spread(x):
    x = refused(x)
    return (x - x.mean(0)).square().sum(1).mean().sqrt()


SPREAD = Measure("spread", spread, rotation=True, scale=False, translation=True, linear=False, blocked=lambda x, size: spread(x))


def test_a_measure_with_the_properties_that_it_states_passes():
    check(SPREAD)


@pytest.mark.parametrize(
    "wrong", [{"rotation": False}, {"scale": True}, {"translation": False}, {"linear": True}, {"permutation": False}], ids=str
)
def test_a_wrong_statement_of_invariance_fails(wrong):
    with pytest.raises(AssertionError):
        check_invariances(replace(SPREAD, **wrong))


def changes_its_argument(x):
    x += 1
    return spread(x)


def remembers(x, seen=[]):  # noqa: B006
    seen.append(1)
    return spread(x) + len(seen)


@pytest.mark.parametrize(
    "broken",
    [
        lambda x: spread(x) * (1 + 1e-3 * (x.dtype == torch.float32)),
        changes_its_argument,
        remembers,
        lambda x: spread(x) + (0.1 if x.dtype == torch.float16 else 0),
    ],
    ids=["too few digits", "argument changed", "memory", "another value for halves"],
)
def test_rounding_memory_and_changed_arguments_fail(broken):
    with pytest.raises(AssertionError):
        check_types(replace(SPREAD, call=broken))


def test_degenerate_input_that_is_neither_refused_nor_defined_fails():
    for broken in (
        lambda x: x.nan_to_num(0, 0, 0).square().mean(),
        lambda x: refused(x).std(0).log().sum(),
        lambda x: spread(x) / (len(x) > x.shape[1]),
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_degenerate(replace(SPREAD, call=broken))
    with pytest.raises(pytest.fail.Exception):
        check_degenerate(replace(SPREAD, constant_column=False))


def test_blocks_that_change_the_value_fail():
    with pytest.raises(AssertionError):
        check_blocks(replace(SPREAD, blocked=lambda x, size: spread(x) * (1 + 1 / size)))


def test_p_values_that_are_not_uniform_fail():
    def p_values(power):
        return lambda seed: float((torch.rand(1, generator=torch.Generator().manual_seed(seed)) ** power * 99).floor() + 1) / 100

    check_calibrated(p_values(1))
    for power in (0.5, 2):
        with pytest.raises(AssertionError):
            check_calibrated(p_values(power))
