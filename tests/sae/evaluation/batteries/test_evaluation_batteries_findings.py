"""Findings: which numbers stand out, by a rule that another library and a hand calculation confirm."""

import math

import pytest
import torch
from scipy.stats import false_discovery_control

from sae.errors import ConfigError
from sae.evaluation.batteries import Number, Quantity, judged, largest_rejected
from sae.evaluation.batteries.findings import finding, of_null, of_tries, smallest_p
from sae.geometry.nulls import compare

SIDES = {side: Quantity("q", "What it means.", "A source", alternative=side, null="draws") for side in ("greater", "less", "two-sided")}


def found(p, *, n_null=999, side="greater", tries=1):
    number = Number("q", 1.0, "", None if p is None else 0.0, None if p is None else 1.0, None if p is None else n_null, p, tries=tries)
    return finding(SIDES[side], number, measure="m")


def test_the_rule_of_benjamini_and_hochberg_agrees_with_scipy_and_with_a_hand_calculation():
    assert largest_rejected([0.01, 0.02, 0.03, 0.5], 0.05) == 0.03  # 0.03 <= 0.05 * 3 / 4, though 0.02 > 0.05 / 4
    assert largest_rejected([0.2, 0.3], 0.05) == 0.0
    assert largest_rejected([], 0.05) == 0.0
    generator = torch.Generator().manual_seed(1)
    for n in (1, 3, 20, 200):
        for power in (1.0, 3.0, 6.0):
            p = torch.rand(n, generator=generator, dtype=torch.float64).pow(power).tolist()
            rejected = [q <= 0.05 for q in false_discovery_control(p)]
            verdicts = [each.stands_out == "yes" for each in judged([found(each, n_null=10**9) for each in p])]
            assert verdicts == rejected


def test_what_stands_out_does_not_depend_on_the_order_and_findings_without_a_null_do_not_count():
    p = [0.001, 0.9, 0.02, 0.04, 0.5]
    first = judged([found(each) for each in p])
    again = judged([found(None), *(found(each) for each in reversed(p)), found(None)])
    assert [each.stands_out for each in first] == [each.stands_out for each in reversed(again[1:-1])]
    assert again[0].stands_out == again[-1].stands_out == "no null"


def test_a_value_beyond_all_its_draws_that_does_not_pass_needs_more_draws():
    many = [found(1 / 20, n_null=19), *(found(0.5) for _ in range(30))]
    assert judged(many)[0].stands_out == "too few draws"
    assert judged(many)[1].stands_out == "no"
    assert judged([found(1 / 1000, n_null=999), *many[1:]])[0].stands_out == "yes"
    assert judged([found(2 / 20, n_null=19, side="two-sided"), *many[1:]])[0].stands_out == "too few draws"
    assert judged([found(0.05, n_null=None), *many[1:]])[0].stands_out == "no"  # an exact law has no smallest p


def test_p_values_are_of_the_side_that_the_quantity_asks_for():
    draws = torch.arange(1.0, 20.0)
    high = {side: of_null(quantity, compare(30.0, draws)).p for side, quantity in SIDES.items()}
    low = {side: of_null(quantity, compare(-3.0, draws)).p for side, quantity in SIDES.items()}
    assert high == {"greater": 0.05, "less": 1.0, "two-sided": 0.1}
    assert low == {"greater": 1.0, "less": 0.05, "two-sided": 0.1}
    assert of_null(SIDES["two-sided"], compare(10.0, draws)).p == 1.0


def test_the_best_of_many_has_its_p_value_corrected_for_the_search():
    draws = torch.arange(1.0, 100.0)
    number = of_null(SIDES["greater"], compare(1000.0, draws), tries=8)
    assert number.p == pytest.approx(1 - (1 - 0.01) ** 8)
    assert smallest_p(finding(SIDES["greater"], number, measure="m")) == pytest.approx(number.p)
    assert of_tries(1.0, 5) == 1.0
    generator = torch.Generator().manual_seed(2)
    smallest = torch.rand(4000, 8, generator=generator, dtype=torch.float64).amin(dim=1)
    corrected = torch.tensor([of_tries(p, 8) for p in smallest.tolist()])
    assert (corrected < 0.05).double().mean() == pytest.approx(0.05, abs=0.015)


def test_numbers_that_are_not_numbers_are_refused():
    with pytest.raises(ConfigError, match="value must be finite or None"):
        Number("q", math.nan)
    with pytest.raises(ConfigError, match=r"p must be in 0\.\.1 and come with a value and a null"):
        Number("q", 1.0, p=0.5)
    with pytest.raises(ConfigError, match="rate must be inside"):
        judged([], rate=0.0)
