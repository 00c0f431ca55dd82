"""Sparse probes on the rows of a real model's embedding, with labels read off the tokens: no forward pass."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from sklearn.metrics import f1_score, roc_auc_score

from probes.sparse import KSparseProbe, fit_path
from probes.superposition import haar_rotation
from sae.models.assets import default_model

pytestmark = pytest.mark.real_model
SPACE = "\u0120"  # how the tokenizer's file writes a leading space
KS = (1, 4, 16, 64, 576)


@pytest.fixture(scope="module")
def tokens():
    """12,000 random rows of the embedding, and their tokens as the tokenizer's file writes them."""
    folder = default_model()
    ids = {i: token for token, i in json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].items()}
    with safe_open(folder / "model.safetensors", "pt") as file:
        embedding = file.get_tensor("model.embed_tokens.weight")
    rows = np.random.default_rng(42).choice(len(embedding), 12_000, replace=False)
    return embedding[rows].float().numpy(), [ids[int(row)] for row in rows]


def scores(X, y, ks=KS, ranking="mean_difference"):
    """F1 and AUC on the last 30 % of the rows, by k."""
    train = np.arange(len(y)) < 0.7 * len(y)
    path = fit_path(KSparseProbe(ranking=ranking), X[train], y[train], ks)
    f1 = {k: f1_score(y[~train], probe.predict(X[~train])) for k, probe in path.items()}
    return f1, {k: roc_auc_score(y[~train], probe.decision_function(X[~train])) for k, probe in path.items()}


def test_leading_space_is_read_from_one_coordinate_and_less_from_one_after_a_rotation(tokens):
    X, words = tokens
    y = np.array([word.startswith(SPACE) for word in words]).astype(int)
    f1, auc = scores(X, y)
    np.testing.assert_allclose(list(auc.values()), [0.966, 0.992, 0.996, 0.998, 1.0], atol=0.02)
    np.testing.assert_allclose(list(f1.values()), [0.929, 0.978, 0.985, 0.985, 0.997], atol=0.03)
    turned = [scores(X @ haar_rotation(576, seed=seed).astype(np.float32), y, (1,)) for seed in range(3)]
    assert max(found[1][1] for found in turned) < auc[1] - 0.15


def test_spelling_is_spread_over_many_coordinates(tokens):
    X, words = tokens
    plain = [word.removeprefix(SPACE) for word in words]
    upper = np.array([word[:1].isupper() for word in plain]).astype(int)
    capital = scores(X, upper)[0]
    ending = scores(X, np.array([word.endswith("ing") for word in plain]).astype(int))[0]
    np.testing.assert_allclose(list(capital.values()), [0.538, 0.700, 0.854, 0.886, 0.973], atol=0.08)
    # Columns that share what they say are no help to each other: a ranking that fits them together takes better ones.
    assert scores(X, upper, (16,), "l1_path")[0][16] > scores(X, upper, (16,), "standardized_difference")[0][16] + 0.1
    assert list(ending.values()) == sorted(ending.values())
    assert ending[1] < 0.4 and ending[576] == pytest.approx(0.91, abs=0.06)
