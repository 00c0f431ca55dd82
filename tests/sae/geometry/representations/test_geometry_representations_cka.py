"""CKA against its definition with n x n matrices, closed forms of its null, and its limits."""

import itertools

import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.representations import (
    Cka,
    Cknna,
    RbfCka,
    cka,
    cknna,
    cknna_mean,
    compare_representations,
    independent_cka_mean,
    minibatch_cka,
    rbf_cka,
)


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n=60, p=8, q=6, seed=0):
    x = normal(n, p, seed) * torch.linspace(0.5, 2, p, dtype=torch.float64) + 3
    return x, x[:, :q] @ normal(q, q, seed + 1) + 2 * normal(n, q, seed + 2) - 1


def slow_hsic(K, L, estimator):
    """The definitions, with the n x n matrices written out; no row is centred beforehand."""
    m = len(K)
    one = torch.ones(m, dtype=torch.float64)
    if estimator == "biased":
        H = torch.eye(m, dtype=torch.float64) - 1 / m
        return torch.trace(K @ H @ L @ H) / (m - 1) ** 2
    K, L = K - K.diagonal().diag(), L - L.diagonal().diag()
    terms = torch.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((m - 1) * (m - 2)) - 2 / (m - 2) * (one @ K @ L @ one)
    return terms / (m * (m - 3))


def slow_cka(K, L, estimator):
    return float(slow_hsic(K, L, estimator) / (slow_hsic(K, K, estimator) * slow_hsic(L, L, estimator)).sqrt())


def rbf_gram(x, bandwidth):
    distances = torch.cdist(x, x)
    sigma = bandwidth * distances[~torch.eye(len(x), dtype=torch.bool)].quantile(0.5)
    return torch.exp(-distances.square() / (2 * sigma**2))


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize(("n", "p", "q"), [(60, 8, 6), (20, 70, 5), (15, 40, 90), (4, 3, 2)])
def test_linear_cka_is_its_definition_with_full_kernels_for_any_widths(estimator, n, p, q):
    x, y = normal(n, p, 1) + 2, normal(n, q, 2) - 1
    y[:, : min(p, q)] += x[:, : min(p, q)]
    assert cka(x, y, estimator=estimator) == pytest.approx(slow_cka(x @ x.T, y @ y.T, estimator), abs=1e-10)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rbf_cka_is_its_definition_with_the_median_distance(estimator):
    x, y = related()
    slow = slow_cka(rbf_gram(x, 0.8), rbf_gram(y, 0.8), estimator)
    assert rbf_cka(x, y, bandwidth=0.8, estimator=estimator) == pytest.approx(slow, abs=1e-3)  # medians of an even number of values


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_rbf_cka_tends_to_linear_cka_as_the_bandwidth_grows(estimator):
    x, y = related(seed=5)
    assert rbf_cka(x, y, bandwidth=3000.0, estimator=estimator) == pytest.approx(cka(x, y, estimator=estimator), abs=1e-5)
    assert abs(rbf_cka(x, y, bandwidth=0.3, estimator=estimator) - cka(x, y, estimator=estimator)) > 0.01


def test_cka_is_one_for_a_rotated_scaled_and_shifted_copy_and_not_for_a_stretched_one():
    x, _ = related()
    turn = torch.linalg.qr(normal(8, 8, 9)).Q
    assert cka(x, 0.3 * x @ turn + 5) == pytest.approx(1, abs=1e-12)
    assert cka(x, x @ torch.diag(torch.logspace(-1, 1, 8, dtype=torch.float64))) < 0.9


@pytest.mark.parametrize(("n", "p"), [(1000, 10), (1000, 100), (200, 1000)])
def test_biased_cka_of_independent_gaussians_has_its_closed_form_and_the_unbiased_one_is_zero(n, p):
    x, y = normal(n, p, 3), normal(n, p, 4)
    assert cka(x, y, estimator="biased") == pytest.approx(independent_cka_mean(n, p, p), abs=0.004)
    assert abs(cka(x, y)) < 0.03


def test_closed_form_of_the_biased_null_has_its_known_values():
    assert independent_cka_mean(1000, 1000, 1000) == pytest.approx(0.5)
    assert independent_cka_mean(200, 1000, 1000) == pytest.approx(0.8333, abs=1e-4)
    assert independent_cka_mean(1000, 100, 100) == pytest.approx(0.0909, abs=1e-4)


def test_unbiased_hsic_has_mean_zero_over_permutations_and_never_a_negative_self_term():
    x, y = normal(6, 9, 1), normal(6, 5, 2)
    measure = Cka()
    first, second = measure.prepare(x), measure.prepare(y)
    scores = [measure.score(first, second, torch.tensor(order)) for order in itertools.permutations(range(6))]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-12)
    for seed in range(50):
        z = normal(4 + seed % 3, 1 + seed % 40, seed)
        assert slow_hsic(z @ z.T, z @ z.T, "unbiased") >= -1e-12
    assert max(abs(score) for score in scores) <= 1


def test_minibatches_average_the_terms_before_the_ratio():
    x, y = related(n=48)
    parts = [(x[i : i + 12], y[i : i + 12]) for i in range(0, 48, 12)]
    kernels = [(a @ a.T, b @ b.T) for a, b in parts]
    cross, first, second = (sum(slow_hsic(k[i], k[j], "unbiased") for k in kernels) for i, j in ((0, 1), (0, 0), (1, 1)))
    assert minibatch_cka(parts) == pytest.approx(float(cross / (first * second).sqrt()), abs=1e-10)
    assert minibatch_cka([(x, y)]) == pytest.approx(cka(x, y), abs=1e-12)


def test_minibatch_cka_agrees_with_full_cka_where_the_biased_average_does_not():
    x, y = related(n=4000)
    parts = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 4000, 16)]
    assert minibatch_cka(parts) == pytest.approx(cka(x, y), abs=0.02)
    assert minibatch_cka(parts, estimator="biased") > cka(x, y) + 0.05


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("metric", ["inner", "euclidean"])
def test_cknna_with_all_neighbours_is_the_unbiased_cka(variant, metric):
    x, y = related()
    assert cknna(x, y, k=59, variant=variant, metric=metric) == pytest.approx(cka(x, y), abs=1e-10)


def test_cknna_with_all_neighbours_under_cosine_is_the_unbiased_cka_of_unit_rows():
    x, y = related()
    expected = cka(x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True))
    assert cknna(x, y, k=59, metric="cosine") == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("k", [3, 10, 40])
def test_cknna_of_equal_inputs_is_one(variant, k):
    x, _ = related()
    assert cknna(x, x.clone(), k=k, variant=variant) == pytest.approx(1, abs=1e-12)


def slow_masks(x, y, k):
    def nearest(z):
        gram = z @ z.T
        gram.fill_diagonal_(-torch.inf)
        mask = torch.zeros_like(gram)
        for i, row in enumerate(gram):
            mask[i, row.argsort(descending=True)[:k]] = 1
        return mask

    return nearest(x) * nearest(y), nearest(x), nearest(y)


def u_centred(K):
    m = len(K)
    K = K - K.diagonal().diag()
    centred = K - K.sum(0) / (m - 2) - K.sum(1)[:, None] / (m - 2) + K.sum() / ((m - 1) * (m - 2))
    return centred - centred.diagonal().diag()


@pytest.mark.parametrize("k", [2, 7, 25])
def test_both_variants_of_cknna_are_their_definitions_with_full_masks(k):
    x, y = related(seed=11)
    joint, own_x, own_y = slow_masks(x, y, k)
    K, L = u_centred(x @ x.T), u_centred(y @ y.T)
    expected = (joint * K * L).sum() / ((own_x * K * K).sum() * (own_y * L * L).sum()).sqrt()
    assert cknna(x, y, k=k, metric="inner") == pytest.approx(float(expected), abs=1e-10)
    K, L = x @ x.T, y @ y.T

    def masked(mask, A, B):
        return slow_hsic(mask * A, mask * B, "unbiased")

    own = masked(own_x, K, K) * masked(own_y, L, L)
    expected = float(masked(joint, K, L) / own.sqrt()) if own > 0 else float("nan")
    assert cknna(x, y, k=k, variant="code", metric="inner") == pytest.approx(expected, abs=1e-10, nan_ok=True)


def test_cknna_scores_a_permuted_second_side_as_if_its_rows_had_been_permuted():
    x, y = related(seed=3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for measure in (Cknna(k=8), Cknna(k=8, variant="code", metric="inner"), Cka(), RbfCka()):
        permuted = measure.score(measure.prepare(x), measure.prepare(y), order)
        assert permuted == pytest.approx(measure(x, y[order]), abs=1e-10, nan_ok=True)


@pytest.mark.parametrize("k", [2, 5])
def test_the_mean_of_cknna_over_all_permutations_is_its_closed_form_which_is_not_zero(k, unchecked):
    x, y = normal(6, 4, 1), normal(6, 3, 2)
    measure = Cknna(k=k)
    first, second = measure.prepare(x), measure.prepare(y)
    scores = [measure.score(first, second, torch.tensor(order)) for order in itertools.permutations(range(6))]
    assert sum(scores) / len(scores) == pytest.approx(cknna_mean(x, y, k=k), abs=1e-12)
    assert (cknna_mean(x, y, k=k) > 0.1) == (k == 2)


@pytest.mark.parametrize("measure", [Cka(), Cka("biased"), RbfCka(), Cknna(k=5)], ids=["unbiased", "biased", "rbf", "cknna"])
def test_permutation_p_values_are_calibrated(measure, unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        return compare_representations(measure, normal(16, 3, seed), normal(16, 4, 1000 + seed), n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=150)


@pytest.mark.parametrize("measure", [Cka(), RbfCka(), Cknna(k=10)], ids=lambda m: type(m).__name__)
def test_a_planted_relation_stands_out_and_grows(measure):
    x = normal(80, 5, 0)
    scores = [measure(x, amount * x + normal(80, 5, 1)) for amount in (0.0, 0.7, 1.5, 4.0)]
    assert scores == sorted(scores)
    found = compare_representations(measure, x, x + normal(80, 5, 1), n_null=49, generator=torch.Generator().manual_seed(0))
    chance = cknna_mean(x, x + normal(80, 5, 1)) if isinstance(measure, Cknna) else 0.0
    assert found.p_greater == 0.02 and found.null_mean == pytest.approx(chance, abs=0.01)


MEASURES = [
    Measure("CKA", cka, rotation=True, scale=True, translation=True, linear=False, pair=True,
            blocked=lambda x, y, size: Cka(block_elements=size)(x, y)),
    Measure("biased CKA", lambda x, y: cka(x, y, estimator="biased"), rotation=True, scale=True, translation=True, linear=False, pair=True),
    Measure("RBF CKA", rbf_cka, rotation=True, scale=True, translation=True, linear=False, pair=True,
            blocked=lambda x, y, size: RbfCka(block_elements=size)(x, y)),
    Measure("CKNNA", lambda x, y: cknna(x, y, k=6), rotation=True, scale=True, translation=False, linear=False, pair=True,
            blocked=lambda x, y, size: Cknna(k=6, block_elements=size)(x, y)),
    Measure("Euclidean CKNNA", lambda x, y: cknna(x, y, k=6, metric="euclidean"), rotation=True, scale=True, translation=True,
            linear=False, pair=True),
    Measure("CKNNA as in the code", lambda x, y: cknna(x, y, k=40, variant="code", metric="inner"), rotation=True, scale=True,
            translation=False, linear=False, pair=True),
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_every_kernel_alignment_has_the_properties_of_its_definition(measure):
    check(measure)


def test_degenerate_representations_are_refused_with_a_reason():
    x, y = related()
    with pytest.raises(ConfigError, match="equal rows"):
        cka(torch.ones(60, 3), y)
    lonely = torch.zeros(60, 3)
    lonely[7] = 1
    with pytest.raises(ConfigError, match="differ from the rest"):
        cka(lonely, y)
    assert 0 <= cka(lonely, y, estimator="biased") < 1
    with pytest.raises(ConfigError, match="60 and 59 rows"):
        cka(x, y[:-1])
    with pytest.raises(ConfigError, match="at least 4 rows"):
        cka(x[:3], y[:3])
    with pytest.raises(ConfigError, match="bandwidth"):
        rbf_cka(x, y, bandwidth=0.0)
    with pytest.raises(ConfigError, match="median distance"):
        rbf_cka(torch.cat([torch.ones(50, 8), x[:10].float()]), y)
    with pytest.raises(ConfigError, match="at least 1 batch"):
        minibatch_cka([])
    with pytest.raises(ConfigError, match="k must be in"):
        cknna(x, y, k=60)
