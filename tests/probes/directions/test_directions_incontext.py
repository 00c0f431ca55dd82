"""In-context vectors: what they are made of, and the invariants of the update."""

import numpy as np
import pytest

from probes.directions import InContextVector, combine_vectors, contrast_pairs, norm_keeping_update
from sae.errors import ConfigError


def demonstrations(seed=0, n=5, n_layers=3, width=8, shift=2.0):
    rng = np.random.default_rng(seed)
    negative = 3 * rng.normal(size=(n, n_layers * width))
    positive = negative + shift * rng.normal(size=n_layers * width) + rng.normal(size=(n, n_layers * width))
    return contrast_pairs("demos", positive, negative), positive - negative


def test_vector_is_the_mean_difference_plus_the_first_axis_turned_to_it():
    rows, D = demonstrations()
    axis = np.linalg.svd(D - D.mean(0))[2][0]
    expected = D.mean(0) + axis * np.sign(axis @ D.mean(0))
    reader = InContextVector(n_layers=3).fit(rows.X, rows.y, pairs=rows.pairs)
    np.testing.assert_allclose(reader.vector_, expected, atol=1e-10)
    np.testing.assert_array_equal(reader.vectors_, reader.vector_.reshape(3, 8))
    np.testing.assert_allclose(reader.direction_, expected / np.linalg.norm(expected), atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_vector_never_points_against_the_mean_of_the_differences(seed):
    rows, D = demonstrations(seed, shift=0.0)
    vector = InContextVector(n_layers=1).fit(rows.X, rows.y, pairs=rows.pairs).vector_
    assert vector @ D.mean(0) > 0
    order = np.random.default_rng(seed).permutation(len(rows))
    again = InContextVector(n_layers=1).fit(rows.X[order], rows.y[order], pairs=rows.pairs[order]).vector_
    np.testing.assert_allclose(again, vector, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_demonstrations_turned_round_give_the_opposite_vector(seed):
    rows, _ = demonstrations(seed)
    forth, back = (InContextVector().fit(rows.X, y, pairs=rows.pairs).vector_ for y in (rows.y, 1 - rows.y))
    np.testing.assert_allclose(back, -forth, atol=1e-10)


def test_one_demonstration_gives_its_difference():
    rows, D = demonstrations(n=1)
    np.testing.assert_allclose(InContextVector().fit(rows.X, rows.y, pairs=rows.pairs).vector_, D[0], atol=1e-12)


def states(seed=1, n=50, d=16):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-3, 3, (n, 1)), rng.normal(size=d) * 7


def cosine(x, v):
    return x @ v / np.linalg.norm(x, axis=-1) / np.linalg.norm(v)


@pytest.mark.parametrize("strength", [0, 0.1, 0.5, 3.0])
def test_update_keeps_the_length_of_every_row(strength):
    x, v = states()
    np.testing.assert_allclose(np.linalg.norm(norm_keeping_update(x, v, strength=strength), axis=1), np.linalg.norm(x, axis=1), rtol=1e-14)
    x32 = x.astype(np.float32)
    moved = norm_keeping_update(x32, v, strength=strength)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(x32, axis=1), rtol=1e-6)


def test_update_of_strength_zero_is_the_identity_bit_for_bit_and_a_copy():
    x, v = states()
    same = norm_keeping_update(x, v, strength=0)
    np.testing.assert_array_equal(same, x)
    assert same is not x


def test_cosine_with_the_vector_does_not_fall_as_the_strength_grows():
    x, v = states()
    x[0], x[1], x[2] = -v, v, -3 * v + 1e-6
    cosines = np.stack([cosine(norm_keeping_update(x, v, strength=s), v) for s in np.linspace(0, 4, 81)])
    assert np.diff(cosines, axis=0).min() > -1e-12
    assert cosines[-1].min() > 0.9


def test_update_is_the_formula_and_does_not_see_the_length_of_the_vector():
    x, v = states()
    u, w = x / np.linalg.norm(x, axis=1, keepdims=True), v / np.linalg.norm(v)
    turned = u + 0.1 * (1 + np.maximum(0, -(u @ w)))[:, None] * w
    expected = turned / np.linalg.norm(turned, axis=1, keepdims=True) * np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(norm_keeping_update(x, v), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(norm_keeping_update(x, 1e-8 * v), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(norm_keeping_update(x.reshape(5, 10, 16), v).reshape(50, 16), expected, rtol=1e-12, atol=1e-14)
    assert not np.shares_memory(norm_keeping_update(x, v), x)


def test_zero_rows_and_rows_that_would_cancel_stay():
    v = np.array([1.0, 0, 0])
    x = np.array([[0.0, 0, 0], [-4, 0, 0], [0, 2, 0]])
    moved = norm_keeping_update(x, v, strength=0.5)
    np.testing.assert_array_equal(moved[:2], x[:2])
    assert moved[2] @ v > 0


def test_vectors_add_with_their_strengths():
    a, b = np.arange(3.0), np.ones(3)
    np.testing.assert_array_equal(combine_vectors([a, b], [2.0, -1]), 2 * a - b)
    with pytest.raises(ConfigError, match="as many"):
        combine_vectors([a], [1.0, 2.0])


@pytest.mark.parametrize(("strength", "v"), [(-0.1, np.ones(16)), (np.inf, np.ones(16)), (np.nan, np.ones(16)), (0.1, np.zeros(16))])
def test_strengths_and_vectors_that_make_no_sense_are_refused(strength, v):
    with pytest.raises(ConfigError, match="norm_keeping_update"):
        norm_keeping_update(states()[0], v, strength=strength)
