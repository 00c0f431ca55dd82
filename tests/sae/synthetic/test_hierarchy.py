"""The tree of concepts has the geometry and the statistics that its definition says."""

import itertools
import math

import pytest
import torch

from sae.errors import ConfigError
from sae.synthetic.hierarchy import (
    CHILDREN,
    CONSTANT,
    COSINES,
    LEVELS,
    MEAN_L0,
    N_FEATURES,
    PARENTS,
    UNIT_PARENT,
    Amplitude,
    mix_for_cosine,
    tree_batches,
    tree_codes,
    tree_features,
)

PUBLISHED_PARENT_MIXES = (0, 0.3, 0.44, 0.529, 0.594, 0.6467, 0.692, 0.733, 0.7739)
PUBLISHED_CHILD_MIXES = (0, 0.0895, 0.163, 0.226, 0.282, 0.3335, 0.3825, 0.431, 0.482)


def test_features_are_numbered_parent_first_and_every_feature_is_a_parent_or_a_child():
    children = list(itertools.chain(*CHILDREN.values()))
    assert sorted([*PARENTS, *children]) == list(range(N_FEATURES))
    assert all(group == (parent + 1, parent + 2, parent + 3) for parent, group in CHILDREN.items())
    assert [feature for feature in range(N_FEATURES) if LEVELS[feature]] == children


@pytest.mark.parametrize(("n", "published"), [(11, PUBLISHED_PARENT_MIXES), (3, PUBLISHED_CHILD_MIXES)])
def test_mixes_are_the_published_ones_for_every_cosine(n, published):
    assert [mix_for_cosine(cosine, n) for cosine in COSINES] == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("n", [2, 3, 11, 200])
def test_mixing_an_orthonormal_group_gives_every_pair_the_cosine_that_was_asked_for(n):
    draw = torch.Generator().manual_seed(n)
    for cosine in (0.0, 1.0, *torch.rand(5, generator=draw, dtype=torch.float64).tolist()):
        mix = mix_for_cosine(cosine, n)
        mixed = (1 - mix) * torch.eye(n, dtype=torch.float64) + mix / (n - 1) * (1 - torch.eye(n, dtype=torch.float64))
        gram = torch.nn.functional.normalize(mixed, dim=1) @ torch.nn.functional.normalize(mixed, dim=1).T
        expected = torch.full((n, n), cosine, dtype=torch.float64).fill_diagonal_(1.0)
        assert torch.allclose(gram, expected, atol=1e-12)


@pytest.mark.parametrize(("cosine", "n"), [(-0.1, 3), (1.1, 3), (math.nan, 3), (0.5, 1)])
def test_mixes_are_refused_outside_their_range(cosine, n):
    with pytest.raises(ConfigError, match=r"must be (in 0\.\.1|at least 2)"):
        mix_for_cosine(cosine, n)


@pytest.mark.parametrize("cosine", COSINES)
def test_levels_have_the_cosine_within_and_are_orthogonal_to_each_other(cosine):
    features = tree_features(torch.Generator().manual_seed(1), parent_cosine=cosine, child_cosine=cosine).double()
    expected = torch.eye(N_FEATURES, dtype=torch.float64)
    for group in (PARENTS, *CHILDREN.values()):
        for i, j in itertools.permutations(group, 2):
            expected[i, j] = cosine
    assert torch.allclose(features @ features.T, expected, atol=2e-6)


def test_parents_and_children_can_have_different_cosines():
    features = tree_features(torch.Generator().manual_seed(2), parent_cosine=0.6, child_cosine=0.3)
    gram = features @ features.T
    assert float(gram[0, 19]) == pytest.approx(0.6, abs=1e-5)
    assert float(gram[9, 11]) == pytest.approx(0.3, abs=1e-5)
    assert float(gram[1, 5]) == pytest.approx(0, abs=1e-5)


def test_features_are_drawn_from_the_generator_alone():
    first, again, other = (tree_features(torch.Generator().manual_seed(seed), parent_cosine=0.4) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    # Two independent bases: 400 cosines of mean square 1/20.
    assert float((first @ other.T).square().mean()) == pytest.approx(1 / 20, abs=0.01)


def test_the_tree_has_one_parent_and_at_most_one_child_of_it():
    codes = tree_codes(40_000, torch.Generator().manual_seed(3))
    active = codes > 0
    assert (active[:, list(PARENTS)].sum(1) == 1).all()
    for parent, children in CHILDREN.items():
        own = active[:, list(children)]
        assert (own.sum(1) <= active[:, parent]).all()
        assert own[active[:, parent]].double().mean(0).tolist() == pytest.approx([0.2, 0.2, 0.2], abs=0.02)
        assert float(active[:, parent].double().mean()) == pytest.approx(0.2, abs=0.01)
    assert active[:, 12:].double().mean(0).tolist() == pytest.approx([0.05] * 8, abs=0.005)
    assert float(active.sum(1).double().mean()) == pytest.approx(MEAN_L0, abs=0.01)


def test_amplitudes_are_normal_and_independent_of_each_other():
    codes = tree_codes(60_000, torch.Generator().manual_seed(4))
    values = codes[codes != 0]
    assert float(values.mean()) == pytest.approx(1.5, abs=0.005)
    assert float(values.std()) == pytest.approx(0.25, abs=0.005)
    assert float(((values - 1.5) / 0.25).pow(4).mean()) == pytest.approx(3, abs=0.1)
    both = codes[codes[:, 1] != 0]
    assert abs(float(torch.corrcoef(both[:, [0, 1]].T)[0, 1])) < 4 / math.sqrt(len(both))


def test_parents_and_children_can_have_amplitudes_of_their_own():
    codes = tree_codes(40_000, torch.Generator().manual_seed(5), parent=UNIT_PARENT, child=Amplitude(0.5, 1 / 40))
    parents, children = codes[:, list(PARENTS)], codes[:, [c for group in CHILDREN.values() for c in group]]
    assert float(parents[parents != 0].mean()) == pytest.approx(1, abs=0.01)
    assert float(parents[parents != 0].std()) == pytest.approx(0.25, abs=0.01)
    assert float(children[children != 0].mean()) == pytest.approx(0.5, abs=0.002)
    assert float(children[children != 0].std()) == pytest.approx(1 / 40, abs=0.001)


def test_without_variance_every_active_value_is_the_same():
    codes = tree_codes(1000, torch.Generator().manual_seed(6), parent=CONSTANT, child=CONSTANT)
    assert set(codes.unique().tolist()) == {0.0, 1.5}


def test_batches_are_the_samples_of_the_generator_in_order_and_do_not_end():
    features = tree_features(torch.Generator().manual_seed(7), child_cosine=0.2)
    batches = list(itertools.islice(tree_batches(features, torch.Generator().manual_seed(8), batch_size=3, parent=UNIT_PARENT), 250))
    draw = torch.Generator().manual_seed(8)
    expected = torch.cat([tree_codes(300, draw, parent=UNIT_PARENT) for _ in range(3)]) @ features
    assert torch.allclose(torch.cat(batches), expected[:750], atol=1e-6)
