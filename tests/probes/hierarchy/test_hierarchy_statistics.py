"""Vectors of categories, and the statistics that tell a planted tree from noise."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.covariance import ledoit_wolf_shrinkage as sklearn_shrinkage
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.causal import CausalInnerProduct
from probes.hierarchy import (
    CategoryDirection,
    ConceptHierarchy,
    affine_rank,
    category_vector,
    held_out_words,
    hierarchy_cosines,
    hierarchy_statistics,
    simplex,
)
from probes.hierarchy.held_out import _auc
from probes.shrinkage import ledoit_wolf_shrinkage
from probes.unembedding import clean_unembedding
from sae.errors import ConfigError

D, N_PARENTS, N_CHILDREN, N_WORDS, N_BACKGROUND = 64, 6, 8, 40, 1500


@parametrize_with_checks([CategoryDirection(), CategoryDirection(estimator="mean")])
def test_estimator_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("n", "d"), [(5, 40), (40, 40), (41, 40), (300, 40)])
def test_shrinkage_and_vector_are_those_of_scikit_learns_ledoit_wolf(n, d):
    rng = np.random.default_rng(n)
    words = rng.normal(size=(n, d)) * np.geomspace(0.1, 3, d) + rng.normal(size=d)
    reference = LedoitWolf().fit(words)
    centred = words - words.mean(axis=0)
    assert ledoit_wolf_shrinkage(centred) == pytest.approx(reference.shrinkage_, rel=1e-9)
    assert ledoit_wolf_shrinkage(centred) == pytest.approx(sklearn_shrinkage(centred, assume_centered=True), rel=1e-9)
    u = np.linalg.solve(reference.covariance_, words.mean(axis=0))
    u /= np.linalg.norm(u)
    category = CategoryDirection().fit(words)
    np.testing.assert_allclose(category.vector_, (u @ words.mean(axis=0)) * u, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(category_vector(words), category.vector_, rtol=1e-12)
    np.testing.assert_allclose(category_vector(words, second_moment=words.T @ words), category.vector_, rtol=1e-7, atol=1e-10)
    assert category.shrinkage_ == pytest.approx(reference.shrinkage_, rel=1e-9)


@pytest.mark.parametrize("estimator", ["lda", "mean"])
def test_mean_projection_of_the_words_is_one_by_construction(estimator):
    words = np.random.default_rng(0).normal(size=(70, 50)) + 0.4
    category = CategoryDirection(estimator=estimator).fit(words)
    assert category.transform(words).mean() == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(category.direction_, category.vector_ / np.linalg.norm(category.vector_))


def test_hostile_categories_are_refused_or_right():
    rng = np.random.default_rng(1)
    same = np.tile(rng.normal(size=6), (10, 1))
    np.testing.assert_allclose(CategoryDirection().fit(same).vector_, same[0], rtol=1e-9)  # no spread: the mean
    np.testing.assert_allclose(CategoryDirection().fit(np.tile(same, (3, 1))).vector_, same[0], rtol=1e-9)  # more rows than columns
    words = rng.normal(size=(10, 4)) + 1
    np.testing.assert_allclose(CategoryDirection().fit(words[:2]).vector_, words[:2].mean(axis=0))  # two words: their mean
    padded = CategoryDirection().fit(np.concatenate([words, np.zeros((10, 2))], axis=1))  # constant columns are shrunk, not singular
    assert np.isfinite(padded.vector_).all() and (padded.vector_[4:] == 0).all()
    with pytest.raises(ConfigError, match="estimator must be one of lda, mean, got 'median'"):
        CategoryDirection(estimator="median").fit(words)
    with pytest.raises(ConfigError, match="2 rows that cancel out"):
        CategoryDirection().fit(np.array([[1.0, 2.0], [-1.0, -2.0]]))
    with pytest.raises(ValueError, match="NaN"):
        CategoryDirection().fit(np.where(words > 1, np.nan, words))
    with pytest.raises(ValueError, match="1 sample"):
        CategoryDirection().fit(words[:1])
    assert clone(CategoryDirection(estimator="mean")).estimator == "mean"


def tree(seed, *, planted=True):
    """Whitened rows, unwhitened rows, hierarchy: words are sums of orthogonal steps along their path and noise .6, mixed by a random matrix."""
    rng = np.random.default_rng(seed)
    steps = 2.2 * np.linalg.qr(rng.normal(size=(D, D)))[0] if planted else np.zeros((D, D))
    parent = np.repeat(np.arange(N_PARENTS), N_CHILDREN * N_WORDS)
    child = np.repeat(np.arange(N_PARENTS * N_CHILDREN), N_WORDS)
    words = steps[parent] + steps[N_PARENTS + child] + 0.6 * rng.normal(size=(len(parent), D))
    gamma = np.concatenate([words, 0.6 * rng.normal(size=(N_BACKGROUND, D))]) @ rng.normal(size=(D, D))
    rows = [np.flatnonzero(parent == i) for i in range(N_PARENTS)] + [np.flatnonzero(child == i) for i in range(N_PARENTS * N_CHILDREN)]
    names = [f"parent {i}" for i in range(N_PARENTS)] + [f"child {i}" for i in range(N_PARENTS * N_CHILDREN)]
    parents = [()] * N_PARENTS + [(i // N_CHILDREN,) for i in range(N_PARENTS * N_CHILDREN)]
    hierarchy = ConceptHierarchy(tuple(names), tuple(names), tuple(rows), np.arange(len(gamma)), tuple(parents))
    return CausalInnerProduct().fit_transform(gamma), gamma, hierarchy


def test_disjoint_projection_tells_a_planted_tree_from_noise_and_the_nested_cosine_does_not():
    real, noise = (hierarchy_statistics(g, hierarchy, unwhitened=gamma) for g, gamma, hierarchy in (tree(0), tree(0, planted=False)))
    nested, disjoint = real.of("hierarchy", "nested cosine"), real.of("hierarchy", "disjoint projection")
    assert disjoint.mean() == pytest.approx(0.77, abs=0.04) and disjoint.std() < 0.08
    assert abs(nested.mean()) < 0.03 and nested.std() < 0.04
    noise_nested, noise_disjoint = noise.of("hierarchy", "nested cosine"), noise.of("hierarchy", "disjoint projection")
    assert noise_disjoint.mean() == pytest.approx(-0.07, abs=0.15) and noise_disjoint.std() == pytest.approx(0.29, abs=0.12)
    assert abs(noise_nested.mean()) < 0.05 and noise_nested.std() == pytest.approx(0.128, abs=0.03)  # "orthogonal" all the same
    for condition in ("random nested sets", "shuffled rows"):
        assert abs(real.of(condition, "disjoint projection").mean()) < 0.25
        assert abs(real.of(condition, "nested cosine").mean()) < 0.05
        assert real.of(condition, "random parent's cosine").mean() < -0.4  # the contrast that says nothing


def test_nested_cosine_of_random_sets_is_zero_and_that_of_a_random_parent_the_closed_form():
    rng = np.random.default_rng(0)
    nested, apart = [], []
    for _ in range(60):
        g = rng.normal(size=(600, 64))
        parent, child, other = g[:400], g[:100], g[400:500]
        vectors = [category_vector(rows, estimator="mean") for rows in (parent, child, g[100:500], other)]
        nested.append(vectors[0] @ (vectors[1] - vectors[0]))
        step = vectors[1] - vectors[2]
        apart.append(vectors[2] @ step / np.linalg.norm(vectors[2]) / np.linalg.norm(step))
    assert abs(np.mean(nested)) < 3 * np.std(nested) / np.sqrt(60)
    assert np.mean(apart) == pytest.approx(-np.sqrt(100 / 500), abs=0.03)


def test_statistics_of_an_edge_are_their_definitions():
    g, _, hierarchy = tree(1)
    result = hierarchy_statistics(g, hierarchy, n_edges=None, estimator="mean")
    parent, child = hierarchy.rows[0], hierarchy.rows[N_PARENTS]
    assert result.names[0] == ("parent 0", "child 0")
    l_parent, l_child, l_rest = g[parent].mean(axis=0), g[child].mean(axis=0), g[np.setdiff1d(parent, child)].mean(axis=0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    np.testing.assert_allclose(
        result.values["hierarchy"][0, :3],
        [cosine(l_parent, l_child - l_parent), cosine(l_rest, l_child - l_rest), l_child @ l_rest / (l_rest @ l_rest)],
        rtol=1e-9,
    )
    assert "Euclidean" not in result.values
    assert len(result.names) == N_PARENTS * N_CHILDREN
    with pytest.raises(ConfigError, match="condition and statistic must be among hierarchy"):
        result.of("hierarchy", "size")


def test_an_invertible_map_of_the_rows_changes_no_statistic():
    _, gamma, hierarchy = tree(2)
    rng = np.random.default_rng(0)
    one, other = (
        hierarchy_statistics(CausalInnerProduct().fit_transform(rows), hierarchy, estimator="mean", n_edges=20)
        for rows in (gamma, gamma @ (rng.normal(size=(D, D)) + 3 * np.eye(D)))
    )
    np.testing.assert_allclose(other.values["hierarchy"], one.values["hierarchy"], atol=1e-7)


def test_held_out_words_lie_along_a_planted_category_and_not_along_shuffled_rows():
    g, _, hierarchy = tree(3)
    result = held_out_words(g, hierarchy)
    np.testing.assert_allclose(result.of("hierarchy", "train projection"), 1, atol=1e-10)
    assert result.of("hierarchy", "held-out projection").mean() > 0.85
    assert result.of("hierarchy", "AUC against tokens").mean() > 0.99
    assert result.of("hierarchy", "AUC against nouns").mean() > 0.9
    assert abs(result.of("shuffled rows", "held-out projection").mean()) < 0.1
    assert abs(result.of("shuffled rows", "AUC against tokens").mean() - 0.5) < 0.05
    assert abs(result.of("hierarchy", "random token's projection").mean()) < 0.1
    assert result.categories().columns[:2] == ("category", "words") and len(result.categories().rows) == len(hierarchy)


def test_forms_of_a_word_are_kept_on_one_side_of_the_split():
    """Four forms of each word are alike and the categories mean nothing: only a split that parts the forms finds something."""
    rows = (np.arange(200), np.arange(200, 400), np.arange(400))
    together = np.concatenate([np.repeat(np.arange(100), 4), np.arange(100, 900)])
    known = {"forms apart": [], "forms together": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        g = rng.normal(size=(1200, 64))
        g[:400] += np.repeat(3 * rng.normal(size=(100, 64)), 4, axis=0)
        for name, families in (("forms apart", np.arange(1200)), ("forms together", together)):
            hierarchy = ConceptHierarchy(("one", "two", "both"), ("one", "two", "both"), rows, families, ((2,), (2,), ()))
            known[name] += held_out_words(g, hierarchy).of("hierarchy", "held-out projection")[:2].tolist()
    assert np.mean(known["forms apart"]) > 0.6
    assert abs(np.mean(known["forms together"])) < 0.15


def test_auc_is_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40).astype(float) + 1, rng.integers(0, 9, 70).astype(float)
    assert _auc(positive, negative) == pytest.approx(roc_auc_score([1] * 40 + [0] * 70, np.concatenate([positive, negative])))
    assert np.isnan(_auc(positive, negative[:0]))


def test_four_categories_with_isotropic_noise_have_affine_rank_three_and_a_common_offset_changes_nothing():
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(4, 30)) * 3
    assert affine_rank(vertices) == 3 and affine_rank(vertices + 100 * rng.normal(size=30)) == 3
    flat = np.concatenate([vertices[:3], vertices[:1] + vertices[1:2] - vertices[2:3]])
    assert affine_rank(flat) == 2
    assert affine_rank(vertices[:1]) == 0
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        affine_rank(vertices[:0])


def test_simplex_places_held_out_words_and_random_sets_do_not_though_they_have_the_rank():
    g, gamma, hierarchy = tree(4)
    unembedding = clean_unembedding(gamma, [f" w{i}" for i in range(len(gamma))])
    names = [f"child {i}" for i in (0, 9, 18, 27)]
    found = simplex(g, hierarchy, names, unembedding)
    assert found.is_simplex and found.affine_rank == 3 and (found.null_affine_rank == 3).all()
    assert found.accuracy > 0.95 and found.null_accuracy.mean() == pytest.approx(0.25, abs=0.08)
    assert found.corners.shape == (4, 3)
    apart = np.linalg.norm(found.corners[:, None] - found.corners[None], axis=2)
    np.testing.assert_allclose(apart, np.linalg.norm(found.vertices[:, None] - found.vertices[None], axis=2), atol=1e-9)
    shifted = simplex(g + 5.0, hierarchy, names, unembedding, estimator="mean")
    assert shifted.affine_rank == 3  # an offset of all words
    with pytest.raises(ConfigError, match="3 different categories or more"):
        simplex(g, hierarchy, names[:2], unembedding)
    with pytest.raises(ConfigError, match=r"'parent 0' has 280|4 words that the others do not have"):
        simplex(g, hierarchy, ["child 0", "child 1", *[f"child {i}" for i in range(2, 8)], "parent 0"], unembedding)


def test_cosines_of_vectors_follow_the_planted_graph_also_between_categories_without_a_common_word():
    g, _, hierarchy = tree(5)
    cosines = hierarchy_cosines(g, hierarchy, estimator="mean")
    ours, shuffled = (float(row[1]) for row in (cosines.table().rows[0], (None, cosines.table().rows[0][2])))
    assert ours > 0.3 > abs(shuffled)
    assert cosines.names[:2] == ("parent 0", "child 0")  # branch after branch
    assert cosines.graph[0, 1] == 0.5 and cosines.graph[1, 2] == pytest.approx(1 / 3) and cosines.graph[0, N_CHILDREN + 1] == 0
    np.testing.assert_allclose(np.diag(cosines.vectors), 1)
    step = g[hierarchy.rows[N_PARENTS]].mean(axis=0) - g[hierarchy.rows[0]].mean(axis=0)
    other = g[hierarchy.rows[N_PARENTS + 1]].mean(axis=0) - g[hierarchy.rows[0]].mean(axis=0)
    assert cosines.steps[1, 2] == pytest.approx(step @ other / np.linalg.norm(step) / np.linalg.norm(other))


def test_hierarchies_that_are_too_small_or_beyond_the_rows_are_refused():
    g, _, hierarchy = tree(6)
    small = ConceptHierarchy(("a", "b"), ("a", "b"), (np.arange(40), np.arange(3)), np.arange(len(g)), ((), (0,)))
    with pytest.raises(ConfigError, match=r"at least 2 edges.*got 1"):
        hierarchy_statistics(g, small)
    with pytest.raises(ConfigError, match="a row for every token of the hierarchy, up to 1919, got 100 rows"):
        hierarchy_statistics(g[:100], hierarchy)
    with pytest.raises(ConfigError, match="'b' has 2 to fit to and 1 held out of 3"):
        held_out_words(g, small)
    with pytest.raises(ConfigError, match=r"test_share must be above 0 and below 1, got 1.0"):
        held_out_words(g, hierarchy, test_share=1.0)
    with pytest.raises(ConfigError, match="at least 3 categories, got 2"):
        hierarchy_cosines(g, small)


def test_a_child_that_is_nearly_its_parent_is_no_edge():
    rows = (np.arange(100), np.arange(81), np.arange(80), np.arange(98, 100))
    hierarchy = ConceptHierarchy(tuple("abcd"), tuple("abcd"), rows, np.arange(100), ((), (0,), (0,), (0,)))
    assert hierarchy.edges().tolist() == [[0, 2], [0, 3]]


def test_every_result_has_a_table_a_page_and_a_figure():
    g, gamma, hierarchy = tree(7)
    unembedding = clean_unembedding(gamma, [f" w{i}" for i in range(len(gamma))])
    results = [
        hierarchy_statistics(g, hierarchy, unwhitened=gamma, n_edges=5),
        held_out_words(g, hierarchy, n_categories=5),
        hierarchy_cosines(g, hierarchy),
        simplex(g, hierarchy, ["child 0", "child 1", "child 2"], unembedding),
        simplex(g, hierarchy, ["child 0", "child 1", "child 2", "child 3", "child 4"], unembedding),
    ]
    for result in results:
        assert str(result).splitlines()[0] == result.table().title
        assert "<table" in result._repr_html_()
        assert len(result.figure().data) > 0
