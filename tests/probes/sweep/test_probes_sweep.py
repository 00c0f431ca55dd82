"""Sweeps against the single evaluations they stand for, on disk, in parallel, and on input that cannot be used."""

import dataclasses
import warnings

import joblib
import numpy as np
import pytest
from scipy import sparse

from probes.linear import DenseProbe
from probes.problem import Problem
from probes.selection import rank
from probes.sparse import KSparseProbe
from probes.sweep import DENSE, RANDOM, SweepConfig, sweep, sweep_steps
from probes.sweep.cells import matrix_cells
from probes.sweep.plan import binary_problems, plan
from probes.sweep.ranks import FROM_MOMENTS, scores
from probes.validation import METRICS, Fold, evaluate_probes, group_folds, group_holdout, null_splits
from sae.errors import CacheError, ConfigError
from sae.storage import ResultCache

CONFIG = SweepConfig(ks=(1, 3, 12), n_bootstrap=20, n_shuffles=2, n_random=2, n_folds=2)


class Matrices:
    """A source that says which matrices were read."""

    def __init__(self, matrices, digest="a" * 64):
        self.matrices, self.digest, self.log = matrices, digest, []

    @property
    def names(self):
        return tuple(self.matrices)

    @property
    def n_rows(self):
        return len(next(iter(self.matrices.values())))

    def read(self, name):
        self.log.append(name)
        return self.matrices[name]


def world(seed=0, *, n_documents=60, per_document=5, d=30):
    """Three layers, one of them sparse, in which a label is the better known the later; two problems, one on part of the rows."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_documents), per_document)
    n = len(groups)
    y = (rng.permutation(n_documents) % 2)[groups]
    other = (rng.random(n) < 0.4).astype(int)
    matrices = {}
    for layer in range(3):
        X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + rng.normal(size=d)
        X[:, 4] += layer * 0.8 * y
        X[:, 7] += 1.5 * other
        X[:, 9] = 2.0
        matrices[f"blocks.{layer}.mlp.hook_post"] = X.astype(np.float32)
    codes = np.maximum(matrices["blocks.1.mlp.hook_post"] - 0.5, 0)
    matrices["blocks.1.mlp.hook_post"] = sparse.csr_matrix(codes)
    part = np.sort(rng.choice(n, n - 40, replace=False))
    problems = [
        Problem("era", np.arange(n), y, groups, ("early", "late")),
        Problem("token", part, other[part], groups[part], ("no", "yes")),
    ]
    return problems, Matrices(matrices)


def same(found, expected, *, tolerance=1e-9):
    for field in dataclasses.fields(found):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if dataclasses.is_dataclass(one):
            np.testing.assert_allclose(
                np.array(dataclasses.astuple(one), dtype=float),
                np.array(dataclasses.astuple(other), dtype=float),
                atol=tolerance,
                err_msg=field.name,
            )
        else:
            assert one == other, field.name


@pytest.mark.parametrize("ranking", ["mean_difference", "welch_t", "linear_svm"])
def test_cells_are_single_evaluations_on_the_same_documents(ranking):
    problems, source = world()
    config = dataclasses.replace(CONFIG, rankings=(ranking,))
    result = sweep(problems, source, config)
    for problem in problems:
        y, groups = problem.y, problem.groups
        holdout = group_holdout(y, groups, test_share=0.3, seed=0)
        inner = group_folds(y[holdout.train], groups[holdout.train], n_folds=2, seed=0)
        folds = [Fold(holdout.train[fold.train], holdout.train[fold.test]) for fold in inner]
        nulls = null_splits(y, groups, [holdout], n_shuffles=2, seed=0)
        for name, matrix in source.matrices.items():
            X = matrix[problem.rows]
            for k in config.ks:
                cell = result.cell(problem.name, name, k=k)
                probe = KSparseProbe(k, ranking)
                same(cell.test, evaluate_probes([probe], X, y, groups, folds=[holdout], nulls=nulls, n_bootstrap=20, seed=0))
                assert list(cell.support) == probe.fit(X[holdout.train], y[holdout.train]).support_.tolist()
                valid = evaluate_probes([probe], X, y, groups, folds=folds, nulls=[], n_bootstrap=1, seed=0)
                assert cell.validation == pytest.approx({metric: getattr(valid, metric).value for metric in METRICS}, abs=1e-9)
                draws = [KSparseProbe(k, "random", random_state=i) for i in range(2)]
                random = evaluate_probes(draws, X, y, groups, folds=[holdout], nulls=[], n_bootstrap=20, seed=0)
                same(result.cell(problem.name, name, k=k, ranking=RANDOM).test, random)
            dense = evaluate_probes([DenseProbe()], X, y, groups, folds=[holdout], nulls=nulls[:1], n_bootstrap=20, seed=0)
            same(result.cell(problem.name, name, k=None).test, dense, tolerance=1e-3)


@pytest.mark.parametrize("ranking", sorted(FROM_MOMENTS))
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_scores_of_all_fits_at_once_are_those_of_each_alone(ranking, form):
    problems, source = world(1)
    X = source.matrices["blocks.2.mlp.hook_post"].copy()
    X[:, 5] += 1000.0
    X[:, 6] = np.where(np.arange(len(X)) < 3, 5.0, 0.0)  # constant over most training rows
    X = sparse.csr_matrix(X) if form == "sparse" else X
    fits = [fit for problem in problems[:1] for fit in plan(problem, CONFIG).fits]
    found = scores(X, fits, (ranking,), seed=0)[ranking]
    for fit, row in zip(fits, found, strict=True):
        expected = rank(X[fit.train], fit.y[fit.train], ranking=ranking)
        np.testing.assert_allclose(row, expected, rtol=1e-7, atol=1e-9)


def test_training_rows_alone_decide_columns_scaling_and_fit():
    problems, source = world(2)
    name, config = "blocks.0.mlp.hook_post", dataclasses.replace(CONFIG, n_random=0, n_shuffles=0)
    before = sweep(problems[:1], source, config, matrices=[name]).cell("era", name, k=3)
    test = group_holdout(problems[0].y, problems[0].groups, test_share=0.3, seed=0).test
    X = source.matrices[name].copy()
    X[test, 11] += 100.0 * problems[0].y[test]  # would be chosen first if test rows were looked at
    after = sweep(problems[:1], Matrices({name: X}), config).cell("era", name, k=3)
    assert after.support == before.support and after.validation == before.validation


def test_a_killed_sweep_resumes_and_a_repeated_one_reads_nothing(tmp_path):
    problems, source = world(3)
    cache = ResultCache(tmp_path)
    steps = sweep_steps(problems, source, CONFIG, cache=cache)
    first = next(steps)
    steps.close()
    assert first.n_computed == 2 and first.n_matrices == 3
    source.log.clear()
    resumed = sweep(problems, source, CONFIG, cache=cache)
    assert sorted(source.log) == sorted(set(source.names) - {first.matrix})
    source.log.clear()
    assert sweep(problems, source, CONFIG, cache=cache) == resumed and source.log == []
    assert resumed == sweep(problems, source, CONFIG)


def test_only_what_changed_is_computed_again(tmp_path):
    problems, source = world(4)
    cache, name = ResultCache(tmp_path), "blocks.0.mlp.hook_post"

    def computed(problems, source, config):
        return [step.n_computed for step in sweep_steps(problems, source, config, matrices=[name], cache=cache)]

    assert computed(problems[:1], source, CONFIG) == [1]
    assert computed(problems, source, CONFIG) == [1]
    assert computed(problems, source, dataclasses.replace(CONFIG, C=0.5)) == [2]
    assert computed(problems, Matrices(source.matrices, digest="b" * 64), CONFIG) == [2]
    flipped = dataclasses.replace(problems[0], y=1 - problems[0].y)
    assert computed([flipped, problems[1]], source, CONFIG) == [1]
    assert computed(problems, source, CONFIG) == [0]


def test_a_cache_entry_of_another_configuration_is_an_error_that_names_it(tmp_path):
    problems, source = world(5)
    cache, name = ResultCache(tmp_path), "blocks.0.mlp.hook_post"
    sweep(problems[:1], source, CONFIG, matrices=[name], cache=cache)
    (entry,) = cache.folders()
    key = entry / "key.json"
    key.write_text(key.read_text().replace('"n_folds": 2', '"n_folds": 4').replace('"n_folds":2', '"n_folds":4'))
    with pytest.raises(CacheError, match="another key"):
        sweep(problems[:1], source, CONFIG, matrices=[name], cache=cache)


def test_a_matrix_is_read_once_for_all_problems():
    problems, source = world(6)
    sweep(problems, source, CONFIG)
    assert sorted(source.log) == sorted(source.names)


def test_results_do_not_depend_on_the_number_of_workers(unchecked):
    problems, source = world(7)
    config, seen = dataclasses.replace(CONFIG, dense=False), []
    alone = sweep(problems, source, config)
    with joblib.parallel_config(backend="threading"):
        threads = sweep(problems, source, config, n_jobs=2, progress=lambda step: seen.append((step.n_done, step.n_matrices)))
    assert threads == alone
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_sparse_and_dense_forms_of_a_matrix_give_the_same_cells():
    problems, source = world(8)
    X = np.maximum(source.matrices["blocks.2.mlp.hook_post"], 0)
    plans = [plan(problem, CONFIG) for problem in problems]
    one, other = matrix_cells("m", X, plans, CONFIG), matrix_cells("m", sparse.csr_matrix(X), plans, CONFIG)
    for cells, others in zip(one, other, strict=True):
        for a, b in zip(cells, others, strict=True):
            assert a.support == b.support
            same(a.test, b.test, tolerance=1e-3 if a.method == DENSE else 1e-9)


def test_a_sparse_matrix_is_not_made_dense(monkeypatch):
    problems, source = world(9)
    X = source.matrices["blocks.1.mlp.hook_post"]
    widest = []
    original = sparse.csc_matrix.toarray

    def watched(self, *args, **kwargs):
        widest.append(self.shape[1])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sparse.csc_matrix, "toarray", watched)
    monkeypatch.setattr(sparse.csr_matrix, "toarray", watched)
    matrix_cells("m", X, [plan(problem, CONFIG) for problem in problems], CONFIG)
    assert widest and max(widest) <= max(CONFIG.ks)


def test_several_classes_become_one_against_the_others():
    problems, source = world(10)
    y = (problems[0].groups % 3).astype(np.int64)
    three = Problem("which", problems[0].rows, y, problems[0].groups, ("a", "b", "c"))
    parts = binary_problems(three)
    assert [part.name for part in parts] == ["which: a", "which: b", "which: c"]
    np.testing.assert_array_equal(parts[1].y, y == 1)
    result = sweep([three], source, dataclasses.replace(CONFIG, dense=False, ks=(1,)), matrices=["blocks.0.mlp.hook_post"])
    assert result.problems == ("which: a", "which: b", "which: c")


def with_value(value):
    problems, source = world(11)
    X = source.matrices["blocks.2.mlp.hook_post"].copy()
    X[3, 4] = value
    return problems, Matrices(source.matrices | {"blocks.2.mlp.hook_post": X})


def rare(problem):
    y = np.zeros(len(problem), dtype=np.int64)
    y[:2] = 1
    return dataclasses.replace(problem, y=y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, s: sweep(p, s, CONFIG, matrices=["blocks.9"]), ["matrices", "blocks.9", "blocks.0.mlp.hook_post"]),
        (lambda p, s: sweep(p, s, dataclasses.replace(CONFIG, ks=(1, 31))), ["1..d=30", "blocks.0.mlp.hook_post", "got 31"]),
        (lambda p, s: sweep([rare(p[0])], s, CONFIG), ["problem 'era'", "2 of 'late'", "class"]),
        (lambda p, s: sweep(*with_value(np.nan), CONFIG), ["blocks.2.mlp.hook_post", "finite", "1 entries"]),
        (lambda p, s: sweep(*with_value(np.inf), CONFIG), ["blocks.2.mlp.hook_post", "finite"]),
        (lambda p, s: sweep([], s, CONFIG), ["problems must hold at least one"]),
        (lambda p, s: sweep([p[0], p[0]], s, CONFIG), ["different names", "era"]),
        (
            lambda p, s: sweep([dataclasses.replace(p[0], rows=p[0].rows + 5)], s, CONFIG),
            ["rows", "0..299", "got 304", "problem 'era'"],
        ),
        (
            lambda p, s: sweep([dataclasses.replace(p[0], y=p[0].y * 0.5, classes=())], s, CONFIG),
            ["problem 'era'", "number", "threshold"],
        ),
        (lambda p, s: sweep(p, s, CONFIG).cell("era", "blocks.0.mlp.hook_post", k=5), ["k=5", "ks [1, 3, 12]"]),
        (lambda p, s: SweepConfig(ks=()), ["ks must hold"]),
        (lambda p, s: SweepConfig(ks=(2, 2)), ["different positive"]),
        (lambda p, s: SweepConfig(rankings=("magic",)), ["magic", "mean_difference"]),
        (lambda p, s: SweepConfig(n_folds=0), ["n_folds must be at least 1"]),
        (lambda p, s: SweepConfig(C=-1.0), ["C must be positive"]),
        (lambda p, s: SweepConfig(test_share=1.0), ["test_share", "(0, 1)"]),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call(*world(12))
    assert all(word in str(caught.value) for word in words), caught.value


def test_columns_that_are_constant_duplicate_or_more_than_rows_are_no_trouble():
    rng = np.random.default_rng(13)
    groups = np.repeat(np.arange(20), 2)
    y = (np.arange(40) % 2).astype(np.int64)
    X = rng.normal(size=(40, 200)).astype(np.float32)
    X[:, 0], X[:, 1], X[:, 2] = 4.0, 5 * y, 5 * y
    problem = Problem("p", np.arange(40), y, groups, ("no", "yes"))
    config = dataclasses.replace(CONFIG, ks=(1, 2, 100), n_folds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sweep([problem], Matrices({"wide": X}), config)
    assert result.cell("p", "wide", k=2).support == (1, 2)
    assert result.estimate("p", "wide", k=1).value == 1.0
    assert np.isfinite([cell.test.auc.value for cell in result.cells]).all()
