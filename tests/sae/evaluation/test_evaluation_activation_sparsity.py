"""PPL-p% on tiny models: against the weights themselves, and against doing nothing and everything."""

import pytest
import torch
from tiny import tiny_hf_model, tiny_language_model, tiny_tokenizer

from sae.errors import ConfigError
from sae.evaluation.activation_sparsity import ActivationSparsityConfig, activation_sparsity, mlp_writers, perplexity
from sae.geometry.sparsity import tail_error
from sae.models.language_model import Edit, LanguageModel

CONFIG = ActivationSparsityConfig(increase=0.01, tolerance=1e-3, batch_rows=3)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


def rows(model, n, context, seed):
    tokens = torch.randint(0, model.shape.d_vocab, (n, context), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 4:6] = False
    return tokens, mask


def spoken(model, n, context, seed):
    """Rows that the model itself says are likely, so that it has something to lose."""
    tokens, mask = rows(model, n, context, seed)
    for place in range(1, context):
        tokens[:, place] = model.run(tokens[:, :place])[:, -1].argmax(-1)
    return tokens, mask


@pytest.fixture(scope="module")
def found(model):
    tokens, mask = spoken(model, 5, 14, 1)
    calibration, calibration_mask = rows(model, 4, 11, 2)
    return activation_sparsity(model, tokens, mask, calibration=calibration, calibration_mask=calibration_mask, config=CONFIG)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_neurons_write_is_the_last_matrix_of_the_mlp(architecture):
    hf = tiny_hf_model(seed=3, architecture=architecture)
    weights = [
        (block.mlp.down_proj.weight.T if architecture == "llama" else block.mlp.c_proj.weight).detach().clone()
        for block in (hf.model.layers if architecture == "llama" else hf.transformer.h)
    ]
    model = LanguageModel.load(hf, tokenizer=tiny_tokenizer())
    written = mlp_writers(model)
    assert list(written) == list(range(model.shape.n_layers))
    for layer, expected in enumerate(weights):
        torch.testing.assert_close(written[layer], expected, rtol=1e-4, atol=1e-5)


def test_perplexity_is_that_of_the_counted_predictions(model):
    tokens, mask = rows(model, 5, 14, 1)
    log_p = model.run(tokens).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    expected = (-log_p[mask[:, :-1]]).mean().exp().item()
    for size in (1, 3, 8):
        assert perplexity(model, tokens, mask, batch_rows=size) == pytest.approx(expected, rel=1e-5)


def test_thresholds_zero_the_small_contributions_and_no_others(model):
    tokens, mask = rows(model, 5, 14, 1)
    sites = [model.site(f"blocks.{layer}.mlp.hook_post") for layer in range(4)]
    norms = {site: mlp_writers(model)[site.layer].norm(dim=1) for site in sites}
    dense = perplexity(model, tokens, mask)
    assert perplexity(model, tokens, mask, norms=norms, thresholds=dict.fromkeys(sites, 0.0)) == pytest.approx(dense, rel=1e-6)
    kept = dict.fromkeys(sites, 0)
    everything = perplexity(model, tokens, mask, norms=norms, thresholds=dict.fromkeys(sites, 1e9), kept=kept)
    assert set(kept.values()) == {0} and everything != pytest.approx(dense, rel=1e-3)
    edits = [Edit.replace(site, lambda acts: acts * ~mask[..., None]) for site in sites]  # what the mask leaves out keeps its neurons
    log_p = model.run(tokens, edits).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    assert everything == pytest.approx((-log_p[mask[:, :-1]]).mean().exp().item(), rel=1e-5)
    acts = model.capture(tokens, sites[:1])[sites[0]]
    one = dict.fromkeys(sites, 0)
    perplexity(model, tokens, mask, norms=norms, thresholds={sites[0]: 0.05}, kept=one)
    assert one[sites[0]] == int(((acts.abs() * norms[sites[0]] > 0.05) & mask[..., None]).sum())


def test_the_found_thresholds_share_a_relative_error_and_allow_the_rise(model, found):
    calibration, mask = rows(model, 4, 11, 2)
    acts = model.capture(calibration, found.sites)
    writers = mlp_writers(model)
    for i, site in enumerate(found.sites):
        values = acts[site][mask]
        error = tail_error(values, writers[site.layer], found.thresholds[i].item())
        assert error <= found.cett + 1e-6 and error == pytest.approx(found.cett, abs=0.02)
        ratio = (values.abs() * writers[site.layer].norm(dim=1) > found.thresholds[i]).double().mean().item()
        assert found.calibration_ratio[i].item() == pytest.approx(ratio, abs=1e-3)
    assert found.perplexity_sparse / found.perplexity_dense - 1 <= 0.01 + 1e-9
    assert 0 < found.cett < 1 and ((found.activation_ratio > 0.05) & (found.activation_ratio < 1)).all()
    torch.testing.assert_close(found.activation_ratio, found.calibration_ratio, rtol=0, atol=0.1)
    assert found.n_tokens == 5 * 12 - 2


def test_the_steps_of_the_bisection_are_kept_and_rows_are_plain(found):
    assert found.steps[0].tolist() == [0.0, pytest.approx(0, abs=1e-6)] and found.steps[1, 0] == 1
    within = found.steps[found.steps[:, 1] <= 0.01, 0].max()
    beyond = found.steps[found.steps[:, 1] > 0.01, 0].min()
    assert within == found.cett and 0 < beyond - within <= 1e-3
    assert [row["layer"] for row in found.rows()] == [0, 1, 2, 3]
    assert found.rows()[2]["threshold"] == found.thresholds[2].item()


def test_bad_requests_are_refused_by_name(model, unchecked):
    tokens, mask = rows(model, 5, 14, 1)
    for bad in (mask[:, 1:], torch.zeros_like(mask)):
        with pytest.raises(ConfigError, match="mask must have the shape"):
            activation_sparsity(model, tokens, bad, calibration=tokens, calibration_mask=mask, config=CONFIG)
        with pytest.raises(ConfigError, match="calibration_mask must have"):
            activation_sparsity(model, tokens, mask, calibration=tokens, calibration_mask=bad, config=CONFIG)
    with pytest.raises(ConfigError, match="increase must be crossed"):
        config = ActivationSparsityConfig(increase=1e6, batch_rows=8)
        activation_sparsity(model, tokens, mask, calibration=tokens, calibration_mask=mask, config=config)


def test_an_mlp_whose_output_is_normed_has_no_contributions():
    hf = tiny_hf_model(seed=3)
    hf.model.layers[1].mlp.register_forward_hook(lambda module, args, output: torch.nn.functional.normalize(output, dim=-1))
    with pytest.raises(ConfigError, match=r"layer 1 .* not linear in its neurons"):
        mlp_writers(LanguageModel.load(hf, tokenizer=tiny_tokenizer()))
