"""What a sweep shows: choice by validation alone, tables, figures, comparisons. The numbers are made up, so that the answers are known."""

import dataclasses

import numpy as np
import pytest

from probes.sweep import DENSE, RANDOM, SweepCell, SweepConfig, SweepResult, compare_sweeps, sparsity
from probes.sweep.result import layer_numbers
from probes.validation import METRICS, Estimate, ProbeScore
from sae.errors import ConfigError

CONFIG = SweepConfig(ks=(1, 4), n_shuffles=2, n_random=1)
VALIDATION = {("a", 0): 0.6, ("a", 1): 0.9, ("a", 2): 0.7, ("b", 0): 0.95, ("b", 1): 0.6, ("b", 2): 0.5}


def score(value, null=0.5):
    estimate = Estimate(value, value - 0.05, value + 0.05, null, 0.01)
    counts = {"n_train": 10, "n_test": 5, "n_groups": 5, "positive_share": 0.4, "n_bootstrap": 10, "n_shuffles": 2}
    return ProbeScore(**dict.fromkeys(METRICS, estimate), **counts)


def result(name="neurons", shift=0.0):
    """Validation prefers layer 1 for a and layer 0 for b; the test scores would choose otherwise."""
    cells = []
    for layer in range(3):
        matrix = f"blocks.{layer}.mlp.hook_post"
        for problem in ("a", "b"):
            valid = VALIDATION[problem, layer]
            for k in (1, 4):
                test = 0.99 if layer == 2 else 0.5 + 0.1 * k - 0.05 * layer + shift
                cells.append(SweepCell(problem, matrix, "mean_difference", k, 64, dict.fromkeys(METRICS, valid), score(test), (3,)))
                cells.append(SweepCell(problem, matrix, RANDOM, k, 64, {}, score(0.55, None), ()))
            cells.append(SweepCell(problem, matrix, DENSE, 64, 64, dict.fromkeys(METRICS, valid), score(0.95), ()))
    return SweepResult(name, CONFIG, tuple(cells))


def test_the_best_layer_is_that_of_the_validation_score_not_of_the_test_score():
    found = result()
    assert found.best("a", k=1).matrix == "blocks.1.mlp.hook_post"
    assert found.best("b", k=None).matrix == "blocks.0.mlp.hook_post"
    assert found.best_layer(k=4) == "blocks.0.mlp.hook_post"  # means .775, .75, .6
    assert found.best_layer(k=4, problems=["a"]) == "blocks.1.mlp.hook_post"


def test_the_table_has_a_row_per_layer_with_every_control():
    table = result().table()
    assert table.columns == (*("matrix", "d", "k=1", "k=4", "dense", "shuffled labels", "random coordinates", "best by validation"),)
    assert table.column("k=4") == pytest.approx([0.9, 0.85, 0.99])
    assert table.column("dense") == pytest.approx([0.95] * 3) and table.column("shuffled labels") == [0.5] * 3
    assert table.column("random coordinates") == pytest.approx([0.55] * 3)
    assert table.column("best by validation") == [True, False, False]
    assert result().table("a").column("best by validation") == [False, True, False]
    assert "2 problems (mean)" in table.title and "AUC" in table.title


def test_the_best_table_gives_validation_and_test_scores_of_every_choice():
    rows = result().best_table().records()
    assert [(row["problem"], row["k"]) for row in rows] == [(p, k) for p in ("a", "b") for k in ("1", "4", "dense")]
    assert rows[1]["matrix"] == "blocks.1.mlp.hook_post"
    assert rows[1]["validation"] == 0.9 and rows[1]["test"] == pytest.approx(0.85)
    assert rows[1]["low (95 %)"] == pytest.approx(0.80)


def test_figures_have_a_line_per_k_and_the_controls():
    figure = result().figure()
    assert [trace.name for trace in figure.data] == ["dense", "k = 4", "k = 1", "random, k = 4", "shuffled, k = 4"]
    assert list(figure.data[1].x) == [0, 1, 2] and list(figure.data[1].y) == pytest.approx([0.9, 0.85, 0.99])
    over_k = result().k_figure()
    lines = {trace.name: trace for trace in over_k.data if trace.name}
    assert list(lines["a"].x) == ["1", "4", "all"] and list(lines["a"].y) == pytest.approx([0.55, 0.85, 0.95])


def test_sparsity_is_the_smallest_k_that_reaches_the_share_of_the_dense_score_above_chance():
    found = result()
    assert sparsity(found, "a", "blocks.0.mlp.hook_post", share=0.2) == 1  # .5 + .2 * .45 = .59 <= .6
    assert sparsity(found, "a", "blocks.0.mlp.hook_post", share=0.8) == 4  # .86 <= .9
    assert sparsity(found, "a", "blocks.0.mlp.hook_post", share=0.95) is None  # .9275
    assert sparsity(found, "a", "blocks.0.mlp.hook_post", share=0.95, metric="mcc") is None  # chance 0: .9025


def test_sweeps_are_compared_at_the_layers_that_validation_chose():
    comparison = compare_sweeps([result(), result("latents", shift=0.02)])
    rows = comparison.table().records()
    assert [(row["problem"], row["features"]) for row in rows[:2]] == [("a", "neurons"), ("a", "latents")]
    assert rows[0]["k=4"] == pytest.approx(0.85) and rows[1]["k=4"] == pytest.approx(0.87)
    assert rows[0]["dense"] == pytest.approx(0.95) and rows[0]["best layer by validation"] == "blocks.1.mlp.hook_post"
    assert rows[-1]["problem"] == "mean" and rows[-1]["k=4"] == pytest.approx(np.mean([0.87, 0.92]))
    names = [trace.name for trace in comparison.figure().data]
    assert names == ["neurons", "neurons, shuffled", "latents", "latents, shuffled"]
    assert len(comparison.sparsity().rows) == 2 * 3 * 2
    lines = comparison.sparsity_figure(share=0.8).data
    assert [line.name for line in lines] == ["neurons", "latents"]
    assert list(lines[0].y) == pytest.approx([4, 64, 1])  # .86: at layer 1 k=4 has .85 only, and both problems count as all columns


def test_everything_shows_itself_without_controls_too():
    bare = dataclasses.replace(CONFIG, n_shuffles=0, n_random=0, dense=False)
    cells = tuple(cell for cell in result().cells if cell.method not in (RANDOM, DENSE))
    found = SweepResult("bare", bare, cells)
    assert found.table().column("shuffled labels") == [None] * 3
    assert [trace.name for trace in found.figure().data] == ["k = 4", "k = 1"]
    assert "bare" in str(found) and "<table" in found._repr_html_()
    assert len(found.best_table().rows) == 4
    with pytest.raises(ConfigError, match="no dense probes"):
        compare_sweeps([found])


def test_layers_are_read_from_names():
    assert layer_numbers(["blocks.3.mlp.hook_post", "blocks.11.mlp.hook_post"]) == (3, 11)
    assert layer_numbers(["blocks.3.a", "codes"]) is None and layer_numbers(["blocks.3.a", "blocks.3.b"]) is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.best("c", k=1), ["'c'", "problems a, b"]),
        (lambda r: r.best("a", k=1, metric="speed"), ["metric", "speed", "auc"]),
        (lambda r: r.table("c"), ["problem must be one of a, b", "'c'"]),
        (lambda r: compare_sweeps([]), ["at least one"]),
        (lambda r: compare_sweeps([r, r]), ["different names", "neurons"]),
        (lambda r: compare_sweeps([r, dataclasses.replace(r, name="x", cells=r.cells[:5])]), ["same problems", "'x'"]),
        (lambda r: sparsity(r, "a", "blocks.0.mlp.hook_post", share=0.0), ["share", "(0, 1]"]),
    ],
)
def test_bad_questions_are_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(result())
    assert all(word in str(caught.value) for word in words), caught.value
