"""Ideal words: exact for additive tables, the means on a full grid, and R^2 against its null in closed form."""

import inspect
import itertools

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import OneHotEncoder

from probes.directions import IdealWords, ideal_words_report
from sae.errors import ConfigError

NAMES = ("colour", "animal", "size")
VALUES = (("red", "blue", "green"), ("dog", "cat", "bird", "fish"), ("big", "small"))


def additive(seed=0, d=25, noise=0.0):
    rng = np.random.default_rng(seed)
    rows = list(itertools.product(*VALUES))
    words = [{value: rng.normal(size=d) for value in values} for values in VALUES]
    for factor in words:
        mean = np.mean(list(factor.values()), axis=0)
        for value in factor:
            factor[value] -= mean
    origin = rng.normal(size=d)
    table = origin + np.array([sum(words[i][value] for i, value in enumerate(row)) for row in rows])
    return rows, table + noise * rng.normal(size=table.shape), words, origin


def test_additive_table_is_reproduced_to_rounding():
    rows, table, words, origin = additive()
    fitted = IdealWords(NAMES).fit(rows, table)
    assert np.abs(table - fitted.predict(rows)).max() < 1e-14
    assert ((table - fitted.predict(rows)) ** 2).sum(1).mean() < 9e-16
    np.testing.assert_allclose(fitted.origin_, origin, atol=1e-14)
    for i, values in enumerate(VALUES):
        for value in values:
            np.testing.assert_allclose(fitted.word(NAMES[i], value), words[i][value], atol=1e-14)
    assert fitted.score(rows, table) == pytest.approx(1, abs=1e-14)


def test_full_grid_gives_differences_of_means_that_sum_to_zero():
    rows, table, _, _ = additive(noise=1.0)
    fitted = IdealWords(NAMES).fit(rows, table)
    np.testing.assert_allclose(fitted.origin_, table.mean(0), atol=1e-13)
    for i, (name, values) in enumerate(zip(NAMES, VALUES, strict=True)):
        for value in values:
            chosen = [row[i] == value for row in rows]
            np.testing.assert_allclose(fitted.word(name, value), table[chosen].mean(0) - table.mean(0), atol=1e-13)
        np.testing.assert_allclose(fitted.words_[i].sum(0), 0, atol=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_incomplete_grid_with_weights_is_weighted_least_squares(seed):
    rng = np.random.default_rng(seed)
    rows, table, _, _ = additive(seed, noise=1.0)
    kept = np.sort(rng.permutation(len(rows))[:17])
    rows, table, weight = [rows[i] for i in kept], table[kept], rng.uniform(0.1, 5, 17)
    fitted = IdealWords(NAMES).fit(rows, table, weight)
    hot = OneHotEncoder(sparse_output=False).fit_transform(np.array(rows))
    oracle = LinearRegression().fit(hot, table, weight)
    np.testing.assert_allclose(fitted.predict(rows), oracle.predict(hot), atol=1e-9)
    mean = np.average(table, axis=0, weights=weight)
    spread, rest = (float(weight @ ((table - other) ** 2).sum(1)) for other in (mean, oracle.predict(hot)))
    assert fitted.score(rows, table, weight) == pytest.approx(1 - rest / spread)
    assert all(np.abs(words.sum(0)).max() < 1e-12 for words in fitted.words_)


def test_missing_combinations_of_an_additive_table_are_predicted_exactly():
    rows, table, _, _ = additive()
    fitted = IdealWords(NAMES).fit(rows[::2] + rows[1:9], np.concatenate([table[::2], table[1:9]]))
    np.testing.assert_allclose(fitted.predict(rows), table, atol=1e-12)


def test_rows_of_weight_zero_are_absent_and_a_weight_of_two_is_a_row_twice():
    rows, table, _, _ = additive(noise=1.0)
    weight = np.ones(len(rows))
    weight[3], weight[5] = 0, 2
    fitted = IdealWords(NAMES).fit(rows, table, weight)
    again = [*range(3), *range(4, len(rows)), 5]
    expected = IdealWords(NAMES).fit([rows[i] for i in again], table[again])
    np.testing.assert_allclose(fitted.predict(rows), expected.predict(rows), atol=1e-12)


@pytest.mark.parametrize("sizes", [(4, 5), (3, 4, 5), (2, 2), (2, 7)])
def test_expected_r_squared_of_a_random_table_is_its_share_of_unknowns(sizes):
    grid = np.array(list(itertools.product(*map(range, sizes))))
    expected = (sum(sizes) - len(sizes)) / (np.prod(sizes) - 1)
    rng = np.random.default_rng(0)
    scores = [IdealWords().fit(grid, U).score(grid, U) for U in rng.normal(size=(60, len(grid), 12))]
    assert np.mean(scores) == pytest.approx(expected, abs=4 * np.std(scores) / np.sqrt(60))
    report = ideal_words_report(grid, rng.normal(size=(len(grid), 12)), n_null=400)
    assert report.expected == pytest.approx(expected)
    assert report.null.mean() == pytest.approx(expected, abs=4 * report.null.std() / np.sqrt(400) + 1e-12)


def test_expectation_of_the_permutation_null_is_exact_for_any_table_and_grid():
    rng = np.random.default_rng(0)
    rows, table = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (0, 0)], rng.normal(size=(6, 3)) ** 3  # incomplete, and one row twice
    report = ideal_words_report(rows, table, n_null=2)
    draws = [IdealWords().fit(rows, table[list(p)]).score(rows, table[list(p)]) for p in itertools.permutations(range(6))]
    assert report.expected == 4 / 5
    assert report.expected == pytest.approx(np.mean(draws), abs=1e-12)


def test_report_separates_an_additive_table_from_a_random_one():
    rows, table, _, _ = additive(noise=0.3)
    report = ideal_words_report(rows, table, factors=NAMES, n_null=99)
    assert report.r_squared > 0.9 > 0.5 > report.null.max()
    assert report.p_value == pytest.approx(0.01)
    assert report.r_squared == pytest.approx(IdealWords(NAMES).fit(rows, table).score(rows, table))
    assert sum(report.shares) == pytest.approx(report.r_squared)  # a full grid: the factors' parts are orthogonal
    random = ideal_words_report(rows, np.random.default_rng(3).normal(size=table.shape), n_null=99)
    assert random.p_value > 0.01
    assert abs(random.r_squared - random.expected) < 0.15
    assert [row[0] for row in report.table().rows] == ["all factors", *NAMES]
    assert len(report.figure().data) == 2


def test_report_takes_weights():
    rows, table, _, _ = additive(noise=1.0)
    weight = np.random.default_rng(0).uniform(0, 2, len(rows))
    report = ideal_words_report(rows, table, sample_weight=weight, n_null=5)
    assert report.r_squared == pytest.approx(IdealWords().fit(rows, table, weight).score(rows, table, weight))


def test_edit_and_debias_are_exact_on_additive_tables():
    rows, table, _, _ = additive()
    fitted = IdealWords(NAMES).fit(rows, table)
    red, blue = ([i for i, row in enumerate(rows) if row[0] == colour] for colour in ("red", "blue"))
    np.testing.assert_allclose(fitted.edit(table[red], "colour", source="red", target="blue"), table[blue], atol=1e-12)
    cleaned = fitted.debias(table, "colour", [row[0] for row in rows])
    np.testing.assert_allclose(cleaned[red], cleaned[blue], atol=1e-12)
    assert not np.allclose(table[red], table[blue])


@pytest.mark.parametrize("by", ["distance", "cosine"])
def test_zero_shot_classes_are_read_from_unseen_combinations(by):
    rows, table, _, _ = additive(noise=0.3, d=200)
    held_out = np.arange(len(rows)) % 5 == 0
    fitted = IdealWords(NAMES).fit([row for row, out in zip(rows, held_out, strict=True) if not out], table[~held_out])
    found = fitted.classify(table[held_out], "animal", by=by)
    truth = [row[1] for row, out in zip(rows, held_out, strict=True) if out]
    assert found == truth


def test_values_may_be_of_any_kind_and_keep_it():
    grid = list(itertools.product([1, 2.5, "x"], [True, (3, 4)]))
    table = np.random.default_rng(0).normal(size=(6, 4))
    fitted = IdealWords().fit(grid, table)
    assert fitted.levels_ == [(1, 2.5, "x"), (True, (3, 4))]
    assert set(fitted.classify(table, "factor 0")) <= {1, 2.5, "x"}
    assert clone(IdealWords(NAMES)).factors == NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, t: ([(a, b, "big") for a, b, _ in r], t), "size has"),
        (lambda r, t: (r[:-1], t), "one row each, got 23, 24"),
        (lambda r, t: ([("red", "dog", "big"), ("blue", "cat", "small")], t[:2]), "must link the values"),
        (lambda r, t: (r, np.where(t > 1, np.nan, t)), "NaN"),
        (lambda r, t: ([*r[:-1], (None, "dog", "big")], t), "missing values, got None in row 23, column 0"),
        (lambda r, t: ([*r[:-1], (float("nan"), "dog", "big")], t), "missing values"),
        (lambda r, t: ([*r[:-1], ("red", "dog")], t), "one value per factor"),
        (lambda r, t: ([row[:2] for row in r], t), "factors must name the 2 columns"),
        (lambda r, t: (r, t, -np.ones(24)), "sample_weight must be at least 0"),
        (lambda r, t: (r, t, np.zeros(24)), "not all 0"),
    ],
)
def test_tables_that_do_not_determine_the_words_are_refused(change, message):
    rows, table, _, _ = additive()
    with pytest.raises(ValueError, match=message):
        IdealWords(NAMES).fit(*change(rows, table))


def test_unknown_factors_and_values_are_named():
    rows, table, _, _ = additive()
    fitted = IdealWords(NAMES).fit(rows, table)
    with pytest.raises(ConfigError, match="colour, animal, size, got 'smell'"):
        fitted.word("smell", "red")
    with pytest.raises(ConfigError, match=r"colour must be one of.*'red'.*got 'pink'"):
        fitted.predict([("pink", "dog", "big")])
    with pytest.raises(ConfigError, match="3 factors, as in fit, got 2"):
        fitted.predict([("red", "dog")])
    with pytest.raises(ConfigError, match="one value per embedding"):
        fitted.debias(table, "colour", ["red"])
    with pytest.raises(ConfigError, match="by must be"):
        inspect.unwrap(IdealWords.classify)(fitted, table, "colour", by="luck")
    with pytest.raises(ConfigError, match="n_null must be at least 2"):
        ideal_words_report(rows, table, n_null=1)


def test_a_table_without_spread_is_explained_whole():
    rows, table, _, _ = additive()
    report = ideal_words_report(rows, np.ones_like(table), n_null=3)
    assert report.r_squared == 1 and report.p_value == 1
