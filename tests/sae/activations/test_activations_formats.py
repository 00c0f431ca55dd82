"""What storing a row in fewer bits keeps and loses."""

import pytest
import torch

from sae.activations.formats import is_exact, narrow_, widen
from sae.errors import FormatError


def stored(acts, dtype):
    rows, norms = torch.empty(acts.shape, dtype=dtype), torch.empty(len(acts))
    narrow_(acts, rows, norms)
    return rows, norms


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_floating_storage_rounds_to_nearest_and_keeps_the_norm_of_what_is_stored(source, dtype):
    acts = (torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) * 50).to(source)
    rows, norms = stored(acts, dtype)
    assert torch.equal(rows, acts.to(dtype))
    torch.testing.assert_close(norms.double(), rows.double().norm(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(widen(rows, norms), acts.to(dtype).float())


def test_eight_bits_keep_the_norm_exactly_and_round_the_direction_by_half_a_level():
    generator = torch.Generator().manual_seed(1)
    acts = torch.randn(200, 65, generator=generator) * torch.logspace(-15, 15, 200)[:, None]
    acts[7] = 0.0
    acts[8] = 0.0
    acts[8, 3] = -5.0
    rows, norms = stored(acts, torch.int8)
    back = widen(rows, norms)
    torch.testing.assert_close(back.norm(dim=1), acts.norm(dim=1), rtol=1e-6, atol=0)
    assert not back[7].any()
    torch.testing.assert_close(back[8], acts[8])
    # Before the norm is restored every number is off by half a level at most; restoring it moves the row by at most as much again.
    level = acts.abs().amax(dim=1) / 127
    error = (back - acts).norm(dim=1)
    assert bool((error <= level * 65**0.5).all())
    assert float(error.square().sum() / acts.square().sum()) < 1e-3


def test_the_loss_of_eight_bits_is_that_of_uniform_rounding_on_gaussian_rows():
    acts = torch.randn(2000, 576, generator=torch.Generator().manual_seed(2))
    rows, norms = stored(acts, torch.int8)
    lost = float((widen(rows, norms) - acts).square().mean())
    level = float((acts.abs().amax(dim=1) / 127).square().mean())
    assert lost == pytest.approx(level / 12, rel=0.02)  # variance of uniform rounding: level^2 / 12


def test_a_number_too_large_for_float16_is_refused_and_infinite_ones_are_left_for_their_norm_to_show():
    acts = torch.ones(3, 4)
    acts[1, 2] = 1e5
    with pytest.raises(FormatError, match=r"float16 cannot hold activations of size 1e\+05, above 65504: capture with dtype 'bfloat16'"):
        stored(acts, torch.float16)
    acts[1, 2] = torch.nan
    for dtype in (torch.float16, torch.bfloat16, torch.int8):
        _, norms = stored(acts, dtype)
        assert torch.isfinite(norms).tolist() == [True, False, True]


def test_what_is_exact():
    assert is_exact(torch.bfloat16, torch.float32)
    assert is_exact(torch.bfloat16, torch.bfloat16)
    assert not is_exact(torch.float32, torch.bfloat16)
    assert not is_exact(torch.bfloat16, torch.float16)
    assert not is_exact(torch.bfloat16, torch.int8)
