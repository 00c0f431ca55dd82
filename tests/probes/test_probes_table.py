import json

import numpy as np
import pytest
from scipy import sparse

from probes.sparse import KSparseProbe
from probes.table import ProbeRow, ProbeTableConfig, probe_table, render_table
from probes.validation import evaluate_probe, group_folds
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json

QUICK = ProbeTableConfig(ks=(1, 3), n_bootstrap=20, n_shuffles=3, n_random=4)


def problem(seed=0):
    """One latent knows the label; in the neurons it is spread over all columns."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(80), 4)
    y = (rng.permutation(80) % 2)[groups]
    codes = np.maximum(rng.normal(size=(320, 60)) - 1, 0)
    codes[:, 11] = y * rng.uniform(0.5, 1.5, 320) * (rng.random(320) < 0.9)
    neurons = codes @ rng.normal(size=(60, 24)) + 0.3 * rng.normal(size=(320, 24))
    return {"neurons": neurons.astype(np.float32), "latents": sparse.csr_matrix(codes.astype(np.float32))}, y, groups


def test_table_has_every_method_and_control_of_every_matrix():
    features, y, groups = problem()
    rows = probe_table(features, y, groups, QUICK)
    expected = []
    for name, d in (("neurons", 24), ("latents", 60)):
        expected += [(name, "mean_difference", 1, d, False), (name, "mean_difference", 3, d, False)]
        expected += [(name, "random coordinates", 1, d, True), (name, "random coordinates", 3, d, True), (name, "dense", d, d, True)]
    expected += [("none", "majority class", 0, 0, True), ("none", "always positive", 0, 0, True)]
    assert [(row.features, row.method, row.k, row.d, row.control) for row in rows] == expected
    assert {row.n_test for row in rows} == {320}
    assert {row.n_train for row in rows} == {256}


def test_table_finds_the_latent_and_the_controls_do_not():
    features, y, groups = problem()
    rows = {(row.features, row.method, row.k): row.scores for row in probe_table(features, y, groups, QUICK)}
    assert rows["latents", "mean_difference", 1].auc.value > 0.9
    assert rows["neurons", "mean_difference", 1].auc.value < 0.85
    assert rows["neurons", "dense", 24].auc.value > rows["neurons", "mean_difference", 1].auc.value + 0.1
    assert abs(rows["latents", "mean_difference", 1].auc.null_mean - 0.5) < 0.15
    assert rows["latents", "random coordinates", 1].auc.value < 0.65
    assert rows["none", "majority class", 0].auc.value == 0.5
    assert rows["latents", "random coordinates", 1].auc.null_mean is None


def test_rows_are_single_evaluations_on_the_same_folds():
    features, y, groups = problem()
    rows = probe_table(features, y, groups, QUICK)
    folds = group_folds(y, groups, n_folds=5, seed=0)
    single = evaluate_probe(KSparseProbe(k=3), features["latents"], y, groups, folds=folds, n_bootstrap=20, n_shuffles=3)
    assert [row.scores for row in rows if (row.features, row.method, row.k) == ("latents", "mean_difference", 3)] == [single]


def test_random_coordinates_average_over_their_draws():
    features, y, groups = problem()
    rows = probe_table({"neurons": features["neurons"]}, y, groups, QUICK)
    found = next(row.scores for row in rows if row.method == "random coordinates" and row.k == 3)
    probes = [KSparseProbe(3, "random", random_state=i) for i in range(4)]
    singles = [evaluate_probe(probe, features["neurons"], y, groups, n_bootstrap=1).auc.value for probe in probes]
    assert found.auc.value == pytest.approx(np.mean(singles))
    assert np.std(singles) > 0.01


def test_table_survives_json_and_is_the_same_twice():
    features, y, groups = problem()
    rows = probe_table(features, y, groups, QUICK)
    data = json.loads(json.dumps(to_json(rows), allow_nan=False))
    assert [from_json(ProbeRow, row) for row in data] == rows == probe_table(features, y, groups, QUICK)
    assert from_json(ProbeTableConfig, to_json(QUICK)) == QUICK


def test_rendered_table_shows_scores_with_intervals_and_nulls():
    features, y, groups = problem()
    rows = probe_table(features, y, groups, QUICK)
    lines = render_table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    auc = rows[0].scores.auc
    assert f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}] (null {auc.null_mean:.3f} ± {auc.null_sd:.3f})" in lines[1]
    assert "3 of 24" in lines[2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, y, g: probe_table({}, y, g), ["features must hold at least one matrix"]),
        (lambda f, y, g: probe_table({"short": f["neurons"][:-2]}, y, g), ["features['short']", "318 rows for 320 labels"]),
        (lambda f, y, g: probe_table(f, y, g, ProbeTableConfig(ks=(1, 25))), ["1..d=24", "features['neurons']", "got 25"]),
        (lambda f, y, g: ProbeTableConfig(ks=(0, 1)), ["ks must hold different positive integers", "[0, 1]"]),
        (lambda f, y, g: ProbeTableConfig(ks=(2, 2)), ["ks must hold different positive integers"]),
        (lambda f, y, g: ProbeTableConfig(rankings=("magic",)), ["rankings must be names out of", "magic"]),
        (lambda f, y, g: ProbeTableConfig(n_folds=1), ["n_folds must be at least 2", "got 1"]),
        (lambda f, y, g: ProbeTableConfig(C=0.0), ["C must be positive", "0.0"]),
        (lambda f, y, g: from_json(ProbeTableConfig, {"folds": 3}), ["unknown key 'folds'"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*problem())
    assert all(word in str(caught.value) for word in words), caught.value
