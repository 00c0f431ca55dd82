"""Spherical k-means against planted clusters, a plain loop, and the properties of its objective."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from sae.errors import ConfigError
from sae.geometry.kmeans import spherical_kmeans


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def planted(n=600, d=20, n_clusters=8, noise=0.4):
    generator = seeded(0)
    centres = torch.randn(n_clusters, d, generator=generator)
    truth = torch.randint(n_clusters, (n,), generator=generator)
    lengths = 0.1 + 5 * torch.rand(n, 1, generator=generator)
    return lengths * (centres[truth] + noise * torch.randn(n, d, generator=generator)), truth


def test_planted_directions_are_found_whatever_their_lengths():
    points, truth = planted()
    best = max((spherical_kmeans(points, n_clusters=8, generator=seeded(s)) for s in range(4)), key=lambda found: found.objectives[-1])
    assert adjusted_mutual_info_score(truth, best.labels) > 0.99


def test_result_is_a_fixed_point_of_a_plain_loop_and_its_objective_rises():
    points, _ = planted(n=300, noise=1.0)
    found = spherical_kmeans(points.double(), n_clusters=12, generator=seeded(1), n_iterations=200, tolerance=0.0)
    unit = (points.double() / points.double().norm(dim=1, keepdim=True)).numpy()
    centres = np.array([unit[found.labels.numpy() == c].sum(axis=0) for c in range(12)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centres.numpy(), centres, atol=1e-12)
    np.testing.assert_array_equal((unit @ centres.T).argmax(axis=1), found.labels.numpy())
    np.testing.assert_allclose(found.cosines.numpy(), (unit @ centres.T).max(axis=1), atol=1e-12)
    assert (found.objectives.diff() >= -1e-12).all()


def test_seed_decides_and_blocks_rotation_and_scale_do_not():
    points, _ = planted()
    points = points.double()
    first = spherical_kmeans(points, n_clusters=8, generator=seeded(3))
    assert torch.equal(first.labels, spherical_kmeans(points, n_clusters=8, generator=seeded(3), block_elements=100).labels)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=seeded(4), dtype=torch.float64)).Q
    assert torch.equal(first.labels, spherical_kmeans(3 * points @ turn, n_clusters=8, generator=seeded(3)).labels)


def test_no_cluster_is_empty_even_among_copies_and_every_row_may_be_its_own():
    copies = torch.eye(3).repeat(5, 1)
    found = spherical_kmeans(copies, n_clusters=6, generator=seeded(0))
    assert found.labels.bincount(minlength=6).min() >= 1 and found.cosines.min() > 0.999
    alone = spherical_kmeans(torch.randn(7, 4, generator=seeded(1)), n_clusters=7, generator=seeded(2))
    assert sorted(alone.labels.tolist()) == list(range(7))
    one = spherical_kmeans(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), n_clusters=1, generator=seeded(0))  # rows that cancel
    assert one.labels.tolist() == [0, 0] and one.centres.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spherical_kmeans(torch.eye(3), n_clusters=4, generator=seeded(0)), r"n_clusters must be in 1\.\.n=3, got 4"),
        (lambda: spherical_kmeans(torch.eye(3), n_clusters=2, generator=seeded(0), n_iterations=0), "n_iterations must be at least 1"),
        (lambda: spherical_kmeans(torch.zeros(3, 2), n_clusters=2, generator=seeded(0)), "no zero row"),
        (lambda: spherical_kmeans(torch.full((3, 2), torch.nan), n_clusters=2, generator=seeded(0)), "finite"),
    ],
)
def test_bad_input_of_kmeans_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
