"""Geo-topological RDMs: the example of the definition, invariance to monotone maps, special cases, and tRSA."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import Rsa, compare_representations, rdm, rdm_similarity
from sae.geometry.topology import (
    RdmSummaryConfig,
    TopologicalRsa,
    geotopological_transform,
    rank_transform,
    sigmoid_transform,
    summary_family,
    summary_grid,
    trsa_similarity,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dissimilarities(n, seed):
    return normal(n, 1, seed).flatten().exp()


def test_the_example_of_the_definition():
    values = torch.tensor([1, 2, 3, 1.5, 2.5, 1.2])
    assert geotopological_transform(values, lower=0.2, upper=0.8).tolist() == pytest.approx([0, 2 / 3, 1, 1 / 3, 1, 0], abs=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (0.2, 0.8), (0.05, 0.3), (0.6, 0.95)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_transform_is_numpy_quantiles_of_scipy_ranks(lower, upper, ties):
    values = dissimilarities(66, 0)
    values = (4 * values).round() if ties else values
    ranks = stats.rankdata(values.numpy())
    x = (ranks - ranks.min()) / (ranks.max() - ranks.min())
    low, high = np.quantile(x, lower), np.quantile(x, upper)
    expected = np.clip((x - low) / (high - low), 0, 1) if high > low else (x > low).astype(float)
    assert geotopological_transform(values, lower=lower, upper=upper).tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_only_the_order_of_dissimilarities_matters():
    values = dissimilarities(45, 1)
    for moved in (values**3, values.log(), 1000 * values + 7):
        for lower, upper in ((0.2, 0.8), (0.5, 0.5), (0.0, 1.0)):
            own = geotopological_transform(values, lower=lower, upper=upper)
            assert torch.equal(geotopological_transform(moved, lower=lower, upper=upper), own)


def test_the_ends_of_the_family_are_the_rank_rdm_and_a_step():
    values = dissimilarities(55, 2)
    assert torch.equal(geotopological_transform(values, lower=0.0, upper=1.0), rank_transform(values))
    step = geotopological_transform(values, lower=0.3, upper=0.3)
    assert torch.equal(step, (values > values.quantile(0.3)).double())
    assert geotopological_transform(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), lower=0.5, upper=0.5).tolist() == [
        1,
        0,
        1,
        0,
        0,
    ]  # not at the median
    assert set(step.tolist()) == {0.0, 1.0} and float(step.mean()) == pytest.approx(0.7, abs=0.02)


def test_the_sigmoid_is_a_soft_step_of_the_ranks():
    values = dissimilarities(40, 3)
    x = rank_transform(values)
    assert sigmoid_transform(values).tolist() == pytest.approx([1 / (1 + math.exp(-10 * (v - 0.5))) for v in x.tolist()], abs=1e-12)
    assert torch.allclose(sigmoid_transform(values, slope=1e6), (x > 0.5).double())


def test_summaries_of_each_family_lie_where_their_name_says():
    assert all(s.sensitivity >= 0.5 for s in summary_family("geometry"))
    assert all(s.sensitivity == 0 for s in summary_family("topology"))
    assert all(s.lower == 0 and s.upper <= 0.5 for s in summary_family("local"))
    assert all(s.upper == 1 and s.lower >= 0.5 for s in summary_family("global"))
    assert all(0.1 < s.lower < s.upper < 0.9 for s in summary_family("intermediate"))
    assert [len(summary_family("local", n=n)) for n in (1, 4)] == [1, 4]
    assert summary_family("geometry", n=1) == [RdmSummaryConfig(lower=0.0, upper=1.0)]
    grid = summary_grid(6)
    assert len(grid) == 21 - 2 and len({(s.lower, s.upper) for s in grid}) == 19
    values = dissimilarities(45, 4)
    for summary in grid:
        found = geotopological_transform(values, lower=summary.lower, upper=summary.upper)
        assert found.min() == 0 and found.max() == 1


def test_trsa_compares_transformed_rdms_also_of_permuted_stimuli():
    x, y = normal(30, 4, 5), normal(30, 4, 5) + 0.7 * normal(30, 4, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for comparison in ("spearman", "pearson", "cosine"):
        measure = TopologicalRsa(0.1, 0.6, comparison=comparison)
        for second, permutation in ((y, None), (y[order], order)):
            transformed = (geotopological_transform(rdm(each, distance="euclidean"), lower=0.1, upper=0.6) for each in (x, second))
            expected = rdm_similarity(*transformed, comparison=comparison)
            assert measure.score(measure.prepare(x), measure.prepare(y), permutation) == pytest.approx(expected, abs=1e-12)
    summary = RdmSummaryConfig(lower=0.1, upper=0.6)
    first, second = rdm(x, distance="euclidean"), rdm(y, distance="euclidean")
    assert trsa_similarity(first, second, summary) == pytest.approx(TopologicalRsa(0.1, 0.6)(x, y), abs=1e-12)
    assert TopologicalRsa(0.0, 1.0)(x, y) == pytest.approx(Rsa("euclidean", "spearman")(x, y), abs=1e-12)


def test_topology_survives_a_distortion_of_large_distances_that_breaks_geometry():
    generator = torch.Generator().manual_seed(7)
    centres = 10 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 6
    jitter = normal(60, 3, 8)
    x = centres[labels] + jitter
    y = 10 * torch.randn(6, 3, generator=generator, dtype=torch.float64)[labels] + jitter  # the same clusters, elsewhere
    geometry, topology = Rsa("euclidean", "pearson")(x, y), TopologicalRsa(0.14, 0.17)(x, y)
    assert topology > 0.9 and geometry < 0.6


def test_p_values_of_trsa_are_calibrated(unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        x, y = normal(14, 3, seed), normal(14, 4, 1000 + seed)
        return compare_representations(TopologicalRsa(), x, y, n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=120)


MEASURES = [
    Measure("tRSA", lambda x, y: TopologicalRsa()(x, y), rotation=True, scale=True, translation=True, linear=False, pair=True,
            single_tolerance=1e-3),
    Measure("transformed RDM", lambda x: geotopological_transform(rdm(x, distance="euclidean")).square().mean() +
            geotopological_transform(rdm(x, distance="euclidean"))[0], rotation=True, scale=True, translation=True, linear=False,
            permutation=None, single_tolerance=1e-3),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_topological_rdms_have_the_properties_of_their_definition(measure):
    check(measure)


def test_bad_input_is_refused_with_a_reason():
    values = dissimilarities(10, 9)
    for lower, upper in ((-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)):
        with pytest.raises(ConfigError, match="lower <= upper"):
            geotopological_transform(values, lower=lower, upper=upper)
    with pytest.raises(ConfigError, match="equal entries"):
        rank_transform(torch.ones(6))
    with pytest.raises(ConfigError, match="finite"):
        rank_transform(torch.tensor([1.0, float("nan"), 2.0]))
    with pytest.raises(ConfigError, match="at least 3"):
        rank_transform(torch.tensor([1.0, 2.0]))
    with pytest.raises(ConfigError, match="slope"):
        sigmoid_transform(values, slope=0.0)
    with pytest.raises(ConfigError, match="n must be at least"):
        summary_family("local", n=0)
    with pytest.raises(ConfigError, match="n must be at least 2"):
        summary_grid(1)
    with pytest.raises(ConfigError, match="comparison"):
        TopologicalRsa(comparison="kendall")(normal(9, 3, 1), normal(9, 3, 2))
    with pytest.raises(ConfigError, match="equal entries"):
        TopologicalRsa()(torch.eye(5), normal(5, 2, 3))
    with pytest.raises(ConfigError, match="same pairs"):
        trsa_similarity(values, values[:6], RdmSummaryConfig(lower=0.2, upper=0.8))
