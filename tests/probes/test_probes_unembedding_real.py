"""The unembedding of SmolLM2-135M: concepts and hierarchy as they are there, against their nulls. No forward pass."""

import dataclasses

import numpy as np
import pytest
import torch

from probes.causal import (
    CausalInnerProduct,
    ConceptDirection,
    concept_cosines,
    intervene,
    intervention_effects,
    study_concepts,
    token_pairs,
)
from probes.hierarchy import held_out_words, hierarchy_statistics, simplex, vocabulary_hierarchy
from probes.observables import Observable, attention_maps, logit_lens, observable_paths
from probes.unembedding import read_unembedding
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(default_model(), dtype=torch.float32)


@pytest.fixture(scope="module")
def unembedding(model):
    return read_unembedding(model)


@pytest.fixture(scope="module")
def causal(unembedding):
    return CausalInnerProduct().fit(unembedding.rows)


@pytest.fixture(scope="module")
def g(unembedding, causal):
    return causal.transform(unembedding.rows)


@pytest.fixture(scope="module")
def hierarchy(unembedding):
    return vocabulary_hierarchy(unembedding)


def test_the_unembedding_is_well_conditioned_for_whitening_once_copies_of_rows_are_left_out(unembedding, causal, g):
    assert unembedding.rows.shape == (49_141, 576) and unembedding.n_vocab == 49_152
    assert causal.condition_number_ == pytest.approx(2507, rel=0.02)
    participation = causal.eigenvalues_.sum() ** 2 / np.square(causal.eigenvalues_).sum()
    assert participation == pytest.approx(70, abs=1)
    np.testing.assert_allclose(g.T @ g / len(g), np.eye(576), atol=1e-10)


def test_concepts_have_directions_and_thing_to_part_has_the_least(unembedding, causal):
    study = study_concepts(token_pairs(unembedding), unembedding, causal)
    print(study)
    z = dict(zip(study.pairs.names, study.z, strict=True))
    assert len(z) >= 22
    assert min(z, key=z.get) == "thing ⇒ part" and z["thing ⇒ part"] < 2.2
    assert z["adjective ⇒ superlative"] > 8 and z["adjective ⇒ comparative"] > 7.5 and z["country ⇒ capital"] > 6
    assert (study.share >= 0.9).sum() >= len(z) - 3
    assert np.abs(study.null_z.mean(axis=1)).max() < 0.25 and study.null_z.std() < 0.4


def test_concepts_are_orthogonal_under_the_causal_inner_product_only(unembedding, causal):
    cosines = concept_cosines(token_pairs(unembedding), unembedding, causal)
    print(cosines)
    medians = {name: np.median(cosines.off_diagonal(name)) for name in cosines.cosines}
    null = {name: np.median(cosines.off_diagonal(name, null=True)) for name in cosines.null}
    assert medians["causal"] < 1.3 * cosines.floor_median
    assert medians["Euclidean"] > 5 * medians["causal"] and medians["random"] > 5 * medians["causal"]
    assert null["causal"] < 1.2 * cosines.floor_median < null["Euclidean"] < 0.5 * medians["Euclidean"]
    i, j = (cosines.names.index(name) for name in ("verb ⇒ third person", "third person ⇒ -ing"))
    assert cosines.cosines["causal"][i, j] > 0.4  # linked: the one undoes the other's first step
    effects = intervention_effects(token_pairs(unembedding), unembedding, causal)
    print(effects)
    assert np.median(effects.off_target()) < 0.3 * np.median(effects.off_target(euclidean=True))


@pytest.mark.parametrize(("estimator", "disjoint", "n_edges"), [("mean", 0.565, 250), ("lda", 0.582, 60)])
def test_disjoint_projection_is_large_for_wordnet_only_and_the_nested_cosine_small_for_all(
    g, unembedding, hierarchy, estimator, disjoint, n_edges
):
    result = hierarchy_statistics(g, hierarchy, unwhitened=unembedding.rows, estimator=estimator, n_edges=n_edges)
    print(result)
    assert result.of("hierarchy", "disjoint projection").mean() == pytest.approx(disjoint, abs=0.05)
    for condition in ("random nested sets", "shuffled rows"):
        assert abs(result.of(condition, "disjoint projection").mean()) < 0.1
        assert abs(result.of(condition, "nested cosine").mean()) < 0.03
    assert abs(result.of("hierarchy", "nested cosine").mean()) < 0.06
    assert result.of("random nested sets", "random parent's cosine").mean() < -0.55


def test_held_out_words_lie_along_their_categories_less_so_when_no_form_of_them_was_seen(g, hierarchy):
    words = held_out_words(g, hierarchy)
    print(words)
    np.testing.assert_allclose(words.of("hierarchy", "train projection"), 1, atol=1e-10)
    assert words.of("hierarchy", "AUC against tokens").mean() == pytest.approx(0.929, abs=0.05)
    assert np.nanmean(words.of("hierarchy", "AUC against nouns")) > 0.85
    assert words.of("hierarchy", "held-out projection").mean() == pytest.approx(0.59, abs=0.05)
    assert abs(words.of("shuffled rows", "AUC against tokens").mean() - 0.5) < 0.02
    assert abs(words.of("shuffled rows", "held-out projection").mean()) < 0.05
    assert abs(words.of("hierarchy", "random token's projection").mean()) < 0.03
    apart = held_out_words(g, dataclasses.replace(hierarchy, families=np.arange(len(g))))
    large = np.array(apart.sizes) > 300
    assert apart.of("hierarchy", "held-out projection").mean() > words.of("hierarchy", "held-out projection").mean() + 0.15
    assert apart.of("hierarchy", "held-out projection")[large].mean() == pytest.approx(0.9, abs=0.05)
    assert np.nanmean(apart.of("hierarchy", "AUC against nouns")[large]) == pytest.approx(0.929, abs=0.05)


def test_food_vehicles_and_birds_make_a_triangle_that_held_out_words_know(g, unembedding, hierarchy):
    found = simplex(g, hierarchy, ("food", "wheeled vehicle", "bird"), unembedding)
    print(found)
    assert found.is_simplex and found.accuracy > 0.7 and found.null_accuracy.mean() < 0.42
    assert {"animal", "bird", "food", "emotion"} <= set(hierarchy.names)
    assert "00015388" in hierarchy.ids and 400 < len(hierarchy) < 700


def test_few_heads_carry_the_gender_of_a_pronoun_and_its_tokens_stand_out(model, unembedding):
    observable = Observable("he − she", {" he": 1.0, " she": -1.0})
    maps = attention_maps(model, range(24, 30))
    block = model._model.model.model.layers[26]
    value = (block.self_attn.v_proj.weight * block.input_layernorm.weight).T.reshape(576, 3, 64).detach().numpy()
    np.testing.assert_allclose(maps.W_V[2, 4], value[:, 1], atol=1e-5 * np.abs(value).max())
    paths = observable_paths(observable, maps, unembedding, embedding=unembedding)
    print(paths)
    assert paths.z.max() > 20 and np.median(np.abs(paths.z)) < 2
    best = paths.table().rows[0]
    assert "' his'" in best[5] and "' her'" in best[6]
    lens = logit_lens(observable.at_residual(unembedding), unembedding)
    print(lens)
    assert lens.top[0][:2] == (" he", " his") and lens.p_values[0] < 0.03


def test_a_king_becomes_a_queen_and_is_hardly_capitalised_by_it(model, unembedding, causal):
    """The one test here with a forward pass: the context of the next token after "Long live the"."""
    pairs = token_pairs(unembedding)
    differences = dict(zip(pairs.names, pairs.differences(unembedding.rows), strict=True))["male ⇒ female"]
    site = model.site("blocks.29.hook_resid_post")
    residual = model.capture(torch.tensor(model.tokenize(["Long live the"])), [site])[site][0, -1]
    context = unembedding.norm.apply(residual.double().numpy())
    direction = ConceptDirection().fit(causal.whiten(differences)).direction_
    watch = [(" king", " queen"), (" king", " King")]
    moved = intervene(context, direction, unembedding, causal, strengths=(0.0, 0.3, 0.6), concept="male ⇒ female", watch=watch)
    print(moved)
    assert moved.tokens[2][0] == " queen" and " queen" not in moved.tokens[0]
    assert moved.watched["king → queen"][2] > 5 and abs(moved.watched["king → King"][2]) < 1
