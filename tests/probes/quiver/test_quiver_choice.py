"""The choice by validation, what is averaged, and what the result says, on scripted tables of AUC."""

import numpy as np
import pytest
from scipy import sparse

from probes.quiver import ArrowScore, QuiverConfig, choose, compare_quivers, fit_quiver
from probes.quiver.comparison import QuiverComparison
from probes.regimes import noise_splits, normal_split, scarce_splits
from probes.results import Result
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json
from sae.storage.cache import ResultCache


def arrow(name, role, val, test, data="a", value=0.5, regime="normal"):
    return ArrowScore(data, regime, value, name, role, val, test, "", 100, 200)


def scripted(n_data=8, seed=0, gain=0.0, values=(0.5,), regime="normal"):
    """Two baselines, two latents and their nulls; latents validate and test better by `gain`."""
    rng = np.random.default_rng(seed)
    scores = []
    for i in range(n_data):
        for value in values:
            able = rng.uniform(0.7, 0.9)
            for name, role, lift in (
                ("logistic regression", "baseline", 0.0),
                ("nearest neighbours", "baseline", -0.05),
                ("TopK, k = 16", "latents", gain),
                ("TopK, k = 128", "latents", gain - 0.02),
                ("noise 1", "noise", -0.3),
                ("noise 2", "noise", -0.3),
                ("half 1", "duplicate", 0.0),
                ("half 2", "duplicate", 0.0),
            ):
                val, test = able + lift + 0.01 * rng.normal(size=2)
                scores.append(arrow(name, role, float(val), float(test), f"data {i}", value, regime))
    return scores


def test_the_arrow_with_the_highest_validation_auc_is_chosen_whatever_its_test_auc():
    scores = [arrow("a", "baseline", 0.7, 0.99), arrow("b", "baseline", 0.9, 0.6), arrow("c", "latents", 0.8, 0.95)]
    assert choose(scores) is scores[1]
    assert choose([scores[1], arrow("tie", "latents", 0.9, 1.0)]) is scores[1]
    assert choose([arrow("none", "baseline", None, 1.0), arrow("nan", "baseline", float("nan"), 1.0), scores[0]]) is scores[0]
    with pytest.raises(ConfigError, match="got 1 without"):
        choose([arrow("nan", "baseline", float("nan"), 1.0)])


def test_every_number_is_that_of_a_direct_search():
    scores = scripted(gain=0.01, values=(2.0, 4.0), regime="scarce")
    result = compare_quivers(scores)
    added, excess = {}, {}
    for row in result.rows:
        case = [s for s in scores if (s.data, s.value) == (row.data, row.value)]

        def best(*roles, case=case):
            pool = [s for s in case if s.role in roles]
            return pool[int(np.argmax([s.val_auc for s in pool]))]

        assert (row.baseline_auc, row.chosen_auc) == (best("baseline").test_auc, best("baseline", "latents").test_auc)
        assert row.chose_latents == (best("baseline", "latents").role == "latents")
        assert row.noise_auc == best("baseline", "noise").test_auc
        assert row.duplicate_auc == best("baseline", "duplicate").test_auc
        assert row.latents_auc == best("latents").test_auc
        added.setdefault(row.data, []).append(row.chosen_auc - row.baseline_auc)
        excess.setdefault(row.data, []).append(row.chosen_auc - row.noise_auc)
    assert result.added.value == pytest.approx(np.mean([np.mean(v) for v in added.values()]))
    assert result.excess.value == pytest.approx(np.mean([np.mean(v) for v in excess.values()]))
    assert result.excess.value == pytest.approx(result.added.value - result.noise.value)
    rng = np.random.default_rng(7)
    per_data = np.array([np.mean(v) for v in added.values()])
    slow = [per_data[rng.integers(0, 8, 8)].mean() for _ in range(4000)]
    np.testing.assert_allclose([result.added.low, result.added.high], np.quantile(slow, [0.025, 0.975]), atol=0.002)


def test_the_statement_says_what_was_planted():
    more, same, less = (compare_quivers(scripted(gain=gain)).statement() for gain in (0.08, -0.2, 0.0))
    assert "So latents add to what the baselines read beyond what noise does" in more
    assert "in 8 of 8" in more
    assert "adding 2 probes on latents to 2 baselines" in more
    assert "Validation chose latents in 0 of 8" in same
    assert "changes the test AUC by +0.0000 [+0.0000, +0.0000]" in same
    assert "So nothing that latents add" in same
    assert "So nothing that latents add" in less
    lying = [
        arrow(s.arrow, s.role, (s.val_auc or 0) + (0.3 if s.role == "latents" else 0), s.test_auc, s.data) for s in scripted(gain=-0.2)
    ]
    assert "So latents take away" in compare_quivers(lying).statement()


def test_one_data_set_has_no_interval_and_the_statement_says_so():
    result = compare_quivers(scripted(n_data=1, gain=0.1))
    assert result.added.low is result.added.high is None
    assert "says nothing about others" in result.statement()


def test_arrows_without_nulls_are_compared_without_them():
    result = compare_quivers([score for score in scripted(gain=0.08) if score.role in ("baseline", "latents")])
    assert result.noise is result.duplicates is result.excess is None
    assert "noise" not in result.statement()
    assert "So latents add" in result.statement()
    assert result.table().column("by noise") == [None]
    assert len(result.scatter().data) == 3


def test_the_result_shows_itself_and_survives_json():
    result = compare_quivers(scripted(gain=0.02, values=(2.0, 8.0, 32.0), regime="scarce"))
    assert isinstance(result, Result)
    assert from_json(QuiverComparison, to_json(result)) == result
    table = result.table()
    assert table.column("value") == [2.0, 8.0, 32.0, None]
    assert table.column("data sets") == [8, 8, 8, 8]
    np.testing.assert_allclose(np.subtract(table.column("with latents"), table.column("baselines")), table.column("added"))
    assert table.column("added")[-1] == pytest.approx(result.added.value)
    assert table.note == result.statement()
    choices = result.choices()
    assert sum(choices.column("of baselines")) == sum(choices.column("of all")) == 24
    assert len(result.details().rows) == 24
    figure = result.figure()
    assert figure.layout.xaxis.type == "log"
    assert [trace.name for trace in figure.data if trace.name] == ["with noise", "baselines", "baselines and latents", "latents alone"]
    single = compare_quivers(scripted(gain=0.02)).figure()
    drawn = sum(len(trace.x) for trace in single.data if trace.name in ("a baseline chosen", "latents chosen"))
    assert drawn == 8


def real_problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    acts = rng.normal(size=(n, 8)) + 0.7 * y[:, None] * (np.arange(8) < 2)
    codes = np.maximum(rng.normal(size=(n, 30)) - 1, 0)
    codes[:, 4] = 2.0 * y * (rng.random(n) < 0.9)
    return acts, codes, y


FAST = QuiverConfig(ks=(1, 4), methods=("logistic regression", "nearest neighbours"))


def test_every_arrow_is_fitted_on_every_split_and_each_latent_arrow_has_its_nulls():
    acts, codes, y = real_problem()
    splits = [normal_split(y, n_train=200), *noise_splits(y, shares=[0.3], n_train=200)]
    scores = fit_quiver("planted", acts, {"one": codes, "two": codes[:, ::-1]}, y, splits, FAST)
    assert len(scores) == 2 * (2 + 3 * 4)
    first = scores[:14]
    assert (
        [s.role for s in first].count("latents")
        == [s.role for s in first].count("noise")
        == [s.role for s in first].count("duplicate")
        == 4
    )
    assert len({s.arrow for s in first}) == 14
    assert {(s.regime, s.value, s.n_train, s.n_test) for s in scores} == {("normal", 0.5, 200, 200), ("noise", 0.3, 200, 200)}
    by_name = {s.arrow: s for s in first}
    assert by_name["one, k = 1"].test_auc > 0.9
    assert by_name["one, k = 1"].test_auc == by_name["two, k = 1"].test_auc
    assert abs(by_name["one, k = 1, other rows"].test_auc - 0.5) < 0.12
    assert by_name["logistic regression"].setting.startswith("logistic__C=")
    plain = fit_quiver("planted", acts, {"one": codes}, y, splits[:1], QuiverConfig(ks=(1,), methods=FAST.methods, null_arrows=False))
    assert [s.role for s in plain] == ["baseline", "baseline", "latents"]


def test_sparse_codes_processes_and_the_cache_change_nothing(tmp_path, monkeypatch):
    acts, codes, y = real_problem()
    groups = np.arange(400) // 2
    codes[:, 7] *= -1  # pursuit with signed selection has negative codes
    splits = scarce_splits(y, groups, sizes=[6, 50])
    expected = fit_quiver("planted", acts, {"one": codes}, y, splits, FAST, groups=groups)
    for form in (sparse.csr_matrix, sparse.csr_array):
        assert fit_quiver("planted", acts, {"one": form(codes)}, y, splits, FAST, groups=groups) == expected
    assert fit_quiver("planted", acts, {"one": codes}, y, splits, FAST, groups=groups, n_jobs=2) == expected
    cache = ResultCache(tmp_path)
    assert fit_quiver("planted", acts, {"one": codes}, y, splits[:1], FAST, groups=groups, cache=cache) == expected[: len(expected) // 2]
    assert fit_quiver("planted", acts, {"one": codes}, y, splits, FAST, groups=groups, cache=cache) == expected
    assert len(list(cache.entries())) == 2
    monkeypatch.setattr("probes.quiver.arrows._fit", None)  # nothing is fitted again
    assert fit_quiver("planted", acts, {"one": codes}, y, splits, FAST, groups=groups, cache=cache) == expected
    with pytest.raises(TypeError):
        fit_quiver("planted", acts + 1, {"one": codes}, y, splits, FAST, groups=groups, cache=cache)


def holes(X):
    X = X.copy()
    X[0, 0] = np.nan
    return X


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, c, y, s: fit_quiver("d", a, {}, y, [s], FAST), ["codes must hold at least one", "1 and 0"]),
        (lambda a, c, y, s: fit_quiver("d", a, {"c": c}, y, [], FAST), ["0 and 1"]),
        (lambda a, c, y, s: fit_quiver("d", a[1:], {"c": c}, y, [s], FAST), ["acts must have one row per label", "399"]),
        (lambda a, c, y, s: fit_quiver("d", a, {"c": c[1:]}, y, [s], FAST), ["codes['c']", "399"]),
        (lambda a, c, y, s: fit_quiver("d", holes(a), {"c": c}, y, [s], FAST), ["acts must be finite", "1 entries"]),
        (lambda a, c, y, s: fit_quiver("d", a, {"c": holes(c)}, y, [s], FAST), ["codes['c'] must be finite"]),
        (lambda a, c, y, s: fit_quiver("d", a, {"c": c}, np.array(["n", "y"])[y], [s], FAST), ["0 and 1", "'n'"]),
        (lambda a, c, y, s: fit_quiver("d", sparse.csr_array(a), {"c": c}, y, [s], FAST), ["acts must be dense"]),
        (lambda a, c, y, s: QuiverConfig(ks=(0,)), ["ks must hold", "[0]"]),
        (lambda a, c, y, s: QuiverConfig(methods=("magic",)), ["boosted trees", "magic"]),
        (lambda a, c, y, s: QuiverConfig(penalty="l3"), ["'l3'"]),
        (lambda a, c, y, s: compare_quivers([]), ["got (baselines, latents", "none"]),
        (lambda a, c, y, s: compare_quivers([arrow("a", "baseline", 0.5, 0.5)]), ["(1, 0, 0, 0)"]),
        (lambda a, c, y, s: compare_quivers(scripted()[:-1]), ["(2, 2, 2, 1), (2, 2, 2, 2)"]),
        (lambda a, c, y, s: compare_quivers(scripted(), n_bootstrap=0), ["n_bootstrap", "0"]),
    ],
)
def test_bad_input_is_named(call, words):
    acts, codes, y = real_problem()
    split = normal_split(y, n_train=100)
    with pytest.raises(ConfigError) as caught:
        call(acts, codes, y, split)
    assert all(word in str(caught.value) for word in words), caught.value
