"""Matching the atoms of two dictionaries: nearest cosines, pairs, nulls."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.atoms import (
    atom_pairs,
    best_cosines,
    best_pairs,
    best_pairs_of_candidates,
    best_pairs_of_nearest,
    compare_matching,
    joined_rows,
    mmcs,
    mutual_pairs,
    null_dictionary,
    random_rotation,
    shared_latents,
)
from sae.geometry.nulls import random_directions
from sae.geometry.similarity import nearest_atoms_to


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(n, d, generator, dtype=torch.float64):
    return random_directions(n, torch.zeros(1, d, dtype=dtype), generator=generator)


def half_shared(seed=0, n=256, d=128):
    """Two dictionaries of n atoms, half of them shared and permuted, the other half independent."""
    generator = seeded(seed)
    first, second = directions(n, d, generator), directions(n, d, generator)
    second[: n // 2] = first[: n // 2]
    return first, second[torch.randperm(n, generator=generator)]


def nearest_of(a, b):
    def nearest(rows, columns, k):
        found = nearest_atoms_to(a[rows], b[columns], n_neighbours=k, n_bins=1)
        return found.cosines, found.atom_ids

    return nearest


def test_half_shared_dictionaries_have_the_reference_scores():
    values, distinct = [], []
    for seed in range(6):
        first, second = half_shared(seed)
        near, pairs = best_cosines(first, second), atom_pairs(first, second)
        assert pairs.share_above(0.7) == 0.5  # exactly
        assert pairs.share_above(0.9) == 0.5
        assert near.share_above(0.9) == 0.5
        values += [near.mean, mmcs(second, first)]
        distinct.append(near.n_distinct)
    assert np.mean(values) == pytest.approx(0.623, abs=0.003)
    # 128 shared atoms are found; each of the others lands on one of 256, on one of the 128 not yet counted with probability 1/2.
    expected = 128 + 128 * (1 - (1 - 1 / 256) ** 128)
    assert expected == pytest.approx(178, abs=1)
    assert np.mean(distinct) == pytest.approx(expected, abs=5)


def test_null_of_unrelated_dictionaries_has_the_reference_mean():
    generator = seeded(3)
    draws = [(directions(256, 128, generator), directions(256, 128, generator)) for _ in range(8)]
    assert np.mean([mmcs(a, b) for a, b in draws]) == pytest.approx(0.247, abs=0.004)
    assert np.mean([atom_pairs(a, b).mean for a, b in draws]) == pytest.approx(0.235, abs=0.004)
    compared = compare_matching(*half_shared(), null="random", n_null=9, generator=generator)
    assert compared.forward.value == pytest.approx(0.623, abs=0.01)
    assert compared.forward.null_mean == pytest.approx(0.247, abs=0.004)
    assert compared.paired.null_mean == pytest.approx(0.235, abs=0.004)
    assert [share.value for share in compared.shares] == [0.5, 0.5]
    assert compared.shares[0].p_greater == pytest.approx(0.1)
    assert compared.n_pairs == 256


def test_best_cosines_equal_a_slow_computation_in_both_directions():
    generator = seeded(1)
    a, b = torch.randn(17, 6, generator=generator), torch.randn(23, 6, generator=generator)
    slow = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b.double().numpy()] for x in a.double().numpy()])
    near = best_cosines(a, b, block_elements=40)
    np.testing.assert_allclose(near.cosines.numpy(), slow.max(axis=1), atol=1e-6)
    assert near.atom_ids.tolist() == slow.argmax(axis=1).tolist()
    assert near.mean == pytest.approx(slow.max(axis=1).mean())
    assert mmcs(b, a) == pytest.approx(slow.max(axis=0).mean())
    assert near.histogram.sum() == 17
    counts, _ = np.histogram(slow.max(axis=1), near.bin_edges.numpy())
    assert near.histogram.tolist() == counts.tolist()
    assert near.share_above(0.5) == pytest.approx((slow.max(axis=1) > 0.5).mean())


@pytest.mark.parametrize("shape", [(5, 5), (4, 6), (6, 4), (1, 3)])
def test_best_pairs_beat_every_other_pairing(shape):
    similarity = torch.randn(*shape, generator=seeded(sum(shape)))
    pairs = best_pairs(similarity)
    wide = similarity if shape[0] <= shape[1] else similarity.T
    best = max(sum(wide[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(wide.shape[1]), wide.shape[0]))
    assert float(pairs.similarities.sum()) == pytest.approx(float(best), rel=1e-6)
    assert len(pairs.rows.unique()) == len(pairs.columns.unique()) == min(shape)
    assert pairs.shortfall == 0
    back = pairs.swapped()
    assert (back.n_rows, back.n_columns) == shape[::-1]
    assert torch.equal(similarity[back.columns, back.rows].double(), back.similarities)


@pytest.mark.parametrize("seed", range(4))
def test_sparse_pairs_equal_the_dense_ones_when_every_row_lists_as_many_candidates_as_rows(seed):
    generator = seeded(seed)
    a, b = directions(40, 8, generator), directions(55, 8, generator)
    dense = best_pairs(a @ b.T)
    sparse = best_pairs_of_nearest(nearest_of(a, b), n_rows=40, n_columns=55, n_candidates=40)
    assert torch.equal(sparse.columns, dense.columns)
    assert sparse.mean == pytest.approx(dense.mean, abs=1e-12)
    assert sparse.shortfall < 1e-9


@pytest.mark.parametrize("n_candidates", [2, 8, 32])
def test_sparse_pairs_of_few_candidates_are_within_their_shortfall_of_the_optimum(n_candidates):
    a, b = half_shared(5, n=200, d=24)
    dense, sparse = best_pairs(a @ b.T), best_pairs_of_nearest(nearest_of(a, b), n_rows=200, n_columns=200, n_candidates=n_candidates)
    assert len(sparse.rows) == len(sparse.columns.unique()) == 200
    assert sparse.mean <= dense.mean + 1e-9 <= sparse.mean + sparse.shortfall + 2e-9
    assert n_candidates == 2 or sparse.share_above(0.7) == dense.share_above(0.7)
    assert dense.share_above(0.7) == 0.5
    torch.testing.assert_close(sparse.similarities, (a @ b.T)[sparse.rows, sparse.columns], atol=1e-12, rtol=0)


def test_sparse_pairs_are_known_to_be_optimal_where_every_row_finds_a_candidate():
    generator = seeded(2)
    a = directions(100, 30, generator)
    b = (a + 0.05 * torch.randn(100, 30, generator=generator, dtype=torch.float64))[torch.randperm(100, generator=generator)]
    sparse = best_pairs_of_nearest(nearest_of(a, b), n_rows=100, n_columns=100, n_candidates=4)
    unit = b / b.norm(dim=1, keepdim=True)
    rows, columns = linear_sum_assignment((a @ unit.T).numpy(), maximize=True)
    assert sparse.shortfall == 0
    assert sparse.columns.tolist() == columns.tolist()
    assert rows.tolist() == list(range(100))


def test_large_dictionaries_take_the_sparse_path_and_find_what_is_shared(monkeypatch):
    monkeypatch.setattr("sae.geometry.atoms.matching.LARGEST_DENSE", 50)
    a, b = half_shared(7, n=120, d=40)
    for left, right in ((a, b), (a, b[:90]), (a[:90], b)):
        small = min(len(left), len(right))
        found, dense = atom_pairs(left, right, n_candidates=8), best_pairs(left @ right.T)
        assert len(found.rows) == small
        assert (found.n_rows, found.n_columns) == (len(left), len(right))
        torch.testing.assert_close(found.similarities, (left @ right.T)[found.rows, found.columns], atol=1e-12, rtol=0)
        assert found.share_above(0.7) == dense.share_above(0.7)
        assert found.mean <= dense.mean + 1e-9 <= found.mean + found.shortfall + 2e-9


def test_candidates_leave_rows_unpaired_rather_than_pay_less_than_the_floor():
    # Two rows want one column and have nothing else: one is left, and the bound counts its floor.
    pairs = best_pairs_of_candidates(
        torch.tensor([0, 1, 0]),
        torch.tensor([2, 2, 2]),
        torch.tensor([0.9, 0.8, 0.9]),
        n_rows=2,
        n_columns=3,
        floor=torch.tensor([0.1, 0.3]),
    )
    assert (pairs.rows.tolist(), pairs.columns.tolist()) == ([0], [2])
    assert pairs.bound == pytest.approx(0.9 + 0.3)


def test_mutual_pairs_are_those_whose_arrows_agree():
    similarity = torch.randn(12, 9, generator=seeded(4), dtype=torch.float64)
    pairs = mutual_pairs(similarity.argmax(1), similarity.argmax(0), similarity.max(1).values)
    expected = [(i, int(similarity[i].argmax())) for i in range(12) if int(similarity[:, similarity[i].argmax()].argmax()) == i]
    assert list(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True)) == expected
    assert 0 < len(expected) < 9
    a, b = half_shared(2, n=64, d=32)
    found = atom_pairs(a, b, method="mutual")
    assert found.share_above(0.99) == 0.5
    assert len(found.rows) < 64
    assert np.isnan(found.shortfall)  # nobody searched for a bound
    assert found.chosen(found.similarities > 0.99).share_above(0.0) == 0.5
    back = atom_pairs(b, a, method="mutual").swapped()
    assert torch.equal(back.rows, found.rows)
    assert torch.equal(back.columns, found.columns)


def test_shares_are_of_the_set_that_is_asked_for():
    a = directions(10, 64, seeded(8))
    pairs = atom_pairs(a, torch.cat([a[3:7], directions(20, 64, seeded(9))]))
    assert [pairs.share_above(0.9, of=of) for of in ("smaller", "rows", "columns")] == [0.4, 0.4, 4 / 24]


def test_joined_cosine_is_the_mean_of_the_two_cosines_and_shared_latents_need_both():
    generator = seeded(10)
    d_a, e_a, d_b, e_b = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (9, 9, 14, 14))

    def cosine(x, y):
        return torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=2)

    mean = (cosine(d_a, d_b) + cosine(e_a, e_b)) / 2
    torch.testing.assert_close(joined_rows(d_a, e_a) @ joined_rows(d_b, e_b).T, mean)
    found = shared_latents(d_a, e_a, d_b, e_b)
    assert found.pairs.mean == pytest.approx(best_pairs(mean).mean)
    torch.testing.assert_close((found.decoder_cosines + found.encoder_cosines) / 2, found.pairs.similarities)
    # Decoders shared, four of the encoders replaced: the pairs are found by the decoders, and only the other five are shared.
    same = shared_latents(d_a, e_a, d_a.flip(0), torch.cat([e_b[:4], e_a[4:]]).flip(0))
    assert same.pairs.columns.tolist() == list(range(8, -1, -1))
    assert float(same.decoder_cosines.min()) == pytest.approx(1)
    assert same.share(0.7) == pytest.approx(5 / 9)


def test_nulls_keep_what_they_say():
    generator = seeded(11)
    scales = torch.logspace(0, -1, 20, dtype=torch.float64)
    atoms = torch.randn(300, 20, generator=generator, dtype=torch.float64) * scales + 0.3 * scales
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    gram, moment = atoms @ atoms.T, atoms.T @ atoms / 300
    rotated, reflected = (null_dictionary(atoms, kind, generator=generator) for kind in ("rotated", "reflected"))
    torch.testing.assert_close(rotated @ rotated.T, gram)
    assert (rotated.T @ rotated / 300 - moment).norm() > 0.1
    torch.testing.assert_close(reflected @ reflected.T, gram)
    torch.testing.assert_close(reflected.T @ reflected / 300, moment)
    assert mmcs(atoms, reflected) < 0.99
    drawn = null_dictionary(atoms, "covariance", generator=generator)
    assert (drawn.T @ drawn / 300 - moment).norm() < 0.25 * moment.norm()
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(300, dtype=torch.float64))
    uniform = null_dictionary(atoms, "random", generator=generator)
    assert (uniform.T @ uniform / 300 - torch.eye(20) / 20).norm() < 0.1
    assert mmcs(atoms, drawn) > mmcs(atoms, uniform) + 0.05  # anisotropy raises cosines
    q = random_rotation(7, generator=generator)
    torch.testing.assert_close(q @ q.T, torch.eye(7, dtype=torch.float64))


def test_unrelated_dictionaries_of_one_anisotropic_space_stand_out_from_random_directions_only():
    generator = seeded(12)
    scales = torch.logspace(0, -1.2, 24, dtype=torch.float64)
    a, b = (torch.randn(80, 24, generator=generator, dtype=torch.float64) * scales for _ in range(2))
    against = {null: compare_matching(a, b, null=null, n_null=39, generator=generator) for null in ("random", "covariance")}
    assert against["random"].forward.p_greater == pytest.approx(1 / 40)
    assert against["covariance"].forward.p_greater > 0.05
    assert against["covariance"].paired.p_greater > 0.05


def test_p_values_of_dictionaries_drawn_like_their_null_are_uniform(unchecked):
    def p_value(seed):
        generator = seeded(1000 + seed)
        a, b = directions(14, 6, generator), directions(12, 6, generator)
        return compare_matching(a, b, null="random", n_null=9, generator=generator).paired.p_greater

    check_calibrated(p_value, n_draws=60)


SECOND = torch.randn(50, 200, generator=seeded(77), dtype=torch.float64) + 0.3


def of_fixed_second(measure):
    """The measure as a function of the first dictionary; the second has its width."""
    return lambda a, *rest: measure(a, SECOND[:, : a.shape[1]].to(a.dtype), *rest)


@pytest.mark.parametrize(
    "measure",
    [
        Measure("MMCS", of_fixed_second(mmcs), False, True, False, False,
                blocked=of_fixed_second(lambda a, b, size: mmcs(a, b, block_elements=size))),
        Measure("optimal pairs", of_fixed_second(lambda a, b: atom_pairs(a, b).mean), False, True, False, False),
        Measure("mutual pairs", of_fixed_second(lambda a, b: atom_pairs(a, b, method="mutual").mean), False, True, False, False),
    ],
    ids=str,
)  # fmt: skip
def test_matching_has_the_properties_of_its_definition(measure):
    check(measure)
    # The other dictionary may be permuted too, and one rotation of both changes nothing.
    a, b, q = measure.cloud(seeded(1)), SECOND[:, :8], random_rotation(8, generator=seeded(5))
    call = {"MMCS": mmcs, "optimal pairs": lambda x, y: atom_pairs(x, y).mean}.get(
        measure.name, lambda x, y: atom_pairs(x, y, method="mutual").mean
    )
    assert call(a @ q, b[torch.randperm(50, generator=seeded(4))] @ q) == pytest.approx(call(a, b), abs=1e-9)


def test_degenerate_dictionaries_are_refused_or_have_their_limit():
    a = directions(5, 4, seeded(13))
    zero = a.clone()
    zero[2] = 0
    for call in (mmcs, atom_pairs, best_cosines):
        with pytest.raises(ConfigError, match="no zero row"):
            call(a, zero)
    with pytest.raises(ConfigError, match="compared by the correlation of their codes"):
        atom_pairs(a, directions(5, 6, seeded(1)))
    with pytest.raises(ConfigError, match="n_null must be at least 2"):
        compare_matching(a, a, n_null=0, generator=seeded())
    with pytest.raises(ConfigError, match=r"shape of decoders"):
        joined_rows(a, a[:, :3])
    with pytest.raises(ConfigError, match="finite"):
        best_pairs(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ConfigError, match="exchange the two sets"):
        best_pairs_of_candidates(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]), n_rows=3, n_columns=2, floor=torch.zeros(3))
    with pytest.raises(ConfigError, match="n_candidates must be at least 2"):
        best_pairs_of_nearest(nearest_of(a, a), n_rows=5, n_columns=5, n_candidates=1)
    one = atom_pairs(a[:1], a)
    assert (one.mean, one.columns.tolist()) == (pytest.approx(1), [0])
    same = a[:1].repeat(5, 1)  # equal atoms: any pairing is optimal
    assert atom_pairs(same, same).mean == pytest.approx(1)
    assert best_pairs_of_nearest(nearest_of(same, same), n_rows=5, n_columns=5, n_candidates=2).mean == pytest.approx(1)
    assert best_cosines(same, same).n_distinct == 1
