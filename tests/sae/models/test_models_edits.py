"""Edits as values, against their formulas in float64."""

import pytest
import torch

from sae.errors import ConfigError
from sae.models.edits import Edit
from sae.models.sites import Site

SITE = Site(name="blocks.0.hook_resid_post", layer=0, kind="resid_post", width=16)


@pytest.fixture
def acts():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def directions():
    return 3.0 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1)) + 1.0


def test_replace_takes_a_value_that_broadcasts_or_a_function(acts, directions):
    assert torch.equal(Edit.replace(SITE, directions[0]).apply(acts), directions[0].expand_as(acts))
    assert torch.equal(Edit.replace(SITE, acts.flip(0)).apply(acts), acts.flip(0))
    assert torch.equal(Edit.replace(SITE, lambda a: 2.0 * a).apply(acts), 2.0 * acts)


def test_add_scales_everywhere_or_per_token(acts, directions):
    per_token = torch.tensor([[0.0, 1.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0, 3.0]])
    torch.testing.assert_close(Edit.add(SITE, directions[0], 2.5).apply(acts), acts + 2.5 * directions[0])
    torch.testing.assert_close(
        Edit.add(SITE, directions[0], per_token).apply(acts), acts + torch.einsum("bt,d->btd", per_token, directions[0])
    )


def test_project_out_leaves_nothing_along_any_direction_and_keeps_the_rest(acts, directions):
    edited = Edit.project_out(SITE, directions).apply(acts).double()
    wide = directions.double()
    assert (edited @ wide.T).abs().max() < 1e-5
    projector = torch.linalg.pinv(wide) @ wide  # onto the row space, by another route
    torch.testing.assert_close(edited, acts.double() @ (torch.eye(16, dtype=torch.float64) - projector), atol=1e-5, rtol=1e-5)


def test_project_out_is_the_same_with_a_repeated_or_rescaled_direction(acts, directions):
    redundant = torch.cat([directions, 1e4 * directions[:1], directions[:1] - 0.5 * directions[1:2]])
    torch.testing.assert_close(Edit.project_out(SITE, redundant).apply(acts), Edit.project_out(SITE, directions).apply(acts))


def test_clamp_holds_the_coordinate_and_moves_nothing_else(acts, directions):
    unit = directions[0].double() / directions[0].double().norm()
    edited = Edit.clamp(SITE, directions[0], -0.3, 0.4).apply(acts).double()
    torch.testing.assert_close(edited @ unit, (acts.double() @ unit).clamp(-0.3, 0.4), atol=1e-5, rtol=1e-5)
    change = edited - acts.double()
    assert (change - (change @ unit)[..., None] * unit).abs().max() < 1e-5


def test_an_edit_keeps_the_dtype_and_rounds_once(directions):
    acts = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    edited = Edit.add(SITE, directions[0], 0.1).apply(acts)
    assert edited.dtype == torch.bfloat16
    assert torch.equal(edited, (acts.float() + 0.1 * directions[0]).bfloat16())


@pytest.mark.parametrize(
    "make", [lambda d: Edit.add(SITE, d), lambda d: Edit.clamp(SITE, d, 0.0, 1.0), lambda d: Edit.project_out(SITE, d[None])]
)
@pytest.mark.parametrize(
    ("bad", "message"), [(torch.ones(15), "width 16"), (torch.zeros(16), "not zero"), (torch.full((16,), torch.nan), "finite")]
)
def test_directions_of_the_wrong_width_zero_or_nan_are_refused(make, bad, message):
    with pytest.raises(ConfigError, match=message):
        make(bad)


def test_a_clamp_with_crossed_bounds_is_refused(directions):
    with pytest.raises(ConfigError, match="low must be at most high"):
        Edit.clamp(SITE, directions[0], 1.0, 0.0)


def test_a_transform_that_changes_the_shape_is_refused(acts):
    with pytest.raises(ConfigError, match=r"must keep the shape \[2, 5, 16\], got \[2, 5, 8\]"):
        Edit.replace(SITE, lambda a: a[..., :8]).apply(acts)
