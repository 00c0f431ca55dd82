"""Which neurons each rule keeps, on planted activations where it is known, and what thinning does to a tiny model's predictions."""

import math

import pytest
import torch
from spoken_rows import rows, spoken
from tiny import tiny_hf_model, tiny_language_model, tiny_tokenizer

from sae.errors import ConfigError
from sae.evaluation.activation_sparsity import ActivationSparsityConfig, SparsityCurveConfig, calibrated_sparsity, sparsity_curve
from sae.evaluation.thinning import (
    RULES,
    Calibration,
    calibrate,
    keep_contributions,
    keep_random,
    keep_rule,
    mlp_writers,
    perplexity,
    prediction_losses,
)
from sae.geometry.sparsity import tail_errors
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import Site


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


def planted(*layers):
    """A calibration of (x, w) pairs, layer after layer."""
    sites = tuple(
        Site(name=f"blocks.{i}.mlp.hook_post", layer=i, kind="mlp_post", width=acts.shape[1]) for i, (acts, _) in enumerate(layers)
    )
    acts = {site: pair[0].float() for site, pair in zip(sites, layers, strict=True)}
    writers = {site: pair[1].float() for site, pair in zip(sites, layers, strict=True)}
    curves = {site: tail_errors(acts[site], writers[site]) for site in sites}
    return Calibration(sites, acts, writers, curves, torch.cat([a.flatten() for a in acts.values()]).abs().sort().values)


def sparse_acts(n_tokens=6, m=20, k=5, small=0.01, seed=0):
    """Every token has `k` neurons near 1 and the others near `small`, of either sign, which ones at random; and which those are."""
    generator = torch.Generator().manual_seed(seed)
    large = torch.rand(n_tokens, m, generator=generator).argsort(dim=1) < k
    size = torch.where(large, 1.0, small) * (1 + 0.1 * torch.rand(n_tokens, m, generator=generator))
    return size * torch.randn(n_tokens, m, generator=generator).sign(), large


def test_every_rule_keeps_the_large_neurons_where_layers_and_rows_of_w_are_alike():
    acts, large = sparse_acts()
    other, other_large = sparse_acts(seed=1)
    calibration = planted((acts, torch.eye(20)), (other, torch.eye(20)))
    for rule in ("contribution", "fixed", "top_k"):
        keep = keep_rule(rule, calibration, 0.25)
        for site, x, expected in zip(calibration.sites, (acts, other), (large, other_large), strict=True):
            assert torch.equal(keep[site](x), expected), rule
    everything, nothing = ({rule: keep_rule(rule, calibration, ratio) for rule in RULES} for ratio in (1.0, 0.0))
    for rule in RULES:
        assert all(everything[rule][site](acts).all() and not nothing[rule][site](acts).any() for site in calibration.sites), rule


def test_a_fixed_threshold_empties_the_layer_with_small_activations_and_the_others_do_not():
    acts, large = sparse_acts(k=10, small=0.05)
    calibration = planted((acts, torch.eye(20)), (100 * acts, torch.eye(20)))
    quiet, loud = calibration.sites
    fixed = keep_rule("fixed", calibration, 0.5)
    assert not fixed[quiet](acts).any() and fixed[loud](100 * acts).all()
    for rule in ("contribution", "top_k"):
        keep = keep_rule(rule, calibration, 0.5)
        assert torch.equal(keep[quiet](acts), large) and torch.equal(keep[loud](100 * acts), large), rule


def test_contributions_go_by_what_a_neuron_writes_and_the_others_by_its_activation():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.linspace(1, 20, 20)[torch.randperm(20, generator=generator)]
    acts = torch.randn(8, 20, generator=generator).sign() * (1 / lengths).sqrt()  # |x| |w| = sqrt |w|: long rows matter, small |x|
    calibration = planted((acts, torch.eye(20) * lengths[:, None]))
    (site,) = calibration.sites
    assert torch.equal(keep_rule("contribution", calibration, 0.25)[site](acts), (lengths > 15).expand(8, 20))
    for rule in ("fixed", "top_k"):
        assert torch.equal(keep_rule(rule, calibration, 0.25)[site](acts), (lengths < 6).expand(8, 20)), rule


def test_a_share_is_kept_of_each_token_or_on_average():
    generator = torch.Generator().manual_seed(4)
    acts = torch.randn(50, 40, generator=generator) * torch.linspace(0.1, 3, 50)[:, None]
    calibration = planted((acts, torch.randn(40, 7, generator=generator)), (acts.flip(0), torch.randn(40, 7, generator=generator)))
    for ratio in (0.1, 0.35, 0.8):
        for rule in RULES:
            kept = torch.stack([keep_rule(rule, calibration, ratio, seed=1)[site](calibration.acts[site]) for site in calibration.sites])
            assert kept.double().mean().item() == pytest.approx(ratio, abs=0.002), rule
            if rule in ("top_k", "random"):
                assert (kept.sum(dim=2) == round(40 * ratio)).all()
    same = keep_rule("top_k", calibration, 0.2)[calibration.sites[0]]
    assert torch.equal(same(acts)[7:9], same(acts[7:9]))  # whatever the batch


def test_neurons_at_random_are_drawn_anew_on_every_token_by_their_seed():
    acts = torch.ones(400, 10)
    calibration = planted((acts, torch.eye(10)))
    (site,) = calibration.sites
    kept = keep_rule("random", calibration, 0.3, seed=5)[site](acts)
    assert torch.equal(kept, keep_rule("random", calibration, 0.3, seed=5)[site](acts))
    assert not torch.equal(kept, keep_rule("random", calibration, 0.3, seed=6)[site](acts))
    assert ((kept.double().mean(dim=0) - 0.3).abs() < 4 * math.sqrt(0.3 * 0.7 / 400)).all()
    assert len(torch.unique(kept, dim=0)) > 50
    of_layers = keep_random({site: 0.6}, seed=5)[site](acts)
    assert (of_layers.sum(dim=1) == 6).all()


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


def test_an_mlp_whose_output_is_normed_has_no_contributions():
    hf = tiny_hf_model(seed=3)
    hf.model.layers[1].mlp.register_forward_hook(lambda module, args, output: torch.nn.functional.normalize(output, dim=-1))
    with pytest.raises(ConfigError, match=r"layer 1 .* not linear in its neurons"):
        mlp_writers(LanguageModel.load(hf, tokenizer=tiny_tokenizer()))


def test_losses_are_those_of_the_counted_predictions_in_the_order_of_the_text(model):
    tokens, mask = rows(model, 5, 14, 1)
    mask[3:, 9:] = False
    log_p = model.run(tokens).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    expected = -log_p[mask[:, :-1]].double()
    for size in (1, 3, 8):
        found = prediction_losses(model, tokens, mask, batch_rows=size)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert perplexity(found) == pytest.approx(expected.mean().exp().item(), rel=1e-5)


def test_thinning_zeroes_what_is_not_kept_where_the_mask_is_true_and_counts_the_rest(model):
    tokens, mask = rows(model, 5, 14, 1)
    calibration = calibrate(model, tokens, mask)
    sites = calibration.sites
    dense = prediction_losses(model, tokens, mask)
    untouched = prediction_losses(model, tokens, mask, keep=keep_contributions(calibration, dict.fromkeys(sites, 0.0)))
    torch.testing.assert_close(untouched, dense, rtol=1e-6, atol=1e-6)
    kept = dict.fromkeys(sites, 0)
    everything = prediction_losses(model, tokens, mask, keep=keep_contributions(calibration, dict.fromkeys(sites, 1e9)), kept=kept)
    assert set(kept.values()) == {0}
    edits = [Edit.replace(site, lambda acts: acts * ~mask[..., None]) for site in sites]  # what the mask leaves out keeps its neurons
    log_p = model.run(tokens, edits).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(everything, -log_p[mask[:, :-1]].double(), rtol=1e-4, atol=1e-5)
    acts, lengths = calibration.acts[sites[0]], mlp_writers(model)[0].norm(dim=1)
    prediction_losses(model, tokens, mask, keep=keep_contributions(calibration, {sites[0]: 0.05}), kept=kept, batch_rows=2)
    assert kept[sites[0]] == int((acts.abs() * lengths > 0.05).sum())


def test_the_largest_of_each_token_give_what_an_edit_by_hand_gives(model):
    tokens, mask = rows(model, 3, 9, 2)
    mask[:] = True

    def by_hand(acts):
        order = acts.abs().argsort(dim=-1, descending=True).argsort(dim=-1)
        return acts.where(order < 13, torch.zeros_like(acts))

    calibration = calibrate(model, tokens, mask)
    edits = [Edit.replace(site, by_hand) for site in calibration.sites]
    log_p = model.run(tokens, edits).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    found = prediction_losses(model, tokens, mask, keep=keep_rule("top_k", calibration, 0.2))  # 12.8 of 64
    torch.testing.assert_close(found, -log_p.flatten().double(), rtol=1e-4, atol=1e-5)


def test_a_calibration_holds_the_neurons_of_the_tokens_that_count(model):
    tokens, mask = rows(model, 5, 14, 1)
    found = calibrate(model, tokens, mask, batch_rows=2, max_points=300)
    acts = model.capture(tokens, found.sites)
    assert found.n_tokens == int(mask.sum())
    for site in found.sites:
        torch.testing.assert_close(found.acts[site], acts[site][mask])
        torch.testing.assert_close(found.lengths(site), mlp_writers(model)[site.layer].norm(dim=1))
        assert len(found.curves[site].thresholds) == 300
    pool = torch.cat([acts[site][mask].flatten() for site in found.sites]).abs()
    assert len(found.magnitudes) == 300 and found.magnitudes[-1] == pool.max()
    for share in (0.2, 0.5, 0.9):
        assert found.magnitudes[round(share * 299)].item() == pytest.approx(pool.quantile(share).item(), rel=0.03)


@pytest.fixture(scope="module")
def evaluated(model):
    """Tokens, mask, calibration, perplexity of the untouched model."""
    tokens, mask = spoken(model, 5, 14, 1)
    return tokens, mask, calibrate(model, *rows(model, 4, 11, 2)), perplexity(prediction_losses(model, tokens, mask))


@pytest.mark.parametrize("rule", RULES)
def test_a_curve_holds_the_perplexity_at_every_share_and_where_it_crosses(model, evaluated, rule):
    tokens, mask, calibration, dense = evaluated
    config = SparsityCurveConfig(ratios=(0.9, 0.6, 0.3), increase=0.02, tolerance=0.02, seed=3)
    found = sparsity_curve(model, tokens, mask, calibration, rule, dense=dense, config=config)
    assert {0.9, 0.6, 0.3} <= set(found.asked.tolist()) and (found.asked.diff() < 0).all()
    for i in (0, len(found.asked) - 1):
        keep = keep_rule(rule, calibration, found.asked[i].item(), seed=3)
        assert perplexity(prediction_losses(model, tokens, mask, keep=keep)) == pytest.approx(found.perplexity[i].item(), rel=1e-6)
    within = found.perplexity <= 1.02 * dense
    assert 0 < found.crossing < 1
    place = found.asked.tolist().index(found.crossing) if found.crossing in found.asked else -1
    assert within[: place + 1].all() and not within[place + 1]
    assert (1.0, *found.asked.tolist())[place + 1] - found.asked[place + 1] <= 0.02
    torch.testing.assert_close(found.mean_ratio, found.asked, rtol=0, atol=0.01 if rule in ("top_k", "random") else 0.12)
    torch.testing.assert_close(found.crossing_ratio, found.activation_ratio[place] if place >= 0 else torch.ones(4).double())


def test_thresholds_by_cett_and_their_curve_meet_at_the_allowed_rise(model, evaluated):
    tokens, mask, calibration, dense = evaluated
    config = ActivationSparsityConfig(increase=0.02, tolerance=1e-4)
    thresholds = calibrated_sparsity(model, tokens, mask, calibration, dense=dense, config=config)
    settings = SparsityCurveConfig(ratios=(0.9, 0.6, 0.3), increase=0.02, tolerance=0.002)
    curve = sparsity_curve(model, tokens, mask, calibration, "contribution", dense=dense, config=settings)
    assert thresholds.calibration_ratio.mean().item() == pytest.approx(curve.crossing, abs=0.02)


def test_a_rise_that_nothing_reaches_is_crossed_nowhere(model, evaluated):
    tokens, mask, calibration, dense = evaluated
    config = SparsityCurveConfig(ratios=(0.5,), increase=1e9)
    found = sparsity_curve(model, tokens, mask, calibration, "top_k", dense=dense, config=config)
    assert found.crossing == 0 and found.asked.tolist() == [0.5, 0.0] and (found.crossing_ratio == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: keep_rule("contribution", c, 1.2), r"ratio in 0\.\.1"),
        (lambda c: keep_rule("largest", c, 0.2), "rule must be one of contribution"),
        (lambda c: SparsityCurveConfig(ratios=(0.2, 0.5)), "ratios must descend"),
        (lambda c: SparsityCurveConfig(ratios=()), "ratios must descend"),
        (lambda c: SparsityCurveConfig(ratios=(1.0, 0.5)), "ratios must descend"),
        (lambda c: SparsityCurveConfig(tolerance=0.0), "tolerance be positive"),
    ],
)
def test_bad_settings_of_thinning_are_refused_by_name(call, message, unchecked):
    acts, _ = sparse_acts()
    with pytest.raises(ConfigError, match=message):
        call(planted((acts, torch.eye(20))))
