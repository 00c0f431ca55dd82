"""Splits of every regime: sizes, shares, disjoint documents, exact counts of wrong labels, determinism."""

from itertools import pairwise

import numpy as np
import pytest

from probes.regimes import NOISE, SHARES, SIZES, imbalance_splits, noise_splits, normal_split, scarce_splits, shift_splits
from sae.errors import ConfigError


def labels(n=1600, share=0.4, seed=0, rows=4):
    rng = np.random.default_rng(seed)
    return (rng.random(n) < share).astype(int), rng.permutation(np.arange(n) // rows)


def every_regime(y, groups):
    shifted = np.random.default_rng(1).random(y.shape[0] if groups is None else groups.max() + 1) < 0.2
    shifted = shifted if groups is None else shifted[groups]
    return [
        normal_split(y, groups, n_train=400),
        *scarce_splits(y, groups, sizes=[2, 3, 64, 401]),
        *imbalance_splits(y, groups, shares=[0.1, 0.5, 0.85], n_train=200),
        *noise_splits(y, groups, n_train=300),
        *shift_splits(y, shifted, groups, n_train=300),
    ]


@pytest.mark.parametrize("grouped", [False, True])
def test_training_and_test_rows_share_no_document_and_hold_no_row_twice(grouped):
    y, groups = labels()
    for split in every_regime(y, groups if grouped else None):
        assert len(set(split.train)) == len(split.train) == len(split.y_train)
        assert len(set(split.test)) == len(split.test) > 50
        assert not set(split.train) & set(split.test)
        if grouped:
            assert not set(groups[split.train]) & set(groups[split.test])
        if split.regime != "noise":
            assert split.y_train.tolist() == y[split.train].tolist()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_same_seed_gives_the_same_rows_and_another_gives_others(grouped):
    y, groups = labels()
    groups = groups if grouped else None
    first, again = every_regime(y, groups), every_regime(y.astype(bool), groups)
    for one, two in zip(first, again, strict=True):
        assert one.train.tolist() == two.train.tolist()
        assert one.y_train.tolist() == two.y_train.tolist()
        assert one.test.tolist() == two.test.tolist()
    assert normal_split(y, groups, seed=1).train.tolist() != normal_split(y, groups, seed=2).train.tolist()


@pytest.mark.parametrize(("n", "share", "n_train"), [(3000, 0.5, 1024), (600, 0.4, None), (150, 0.5, None)])
def test_the_normal_regime_is_balanced_and_keeps_a_hundred_rows_to_test_on(n, share, n_train):
    y, _ = labels(n, share)
    split = normal_split(y)
    size = 2 * min(y.sum(), n - y.sum())
    assert len(split.train) == (n_train or size - 100)
    assert abs(split.y_train.sum() - len(split.train) / 2) <= 1
    assert abs(y[split.test].sum() - len(split.test) / 2) <= 1
    assert len(split.test) in (size - len(split.train), size - len(split.train) - 1)
    assert np.ptp(np.diff(split.train)) > 10  # in random order: the last rows are a fair sample
    assert split.test.tolist() == sorted(split.test)


def test_scarce_training_rows_are_nested_balanced_and_tested_on_the_same_rows():
    y, groups = labels(3000, 0.5)
    splits = scarce_splits(y, groups)
    assert len(SIZES) == 20
    assert (SIZES[0], SIZES[-1]) == (2, 1024)
    np.testing.assert_allclose(np.diff(np.log2(SIZES)), 9 / 19, atol=0.3)
    assert [split.value for split in splits] == [len(split.train) for split in splits] == [float(n) for n in SIZES]
    for small, large in pairwise(splits):
        assert set(small.train) < set(large.train)
        assert small.test.tolist() == large.test.tolist()
        assert abs(small.y_train.sum() - len(small.train) / 2) <= 0.5
    assert [s.value for s in scarce_splits(*labels(300, 0.5))] == [n for n in SIZES if n <= 2 * min(np.bincount(labels(300, 0.5)[0])) - 100]


def test_imbalance_changes_the_share_on_both_sides_and_nothing_else():
    y, groups = labels(3000, 0.5)
    for given in (None, groups):
        splits = imbalance_splits(y, given)
        assert [split.value for split in splits] == list(SHARES)
        assert (SHARES[0], SHARES[-1], len(SHARES)) == (0.05, 0.95, 19)
        assert len({len(split.train) for split in splits}) == len({len(split.test) for split in splits}) == 1
        for split in splits:
            assert abs(split.y_train.sum() - split.value * len(split.train)) <= 1
            assert abs(y[split.test].sum() - split.value * len(split.test)) <= 1


def test_noise_turns_over_exactly_the_asked_number_of_training_labels():
    y, groups = labels()
    splits = noise_splits(y, groups, n_train=333)
    assert (NOISE[0], NOISE[-1], len(NOISE)) == (0.0, 0.5, 11)
    before = set()
    for split in splits:
        wrong = set(split.train[split.y_train != y[split.train]].tolist())
        assert len(wrong) == round(split.value * 333)
        assert before <= wrong
        assert split.train.tolist() == splits[0].train.tolist()
        assert split.test.tolist() == splits[0].test.tolist()
        before = wrong
    assert len(splits[-1].train[-66:][splits[-1].y_train[-66:] != y[splits[-1].train[-66:]]]) > 15  # those to validate on too


def test_shift_trains_on_one_source_and_tests_on_both():
    y, groups = labels()
    shifted = groups < 150
    own, other = shift_splits(y, shifted, groups, n_train=400)
    assert own.train.tolist() == other.train.tolist()
    assert not shifted[own.train].any()
    assert not shifted[own.test].any()
    assert shifted[other.test].all()
    assert (own.value, other.value, len(other.test)) == (0.0, 1.0, 300)
    assert y[other.test].sum() == 150


def test_documents_larger_than_what_is_needed_are_left_whole():
    groups = np.repeat(np.arange(10), 100)
    y = np.arange(1000) % 2
    split = normal_split(y, groups, n_train=60)
    assert len(set(groups[split.train])) == 1
    assert len(split.test) == 900


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y, g: normal_split(y + 1), ["y must hold 0 and 1", "[1, 2]"]),
        (lambda y, g: normal_split(0 * y), ["both classes", "1600 of class 0 and 0 of class 1"]),
        (lambda y, g: normal_split(y, g[:3]), ["one entry per label", "got 3 for 1600"]),
        (lambda y, g: normal_split(y[:90]), ["label more rows", "rows of class 0"]),
        (lambda y, g: normal_split(y, n_train=1500), ["750 and 750", "smaller n_train"]),
        (lambda y, g: normal_split(y, n_train=1), ["smaller n_train"]),
        (lambda y, g: normal_split(y, positive_share=1.0), ["positive_share", "1.0"]),
        (lambda y, g: normal_split(y, 0 * g, n_train=100), ["documents of both classes", "0 rows of class 0", "100 training rows"]),
        (lambda y, g: normal_split(y, y, n_train=100), ["documents of both classes"]),
        (lambda y, g: scarce_splits(y, sizes=[1, 5]), ["at least 2", "[1, 5]"]),
        (lambda y, g: scarce_splits(y[:50]), ["at least 2", "0 balanced rows"]),
        (lambda y, g: imbalance_splits(y, shares=[0.0]), ["(0, 1)", "[0.0]"]),
        (lambda y, g: imbalance_splits(y[:100]), ["positive share of 0.05"]),
        (lambda y, g: noise_splits(y, shares=[1.5]), ["0..1", "[1.5]"]),
        (lambda y, g: shift_splits(y, g[:5] < 1), ["one entry per label", "got 5"]),
        (lambda y, g: shift_splits(y, np.arange(1600) < 800, g), ["one source each", "shifted rows and others"]),
        (lambda y, g: shift_splits(y, y == 1, None), ["shifted rows must hold both classes", "0 of class 0"]),
        (lambda y, g: shift_splits(y, g < 0, g), ["0 of class 0 and 0 of class 1"]),
    ],
)
def test_bad_input_is_an_error_with_the_counts(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*labels())
    assert all(word in str(caught.value) for word in words), caught.value
