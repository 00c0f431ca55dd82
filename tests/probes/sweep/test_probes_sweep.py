"""Sweeps against the single evaluations they stand for, on disk, in parallel, and on input that cannot be used."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from probes.linear import DenseProbe
from probes.problem import Problem
from probes.sparse import KSparseProbe
from probes.sweep import RANDOM, SweepConfig, sweep
from probes.validation import METRICS, Fold, evaluate_probes, group_folds, group_holdout, null_splits

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
