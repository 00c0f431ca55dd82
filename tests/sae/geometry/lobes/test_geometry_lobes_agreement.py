"""Agreement, classifier control and locality of lobes against scikit-learn, planted structure, confounds, and their nulls."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score, balanced_accuracy_score
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry.coactivation import firings
from sae.geometry.lobes import (
    compare_agreement,
    compare_agreement_with_geometry,
    compare_locality,
    compare_predictability,
    control,
    frequency_strata,
    lobe_activity,
    lobes_of_kinds,
    sweep_agreement,
    winning_lobes,
)
from sae.geometry.similarity import nearest_atoms


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def labels(n, n_labels, seed):
    return torch.randint(n_labels, (n,), generator=seeded(seed))


def test_agreement_is_scikit_learns_also_for_permuted_labels():
    a, b = labels(80, 5, 0), labels(80, 3, 1)
    b[:60] = a[:60] % 3
    found = compare_agreement(a, b, n_null=200, generator=seeded(2))
    assert found.value == pytest.approx(adjusted_mutual_info_score(a, b))
    draws = [adjusted_mutual_info_score(a, b[torch.randperm(80, generator=seeded(s))]) for s in range(200)]
    assert found.null_mean == pytest.approx(np.mean(draws), abs=3 * np.std(draws) / 10)
    assert found.null_sd == pytest.approx(np.std(draws), rel=0.3)
    assert found.p_greater == pytest.approx(1 / 201)


def test_agreement_does_not_depend_on_the_names_or_order_and_is_one_for_the_same_partition():
    a, b = labels(60, 4, 0), labels(60, 4, 1)
    values = [
        compare_agreement(*each, n_null=2, generator=seeded(0)).value for each in ((a, b), (b, a), (3 - a, b * 7), (a.flip(0), b.flip(0)))
    ]
    assert values == pytest.approx([values[0]] * 4)
    assert compare_agreement(a, 3 - a, n_null=2, generator=seeded(0)).value == pytest.approx(1)


def test_unlabelled_latents_are_left_out():
    a, b = labels(60, 4, 0), labels(60, 4, 1)
    gaps = a.clone()
    gaps[::7] = -1
    expected = adjusted_mutual_info_score(a[gaps >= 0], b[gaps >= 0])
    assert compare_agreement(gaps, b, n_null=2, generator=seeded(0)).value == pytest.approx(expected)
    assert compare_agreement(b, gaps, n_null=2, generator=seeded(0)).value == pytest.approx(expected)


def test_one_cluster_agrees_with_nothing():
    found = compare_agreement(torch.zeros(20, dtype=torch.int64), labels(20, 3, 0), n_null=3, generator=seeded(0))
    assert found.value == 0 and found.p_greater == 1


def test_p_values_of_unrelated_partitions_are_uniform():
    check_calibrated(lambda s: compare_agreement(labels(70, 4, s), labels(70, 5, 1000 + s), n_null=19, generator=seeded(s)).p_greater)


def test_agreement_through_frequency_alone_stands_out_only_from_the_null_that_ignores_it():
    firing = torch.randint(1, 10_000, (400,), generator=seeded(0))
    strata = frequency_strata(firing, n_strata=10)
    noise = torch.rand(2, 400, generator=seeded(1))
    a, b = ((strata.double() / 10 + each > 1).long() for each in noise)  # both follow the frequency, and nothing else
    assert compare_agreement(a, b, n_null=99, generator=seeded(2)).p_greater == pytest.approx(0.01)
    assert compare_agreement(a, b, n_null=99, generator=seeded(2), strata=strata).p_greater > 0.05
    assert strata.bincount().tolist() == [40] * 10
    assert (firing[strata == 0].max() <= firing[strata == 1].min()).item()


def test_sweep_reports_the_best_number_and_searches_in_the_null_too():
    truth = labels(120, 4, 0)
    noisy = truth.where(torch.rand(120, generator=seeded(1)) < 0.8, labels(120, 4, 2))
    first = {n: labels(120, n, 10 + n) for n in (2, 8, 16)} | {4: truth}
    second = {n: labels(120, n, 20 + n) for n in (2, 8, 16)} | {4: noisy}
    found = sweep_agreement(first, second, n_null=49, generator=seeded(3))
    assert found.n_lobes.tolist() == [2, 4, 8, 16] and found.best_n_lobes == 4
    assert found.best.value == pytest.approx(adjusted_mutual_info_score(truth, noisy)) and found.best.p_greater == pytest.approx(1 / 50)
    assert found.best.null_mean > found.agreement.null_mean.max()


def test_p_values_of_the_best_number_are_uniform_without_an_effect():
    def p(seed):
        first, second = ({n: labels(40, n, 7919 * seed + 100 * half + n) for n in (2, 3, 5)} for half in (1, 2))
        return sweep_agreement(first, second, n_null=19, generator=seeded(seed)).best.p_greater

    check_calibrated(p, n_draws=120)


def placed_lobes(n=160, d=12, gap=1.5, seed=0):
    lobe = torch.arange(n) % 2
    atoms = torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)
    atoms[:, 0] += gap * (2 * lobe - 1)
    return atoms, lobe


@pytest.mark.parametrize("null", ["directions", "covariance"])
def test_lobes_that_are_places_agree_with_cosine_clusters_more_than_structureless_atoms(null):
    atoms, lobe = placed_lobes(gap=2.5)
    found = compare_agreement_with_geometry(lobe, atoms, n_lobes=2, null=null, n_null=19, generator=seeded(1), seed=0)
    assert found.value > 0.5 > found.null_mean + 0.3 and found.p_greater == pytest.approx(1 / 20)


@pytest.mark.parametrize("null", ["labels", "directions", "covariance"])
def test_classifier_reads_lobes_that_are_places_and_not_lobes_that_are_not(null):
    atoms, lobe = placed_lobes()
    found = compare_predictability(atoms, lobe, null=null, n_null=19, generator=seeded(1))
    assert found.value > 0.75 and found.p_greater == pytest.approx(1 / 20) and abs(found.null_mean - 0.5) < 0.1
    elsewhere = compare_predictability(atoms, labels(160, 2, 11), null=null, n_null=19, generator=seeded(1))
    assert elsewhere.p_greater > 0.05


def test_classifier_leaves_out_unlabelled_latents_and_scores_each_lobe_alike():
    atoms, _ = placed_lobes(n=200, gap=0.0)
    rare = (torch.arange(200) < 20).long()
    atoms[:20, 3] += 6
    found = compare_predictability(atoms, rare, null="labels", n_null=9, generator=seeded(0))
    assert found.value > 0.8 and abs(found.null_mean - 0.5) < 0.2  # the larger lobe alone would give 0.9 correct, and 0.5 balanced
    gaps = torch.cat([rare, torch.full((30,), -1)])
    with_gaps = compare_predictability(torch.cat([atoms, atoms[:30]]), gaps, null="labels", n_null=2, generator=seeded(0))
    assert with_gaps.value == pytest.approx(compare_predictability(atoms, rare, null="labels", n_null=2, generator=seeded(0)).value)


def test_a_fifth_of_every_lobe_is_held_out_at_least_one_and_never_all():
    y = np.repeat([0, 1, 2, 3], [100, 20, 3, 2])
    test = control._held_out(y, seeded(0))
    assert [int(test[y == lobe].sum()) for lobe in range(4)] == [20, 4, 1, 1]
    assert not np.array_equal(test, control._held_out(y, seeded(1)))


def test_the_score_is_the_balanced_accuracy_of_scikit_learn_on_what_is_held_out():
    atoms, _ = placed_lobes(n=200, gap=0.0)
    y = (torch.arange(200) < 40).long().numpy()
    atoms[:40, 3] += 1.5
    rows = atoms / atoms.norm(dim=1, keepdim=True)
    test = control._held_out(y, seeded(0))
    x = rows.numpy() * 12**0.5
    found = LogisticRegression(max_iter=500, class_weight="balanced").fit(x[~test], y[~test]).predict(x[test])
    value = control._balanced_accuracy(rows, y, test, 500)
    assert value == pytest.approx(balanced_accuracy_score(y[test], found)) and value != pytest.approx((found == y[test]).mean(), abs=1e-3)


def test_locality_is_the_share_of_neighbours_in_the_lobe_and_chance_the_sum_of_squared_shares():
    atoms, lobe = placed_lobes(n=300)
    ids = nearest_atoms(atoms, n_neighbours=5).atom_ids
    found = compare_locality(ids, lobe, n_null=99, generator=seeded(0))
    assert found.value == pytest.approx(np.mean([lobe[i] == lobe[j] for i in range(300) for j in ids[i]]))
    assert found.p_greater == pytest.approx(0.01) and found.null_mean == pytest.approx(0.5, abs=0.02)
    uneven = torch.arange(300) % 10 // 7  # shares .7 and .3
    assert compare_locality(ids, uneven, n_null=99, generator=seeded(1)).null_mean == pytest.approx(0.58, abs=0.02)


def test_p_values_of_locality_are_uniform_without_places_and_frequency_is_held_in_strata():
    atoms, _ = placed_lobes(n=80)
    ids = nearest_atoms(atoms, n_neighbours=3).atom_ids
    check_calibrated(lambda s: compare_locality(ids, labels(80, 3, s), n_null=19, generator=seeded(s)).p_greater, n_draws=120)
    strata = (atoms[:, 0] > 0).long()
    found = compare_locality(ids, strata, n_null=9, generator=seeded(0), strata=strata)
    assert found.null_sd < 1e-12 and found.p_greater == 1


def test_winning_lobe_is_that_with_the_largest_share_of_its_latents():
    indices = torch.tensor([[0, 1, 5], [4, 0, 0], [0, 0, 0], [0, 1, 2], [6, 0, 0]])
    fired = firings(indices, torch.tensor([3, 1, 0, 3, 1]), n_latents=7)
    lobe = torch.tensor([0, 0, 0, 0, 1, 1, -1])
    assert lobe_activity(fired, lobe, n_lobes=2).tolist() == [[0.5, 0.5], [0, 0.5], [0, 0], [0.75, 0], [0, 0]]
    winners = winning_lobes(fired, lobe, n_lobes=2)
    assert winners.tolist() == [0, 1, -1, 0, -1]
    assert lobes_of_kinds(winners, torch.tensor([0, 1, 1, 1, 2]), n_lobes=2).tolist() == [[1, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_agreement(labels(5, 2, 0), labels(6, 2, 0), n_null=2, generator=seeded(0)), "of one length"),
        (lambda: compare_agreement(-torch.ones(5).long(), labels(5, 2, 0), n_null=2, generator=seeded(0)), "at least 2 latents"),
        (lambda: sweep_agreement({2: labels(5, 2, 0)}, {3: labels(5, 2, 0)}, n_null=2, generator=seeded(0)), "in common"),
        (lambda: frequency_strata(torch.ones(3).long(), n_strata=4), "n_strata must be in"),
        (lambda: compare_locality(torch.full((3, 1), -1), labels(3, 2, 0), n_null=2, generator=seeded(0)), "both have a lobe"),
        (lambda: compare_locality(torch.full((3, 1), 3), labels(3, 2, 0), n_null=2, generator=seeded(0)), "neighbour_ids must be in"),
        (lambda: compare_predictability(torch.eye(4), labels(3, 2, 0), null="labels", n_null=2, generator=seeded(0)), "one label for each"),
        (
            lambda: compare_predictability(torch.eye(4), torch.zeros(4).long(), null="labels", n_null=2, generator=seeded(0)),
            "lobes must be at least 2",
        ),
        (lambda: lobes_of_kinds(labels(3, 2, 0), labels(4, 2, 0), n_lobes=2), "kinds must be"),
    ],
)
def test_bad_input_of_agreement_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
