"""Batches: every usable token once per epoch, documents on one side only, the same batches whenever they are asked for."""

from itertools import islice

import numpy as np
import pytest
import torch

from sae.activations.batches import document_hashes, mixing, shuffled, shuffled_indices, split_by_document
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
        assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(store.n_tokens))
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
        assert scaling.scale == pytest.approx(direct.scale, rel=1e-9)
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
