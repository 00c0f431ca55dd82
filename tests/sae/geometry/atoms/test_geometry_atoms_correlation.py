"""Correlation of sparse codes of the same tokens, pairs by it, shifted tokens."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from universal import check_calibrated

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.atoms import best_correlations, code_moments, compare_codes, latent_pairs, matching_gap, shifted_tokens


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def of_dense(z):
    return SparseCodes.of_slots(torch.arange(z.shape[1]).expand(z.shape).contiguous(), z, z.shape[1])


def random_codes(n=400, f=30, seed=0, density=0.15, signed=False):
    generator = seeded(seed)
    values = torch.randn(n, f, generator=generator) if signed else torch.rand(n, f, generator=generator) + 0.1
    return of_dense(values * (torch.rand(n, f, generator=generator) < density))


def pearson(a, b):
    x, y = (each.dense().double().numpy() for each in (a, b))
    with np.errstate(invalid="ignore"):
        return np.corrcoef(x.T, y.T)[: a.d_sae, a.d_sae :]


def moments_in_batches(a, b, size):
    return code_moments((a[i : i + size], b[i : i + size]) for i in range(0, len(a), size))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("size", [1, 7, 400])
def test_correlations_are_pearson_of_the_dense_codes_however_they_come_in(size, signed):
    a, b = random_codes(seed=1, signed=signed), random_codes(f=22, seed=2, signed=signed)
    moments = moments_in_batches(a, b, size)
    assert moments.n_tokens == 400
    np.testing.assert_allclose(moments.block(slice(0, 30)).numpy(), pearson(a, b), atol=1e-12)
    np.testing.assert_allclose(moments.block(torch.tensor([5, 3])).numpy(), pearson(a, b)[[5, 3]], atol=1e-12)
    np.testing.assert_allclose(moments.swapped().block(slice(0, 22)).numpy(), pearson(a, b).T, atol=1e-12)


def test_a_latent_that_fills_several_slots_has_their_sum():
    twice = SparseCodes(
        torch.tensor([[0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 2.0], [1.0, 0.5], [0.3, 0.1]]), torch.tensor([2, 2, 2]), 2
    )
    other = of_dense(torch.tensor([[1.0], [0.0], [2.0]]))
    np.testing.assert_allclose(code_moments([(twice, other)]).block(slice(0, 2)).numpy(), pearson(twice, other), atol=1e-12)


def test_best_partners_are_the_largest_correlations_also_where_nothing_is_active_together():
    a, b = random_codes(seed=3), random_codes(f=25, seed=4)
    expected = pearson(a, b)
    best = best_correlations(moments_in_batches(a, b, 100), block_elements=60)
    np.testing.assert_allclose(best.correlations.numpy(), expected.max(axis=1), atol=1e-12)
    assert best.latents.tolist() == expected.argmax(axis=1).tolist()
    assert best.mean == pytest.approx(expected.max(axis=1).mean())
    # Disjoint supports: every correlation is negative, and the best is still the largest of them.
    left = of_dense(torch.tensor([[1.0, 2.0], [0, 1], [0, 0], [0, 0]]))
    right = of_dense(torch.tensor([[0.0, 0.0], [0, 0], [1, 1], [0, 3]]))
    expected = pearson(left, right)
    assert (expected < 0).all()
    # A dead latent, whose correlation counts 0, is not preferred to them.
    with_dead = of_dense(torch.cat([torch.zeros(4, 1), right.dense()], dim=1))
    for other, first in ((right, 0), (with_dead, 1)):
        best = best_correlations(code_moments([(left, other)]))
        np.testing.assert_allclose(best.correlations.numpy(), expected.max(axis=1), atol=1e-12)
        assert best.latents.tolist() == (first + expected.argmax(axis=1)).tolist()


@pytest.mark.parametrize("sizes", [(20, 28), (28, 20), (24, 24)])
@pytest.mark.parametrize("largest", [2048, 5])
def test_pairs_are_those_of_the_hungarian_method_on_the_dense_correlations(sizes, largest, monkeypatch):
    monkeypatch.setattr("sae.geometry.atoms.correlation.LARGEST_WHOLE", largest)  # 5: the sparse assignment
    a, b = random_codes(f=sizes[0], seed=5), random_codes(f=sizes[1], seed=6)
    rows, columns = linear_sum_assignment(pearson(a, b), maximize=True)
    found = latent_pairs(code_moments([(a, b)]), n_candidates=28)
    assert found.rows.tolist() == rows.tolist()
    assert found.columns.tolist() == columns.tolist()
    np.testing.assert_allclose(found.similarities.numpy(), pearson(a, b)[rows, columns], atol=1e-12)


def test_permuted_and_rescaled_latents_are_found_again_whatever_the_dictionaries_widths():
    a = random_codes(n=600, f=20, seed=7)
    order, scale = torch.randperm(20, generator=seeded(1)), 1 + torch.arange(20)
    b = of_dense(torch.cat([a.dense()[:, order] * scale, random_codes(n=600, f=15, seed=8).dense()], dim=1))
    moments = code_moments([(a, b)])
    for method in ("optimal", "mutual"):
        pairs = latent_pairs(moments, method=method, minimum=0.5)
        assert torch.equal(order[pairs.columns], pairs.rows)
        assert pairs.share_above(0.999) == 1
        assert pairs.share_above(0.999, of="columns") == 20 / 35


def test_dead_latents_are_flagged_and_never_paired():
    dense = random_codes(f=6, seed=9).dense()
    dense[:, 2] = 0
    dense[:, 4] = 0.37  # constant, not zero
    a = of_dense(dense)
    moments = moments_in_batches(a, a, 33)
    assert moments.dead_a.tolist() == moments.dead_b.tolist() == [False, False, True, False, True, False]
    assert (moments.block(slice(0, 6))[[2, 4]] == 0).all()
    for method in ("optimal", "mutual"):
        assert latent_pairs(moments, method=method).rows.tolist() == [0, 1, 3, 5]
    assert best_correlations(moments).latents.tolist() == [0, 1, -1, 3, -1, 5]
    assert best_correlations(moments).mean == pytest.approx(1)
    # Rounding leaves a variance to some constants in float64, above or below 0: it is none.
    constants = torch.tensor([0.1, 1 / 3, 0.7, 0.9, 1.1, 2.3], dtype=torch.float64)
    rounded = moments_in_batches(of_dense(constants.expand(400, 6).contiguous()), a, 33)
    assert rounded.dead_a.all()
    assert (rounded.block(slice(0, 6)) == 0).all()
    nothing = of_dense(torch.zeros(400, 3))
    empty = code_moments([(nothing, a)])
    assert len(latent_pairs(empty).rows) == 0
    assert np.isnan(best_correlations(empty).mean)


def test_gap_is_zero_for_permuted_latents_and_large_where_one_latent_serves_several():
    a = random_codes(n=800, f=12, seed=10)
    same = matching_gap(code_moments([(a, of_dense(a.dense()[:, torch.randperm(12, generator=seeded(2))]))]))
    assert same.gap == pytest.approx(0, abs=1e-12)
    assert same.n_distinct == 12
    # Four latents of one dictionary say the same as one of the other; eight others are unrelated.
    split = torch.cat([a.dense()[:, :1].expand(-1, 4) * torch.tensor([1.0, 2, 3, 4]), a.dense()[:, 4:]], dim=1)
    several = matching_gap(code_moments([(of_dense(split), a)]))
    assert several.semi_matching == pytest.approx(1)
    assert several.matching == pytest.approx((1 + 8) / 12, abs=0.03)
    assert several.n_distinct == 9


def test_shifts_are_permutations_that_keep_the_order_within_a_document_or_across_the_stream():
    documents = torch.tensor([3] * 5 + [1] * 1 + [9] * 7 + [2] * 4)
    seen = set()
    for seed in range(20):
        within = shifted_tokens(documents, "within", generator=seeded(seed))
        assert torch.equal(within.sort().values, torch.arange(17))
        assert torch.equal(documents[within], documents)
        part = within[6:13] - 6
        assert torch.equal(part, (torch.arange(7) + part[0]) % 7)
        assert 1 <= int(part[0]) <= 6
        seen.add(int(part[0]))
        between = shifted_tokens(documents, "between", generator=seeded(seed))
        start = int(between[0])
        assert torch.equal(between, (torch.arange(17) + start) % 17)
        assert start in (5, 6, 13)
    assert seen == set(range(1, 7))


def test_agreement_token_by_token_stands_out_and_agreement_by_document_does_not():
    generator = seeded(11)
    lengths, n_documents, f = 20, 30, 12
    documents = torch.arange(n_documents).repeat_interleave(lengths)
    topics = (torch.rand(n_documents, f, generator=generator) < 0.4)[documents]

    def by_topic():  # active at random tokens of the documents that are about it
        return of_dense(
            topics * (torch.rand(len(documents), f, generator=generator) < 0.5) * torch.rand(len(documents), f, generator=generator)
        )

    a, b = by_topic(), by_topic()
    options = {"n_null": 19, "generator": generator}
    topical = compare_codes(a, b, documents, shift="within", **options)
    assert topical.paired.value > 0.1
    assert topical.paired.p_greater > 0.05
    assert compare_codes(a, b, documents, shift="between", **options).paired.p_greater == pytest.approx(1 / 20)
    same = compare_codes(a, of_dense(a.dense()[:, torch.randperm(f, generator=generator)]), documents, shift="within", **options)
    assert same.paired.p_greater == pytest.approx(1 / 20)
    assert same.forward.value == same.backward.value == pytest.approx(1)
    assert [share.value for share in same.shares] == [1, 1]
    assert (same.n_pairs, same.n_dead) == (12, (0, 0))


def test_p_values_of_unrelated_codes_are_uniform(unchecked):
    documents = torch.arange(4).repeat_interleave(15)

    def p_value(seed):
        a, b = (random_codes(n=60, f=4, seed=2 * seed + i, density=0.5) for i in range(2))
        return compare_codes(a, b, documents, n_null=9, generator=seeded(seed)).paired.p_greater

    check_calibrated(p_value, n_draws=60)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_moments([]), "at least one row"),
        (lambda: code_moments([(random_codes(n=5), random_codes(n=6))]), "same tokens"),
        (lambda: code_moments([(random_codes(f=3), random_codes()), (random_codes(f=4), random_codes())]), "all batches must be over"),
        (lambda: code_moments([(of_dense(torch.tensor([[float("nan")], [1.0]])), random_codes(n=2))]), "finite"),
        (lambda: shifted_tokens(torch.zeros(5, dtype=torch.long), "between", generator=seeded()), "use 'within'"),
        (lambda: shifted_tokens(torch.arange(5), "within", generator=seeded()), "use 'between'"),
        (lambda: compare_codes(random_codes(), random_codes(), torch.arange(3), generator=seeded()), "one row per token"),
        (
            lambda: compare_codes(of_dense(torch.zeros(4, 2)), random_codes(n=4), torch.zeros(4, dtype=torch.long), generator=seeded()),
            "latent that varies",
        ),
    ],
)
def test_bad_input_is_refused_with_what_to_do(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
