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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents_have_the_activations_they_have_alone(model, tokens, dtype):
    model = model if dtype == torch.float32 else LanguageModel.load(default_model(), dtype=dtype)
    sites = model.sites(["blocks.[05].hook_resid_post", "blocks.15.*.hook_*", "blocks.29.hook_resid_post"])
    lengths = [20, 1, 30, len(tokens[0]) - 51]
    document_ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed, mixed = model.capture(tokens, sites, document_ids=document_ids), model.capture(tokens, sites)
    assert model._isolating.way == "positions"
    for document in document_ids.unique():
        places = document_ids[0] == document
        alone = model.capture(tokens[:, places], sites)
        for site in sites:
            expected = alone[site][0].float()
            error = (packed[site][0, places].float() - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert error.square().mean().sqrt() < 8 * torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 4), site.name
            if document > 0:
                leaked = (mixed[site][0, places].float() - expected).norm(dim=-1) / expected.norm(dim=-1)
                assert leaked.square().mean().sqrt() > 0.1 or site.layer == 0


def test_fused_and_eager_attention_differ_in_the_last_bits_only(model, plain, tokens):
    assert model._model.model.config._attn_implementation == "sdpa"
    assert plain.config._attn_implementation == "eager"
    seen = {}
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, i=i: seen.update({i: args[0]}))
        for i, layer in enumerate(plain.model.layers)
    ]
    with torch.no_grad():
        plain(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    acts = model.capture(tokens, model.sites(["blocks.*.attn.hook_z"]))
    for site, z in acts.items():
        assert (z - seen[site.layer]).norm() <= 3e-5 * seen[site.layer].norm(), site.name
