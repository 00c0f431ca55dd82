"""Task-vector crystals: planted relations, the trap of scoring in sample, scikit-learn, and nothing where relations are shuffled."""

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage as sklearn_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import silhouette_samples
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.crystals import compare_relations, ledoit_wolf_shrinkage, nuisance_directions, project_out, silhouettes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def planted(n_relations=5, n_pairs=20, d=64, distractor=8.0, noise=0.15, seed=0):
    """Words with a strong coordinate that has nothing to do with the relation, on source and target alike; sources, targets, relations, it."""
    generator = seeded(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    vectors, direction = draw(n_relations, d), draw(d)
    direction = direction / direction.norm()
    relations = torch.arange(n_relations).repeat_interleave(n_pairs)
    n = len(relations)
    sources = draw(n, d) + distractor * draw(n, 1) * direction
    words = sources - (sources @ direction)[:, None] * direction
    targets = words + vectors[relations] + noise * draw(n, d) + distractor * draw(n, 1) * direction
    return sources, targets, relations, direction


def test_planted_relations_are_found_and_the_distractor_hides_them_from_the_raw_differences():
    sources, targets, relations, direction = planted()
    found = compare_relations(sources, targets, relations, generator=seeded(1), n_null=49)
    assert found.raw_silhouette.value == pytest.approx(0.135, abs=0.12)
    assert 0.85 < found.held_out_silhouette.value < 1  # .89 without shrinkage
    assert found.in_sample_silhouette.value == pytest.approx(0.976, abs=0.05)
    assert found.accuracy.value > 0.98
    assert found.raw_residual == pytest.approx(1.38, abs=0.45)
    assert found.held_out_residual < 0.35
    for statistic in (found.held_out_silhouette, found.accuracy):
        assert statistic.p_greater == pytest.approx(0.02)
    clean = compare_relations(
        project_out(sources, direction[None]), project_out(targets, direction[None]), relations, generator=seeded(1), n_null=3
    )
    assert clean.raw_silhouette.value == pytest.approx(0.825, abs=0.05)
    assert clean.raw_residual == pytest.approx(0.159, abs=0.03)
    assert (found.n_pairs, found.n_relations, found.n_directions, found.n_folds) == (100, 5, 4, 5)


def test_scoring_in_sample_finds_crystals_in_shuffled_relations_and_holding_out_does_not():
    sources, targets, relations, _ = planted()
    shuffled = relations[torch.randperm(100, generator=seeded(3))]
    found = compare_relations(sources, targets, shuffled, generator=seeded(1), n_null=49)
    assert found.in_sample_silhouette.null_mean > found.held_out_silhouette.null_mean + 0.15  # the trap, softened by shrinkage
    assert found.held_out_silhouette.value < 0.05
    assert abs(found.accuracy.value - 0.2) < 0.15
    assert found.held_out_silhouette.p_greater > 0.02
    assert found.accuracy.p_greater > 0.02
    trap = []
    for seed in range(5):  # scikit-learn's LDA as it comes
        labels = relations[torch.randperm(100, generator=seeded(seed))].numpy()
        differences = (targets - sources).numpy()
        fitted = LinearDiscriminantAnalysis(n_components=4).fit_transform(differences, labels)
        trap.append(silhouette_samples(fitted, labels).mean())
    assert np.mean(trap) == pytest.approx(0.41, abs=0.08)


def test_directions_are_those_of_scikit_learns_shrunk_discriminant_analysis():
    from sae.geometry.crystals.relations import _directions, _Fold, _fold

    sources, targets, relations, _ = planted(n_relations=3, n_pairs=40, d=6)
    differences = targets - sources
    fold = _fold(differences, torch.ones(120, dtype=torch.bool))
    assert isinstance(fold, _Fold)
    ours = fold.whitened @ _directions(fold, relations, 3, 2)
    gamma = ledoit_wolf_shrinkage(differences)
    # The same ridge, added to the scatter within relations by hand: generalised eigenvectors by scipy.
    from scipy.linalg import eigh

    x = (differences - differences.mean(dim=0)).numpy()
    labels = relations.numpy()
    means = np.stack([x[labels == r].mean(axis=0) for r in range(3)])
    between = means.T @ means * 40 / 120
    total = x.T @ x / 120
    shrunk = (1 - gamma) * total + gamma * np.trace(total) / 6 * np.eye(6)
    _, vectors = eigh(between, shrunk - between)
    theirs = x @ vectors[:, ::-1][:, :2]
    for column in range(2):
        a, b = ours[:, column].numpy(), theirs[:, column]
        assert abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1, abs=1e-9)
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(30, 5), (12, 40), (200, 3)])
def test_shrinkage_is_that_of_scikit_learn(n, d):
    points = gaussian(n, d, seed=n) * torch.linspace(0.2, 3, d, dtype=torch.float64) + 4
    assert ledoit_wolf_shrinkage(points) == pytest.approx(sklearn_shrinkage(points.numpy()), rel=1e-9)


def test_points_without_structure_are_shrunk_wholly_and_structured_ones_hardly():
    assert ledoit_wolf_shrinkage(torch.cat([torch.eye(3), -torch.eye(3)]).double()) == 1.0
    assert ledoit_wolf_shrinkage(gaussian(5000, 2) * torch.tensor([1.0, 9.0], dtype=torch.float64)) < 0.01


@pytest.mark.parametrize("sizes", [(20, 20), (3, 30, 7), (1, 15, 4)])
def test_silhouettes_are_those_of_scikit_learn(sizes):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) * 3 - 1
    points = gaussian(len(labels), 4) + labels[:, None]
    ours = silhouettes(points, labels)
    assert torch.allclose(ours, torch.from_numpy(silhouette_samples(points.numpy(), labels.numpy())), atol=1e-12)
    assert torch.allclose(ours, silhouettes(points, labels, block_elements=7))


def test_silhouette_of_coinciding_groups_is_zero_or_one():
    labels = torch.tensor([0, 0, 1, 1])
    assert torch.equal(silhouettes(torch.zeros(4, 2), labels), torch.zeros(4, dtype=torch.float64))
    assert torch.equal(silhouettes(torch.tensor([[0.0], [0], [5], [5]]), labels), torch.ones(4, dtype=torch.float64))


def test_projecting_out_leaves_nothing_along_the_directions_and_the_rest_alone():
    vectors, directions = gaussian(10, 7), gaussian(2, 7, seed=1)
    rest = project_out(vectors, torch.cat([directions, directions[:1] * 2]))
    assert (rest @ directions.T).abs().max() < 1e-12
    inside = vectors - rest
    assert torch.linalg.matrix_rank(torch.cat([inside, directions])) == 2
    assert project_out(vectors.half(), directions).dtype == torch.float32


def test_nuisance_directions_are_the_slopes_and_projecting_them_out_uncovers_the_relation():
    length = gaussian(100, 1, seed=4)
    slope = gaussian(1, 64, seed=5)
    sources, targets, relations, _ = planted(distractor=0.0)
    disturbed = targets + 4 * length @ slope
    found = nuisance_directions(disturbed - sources, length)
    assert torch.nn.functional.cosine_similarity(found, slope).item() > 0.98
    before = silhouettes(disturbed - sources, relations).mean()
    after = silhouettes(project_out(disturbed - sources, found), relations).mean()
    assert before < 0.4 < 0.7 < after


def test_pairs_of_one_group_are_never_on_both_sides_of_a_fold():
    from sae.geometry.crystals.relations import _training_sets

    labels = torch.arange(3).repeat_interleave(24)
    groups = torch.randint(0, 30, (72,), generator=seeded(2))
    seen = torch.zeros(72, dtype=torch.int64)
    for train in _training_sets(labels, groups, 4, seeded(0)):
        assert not set(groups[train].tolist()) & set(groups[~train].tolist())
        seen += ~train
        assert torch.bincount(labels[~train], minlength=3).min() >= 2
    assert torch.equal(seen, torch.ones(72, dtype=torch.int64))


def test_words_shared_between_pairs_look_like_a_relation_unless_grouped():
    # Every source has 8 targets at random: differences share -source, which LDA learns to name when the same source is on both sides.
    n_sources, d = 12, 40
    sources = gaussian(n_sources, d).repeat_interleave(8, dim=0)
    relations = torch.arange(n_sources).remainder(3).repeat_interleave(8)
    targets = 0.3 * gaussian(len(sources), d, seed=1)
    groups = torch.arange(n_sources).repeat_interleave(8)
    loose = compare_relations(sources, targets, relations, generator=seeded(0), n_folds=4, n_null=3)
    strict = compare_relations(sources, targets, relations, generator=seeded(0), groups=groups, n_folds=4, n_null=3)
    assert loose.accuracy.value > 0.9
    assert strict.accuracy.value < 0.7


def held_out(x, seed=0):
    relations = torch.arange(3).repeat_interleave(20)[: len(x)]
    found = compare_relations(torch.zeros_like(x), x, relations, generator=seeded(seed), n_folds=3, n_null=2)
    return torch.tensor([found.raw_silhouette.value, found.held_out_silhouette.value, found.accuracy.value, found.held_out_residual])


MEASURES = [
    Measure("relations", held_out, rotation=True, scale=True, translation=False, permutation=None, single_tolerance=1e-3),
    Measure("shrinkage", ledoit_wolf_shrinkage, rotation=True, scale=True, translation=True, linear=False),
    Measure(
        "silhouettes",
        lambda x: silhouettes(x, torch.arange(len(x)) % 2).mean(),
        rotation=True,
        scale=True,
        translation=True,
        linear=False,
        permutation=None,
        blocked=lambda x, size: silhouettes(x, torch.arange(len(x)) % 2, block_elements=size).mean(),
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_measure_of_relations_has_the_properties_of_its_definition(measure):
    check(measure)


def test_p_values_of_shuffled_relations_are_uniform():
    relations = torch.arange(3).repeat_interleave(8)

    def p_value(seed):
        found = compare_relations(
            torch.zeros(24, 5), gaussian(24, 5, seed=seed), relations, generator=seeded(seed + 10_000), n_folds=2, n_null=19
        )
        return found.held_out_silhouette.p_greater

    check_calibrated(p_value, n_draws=120)


SOURCES, TARGETS, RELATIONS, _ = planted(n_relations=2, n_pairs=10, d=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_relations(SOURCES, TARGETS, RELATIONS * 0, generator=seeded(0)), "at least 2 relations"),
        (lambda: compare_relations(SOURCES, TARGETS, RELATIONS, generator=seeded(0), n_folds=6), "smallest of 10 pairs"),
        (lambda: compare_relations(SOURCES, TARGETS, RELATIONS, generator=seeded(0), n_directions=2), "n_directions=2"),
        (lambda: compare_relations(SOURCES, TARGETS, RELATIONS, generator=seeded(0), groups=RELATIONS), "every fold 2 pairs"),
        (lambda: compare_relations(SOURCES * math.nan, TARGETS, RELATIONS, generator=seeded(0)), "finite"),
        (lambda: compare_relations(SOURCES, SOURCES, RELATIONS, generator=seeded(0)), "vary"),
        (lambda: project_out(SOURCES, torch.zeros(1, 4)), "not all be zero"),
        (lambda: nuisance_directions(SOURCES, torch.ones(20, 1)), "independent columns"),
        (lambda: silhouettes(SOURCES, RELATIONS * 0), "at least 2 kinds"),
        (lambda: ledoit_wolf_shrinkage(torch.ones(5, 2)), "vary"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
