"""Clusters of atoms: planted cones, components of a graph, spectral embeddings against dense oracles, stability."""

import math

import networkx
import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_mutual_info_score

from sae.errors import ConfigError
from sae.geometry.multidimensional import (
    best_jaccard,
    clusters_of_labels,
    compare_best_jaccard,
    dense_spectral_clusters,
    graph_clusters,
    graph_sweep,
    spectral,
    spectral_clusters,
    stability,
)
from sae.geometry.topology import cone_of


def orthonormal(n, d, seed):
    return torch.linalg.qr(torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q.T


def cone(n, d, axis_share, seed):
    """n atoms evenly spaced on a cone of R^d."""
    m, u, v = orthonormal(3, d, seed)
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64)[:, None] / n
    return axis_share**0.5 * m + (1 - axis_share) ** 0.5 * (angles.cos() * u + angles.sin() * v)


def random_atoms(n, d, seed):
    atoms = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return atoms / atoms.norm(dim=1, keepdim=True)


def groups(n_groups, size, d, spread, seed):
    """Atoms about n_groups random directions, shuffled, with their groups."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n_groups).repeat_interleave(size)[torch.randperm(n_groups * size, generator=generator)]
    atoms = random_atoms(n_groups, d, seed)[truth] + spread * torch.randn(len(truth), d, generator=generator, dtype=torch.float64) / d**0.5
    return atoms, truth


def agreement(a, b):
    return adjusted_mutual_info_score(a.numpy(), b.numpy())


@pytest.mark.parametrize("top_k", [2, None])
def test_graph_finds_a_planted_cone_among_random_atoms_and_nothing_else(top_k):
    atoms = torch.cat([random_atoms(200, 128, 1), cone(9, 128, 0.671, 2), random_atoms(300, 128, 3)])
    found = graph_clusters(atoms, top_k=top_k, min_cosine=0.5)
    assert found.sizes.tolist() == [9] + [1] * 500
    assert found.members(0).tolist() == list(range(200, 209))
    assert [part.tolist() for part in found.all_members(minimum=2)] == [list(range(200, 209))]
    assert cone_of(atoms[found.members(0)]).mean_cosine == pytest.approx(0.63, abs=0.001)


@pytest.mark.parametrize("top_k", [1, 3, None])
@pytest.mark.parametrize("block_elements", [50, 400, 2**24])
def test_graph_clusters_are_the_connected_components_of_the_graph(top_k, block_elements):
    atoms = torch.randn(60, 6, generator=torch.Generator().manual_seed(4))
    cosines = torch.nn.functional.cosine_similarity(atoms[:, None], atoms[None], dim=2)
    graph = networkx.Graph()
    graph.add_nodes_from(range(60))
    for i in range(60):
        others = [j for j in cosines[i].argsort(descending=True).tolist() if j != i]
        graph.add_edges_from((i, j) for j in others[: top_k or 60] if cosines[i, j] > 0.8)
    expected = {frozenset(part) for part in networkx.connected_components(graph)}
    found = graph_clusters(atoms, top_k=top_k, min_cosine=0.8, block_elements=block_elements)
    assert {frozenset(part.tolist()) for part in found.all_members()} == expected
    assert 5 < found.n_clusters < 60


def test_clusters_are_numbered_by_size_then_by_their_first_atom():
    found = clusters_of_labels(torch.tensor([7, 3, 9, 3, 9, 1]))
    assert found.labels.tolist() == [2, 0, 1, 0, 1, 3]
    assert found.sizes.tolist() == [2, 2, 1, 1]
    assert found.members(1).tolist() == [2, 4]
    assert [part.tolist() for part in found.all_members(minimum=1, maximum=1)] == [[0], [5]]


def test_clusters_do_not_change_with_the_length_of_atoms_rotation_or_dtype():
    atoms, _ = groups(5, 8, 20, 0.5, 5)
    lengths = torch.rand(len(atoms), 1, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 0.1
    turned = (atoms * lengths) @ orthonormal(20, 20, 7)
    for method in (
        graph_clusters,
        lambda x: spectral_clusters(x, n_clusters=5, n_neighbours=6),
        lambda x: dense_spectral_clusters(x, n_clusters=5),
    ):
        first = method(atoms)
        assert torch.equal(method(turned).labels, first.labels)
        assert torch.equal(method(atoms.float()).labels, first.labels)
        order = torch.randperm(len(atoms), generator=torch.Generator().manual_seed(8))
        assert agreement(method(atoms[order]).labels, first.labels[order]) == pytest.approx(1)


def test_a_sweep_gives_what_each_setting_gives_by_itself():
    atoms = torch.randn(80, 5, generator=torch.Generator().manual_seed(9))
    sweep = graph_sweep(atoms, top_ks=(1, 2, 4), min_cosines=(0.5, 0.9))
    for i, top_k in enumerate((1, 2, 4)):
        for j, cutoff in enumerate((0.5, 0.9)):
            assert torch.equal(sweep[i][j].labels, graph_clusters(atoms, top_k=top_k, min_cosine=cutoff).labels)


@pytest.mark.parametrize("method", [spectral_clusters, dense_spectral_clusters])
def test_spectral_clusters_find_planted_groups_and_depend_on_the_seed_alone(method):
    atoms, truth = groups(7, 12, 40, 0.7, 10)
    found = method(atoms, n_clusters=7, seed=3)
    assert agreement(found.labels, truth) == pytest.approx(1)
    assert torch.equal(found.labels, method(atoms, n_clusters=7, seed=3).labels)


def test_dense_spectral_clusters_are_those_of_scikit_learn():
    atoms, _ = groups(6, 20, 12, 0.9, 11)
    cosines = torch.nn.functional.cosine_similarity(atoms[:, None], atoms[None], dim=2).fill_diagonal_(0)
    affinity = (1 - cosines.clamp(-1, 1).arccos() / math.pi).numpy()
    oracle = SpectralClustering(n_clusters=6, affinity="precomputed", random_state=0).fit(affinity)
    assert agreement(dense_spectral_clusters(atoms, n_clusters=6).labels, torch.from_numpy(oracle.labels_)) > 0.95


@pytest.mark.parametrize("block_elements", [500, 2**24])
def test_embeddings_are_the_leading_eigenvectors_of_the_normalised_affinity(block_elements):
    atoms, _ = groups(4, 15, 10, 0.8, 12)
    cosines = torch.nn.functional.cosine_similarity(atoms[:, None], atoms[None], dim=2)
    affinity = (1 - cosines.clamp(-1, 1).arccos() / math.pi).fill_diagonal_(0)
    nearest = torch.zeros_like(affinity).scatter(1, affinity.topk(5, dim=1).indices, 1)
    sparse = affinity * (nearest + nearest.T).clamp(max=1)
    embeddings = {
        "dense": (affinity, spectral.dense_embedding(atoms, n_components=4, seed=0, block_elements=block_elements)),
        "sparse": (sparse, spectral.sparse_embedding(atoms, n_components=4, n_neighbours=5, seed=0, block_elements=block_elements)),
    }
    for matrix, found in embeddings.values():
        degrees = matrix.sum(1)
        values, vectors = torch.linalg.eigh(matrix / (degrees[:, None] * degrees[None]).sqrt())
        torch.testing.assert_close(found.degrees, degrees)
        torch.testing.assert_close(found.eigenvalues, values.flip(0)[:4], atol=1e-6, rtol=0)
        projector = vectors[:, -4:] @ vectors[:, -4:].T
        torch.testing.assert_close(found.vectors @ found.vectors.T, projector, atol=2e-3, rtol=0)
        assert found.residual < 1e-3


def test_spectral_clusters_of_separate_components_are_the_components():
    # Groups at right angles to each other: the eigenvalue 1 as many times as there are groups, where Lanczos finds it once.
    directions = orthonormal(30, 40, 13)
    generator = torch.Generator().manual_seed(14)
    truth = torch.arange(10).repeat_interleave(9)
    mixtures = torch.rand(90, 3, generator=generator, dtype=torch.float64) + 0.3
    atoms = torch.einsum("nk,nkd->nd", mixtures, directions.reshape(10, 3, 40)[truth])
    found = spectral.sparse_embedding(atoms, n_components=10, n_neighbours=8, seed=0)
    torch.testing.assert_close(found.eigenvalues, torch.ones(10, dtype=torch.float64), atol=1e-9, rtol=0)
    assert agreement(spectral_clusters(atoms, n_clusters=10, n_neighbours=8, n_starts=3).labels, truth) == pytest.approx(1)


def test_jaccard_of_a_set_with_a_partition():
    clusters = clusters_of_labels(torch.tensor([0, 0, 0, 1, 1, 2]))
    assert best_jaccard(torch.tensor([0, 1, 2]), clusters) == 1
    assert best_jaccard(torch.tensor([0, 1]), clusters) == pytest.approx(2 / 3)
    assert best_jaccard(torch.tensor([2, 3, 4, 5]), clusters) == pytest.approx(2 / 4)
    generator = torch.Generator().manual_seed(15)
    labels = torch.randint(6, (40,), generator=generator)
    members = torch.randperm(40, generator=generator)[:9]
    parts = [set((labels == each).nonzero()[:, 0].tolist()) for each in labels.unique()]
    chosen = set(members.tolist())
    expected = max(len(chosen & part) / len(chosen | part) for part in parts)
    assert best_jaccard(members, clusters_of_labels(labels)) == pytest.approx(expected)


def test_a_planted_cone_is_stable_over_settings_and_random_sets_are_not():
    atoms = torch.cat([cone(9, 128, 0.671, 2), random_atoms(300, 128, 3)])
    sweep = graph_sweep(atoms, top_ks=(2, 3, 4), min_cosines=np.logspace(-0.4, -0.1, 5).tolist())
    found = stability(torch.arange(9), [each for row in sweep for each in row])
    assert found.tolist() == [1] * 15
    null = compare_best_jaccard(torch.arange(9), sweep[0][0], n_null=50, generator=torch.Generator().manual_seed(0))
    assert (null.value, null.p_greater) == (1, 1 / 51)
    assert null.null_mean == pytest.approx(1 / 9, abs=0.05)  # a random set meets singletons


def test_degenerate_atoms_are_clustered_or_refused():
    assert graph_clusters(torch.ones(1, 3)).sizes.tolist() == [1]
    same = torch.ones(20, 4) * torch.rand(20, 1, generator=torch.Generator().manual_seed(0)).add(0.1)
    assert graph_clusters(same).n_clusters <= 7  # ties: each atom joins two of the others
    assert graph_clusters(same, top_k=None).sizes.tolist() == [20]
    assert spectral_clusters(same, n_clusters=3, n_neighbours=19).sizes.sum() == 20
    assert dense_spectral_clusters(torch.randn(5, 9), n_clusters=1).sizes.tolist() == [5]
    wide = torch.randn(8, 30, generator=torch.Generator().manual_seed(1)).half()
    assert dense_spectral_clusters(wide, n_clusters=2).sizes.sum() == 8
    zero, infinite = torch.randn(6, 3), torch.randn(6, 3)
    zero[2], infinite[3, 1] = 0, math.inf
    for method in (
        graph_clusters,
        lambda x: spectral_clusters(x, n_clusters=2, n_neighbours=2),
        lambda x: dense_spectral_clusters(x, n_clusters=2),
    ):
        with pytest.raises(ConfigError, match="zero row"):
            method(zero)
        with pytest.raises(ConfigError, match="finite"):
            method(infinite)
        with pytest.raises(ConfigError, match="rows"):
            method(torch.randn(0, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: graph_clusters(x, min_cosine=1.5), "min_cosine"),
        (lambda x: graph_clusters(x, top_k=6), "n_neighbours"),
        (lambda x: graph_sweep(x, min_cosines=[]), "at least one value"),
        (lambda x: graph_sweep(x, top_ks=(0, 1), min_cosines=[0.5]), "top_ks"),
        (lambda x: spectral_clusters(x, n_clusters=7), "n_clusters"),
        (lambda x: spectral_clusters(x, n_clusters=2, n_components=3, n_neighbours=2), "n_components"),
        (lambda x: spectral_clusters(x, n_clusters=2, n_starts=0, n_neighbours=2), "n_starts"),
        (lambda x: dense_spectral_clusters(x, n_clusters=0), "n_clusters"),
        (lambda x: graph_clusters(x).members(99), "cluster must be"),
        (lambda x: clusters_of_labels(torch.zeros(0, dtype=torch.int64)), "labels"),
        (lambda x: best_jaccard(torch.tensor([1, 1]), graph_clusters(x)), "members"),
        (lambda x: best_jaccard(torch.tensor([6]), graph_clusters(x)), "members"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
