"""Statistics of one latent against slow references, closed forms and simulation."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.inspection.contexts import TokenTable, interval_samples, sample_keys, top_contexts
from sae.inspection.effects import top_effects
from sae.inspection.neighbours import neighbours
from sae.inspection.packing import flatten
from sae.inspection.statistics import density_interval, driving_tokens, held_out_bits, value_histogram, wilson_interval


def test_wilson_interval_solves_its_quadratic():
    for p, n in ((0.0, 40.0), (0.03, 500.0), (0.5, 7.0), (1.0, 12.0)):
        for bound in wilson_interval(p, n):
            assert abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), abs=1e-6)


def test_density_interval_covers_when_firings_cluster_in_documents():
    generator, covered, n_runs = np.random.default_rng(0), 0, 400
    for _ in range(n_runs):
        sizes = generator.integers(20, 200, size=60)
        rates = generator.beta(0.5, 4.5, size=60)  # mean 0.1, very uneven between documents
        active = generator.binomial(sizes, rates)
        low, high = density_interval(np.repeat(np.arange(60), active), sizes)
        naive = wilson_interval(active.sum() / sizes.sum(), float(sizes.sum()))
        assert high - low > 1.5 * (naive[1] - naive[0])
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / n_runs <= 0.98


def test_density_interval_is_wilsons_for_one_document_and_never_narrower_than_it():
    assert density_interval(np.zeros(5, np.int64), np.array([100])) == wilson_interval(0.05, 100.0)
    sizes = np.array([10, 10, 10, 10])
    assert density_interval(np.arange(4), sizes) == wilson_interval(0.1, 40.0)  # evenly spread: no narrower
    assert density_interval(np.zeros(0, np.int64), sizes) == wilson_interval(0.0, 40.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-5, 5, width=32).filter(lambda v: v != 0), max_size=40))
def test_value_histogram_counts_every_value_once_and_has_zero_as_an_edge(values):
    values = np.array(values, np.float32)
    bins = value_histogram(values, n_bins=8)
    assert bins.counts.sum() == len(values)
    assert np.abs(bins.edges).min() < 1e-9
    slow = [0] * 8
    for v in values.astype(np.float64):
        slow[max(i for i in range(8) if v >= bins.edges[i] or i == 0)] += 1
    assert bins.counts.tolist() == slow


def slow_bits(ids, half, base):
    total = 0.0
    for this in (True, False):
        learnt = Counter(i for i, h in zip(ids, half, strict=True) if h == this)
        n, m = sum(learnt.values()), len(learnt)
        once, twice = sum(c == 1 for c in learnt.values()), sum(c == 2 for c in learnt.values())
        discount = (once + 1) / (once + 1 + 2 * twice)
        for i, h in zip(ids, half, strict=True):
            if h != this:
                q = max(learnt[i] - discount, 0) / n + discount * m / n * base[i]
                total += math.log2(q / base[i])
    return total / len(ids)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40))
def test_held_out_bits_are_those_of_a_plain_loop(firings):
    ids, half = np.array([i for i, _ in firings]), np.array([h for _, h in firings])
    base = np.arange(1, 8) / 28
    expected = slow_bits(ids.tolist(), half.tolist(), base) if 0 < half.sum() < len(half) else 0.0
    assert held_out_bits(ids, half, base) == pytest.approx(expected)


def test_held_out_bits_reach_the_divergence_and_stay_at_zero_for_a_meaningless_latent():
    generator = np.random.default_rng(0)
    base = 1 / np.arange(1, 5001)
    base /= base.sum()
    for n in (20, 200, 5000):
        half = np.arange(n) % 2 == 0
        noise = np.mean([held_out_bits(generator.choice(5000, p=base, size=n), half, base) for _ in range(10)])
        assert -0.45 < noise < 0.05
        assert held_out_bits(np.full(n, 300), half, base) == pytest.approx(-math.log2(base[300]), abs=0.2)
    some = generator.choice(5000, size=30, replace=False)
    divergence = np.mean(np.log2(1 / 30 / base[some]))
    assert held_out_bits(generator.choice(some, size=4000), np.arange(4000) % 2 == 0, base) == pytest.approx(divergence, abs=0.25)


def test_held_out_bits_do_not_reward_a_token_that_one_half_alone_has():
    base = np.full(100, 0.01)
    ids, half = np.r_[np.full(50, 3), np.full(50, 4)], np.r_[np.full(50, True), np.full(50, False)]
    assert held_out_bits(ids, half, base) < -3


def test_driving_tokens_count_mass_of_both_signs():
    found = driving_tokens(np.array([4, 4, 2, 9]), np.array([1.0, -3.0, 2.0, 2.0], np.float32), n=2)
    assert found.ids.tolist() == [4, 2]
    assert found.mass.tolist() == [4.0, 2.0]
    assert found.share.tolist() == [0.5, 0.25]


def apart(n):
    """A corpus of n documents of one token each, all different: nothing is a duplicate."""
    return TokenTable(np.arange(n)[:, None], np.arange(n)[:, None])


def samples_of(values, seed, n_samples):
    key = sample_keys(seed, np.array([1]), "intervals")[0]
    return list(interval_samples(np.arange(len(values)), values, apart(len(values)), n_intervals=5, n_samples=n_samples, key=key))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(-4, 8), min_size=1, max_size=60), st.integers(0, 9))
def test_intervals_never_hold_zero_and_samples_repeat_with_the_seed(values, seed):
    values = np.array(values, np.float32)
    first, again = samples_of(values, seed, 2), samples_of(values, seed, 2)
    assert [i.picks.tolist() for i in first] == [i.picks.tolist() for i in again]
    assert sum(i.n_active for i in first) == (values > 0).sum()
    for interval in first:
        assert all(interval.low < values[p] <= interval.high for p in interval.picks)
        assert len(set(interval.picks.tolist())) == len(interval.picks) == min(2, interval.n_active)


def test_interval_samples_are_uniform():
    values = np.linspace(0.81, 1.0, 10).astype(np.float32)
    seen = Counter()
    for seed in range(600):
        seen.update(samples_of(values, seed, 3)[0].picks.tolist())
    assert min(seen[i] for i in range(10)) > 130  # 180 expected, standard deviation 11
    assert max(seen.values()) < 230


def test_ties_go_to_the_earlier_token_and_a_bad_number_is_named():
    table = TokenTable(np.arange(40).reshape(4, 10), np.arange(4).repeat(10).reshape(4, 10))
    tokens = np.array([3, 12, 17, 31])
    values = np.array([1.0, 2.0, 2.0, 2.0], np.float32)
    assert top_contexts(tokens, values, table, n=3).tolist() == [12, 31, 3]
    assert top_contexts(tokens, values, table, n=3, per_document=2).tolist() == [12, 17, 31]
    for name in ("n", "per_document"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            top_contexts(tokens, values, table, **{"n": 1, name: 0})


def test_strongest_passages_are_found_beyond_the_first_look():
    """One document holds the thousand strongest firings: the next document must still be found."""
    table = TokenTable(np.arange(4000).reshape(40, 100), np.r_[np.zeros(2000), np.arange(2000)].astype(np.int64).reshape(40, 100))
    tokens = np.arange(2003)
    values = np.r_[np.linspace(9, 5, 2000), 1.0, 3.0, 2.0].astype(np.float32)
    assert top_contexts(tokens, values, table, n=3).tolist() == [0, 2001, 2002]


def test_a_latent_selected_twice_is_one_entry_at_its_first_step_and_one_that_cancels_is_none():
    codes = SparseCodes(
        torch.tensor([[4, 1, 4, 2], [3, 3, 0, 0]]), torch.tensor([[1.0, 2.0, 0.5, -1.0], [2.0, -2.0, 0.0, 0.0]]), torch.tensor([4, 2]), 6
    )
    flat = flatten(codes, repeated=True)
    assert flat.rows.tolist() == [0, 0, 0]
    assert flat.latents.tolist() == [4, 1, 2]
    assert flat.values.tolist() == [1.5, 2.0, -1.0]
    assert flat.steps.tolist() == [0, 1, 3]


def test_neighbours_skip_atoms_without_direction_and_run_out_gracefully():
    atoms = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 2.0], [0.0, -3.0]])
    found = neighbours(atoms, n_neighbours=3)
    assert found.ids.tolist() == [[2, 3, -1], [-1, -1, -1], [0, 3, -1], [0, 2, -1]]
    assert found.cosines[0].tolist() == pytest.approx([math.sqrt(0.5), 0, 0], abs=1e-6)


def test_effects_of_a_matrix_and_of_a_model_agree_in_blocks():
    unembedding = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(600, 8, generator=torch.Generator().manual_seed(1))

    class Model:
        def logit_effects(self, directions):
            return directions @ unembedding

    unit = directions / directions.norm(dim=1, keepdim=True)
    one, other = top_effects(Model(), directions, k=5), top_effects(unit @ unembedding, directions, k=5)
    assert (one.top_ids == other.top_ids).all()
    assert (one.bottom_ids == other.bottom_ids).all()
    np.testing.assert_allclose(one.top, other.top, rtol=1e-4)
    np.testing.assert_allclose(one.top[:, 0], (unit @ unembedding).max(1).values, rtol=1e-4)
    assert (np.diff(one.top, axis=1) <= 0).all()
    assert (np.diff(one.bottom, axis=1) >= 0).all()
    with pytest.raises(ConfigError, match="one row for each of the 600 directions, got 599"):
        top_effects((unit @ unembedding)[1:], directions, k=5)
