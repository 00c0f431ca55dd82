"""Sites: names in, layer, kind and width out; names that do not exist are answered with those that do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae.errors import ConfigError
from sae.models.sites import SUFFIXES, ModelShape, Site, site_names

SHAPE = ModelShape(n_layers=4, d_model=32, d_mlp=64, n_heads=4, d_head=12, d_vocab=400, n_ctx=256)


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        ("blocks.2.hook_resid_pre", "resid_pre", 32),
        ("blocks.2.hook_resid_mid", "resid_mid", 32),
        ("blocks.2.hook_resid_post", "resid_post", 32),
        ("blocks.2.hook_attn_out", "attn_out", 32),
        ("blocks.2.hook_mlp_out", "mlp_out", 32),
        ("blocks.2.attn.hook_z", "z", 48),
        ("blocks.2.mlp.hook_post", "mlp_post", 64),
    ],
)
def test_a_name_is_read_into_layer_kind_and_width(name, kind, width):
    assert Site.parse(name, SHAPE) == Site(name=name, layer=2, kind=kind, width=width)


@given(st.integers(0, 3), st.sampled_from(sorted(SUFFIXES)))
def test_every_listed_name_parses_back_to_itself(layer, kind):
    site = Site.parse(f"blocks.{layer}.{SUFFIXES[kind]}", SHAPE)
    assert (site.layer, site.kind) == (layer, kind)
    assert site.name in site_names(SHAPE)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.2.hook_resid_pst", "blocks.2.hook_resid_post"),
        ("block.1.hook_mlp_out", "blocks.1.hook_mlp_out"),
        ("blocks.3.hook_z", "blocks.3.attn.hook_z"),
        ("blocks.0.hook_post", "blocks.0.mlp.hook_post"),
        ("resid_post", "hook_resid_post"),
        ("", "blocks."),
        ("blocks.02.hook_resid_post", "blocks.2.hook_resid_post"),
        ("blocks.-1.hook_resid_post", "blocks.1.hook_resid_post"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_valid_ones(wrong, right):
    with pytest.raises(ConfigError, match="nearest") as caught:
        Site.parse(wrong, SHAPE)
    assert repr(wrong) in str(caught.value)
    assert right in str(caught.value)


def test_a_layer_out_of_range_is_answered_with_the_range():
    with pytest.raises(ConfigError, match=r"blocks\.4\.hook_resid_post.*L in 0\.\.3"):
        Site.parse("blocks.4.hook_resid_post", SHAPE)
