"""Feature splitting across sizes, and which latents come back."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry.atoms import (
    atom_pairs,
    composed,
    path_consistency,
    similarity_of_rows,
    splitting,
    stability_by_frequency,
    stability_curve,
    wilson_interval,
)
from sae.geometry.nulls import random_directions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def children_of(parents, n_each, spread, generator):
    """`n_each` atoms about each parent, in random order, and the parent of each."""
    owner = torch.arange(len(parents)).repeat_interleave(n_each)
    owner = owner[torch.randperm(len(owner), generator=generator)]
    return parents[owner] + spread * torch.randn(len(owner), parents.shape[1], generator=generator, dtype=torch.float64), owner


def planted_tree(seed=0, d=64):
    generator = seeded(seed)
    small = random_directions(16, torch.zeros(1, d, dtype=torch.float64), generator=generator)
    middle, upper = children_of(small, 2, 0.05, generator)
    large, lower = children_of(middle, 2, 0.02, generator)
    return small, middle, large, upper, lower


def test_planted_children_find_their_parents_and_the_split_factor_is_their_number():
    small, _, large, upper, lower = planted_tree()
    found = splitting(small, large)
    assert torch.equal(found.parents, upper[lower])
    assert found.counts.tolist() == [4] * 16
    assert (found.split_factor, found.childless, found.orphans) == (4, 0, 0)
    unrelated = random_directions(10, small, generator=seeded(9))
    more = splitting(small, torch.cat([large, unrelated]), minimum=0.6)
    assert more.parents[-10:].tolist() == [-1] * 10
    assert more.orphans == pytest.approx(10 / 74)
    lost = splitting(torch.cat([small, -small[:4]]), large, minimum=0.6)
    assert lost.childless == pytest.approx(4 / 20)
    assert lost.split_factor == 4


def test_parents_are_the_nearest_atoms_of_a_slow_search():
    generator = seeded(1)
    small, large = torch.randn(7, 5, generator=generator), torch.randn(40, 5, generator=generator)
    cosines = torch.nn.functional.cosine_similarity(large.double()[:, None], small.double()[None], dim=2)
    found = splitting(small, large, minimum=0.3, block_elements=11)
    expected = [int(row.argmax()) if row.max() >= 0.3 else -1 for row in cosines]
    assert found.parents.tolist() == expected
    assert found.counts.tolist() == [expected.count(i) for i in range(7)]
    torch.testing.assert_close(found.cosines.double(), cosines.max(dim=1).values, atol=1e-6, rtol=0)


def test_a_tree_is_consistent_and_stands_out_from_middle_dictionaries_without_relation():
    small, middle, large, _, _ = planted_tree(2)
    found = path_consistency(small, middle, large, n_null=39, generator=seeded())
    assert found.jaccards.tolist() == [1] * 16
    assert found.agreeing == 1
    assert found.mean.p_greater == pytest.approx(1 / 40)
    assert found.mean.null_mean < 0.8  # their covariance alone already says much


def test_consistency_is_the_jaccard_index_of_the_descendants_by_both_ways():
    generator = seeded(3)
    small, middle, large = (torch.randn(n, 4, generator=generator) for n in (6, 12, 50))
    found = path_consistency(small, middle, large, minimum=0.2, n_null=2, generator=generator)
    via = composed(splitting(middle, large, minimum=0.2).parents, splitting(small, middle, minimum=0.2).parents).tolist()
    direct = splitting(small, large, minimum=0.2).parents.tolist()
    for i in range(6):
        one, two = ({j for j in range(50) if ids[j] == i} for ids in (via, direct))
        expected = len(one & two) / len(one | two) if one | two else float("nan")
        assert found.jaccards[i].item() == pytest.approx(expected, nan_ok=True)
    both = [(a, b) for a, b in zip(via, direct, strict=True) if a >= 0 and b >= 0]
    assert found.agreeing == pytest.approx(np.mean([a == b for a, b in both]))


def test_p_values_of_levels_without_relation_are_uniform(unchecked):
    def p_value(seed):
        generator = seeded(seed)
        small, middle, large = (torch.randn(n, 5, generator=generator) for n in (4, 15, 60))
        return path_consistency(small, middle, large, null="random", n_null=9, generator=generator).mean.p_greater

    check_calibrated(p_value, n_draws=60)


def test_bad_input_of_splitting_is_refused():
    small, middle, large, _, _ = planted_tree()
    with pytest.raises(ConfigError, match="minimum must be a cosine"):
        splitting(small, large, minimum=2.0)
    with pytest.raises(ConfigError, match="lower must hold parents"):
        composed(torch.tensor([4]), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="some large atom must have a parent"):
        path_consistency(small, middle, -large, minimum=0.99, generator=seeded())
    with pytest.raises(ConfigError, match="no zero row"):
        splitting(small * 0, large)
    one = splitting(small[:1], large)
    assert one.counts.tolist() == [64]


def test_stability_curve_falls_from_all_to_none_and_counts_unpaired_latents():
    generator = seeded(4)
    a = random_directions(20, torch.zeros(1, 30), generator=generator)
    b = a[:12] + 0.1 * torch.randn(12, 30, generator=generator)
    values = similarity_of_rows(atom_pairs(a, b))
    assert (values == -1).sum() == 8
    thresholds = [-1.0, 0.0, 0.5, 0.9, 1.0]
    curve = stability_curve(values, thresholds)
    assert curve.tolist() == [float((values > t).double().mean()) for t in thresholds]
    assert (curve.diff() <= 0).all()
    assert curve[0] == pytest.approx(12 / 20)
    assert curve[-1] == 0
    assert len(stability_curve(values, [])) == 0


def test_stability_by_frequency_finds_a_planted_dependence_and_its_intervals():
    generator = seeded(5)
    frequencies = torch.logspace(-4, -1, 4000, dtype=torch.float64)
    chance = torch.linspace(0.1, 0.9, 4000, dtype=torch.float64)
    similarities = torch.where(torch.rand(4000, generator=generator, dtype=torch.float64) < chance, 0.9, 0.2)
    order = torch.randperm(4000, generator=generator)
    found = stability_by_frequency(similarities[order], frequencies[order], n_bins=8)
    assert found.counts.tolist() == [500] * 8
    expected = chance.reshape(8, 500).mean(dim=1)
    assert ((found.low < expected) & (expected < found.high)).sum() >= 7
    for share, low, high in zip(found.shares.tolist(), found.low.tolist(), found.high.tolist(), strict=True):
        interval = binomtest(round(share * 500), 500).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((interval.low, interval.high))


def test_frequencies_that_are_equal_share_a_bin_and_latents_that_never_fire_are_left_out():
    found = stability_by_frequency(torch.tensor([0.9, 0.1, 0.9, 0.9]), torch.tensor([0.5, 0.5, 0.5, 0.0]), n_bins=4)
    assert found.counts.tolist() == [3]
    assert found.shares.tolist() == pytest.approx([2 / 3])
    low, high = wilson_interval(torch.tensor([0.0]), torch.tensor([0]))
    assert low.isnan().all()
    assert high.isnan().all()


@pytest.mark.parametrize(
    ("similarities", "frequencies", "message"),
    [
        ([0.1, 0.2], [0.1], "one per latent"),
        ([0.1], [1.5], "divide firing counts"),
        ([0.1], [0.0], "positive for at least one"),
        ([float("nan")], [0.1], "no NaN"),
    ],
)
def test_bad_input_of_stability_is_refused(similarities, frequencies, message):
    with pytest.raises(ConfigError, match=message):
        stability_by_frequency(torch.tensor(similarities), torch.tensor(frequencies))
