"""Curves over layers against the same numbers computed prompt by prompt, and the vectors handed back."""

import json
import math

import pytest
import torch
from tiny import TEXT, tiny_language_model

from sae.errors import ConfigError
from sae.evaluation.layer_curves import PROMPT_METRICS, VIEW_METRICS
from sae.evaluation.layer_passes import prompt_batches, prompt_tokens
from sae.evaluation.layer_quality import METRICS, LayerQualityConfig, layer_quality
from sae.evaluation.text_views import text_views
from sae.geometry.layerwise import alignment, curvature, dime, info_nce, lidar, matrix_entropy, uniformity, von_neumann_entropy
from sae.geometry.spectrum import covariance_eigenvalues, participation_ratio

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[i : i + 3 + i % 9]) for i in range(40)]
CONFIG = LayerQualityConfig(max_tokens=12, batch_prompts=7, n_null=3, null_prompts=10)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0)


@pytest.fixture(scope="module")
def quality(model):
    return layer_quality(model, TEXTS, CONFIG)


def alone(model, text, skip_first=1, max_tokens=12):
    """The activations of one text by itself: [layers, tokens, d]."""
    row = [model.separator_id, *model.tokenize([text])[0][:max_tokens]]
    sites = model.sites(["blocks.*.hook_resid_post"])
    found = model.capture(torch.tensor([row]), sites)
    return torch.stack([found[site][0, skip_first:] for site in sites]).double()


def test_vectors_are_those_of_each_prompt_by_itself(model, quality):
    assert quality.pooled.shape == (4, 40, 32) and quality.pooled.dtype == torch.float32
    n_tokens = 0
    for i, text in enumerate(TEXTS):
        acts = alone(model, text)
        n_tokens += acts.shape[1]
        torch.testing.assert_close(quality.pooled[:, i].double(), acts.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quality.last[:, i].double(), acts[:, -1], rtol=1e-4, atol=1e-5)
    assert quality.n_tokens == n_tokens


def test_curves_of_prompts_are_means_over_prompts_by_themselves(model, quality):
    each = [alone(model, text) for text in TEXTS]
    for layer in range(4):
        entropies = [matrix_entropy(acts[layer]) for acts in each]
        assert quality.curve("prompt_entropy").values[layer].item() == pytest.approx(sum(entropies) / 40, rel=1e-4)
        centred = [matrix_entropy(acts[layer], rows="centred-unit", normalisation="max") for acts in each]
        assert quality.curve("prompt_entropy_centred").values[layer].item() == pytest.approx(sum(centred) / 40, rel=1e-4)
        turns = torch.cat([curvature(acts[layer], torch.tensor([acts.shape[1]])) for acts in each])
        assert quality.curve("curvature").values[layer].item() == pytest.approx(turns.nanmean().item(), rel=1e-4)
        assert quality.curve("curvature").null.values[layer].item() == pytest.approx(turns[:10].nanmean().item(), rel=1e-4)
    assert quality.curve("prompt_entropy").null.values.tolist() != quality.curve("prompt_entropy").values.tolist()


def test_curves_of_vectors_are_the_measures_of_the_vectors(model, quality):
    made = text_views(TEXTS, kind="characters", n_views=2, rate=0.1, seed=0)
    views = torch.stack([torch.stack([alone(model, view).mean(1) for view in pair], dim=1) for pair in made], dim=1)
    measures = {
        "dataset_entropy": lambda x, v: matrix_entropy(x, rows="centred-unit"),
        "von_neumann_entropy": lambda x, v: von_neumann_entropy(x),
        "participation_ratio": lambda x, v: participation_ratio(covariance_eigenvalues(x)),
        "uniformity": lambda x, v: uniformity(x),
        "info_nce": lambda x, v: info_nce(v[:, 0], v[:, 1]).loss,
        "info_nce_centred": lambda x, v: info_nce(v[:, 0], v[:, 1], rows="centred-unit").loss,
        "alignment": lambda x, v: alignment(v[:, 0], v[:, 1]),
        "lidar": lambda x, v: lidar(v),
        "dime": lambda x, v: dime(v[:, 0], v[:, 1], n_permutations=3, generator=torch.Generator().manual_seed(0)),
    }
    for layer in range(4):
        for name, measure in measures.items():
            expected = measure(quality.pooled[layer], views[layer])
            assert quality.curve(name).values[layer].item() == pytest.approx(expected, rel=2e-3, abs=1e-5), name


def test_every_metric_has_a_curve_with_its_null_and_a_meaning(quality):
    assert [curve.name for curve in quality.curves] == list(METRICS)
    for curve in quality.curves:
        assert curve.values.shape == curve.null.null_sd.shape == (4,) and curve.values.isfinite().all()
        assert curve.null.n_null == 3 and (curve.null.null_sd >= 0).all() and ((curve.null.p_less >= 0.25) & (curve.null.p_less <= 1)).all()
        assert "null:" in curve.meaning
        if curve.name not in PROMPT_METRICS:
            assert torch.equal(curve.values, curve.null.values)
    assert set(METRICS) > VIEW_METRICS | PROMPT_METRICS


def test_rows_are_plain_and_complete(quality):
    rows = json.loads(json.dumps(quality.rows()))
    assert len(rows) == 4 * len(METRICS)
    assert {row["layer"] for row in rows} == {0, 1, 2, 3}
    first = rows[0]
    assert first["metric"] == "prompt_entropy" and first["site"] == "blocks.0.hook_resid_post" and first["n_null"] == 3
    assert first["value"] == quality.curves[0].values[0].item() and first["null_value"] == quality.curves[0].null.values[0].item()


def test_a_second_run_gives_the_same_bits_and_another_batch_the_same_numbers(model, quality):
    metrics = ("prompt_entropy", "curvature", "info_nce", "participation_ratio")
    again = layer_quality(model, TEXTS, LayerQualityConfig(metrics=metrics, max_tokens=12, batch_prompts=7, n_null=3, null_prompts=10))
    other = layer_quality(model, TEXTS, LayerQualityConfig(metrics=metrics, max_tokens=12, batch_prompts=40, n_null=3, null_prompts=10))
    assert torch.equal(again.pooled, quality.pooled)
    for name in metrics:
        assert torch.equal(again.curve(name).values, quality.curve(name).values)
        assert torch.equal(again.curve(name).null.null_mean, quality.curve(name).null.null_mean)
        torch.testing.assert_close(other.curve(name).values, quality.curve(name).values, rtol=1e-4, atol=1e-6)


def test_places_left_out_and_sites_are_as_asked_for(model):
    sites = model.sites(["blocks.[13].hook_resid_post"])
    config = LayerQualityConfig(metrics=("stable_rank",), max_tokens=12, skip_first=0, n_null=2)
    seen = []
    found = layer_quality(model, TEXTS[:6], config, sites=sites, progress=lambda *step: seen.append(step))
    assert found.sites == sites and found.pooled.shape == (2, 6, 32)
    torch.testing.assert_close(found.pooled[:, 2].double(), alone(model, TEXTS[2], skip_first=0)[[1, 3]].mean(1), rtol=1e-4, atol=1e-5)
    assert ("prompts", 6, 6) in seen
    with pytest.raises(ConfigError, match="name must be one of stable_rank"):
        found.curve("curvature")


def test_batches_go_by_length_and_hold_every_prompt_once(model):
    rows = prompt_tokens(model, TEXTS, max_tokens=9, skip_first=1)
    site = model.site("blocks.0.hook_resid_post")
    batches = list(prompt_batches(model, rows, [site], batch_prompts=7, skip_first=1))
    ids = torch.cat([batch.prompt_ids for batch in batches])
    assert sorted(ids.tolist()) == list(range(40))
    lengths = torch.cat([batch.lengths for batch in batches])
    assert lengths.tolist() == sorted(lengths.tolist()) and lengths.max() == 9
    assert [len(rows[i]) - 1 for i in ids.tolist()] == lengths.tolist()
    assert all(len(batch.tokens) == batch.lengths.sum() for batch in batches)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "at least 3 prompts"),
        (TEXTS[:2], {"metrics": ("curvature",)}, "at least 3 prompts"),
        (TEXTS, {"metrics": ("perplexity",)}, "metrics must be different names"),
        (TEXTS[:32], {"metrics": ("lidar",)}, "more than d=32 prompts for lidar"),
        (TEXTS, {"metrics": ("info_nce",), "n_views": 1}, "n_views must be at least 2"),
        (TEXTS, {"n_null": 1}, "n_null must be at least 2"),
        (TEXTS, {"max_tokens": 256}, "max_tokens must be in 1..255"),
        (TEXTS, {"skip_first": -1}, "skip_first must be at least 0"),
        ([*TEXTS, ""], {"metrics": ("curvature",)}, "leave it out"),
        (TEXTS, {"metrics": ("curvature",), "batch_prompts": 0}, "batch_prompts must be at least 1"),
    ],
)
def test_bad_requests_are_refused_before_the_model_runs(model, texts, settings, message):
    with pytest.raises(ConfigError, match=message):
        layer_quality(model, texts, LayerQualityConfig(**settings))


@pytest.mark.slow
@pytest.mark.real_model
def test_nearby_tokens_of_a_real_model_are_alike_and_its_path_is_not_that_of_shuffled_tokens():
    import sae
    from sae.evaluation.text_views import sampled_sentences

    model = sae.LanguageModel.load(sae.default_model())
    texts = sampled_sentences([document.text for document in sae.state_of_the_union().documents()], 48)
    metrics = ("prompt_entropy_centred", "curvature", "info_nce", "alignment")
    sites = model.sites(["blocks.0.hook_resid_post", "blocks.15.hook_resid_post"])
    found = layer_quality(model, texts, LayerQualityConfig(metrics=metrics, null_prompts=48), sites=sites)
    # At layer 0 neighbours are still words, and a word is seldom followed by one like it; by the middle the path is smoother than shuffled.
    assert found.curve("curvature").null.p_less[1] == 0.05
    assert found.curve("curvature").null.p_greater[0] == 0.05
    assert (found.curve("info_nce").null.p_less == 0.05).all() and (found.curve("alignment").null.p_less == 0.05).all()
    assert math.pi / 2 < found.curve("curvature").values[1] < 2.1
