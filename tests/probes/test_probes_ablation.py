"""Taking planted latents away: the spurious ones undo the bias, and each class's latents harm that class's probe alone."""

import numpy as np
import pytest
from scipy import sparse

from probes.ablation import AblationCurve, latent_effects, spurious_correlation_removal, targeted_perturbation, without_latents
from probes.linear import DenseProbe
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json

N, D_IN, D_SAE = 3000, 48, 60


def planted(seed=0, n_classes=0):
    """Every concept is a pair of latents, one for each answer (or one latent per class); the others are noise. x = f W + error."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(D_SAE, D_IN))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    W = np.linalg.qr(W.T)[0].T if D_SAE <= D_IN else np.concatenate([np.linalg.qr(rng.normal(size=(D_IN, D_IN)))[0][:20], W[20:]])
    f = (rng.random((N, D_SAE)) < 0.05) * rng.uniform(0.2, 0.5, (N, D_SAE))
    wanted, spurious = rng.integers(0, 2, N), rng.integers(0, 2, N)
    f[:, :12] = 0
    y = rng.integers(0, n_classes, N) if n_classes else wanted
    amplitude = rng.uniform(2, 3, N)
    if n_classes:
        f[np.arange(N), y] = amplitude
    else:
        f[np.arange(N), wanted] = amplitude * 0.6
        f[np.arange(N), 2 + spurious] = amplitude
    acts = (f @ W + 0.2 * rng.normal(size=(N, D_IN))).astype(np.float32)
    order = rng.permutation(N)
    return acts, sparse.csr_matrix(f), W, wanted, spurious, y, order[:2000], order[2000:]


def test_effects_are_the_product_of_both_differences_sparse_or_dense():
    _, codes, W, _, spurious, *_ = planted()
    w = np.random.default_rng(3).normal(size=D_IN)
    slow = np.array(
        [(codes[:, j].toarray()[spurious == 1].mean() - codes[:, j].toarray()[spurious == 0].mean()) * (W[j] @ w) for j in range(D_SAE)]
    )
    np.testing.assert_allclose(latent_effects(codes, spurious, W, w), slow, atol=1e-12)
    np.testing.assert_allclose(latent_effects(codes.toarray(), spurious, W, w), slow, atol=1e-12)


def test_what_is_taken_away_is_what_the_latents_wrote_and_nothing_else():
    acts, codes, W, *_ = planted()
    changed = without_latents(acts, codes, W, np.array([2, 3]))
    zeroed = codes.toarray()
    zeroed[:, [2, 3]] = 0
    error = acts - codes @ W
    np.testing.assert_allclose(changed, zeroed @ W + error, atol=1e-5)
    np.testing.assert_array_equal(without_latents(acts, codes, W, np.array([], dtype=int)), acts)


def test_taking_the_spurious_latents_away_undoes_the_bias():
    acts, codes, W, wanted, spurious, _, train, test = planted()
    curve = spurious_correlation_removal(acts, codes, W, wanted, spurious, train=train, test=test, counts=(2, 500))
    assert curve.counts == (2,)
    assert curve.values[0] == pytest.approx(1.0, abs=0.05)
    assert abs(curve.null_means[0]) < 0.2
    assert curve.before < 0.9 < curve.oracle


def test_the_latents_of_a_class_harm_its_own_probe_and_no_other():
    acts, codes, W, _, _, y, train, test = planted(n_classes=4)
    names = np.array(["a", "b", "c", "d"])[y]
    curve = targeted_perturbation(acts, codes, W, names, train=train, test=test, counts=(1, 2, 1000))
    assert curve.counts == (1, 2)
    assert curve.before > 0.97
    assert curve.values[0] == pytest.approx(0.5, abs=0.06)  # a class that is never found: half of its balanced rows are wrong
    assert abs(curve.null_means[0]) < 0.1
    codes_of_others = codes[np.random.default_rng(0).permutation(N)]
    assert targeted_perturbation(acts, codes_of_others, W, names, train=train, test=test, counts=(1,)).values[0] < 0.2


def test_the_curve_shows_itself_and_survives_json():
    acts, codes, W, wanted, spurious, _, train, test = planted()
    curve = spurious_correlation_removal(
        acts, codes, W, wanted, spurious, train=train, test=test, counts=(1, 2, 5), probe=DenseProbe(C=0.1)
    )
    assert from_json(AblationCurve, to_json(curve)) == curve
    assert curve.table().column("SCR") == list(curve.values)
    assert [trace.name for trace in curve.figure().data] == ["random latents", "largest effects"]
    again = spurious_correlation_removal(
        acts, codes, W, wanted, spurious, train=train, test=test, counts=(1, 2, 5), probe=DenseProbe(C=0.1)
    )
    assert again == curve


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": sparse.csr_matrix((N, 3))}, ["codes must be [3000, 60]", "[3000, 3]"]),
        ({"wanted": np.full(N, 2)}, ["wanted must hold 0 or 1", "[2]"]),
        ({"spurious": np.zeros(5, int)}, ["spurious", "got 5"]),
        ({"acts": np.full((N, D_IN), np.nan, np.float32)}, ["must be finite"]),
        ({"test": np.arange(N)}, ["must not share rows", "2000 shared"]),
        ({"counts": (0, 1000)}, ["counts must hold a number in 1..d_sae=60"]),
        ({"wanted": np.zeros(N, int)}, ["every combination"]),
        ({"wanted": "spurious"}, ["every combination"]),
    ],
)
def test_bad_input_is_named(change, words):
    acts, codes, W, wanted, spurious, _, train, test = planted()
    given = {"acts": acts, "codes": codes, "W_dec": W, "wanted": wanted, "spurious": spurious, "train": train, "test": test} | change
    if isinstance(given["wanted"], str):
        given["wanted"] = np.where(np.arange(N) == train[0], 1 - spurious, spurious)
    with pytest.raises(ConfigError) as caught:
        spurious_correlation_removal(**given)
    assert all(word in str(caught.value) for word in words), caught.value
