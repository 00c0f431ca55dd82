"""Spectral lobes against planted topics, scikit-learn's clustering, closed forms, and the affinities that find them or do not."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_mutual_info_score

from sae.errors import ConfigError
from sae.geometry.coactivation import coactivation, firings, nearest_by_coactivation
from sae.geometry.lobes import (
    coactivation_graph,
    cosine_affinity,
    cosine_graph,
    dense_affinity,
    neighbour_graph,
    spectral_lobes,
    spectral_lobes_of_graph,
)
from sae.geometry.lobes import spectral as module


def topics(low, high, inside, outside, *, even=False, seed=0, n_latents=400, n_blocks=4000):
    """Blocks of one of two topics; latents of the block's topic fire `inside` times as often as their rate, the others `outside` times."""
    rng = np.random.default_rng(seed)
    lobe = np.arange(n_latents) * 2 // n_latents
    rate = np.exp(rng.uniform(np.log(low), np.log(high), n_latents))
    rate = rng.uniform(low, high, n_latents) if even else rate
    of_block = rng.integers(0, 2, n_blocks)
    X = rng.random((n_blocks, n_latents)) < np.clip(rate * np.where(of_block[:, None] == lobe, inside, outside), 0, 1)
    counts = X.sum(1)
    order = np.argsort(~X, axis=1, kind="stable")[:, : counts.max()]
    return firings(torch.from_numpy(order), torch.from_numpy(counts), n_latents=n_latents), lobe, of_block


def agreement(fired, lobe, kind):
    found = spectral_lobes(dense_affinity(coactivation(fired), kind), n_lobes=2, seed=0)
    return adjusted_mutual_info_score(lobe, found.labels)


@pytest.mark.parametrize(("setting", "recorded"), [((0.002, 0.3, 1.3, 0.7), (0.69, 0.74)), ((0.001, 0.4, 1.5, 0.5), (0.86, 0.87))])
def test_phi_and_overlap_find_topics_among_unequal_rates_and_the_others_do_not(setting, recorded):
    fired, lobe, _ = topics(*setting)
    assert agreement(fired, lobe, "overlap") == pytest.approx(recorded[0], abs=0.12)
    assert agreement(fired, lobe, "phi") == pytest.approx(recorded[1], abs=0.12)
    for kind in ("matching", "jaccard", "dice"):
        assert abs(agreement(fired, lobe, kind)) < 0.06


def test_all_affinities_find_easy_topics():
    fired, lobe, _ = topics(0.02, 0.3, 1.8, 0.2, even=True)
    for kind in ("matching", "jaccard", "dice", "overlap", "phi"):
        assert agreement(fired, lobe, kind) > 0.9


def test_thirty_neighbours_by_phi_are_enough():
    fired, lobe, _ = topics(0.002, 0.3, 1.3, 0.7)
    graph = coactivation_graph(nearest_by_coactivation(fired, "phi", n_neighbours=30))
    assert adjusted_mutual_info_score(lobe, spectral_lobes_of_graph(graph, n_lobes=2, seed=0).labels) > 0.5


def blobs(seed=0, n=90):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    truth = torch.arange(n) % 4
    return centres[truth] + 0.5 * torch.randn(n, 10, generator=generator, dtype=torch.float64), truth


def test_lobes_are_those_of_scikit_learn():
    for seed in range(3):
        values = cosine_affinity(blobs(seed)[0])
        theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(values.numpy())
        assert adjusted_mutual_info_score(theirs, spectral_lobes(values, n_lobes=4, seed=0).labels) == pytest.approx(1)


def test_lanczos_finds_what_the_full_decomposition_finds(monkeypatch):
    graph = cosine_graph(blobs(n=200)[0], n_neighbours=12)
    full = spectral_lobes_of_graph(graph, n_lobes=4, seed=0)
    monkeypatch.setattr(module, "DENSE_NODES", 10)
    lanczos = spectral_lobes_of_graph(graph, n_lobes=4, seed=0)
    torch.testing.assert_close(lanczos.eigenvalues, full.eigenvalues, rtol=1e-5, atol=1e-8)
    assert adjusted_mutual_info_score(full.labels, lanczos.labels) > 0.95
    assert torch.equal(lanczos.labels, spectral_lobes_of_graph(graph, n_lobes=4, seed=0).labels)


def test_each_component_has_an_eigenvalue_of_zero_and_cliques_their_closed_form():
    values = torch.block_diag(*[torch.ones(n, n, dtype=torch.float64) - torch.eye(n, dtype=torch.float64) for n in (5, 4, 3)])
    found = spectral_lobes(values, n_lobes=3, seed=0)
    assert found.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3 and found.sizes.tolist() == [5, 4, 3]
    assert found.eigenvalues.tolist() == pytest.approx([0, 0, 0, 1 + 1 / 4], abs=1e-12)  # n / (n - 1) of a clique, the smallest first


def test_a_latent_without_partners_has_no_lobe_and_numbers_go_by_size():
    ids = torch.tensor([[1, -1], [0, 2], [1, -1], [4, -1], [3, -1], [-1, -1]])
    weights = torch.where(ids >= 0, 1.0, 0.0).double()
    found = spectral_lobes_of_graph(neighbour_graph(ids, weights), n_lobes=2, seed=0)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, -1]


def test_graph_takes_the_larger_weight_of_the_two_ends_and_nothing_negative():
    ids = torch.tensor([[1, 2], [0, -1], [1, 0]])
    weights = torch.tensor([[0.5, -0.3], [0.7, 0.0], [0.2, 0.4]], dtype=torch.float64)
    assert neighbour_graph(ids, weights).toarray().tolist() == [[0, 0.7, 0.4], [0.7, 0, 0.2], [0.4, 0.2, 0]]


def test_cosine_affinity_is_one_minus_the_angle_in_half_turns():
    atoms = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    expected = [[1, 0.5, 0, 0.75], [0.5, 1, 0.5, 0.75], [0, 0.5, 1, 0.25], [0.75, 0.75, 0.25, 1]]
    torch.testing.assert_close(cosine_affinity(atoms), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_lobes(-torch.ones(3, 3), n_lobes=2, seed=0), "add 1 to a correlation"),
        (lambda: spectral_lobes(torch.tensor([[0.0, 1.0], [0.5, 0.0]]), n_lobes=2, seed=0), "symmetric"),
        (lambda: spectral_lobes(torch.full((3, 3), math.nan), n_lobes=2, seed=0), "finite"),
        (lambda: spectral_lobes(torch.eye(4), n_lobes=2, seed=0), r"n_lobes must be in 2\.\.0"),
        (lambda: spectral_lobes(torch.ones(4, 4), n_lobes=1, seed=0), r"n_lobes must be in 2\.\.4"),
        (lambda: spectral_lobes(torch.ones(4, 4), n_lobes=5, seed=0), r"n_lobes must be in 2\.\.4"),
        (lambda: spectral_lobes_of_graph(csr_matrix(np.array([[0, 1.0], [0, 0]])), n_lobes=2, seed=0), "symmetric"),
        (lambda: neighbour_graph(torch.tensor([[3]]), torch.ones(1, 1)), "ids must be in"),
        (lambda: neighbour_graph(torch.tensor([[0]]), torch.full((1, 1), math.nan)), "weights must be finite"),
    ],
)
def test_bad_input_of_lobes_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
