"""Relative representations: exact invariances, anchors, and stitching two spaces that differ by a rotation."""

import pytest
import torch
from universal import Measure, check

from sae.errors import ConfigError
from sae.geometry.representations import (
    choose_anchors,
    compare_stitching,
    relative_likeness,
    relative_product,
    relative_representation,
    zero_shot_stitching,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(d, seed):
    return torch.linalg.qr(normal(d, d, seed)).Q


def classes(n=600, d=16, n_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    centres = 1.5 * torch.randn(n_classes, d, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def test_every_similarity_is_its_definition():
    x, anchors = normal(7, 4, 0), normal(5, 4, 1)
    for i, row in enumerate(x):
        for j, anchor in enumerate(anchors):
            cosine = torch.nn.functional.cosine_similarity(row, anchor, dim=0)
            assert relative_representation(x, anchors)[i, j] == pytest.approx(float(cosine), abs=1e-12)
            for name, order in (("euclidean", 2), ("manhattan", 1), ("chebyshev", float("inf"))):
                scale = sum(float((a - b).norm(p=order)) for a in anchors for b in anchors) / 20
                found = relative_representation(x, anchors, similarity=name)[i, j]
                assert found == pytest.approx(-float((row - anchor).norm(p=order)) / scale, abs=1e-12)


def test_cosines_survive_a_rotation_exactly_and_not_a_translation():
    x = normal(200, 12, 2)
    ids, rotation = choose_anchors(x, 20, generator=torch.Generator().manual_seed(0)), turn(12, 3)
    moved = 2.5 * x @ rotation
    own = relative_representation(x, x[ids])
    assert (relative_representation(moved, moved[ids]) - own).abs().max() < 1e-14
    shifted = moved + 3
    assert (relative_representation(shifted, shifted[ids]) - own).abs().max() > 0.5
    assert (relative_representation(shifted - 3, shifted[ids] - 3) - own).abs().max() < 1e-13


INVARIANT = {  # rotation, scale, translation, sign changes and a permutation of columns
    "cosine": (True, True, False, True),
    "euclidean": (True, True, True, True),
    "manhattan": (False, True, True, True),
    "chebyshev": (False, True, True, True),
}


@pytest.mark.parametrize("similarity", list(INVARIANT))
def test_each_similarity_has_its_own_invariances_and_their_product_those_of_its_parts(similarity):
    x = normal(60, 6, 4)
    signed = torch.eye(6, dtype=torch.float64)[torch.tensor([2, 0, 1, 5, 3, 4])] * torch.tensor([1, -1, 1, 1, -1, -1])
    maps = (x @ turn(6, 5), 3 * x, x + 2, x @ signed)
    own = relative_representation(x, x[:9], similarity=similarity)
    for moved, promised in zip(maps, INVARIANT[similarity], strict=True):
        found = relative_representation(moved, moved[:9], similarity=similarity)
        assert ((found - own).abs().max() < 1e-10) == promised
    stacked = relative_product(x, x[:9], similarities=("cosine", similarity))
    assert torch.equal(stacked[:, 9:], own) and stacked.shape == (60, 18)
    mean = relative_product(x, x[:9], similarities=("euclidean", similarity), combine="mean")
    parts = [relative_representation(x, x[:9], similarity=s) for s in ("euclidean", similarity)]
    assert torch.allclose(mean, sum((p - p.mean()) / p.std() for p in parts) / 2)


@pytest.mark.parametrize("method", ["random", "kmeans", "farthest"])
def test_a_classifier_on_relative_coordinates_answers_the_same_in_a_rotated_space(method):
    latent, labels = classes()
    first, second = latent @ turn(16, 6), 4 * latent @ turn(16, 7)
    ids = choose_anchors(latent, 30, method=method, generator=torch.Generator().manual_seed(1))
    train = torch.arange(300)
    relative = zero_shot_stitching(
        relative_representation(first, first[ids]), relative_representation(second, second[ids]), labels, train=train
    )
    assert relative.agreement == 1.0 and relative.stitched_accuracy == relative.own_accuracy > 0.9
    absolute = zero_shot_stitching(first, second, labels, train=train)
    assert absolute.own_accuracy > 0.9
    assert absolute.majority < 0.3


def test_absolute_stitching_is_at_chance_over_rotations():
    latent, labels = classes(seed=3)
    train = torch.arange(300)
    found = [zero_shot_stitching(latent @ turn(16, 2 * s), latent @ turn(16, 2 * s + 1), labels, train=train) for s in range(30)]
    assert sum(each.stitched_accuracy for each in found) / 30 == pytest.approx(0.2, abs=0.06)
    assert min(each.own_accuracy for each in found) > 0.9


def test_stitching_stands_out_against_shuffled_anchors():
    latent, labels = classes(seed=4)
    ids = choose_anchors(latent, 20, generator=torch.Generator().manual_seed(2))
    moved = latent @ turn(16, 8)
    spaces = relative_representation(latent, latent[ids]), relative_representation(moved, moved[ids])
    found = compare_stitching(*spaces, labels, train=torch.arange(300), n_null=49, generator=torch.Generator().manual_seed(0))
    assert found.p_greater == 0.02 and found.null_mean < 0.5 < found.value


def test_the_stitched_classifier_is_the_ridge_regression_of_scikit_learn():
    from sklearn.linear_model import Ridge

    x, labels = classes(n=200, seed=5)
    second, train = x + 0.7 * normal(200, 16, 9), torch.arange(120)
    mean, scale = x[:120].mean(0), x[:120].std(0)
    fitted = Ridge(alpha=1e-3 * 120).fit(((x[:120] - mean) / scale).numpy(), torch.nn.functional.one_hot(labels[:120]).numpy())
    answers = [torch.from_numpy(fitted.predict(((each[120:] - mean) / scale).numpy()).argmax(1)) for each in (x, second)]
    found = zero_shot_stitching(x, second, labels, train=train)
    assert found.agreement == pytest.approx(float((answers[0] == answers[1]).double().mean()))
    assert found.own_accuracy == pytest.approx(float((answers[0] == labels[120:]).double().mean()))
    assert found.stitched_accuracy == pytest.approx(float((answers[1] == labels[120:]).double().mean()))


@pytest.mark.parametrize("method", ["random", "kmeans", "farthest"])
def test_anchors_are_different_rows_and_follow_the_seed(method):
    x = normal(50, 3, 10)
    first, again, other = (choose_anchors(x, 12, method=method, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and len(first.unique()) == 12


def test_farthest_points_and_centres_cover_the_clusters_that_chance_misses():
    x = torch.cat([normal(300, 4, 11), *(normal(3, 4, 12 + i) * 0.1 + 30 * torch.eye(4, dtype=torch.float64)[i] for i in range(4))])
    for method in ("farthest", "kmeans"):
        ids = choose_anchors(x, 5, method=method, generator=torch.Generator().manual_seed(0))
        assert {int((i - 300) // 3) for i in ids if i >= 300} == {0, 1, 2, 3}
    far = choose_anchors(x, 8, method="farthest", generator=torch.Generator().manual_seed(0)).tolist()
    for count in range(1, 8):
        gaps = torch.cdist(x, x[far[:count]]).amin(dim=1)
        assert int(gaps.argmax()) == far[count]


def test_likeness_is_its_definition_and_one_for_equal_spaces():
    a, b = normal(40, 6, 13), normal(40, 6, 13) + 0.8 * normal(40, 6, 14)
    same = relative_likeness(a, 2 * a, k=5)
    assert (same.cosine, same.jaccard, same.reciprocal_rank) == (pytest.approx(1), 1.0, 1.0)
    u, v = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    found = relative_likeness(a, b, k=5)
    assert found.cosine == pytest.approx(float((u * v).sum(1).mean()))
    ranks = [1 + sum(float(u[i] @ v[j]) > float(u[i] @ v[i]) for j in range(40) if j != i) for i in range(40)]
    assert found.reciprocal_rank == pytest.approx(sum(1 / r for r in ranks) / 40)

    def nearest(z, i):
        return set([int(j) for j in (z @ z[i]).argsort(descending=True) if int(j) != i][:5])

    jaccard = [len(nearest(u, i) & nearest(v, i)) / len(nearest(u, i) | nearest(v, i)) for i in range(40)]
    assert found.jaccard == pytest.approx(sum(jaccard) / 40)


MEASURES = [
    Measure("relative cosines", lambda x: relative_representation(x, x[:6]).square().mean(), rotation=True, scale=True, translation=False,
            linear=False, permutation=None),
    Measure("relative distances", lambda x: relative_representation(x, x[:6], similarity="euclidean").mean(), rotation=True, scale=True,
            translation=True, linear=False, permutation=None),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_relative_representations_have_the_properties_of_their_definition(measure):
    check(measure)


def test_bad_input_is_refused_with_a_reason():
    x, labels = classes(n=30, d=4)
    with pytest.raises(ConfigError, match="width of x, 4, got 3"):
        relative_representation(x, x[:, :3])
    with pytest.raises(ConfigError, match="no zero row"):
        relative_representation(x, torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(ConfigError, match="all be equal"):
        relative_representation(x, torch.ones(3, 4, dtype=torch.float64), similarity="euclidean")
    with pytest.raises(ConfigError, match="n_anchors"):
        choose_anchors(x, 31, generator=torch.Generator())
    with pytest.raises(ConfigError, match="5 different rows, got 2"):
        choose_anchors(torch.tensor([[0.0], [1.0]]).repeat(5, 1), 5, method="farthest", generator=torch.Generator())
    with pytest.raises(ConfigError, match="similarities must not be empty"):
        relative_product(x, x[:3], similarities=())
    with pytest.raises(ConfigError, match="same width"):
        zero_shot_stitching(x, x[:, :2], labels, train=torch.arange(9))
    with pytest.raises(ConfigError, match="same width"):
        zero_shot_stitching(x, x, labels[:-1], train=torch.arange(9))
    with pytest.raises(ConfigError, match="leave a test row"):
        zero_shot_stitching(x, x, labels, train=torch.arange(30))
    with pytest.raises(ConfigError, match="hold 2 classes"):
        zero_shot_stitching(x, x, torch.zeros(30, dtype=torch.int64), train=torch.arange(9))
