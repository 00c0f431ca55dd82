"""Pairs, directions and cosines of concepts on planted unembeddings, where the truth is known, and on hostile ones."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from probes.causal import (
    WORD_PAIRS,
    CausalInnerProduct,
    ConceptDirection,
    concept_cosines,
    intervene,
    intervention_effects,
    leave_one_out,
    measure,
    study_concepts,
    token_pairs,
)
from probes.unembedding import clean_unembedding
from sae.errors import ConfigError

D, N_PAIRS = 24, 20


def planted(seed=0, noise=0.3, concepts=("tense", "gender", "nothing")):
    """Words w0, w1, ... of which pairs differ in one of two planted directions, or in nothing, mixed by an ill-conditioned matrix."""
    rng = np.random.default_rng(seed)
    steps = np.eye(D)[:2] * 3
    mixing = np.linalg.qr(rng.normal(size=(D, D)))[0] * np.geomspace(30, 1, D) @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    rows, tokens, words = [rng.normal(size=(3000, D))], [f"piece{i}" for i in range(3000)], {}
    for concept in concepts:
        step = {"tense": steps[0], "gender": steps[1]}.get(concept, np.zeros(D))
        base = rng.normal(size=(N_PAIRS, D))
        other = base + step + noise * rng.normal(size=(N_PAIRS, D)) if step.any() else rng.normal(size=(N_PAIRS, D))
        rows += [base, other]
        names = [(f"{concept}{i}", f"{concept}{i}s") for i in range(N_PAIRS)]
        tokens += [f" {a}" for a, _ in names] + [f" {b}" for _, b in names]
        words[concept] = names
    unembedding = clean_unembedding(np.concatenate(rows) @ mixing + rng.normal(size=D), tokens)
    return unembedding, words, steps @ mixing


def test_own_word_pairs_are_some_twenty_concepts_of_fifteen_pairs_or_more():
    assert len(WORD_PAIRS) >= 20
    assert all(len(set(pairs)) >= 15 for pairs in WORD_PAIRS.values())
    assert all(a != b and not (a + b).isspace() for pairs in WORD_PAIRS.values() for a, b in pairs)


def test_pairs_that_are_not_two_different_single_tokens_are_dropped_and_counted():
    unembedding, words, _ = planted()
    words["tense"] = [*words["tense"], ("tense0", "walked"), ("tense1", "tense1"), words["tense"][0]]
    words["rare"] = words["gender"][:3]
    pairs = token_pairs(unembedding, words)
    tense = pairs.concepts[0]
    assert (len(tense.words), tense.dropped) == (N_PAIRS, (("tense0", "walked"), ("tense1", "tense1"), words["tense"][0]))
    assert pairs.names == ("tense", "gender", "nothing")
    assert [p.concept for p in pairs.too_few] == ["rare"]
    assert unembedding.tokens[tense.rows[4, 1]] == " tense4s"
    assert pairs.table().column("used") == [True, True, True, False]
    np.testing.assert_array_equal(
        pairs.differences(unembedding.rows)[0][4], unembedding.rows[tense.rows[4, 1]] - unembedding.rows[tense.rows[4, 0]]
    )


@pytest.mark.parametrize("words", [{"none": [("x y", "z"), ("q", "r")]}, {}, {"empty": []}])
def test_pairs_of_which_none_are_single_tokens_are_an_error_with_the_counts(words):
    with pytest.raises(ConfigError, match=r"pairs of single tokens, got (none: 0 of 2|no concept|empty: 0 of 0)"):
        token_pairs(planted()[0], words)


def test_fewest_pairs_are_two():
    with pytest.raises(ConfigError, match="min_pairs must be at least 2, got 1"):
        token_pairs(planted()[0], planted()[1], min_pairs=1)


def test_direction_is_the_mean_difference_and_its_dispersion_is_told():
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(40, 6)) + np.array([5.0, 0, 0, 0, 0, 1])
    concept = ConceptDirection().fit(differences)
    np.testing.assert_allclose(concept.mean_, differences.mean(axis=0))
    np.testing.assert_allclose(concept.direction_ * np.linalg.norm(concept.mean_), concept.mean_)
    assert concept.dispersion_ == pytest.approx(differences.var(axis=0).sum())
    np.testing.assert_allclose(concept.transform(differences)[:, 0], differences @ concept.direction_)


def test_leave_one_out_is_the_loop_over_pairs_also_where_words_are_shared():
    rng = np.random.default_rng(1)
    differences = rng.normal(size=(9, 5)) + 1
    shared = np.eye(9, dtype=bool)
    shared[2, 5] = shared[5, 2] = shared[0, 1] = shared[1, 0] = True
    for left_out in (np.eye(9, dtype=bool), shared):
        expected = []
        for i in range(9):
            others = differences[~left_out[i]].mean(axis=0)
            expected.append(differences[i] @ others / np.linalg.norm(others))
        np.testing.assert_allclose(leave_one_out(differences, left_out), expected, rtol=1e-12)
    np.testing.assert_allclose(leave_one_out(differences), leave_one_out(differences, np.eye(9, dtype=bool)), rtol=1e-12)
    assert (leave_one_out(differences, np.ones((9, 9), dtype=bool)) == 0).all()  # every pair has the same word: nothing to compare with


def test_planted_concepts_are_found_and_a_concept_of_nothing_is_not():
    unembedding, words, truth = planted()
    causal = CausalInnerProduct().fit(unembedding.rows)
    study = study_concepts(token_pairs(unembedding, words), unembedding, causal, n_random=5000, n_null=100)
    assert (study.z[:2] > 1.5).all() and (study.share[:2] > 0.85).all() and (study.p_values[:2] == 1 / 101).all()
    assert abs(study.z[2]) < 0.7 and study.p_values[2] > 0.02 and study.share[2] < 0.45
    np.testing.assert_allclose(np.diag(np.atleast_2d(study.directions[:2] @ unit(causal.whiten(truth)).T)), 1, atol=0.02)
    assert abs(study.null_z.mean()) < 0.1
    assert study.table().column("concept")[-1] == "nothing"


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_word_that_all_pairs_share_does_not_pass_for_a_concept():
    unembedding, words, _ = planted()
    everyone = [(a, "tense0s") for a, _ in words["nothing"]]
    pairs = token_pairs(unembedding, {"to one word": everyone, "tense": words["tense"]})
    study = study_concepts(pairs, unembedding, CausalInnerProduct().fit(unembedding.rows), n_random=2000, n_null=20)
    assert study.z[0] == 0
    assert leave_one_out(pairs.differences(unembedding.rows)[0]).mean() > 0  # as it would, left out one by one


def test_cosines_separate_only_under_the_causal_inner_product_and_random_pairs_lie_at_the_floor():
    unembedding, words, _ = planted(noise=0.05)
    cosines = concept_cosines(token_pairs(unembedding, words), unembedding, CausalInnerProduct().fit(unembedding.rows))
    assert cosines.cosines["causal"][0, 1] < 0.1 < cosines.cosines["Euclidean"][0, 1]
    assert cosines.cosines["random"][0, 1] > 0.1
    for matrix in cosines.cosines.values():
        np.testing.assert_allclose(np.diag(matrix), 1)
    assert cosines.floor_mean == pytest.approx(np.sqrt(2 / (np.pi * D)))
    rng = np.random.default_rng(0)
    directions = unit(rng.normal(size=(300, D)))
    random = np.abs((directions @ directions.T)[np.triu_indices(300, 1)])
    assert cosines.floor_mean == pytest.approx(random.mean(), rel=0.03) and cosines.floor_median == pytest.approx(
        np.median(random), rel=0.03
    )
    assert len(cosines.table().rows) == 3


def test_the_absolute_random_inner_product_would_be_a_straw_man():
    rng = np.random.default_rng(0)
    means = []
    for _ in range(20):
        concepts, a = rng.normal(size=(27, 32)), rng.normal(size=(32, 32))
        means.append([np.abs(unit(concepts @ m) @ unit(concepts @ m).T)[np.triu_indices(27, 1)].mean() for m in (a, np.abs(a))])
    plain, absolute = np.mean(means, axis=0)
    assert plain == pytest.approx(0.2, abs=0.02) and absolute > 1.8 * plain  # why `concept_cosines` draws plain normal numbers


def test_a_step_along_a_concept_changes_that_concept_and_the_euclidean_one_changes_others():
    unembedding, words, _ = planted(noise=0.05)
    causal = CausalInnerProduct().fit(unembedding.rows)
    effects = intervention_effects(token_pairs(unembedding, words), unembedding, causal)
    np.testing.assert_allclose(np.diag(effects.causal), 1)
    assert np.abs(effects.causal[:2, :2][~np.eye(2, dtype=bool)]).max() < 0.1
    assert np.abs(effects.euclidean[:2, :2][~np.eye(2, dtype=bool)]).max() > 0.2
    assert (effects.off_target() < effects.off_target(euclidean=True))[:2].all()
    assert effects.table().column("intervention along") == ["tense", "gender", "nothing"]


def test_measurement_reads_the_contexts_own_concept_and_not_another():
    unembedding, words, truth = planted()
    causal = CausalInnerProduct().fit(unembedding.rows)
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 400)
    contexts = (
        rng.normal(size=(400, D)) @ causal.inverse_sqrt_ + labels[:, None] * 1.5 * unit(causal.whiten(truth))[0] @ causal.inverse_sqrt_
    )
    result = measure(contexts, labels, token_pairs(unembedding, words), unembedding, causal, kinds=("now", "then"))
    assert result.auc[0] > 0.8 and abs(result.auc[1] - 0.5) < 0.1
    assert abs(result.null_auc.mean() - 0.5) < 0.05
    assert result.table().columns[1:3] == ("mean: now", "mean: then")
    direction = unit(causal.whiten(token_pairs(unembedding, words).differences(unembedding.rows)[0]).mean(axis=0)[None])[0]
    np.testing.assert_allclose(result.projections[:, 0], contexts @ (direction @ causal.sqrt_), rtol=1e-9)
    for bad in (labels[:-1], np.zeros(400, dtype=int), labels + 1):
        with pytest.raises(ConfigError, match="labels must be 400 of 0 and 1"):
            measure(contexts, bad, token_pairs(unembedding, words), unembedding, causal)


def test_moving_a_context_moves_watched_log_odds_by_the_closed_form_and_names_the_tokens():
    unembedding, words, _ = planted()
    causal = CausalInnerProduct().fit(unembedding.rows)
    pairs = token_pairs(unembedding, words)
    direction = causal.whiten(pairs.differences(unembedding.rows)[0]).mean(axis=0)
    context = np.random.default_rng(0).normal(size=D) * 0.1
    watch = [(" tense3", " tense3s"), (" gender3", " gender3s")]
    moved = intervene(context, direction, unembedding, causal, strengths=(0.0, 0.2, 0.4), concept="tense", watch=watch)
    g, u = causal.transform(unembedding.rows), direction / np.linalg.norm(direction)
    for name, (y0, y1) in zip(moved.watched, watch, strict=True):
        change = (g[unembedding.row_of(y1)] - g[unembedding.row_of(y0)]) @ u
        np.testing.assert_allclose(moved.watched[name], np.array([0, 0.2, 0.4]) * change, atol=1e-9)
    assert moved.watched["tense3 → tense3s"][2] > 5 * abs(moved.watched["gender3 → gender3s"][2])
    logits = context @ unembedding.rows.T
    assert moved.tokens[0][0] == unembedding.tokens[int(logits.argmax())]
    assert moved.probabilities[0, 0] == pytest.approx(np.exp(logits.max() - np.logaddexp.reduce(logits)))
    with pytest.raises(ConfigError, match="there is no 'tense3'"):
        intervene(context, direction, unembedding, causal, strengths=[1.0], watch=[("tense3", " tense3s")])
    with pytest.raises(ConfigError, match="direction must not be zeros"):
        intervene(context, 0 * direction, unembedding, causal, strengths=[1.0])


def test_every_result_has_a_table_a_page_and_a_figure():
    unembedding, words, _ = planted()
    causal = CausalInnerProduct().fit(unembedding.rows)
    pairs = token_pairs(unembedding, words)
    labels = np.arange(50) % 2
    contexts = np.random.default_rng(0).normal(size=(50, D))
    results = [
        pairs,
        study_concepts(pairs, unembedding, causal, n_random=500, n_null=5),
        concept_cosines(pairs, unembedding, causal),
        intervention_effects(pairs, unembedding, causal),
        measure(contexts, labels, pairs, unembedding, causal),
        intervene(contexts[0], np.ones(D), unembedding, causal, strengths=(0.0, 1.0), watch=[(" tense3", " tense3s")]),
    ]
    for result in results:
        assert str(result).splitlines()[0] == result.table().title
        assert "<table" in result._repr_html_()
        assert len(result.figure().data) > 0
    with pytest.raises(ConfigError, match="n_random and n_null must be at least 2"):
        study_concepts(pairs, unembedding, causal, n_null=1)


def test_the_null_tells_random_pairs_apart_from_concepts_at_its_stated_level():
    unembedding, _, _ = planted()
    causal = CausalInnerProduct().fit(unembedding.rows)
    rng = np.random.default_rng(5)
    names = [token[1:] for token in unembedding.tokens if token.startswith(" nothing")]
    words = {f"chance {j}": list(zip(*(rng.permutation(names)[:16].reshape(2, 8).tolist()), strict=True)) for j in range(40)}
    study = study_concepts(token_pairs(unembedding, words), unembedding, causal, n_random=2000, n_null=99)
    assert 0.25 < study.p_values.mean() < 0.75
    assert (study.p_values <= 0.05).mean() <= 0.2
    assert spearmanr(study.z, study.p_values).statistic < -0.8
