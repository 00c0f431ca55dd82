"""Observables as directions: through norms and heads, their coupling, and the logit lens."""

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis
from tiny import tiny_hf_model, tiny_language_model, tiny_tokenizer

from probes.observables import (
    AttentionMaps,
    Observable,
    attention_maps,
    coupling,
    couplings,
    logit_lens,
    norm_angle,
    observable_paths,
    pull_back,
    through_attention,
    through_gain,
    through_norm,
)
from probes.unembedding import FinalNorm, clean_unembedding, read_unembedding
from sae.errors import ConfigError
from sae.models.language_model import LanguageModel


def norm(d, *, centred=True, seed=0, eps=1e-3):
    rng = np.random.default_rng(seed)
    return FinalNorm(1 + 0.3 * rng.normal(size=d), rng.normal(size=d), eps, centred)


def unembedding(n=300, d=16, seed=0, **options):
    rng = np.random.default_rng(seed)
    return clean_unembedding(rng.normal(size=(n, d)), [f" t{i}" for i in range(n)], norm=norm(d, seed=seed, **options))


@pytest.mark.parametrize("centred", [True, False])
def test_pull_back_through_a_norm_is_the_transposed_numeric_jacobian(centred):
    rng = np.random.default_rng(0)
    layer, x, n = norm(12, centred=centred), rng.normal(size=12) * 0.1 + 0.05, rng.normal(size=12)
    step = 1e-6
    numeric = [n @ (layer.apply(x + step * e) - layer.apply(x - step * e)) / (2 * step) for e in np.eye(12)]
    np.testing.assert_allclose(through_norm(layer, x, n), numeric, rtol=1e-6, atol=1e-7)
    many = through_norm(layer, rng.normal(size=(5, 12)), n)
    assert many.shape == (5, 12)


@pytest.mark.parametrize("centred", [True, False])
def test_pull_back_through_a_norm_is_torchs(centred):
    rng = np.random.default_rng(1)
    layer = norm(20, centred=centred, eps=1e-5)
    gain, bias = torch.tensor(layer.gain), torch.tensor(layer.bias)

    def torchs(x):
        if centred:
            return torch.nn.functional.layer_norm(x, (20,), gain, bias, 1e-5)
        return torch.nn.functional.rms_norm(x, (20,), gain, 1e-5) + bias

    x, n = torch.tensor(rng.normal(size=20)), torch.tensor(rng.normal(size=20))
    np.testing.assert_allclose(layer.apply(x.numpy()), torchs(x).numpy(), rtol=1e-9)
    np.testing.assert_allclose(through_norm(layer, x.numpy(), n.numpy()), pull_back(torchs, x, n).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("centred", [True, False])
def test_angle_that_a_norm_turns_a_direction_by_is_the_closed_form_and_small(centred):
    rng = np.random.default_rng(2)
    d = 256
    plain = FinalNorm(np.ones(d), np.zeros(d), 0.0, centred)
    n, x = rng.normal(size=(400, d)), rng.normal(size=(400, d)) + 0.3
    pulled = through_norm(plain, x, n)
    cos2 = np.square((pulled * n).sum(axis=1)) / np.square(pulled).sum(axis=1) / np.square(n).sum(axis=1)
    np.testing.assert_allclose(norm_angle(n, x, centred=centred), cos2, rtol=1e-9)
    assert cos2.mean() == pytest.approx(1 - (2 if centred else 1) / d, abs=2e-3)
    assert (
        np.isnan(norm_angle(x - x.mean(axis=1, keepdims=True), x, centred=True)).sum() + np.isnan(norm_angle(x, x, centred=False)).sum() > 0
    )


def test_gain_alone_is_the_pull_back_without_scale_and_without_the_part_along_x():
    layer, rng = norm(10), np.random.default_rng(3)
    n = rng.normal(size=10)
    x = rng.normal(size=(20000, 10)) * 100
    mean = (through_norm(layer, x, n) * layer.scale(x)).mean(axis=0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), through_gain(layer, n) / np.linalg.norm(through_gain(layer, n)), atol=0.02)
    assert through_gain(None, n) is n


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="at must have the norm's width 10, got 9"):
        through_norm(norm(10), np.ones(9), np.ones(9))


def test_observable_of_an_attention_only_linear_model_is_exact_at_the_embedding():
    """Three layers of four heads with frozen patterns, no norm: y at the embedding gives the very logit difference."""
    rng = np.random.default_rng(0)
    n_layers, n_heads, context, d, d_head, d_vocab = 3, 4, 7, 20, 5, 50
    W_V, W_O = (rng.normal(size=(n_layers, n_heads, *shape)) / 4 for shape in ((d, d_head), (d_head, d)))
    pattern = np.tril(rng.random((n_layers, n_heads, context, context)))
    pattern /= pattern.sum(axis=-1, keepdims=True)
    W_U, x = rng.normal(size=(d_vocab, d)), rng.normal(size=(context, d))
    stream = x
    for layer in range(n_layers):
        stream = stream + sum(pattern[layer, h] @ stream @ W_V[layer, h] @ W_O[layer, h] for h in range(n_heads))
    logits = stream @ W_U.T
    observable = Observable("3 against 8", {" t3": 1.0, " t8": -1.0})
    rows = clean_unembedding(W_U, [f" t{i}" for i in range(d_vocab)])
    y = np.zeros((context, d))
    y[-1] = observable.at_residual(rows)
    for layer in reversed(range(n_layers)):
        y = through_attention(y, pattern[layer], W_V[layer], W_O[layer])
    assert (y * x).sum() == pytest.approx(logits[-1, 3] - logits[-1, 8], abs=1e-6)


def test_slope_of_one_observable_on_another_is_their_coupling():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 30))
    second += 0.7 * first
    for mixing in (np.eye(30), rng.normal(size=(30, 30))):
        x = rng.normal(size=(20000, 30)) @ mixing
        a, b = x @ first, x @ second
        slope = a @ b / (a @ a)
        error = np.std(b - slope * a) / np.linalg.norm(a)
        covariance = None if (mixing == np.eye(30)).all() else mixing.T @ mixing
        expected = coupling(first[None], second[None], covariance=covariance)[0, 0]
        assert abs(slope - expected) < 3 * error
        near = np.abs(a - 1.0) < 0.2 * np.std(a)
        assert b[near].mean() == pytest.approx(expected * a[near].mean(), abs=4 * np.std(b - slope * a) / np.sqrt(near.sum()))
    with pytest.raises(ConfigError, match="no row without variance along it, row 1"):
        coupling(np.array([[1.0, 0.0], [0.0, 0.0]]), np.eye(2))


def test_an_observable_is_its_logits_difference_and_its_residual_direction_the_gradient():
    rows = unembedding()
    observable = Observable("o", {" t3": 2.0, " t8": -1.0})
    rng = np.random.default_rng(0)
    at = rng.normal(size=(6, 16))
    np.testing.assert_allclose(observable.at_unembedding(rows), 2 * rows.rows[3] - rows.rows[8])
    step = 1e-6
    logits = [[observable.at_unembedding(rows) @ rows.norm.apply(x + s * step * e) for s in (1, -1)] for x in at for e in np.eye(16)]
    gradients = (np.diff(np.array(logits), axis=1) / (-2 * step)).reshape(6, 16)
    np.testing.assert_allclose(observable.at_residual(rows, at=at), gradients.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(observable.at_residual(rows, at=at[0]), gradients[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(observable.at_residual(rows), through_gain(rows.norm, observable.at_unembedding(rows)))


@pytest.mark.parametrize(
    ("weights", "words"), [({" t1": 1.0, "t2": -1.0}, "'t2'"), ({}, "'none'"), ({" t1": float("nan")}, "weights must be finite")]
)
def test_observables_that_cannot_be_are_refused(weights, words):
    with pytest.raises(ConfigError, match=words):
        Observable("o", weights).at_unembedding(unembedding())


def test_couplings_tell_observables_that_share_a_token_from_random_ones():
    rows = unembedding(n=400, d=64)
    chosen = [
        Observable("a", {" t1": 1.0, " t2": -1.0}),
        Observable("b", {" t1": 1.0, " t3": -1.0}),
        Observable("c", {" t8": 1.0, " t9": -1.0}),
    ]
    result = couplings(chosen, rows)
    np.testing.assert_allclose(np.diag(result.values), 1)
    assert result.values[0, 1] > 2 * result.null_sd[0] and abs(result.values[0, 2]) < 3 * result.null_sd[0]
    assert result.table().columns == ("known", "a", "b", "c", "random pairs")
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        couplings(chosen[:1], rows)


def llama_heads(model, layer):
    block = model.model.layers[layer]
    values = (block.self_attn.v_proj.weight * block.input_layernorm.weight).T.reshape(32, 2, 8).repeat_interleave(2, dim=1)
    return values.permute(1, 0, 2), block.self_attn.o_proj.weight.T.reshape(4, 8, 32)


def gpt2_heads(model, layer):
    block = model.transformer.h[layer]
    values = block.ln_1.weight[:, None] * block.attn.c_attn.weight[:, 64:]
    values = values - values.mean(dim=0)  # the mean over coordinates that the norm subtracts
    return values.reshape(32, 4, 8).permute(1, 0, 2), block.attn.c_proj.weight.reshape(4, 8, 32)


@pytest.mark.parametrize(("architecture", "heads"), [("llama", llama_heads), ("gpt2", gpt2_heads)])
def test_measured_maps_of_heads_are_the_weights(architecture, heads):
    published = tiny_hf_model(seed=5, architecture=architecture)
    maps = attention_maps(LanguageModel.load(published, tokenizer=tiny_tokenizer()), [3, 1])
    assert maps.layers == (3, 1)
    for i, layer in enumerate(maps.layers):
        W_V, W_O = (weight.detach().double().numpy() for weight in heads(published, layer))
        np.testing.assert_allclose(maps.W_V[i], W_V, atol=2e-6)
        np.testing.assert_allclose(maps.W_O[i], W_O, atol=2e-6)
    y = np.random.default_rng(0).normal(size=32)
    np.testing.assert_allclose(maps.pull_back(y)[1, 2], maps.W_V[1, 2] @ maps.W_O[1, 2] @ y, rtol=1e-9)


def test_an_observable_pulled_back_through_a_head_is_what_the_head_moves_it_by():
    """Intervention: with the head's own output as the reference, adding the source vector changes the observable by gain, to first order."""
    model = tiny_language_model(seed=7)
    rows, maps = read_unembedding(model), attention_maps(model, [3])
    token = next(t for i, t in enumerate(rows.tokens) if rows.row_of(t) == i and t != " the")
    observable = Observable("o", {token: 1.0, " the": -1.0})
    resid = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0))
    push = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1)) * 1e-2
    z, entry, out = (model.site(f"blocks.3.{name}") for name in ("attn.hook_z", "hook_resid_pre", "hook_attn_out"))
    from sae.models.edits import Edit

    tokens = torch.zeros(1, 1, dtype=torch.long)
    before, after = (model.capture(tokens, [z, out], edits=[Edit.replace(entry, value)]) for value in (resid, resid + push))
    head = slice(8, 16)  # head 1
    written = (after[z] - before[z])[0, 0, head].double().numpy() @ maps.W_O[0, 1]
    y = observable.at_residual(rows)
    normed = resid[0, 0].numpy() / np.sqrt(np.square(resid[0, 0].numpy()).mean()), None
    moved = (resid + push)[0, 0].numpy()
    moved = moved / np.sqrt(np.square(moved).mean())
    assert maps.pull_back(y)[0, 1] @ (moved - normed[0]) == pytest.approx(written @ y, rel=1e-2, abs=1e-6)


def test_layers_that_are_not_there_are_refused_and_so_are_heads_with_a_norm_after_them():
    model = tiny_language_model()
    with pytest.raises(ConfigError, match=r"layers must be some of 0..3, got \[4\]"):
        attention_maps(model, [4])
    with pytest.raises(ConfigError, match=r"got \[\]"):
        attention_maps(model, [])
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    gemma = Gemma2ForCausalLM(Gemma2Config(**sizes, vocab_size=400, max_position_embeddings=64))
    with pytest.raises(ConfigError, match="not a norm followed by linear maps"):
        attention_maps(LanguageModel.load(gemma, tokenizer=tiny_tokenizer()))


def test_planted_head_is_the_one_that_carries_the_observable():
    rows = unembedding(n=400, d=32)
    rng = np.random.default_rng(0)
    W_V, W_O = (rng.normal(size=(2, 3, *shape)) / 10 for shape in ((32, 4), (4, 32)))
    observable = Observable("o", {" t5": 1.0, " t6": -1.0})
    y = observable.at_residual(rows)
    reads = rows.rows[17] / np.linalg.norm(rows.rows[17])
    W_V[1, 2, :, 0], W_O[1, 2, 0] = 3 * reads, y / np.linalg.norm(y)
    paths = observable_paths(observable, AttentionMaps((4, 9), W_V, W_O), rows, embedding=rows)
    assert np.unravel_index(paths.z.argmax(), paths.z.shape) == (1, 2) and paths.z.max() > 3
    np.testing.assert_allclose(paths.directions[1, 2], W_V[1, 2] @ W_O[1, 2] @ y, rtol=1e-9)
    assert paths.gain[0, 1] == pytest.approx(np.linalg.norm(W_V[0, 1] @ W_O[0, 1] @ y) / np.linalg.norm(y))
    assert paths.table().rows[0][0] == "L9H2" and paths.table().rows[0][5].split()[0].strip("'") in ("", "t17")
    assert "' t17'" in paths.table().rows[0][5]
    random = observable_paths(Observable("r", {" t50": 1.0, " t60": -1.0}), AttentionMaps((4, 9), W_V / W_V.std(), W_O), rows)
    assert random.sources == () and np.abs(random.z).max() < 6


def test_mlp_is_pulled_back_at_a_reference_point():
    generator = torch.Generator().manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU(), torch.nn.Linear(12, 5)).double()
    at, y, push = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (6, 5, 6))
    pulled = pull_back(layers, at, y)
    with torch.no_grad():
        change = (layers(at + 1e-6 * push) - layers(at - 1e-6 * push)) @ y / 2e-6
    assert float((pulled @ push).detach()) == pytest.approx(float(change), rel=1e-6)


def test_logit_lens_of_a_direction_is_the_models_own_logit_effects():
    model = tiny_language_model(seed=2, architecture="gpt2")
    rows = read_unembedding(model)
    directions = np.random.default_rng(0).normal(size=(70, 32))
    lens = logit_lens(directions, rows, k=5, n_null=3)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    effects = model.logit_effects(torch.tensor(unit)).double().numpy()
    z = effects / effects.std(axis=1, keepdims=True)
    np.testing.assert_allclose(lens.top_z, np.sort(z, axis=1)[:, ::-1][:, :5], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(lens.bottom_z, np.sort(z, axis=1)[:, :5], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(z, lens.top_ids, axis=1), lens.top_z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(lens.sd, effects.std(axis=1), rtol=1e-4)
    np.testing.assert_allclose(lens.kurtosis, kurtosis(z, axis=1), atol=1e-3)
    np.testing.assert_allclose(lens.extreme, np.abs(z).max(axis=1), rtol=1e-4)
    assert lens.top[3][0] == rows.tokens[int(np.flatnonzero(rows.token_ids == lens.top_ids[3, 0])[0])]


@pytest.mark.parametrize("null", ["permuted", "random"])
def test_logit_lens_tells_a_direction_with_a_theme_from_random_ones(null):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 40))
    theme = rng.normal(size=40)
    theme /= np.linalg.norm(theme)
    rows[:20] += 12 * theme  # twenty tokens written by one direction
    lens = logit_lens(
        np.concatenate([theme[None], rng.normal(size=(5, 40))]),
        clean_unembedding(rows, [f"t{i}" for i in range(2000)]),
        null=null,
        n_null=99,
        k=20,
    )
    assert set(lens.top[0]) == {f"t{i}" for i in range(20)}
    assert lens.p_values[0] == 0.01 and (lens.p_values[1:] > 0.02).all()
    assert lens.extreme[0] > lens.null_extreme[0].mean() + 2 * lens.null_extreme[0].std()
    again = logit_lens(theme, clean_unembedding(rows, [f"t{i}" for i in range(2000)]), null=null, n_null=99)
    assert again.kurtosis[0] == pytest.approx(lens.kurtosis[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"directions": np.ones((2, 5))}, "unembedding's width 16, got 5"),
        ({"directions": np.stack([np.ones(16), np.zeros(16)])}, "not zeros; leave out dead latents"),
        ({"directions": np.full((1, 16), np.nan)}, "must be finite"),
        ({"k": 0}, r"k must be in 1..300"),
        ({"k": 301}, r"k must be in 1..300"),
        ({"n_null": 1}, "n_null at least 2, got 10 and 1"),
        ({"names": ["a", "b"]}, r"one per direction \(1\), got 2"),
        ({"directions": np.ones((1, 16))}, "row 0 changes none"),
    ],
)
def test_directions_that_cannot_be_read_are_refused(options, words):
    arguments = {"directions": np.random.default_rng(0).normal(size=(1, 16))} | options
    with pytest.raises(ConfigError, match=words):
        logit_lens(arguments.pop("directions"), unembedding(), **arguments)


def test_every_result_has_a_table_a_page_and_a_figure():
    rows = unembedding()
    first, second = Observable("a", {" t1": 1.0, " t2": -1.0}), Observable("b", {" t3": 1.0, " t2": -1.0})
    rng = np.random.default_rng(0)
    maps = AttentionMaps((0, 1), rng.normal(size=(2, 3, 16, 4)), rng.normal(size=(2, 3, 4, 16)))
    results = [
        couplings([first, second], rows),
        observable_paths(first, maps, rows, embedding=rows),
        observable_paths(first, maps, rows),
        logit_lens(rng.normal(size=(3, 16)), rows, names=["x", "y", "z"]),
        logit_lens(rng.normal(size=16), rows),
    ]
    for result in results:
        assert str(result).splitlines()[0] == result.table().title
        assert "<table" in result._repr_html_()
        assert len(result.figure().data) > 0
