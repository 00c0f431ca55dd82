"""Moments in one pass over pieces: those of numpy in float64, whatever the blocks, and exact medians in constant memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.activations import statistics
from sae.activations.formats import narrow_, widen
from sae.activations.statistics import Piece, check_finite, eligible_positions, measure, median_of, symmetric, upper_triangle
from sae.errors import FormatError


def finished(steps):
    """(what an iterator yields, what it returns)"""
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


def pieces_of(acts, dtype, sizes, eligible):
    stored, norms = torch.empty(acts.shape, dtype=dtype), torch.empty(len(acts))
    narrow_(acts, stored, norms)
    return [Piece(*parts) for parts in zip(stored.split(sizes), norms.split(sizes), eligible.split(sizes), strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.floats(0, 2.0**99, width=32), max_size=20), max_size=5))
def test_the_median_of_pieces_is_that_of_numpy(lists):
    arrays = [np.array(values, dtype=np.float32) for values in lists]
    everything = np.concatenate([*arrays, np.empty(0, np.float32)])
    expected = float(np.median(everything.astype(np.float64))) if len(everything) else 0.0
    assert median_of(lambda: iter(arrays)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
@pytest.mark.parametrize(("block", "tile"), [(7, 5), (4096, 192)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_moments_are_those_of_numpy_in_float64_over_what_is_kept(dtype, block, tile, offset, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_ROWS", block)
    monkeypatch.setattr(statistics, "TILE", tile)
    generator = torch.Generator().manual_seed(5)
    acts = torch.randn(230, 13, generator=generator) @ torch.randn(13, 13, generator=generator) + offset * torch.rand(
        13, generator=generator
    )
    acts[torch.randperm(230, generator=generator)[:9]] *= 40.0
    eligible = torch.rand(230, generator=generator) > 0.1
    pieces = pieces_of(acts, dtype, [100, 1, 79, 50], eligible)
    seen, found = finished(measure(lambda: iter(pieces), width=13, norm_ratio=6.0))
    assert seen == [100, 1, 79, 50] * 2

    norms = torch.cat([piece.norms for piece in pieces]).double().numpy()
    values = torch.cat([widen(piece.acts, piece.norms) for piece in pieces]).double().numpy()
    median = np.median(norms[eligible.numpy()])
    keep = eligible.numpy() & (norms <= 6.0 * median)
    assert 0 < (eligible.numpy() & ~keep).sum() == found.n_outliers
    assert (found.n, found.median_norm, found.threshold) == (keep.sum(), median, 6.0 * median)
    spread = values[keep].std(axis=0)
    np.testing.assert_allclose(found.mean.numpy(), values[keep].mean(axis=0), rtol=1e-12, atol=1e-12 * spread.max())
    expected = np.cov(values[keep].T, bias=True)
    np.testing.assert_allclose(found.covariance.numpy(), expected, atol=2e-6 * np.outer(spread, spread).max())
    np.testing.assert_allclose(found.mean_norm, norms[keep].mean(), rtol=1e-12)
    centred = np.linalg.norm(values[keep] - values[keep].mean(axis=0), axis=1)
    np.testing.assert_allclose(found.mean_centred_norm, centred.mean(), rtol=1e-6)


def test_moments_do_not_depend_on_the_number_of_threads():
    acts = torch.randn(9000, 400, generator=torch.Generator().manual_seed(0)) + 3.0
    found = []
    for n_threads in (1, 2, 3):
        torch.set_num_threads(n_threads)
        try:
            pieces = pieces_of(acts, torch.bfloat16, [5000, 4000], torch.ones(9000, dtype=torch.bool))
            found.append(finished(measure(lambda pieces=pieces: iter(pieces), width=400, norm_ratio=6.0))[1])
        finally:
            torch.set_num_threads(1)
    for other in found[1:]:
        assert torch.equal(other.covariance, found[0].covariance)
        assert torch.equal(other.mean, found[0].mean)
        assert (other.mean_norm, other.mean_centred_norm) == (found[0].mean_norm, found[0].mean_centred_norm)


def test_without_a_usable_token_there_are_no_moments_and_no_error():
    pieces = pieces_of(torch.ones(4, 3), torch.float32, [4], torch.zeros(4, dtype=torch.bool))
    found = finished(measure(lambda: iter(pieces), width=3, norm_ratio=6.0))[1]
    assert (found.n, found.mean_norm, found.threshold) == (0, 0.0, 0.0)
    assert not found.covariance.any()


def test_skipped_positions_are_those_of_the_row_or_of_the_isolated_document():
    ids = torch.tensor([[4, 4, 4, 7, 7], [7, 7, 2, 2, 2]])
    row = eligible_positions(ids, skipped_positions=(0, 2), isolated=False)
    assert row.int().tolist() == [[0, 1, 0, 1, 1]] * 2
    document = eligible_positions(ids, skipped_positions=(0,), isolated=True)
    assert document.int().tolist() == [[0, 1, 1, 0, 1], [0, 1, 0, 1, 1]]


def test_a_triangle_is_half_of_a_symmetric_matrix():
    a = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = a @ a.T
    triangle = upper_triangle(matrix)
    assert triangle.shape == (45,)
    assert torch.equal(triangle[:9], matrix[0])
    torch.testing.assert_close(symmetric(triangle, 9), matrix)


def test_the_first_activation_that_is_not_finite_is_named_by_row_and_position():
    norms = torch.ones(20)
    norms[[13, 17]] = torch.tensor([torch.inf, torch.nan])
    with pytest.raises(
        FormatError, match=r"s has NaN or infinite activations at 2 tokens here, the first in row 14, position 1; .*is kept"
    ):
        check_finite(norms, site="s", first_token=100, context=8)
    check_finite(torch.ones(3), site="s", first_token=0, context=8)
