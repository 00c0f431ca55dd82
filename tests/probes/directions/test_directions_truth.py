"""Where an answer is, and where a wrong one can be read."""

import numpy as np
import pytest
import torch

from probes.directions import (
    AnswerWindow,
    LDADirection,
    TruthfulnessConfig,
    answer_positions,
    locate_answer,
    position_activations,
    truthfulness_map,
)
from sae.errors import ConfigError
from sae.models.sites import Site

POSITIONS = ("question last", "answer first", "answer last", "-1")


def decode(ids):
    """Tokens are bytes: a character of two bytes is two tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "answer", "start", "window"),
    [
        ("2+2=4", "4", 0, (4, 4)),
        ("4: 2+2=4", "4", 3, (7, 7)),
        ("4: 2+2=4", "4", 0, (0, 0)),
        ("it is Paris, no Paris", "Paris", 0, (6, 10)),
        ("aaab", "aab", 0, (1, 3)),
        ("né à Orléans", "Orléans", 0, (7, 14)),
        ("no", "Paris", 0, None),
        ("Paris", "Paris", 1, None),
    ],
)
def test_answer_is_found_in_the_smallest_window_of_its_first_occurrence(text, answer, start, window):
    ids = list(text.encode())
    found = locate_answer(ids, answer, decode, start=start)
    assert found == (None if window is None else AnswerWindow(*window))
    if found:
        assert answer in decode(ids[found.first : found.last + 1])


def test_tokens_of_several_characters_are_taken_whole():
    pieces = ["The", " capital", " is Par", "is", ".", " Paris"]
    found = locate_answer(range(6), "Paris", lambda ids: "".join(pieces[i] for i in ids))
    assert found == AnswerWindow(2, 3)


def test_positions_lie_around_the_answer_and_within_the_text():
    assert answer_positions(12, AnswerWindow(6, 7), question_end=5) == {
        "question last": 4,
        "before answer": 5,
        "answer first": 6,
        "answer last": 7,
        "after answer": 8,
        **{f"-{i}": 12 - i for i in range(8, 0, -1)},
    }
    short = answer_positions(3, AnswerWindow(0, 2), question_end=1)
    assert (short["before answer"], short["after answer"], short["-8"], short["-1"]) == (0, 2, 0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: locate_answer([1], "  ", decode), "answer must have a character"),
        (lambda: answer_positions(3, AnswerWindow(1, 3), question_end=1), "window must lie in the 3 tokens"),
        (lambda: answer_positions(3, AnswerWindow(1, 2), question_end=0), "question_end must be in 1..n_tokens=3"),
    ],
)
def test_answers_outside_the_text_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


SITES = tuple(Site(name=f"blocks.{i}.hook_resid_post", layer=i, kind="resid_post", width=4) for i in (1, 3))


class Echo:
    """Activation at layer l of token t at place p: (l, t, p, 0); Inf for token 13."""

    separator_id = 0

    def tokenize(self, texts):
        return [[int(word) for word in text.split()] for text in texts]

    def capture(self, tokens, sites):
        place = torch.arange(tokens.shape[1]).expand(tokens.shape)
        bad = torch.where(tokens == 13, torch.inf, 0.0)
        return {
            site: torch.stack([torch.full_like(bad, site.layer), tokens.float(), place.float(), bad], dim=-1).bfloat16() for site in sites
        }


def test_activations_are_those_of_each_rows_own_positions():
    rows = [[0, 5, 6], [0, 7, 8, 9, 10], [0, 11]]
    positions = [{"a": 1, "b": 2}, {"a": 4, "b": 1}, {"a": 1, "b": 0}]
    found = position_activations(Echo(), rows, positions, SITES, batch_rows=2)
    assert set(found) == {(1, "a"), (1, "b"), (3, "a"), (3, "b")}
    for (layer, name), acts in found.items():
        expected = [[layer, row[where[name]], where[name], 0] for row, where in zip(rows, positions, strict=True)]
        assert acts.tolist() == expected
        assert acts.dtype == np.float32


@pytest.mark.parametrize(
    ("rows", "positions", "sites", "message"),
    [
        ([[0, 1]], [], SITES, "as many"),
        ([[0, 1]], [{"a": 2}], SITES, r"positions\[0\] must give \['a'\] within 0..1"),
        ([[0, 1], [0, 1]], [{"a": 1}, {"b": 1}], SITES, r"positions\[1\]"),
        ([[0, 1]], [{"a": 1}], (SITES[0], SITES[0]), "different layers"),
        ([[0, 13]], [{"a": 1}], SITES, "must be finite"),
    ],
)
def test_positions_and_activations_that_cannot_be_used_are_refused(rows, positions, sites, message):
    with pytest.raises(ConfigError, match=message):
        position_activations(Echo(), rows, positions, sites)


def cells(n=240, n_layers=6, d=10, best=(3, "answer last"), strength=1.2, seed=0, per_document=2):
    """Errors can be read best at one cell, less around it, and nowhere else."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    found = {}
    for layer in range(n_layers):
        for j, position in enumerate(POSITIONS):
            distance = abs(layer - best[0]) + 2 * abs(j - POSITIONS.index(best[1]))
            signal = strength * np.exp(-distance)
            found[layer, position] = rng.normal(size=(n, d)) + signal * np.outer(2 * y - 1, np.eye(d)[layer])
    return found, y, np.arange(n) // per_document


QUICK = TruthfulnessConfig(n_bootstrap=200, n_shuffles=3)


def test_map_finds_the_planted_cell_and_reports_it_on_other_documents():
    given, y, groups = cells()
    found = truthfulness_map(given, y, groups, config=QUICK)
    assert found.chosen == (3, "answer last")
    assert found.test.value > 0.85
    assert found.test.low < found.test.value < found.test.high
    assert found.validation.shape == (6, 4)
    assert found.validation[3, 2] == np.nanmax(found.validation)
    sides = [set(groups[rows]) for rows in found.parts]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sum(map(len, found.parts)) == len(y)
    assert found.reader.direction_[3] > 0.7  # points to the wrong answers
    assert len(found.table().rows) == 4
    assert sum(row[3] is not None for row in found.table().rows) == 1
    assert list(found.figure().data[1].x) == ["answer last"]


def test_choice_looks_at_validation_documents_only():
    given, y, groups = cells(strength=0.0)
    found = truthfulness_map(given, y, groups, config=QUICK)
    spoiled = {cell: X.copy() for cell, X in given.items()}
    spoiled[0, "-1"][found.parts.test, 0] += 100 * (2 * y[found.parts.test] - 1)  # only the test rows tell
    again = truthfulness_map(spoiled, y, groups, config=QUICK)
    assert again.chosen == found.chosen
    np.testing.assert_array_equal(again.validation, found.validation)


def test_reader_that_is_tested_was_fitted_to_training_rows_only():
    given, y, groups = cells()
    found = truthfulness_map(given, y, groups, reader=LDADirection(), config=QUICK)
    expected = LDADirection().fit(given[found.chosen][found.parts.train], y[found.parts.train])
    np.testing.assert_array_equal(found.reader.direction_, expected.direction_)


def test_greatest_of_many_validation_scores_is_above_one_half_without_any_signal_and_its_test_is_not():
    values = []
    for seed in range(6):
        given, y, groups = cells(strength=0.0, seed=seed)
        found = truthfulness_map(given, y, groups, config=TruthfulnessConfig(n_bootstrap=50, n_shuffles=2, seed=seed))
        values.append((np.nanmax(found.validation), found.test.value, found.null_validation.mean(), found.null_test.mean()))
    chosen, tested, null_chosen, null_tested = np.mean(values, axis=0)
    assert chosen > 0.6 and null_chosen > 0.6
    assert abs(tested - 0.5) < 0.08 and abs(null_tested - 0.5) < 0.08


def test_cells_may_be_missing_and_are_shown_as_gaps():
    given, y, groups = cells()
    del given[2, "-1"]
    found = truthfulness_map(given, y, groups, config=TruthfulnessConfig(n_bootstrap=20, n_shuffles=0))
    assert np.isnan(found.validation[2, 3]) and np.isfinite(found.validation).sum() == 23
    assert "Shuffled" not in found.table().note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, y, g: ({}, y, g), "cells must hold at least one"),
        (lambda c, y, g: ({cell: X[:-1] for cell, X in c.items()}, y, g), "one row per label, got 239"),
        (lambda c, y, g: (c, y + 1, g), "0 and 1 only"),
        (lambda c, y, g: (c, np.zeros_like(y), g), "cannot be split"),
        (lambda c, y, g: (c, y, np.zeros_like(g)), "at least 2 different groups"),
    ],
)
def test_cells_that_do_not_fit_the_labels_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        truthfulness_map(*change(*cells()), config=QUICK)


@pytest.mark.parametrize(
    "config", [{"validation_share": 0.0}, {"validation_share": 0.6, "test_share": 0.4}, {"n_bootstrap": 0}, {"n_shuffles": -1}]
)
def test_shares_that_leave_nothing_to_fit_are_refused(config):
    with pytest.raises(ConfigError, match="TruthfulnessConfig"):
        TruthfulnessConfig(**config)
