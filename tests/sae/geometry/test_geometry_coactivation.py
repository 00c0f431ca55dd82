"""Counts of latents that fire together against dense products, both ways of counting, and affinities against closed forms and exact tests."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact, hypergeom
from sklearn.metrics import f1_score, jaccard_score, matthews_corrcoef
from universal import check_calibrated

from sae.errors import ConfigError
from sae.geometry import coactivation as module
from sae.geometry.affinity import AFFINITIES, affinity, compare_affinity
from sae.geometry.coactivation import coactivation, firings, nearest_by_coactivation

N, K_MAX, F = 400, 7, 30


def codes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    skewed = (torch.rand(N, K_MAX, generator=generator) ** 2 * F).long()
    values = torch.randn(N, K_MAX, generator=generator)
    return skewed, torch.randint(0, K_MAX + 1, (N,), generator=generator), values


def dense(indices, counts, *, fires=None, block=1, documents=None):
    """X by loops over rows, as the definition says."""
    documents = np.zeros(len(indices), int) if documents is None else documents.numpy()
    units = []
    for document in dict.fromkeys(documents):
        rows = np.flatnonzero(documents == document)
        for begin in range(0, len(rows) - block + 1, block):
            unit = np.zeros(F, int)
            for r in rows[begin : begin + block]:
                for s in range(int(counts[r])):
                    if fires is None or fires[r, s]:
                        unit[indices[r, s]] = 1
            units.append(unit)
    return np.array(units)


@pytest.fixture(params=["loops", "bits", "torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(module, "_has_numba", lambda: request.param != "torch")
    monkeypatch.setattr(module, "WORDS_PER_INCREMENT", math.inf if request.param == "bits" else 0)
    monkeypatch.setattr(module, "LATENTS_PER_BLOCK", 11)
    return request.param


DOCUMENTS = torch.arange(N) // 33


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, {}),
        ({"block": 16}, {"block": 16}),
        ({"block": 10, "documents": DOCUMENTS}, {"block": 10, "documents": DOCUMENTS}),
        ({"values": codes()[2], "threshold": 0.4}, {"fires": codes()[2] > 0.4}),
    ],
    ids=["tokens", "blocks", "blocks within documents", "above a threshold"],
)
def test_counts_and_neighbours_are_those_of_the_dense_product(way, options, by_hand):
    indices, counts, _ = codes()
    X = dense(indices, counts, **by_hand)
    C = X.T @ X
    fired = firings(indices, counts, n_latents=F, **options)
    np.testing.assert_array_equal(fired.csr().toarray(), X)
    assert fired.n_units == len(X) and fired.firing.tolist() == np.diag(C).tolist()
    found = coactivation(fired)
    np.testing.assert_array_equal(found.dense().numpy(), C)
    often = coactivation(fired, min_count=5)
    np.testing.assert_array_equal(often.dense().numpy(), np.where((C >= 5) | np.eye(F, dtype=bool), C, 0))
    for kind in AFFINITIES:
        firing = torch.from_numpy(np.diag(C).copy())
        expected = affinity(kind, torch.from_numpy(C), firing[:, None], firing[None], len(X))
        expected[torch.from_numpy((C == 0) | np.eye(F, dtype=bool))] = -np.inf
        near = nearest_by_coactivation(fired, kind, n_neighbours=4)
        used = near.latent_ids >= 0
        assert torch.equal(used, expected.sort(dim=1, descending=True).values[:, :4].isfinite())
        best = expected.sort(dim=1, descending=True).values[:, :4].masked_fill(~used, 0)
        torch.testing.assert_close(near.affinities, best, rtol=1e-12, atol=1e-12)
        picked = expected.gather(1, near.latent_ids.long().clamp(min=0)).masked_fill(~used, 0)
        torch.testing.assert_close(picked, best, rtol=1e-12, atol=1e-12)
        assert torch.equal(torch.from_numpy(C).gather(1, near.latent_ids.long().clamp(min=0))[used], near.counts[used].long())


def test_slots_beyond_the_count_and_repeats_within_a_row_do_not_count(way):
    indices = torch.tensor([[3, 3, 1], [-7, 99, 2], [2, 1, 99]])
    fired = firings(indices, torch.tensor([3, 0, 2]), n_latents=4)
    assert fired.csr().toarray().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert coactivation(fired).counts.tolist() == [1, 1]


def test_codes_in_which_nothing_fires_have_no_pairs(way):
    fired = firings(torch.zeros(5, 2, dtype=torch.int32), torch.zeros(5, dtype=torch.int64), n_latents=3)
    assert fired.n_units == 5 and len(coactivation(fired).counts) == 0
    near = nearest_by_coactivation(fired, "phi", n_neighbours=2)
    assert (near.latent_ids == -1).all() and (near.affinities == 0).all()


def test_order_of_rows_does_not_matter_for_tokens_but_for_blocks():
    indices, counts, _ = codes(3)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    same = [coactivation(firings(i, c, n_latents=F)) for i, c in ((indices, counts), (indices[order], counts[order]))]
    assert torch.equal(same[0].counts, same[1].counts) and torch.equal(same[0].latent_ids, same[1].latent_ids)
    differ = [coactivation(firings(i, c, n_latents=F, block=8)).dense() for i, c in ((indices, counts), (indices[order], counts[order]))]
    assert not torch.equal(*differ)


def sets(counts):
    """Two 0/1 vectors with these (n11, n10, n01, n00)."""
    n11, n10, n01, n00 = counts
    return np.repeat([1, 1, 0, 0], [n11, n10, n01, n00]), np.repeat([1, 0, 1, 0], [n11, n10, n01, n00])


def test_affinities_of_the_recorded_table_have_their_closed_forms():
    both, first, second = torch.tensor([30]), torch.tensor([50]), torch.tensor([40])
    expected = {"matching": 0.7, "jaccard": 0.5, "dice": 0.6667, "overlap": 0.75, "phi": 0.40825, "lift": 1.5}
    assert {kind: affinity(kind, both, first, second, 100).item() for kind in AFFINITIES} == pytest.approx(expected, abs=5e-5)


def test_affinities_are_those_of_scikit_learn_and_bounded():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = sets(rng.integers(1, 40, 4))
        arguments = torch.tensor([x @ y]), torch.tensor([x.sum()]), torch.tensor([y.sum()]), len(x)
        value = {kind: affinity(kind, *arguments).item() for kind in AFFINITIES}
        assert value["phi"] == pytest.approx(matthews_corrcoef(x, y)) and value["jaccard"] == pytest.approx(jaccard_score(x, y))
        assert value["dice"] == pytest.approx(f1_score(x, y)) and value["matching"] == pytest.approx((x == y).mean())
        assert value["jaccard"] <= value["dice"] <= value["overlap"] <= 1


def test_latents_that_never_or_always_fire_have_affinity_0_where_it_is_0_over_0():
    zero, all_ = torch.tensor([0]), torch.tensor([10])
    assert [affinity(kind, zero, zero, zero, 10).item() for kind in ("jaccard", "dice", "overlap", "phi", "lift")] == [0] * 5
    assert affinity("phi", all_, all_, all_, 10).item() == 0 and affinity("matching", zero, zero, zero, 10).item() == 1


def test_p_values_are_those_of_fishers_exact_test():
    for table in ((3, 7, 2, 20), (0, 5, 6, 9), (8, 1, 0, 30)):
        n11, n10, n01, _ = table
        arguments = torch.tensor([n11]), torch.tensor([n11 + n10]), torch.tensor([n11 + n01]), sum(table)
        grid = np.array(table).reshape(2, 2)
        for kind in AFFINITIES:
            found = compare_affinity(kind, *arguments)
            assert found.p_greater.item() == pytest.approx(fisher_exact(grid, "greater").pvalue, rel=1e-9)
            assert found.p_less.item() == pytest.approx(fisher_exact(grid, "less").pvalue, rel=1e-9)


@pytest.mark.parametrize("kind", AFFINITIES)
def test_null_mean_and_sd_are_those_of_all_tables_with_the_same_margins(kind):
    T, n_i, n_j = 60, 17, 25
    support = torch.arange(max(0, n_i + n_j - T), min(n_i, n_j) + 1)
    chance = torch.from_numpy(hypergeom.pmf(support.numpy(), T, n_i, n_j))
    values = affinity(kind, support, torch.tensor(n_i), torch.tensor(n_j), T)
    mean = (chance * values).sum()
    found = compare_affinity(kind, support, torch.tensor(n_i), torch.tensor(n_j), T)
    torch.testing.assert_close(found.null_mean, mean.expand_as(values), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.null_sd, (chance * (values - mean).square()).sum().sqrt().expand_as(values), rtol=1e-9, atol=1e-12)
    assert (found.values.diff() > 0).all() and (found.p_greater.diff() < 0).all()


def test_p_values_of_independent_latents_are_uniform():
    def p(seed):
        rng = np.random.default_rng(seed)
        x, y = rng.random(20_000) < 0.3, rng.random(20_000) < 0.2
        arguments = (torch.tensor([int(each)]) for each in ((x & y).sum(), x.sum(), y.sum()))
        return compare_affinity("phi", *arguments, 20_000).p_greater.item()

    check_calibrated(p)


def test_latents_driven_by_one_source_have_the_largest_phi():
    rng = np.random.default_rng(1)
    X = rng.random((5000, 20)) < 0.05
    source = rng.random(5000) < 0.1
    X[:, 3] |= source
    X[:, 11] |= source
    counts = X.sum(1)
    order = np.argsort(~X, axis=1, kind="stable")
    fired = firings(torch.from_numpy(order), torch.from_numpy(counts), n_latents=20)
    near = nearest_by_coactivation(fired, "phi", n_neighbours=3)
    assert near.latent_ids[3, 0] == 11 and near.latent_ids[11, 0] == 3
    found = compare_affinity("phi", near.counts[:, :1], near.firing[:, None], near.firing[near.latent_ids[:, :1].long()], near.n_units)
    assert found.p_greater[3].item() < 1e-50 and found.p_greater[[0, 5, 9]].min() > 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, c: firings(i, c, n_latents=F - 3), r"indices must be in 0\.\.n_latents-1=26, got"),
        (lambda i, c: firings(-i - 1, c, n_latents=F), "indices must be in"),
        (lambda i, c: firings(i, c + 5, n_latents=F), r"counts must be in 0\.\.k_max=7"),
        (lambda i, c: firings(i[:0], c[:0], n_latents=F), "at least 1, got 0 and 0"),
        (lambda i, c: firings(i, c, n_latents=0), "n_latents must be at least 1"),
        (lambda i, c: firings(i, c, n_latents=F, block=0), "block must be at least 1"),
        (lambda i, c: firings(i, c, n_latents=F, block=401), "block must be at most the rows of the longest document, 400"),
        (lambda i, c: firings(i, c, n_latents=F, documents=torch.arange(N) % 2), "documents must have their rows together"),
        (lambda i, c: firings(i, c, n_latents=F, values=torch.full((N, K_MAX), math.nan)), "values must not be NaN"),
        (lambda i, c: coactivation(firings(i, c, n_latents=F), min_count=0), "min_count must be at least 1"),
        (lambda i, c: nearest_by_coactivation(firings(i, c, n_latents=F), "phi", n_neighbours=F), "n_neighbours must be in"),
        (lambda i, c: affinity("phi", c + 1, c, c, 400), "counts must be those of two sets of units"),
        (lambda i, c: affinity("phi", c, c, c, 0), "n_units must be at least 1"),
    ],
)
def test_bad_input_of_counts_is_refused_by_name(call, message):
    indices, counts, _ = codes()
    with pytest.raises(ConfigError, match=message):
        call(indices, counts)
