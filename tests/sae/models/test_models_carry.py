import pytest
import torch
from tiny import tiny_language_model

from sae.errors import ConfigError
from sae.models.language_model import Edit


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return tiny_language_model(seed=1, architecture=request.param)


@pytest.fixture(scope="module")
def tokens(model):
    return torch.randint(0, model.shape.d_vocab, (3, 9), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"])
@pytest.mark.parametrize("to", ["blocks.2.hook_mlp_out", "blocks.3.hook_resid_pre", "blocks.3.hook_resid_post"])
def test_carried_activations_are_those_of_a_pass_with_the_site_replaced(model, tokens, name, to):
    site, to = model.site(name), model.site(to)
    acts = torch.randn(3, 9, site.width, generator=torch.Generator().manual_seed(3))
    expected = model.capture(tokens, [to], edits=[Edit.replace(site, acts)])[to]
    torch.testing.assert_close(model.carry(acts, site, to), expected, atol=1e-6, rtol=1e-6)


def test_resuming_from_what_was_carried_to_the_last_block_gives_the_same_logits_bit_for_bit(model, tokens):
    site, last = model.site("blocks.1.hook_resid_post"), model.site("blocks.3.hook_resid_post")
    acts = torch.randn(3, 9, site.width, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model.resume(model.carry(acts, site, last), last), model.resume(acts, site))
    kept = model.carry(acts, last, last)
    assert torch.equal(kept, acts)
    assert kept.data_ptr() != acts.data_ptr()


def test_a_site_that_comes_before_is_refused(model):
    site, before = model.site("blocks.1.hook_resid_post"), model.site("blocks.1.hook_mlp_out")
    with pytest.raises(ConfigError, match=r"to must come after blocks.1.hook_resid_post, got blocks.1.hook_mlp_out"):
        model.carry(torch.zeros(1, 2, site.width), site, before)
    with pytest.raises(ConfigError, match="resid_pre or a resid_post to resume from"):
        model.carry(torch.zeros(1, 2, before.width), before, model.site("blocks.3.hook_resid_post"))
