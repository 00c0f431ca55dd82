"""Every kind of site on tiny random models of many architectures, packed documents included.

Oracles: the Hugging Face model of the same weights with eager attention and ordinary PyTorch hooks, at places written down here by hand;
and TransformerLens' own forward pass, which computes attention anew.
"""

import copy
import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
import transformers
from tiny import tiny_tokenizer

from sae.errors import ConfigError
from sae.models import isolation
from sae.models.hooked import HookedModel
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import SUFFIXES

N_LAYERS, D_MODEL, D_MLP, N_HEADS, CONTEXT = 3, 32, 48, 4, 24
KINDS = {"resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post"}


@dataclass(frozen=True)
class Architecture:
    """How to build a tiny model and where, by hand, its activations are."""

    model: str
    config: str
    sizes: dict
    block: str = "model.layers.{}"
    attn: str = "self_attn"
    z: str = "self_attn.o_proj"
    mid: str = "post_attention_layernorm"
    mlp: str = "mlp"
    mlp_post: str = "mlp.down_proj"
    attn_out: str = ""  # where not what the attention returns
    mlp_out: str = ""
    lacks: frozenset = frozenset()
    z_width: int = D_MODEL
    mlp_width: int = D_MLP
    scale: float = 1.0
    way: str = "positions"
    attention: str = "sdpa"


BASE = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "intermediate_size": D_MLP}
LLAMA = {**BASE, "num_key_value_heads": 2, "max_position_embeddings": 128}
GPT = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": 128}
ALTERNATING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {**LLAMA, "head_dim": 12, "query_pre_attn_scalar": 12, **ALTERNATING}
GEMMA_PLACES = {
    "attn_out": "post_attention_layernorm",
    "mid": "pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "z_width": 48,
}
GPT_PLACES = {"block": "transformer.h.{}", "attn": "attn", "z": "attn.c_proj", "mid": "ln_2", "mlp_post": "mlp.c_proj"}
MLP_4H = {"mlp_post": "mlp.dense_4h_to_h", "mlp_width": 4 * D_MODEL}
FALCON = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "max_position_embeddings": 128}
FALCON_PLACES = {
    "block": "transformer.h.{}",
    "attn": "self_attention",
    "z": "self_attention.dense",
    **MLP_4H,
    "way": "rows",
    "attention": "eager",
}
OPT = {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "ffn_dim": D_MLP, "dropout": 0.0}
OPT_PLACES = {
    "block": "model.decoder.layers.{}",
    "z": "self_attn.out_proj",
    "mid": "final_layer_norm",
    "mlp": "fc2",
    "mlp_post": "fc2",
    "way": "rows",
}
NEOX_PLACES = {"block": "gpt_neox.layers.{}", "attn": "attention", "z": "attention.dense", "mlp_post": "mlp.dense_4h_to_h"}
PARALLEL, EXPERTS = frozenset({"resid_mid"}), frozenset({"mlp_post"})
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}

ARCHITECTURES = {
    "gpt2": Architecture("GPT2LMHeadModel", "GPT2Config", GPT, **GPT_PLACES, mlp_width=4 * D_MODEL),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", {**LLAMA, "head_dim": 12}, z_width=48),
    "neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", BASE, **NEOX_PLACES, lacks=PARALLEL),
    "neox-sequential": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", {**BASE, "use_parallel_residual": False}, **NEOX_PLACES),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", {**LLAMA, "head_dim": 12}, z_width=48),
    "gemma2": Architecture(
        "Gemma2ForCausalLM", "Gemma2Config", {**GEMMA, "attn_logit_softcapping": 1.0}, **GEMMA_PLACES, attention="eager"
    ),
    "gemma3": Architecture("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA, **GEMMA_PLACES),
    "opt": Architecture(
        "OPTForCausalLM", "OPTConfig", {**OPT, "max_position_embeddings": 128, "word_embed_proj_dim": D_MODEL}, **OPT_PLACES
    ),
    "opt-350m": Architecture(  # norms after the sums: what its second norm reads is not resid_mid
        "OPTForCausalLM",
        "OPTConfig",
        {**OPT, "max_position_embeddings": 128, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        **OPT_PLACES,
        lacks=PARALLEL,
    ),
    "phi": Architecture("PhiForCausalLM", "PhiConfig", {**BASE}, z="self_attn.dense", mlp_post="mlp.fc2", lacks=PARALLEL),
    "phi3": Architecture("Phi3ForCausalLM", "Phi3Config", LLAMA),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", {**LLAMA, "sliding_window": 4}),
    "falcon": Architecture("FalconForCausalLM", "FalconConfig", {**FALCON, "alibi": False, "bias": False}, **FALCON_PLACES, lacks=PARALLEL),
    "falcon-alibi": Architecture(
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False},
        **FALCON_PLACES,
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS},
        **{**FALCON_PLACES, "attn_out": "self_attention.dense", "mlp_out": "mlp.dense_4h_to_h"},  # the modules add the residual themselves
    ),
    "gptj": Architecture(
        "GPTJForCausalLM",
        "GPTJConfig",
        {**GPT, "rotary_dim": 4},
        **{**GPT_PLACES, "z": "attn.out_proj", "mlp_post": "mlp.fc_out"},
        lacks=PARALLEL,
        mlp_width=4 * D_MODEL,
        attention="eager",
    ),
    "granite": Architecture(
        "GraniteForCausalLM", "GraniteConfig", {**LLAMA, "residual_multiplier": 0.3, "attention_multiplier": 0.4}, scale=0.3
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM",
        "Olmo2Config",
        LLAMA,
        attn_out="post_attention_layernorm",
        mid="mlp",
        mlp_out="post_feedforward_layernorm",
    ),
    "mixtral": Architecture("MixtralForCausalLM", "MixtralConfig", {**LLAMA, "num_local_experts": 4}, lacks=EXPERTS),
    "deepseek-v3": Architecture(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **LLAMA,
            **MLA,
            "num_key_value_heads": N_HEADS,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
        },
        z_width=20,
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **LLAMA,
            "head_dim": 12,
            **ALTERNATING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        lacks=EXPERTS,
        z_width=48,
        way="rows",
        attention="eager",
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "state_size": 4},
        block="backbone.layers.{}",
        lacks=frozenset({"resid_mid", "attn_out", "mlp_out", "z", "mlp_post"}),
        way="rows",
        attention="eager",
    ),
}


@functools.cache
def plain_model(name):
    """The Hugging Face model with eager attention; all weights random and none zero."""
    architecture = ARCHITECTURES[name]
    config = getattr(transformers, architecture.config)(
        **architecture.sizes, vocab_size=len(tiny_tokenizer()), bos_token_id=1, eos_token_id=0, pad_token_id=None
    )
    model = getattr(transformers, architecture.model)._from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.dim() == 1 and parameter_name.endswith("weight")
            parameter.copy_(1.0 + 0.2 * noise if is_gain else 0.1 * noise if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    model.eval()
    return copy.deepcopy(model), model


@functools.cache
def language_model(name):
    return LanguageModel.load(copy.deepcopy(plain_model(name)[0]), tokenizer=tiny_tokenizer())


def all_sites(name):
    return language_model(name).sites(["blocks.*.*"] if name == "mamba" else ["blocks.*.*", "blocks.*.*.*"])


QUICK = ("gpt2", "llama", "neox", "qwen2", "gemma3", "opt", "bloom", "granite")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in ARCHITECTURES])
def name(request):
    return request.param


@pytest.fixture
def tokens():
    return torch.randint(2, 256, (2, CONTEXT), generator=torch.Generator().manual_seed(3))


def place(name, kind, layer):
    """(module path, side) of a kind of site."""
    at = ARCHITECTURES[name]
    inner, side = {
        "resid_pre": ("", "in"),
        "resid_mid": (at.mid, "in"),
        "resid_post": ("", "out"),
        "attn_out": (at.attn_out or at.attn, "out"),
        "mlp_out": (at.mlp_out or at.mlp, "out"),
        "z": (at.z, "in"),
        "mlp_post": (at.mlp_post, "in"),
    }[kind]
    return f"{at.block.format(layer)}.{inner}".rstrip("."), side


def plain_pass(name, tokens, places, edit=None):
    """(logits, {key: activations}) of the plain model; `edit` is (path, side, function)."""
    model = plain_model(name)[1]
    seen, handles = {}, []

    def hook(path, side, function):
        module = model.get_submodule(path)
        if side == "in":
            return module.register_forward_pre_hook(
                lambda _m, args, kw: (
                    ((function(args[0]), *args[1:]), kw) if args else (args, kw | {"hidden_states": function(kw["hidden_states"])})
                ),
                with_kwargs=True,
            )
        return module.register_forward_hook(
            lambda _m, _args, out: (function(out[0]), *out[1:]) if isinstance(out, tuple) else function(out)
        )

    def keep(key, acts):
        seen[key] = acts.clone()
        return acts

    try:
        if edit is not None:
            handles.append(hook(*edit))
        handles += [hook(path, side, functools.partial(keep, key)) for key, (path, side) in places.items()]
        with torch.no_grad():
            return model(tokens, use_cache=False).logits, seen
    finally:
        for handle in handles:
            handle.remove()


def kind_name(layer, kind):
    return f"blocks.{layer}.{SUFFIXES[kind]}"


def test_every_kind_of_site_is_the_activation_of_the_plain_model(name, tokens):
    model, architecture = language_model(name), ARCHITECTURES[name]
    sites = all_sites(name)
    logits, expected = plain_pass(name, tokens, {site: place(name, site.kind, site.layer) for site in sites})
    torch.testing.assert_close(model.run(tokens), logits, atol=2e-5, rtol=1e-5)
    acts = model.capture(tokens, sites)
    for site in sites:
        reference = expected[site].reshape(2, CONTEXT, -1) * (architecture.scale if site.kind in ("attn_out", "mlp_out") else 1.0)
        torch.testing.assert_close(acts[site], reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-5, msg=site.name)
        assert site.width == reference.shape[-1]


def test_the_sites_are_those_of_the_architecture_with_their_widths(name):
    model, architecture = language_model(name), ARCHITECTURES[name]
    sites = all_sites(name)
    if name == "deepseek-v3":  # the first block is dense, the others are mixtures of experts
        assert [site.layer for site in sites if site.kind == "mlp_post"] == [0]
    else:
        assert {site.name for site in sites} == {kind_name(i, kind) for i in range(N_LAYERS) for kind in KINDS - architecture.lacks}
    widths = {"z": architecture.z_width, "mlp_post": architecture.mlp_width}
    assert all(site.width == widths.get(site.kind, D_MODEL) for site in sites)
    assert all(model.site(site.name) == site for site in sites)
    for kind in architecture.lacks:
        with pytest.raises(ConfigError, match=f"a {kind} does not exist in this architecture"):
            model.site(kind_name(1, kind))


def test_every_kind_of_site_is_what_transformer_lens_computes_there(name, tokens):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    wrapped = copy.deepcopy(plain_model(name)[0])
    bridge = build_bridge_from_module(wrapped, ARCHITECTURES[name].model, hf_config=wrapped.config, model_name=name)
    expected = {}
    hooks = [(site.name, lambda acts, hook, site=site: expected.update({site: acts.flatten(2).clone()})) for site in all_sites(name)]
    with torch.no_grad():
        bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    for site, acts in language_model(name).capture(tokens, list(expected)).items():
        torch.testing.assert_close(acts, expected[site], atol=1e-5 * float(expected[site].abs().max()), rtol=1e-4, msg=site.name)
    assert len(expected) == len(all_sites(name))


def test_attention_is_fused_where_it_can_be_and_is_the_same_function(name):
    assert language_model(name)._model.model.config._attn_implementation == ARCHITECTURES[name].attention


def test_a_fused_attention_that_is_another_function_is_not_used(monkeypatch, tokens):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def without_scaling(*args, scaling=None, **kwargs):
        return fused(*args, scaling=2.0 * scaling, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", without_scaling)
    model = LanguageModel.load(copy.deepcopy(plain_model("llama")[0]), tokenizer=tiny_tokenizer())
    assert model._model.model.config._attn_implementation == "eager"
    torch.testing.assert_close(model.run(tokens), plain_pass("llama", tokens, {})[0], atol=2e-5, rtol=1e-5)


def test_an_edit_of_every_kind_is_an_ordinary_hook_on_the_plain_model(name, tokens):
    model, architecture = language_model(name), ARCHITECTURES[name]
    unedited = model.run(tokens)
    for kind in sorted(KINDS - architecture.lacks - {"resid_mid"}):  # resid_mid reaches the skip connection: tested by itself
        layer = 0 if (name, kind) == ("deepseek-v3", "mlp_post") else 1
        site = model.site(kind_name(layer, kind))
        direction = torch.randn(site.width, generator=torch.Generator().manual_seed(4))
        scale = architecture.scale if kind in ("attn_out", "mlp_out") else 1.0
        expected, _ = plain_pass(name, tokens, {}, (*place(name, kind, layer), lambda a, d=direction / scale: (a + d).reshape(a.shape)))
        edited = model.run(tokens, [Edit.add(site, direction)])
        torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4, msg=site.name)
        assert (edited - unedited).abs().max() > 1e-3


def test_an_edit_of_resid_mid_is_an_edit_of_what_attention_wrote(name, tokens):
    if not {"resid_mid", "attn_out"} <= KINDS - ARCHITECTURES[name].lacks:
        pytest.skip("no resid_mid in this architecture")
    model = language_model(name)
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
    mid, attn_out = (Edit.add(model.site(kind_name(1, kind)), direction) for kind in ("resid_mid", "attn_out"))
    torch.testing.assert_close(model.run(tokens, [mid]), model.run(tokens, [attn_out]), atol=1e-4, rtol=1e-4)


def test_a_replacement_is_not_written_into(name, tokens):
    model = language_model(name)
    for site in all_sites(name):
        value = torch.randn(2, CONTEXT, site.width, generator=torch.Generator().manual_seed(6))
        before = value.clone()
        acts = model.capture(tokens, [site, model.site(kind_name(2, "resid_post"))], edits=[Edit.replace(site, value)])
        assert torch.equal(value, before)
        assert torch.equal(acts[site], value) or ARCHITECTURES[name].scale != 1.0


def test_resuming_from_any_block_gives_the_logits_of_the_whole_pass(name, tokens):
    model = language_model(name)
    logits = model.run(tokens)
    for site in (model.site(kind_name(0, "resid_pre")), model.site(kind_name(0, "resid_post")), model.site(kind_name(2, "resid_post"))):
        acts = model.capture(tokens, [site])[site].requires_grad_()
        resumed = model.resume(acts, site)
        torch.testing.assert_close(resumed, logits, atol=1e-5, rtol=1e-5)
        resumed[1, -1, 3].backward()
        assert acts.grad[1].abs().max() > 0
        assert acts.grad[0].abs().max() == 0


PACKED_IDS = torch.tensor([[7] * 5 + [8] * 12 + [9] + [10] * 6, [11] * 20 + [7] * 3 + [11]])


def runs(ids):
    """(row, first, last) of every run of equal ids."""
    for row in range(len(ids)):
        starts = [0, *(i for i in range(1, CONTEXT) if ids[row, i] != ids[row, i - 1]), CONTEXT]
        yield from ((row, first, last) for first, last in itertools.pairwise(starts))


def test_packed_documents_are_computed_as_if_each_were_alone(name, tokens):
    model, sites = language_model(name), all_sites(name)
    packed = model.capture(tokens, sites, document_ids=PACKED_IDS)
    logits = model.run(tokens, document_ids=PACKED_IDS)
    mixed = model.capture(tokens, sites)
    for row, first, last in runs(PACKED_IDS):
        document = tokens[row : row + 1, first:last]
        alone = plain_pass(name, document, {site: place(name, site.kind, site.layer) for site in sites})
        torch.testing.assert_close(logits[row, first:last], alone[0][0], atol=3e-5, rtol=1e-5)
        for site in sites:
            scale = ARCHITECTURES[name].scale if site.kind in ("attn_out", "mlp_out") else 1.0
            expected = alone[1][site].reshape(last - first, -1) * scale
            torch.testing.assert_close(packed[site][row, first:last], expected, atol=2e-5 * float(mixed[site].abs().max()), rtol=1e-5)
    last_site = model.site(kind_name(2, "resid_post"))
    torch.testing.assert_close(packed[last_site][:, :5], mixed[last_site][:, :5], atol=1e-4, rtol=1e-4)  # the first documents see no other
    assert (packed[last_site] - mixed[last_site]).norm(dim=-1)[0, 5:].max() > 1e-1
    assert model._isolating.way == ARCHITECTURES[name].way


def test_edits_of_packed_documents_are_exact_or_refused(name, tokens):
    model = language_model(name)
    site, last_site = model.site(kind_name(0, "resid_post")), model.site(kind_name(2, "resid_post"))
    values = torch.randn(2, CONTEXT, D_MODEL, generator=torch.Generator().manual_seed(7))
    if ARCHITECTURES[name].way == "rows":
        with pytest.raises(ConfigError, match=f"{ARCHITECTURES[name].model} isolates packed documents only by running them in rows"):
            model.capture(tokens, [last_site], edits=[Edit.replace(site, values)], document_ids=PACKED_IDS)
        return
    packed = model.capture(tokens, [last_site], edits=[Edit.replace(site, values)], document_ids=PACKED_IDS)[last_site]
    for row, first, last in runs(PACKED_IDS):
        edits = [Edit.replace(site, values[row : row + 1, first:last])]
        alone = model.capture(tokens[row : row + 1, first:last], [last_site], edits=edits)[last_site]
        torch.testing.assert_close(packed[row, first:last], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), [("gpt2", torch.bfloat16), ("gemma3", torch.float16), ("bloom", torch.bfloat16)])
def test_half_precision_isolates_too(name, tokens, dtype):
    model = LanguageModel.load(copy.deepcopy(plain_model(name)[0]), tokenizer=tiny_tokenizer(), dtype=dtype)
    site = model.site(kind_name(2, "resid_post"))
    packed = model.capture(tokens, [site], document_ids=PACKED_IDS)[site].float()
    assert model._isolating.way == ARCHITECTURES[name].way
    for row, first, last in runs(PACKED_IDS):
        alone = model.capture(tokens[row : row + 1, first:last], [site])[site][0].float()
        assert ((packed[row, first:last] - alone).norm(dim=-1) / alone.norm(dim=-1)).max() < 8 * torch.finfo(dtype).eps


class Leaking(HookedModel):
    """Positions restart, and nothing is masked."""

    def _forward(self, tokens, positions):
        mask = None if positions is None else torch.ones_like(tokens)
        return self.model(input_ids=tokens, use_cache=False, position_ids=positions, attention_mask=mask)


class Displaced(HookedModel):
    """Documents are masked, but their positions do not restart."""

    def _forward(self, tokens, positions):
        if positions is None:
            return self.model(input_ids=tokens, use_cache=False)
        document = (positions == 0).cumsum(dim=1)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        return self.model(input_ids=tokens, use_cache=False, attention_mask=mask, position_ids=torch.arange(tokens.shape[1])[None])


class Whispering(HookedModel):
    """Positions restart, and other documents are masked, but for an eight thousandth of their weight in a softmax."""

    def _forward(self, tokens, positions):
        if positions is None:
            return self.model(input_ids=tokens, use_cache=False)
        document = (positions == 0).cumsum(dim=1)
        mask = torch.zeros(tokens.shape[0], 1, tokens.shape[1], tokens.shape[1])
        mask[(document[:, :, None] != document[:, None, :])[:, None]] = -9.0
        mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), -torch.inf)
        return self.model(input_ids=tokens, use_cache=False, attention_mask=mask, position_ids=positions)


@pytest.mark.parametrize(
    ("broken", "name", "dtype"),
    [
        (Leaking, "gpt2", torch.float32),
        (Leaking, "llama", torch.bfloat16),
        (Leaking, "gemma3", torch.float32),
        (Displaced, "gpt2", torch.float32),
        (Displaced, "gpt2", torch.bfloat16),
        (Whispering, "llama", torch.float32),
    ],
)
def test_a_model_that_does_not_isolate_is_found_out(monkeypatch, broken, name, dtype):
    model = isolation.IsolatingModel(broken(copy.deepcopy(plain_model(name)[0]).to(dtype)))
    assert model.way == "rows"  # the other way works
    monkeypatch.setattr(isolation, "_ways", lambda model: ["positions"])
    refused = isolation.IsolatingModel(model._model)
    with pytest.raises(ConfigError, match=rf"{ARCHITECTURES[name].model} does not keep packed documents apart \(positions: .* times"):
        refused.capture(torch.zeros(1, 4, dtype=torch.long), [], [], torch.zeros(1, 4, dtype=torch.long))


def test_a_model_that_sees_what_follows_is_found_out(monkeypatch):
    model = HookedModel(copy.deepcopy(plain_model("llama")[0]))
    model.model.config.is_causal = False  # the library then masks nothing: padding is seen
    for layer in model.model.model.layers:
        layer.self_attn.is_causal = False
    monkeypatch.setattr(isolation, "_ways", lambda model: ["rows"])
    with pytest.raises(ConfigError, match=r"does not keep packed documents apart \(rows: "):
        isolation.IsolatingModel(model).way  # noqa: B018


def test_attention_in_chunks_of_the_row_does_not_go_by_positions():
    model = HookedModel(copy.deepcopy(plain_model("llama")[0]))
    assert isolation._ways(model) == ["positions", "rows"]
    model.model.config.attention_chunk_size = 8192
    assert isolation._ways(model) == ["rows"]


def test_the_probe_runs_once_a_model(monkeypatch, tokens):
    model = LanguageModel.load(copy.deepcopy(plain_model("llama")[0]), tokenizer=tiny_tokenizer())
    calls = []
    distance = isolation._distance
    monkeypatch.setattr(isolation, "_distance", lambda *args: calls.append(args) or distance(*args))
    site = model.site(kind_name(1, "resid_post"))
    model.capture(tokens, [site])
    assert calls == []
    for _ in range(3):
        model.capture(tokens, [site], document_ids=PACKED_IDS)
    assert len(calls) == 1


@pytest.mark.parametrize("lengths", [[1] * CONTEXT, [CONTEXT], [1, CONTEXT - 1], [CONTEXT - 1, 1], [2] * 12, [10, 9, 5], [3, 7, 6, 8]])
def test_documents_in_rows_of_their_own_come_back_to_their_places(lengths, tokens):
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    sizes = []

    def forward(rows, positions):
        assert positions is None
        sizes.append(rows.numel())
        return {"x": torch.stack([rows, torch.arange(rows.shape[1]).expand_as(rows)], dim=-1)}

    packed = isolation._run(forward, tokens, ids, "rows")["x"]
    assert torch.equal(packed[..., 0], tokens)
    assert torch.equal(packed[..., 1], isolation.offsets_in_document(ids))
    assert max(sizes) <= tokens.numel()


def test_document_ids_of_another_shape_are_refused(unchecked, tokens):
    model = language_model("llama")
    with pytest.raises(ConfigError, match=r"document_ids must have the shape of tokens, \[2, 24\], got \[2, 23\]"):
        model.capture(tokens, [model.site(kind_name(0, "resid_post"))], document_ids=PACKED_IDS[:, :23])


def test_an_architecture_without_an_adapter_is_a_clear_error():
    config = transformers.GPTNeoXConfig(**BASE, vocab_size=len(tiny_tokenizer()))
    model = type("NobodysModelForCausalLM", (transformers.GPTNeoXForCausalLM,), {})(config)
    with pytest.raises(ConfigError, match="TransformerLens has no adapter for the architecture 'NobodysModelForCausalLM'"):
        LanguageModel.load(model, tokenizer=tiny_tokenizer())
