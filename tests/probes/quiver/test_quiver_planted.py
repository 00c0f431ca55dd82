"""A planted dictionary: a label that is one latent, which latents must win, and a label that is a direction, which they must lose.

D [256, 64] random unit rows,   f: active with probability .03, amplitude U(1, 2),   x = f D + .3 e,   codes = relu(x D^T - .5)
"""

from typing import NamedTuple

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from probes.baselines import LeadingColumns, latent_probe, logistic_regression
from probes.quiver import QuiverConfig, compare_quivers, fit_quiver
from probes.regimes import scarce_splits

SIZES = [8, 16, 64, 512]
N = 2500


class Planted(NamedTuple):
    acts: np.ndarray
    true_codes: sparse.csr_matrix
    codes: sparse.csr_matrix
    y: np.ndarray


def planted(label: str, seed: int) -> Planted:
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(256, 64))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    f = (rng.random((N, 256)) < 0.03) * rng.uniform(1, 2, (N, 256))
    y = rng.integers(0, 2, N)
    if label == "latent":
        f[:, 7] = y * rng.uniform(1, 2, N)
    acts = f @ D + 0.3 * rng.normal(size=(N, 64))
    if label == "direction":
        projection = acts @ rng.normal(size=64)
        y = (projection > np.median(projection)).astype(int)
    return Planted(acts, sparse.csr_matrix(f), sparse.csr_matrix(np.maximum(acts @ D.T - 0.5, 0)), y)


def mean_auc(make, features: str, label: str, n: int, seeds: range) -> float:
    aucs = []
    for seed in seeds:
        data = planted(label, seed)
        (split,) = scarce_splits(data.y, sizes=[n], seed=seed)
        X = getattr(data, features)
        probe = make().fit(X[split.train], split.y_train)
        aucs.append(roc_auc_score(data.y[split.test], probe.decision_function(X[split.test])))
    return float(np.mean(aucs))


@pytest.mark.parametrize(
    ("label", "of_acts", "of_latents"),
    [("latent", [0.787, 0.825, 0.875, 0.939], [0.85, 0.87, 0.90, 0.92]), ("direction", [0.61, 0.69, 0.85, 0.99], [0.59, 0.61, 0.68, 0.78])],
)
def test_fixed_probes_score_what_is_known_of_the_planted_dictionary(label, of_acts, of_latents):
    found_acts = [mean_auc(LogisticRegression, "acts", label, n, range(8)) for n in SIZES]
    sixteen = [mean_auc(lambda: make_pipeline(LeadingColumns(16), LogisticRegression()), "codes", label, n, range(8)) for n in SIZES]
    np.testing.assert_allclose(found_acts, of_acts, atol=0.05)
    np.testing.assert_allclose(sixteen, of_latents, atol=0.05)


def test_one_true_latent_is_enough_and_one_found_latent_is_as_good_with_few_rows_as_with_many():
    assert [mean_auc(lambda: latent_probe(1), "true_codes", "latent", n, range(4)) for n in SIZES] == [1.0] * 4
    found = [mean_auc(lambda: latent_probe(1), "codes", "latent", n, range(6)) for n in (16, 64, 512)]
    np.testing.assert_allclose(found, 0.935, atol=0.025)


def test_activations_win_on_the_direction_and_the_latent_on_its_own_label():
    few = mean_auc(lambda: latent_probe(1), "codes", "latent", 64, range(10)) - mean_auc(
        logistic_regression, "acts", "latent", 64, range(10)
    )
    assert few > 0.03
    for label, n, margin in (("direction", 64, 0.05), ("direction", 512, 0.05)):
        latents = mean_auc(lambda: latent_probe(16), "codes", label, n, range(5))
        assert mean_auc(logistic_regression, "acts", label, n, range(5)) - latents > margin


def test_the_quiver_says_so_on_both_labels():
    statements = {}
    config = QuiverConfig(ks=(1, 16), methods=("logistic regression",))
    for label, sizes in (("latent", [64]), ("direction", [512])):
        scores = []
        for seed in range(5):
            data = planted(label, 100 + seed)
            splits = scarce_splits(data.y, sizes=sizes, seed=seed)
            scores += fit_quiver(f"{label} {seed}", data.acts, {"encoder": data.codes}, data.y, splits, config)
        statements[label] = compare_quivers(scores)
    latent, direction = statements["latent"], statements["direction"]
    assert latent.added.value > 0.03
    assert latent.excess.low > 0
    assert "So latents add to what the baselines read" in latent.statement()
    assert np.mean([row.chose_latents for row in latent.rows]) > 0.7
    assert direction.alone.high < -0.1
    assert direction.added.value == 0
    assert "So latents add" not in direction.statement()
    assert np.mean([row.chose_latents for row in direction.rows]) == 0
    assert abs(direction.duplicates.value) < 0.03
