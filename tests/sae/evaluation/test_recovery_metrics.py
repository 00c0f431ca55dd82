"""Recovery scores: 1 for the truth in any order, chance for the unrelated, and equal to slow computations from the definitions."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import f1_score

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.recovery import (
    activation_overlap,
    best_cosines,
    compare_gram_error,
    cosines,
    firing_f1s,
    gram_error,
    match,
    mean_correlation,
    recovery,
)
from sae.geometry.similarity import max_cosine_null
from sae.synthetic.hierarchy import LEVELS, tree_codes, tree_features
from sae.synthetic.planted import planted_codes, planted_features


def sparse(z: torch.Tensor) -> SparseCodes:
    """Dense codes as SparseCodes, slots in order of the latents."""
    order = (z == 0).int().argsort(dim=1, stable=True)
    return SparseCodes(order, z.gather(1, order), (z != 0).sum(1), z.shape[1])


def random_case(seed: int, n: int = 60, n_features: int = 5, d_sae: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """(true codes, learned codes) without any relation; learned ones have both signs and one dead latent."""
    draw = torch.Generator().manual_seed(seed)
    truth = planted_codes(n, n_features, draw, k=2.0)
    codes = torch.randn(n, d_sae, generator=draw) * (torch.rand(n, d_sae, generator=draw) < 0.4)
    codes[:, 3] = 0
    return truth, codes


def test_the_truth_in_another_order_and_scale_is_recovered_entirely():
    draw = torch.Generator().manual_seed(0)
    features = tree_features(draw, parent_cosine=0.5, child_cosine=0.3)
    truth, order = tree_codes(2000, draw), torch.randperm(20, generator=draw)
    scale = 0.5 + torch.rand(20, generator=draw)
    found = recovery(features, features[order] * scale[:, None], truth, sparse(truth[:, order] / scale), generator=draw, n_null=19)
    assert torch.equal(order[found.match.latents], torch.arange(20))
    for score in (found.best_cosine, found.mcc, found.firing_f1):
        assert score.value == pytest.approx(1, abs=1e-6)
        assert score.p_greater == 1 / 20
        assert score.null_mean < 0.6
    error = gram_error(features, features[order][found.match.latents], LEVELS)
    assert error.flat < 1e-12 and error.hierarchical < 1e-12


def test_an_unrelated_dictionary_scores_what_chance_gives():
    draw = torch.Generator().manual_seed(1)
    features, atoms = planted_features(30, 16, draw), planted_features(40, 16, draw)
    truth, codes = planted_codes(600, 30, draw, k=3.0), planted_codes(600, 40, draw, k=3.0)
    found = recovery(features, atoms, truth, sparse(codes), generator=draw, n_null=60)
    for score in (found.best_cosine, found.mcc, found.firing_f1):
        assert abs(score.value - score.null_mean) < 4 * score.null_sd
        assert 0.01 < score.p_greater < 0.99


def test_the_null_of_the_best_cosine_has_the_exact_mean_of_independent_directions():
    draw = torch.Generator().manual_seed(2)
    features, truth = tree_features(draw, parent_cosine=0.4), tree_codes(500, draw)
    found = recovery(features, features, truth, sparse(truth), generator=draw, n_null=100)
    exact = max_cosine_null(20, 20, n_null=20_000, generator=draw).mean()
    assert found.best_cosine.null_mean == pytest.approx(float(exact), abs=4 * found.best_cosine.null_sd / math.sqrt(100))


@pytest.mark.parametrize("shape", [(5, 5), (5, 7), (6, 4)])
def test_matching_has_the_largest_sum_of_all_matchings(shape):
    similarity = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = match(similarity)
    n, d_sae = shape
    if n <= d_sae:
        best = max(sum(similarity[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(d_sae), n))
    else:
        best = max(sum(similarity[i, j] for j, i in enumerate(rows)) for rows in itertools.permutations(range(n), d_sae))
    chosen = found.latents[found.latents >= 0]
    assert len(chosen.unique()) == len(chosen) == min(shape)
    assert float(found.similarities.sum()) == pytest.approx(float(best))
    assert (found.similarities[found.latents < 0] == 0).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlap_and_f1_equal_slow_computations_from_the_definitions(seed):
    truth, codes = random_case(seed)
    overlap = activation_overlap(truth, sparse(codes))
    for i, j in itertools.product(range(5), range(7)):
        if j == 3:
            assert overlap[i, j] == 0
            continue
        terms = [
            float(s) / float(truth[:, i].abs().max()) * float(z) / float(codes[:, j].abs().max())
            for s, z in zip(truth[:, i], codes[:, j], strict=True)
        ]
        assert float(overlap[i, j]) == pytest.approx(sum(terms), abs=1e-5)
    latents = torch.tensor([6, 3, -1, 0, 0])
    f1s = firing_f1s(truth, sparse(codes), latents)
    for i, latent in enumerate(latents.tolist()):
        fired = codes[:, latent] != 0 if latent >= 0 else torch.zeros(len(codes), dtype=torch.bool)
        assert float(f1s[i]) == pytest.approx(f1_score(truth[:, i] != 0, fired, zero_division=0.0))


def test_a_latent_selected_twice_counts_once_with_its_sum():
    truth = torch.tensor([[1.0], [2.0], [0.0]])
    twice = SparseCodes(
        torch.tensor([[1, 1], [1, 0], [0, 0]]), torch.tensor([[0.75, 0.25], [4.0, 0.0], [0.0, 0.0]]), torch.tensor([2, 1, 0]), 2
    )
    assert torch.allclose(activation_overlap(truth, twice), torch.tensor([[0.0, 0.5 * 0.25 + 1.0]], dtype=torch.float64))
    assert firing_f1s(truth, twice, torch.tensor([1])).tolist() == [1.0]


def test_best_cosine_keeps_the_sign_and_mcc_does_not():
    features = planted_features(6, 10, torch.Generator().manual_seed(5))
    assert torch.allclose(best_cosines(features, -3 * features[:1]), -(features @ features[0]), atol=1e-6)
    assert mean_correlation(features, -features.flip(0)) == pytest.approx(1, abs=1e-6)
    assert mean_correlation(features, features[:3]) == pytest.approx(0.5, abs=1e-6)


def test_best_cosine_and_mcc_do_not_change_under_a_common_rotation():
    draw = torch.Generator().manual_seed(6)
    features, atoms = planted_features(8, 12, draw), planted_features(11, 12, draw)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=draw)).Q
    assert torch.allclose(best_cosines(features @ turn, atoms @ turn), best_cosines(features, atoms), atol=1e-6)
    assert mean_correlation(features @ turn, atoms @ turn) == pytest.approx(mean_correlation(features, atoms), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_gram_error_equals_a_slow_mean_over_pairs(seed):
    draw = torch.Generator().manual_seed(seed)
    features, atoms, levels = planted_features(7, 9, draw), 2 * planted_features(7, 9, draw), [0, 1, 0, 2, 1, 0, 0]
    flat, across = [], []
    for i, j in itertools.combinations(range(7), 2):
        learned = torch.cosine_similarity(atoms[i], atoms[j], dim=0)
        (flat if levels[i] == levels[j] else across).append(float(learned - features[i] @ features[j]) ** 2)
    error = gram_error(features, atoms, levels)
    assert error.flat == pytest.approx(sum(flat) / len(flat), rel=1e-4)
    assert error.hierarchical == pytest.approx(sum(across) / len(across), rel=1e-4)


def test_gram_error_of_one_absorbed_child_is_half_over_the_number_of_pairs_across_levels():
    features = tree_features(torch.Generator().manual_seed(8))
    atoms = features.clone()
    atoms[1] += features[0]
    error = gram_error(features, atoms, LEVELS)
    assert error.flat == pytest.approx(0, abs=1e-12)
    assert error.hierarchical == pytest.approx(0.5 / 99, rel=1e-4)


def test_gram_error_of_random_atoms_is_one_over_the_width_against_an_orthogonal_truth():
    draw = torch.Generator().manual_seed(9)
    flat, across = compare_gram_error(tree_features(draw), planted_features(20, 20, draw), LEVELS, generator=draw, n_null=200)
    for score in (flat, across):
        assert score.null_mean == pytest.approx(1 / 20, rel=0.03)
        assert abs(score.value - score.null_mean) < 4 * score.null_sd


def test_gram_error_without_levels_to_compare_is_not_a_number():
    features = planted_features(4, 6, torch.Generator().manual_seed(10))
    assert math.isnan(gram_error(features, features, [0] * 4).hierarchical)


def test_what_does_not_fit_is_refused():
    draw = torch.Generator().manual_seed(11)
    features, truth = tree_features(draw), tree_codes(50, draw)
    codes = sparse(truth)
    with pytest.raises(ConfigError, match="one row per row of truth, 50, got 49"):
        activation_overlap(truth, codes[:49])
    with pytest.raises(ConfigError, match="one row per row of truth"):
        firing_f1s(truth[:3], codes, torch.zeros(20, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"feature \d+ never is"):
        firing_f1s(truth[:1], codes[:1], torch.zeros(20, dtype=torch.long))
    with pytest.raises(ConfigError, match="d_sae=19 latents"):
        recovery(features, features[:19], truth, codes, generator=draw)
    with pytest.raises(ConfigError, match="one per feature, 20"):
        gram_error(features, features, LEVELS[:19])
    with pytest.raises(ConfigError, match="must be finite"):
        match(torch.tensor([[math.nan]]))
    with pytest.raises(ConfigError, match="no zero row"):
        cosines(features, torch.zeros(2, 20))
