"""LanguageModel against the Hugging Face model: the same weights, built a second time, with eager attention and ordinary hooks."""

import threading

import pytest
import torch
from tiny import tiny_hf_model, tiny_language_model, tiny_tokenizer

from sae.errors import ConfigError
from sae.models.language_model import Edit, LanguageModel, norm_gain
from sae.models.sites import site_names

ARCHITECTURES = ("llama", "gpt2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """(wrapped, plain) models of the same weights."""
    plain = tiny_hf_model(architecture=request.param)
    plain.set_attn_implementation("eager")
    return tiny_language_model(architecture=request.param), plain


@pytest.fixture
def tokens():
    return torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(3))


def parts(plain, layer):
    """(block, attention, its output projection, MLP, its output projection) of a plain model."""
    if hasattr(plain, "transformer"):
        block = plain.transformer.h[layer]
        return block, block.attn, block.attn.c_proj, block.mlp, block.mlp.c_proj
    block = plain.model.layers[layer]
    return block, block.self_attn, block.self_attn.o_proj, block.mlp, block.mlp.down_proj


def plain_logits(plain, tokens, kind=None, layer=0, function=None):
    """Logits of the plain model with `function` applied to one activation by an ordinary PyTorch hook."""
    block, attention, attention_out, mlp, mlp_out = parts(plain, layer)

    def on_output(_module, _args, output):
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    def on_input(_module, args):
        return (function(args[0]), *args[1:])

    hooks = {
        "resid_pre": lambda: block.register_forward_pre_hook(on_input),
        "resid_post": lambda: block.register_forward_hook(on_output),
        "attn_out": lambda: attention.register_forward_hook(on_output),
        "mlp_out": lambda: mlp.register_forward_hook(on_output),
        "z": lambda: attention_out.register_forward_pre_hook(on_input),
        "mlp_post": lambda: mlp_out.register_forward_pre_hook(on_input),
    }
    handle = hooks[kind]() if kind else None
    try:
        with torch.no_grad():
            return plain(tokens, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()


def test_logits_are_those_of_the_plain_model(pair, tokens):
    model, plain = pair
    logits = model.run(tokens)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain_logits(plain, tokens), atol=2e-5, rtol=1e-5)


def test_resid_post_of_a_layer_is_the_hidden_state_one_further(pair, tokens):
    model, plain = pair
    with torch.no_grad():
        hidden = plain(tokens, output_hidden_states=True).hidden_states
    for layer in range(model.shape.n_layers - 1):  # the last hidden state is past the final norm
        site = model.site(f"blocks.{layer}.hook_resid_post")
        torch.testing.assert_close(model.capture(tokens, [site])[site], hidden[layer + 1], atol=2e-5, rtol=1e-5)


def test_the_last_resid_post_is_what_the_final_norm_reads(pair, tokens):
    model, plain = pair
    norm = plain.transformer.ln_f if hasattr(plain, "transformer") else plain.model.norm
    site = model.site("blocks.3.hook_resid_post")
    with torch.no_grad():
        logits = plain.lm_head(norm(model.capture(tokens, [site])[site]))
    torch.testing.assert_close(logits, plain_logits(plain, tokens), atol=2e-5, rtol=1e-5)


def test_every_site_has_its_width_and_the_residual_stream_adds_up(pair, tokens):
    model, plain = pair
    sites = {name: model.site(name) for name in site_names(model.shape)}
    acts = {site.name: a for site, a in model.capture(tokens, list(sites.values())).items()}
    assert {name: a.shape for name, a in acts.items()} == {name: (2, 12, site.width) for name, site in sites.items()}
    for layer in range(model.shape.n_layers):
        at = {
            kind: acts[f"blocks.{layer}.{kind}"]
            for kind in (*(f"hook_{k}" for k in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")),)
        }
        torch.testing.assert_close(at["hook_resid_mid"], at["hook_resid_pre"] + at["hook_attn_out"])
        torch.testing.assert_close(at["hook_resid_post"], at["hook_resid_mid"] + at["hook_mlp_out"])
        _, _, attention_out, _, mlp_out = parts(plain, layer)
        with torch.no_grad():
            torch.testing.assert_close(attention_out(acts[f"blocks.{layer}.attn.hook_z"]), at["hook_attn_out"], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mlp_out(acts[f"blocks.{layer}.mlp.hook_post"]), at["hook_mlp_out"], atol=1e-5, rtol=1e-5)


def test_many_sites_in_one_pass_equal_one_pass_for_each(pair, tokens):
    model, _ = pair
    sites = [model.site(name) for name in site_names(model.shape)]
    together = model.capture(tokens, sites)
    assert all(torch.equal(together[site], model.capture(tokens, [site])[site]) for site in sites)


def test_capture_gives_ordinary_tensors_without_a_graph(pair, tokens):
    model, _ = pair
    site = model.site("blocks.1.hook_resid_post")
    acts = model.capture(tokens, [site])[site]
    assert not acts.requires_grad
    assert not acts.is_inference()
    weight = torch.ones(model.shape.d_model, requires_grad=True)
    (acts @ weight).sum().backward()  # a tensor of inference mode would refuse
    torch.testing.assert_close(weight.grad, acts.sum(dim=(0, 1)))


@pytest.mark.parametrize("deepest", ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.3.hook_resid_post"])
def test_nothing_deeper_than_the_deepest_site_is_computed(pair, tokens, deepest):
    model, _ = pair
    inner, ran = model._model.model, []
    watched = [("blocks.2", parts(inner, 2)[0]), ("unembed", inner.lm_head), ("mlp.1", parts(inner, 1)[3])]
    handles = [module.register_forward_hook(lambda _module, _args, _out, name=name: ran.append(name)) for name, module in watched]
    try:
        model.capture(tokens, [model.site("blocks.0.hook_mlp_out"), model.site(deepest)])
    finally:
        for handle in handles:
            handle.remove()
    assert (
        ran
        == {"blocks.1.hook_resid_post": ["mlp.1"], "blocks.1.attn.hook_z": [], "blocks.3.hook_resid_post": ["mlp.1", "blocks.2"]}[deepest]
    )


def test_a_capture_leaves_no_hook_behind_even_when_an_edit_fails(pair, tokens):
    model, plain = pair
    site = model.site("blocks.1.hook_resid_post")

    def fail(acts):
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        model.capture(tokens, [site], edits=[Edit.replace(site, fail)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model._model.model.modules())
    torch.testing.assert_close(model.run(tokens), plain_logits(plain, tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.3.hook_resid_post"]
)
def test_resuming_from_captured_activations_gives_the_logits_of_the_whole_pass(pair, tokens, name):
    model, _ = pair
    site = model.site(name)
    acts = model.capture(tokens, [site])[site]
    torch.testing.assert_close(model.resume(acts, site), model.run(tokens), atol=1e-6, rtol=1e-6)
    other = acts + torch.randn(acts.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(model.resume(other, site), model.run(tokens, [Edit.replace(site, other)]), atol=1e-6, rtol=1e-6)


def test_resuming_skips_the_blocks_before_and_leaves_the_model_as_it_was(pair, tokens):
    model, plain = pair
    site = model.site("blocks.2.hook_resid_post")
    acts = model.capture(tokens, [site])[site]
    model.resume(acts, site)
    ran = []
    attentions = [parts(model._model.model, i)[1] for i in range(4)]
    handles = [attention.register_forward_hook(lambda _module, _args, _out, i=i: ran.append(i)) for i, attention in enumerate(attentions)]
    try:
        model.resume(acts, site)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [3]
    torch.testing.assert_close(model.run(tokens), plain_logits(plain, tokens), atol=2e-5, rtol=1e-5)


def test_resume_is_differentiable_in_the_activations(pair, tokens):
    model, _ = pair
    site = model.site("blocks.1.hook_resid_post")
    acts = model.capture(tokens, [site])[site].requires_grad_()
    model.resume(acts, site)[0, -1, 5].backward()
    direction = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(6))
    step, ends = 1e-2, []
    for sign in (1.0, -1.0):
        moved = acts.detach().clone()
        moved[0, 3] += sign * step * direction
        ends.append(model.resume(moved, site)[0, -1, 5].item())
    assert (acts.grad[0, 3] @ direction).item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-3)
    assert acts.grad[1].abs().max() == 0


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "mlp_post"])
@pytest.mark.parametrize("what", ["replace", "add", "project_out", "clamp"])
def test_an_edit_equals_an_ordinary_hook_on_the_plain_model(pair, tokens, kind, what):
    model, plain = pair
    name = {"z": "attn.hook_z", "mlp_post": "mlp.hook_post"}.get(kind, f"hook_{kind}")
    site = model.site(f"blocks.2.{name}")
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(2, site.width, generator=generator)
    unit = directions[0] / directions[0].norm()
    edit, function = {
        "replace": (Edit.replace(site, directions[0]), lambda a: directions[0].expand_as(a).contiguous()),
        "add": (Edit.add(site, directions[0], -1.5), lambda a: a - 1.5 * directions[0]),
        "project_out": (Edit.project_out(site, directions), lambda a: a - a @ torch.linalg.pinv(directions) @ directions),
        "clamp": (Edit.clamp(site, directions[0], 2.0, 2.0), lambda a: a + (2.0 - a @ unit)[..., None] * unit),
    }[what]
    edited = model.run(tokens, [edit])
    torch.testing.assert_close(edited, plain_logits(plain, tokens, kind, 2, function), atol=1e-4, rtol=1e-4)
    assert (edited - model.run(tokens)).abs().max() > 1e-2


def test_an_edit_of_resid_mid_reaches_the_skip_connection(pair, tokens):
    model, _ = pair
    mid, attn_out, post = (model.site(f"blocks.1.hook_{kind}") for kind in ("resid_mid", "attn_out", "resid_post"))
    direction = torch.randn(model.shape.d_model, generator=torch.Generator().manual_seed(8))
    same = model.run(tokens, [Edit.add(attn_out, direction)])  # resid_mid = resid_pre + attn_out
    torch.testing.assert_close(model.run(tokens, [Edit.add(mid, direction)]), same, atol=1e-5, rtol=1e-5)
    twice = [Edit.add(mid, direction, 0.25), Edit.add(mid, direction, 0.75)]
    torch.testing.assert_close(model.run(tokens, twice), same, atol=1e-5, rtol=1e-5)
    captured = model.capture(tokens, [mid, post], edits=twice)
    reference = model.capture(tokens, [mid, post], edits=[Edit.add(attn_out, direction)])
    for site in (mid, post):
        torch.testing.assert_close(captured[site], reference[site], atol=1e-5, rtol=1e-5)


def test_edits_apply_in_their_order_and_before_the_capture_of_their_site(pair, tokens):
    model, _ = pair
    site = model.site("blocks.1.hook_resid_post")
    edits = [Edit.replace(site, lambda a: a + 1.0), Edit.replace(site, lambda a: 2.0 * a)]
    plain = model.capture(tokens, [site])[site]
    torch.testing.assert_close(model.capture(tokens, [site], edits=edits)[site], 2.0 * (plain + 1.0))


def test_tokens_to_the_right_do_not_matter(pair, tokens):
    model, _ = pair
    site = model.site("blocks.3.hook_resid_post")
    padded = torch.cat([tokens, torch.zeros(2, 5, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model.capture(padded, [site])[site][:, :12], model.capture(tokens, [site])[site], atol=1e-5, rtol=1e-5)


def test_rows_do_not_depend_on_their_batch(pair, tokens):
    model, _ = pair
    site = model.site("blocks.3.hook_resid_post")
    torch.testing.assert_close(model.capture(tokens[1:], [site])[site][0], model.capture(tokens, [site])[site][1], atol=1e-5, rtol=1e-5)


def test_threads_may_share_a_model(pair, tokens):
    model, _ = pair
    site = model.site("blocks.1.hook_resid_post")
    expected = {
        scale: model.capture(tokens, [site], edits=[Edit.replace(site, lambda a, s=scale: s * a)])[site] for scale in (1.0, 2.0, 3.0)
    }
    wrong = []

    def work(scale):
        for _ in range(10):
            acts = model.capture(tokens, [site], edits=[Edit.replace(site, lambda a: scale * a)])[site]
            if not torch.equal(acts, expected[scale]):
                wrong.append(scale)

    threads = [threading.Thread(target=work, args=(scale,)) for scale in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_logit_effects_are_the_change_of_logits_when_the_norm_scale_is_held(pair, tokens):
    model, plain = pair
    site = model.site("blocks.3.hook_resid_post")
    resid = model.capture(tokens, [site])[site][0, 0].double()
    directions = torch.randn(4, model.shape.d_model, generator=torch.Generator().manual_seed(9))
    norm = plain.transformer.ln_f if hasattr(plain, "transformer") else plain.model.norm
    centred = hasattr(plain, "transformer")

    def logits(x):
        inner = x - x.mean(dim=-1, keepdim=True) if centred else x
        scale = (resid - resid.mean() if centred else resid).square().mean().sqrt()
        return (inner / scale * norm.weight.double()) @ plain.lm_head.weight.double().T

    with torch.no_grad():
        change = logits(resid + directions.double()) - logits(resid)
        scale = (resid - resid.mean() if centred else resid).square().mean().sqrt()
        expected = scale * (change - change.mean(dim=-1, keepdim=True))
    torch.testing.assert_close(model.logit_effects(directions), expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("d_model", [2, 31, 32])
def test_the_gain_of_a_norm_is_measured_whatever_way_it_is_stored(d_model):
    generator = torch.Generator().manual_seed(10)
    gain, bias = 1.0 + 0.3 * torch.randn(d_model, generator=generator), torch.randn(d_model, generator=generator)
    layer_norm, rms_norm = torch.nn.LayerNorm(d_model), torch.nn.RMSNorm(d_model, eps=1e-5)
    with torch.no_grad():
        layer_norm.weight.copy_(gain)
        layer_norm.bias.copy_(bias)
        rms_norm.weight.copy_(gain)

        class OnePlus(torch.nn.RMSNorm):
            def forward(self, x):
                return torch.nn.functional.rms_norm(x, (d_model,), 1.0 + self.weight, 1e-5)

        one_plus = OnePlus(d_model)
        one_plus.weight.copy_(gain - 1.0)
        for norm, centred in ((layer_norm, True), (rms_norm, False), (one_plus, False)):
            measured, is_centred = norm_gain(norm, d_model)
            torch.testing.assert_close(measured, gain, atol=1e-5, rtol=1e-4)
            assert is_centred is centred


def test_text_that_spells_a_special_token_is_text():
    model = tiny_language_model()
    texts = ["the people", "", " peace<|endoftext|>war"]
    ids = model.tokenize(texts)
    vocabulary = model.vocabulary()
    assert ["".join(vocabulary[i] for i in row) for row in ids] == texts
    assert model.separator_id not in ids[2]
    assert vocabulary[model.separator_id] == "<|endoftext|>"
    assert len(vocabulary) == model.shape.d_vocab
    assert model.tokenize([]) == []


def test_the_digest_names_the_weights_and_not_their_dtype():
    digest = tiny_language_model().digest
    assert digest == tiny_language_model().digest
    assert digest != tiny_language_model(seed=1).digest
    half = LanguageModel.load(tiny_hf_model(), tokenizer=tiny_tokenizer(), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.digest == digest


def test_no_weight_asks_for_a_gradient(pair):
    model, _ = pair
    assert not any(p.requires_grad for p in model._model.model.parameters())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 257, dtype=torch.long), r"context in 1\.\.n_ctx=256, got \[1, 257\]"),
        (torch.zeros(0, 4, dtype=torch.long), r"got \[0, 4\]"),
        (torch.tensor([[0, 400]]), r"0\.\.399, got 0\.\.400"),
        (torch.tensor([[-1, 4]]), r"got -1\.\.4"),
    ],
)
def test_tokens_out_of_range_are_refused(tokens, message):
    model = tiny_language_model()
    with pytest.raises(ConfigError, match=message):
        model.run(tokens)
    with pytest.raises(ConfigError, match=message):
        model.capture(tokens, [model.site("blocks.0.hook_resid_post")])


def test_a_site_of_another_model_is_refused(tokens):
    model, wider = tiny_language_model(), tiny_language_model(d_model=48)
    site = wider.site("blocks.0.hook_resid_post")
    with pytest.raises(ConfigError, match="width 48 belongs to another model"):
        model.capture(tokens, [site])
    with pytest.raises(ConfigError, match="width 48 belongs to another model"):
        model.run(tokens, [Edit.replace(site, lambda a: a)])


def test_resuming_from_within_a_block_or_with_another_width_is_refused(tokens):
    model = tiny_language_model()
    site = model.site("blocks.0.hook_attn_out")
    with pytest.raises(ConfigError, match="resid_pre or a resid_post"):
        model.resume(torch.zeros(1, 4, 32), site)
    with pytest.raises(ConfigError, match="acts must have width 32, got 31"):
        model.resume(torch.zeros(1, 4, 31), model.site("blocks.0.hook_resid_post"))


def test_a_site_that_the_architecture_lacks_is_refused():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": len(tiny_tokenizer()),
    }
    model = LanguageModel.load(GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)), tokenizer=tiny_tokenizer())
    with pytest.raises(ConfigError, match="resid_mid does not exist in this architecture"):
        model.site("blocks.0.hook_resid_mid")


def test_a_loaded_model_needs_its_tokenizer_and_stays_a_hugging_face_model(tokens):
    plain = tiny_hf_model()
    modules, expected = list(plain.modules()), plain_logits(plain, tokens)
    with pytest.raises(ConfigError, match="tokenizer must be given"):
        LanguageModel.load(plain)
    for _ in range(2):
        model = LanguageModel.load(plain, tokenizer=tiny_tokenizer())
        torch.testing.assert_close(model.run(tokens), expected, atol=1e-5, rtol=1e-5)
    assert all(now is before for now, before in zip(plain.modules(), modules, strict=True))


def test_a_model_wrapped_by_transformer_lens_is_refused():
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    plain = tiny_hf_model()
    build_bridge_from_module(plain, "LlamaForCausalLM", hf_config=plain.config, model_name="tiny")
    with pytest.raises(ConfigError, match="already wrapped"):
        LanguageModel.load(plain, tokenizer=tiny_tokenizer())


def test_patterns_select_in_their_order_then_the_models_each_site_once():
    model = tiny_language_model()
    names = [site.name for site in model.sites(["blocks.[13].mlp.hook_post", "blocks.*.hook_resid_p*", "blocks.1.mlp.hook_post"])]
    assert names == [
        *("blocks.1.mlp.hook_post", "blocks.3.mlp.hook_post"),
        *(f"blocks.{layer}.hook_resid_{side}" for layer in range(4) for side in ("pre", "post")),
    ]
    assert model.sites(["blocks.2.attn.hook_z"]) == (model.site("blocks.2.attn.hook_z"),)
    assert len(model.sites(["blocks.*.*", "blocks.*.*.*"])) == len(site_names(model.shape))
    assert model.sites([]) == ()


@pytest.mark.parametrize(
    "pattern", ["blocks.*", "*", "blocks.*.hook_z", "blocks.9.hook_resid_post", "blocks.*.hook_resid_pst", "blocks.*.HOOK_RESID_POST"]
)
def test_a_pattern_that_matches_nothing_is_answered_with_near_names(pattern):
    model = tiny_language_model()
    with pytest.raises(ConfigError, match=r"no site of the model matches .*; nearest: blocks\.") as caught:
        model.sites(["blocks.0.hook_resid_post", pattern])
    assert repr(pattern) in str(caught.value)


def test_a_string_is_no_list_of_patterns():
    with pytest.raises(ConfigError, match="must be a list"):
        tiny_language_model().sites("blocks.0.hook_resid_post")


def test_text_that_spells_a_special_token_is_that_token_when_asked_for():
    model = tiny_language_model()
    [ids] = model.tokenize([" peace<|endoftext|>war"], special_tokens=True)
    assert ids.count(model.separator_id) == 1
    assert ids == [*model.tokenize([" peace"])[0], model.separator_id, *model.tokenize(["war"])[0]]


def test_a_lone_surrogate_is_a_clear_error():
    broken = b"caf\xe9 au lait".decode("utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"texts\[1\] is not text: character 3 is the lone surrogate .*errors=.replace"):
        tiny_language_model().tokenize(["fine", broken])


def test_the_unembedding_after_the_final_norm_gives_the_logits(pair, tokens):
    model, _ = pair
    site = model.site(f"blocks.{model.shape.n_layers - 1}.hook_resid_post")
    acts = model.capture(tokens, [site])[site]
    with torch.no_grad():
        expected = model.final_norm()(acts) @ model.unembedding().T
    torch.testing.assert_close(expected.float(), model.run(tokens), rtol=1e-4, atol=1e-4)
