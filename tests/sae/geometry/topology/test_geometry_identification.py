"""Regions recognised by their RDM: planted regions, chance, and a two-factor bootstrap."""

import pytest
import torch
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import rdm, square_form, upper_triangle
from sae.geometry.topology import (
    RdmSummaryConfig,
    bootstrap_identification,
    compare_identification,
    geotopological_transform,
    identification_accuracy,
    summarised,
)


def draws(n_subjects, n_regions, n_pairs, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(n_regions, n_pairs, generator=generator, dtype=torch.float64)
    return (base + noise * torch.randn(n_subjects, n_regions, n_pairs, generator=generator, dtype=torch.float64)).abs()


def slow_accuracy(rdms):
    right = 0
    for subject in range(len(rdms)):
        others = rdms[[s for s in range(len(rdms)) if s != subject]].mean(dim=0)
        for region in range(rdms.shape[1]):
            likeness = [float(torch.corrcoef(torch.stack([rdms[subject, region], other]))[0, 1]) for other in others]
            right += likeness.index(max(likeness)) == region
    return right / (len(rdms) * rdms.shape[1])


@pytest.mark.parametrize("noise", [0.05, 0.6, 1.5])
def test_accuracy_is_the_definition_written_out(noise):
    rdms = draws(5, 4, 21, noise, 0)
    assert identification_accuracy(rdms) == pytest.approx(slow_accuracy(rdms))


def test_clear_regions_are_always_recognised_and_noise_lowers_it_to_chance():
    found = [identification_accuracy(draws(6, 5, 45, noise, 1)) for noise in (0.01, 0.6, 1.2, 50.0)]
    assert found[0] == 1.0 and found == sorted(found, reverse=True)
    chance = [identification_accuracy(draws(4, 5, 45, 1e6, seed)) for seed in range(60)]
    assert sum(chance) / 60 == pytest.approx(0.2, abs=0.04)


def test_the_null_shuffles_regions_within_each_subject():
    found = compare_identification(draws(6, 4, 45, 0.2, 2), n_null=99, generator=torch.Generator().manual_seed(0))
    assert found.value == 1.0 and found.p_greater == 0.01 and found.null_mean == pytest.approx(0.25, abs=0.08)


def test_p_values_of_identification_are_calibrated(unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        rdms = torch.rand(6, 6, 28, generator=generator, dtype=torch.float64)
        null = compare_identification(rdms, n_null=19, generator=generator)
        ties = max(0.0, null.p_greater + null.p_less - 1 - 1 / 20)  # an accuracy is a count: ties are broken at random
        return null.p_greater - ties * torch.rand((), generator=generator).item()

    check_calibrated(p, n_draws=100)


def test_the_interval_holds_the_accuracy_narrows_with_subjects_and_follows_the_seed():
    few, many = draws(4, 4, 66, 0.9, 3), draws(24, 4, 66, 0.9, 3)
    found = [bootstrap_identification(each, n_bootstrap=60, generator=torch.Generator().manual_seed(0)) for each in (few, many)]
    for each, rdms in zip(found, (few, many), strict=True):
        assert each.accuracy == identification_accuracy(rdms) and each.chance == 0.25
        assert each.low <= each.high
    assert found[1].high - found[1].low < found[0].high - found[0].low
    assert found[1] == bootstrap_identification(many, n_bootstrap=60, generator=torch.Generator().manual_seed(0))


def test_copies_of_a_subject_are_left_out_together():
    """Subjects without anything in common: a copy in the training set would be recognised every time."""
    generator = torch.Generator().manual_seed(4)
    rdms = torch.rand(5, 6, 105, generator=generator, dtype=torch.float64)
    found = bootstrap_identification(rdms, n_bootstrap=80, generator=generator)
    assert found.low < 1 / 6 < found.high < 0.6


def test_stimuli_drawn_twice_add_no_pair_of_distance_zero():
    """RDMs that are equal in all regions but for one stimulus: with that one gone, the regions cannot be told apart."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    same = torch.stack([torch.stack([rdm(x, distance="euclidean")] * 3) + 1e-9 * r for r in range(4)])
    regions = same.clone()
    for region in range(3):
        square = square_form(regions[0, region])
        square[0, 1:] += 5.0 * torch.randn(7, generator=torch.Generator().manual_seed(region), dtype=torch.float64).abs()
        square[1:, 0] = square[0, 1:]
        regions[:, region] = upper_triangle(square)
    found = bootstrap_identification(regions, n_bootstrap=60, generator=torch.Generator().manual_seed(1))
    assert found.accuracy == 1.0 and found.low == pytest.approx(1 / 3)


def test_the_transform_is_that_of_each_rdm_by_itself():
    rdms = draws(3, 2, 28, 0.3, 6)
    summary = RdmSummaryConfig(lower=0.1, upper=0.7)
    found = summarised(rdms * torch.tensor([1.0, 10, 100])[:, None, None], summary)
    for subject in range(3):
        for region in range(2):
            assert torch.equal(found[subject, region], geotopological_transform(rdms[subject, region], lower=0.1, upper=0.7))
    whole = bootstrap_identification(rdms, summary=summary, n_bootstrap=5, generator=torch.Generator().manual_seed(0))
    assert whole.accuracy == identification_accuracy(summarised(rdms, summary))


def test_bad_rdms_are_refused_with_a_reason():
    rdms = draws(3, 2, 28, 0.3, 7)
    for bad in (rdms[:1], rdms[:, :1], rdms[:, :, :2]):
        with pytest.raises(ConfigError, match="at least 2 subjects, 2 regions and 3 pairs"):
            identification_accuracy(bad)
    with pytest.raises(ConfigError, match="finite"):
        identification_accuracy(rdms / 0)
    with pytest.raises(ConfigError, match="vary over its pairs"):
        identification_accuracy(torch.ones(3, 2, 28))
    with pytest.raises(ConfigError, match="n_bootstrap"):
        bootstrap_identification(rdms, n_bootstrap=1, generator=torch.Generator())
