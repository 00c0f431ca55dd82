"""Concept shift on planted shifts: matched exactly, and less consistent with more noise."""

import numpy as np
import pytest
from sklearn.base import clone

from probes.directions import ConceptShift, concept_shift_report
from probes.directions.shift import cosines, match
from sae.errors import ConfigError


def planted(noise=0.0, seed=0, n=400, d=30, k=5, gap=8.0):
    rng = np.random.default_rng(seed)
    centres, shifts = gap * rng.normal(size=(k, d)), 4 * rng.normal(size=(k, d))
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    h = centres[labels] + rng.normal(size=(n, d))
    return h, h + shifts[labels] + noise * rng.normal(size=(n, d)), labels, shifts


def test_planted_shifts_are_recovered_with_cosine_one_and_the_exact_assignment():
    h, tuned, labels, shifts = planted()
    fitted = ConceptShift(5, random_state=3).fit(h, tuned)
    report = concept_shift_report(fitted, h, tuned)
    np.testing.assert_allclose(report.cosine, 1, atol=1e-12)
    np.testing.assert_allclose(report.consistency, 1, atol=1e-12)
    np.testing.assert_allclose(report.overlap, 1)
    truth = [labels[fitted.labels_ == k][0] for k in range(5)]
    assert sorted(truth) == list(range(5))
    assert [labels[fitted.tuned_labels_ == m][0] for m in fitted.assignment_] == truth  # a permutation, and the right one
    np.testing.assert_allclose(fitted.shifts_, shifts[truth], atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(fitted.directions_, axis=1), 1)
    assert (report.recovery > 0.02).all()
    assert (report.cosine_null < 0.8).all()
    np.testing.assert_allclose(fitted.transform(h), tuned, atol=1e-9)


def test_noise_of_single_samples_lowers_consistency_and_cosine_step_by_step():
    consistency, cosine = [], []
    for noise in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0):
        found = []
        for seed in range(3):
            h, tuned, _, _ = planted(noise, seed, gap=2.0)
            report = concept_shift_report(ConceptShift(5).fit(h, tuned), h, tuned, n_shuffles=0)
            found.append((report.consistency.mean(), report.cosine.mean()))
        consistency.append(np.mean(found, axis=0)[0])
        cosine.append(np.mean(found, axis=0)[1])
    assert (np.diff(consistency) < 0).all()
    assert (np.diff(cosine) < 1e-9).all()
    assert cosine[0] > 1 - 1e-9 > 0.9 > cosine[-1]


def test_consistency_of_shifts_without_a_common_part_is_one_over_the_root_of_their_number():
    rng = np.random.default_rng(0)
    h, _, _, _ = planted(d=2000)
    tuned = h + rng.normal(size=h.shape)
    report = concept_shift_report(ConceptShift(5).fit(h, tuned), h, tuned, n_shuffles=0)
    np.testing.assert_allclose(report.consistency, 1 / np.sqrt(report.n_samples), rtol=0.1)


def test_a_model_that_did_not_change_has_no_shift():
    h, _, _, _ = planted()
    fitted = ConceptShift(5).fit(h, h)
    report = concept_shift_report(fitted, h, h, n_shuffles=2)
    assert not fitted.shifts_.any() and not fitted.directions_.any()
    np.testing.assert_allclose(report.recovery, 0, atol=1e-12)


def test_rotating_both_models_changes_nothing():
    h, tuned, _, _ = planted(3.0, gap=2.0)
    rotation = np.linalg.qr(np.random.default_rng(9).normal(size=(30, 30)))[0]
    before = concept_shift_report(ConceptShift(5).fit(h, tuned), h, tuned)
    after = concept_shift_report(ConceptShift(5).fit(h @ rotation, tuned @ rotation), h @ rotation, tuned @ rotation)
    np.testing.assert_allclose(np.sort(after.cosine), np.sort(before.cosine), atol=1e-6)
    np.testing.assert_allclose(np.sort(after.consistency), np.sort(before.consistency), atol=1e-6)


def test_matching_is_the_best_of_all_permutations():
    import itertools

    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    best = max(itertools.permutations(range(5)), key=lambda p: cosines(a, b)[np.arange(5), list(p)].sum())
    assert match(a, b).tolist() == list(best)
    assert cosines(np.zeros((1, 4)), b).tolist() == [[0] * 5]


def test_report_shows_a_row_per_concept_and_a_figure():
    h, tuned, _, _ = planted(1.0)
    report = concept_shift_report(ConceptShift(5).fit(h, tuned), h, tuned)
    assert len(report.table().rows) == 5
    assert sum(report.table().column("samples")) == 400
    assert len(report.figure().data) == 3
    assert clone(ConceptShift(7)).n_concepts == 7


@pytest.mark.parametrize(
    ("shift", "change", "message"),
    [
        (ConceptShift(5), lambda h, t: (h, t[:-1]), "one shape"),
        (ConceptShift(401), lambda h, t: (h, t), "at most 400"),
        (ConceptShift(3), lambda h, t: (np.tile(h[:2], (9, 1)), np.tile(t[:2], (9, 1))), "at most 2, the different rows of X"),
        (ConceptShift(0), lambda h, t: (h, t), "n_concepts must be an integer of at least 1"),
        (ConceptShift(5, n_init=0), lambda h, t: (h, t), "n_init"),
        (ConceptShift(5), lambda h, t: (np.where(h > 0, np.nan, h), t), "NaN"),
        (ConceptShift(5), lambda h, t: (h, np.where(t > 0, np.inf, t)), "infinity"),
    ],
)
def test_samples_that_do_not_fit_are_refused(shift, change, message):
    h, tuned, _, _ = planted()
    with pytest.raises(ValueError, match=message):
        shift.fit(*change(h, tuned))


def test_other_samples_than_those_of_fit_are_refused():
    h, tuned, _, _ = planted()
    fitted = ConceptShift(5).fit(h, tuned)
    with pytest.raises(ConfigError, match="400 samples of fit"):
        concept_shift_report(fitted, h[:-1], tuned[:-1])
    with pytest.raises(ConfigError, match="30 columns"):
        fitted.predict(h[:, :4])
