"""Rows of many shards: what two slow ways give, from any shards, into memory that is the caller's own."""

import multiprocessing
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.activations import gather
from sae.activations.gather import Rows, gather_with_torch
from sae.errors import ConfigError
from sae.storage import map_tensors, save_tensors

SIZES = [3, 0, 1, 1000, 17, 5, 0, 700]
STORED = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8]


def shards(sizes, width, dtype, seed=0):
    """(acts, norms) of every shard, with NaN, infinite and subnormal numbers in the floating ones, and a row of zeros in the integer ones."""
    generator = torch.Generator().manual_seed(seed)
    acts = [torch.randn(n, width, generator=generator).mul(50).clamp(-127, 127).to(dtype) for n in sizes]
    for shard in acts:
        if len(shard) > 1 and dtype == torch.int8:
            shard[1] = 0
        elif len(shard) > 4:
            special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, torch.finfo(dtype).smallest_normal / 4], dtype=torch.float64)
            shard[:5, 0] = special.to(dtype)
    return acts, [torch.rand(n, generator=generator) * 9 for n in sizes]


def one_by_one(acts, norms, index, dtype):
    """Row after row from the concatenated shards, in numpy's float64."""
    whole = torch.cat([shard.double() for shard in acts]).numpy()
    if acts[0].dtype == torch.int8:
        sizes, lengths = np.linalg.norm(whole, axis=1), torch.cat(norms).double().numpy()
        whole = whole * np.divide(lengths, sizes, out=np.zeros_like(sizes), where=sizes > 0)[:, None]
    return torch.stack([torch.from_numpy(whole[int(t)]) for t in index]).to(dtype)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("width", [1, 7, 64, 577])
@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_rows_are_those_of_the_concatenated_shards_in_any_order(dtype, width, threads, monkeypatch):
    monkeypatch.setattr(gather, "BLOCK_BYTES", 1 << 14)  # several blocks, so that threads share the work
    acts, norms = shards(SIZES, width, dtype)
    rows = Rows(acts, norms)
    index = torch.randint(0, sum(SIZES), (3000,), generator=torch.Generator().manual_seed(width))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for wanted in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            found = rows.gather(index, wanted)
            assert same(found, gather_with_torch(acts, norms if dtype == torch.int8 else None, index, wanted))
            if dtype == torch.int8:
                step = torch.finfo(torch.float32).eps + torch.finfo(wanted).eps  # decoded in float32, then rounded
                torch.testing.assert_close(found, one_by_one(acts, norms, index, wanted), rtol=2 * float(step), atol=0)
            else:
                assert same(found, one_by_one(acts, norms, index, wanted))
    finally:
        torch.set_num_threads(before)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(any), giant=st.sampled_from([0, 0, 100_000]), data=st.data())
def test_every_row_is_found_whatever_the_shards_lengths(sizes, giant, data):
    place = data.draw(st.integers(0, len(sizes)))
    sizes = [*sizes[:place], giant, *sizes[place:]]
    n = sum(sizes)
    numbers = torch.arange(n, dtype=torch.float32)[:, None]
    rows = Rows(list(numbers.split(sizes)))
    edges = torch.tensor(np.cumsum([0, *sizes]))
    index = torch.cat([edges - 1, edges, torch.randint(0, n, (200,), generator=torch.Generator().manual_seed(n))]).clamp(0, n - 1)
    assert torch.equal(rows.gather(index, torch.float32)[:, 0], index.float())
    assert len(rows) == n


def test_the_table_of_shards_stays_small_beside_a_giant_shard():
    starts = np.cumsum([0, 10**12, *[1] * 1000])
    first_shard, shift = gather._first_shards(starts)
    assert len(first_shard) < 10_000
    for t in (0, 10**12 - 1, 10**12, 10**12 + 999):
        low, high = first_shard[t >> shift], first_shard[(t >> shift) + 1]
        assert low <= np.searchsorted(starts, t, side="right") - 1 <= high


def test_a_thousand_mapped_shards_of_four_rows_read_like_one(tmp_path):
    whole = torch.randn(4000, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number, part in enumerate(whole.split(4)):
        save_tensors(tmp_path / f"{number}.safetensors", {"acts": part})
    rows = Rows([map_tensors(tmp_path / f"{number}.safetensors")["acts"] for number in range(1000)])
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rows.gather(order, torch.bfloat16), whole[order])
    assert torch.equal(rows.gather(order), whole[order].float())
    assert (len(rows), rows.width, rows.dtype) == (4000, 24, torch.bfloat16)
    assert "4,000 of width 24, torch.bfloat16, in 1000 shards" in repr(rows)


def test_batches_that_are_kept_are_not_written_over_and_dropped_ones_are_used_again():
    whole = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0))
    rows = Rows([whole])
    kept = [rows.gather(torch.arange(start, start + 8000), torch.float32) for start in (0, 5000, 9000)]
    for batch, start in zip(kept, (0, 5000, 9000), strict=True):
        assert torch.equal(batch, whole[start : start + 8000])
    part = kept[1][17:19]
    places = {batch.data_ptr() for batch in kept}
    assert len(places) == 3
    del kept, batch
    again = [rows.gather(torch.arange(8000), torch.float32) for _ in range(3)]
    assert len(places & {batch.data_ptr() for batch in again}) == 2  # a view still holds the third
    assert torch.equal(part, whole[5017:5019])


def test_writing_into_a_batch_changes_neither_the_store_nor_a_later_batch():
    acts = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    before, rows = acts.clone(), Rows([acts])
    rows.gather(torch.arange(50), torch.float32).zero_()
    assert torch.equal(acts, before)
    assert torch.equal(rows.gather(torch.arange(50), torch.float32), before)


def test_indices_may_be_of_any_integer_type_repeat_and_be_none():
    acts = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    rows = Rows([acts[:11], acts[11:]])
    for dtype in (torch.int16, torch.int32, torch.int64):
        assert torch.equal(rows.gather(torch.tensor([29, 0, 29, 11], dtype=dtype)), acts[[29, 0, 29, 11]])
    assert torch.equal(rows.gather(torch.arange(60)[::7].flip(0) % 30), acts[torch.arange(60)[::7].flip(0) % 30])  # not contiguous
    assert rows.gather(torch.empty(0, dtype=torch.int64)).shape == (0, 5)


def test_shards_that_are_not_contiguous_go_through_torch_and_give_the_same():
    acts, norms = shards([40, 60], 16, torch.int8)
    index = torch.randint(0, 100, (64,), generator=torch.Generator().manual_seed(1))
    apart = Rows([shard.T.contiguous().T for shard in acts], norms)
    assert torch.equal(apart.gather(index), Rows(acts, norms).gather(index))
    with pytest.raises(ConfigError, match=r"token_index must be in 0..n_tokens-1=99, got 100"):
        apart.gather(torch.tensor([100]))


def test_int8_rows_wider_than_their_squares_sum_to_are_still_right():
    width = gather.WIDEST_INT8 + 5
    for w in (gather.WIDEST_INT8, width):
        acts = torch.full((3, w), -127, dtype=torch.int8)
        found = Rows([acts], [torch.tensor([1.0, 2.0, 3.0])]).gather(torch.tensor([2, 0]))
        torch.testing.assert_close(found.double().norm(dim=1), torch.tensor([3.0, 1.0], dtype=torch.float64), rtol=1e-5, atol=0)
    assert gather.WIDEST_INT8 * 127**2 < 2**31 <= (gather.WIDEST_INT8 + 1) * 127**2


@pytest.mark.parametrize("bad", [-1, 1726, 2**40, -(2**40)])
@pytest.mark.parametrize("place", [0, 999, 4000])
def test_an_index_out_of_range_is_refused_by_its_value(bad, place, monkeypatch):
    monkeypatch.setattr(gather, "BLOCK_BYTES", 1 << 12)
    acts, _ = shards(SIZES, 8, torch.bfloat16)
    index = torch.zeros(4001, dtype=torch.int64)
    index[place] = bad
    with pytest.raises(ConfigError, match=rf"^token_index must be in 0\.\.n_tokens-1=1725, got {bad} \(gather\)"):
        Rows(acts).gather(index)


def test_what_cannot_be_a_store_is_refused():
    acts = torch.randn(4, 3)
    with pytest.raises(ConfigError, match="acts must have at least one shard"):
        Rows([])
    with pytest.raises(ConfigError, match=r"one width and one dtype .* got width 3 torch.bfloat16, width 3 torch.float32"):
        Rows([acts, acts.bfloat16()])
    with pytest.raises(ConfigError, match=r"got width 3 torch.int64"):
        Rows([acts.long()])
    for norms in (None, [torch.ones(3)], [torch.ones(4), torch.ones(0)]):
        with pytest.raises(ConfigError, match="int8 rows need norms, one float32 for each row of each shard"):
            Rows([acts.to(torch.int8)], norms)
    with pytest.raises(ConfigError, match=r"dtype must be a floating one, got torch.int8 .* read as torch.float32"):
        Rows([acts.to(torch.int8)], [torch.ones(4)]).gather(torch.tensor([0]), torch.int8)
    for index in (torch.tensor([True, False]), torch.tensor([1.0])):
        with pytest.raises((ConfigError, TypeError)):
            Rows([acts]).gather(index)


def test_several_threads_may_read_at_once():
    whole = torch.randn(30_000, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows, wrong = Rows(list(whole.split(1000))), []

    def read(seed):
        for step in range(10):
            index = torch.randint(0, 30_000, (9000,), generator=torch.Generator().manual_seed(100 * seed + step))
            if not torch.equal(rows.gather(index), whole[index].float()):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def _read_in_child(rows, index, pipe):
    torch.set_num_threads(2)
    pipe.send(float(rows.gather(index).numpy().sum(dtype=np.float64)))  # torch's own threads do not survive a fork


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_although_its_parents_helpers_are_not_there():
    rows = Rows([torch.randn(60_000, 32, generator=torch.Generator().manual_seed(0))])
    index, before = torch.arange(60_000), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = float(rows.gather(index).numpy().sum(dtype=np.float64))
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        child = context.Process(target=_read_in_child, args=(rows, index, there), daemon=True)
        child.start()
        assert here.poll(60)
        assert here.recv() == pytest.approx(expected)
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)
