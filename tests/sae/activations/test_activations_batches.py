"""Batches: every usable token once per epoch, documents on one side only, the same batches whenever they are asked for."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from sae.activations.batches import (
    document_hashes,
    mixing,
    narrowest,
    neighbour_correlation,
    neighbour_mixing,
    shuffled,
    shuffled_indices,
    split_by_document,
    split_runs,
)
from sae.activations.scaling import fit_scaling
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"


def usable(store, site, side):
    """The mask's tokens on one side of the default split, as a set."""
    mask = store.mask(site)
    return {int(t) for t in side if mask[t]}


def test_an_epoch_of_training_batches_holds_each_usable_token_exactly_once(store):
    expected = usable(store, RESID, store.split().train)
    n, batch_size = len(expected), 100
    assert n % batch_size != 0
    stream = torch.cat(list(islice(store.batch_indices(RESID, batch_size=batch_size, seed=5), 3 * n // batch_size + 1)))
    for epoch in range(3):
        part = stream[epoch * n : (epoch + 1) * n].tolist()
        assert len(part) == n
        assert set(part) == expected
        assert part != sorted(part)
    assert not torch.equal(stream[:n], stream[n : 2 * n])


def test_held_out_batches_are_one_pass_over_the_other_documents(store):
    batches = list(store.batch_indices(MLP, batch_size=64, seed=0, split="held_out"))
    assert [len(batch) for batch in batches[:-1]] == [64] * (len(batches) - 1)
    tokens = torch.cat(batches).tolist()
    assert len(tokens) == len(set(tokens))
    assert set(tokens) == usable(store, MLP, store.split().held_out)


def test_batches_are_the_gathered_indices_in_float32(store):
    indices = store.batch_indices(RESID, batch_size=33, seed=2, n_batches=21)
    batches = list(store.batches(RESID, batch_size=33, seed=2, n_batches=21))
    assert len(batches) == 21
    for batch, index in zip(batches, indices, strict=True):
        assert batch.dtype == torch.float32
        assert torch.equal(batch, store.gather(RESID, index).float())
    batches[0].zero_()  # a batch is the caller's own
    assert torch.equal(
        next(store.batches(RESID, batch_size=33, seed=2)),
        store.gather(RESID, next(store.batch_indices(RESID, batch_size=33, seed=2))).float(),
    )


@pytest.mark.parametrize("skip", [1, 15, 16, 17, 40, 200])
def test_skipping_gives_the_later_batches_of_the_same_stream(store, skip):
    whole = list(islice(store.batches(RESID, batch_size=96, seed=7), skip + 3))
    for expected, batch in zip(whole[skip:], store.batches(RESID, batch_size=96, seed=7, skip=skip, n_batches=3), strict=True):
        assert torch.equal(batch, expected)


def test_skipping_reads_nothing_of_the_batches_before(store, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "sae.activations.batches.shuffled", lambda tokens, *, seed, epoch: asked.append(epoch) or shuffled(tokens, seed=seed, epoch=epoch)
    )
    n = len(usable(store, RESID, store.split().train))
    next(store.batch_indices(RESID, batch_size=10, seed=0, skip=n))
    assert asked == [10]


def test_skipping_past_the_end_of_one_pass_gives_nothing(store):
    assert list(store.batches(RESID, batch_size=64, seed=0, split="held_out", skip=1000)) == []
    assert list(store.batches(RESID, batch_size=64, seed=0, n_batches=0)) == []


def test_another_seed_shuffles_otherwise_but_keeps_the_split(store):
    first = torch.cat(list(store.batch_indices(RESID, batch_size=50, seed=0, split="held_out")))
    second = torch.cat(list(store.batch_indices(RESID, batch_size=50, seed=1, split="held_out")))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    third = torch.cat(list(store.batch_indices(RESID, batch_size=50, seed=0, split="held_out", split_seed=3)))
    assert set(first.tolist()) != set(third.tolist())
    trained = next(store.batch_indices(RESID, batch_size=500, seed=0, split_seed=3))
    assert not set(trained.tolist()) & set(third.tolist())
    assert set(trained.tolist()) & set(first.tolist())


def test_held_out_zero_trains_on_everything(store):
    tokens = next(store.batch_indices(RESID, batch_size=int(store.mask(RESID).sum()), seed=0, held_out=0.0))
    assert torch.equal(tokens.sort().values, store.mask(RESID).nonzero().squeeze(1))


def test_split_separates_documents_and_together_the_sides_are_everything(store):
    document_ids = store.document_ids().reshape(-1)
    for seed in range(5):
        train, held_out = store.split(held_out=0.3, seed=seed)
        assert not set(document_ids[train].tolist()) & set(document_ids[held_out].tolist())
        assert torch.equal(torch.cat([train, held_out]).long().sort().values, torch.arange(store.n_tokens))
        assert torch.equal(train, train.sort().values)


def test_a_documents_side_does_not_depend_on_the_rest_of_the_store():
    documents = torch.arange(2000).repeat_interleave(3)
    whole = split_by_document(documents, held_out=0.2, seed=4)
    held_out = set(documents[whole.held_out].tolist())
    assert 0.16 * 2000 < len(held_out) < 0.24 * 2000
    part = split_by_document(documents[:900], held_out=0.2, seed=4)
    assert set(documents[part.held_out].tolist()) == {d for d in held_out if d < 300}


@pytest.mark.parametrize("held_out", [1e-9, 1 - 1e-9])
def test_both_sides_of_a_split_have_a_document_however_uneven_the_shares(held_out):
    split = split_by_document(torch.tensor([3, 3, 7, 7, 7, 9]), held_out=held_out, seed=0)
    assert len(split.train) > 0
    assert len(split.held_out) > 0


def test_document_hashes_are_uniform_and_unlike_between_seeds():
    ids = np.arange(20_000)
    hashes = document_hashes(ids, 0).astype(np.float64) / 2.0**64
    assert abs(hashes.mean() - 0.5) < 0.01
    assert np.abs(np.histogram(hashes, bins=10, range=(0, 1))[0] - 2000).max() < 200
    assert abs(np.corrcoef(hashes, document_hashes(ids, 1).astype(np.float64))[0, 1]) < 0.03
    assert abs(np.corrcoef(hashes[:-1], hashes[1:])[0, 1]) < 0.03


def test_mixing_matches_simulation_and_is_one_for_a_uniform_sample():
    generator = torch.Generator().manual_seed(0)
    population = torch.repeat_interleave(torch.arange(40), torch.randint(1, 60, (40,), generator=generator))
    draws = [population[torch.randperm(len(population), generator=generator)[:50]] for _ in range(2000)]
    expected = sum(len(draw.unique()) for draw in draws) / 2000
    one_document = torch.full((50,), 3)
    assert 1 / mixing(one_document, population) == pytest.approx(expected, rel=0.005)
    assert sum(mixing(draw, population) for draw in draws) / 2000 == pytest.approx(1.0, abs=0.005)
    assert mixing(population, population) == pytest.approx(1.0, abs=1e-12)


def test_batches_of_a_store_are_mixed_and_its_own_order_is_not(store):
    assert store.mixing(RESID, batch_size=64, seed=0) == pytest.approx(1.0, abs=0.1)
    document_ids = store.document_ids().reshape(-1)
    assert mixing(document_ids[:64], document_ids) < 0.2


def test_the_fitted_scaling_is_that_of_the_masked_activations(store):
    for site, width in ((RESID, 8), (MLP, 24)):
        acts = store.gather(site, store.mask(site).nonzero().squeeze(1)).float()
        scaling, direct = fit_scaling(store, site), Scaling.fitted(acts)
        assert scaling.scale == pytest.approx(direct.scale, rel=1e-7)
        torch.testing.assert_close(scaling.mean, direct.mean)
        x = scaling.apply(acts)
        assert float(x.norm(dim=1).mean()) == pytest.approx(width**0.5, rel=1e-5)
        assert float(x.mean(dim=0).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be in 1..\d+, the number of usable tokens, got 0"),
        ({"batch_size": 10_000}, r"batch_size must be in 1..\d+, the number of usable tokens, got 10000"),
        ({"seed": -1}, r"seed must be at least 0, got -1"),
        ({"skip": -1}, r"skip and n_batches must be at least 0, got skip=-1"),
        ({"held_out": 1.0}, r"held_out must be above 0 and below 1, got 1.0"),
        ({"held_out": 0.0, "split": "held_out"}, r"held_out must be above 0 and below 1, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(store, options, message):
    with pytest.raises(ConfigError, match=message):
        store.batches(RESID, **{"batch_size": 8, "seed": 0, **options})


def test_one_document_cannot_be_split_and_no_usable_token_cannot_be_batched():
    with pytest.raises(ConfigError, match=r"needs a store with at least 2 documents, this one has 1"):
        split_by_document(torch.zeros(10, dtype=torch.int32), held_out=0.1, seed=0)
    with pytest.raises(ConfigError, match=r"there is no usable token to make batches of"):
        shuffled_indices(torch.empty(0, dtype=torch.int64), batch_size=1, seed=0, epochs=None)
    with pytest.raises(ConfigError, match=r"batch_document_ids must have 1..3 entries, got 0"):
        mixing(torch.empty(0, dtype=torch.int32), torch.tensor([1, 2, 3]))


def stream_of_int64(tokens, *, batch_size, seed, epochs, skip=0):
    """The stream as it was first defined: an int64 permutation of places per epoch."""
    n = len(tokens)
    orders = [np.random.default_rng([seed, epoch]).permutation(n) for epoch in range(epochs)]
    whole = tokens[torch.from_numpy(np.concatenate(orders))]
    return list(whole.split(batch_size))[skip:]


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 70_001])
def test_batches_are_those_that_earlier_versions_gave_for_the_seed(n):
    generator = torch.Generator().manual_seed(n)
    tokens = torch.randperm(5 * n, generator=generator)[:n].sort().values
    for seed, epochs, batch_size, skip in ((0, 1, n, 0), (5, 3, max(1, n // 3), 2), (2**40, 2, 17, 1)):
        expected = stream_of_int64(tokens, batch_size=batch_size, seed=seed, epochs=epochs, skip=skip)
        for given in (tokens, tokens.int()):
            found = list(shuffled_indices(given, batch_size=batch_size, seed=seed, epochs=epochs, skip=skip))
            assert len(found) == len(expected)
            for batch, wanted in zip(found, expected, strict=True):
                assert batch.dtype == torch.int64
                assert torch.equal(batch, wanted)


def test_an_order_takes_four_bytes_per_token_and_its_tokens_stay():
    tokens = np.arange(1000, dtype=narrowest(1000))
    assert shuffled(tokens, seed=0, epoch=1).itemsize == 4
    assert tokens.tolist() == list(range(1000))
    assert [narrowest(n) for n in (1, 2**31, 2**31 + 1)] == [np.int32, np.int32, np.int64]
    stream = shuffled_indices(torch.tensor([2**31 - 1, 2**31, 2**40]), batch_size=3, seed=0, epochs=1)
    assert sorted(next(stream).tolist()) == [2**31 - 1, 2**31, 2**40]


def test_runs_split_like_their_tokens():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 9, (40,), generator=generator)
        ids = torch.randint(0, 12, (40,), generator=generator).int()  # documents come again, and in runs that touch
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
        of_tokens = ids.repeat_interleave(lengths)
        for held_out in (0.1, 0.5):
            whole, runs = (
                split_by_document(of_tokens, held_out=held_out, seed=3),
                split_runs(starts, ids, len(of_tokens), held_out=held_out, seed=3),
            )
            assert torch.equal(whole.train, runs.train) and torch.equal(whole.held_out, runs.held_out)
            assert whole.train.dtype == torch.int32


def drifting(n, width, step, seed=0):
    """Rows of unit variance about a mean of 2, each (1 - step) of the row before and fresh noise: neighbours correlate by 1 - step."""
    generator = torch.Generator().manual_seed(seed)
    noise, keep = torch.randn(n, width, generator=generator), 1 - step
    rows = [noise[0]]
    for fresh in noise[1:]:
        rows.append(keep * rows[-1] + (1 - keep**2) ** 0.5 * fresh)
    return torch.stack(rows) + 2.0


@pytest.mark.parametrize("step", [0.05, 0.5, 1.0])
def test_neighbour_correlation_is_that_of_a_planted_process(step):
    rows = drifting(4000, 64, step)
    found = neighbour_correlation(rows, torch.full((64,), 2.0))
    assert found.value == pytest.approx(1 - step, abs=0.02)
    assert found.n_pairs == 3999


def test_neighbour_correlation_is_the_mean_cosine_pair_by_pair_and_has_its_symmetries():
    rows, mean = drifting(50, 7, 0.4, seed=1), torch.randn(7, generator=torch.Generator().manual_seed(2))
    rows[13] = mean
    centred = (rows - mean).double().numpy()
    cosines = []
    for a, b in pairwise(centred):
        sizes = np.linalg.norm(a) * np.linalg.norm(b)
        cosines.append(a @ b / sizes if sizes else 0.0)
    found = neighbour_correlation(rows, mean)
    assert found.value == pytest.approx(np.mean(cosines), abs=1e-6)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3)))[0]
    sizes = torch.rand(50, 1, generator=torch.Generator().manual_seed(4)) + 0.1
    for same in (
        neighbour_correlation(rows.flip(0), mean),
        neighbour_correlation(rows @ turn, mean @ turn),
        neighbour_correlation((rows - mean) * sizes + mean, mean),
        neighbour_correlation(7 * rows, 7 * mean),
    ):
        assert same.value == pytest.approx(found.value, abs=1e-5)
    assert neighbour_correlation(mean.expand(5, 7), mean).value == 0.0
    assert neighbour_correlation(torch.ones(5, 7) + mean, mean).value == pytest.approx(1.0)


def test_the_standard_error_of_a_random_order_is_the_spread_over_many():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 20, generator=generator)
    rows[:, :2] += 3.0  # a direction that is common: pairs that share a row are then not independent
    mean = torch.zeros(20)
    found = [neighbour_correlation(rows[torch.randint(400, (300,), generator=generator)], mean) for _ in range(600)]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    errors = torch.tensor([each.standard_error for each in found], dtype=torch.float64)
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.12)
    directions = torch.nn.functional.normalize(rows, dim=1)
    assert float(values.mean()) == pytest.approx(float(directions.mean(0).square().sum()), abs=4 * float(values.std()) / 600**0.5)


def test_a_permutation_leaves_nothing_of_the_order_and_a_buffer_of_some_rows_does():
    rows = drifting(20_000, 32, 0.02)
    tokens, mean = torch.arange(20_000), rows.mean(0)
    whole = shuffled_indices(tokens, batch_size=500, seed=0, epochs=1)
    mixed = neighbour_mixing(lambda index: rows[index], whole, tokens, mean=mean, seed=0)
    assert mixed.in_order.value == pytest.approx(0.98, abs=0.01)
    assert abs(mixed.excess) < 4 * mixed.excess_error
    assert abs(mixed.left) < 0.05
    assert mixed.left_error < 0.02
    assert mixed.batches.n_pairs == 40 * 499
    generator = torch.Generator().manual_seed(1)
    buffered = [part[torch.randperm(500, generator=generator)] for part in tokens.split(500)]
    poor = neighbour_mixing(lambda index: rows[index], buffered, tokens, mean=mean, seed=0)
    assert poor.left > 0.05 + 3 * poor.left_error
    as_stored = neighbour_mixing(lambda index: rows[index], list(tokens.split(500)), tokens, mean=mean, seed=0)
    assert as_stored.left == pytest.approx(1.0, abs=0.02)


def test_batches_of_a_store_have_the_neighbours_of_a_random_permutation(store):
    tokens = store.usable_tokens(RESID)
    batches = store.batch_indices(RESID, batch_size=400, seed=0, n_batches=40)
    read = lambda index: store.gather(RESID, index).float()  # noqa: E731
    found = neighbour_mixing(read, batches, tokens, mean=store.statistics(RESID).mean.float(), seed=1)
    assert abs(found.excess) < 4 * found.excess_error


def test_neighbours_of_too_little_are_refused():
    with pytest.raises(ConfigError, match=r"batch must have at least 3 rows, got 2 \(neighbour_correlation\)"):
        neighbour_correlation(torch.ones(2, 3), torch.zeros(3))
    rows, tokens = torch.randn(10, 3), torch.arange(10)
    with pytest.raises(ConfigError, match=r"batches must be at least 2, got 1"):
        neighbour_mixing(lambda index: rows[index], [tokens], tokens, mean=torch.zeros(3), seed=0)
    with pytest.raises(ConfigError, match=r"at most as many rows as there are tokens, 10, got 20"):
        neighbour_mixing(lambda index: rows[index], [tokens.repeat(2)], tokens, mean=torch.zeros(3), seed=0)
