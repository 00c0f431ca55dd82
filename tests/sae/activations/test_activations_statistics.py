"""Moments and masks as functions of arrays, against numpy and one-number-at-a-time loops."""

import numpy as np
import pytest
import torch

from sae.activations import statistics
from sae.activations.statistics import Moments, centred_norm_sum, check_finite, median_norm, merge, moments, scatter, usable
from sae.errors import FormatError


@pytest.mark.parametrize("skipped", [(0,), (), (0, 3)])
@pytest.mark.parametrize("context", [4, 5])
def test_mask_and_median_follow_the_rule_for_any_norms(context, skipped):
    norms = torch.rand(12 * context, generator=torch.Generator().manual_seed(context)) * 10
    kept = sorted(float(n) for t, n in enumerate(norms) if t % context not in skipped)
    half = len(kept) // 2
    assert median_norm(norms, context=context, skipped_positions=skipped) == (
        kept[half] if len(kept) % 2 else (kept[half - 1] + kept[half]) / 2
    )
    threshold = float(norms[context + 1])  # a norm equal to the threshold is kept
    expected = [t % context not in skipped and float(n) <= threshold for t, n in enumerate(norms)]
    assert usable(norms, context=context, skipped_positions=skipped, threshold=threshold).tolist() == expected
    assert not usable(torch.full((context,), float("inf")), context=context, skipped_positions=(), threshold=1e30).any()


@pytest.mark.parametrize("block_elements", [7, 40, 2**17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_those_of_numpy_whatever_the_blocks(dtype, block_elements, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_ELEMENTS", block_elements)
    acts = (torch.randn(53, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 1000.0).to(dtype)
    exact = acts.double().numpy()
    total = moments(acts)
    mean = exact.mean(axis=0)
    assert total.n == 53
    np.testing.assert_allclose(total.mean, mean, rtol=1e-13)
    assert total.deviation == pytest.approx(((exact - mean) ** 2).sum(), rel=1e-10)
    assert centred_norm_sum(acts, mean) == pytest.approx(np.sqrt(((exact - mean) ** 2).sum(axis=1)).sum(), rel=1e-12)
    np.testing.assert_allclose(scatter(acts, mean), (exact - mean).T @ (exact - mean), rtol=1e-10, atol=1e-8)


def test_moments_of_parts_merge_to_those_of_the_whole_and_nothing_changes_nothing():
    acts = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    empty = Moments(0, np.zeros(3), 0.0)
    whole, merged = moments(acts), merge(merge(empty, moments(acts[:9])), merge(moments(acts[9:]), moments(acts[:0])))
    assert merged.n == whole.n == 40
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    assert merged.deviation == pytest.approx(whole.deviation, rel=1e-12)
    assert merge(empty, empty).n == 0


def test_the_first_activation_that_is_not_finite_is_named_by_row_and_position():
    acts = torch.zeros(20, 3)
    check_finite(acts, site="s", first_token=100, context=10)
    acts[17, 1] = float("inf")
    acts[13, 2] = float("nan")
    with pytest.raises(FormatError, match="s has NaN or infinite activations at 2 tokens here, the first in row 11, position 3"):
        check_finite(acts, site="s", first_token=100, context=10)
