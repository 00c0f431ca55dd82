"""The default model itself: against the Hugging Face model, and what is known of its activations."""

import pytest
import torch

from sae.models.assets import default_model
from sae.models.language_model import Edit, LanguageModel

pytestmark = pytest.mark.slow

TEXT = (
    "Fellow-Citizens of the Senate and House of Representatives: the nation is at peace with all the world, and the harvests of the year "
    "have been good. The revenue of the government was sufficient for its expenses. We owe thanks for it, and there is work for the next "
    "year: the railway to the Pacific, the navy, the schools, and the debt that the war has left to us, to be paid to the last dollar."
)


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(default_model(), dtype=torch.float32)


@pytest.fixture(scope="module")
def plain():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        default_model(), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def tokens(model):
    return torch.tensor(model.tokenize([TEXT]))


def test_the_default_model_is_smollm2_with_its_separator(model):
    shape = model.shape
    assert (shape.n_layers, shape.d_model, shape.d_mlp, shape.n_heads, shape.d_head, shape.d_vocab) == (30, 576, 1536, 9, 64, 49152)
    vocabulary = model.vocabulary()
    assert (model.separator_id, vocabulary[0]) == (0, "<|endoftext|>")
    assert "".join(vocabulary[i] for i in model.tokenize([TEXT])[0]) == TEXT


def test_logits_and_hidden_states_are_those_of_the_plain_model(model, plain, tokens):
    with torch.no_grad():
        reference = plain(tokens, output_hidden_states=True, use_cache=False)
    torch.testing.assert_close(model.run(tokens), reference.logits, atol=2e-4, rtol=1e-4)
    sites = [model.site(f"blocks.{layer}.hook_resid_post") for layer in (0, 15, 28)]
    acts = model.capture(tokens, sites)
    for site in sites:
        hidden = reference.hidden_states[site.layer + 1]
        assert (acts[site] - hidden).abs().max() <= 1e-5 * hidden.abs().max()


def test_the_first_position_has_a_massive_activation_and_nothing_after_it(model, tokens):
    site = model.site("blocks.15.hook_resid_post")
    norms = model.capture(tokens, [site])[site][0].norm(dim=-1)
    median = norms[1:].median()
    assert norms[0] > 50 * median
    assert (norms[1:] < 6 * median).float().mean() > 0.95


def test_bfloat16_differs_from_float32_by_less_than_a_percent_of_the_variance(model, tokens):
    site = model.site("blocks.15.hook_resid_post")
    half = LanguageModel.load(default_model(), dtype=torch.bfloat16)
    assert half.digest == model.digest
    exact = model.capture(tokens, [site])[site][0, 1:]
    rounded = half.capture(tokens, [site])[site][0, 1:].float()
    assert (rounded - exact).square().sum() < 1e-2 * (exact - exact.mean(dim=0)).square().sum()


def test_resuming_and_editing_agree_at_the_middle_of_the_model(model, tokens):
    site = model.site("blocks.15.hook_resid_post")
    acts = model.capture(tokens, [site])[site]
    torch.testing.assert_close(model.resume(acts, site), model.run(tokens), atol=1e-4, rtol=1e-4)
    direction = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(0))
    edited = model.run(tokens, [Edit.add(site, direction, 2.0)])
    torch.testing.assert_close(model.resume(acts + 2.0 * direction, site), edited, atol=1e-3, rtol=1e-4)


def test_logit_effects_go_through_the_gain_and_the_whole_vocabulary(model, plain):
    directions = torch.randn(3, 576, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain.lm_head(directions * plain.model.norm.weight)
    torch.testing.assert_close(model.logit_effects(directions), expected - expected.mean(dim=-1, keepdim=True), atol=1e-4, rtol=1e-4)
