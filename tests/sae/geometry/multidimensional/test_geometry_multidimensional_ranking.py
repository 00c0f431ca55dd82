"""From sparse codes to a ranked list: reconstruction by cluster, the planted cone end to end, nulls of the scores, views."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from universal import Measure, check

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.multidimensional import (
    MixtureConfig,
    PlaneScores,
    Ranking,
    RankingConfig,
    SeparabilityConfig,
    cluster_cloud,
    cluster_components,
    cluster_view,
    code_columns,
    components,
    graph_clusters,
    mixture_index,
    plane,
    plane_scores,
    rank_clusters,
    separability,
)

AXIS_SHARE, N_ATOMS, D_IN = 0.671, 9, 128


def planted(n_tokens=6000, n_random=500, seed=0):
    """(atoms, codes, the cone's atoms): nine atoms on a cone that code an angle in seven noisy classes; random atoms, of which a token has 16."""
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    m, u, v = torch.linalg.qr(torch.randn(D_IN, 3, generator=generator, dtype=torch.float64)).Q.T
    angles = 2 * math.pi * torch.arange(N_ATOMS, dtype=torch.float64)[:, None] / N_ATOMS
    cone = AXIS_SHARE**0.5 * m + (1 - AXIS_SHARE) ** 0.5 * (angles.cos() * u + angles.sin() * v)
    others = torch.randn(n_random, D_IN, generator=generator, dtype=torch.float64)
    atoms = torch.cat([others / others.norm(dim=1, keepdim=True), cone])
    angle = 2 * math.pi * random.integers(0, 7, n_tokens) / 7 + 0.1 * random.normal(size=n_tokens)
    place = (angle / (2 * math.pi) * N_ATOMS) % N_ATOMS
    first, share = place.astype(int), place % 1
    intensity = random.uniform(0.3, 1.5, n_tokens)
    indices = np.stack([n_random + first, n_random + (first + 1) % N_ATOMS, *random.integers(0, n_random, (16, n_tokens))], 1)
    values = np.stack([(1 - share) * intensity, share * intensity, *random.uniform(0.3, 1.5, (16, n_tokens))], 1)
    codes = SparseCodes(torch.from_numpy(indices), torch.from_numpy(values), torch.full((n_tokens,), 18), len(atoms))
    return atoms, codes, torch.arange(n_random, n_random + N_ATOMS)


@pytest.fixture(scope="module")
def world():
    return planted()


def small_codes(n=300, d_sae=12, k=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.rand(n, d_sae, generator=generator).argsort(1)[:, :k]
    values = torch.randn(n, k, generator=generator, dtype=torch.float64)
    counts = torch.randint(0, k + 1, (n,), generator=generator)
    used = torch.arange(k) < counts[:, None]
    return SparseCodes(indices * used, values * used, counts, d_sae), torch.randn(d_sae, 5, generator=generator, dtype=torch.float64)


def test_a_planted_cone_is_found_reconstructed_and_scored_as_the_reference_says(world):
    atoms, codes, members = world
    assert graph_clusters(atoms).members(0).tolist() == members.tolist()
    found = plane_scores(codes, atoms, [members])
    assert found.variance_shares[0].tolist() == pytest.approx([0.40, 0.37, 0.23, 0, 0], abs=0.02)
    assert found.mixture[0, 0].item() == pytest.approx(0.157, abs=0.02)
    assert found.separability[0, 0].item() == pytest.approx(1.01, abs=0.05)
    assert found.separability[0, 2:].isnan().all()  # three dimensions have two planes
    assert found.n_active.tolist() == [6000]
    assert found.scores()[0].item() == pytest.approx(((1 - found.mixture) * found.separability)[0, :2].mean().item())


def test_points_are_the_reconstruction_by_the_cluster_on_the_tokens_where_it_is_active():
    codes, atoms = small_codes()
    members = torch.tensor([7, 2, 9])
    dense = codes.dense()
    for threshold in (0.0, 0.8):
        active = (dense[:, members].abs() > threshold).any(1)
        for form in (codes, codes.csr(), codes.csr().tocsc(), code_columns(codes)):
            cloud = cluster_cloud(form, atoms, members, threshold=threshold)
            assert cloud.row_ids.tolist() == active.nonzero()[:, 0].tolist()
            torch.testing.assert_close(cloud.points(), dense[active][:, members] @ atoms[members])
            assert cloud.n_active == int(active.sum())


def test_rows_above_the_limit_are_taken_at_equal_distances():
    codes, atoms = small_codes()
    everything = cluster_cloud(codes, atoms, torch.arange(12))
    part = cluster_cloud(codes, atoms, torch.arange(12), max_rows=10)
    assert part.n_active == len(everything.row_ids)
    steps = torch.searchsorted(everything.row_ids, part.row_ids)
    assert (steps[0].item(), steps[-1].item()) == (0, len(everything.row_ids) - 1)
    assert steps.diff().max() - steps.diff().min() <= 1


@pytest.mark.parametrize("n_members", [2, 4, 9])  # fewer and more than the width
def test_components_are_those_of_a_principal_component_analysis_in_the_full_space(n_members):
    codes, atoms = small_codes()
    cloud = cluster_cloud(codes, atoms, torch.arange(n_members))
    found, oracle = cluster_components(cloud, n_components=4), PCA(min(4, n_members, 5)).fit(cloud.points().numpy())
    torch.testing.assert_close(found.variance_shares, torch.from_numpy(oracle.explained_variance_ratio_))
    torch.testing.assert_close(found.mean, torch.from_numpy(oracle.mean_))
    signs = torch.sign((found.directions * torch.from_numpy(oracle.components_)).sum(1))
    torch.testing.assert_close(found.directions * signs[:, None], torch.from_numpy(oracle.components_), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.scores, (cloud.points() - found.mean) @ found.directions.T)
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize(("n", "d"), [(200, 6), (10, 30)])
def test_components_of_any_cloud_are_those_of_the_oracle(n, d):
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * torch.linspace(1, 3, d)
    found, oracle = components(points, n_components=4), PCA(4).fit(points.numpy())
    torch.testing.assert_close(found.variance_shares, torch.from_numpy(oracle.explained_variance_ratio_))
    torch.testing.assert_close(found.scores.abs(), torch.from_numpy(oracle.transform(points.numpy())).abs())


def test_variance_shares_have_the_properties_of_their_definition():
    measure = Measure("shares", lambda x: components(x).variance_shares, rotation=True, scale=True, translation=True, linear=False)
    check(measure)


def test_plane_scores_are_the_two_measures_of_each_principal_plane():
    codes, atoms = small_codes(n=600)
    clusters = [torch.tensor([0, 3, 5, 8]), torch.tensor([1, 2]), torch.tensor([11])]
    config = RankingConfig(
        n_planes=2, min_points=50, max_points=200, separability=SeparabilityConfig(bins=8, n_angles=20), mixture=MixtureConfig(n_angles=60)
    )
    found = plane_scores(codes, atoms, clusters, config=config)
    scores = cluster_components(cluster_cloud(codes, atoms, clusters[0], max_rows=200), n_components=3).scores
    for i in (0, 1):
        assert found.separability[0, i].item() == separability(scores[:, i : i + 2], config=config.separability).value
        assert found.mixture[0, i].item() == mixture_index(scores[:, i : i + 2], config=config.mixture).value
    assert found.separability.isnan().tolist() == [[False, False], [False, True], [True, True]]
    assert found.scores().isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("null", ["shuffled codes", "random atoms"])
def test_a_planted_cone_exceeds_its_null_by_more_than_random_clusters_theirs(world, null):
    atoms, codes, members = world
    random = np.random.default_rng(3)
    others = [torch.from_numpy(np.sort(random.choice(500, N_ATOMS, replace=False))) for _ in range(5)]
    config = RankingConfig(
        max_points=1500, n_planes=2, separability=SeparabilityConfig(n_angles=40), mixture=MixtureConfig(n_angles=180, n_refined=0)
    )
    found = rank_clusters(codes, atoms, [others[0], members, *others[1:], torch.tensor([0])], null=null, n_null=12, seed=0, config=config)
    excess = found.excess()
    assert excess[:6].argmax() == 1
    assert excess[1] > 0.3
    # Atoms that hardly ever fire together have the larger scores, so the order by score alone does not find it.
    assert found.scores[0] > found.scores[1]
    assert found.order[-1] == 6  # a single atom has no plane
    assert found.p_values[1].item() == pytest.approx(1 / 13)
    assert found.p_values[6].isnan()
    assert found.null_scores[6].isnan().all()
    assert (found.p_values[[0, 2, 3, 4, 5]] > 0.1).sum() >= 3
    # Atoms that fire independently of each other do not score 0.
    assert found.null_scores[1].mean() > 0.2
    standing = found.standing()
    assert standing[1].p_greater <= (1 if null == "shuffled codes" else 4) / (1 + 6 * 12)  # 6 clusters of 12 draws
    assert min(range(6), key=lambda i: standing[i].p_greater) == 1
    assert standing[6] is None
    for i in (1, 3):
        assert found.p_values[i].item() == pytest.approx((1 + (found.null_scores[i] >= found.scores[i]).sum().item()) / 13)
    best = rank_clusters(codes, atoms, [others[0], members], null=null, n_null=2, seed=0, n_compared=1, config=config)
    assert best.p_values.isnan().tolist() == [False, True]
    assert (found.scores[found.order[:6]].diff() <= 0).all()


def test_a_ranking_depends_on_the_seed_and_not_on_the_number_of_threads():
    codes, atoms = small_codes(n=600)
    clusters = [torch.tensor([0, 3, 5, 8]), torch.tensor([1, 2])]
    few = {"separability": SeparabilityConfig(bins=8, n_angles=20), "mixture": MixtureConfig(n_angles=60)}
    runs = [
        rank_clusters(
            codes, atoms, clusters, null=null, n_null=6, seed=seed, config=RankingConfig(n_planes=2, min_points=50, workers=workers, **few)
        )
        for null in ("random atoms", "shuffled codes")
        for seed, workers in ((0, 1), (0, 3), (1, 1))
    ]
    for same, threads, other in (runs[:3], runs[3:]):
        assert torch.equal(same.null_scores, threads.null_scores)
        assert not torch.equal(same.null_scores, other.null_scores)
        assert torch.equal(same.scores, other.scores)


def test_shuffled_codes_keep_every_latents_values_and_lose_their_coincidence(world):
    from sae.geometry.multidimensional.ranking import _shuffled

    _, codes, members = world
    columns = code_columns(codes)
    part = columns[:, members.numpy()]
    shuffled = _shuffled(part, np.random.default_rng(5))
    for i in range(N_ATOMS):
        assert np.array_equal(np.sort(shuffled[:, [i]].data), np.sort(part[:, [i]].data))
    together = lambda z: float(((z > 0).sum(1) == 2).mean())  # noqa: E731
    assert together(part.toarray()) > 0.95
    assert together(shuffled.toarray()) < 0.5


def test_random_atoms_fire_about_as_often_as_those_they_stand_for():
    from sae.geometry.multidimensional.ranking import _firing_ranks, _like

    counts = np.random.default_rng(6).integers(0, 1000, 400)
    counts[7] = 0
    members = np.array([3, 50, 200, 399])
    for seed in range(20):
        drawn = _like(members, _firing_ranks(counts), np.random.default_rng(seed))
        assert len(set(drawn.tolist())) == 4
        assert 7 not in drawn
        assert np.abs(np.sort(counts[drawn]) - np.sort(counts[members])).max() < 150


def test_a_view_orders_the_atoms_of_a_ring_and_shows_its_two_dimensions(world):
    atoms, codes, members = world
    order = torch.randperm(N_ATOMS, generator=torch.Generator().manual_seed(6))
    view = cluster_view(cluster_cloud(codes, atoms, members[order]))
    around = order[view.leaves]
    assert set(((around - around.roll(1)) % N_ATOMS).tolist()) in ({1}, {N_ATOMS - 1})
    assert (view.cosines.diagonal(offset=1) > 0.9).all()
    expected = [(N_ATOMS * AXIS_SHARE) ** 0.5, *[(N_ATOMS * (1 - AXIS_SHARE) / 2) ** 0.5] * 2]
    assert view.singular_values[:3].tolist() == pytest.approx(expected)
    assert view.centred_singular_values[:3].tolist() == pytest.approx([*expected[1:], 0], abs=1e-6)
    assert plane(view.components, 2).shape == (6000, 2)
    with pytest.raises(ConfigError, match="first"):
        plane(view.components, 5)


def test_degenerate_clusters_have_no_score_or_a_reason():
    codes, atoms = small_codes()
    silent = SparseCodes(codes.indices * 0, codes.values * 0, codes.counts * 0, 12)
    empty = cluster_cloud(silent, atoms, torch.tensor([1, 2]))
    assert (empty.points().shape, empty.n_active) == ((0, 5), 0)
    assert plane_scores(silent, atoms, [torch.tensor([1, 2])]).scores().isnan().all()
    constant = components(torch.ones(4, 3) * 0.1)
    assert (constant.variance_shares.sum(), constant.scores.abs().max() < 1e-9) == (0, True)
    with pytest.raises(ConfigError, match="active row"):
        cluster_components(empty)
    with pytest.raises(ConfigError, match="min_points"):
        rank_clusters(silent, atoms, [torch.tensor([1, 2])], null="random atoms", n_null=3, seed=0)
    poisoned = SparseCodes(codes.indices, codes.values / 0, codes.counts, 12)
    with pytest.raises(ConfigError, match="codes must be finite"):
        cluster_cloud(poisoned, atoms, torch.arange(12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda codes, atoms: cluster_cloud(codes, atoms[:-1], torch.tensor([1])), "atoms must have a row"),
        (lambda codes, atoms: cluster_cloud(codes, atoms, torch.tensor([1, 1])), "members"),
        (lambda codes, atoms: cluster_cloud(codes, atoms, torch.tensor([12])), "members"),
        (lambda codes, atoms: cluster_cloud(codes, atoms, torch.tensor([1]), threshold=-1.0), "threshold"),
        (lambda codes, atoms: cluster_cloud(codes, atoms, torch.tensor([1]), max_rows=0), "max_rows"),
        (lambda codes, atoms: cluster_cloud(codes, atoms / 0, torch.tensor([1])), "finite"),
        (lambda codes, atoms: components(atoms, n_components=0), "n_components"),
        (lambda codes, atoms: plane_scores(codes, atoms, []), "at least one cluster"),
        (lambda codes, atoms: rank_clusters(codes, atoms, [torch.arange(3)], null="random atoms", n_null=1, seed=0), "n_null"),
        (lambda codes, atoms: RankingConfig(n_planes=0), "n_planes"),
        (lambda codes, atoms: RankingConfig(min_points=10, max_points=5), "max_points"),
        (lambda codes, atoms: RankingConfig(min_variance=0.5), "min_variance"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(*small_codes())


def ranking_of(scores, null_scores):
    nothing = torch.full((len(scores), 1), torch.nan, dtype=torch.float64)
    planes = PlaneScores(nothing, nothing, nothing, torch.zeros(len(scores), dtype=torch.long))
    return Ranking(scores.argsort(descending=True), scores, nothing[:, 0], null_scores, planes)


def test_the_standing_of_a_cluster_is_the_studentised_score_among_those_of_all_draws():
    generator = torch.Generator().manual_seed(5)
    place, width = torch.tensor([0.2, 5.0, -1.0, 0.4]), torch.tensor([0.1, 2.0, 0.5, 0.1])
    null = place[:, None] + width[:, None] * torch.randn(4, 9, generator=generator)
    null[2, 3] = torch.nan  # a draw without a score
    null[3, 2:] = torch.nan  # too few draws
    scores = torch.tensor([0.45, 5.2, -0.9, 0.4])

    def t(value, draws):
        return (value - np.mean(draws)) / (np.std(draws, ddof=1) * (1 + 1 / len(draws)) ** 0.5)

    rows = [[v for v in row.double().tolist() if not math.isnan(v)] for row in null[:3]]
    pool = [t(row[i], row[:i] + row[i + 1 :]) for row in rows for i in range(len(row))]
    found = ranking_of(scores, null).standing()
    for i, row in enumerate(rows):
        own = t(scores[i].item(), row)
        assert found[i].p_greater == pytest.approx((1 + sum(d >= own for d in pool)) / (1 + len(pool)))
        assert found[i].p_less == pytest.approx((1 + sum(d <= own for d in pool)) / (1 + len(pool)))
        assert (found[i].null_mean, found[i].null_sd) == pytest.approx((np.mean(row), np.std(row, ddof=1)))
        assert found[i].n_null == 9 + 9 + 8
    assert found[3] is None


def test_the_standing_of_a_cluster_does_not_change_with_the_place_and_width_of_its_nulls():
    generator = torch.Generator().manual_seed(6)
    null, scores = torch.randn(3, 12, generator=generator, dtype=torch.float64), torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    by, to = torch.tensor([2.0, 0.1, 7.0], dtype=torch.float64), torch.tensor([-3.0, 0.0, 9.0], dtype=torch.float64)
    moved = ranking_of(scores * by + to, null * by[:, None] + to[:, None]).standing()
    assert [each.p_greater for each in moved] == [each.p_greater for each in ranking_of(scores, null).standing()]


def test_p_values_of_standings_are_uniform_where_scores_are_draws():
    generator, p = torch.Generator().manual_seed(7), []
    for _ in range(60):
        draws = torch.randn(10, 21, generator=generator, dtype=torch.float64)
        p += [each.p_greater for each in ranking_of(draws[:, 0], draws[:, 1:]).standing()]
    for level in (0.02, 0.1, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * (level * (1 - level) / len(p)) ** 0.5)


def test_a_cluster_whose_draws_are_all_the_same_stands_at_the_end_or_in_the_middle():
    null = torch.tensor([[1.0] * 5, [1.0] * 5, [0.1, 0.4, 0.2, 0.6, 0.3]], dtype=torch.float64)
    above, equal, _ = ranking_of(torch.tensor([1.5, 1.0, 0.3], dtype=torch.float64), null).standing()
    assert above.p_greater == 1 / 16
    assert 0.3 < equal.p_greater <= 1
    assert above.null_sd == equal.null_sd == 0
