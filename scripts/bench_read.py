"""How fast shuffled batches of activations are read from a warm page cache, beside the machine's own copy of as many bytes.

    memcpy     torch `copy_` between arrays that exist, as many bytes as are delivered, from 1 GB that is walked through in order
    in cache   the same copy of one place again and again: what the caches give, and no read of a store can
    ours       `Rows.gather` of a shuffled batch, into memory of batches that were dropped
    before     the way until now: sort, `index_select` shard by shard, scatter, `.float()`, eight batches at a time

in one process, with the same number of threads and in alternation, 32 batches at a time; medians, and ratios of medians. Rows are 576 wide, bfloat16 on disk,
delivered as stored or as float32; stores have about 1 GB in 64 and in 1,000 shards. "step" is our training step of 2,048 rows, from batches in
memory, from the store, and from the store with two batches read ahead; "slow" is a source that waits as long as its consumer works.
`--quick` is a short version; `--json FILE` writes rows of name, value and unit. A bar is printed beside each row that has one.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the quickstart sets it; read when torch is loaded

import torch
from bench_train import Table, alternate, data, fresh
from torch import Tensor

from sae.activations.batches import shuffled_indices
from sae.activations.gather import Rows
from sae.activations.prefetch import prefetched
from sae.storage import map_tensors, save_tensors

PER_ROUND = 32
WIDTH, BATCH, STEP_ROWS, D_SAE = 576, 4096, 2048, 4608
MEMCPY_BAR, STEP_BAR, PREFETCH_BAR = 0.5, 10.0, 1.02
DELIVERED = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def written(folder: Path, n_shards: int, n_rows: int, kind: str = "bfloat16") -> list[dict[str, Tensor]]:
    """The mapped shards of a store of about `n_rows` random rows, in the page cache."""
    folder.mkdir()
    per_shard = n_rows // n_shards
    base = data(per_shard, 1, WIDTH)
    for shard in range(n_shards):
        acts = base.roll(shard, dims=0) + 0.001 * shard
        stored = (127 * acts / acts.abs().amax(1, keepdim=True)).round().to(torch.int8) if kind == "int8" else acts.to(getattr(torch, kind))
        save_tensors(folder / f"{shard}.safetensors", {"acts": stored, "norms": acts.norm(dim=1)})
    shards = [map_tensors(folder / f"{shard}.safetensors") for shard in range(n_shards)]
    for shard in shards:
        shard["acts"].float().sum()
    return shards


def gathered_before(acts: list[Tensor], index: Tensor) -> Tensor:
    """Rows of shards of one length, through torch, in the stored dtype."""
    out = torch.empty(len(index), acts[0].shape[1], dtype=acts[0].dtype)
    ascending, order = index.sort()
    found, counts = torch.unique_consecutive(ascending // len(acts[0]), return_counts=True)
    first = 0
    for shard, count in zip(found.tolist(), counts.tolist(), strict=True):
        rows = ascending[first : first + count] - shard * len(acts[0])
        out[order[first : first + count]] = acts[shard].index_select(0, rows)
        first += count
    return out


def batches_before(acts: list[Tensor], stream: Iterator[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Batches as they were read until now."""
    while several := list(itertools.islice(stream, 8)):
        rows = gathered_before(acts, torch.cat(several))
        for batch in rows.split([len(each) for each in several]):
            yield batch.to(dtype)


def batches_now(rows: Rows, stream: Iterator[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Batches as they are read."""
    for index in stream:
        yield rows.gather(index, dtype)


def drained(batches: Iterator[Tensor], n: int) -> Callable[[], None]:
    """A function that reads the next `n` batches, and drops each before the next."""

    def read() -> None:
        for _ in range(n):
            next(batches)

    return read


def memcpy(n_rows: int, dtype: torch.dtype, n: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Functions that copy `n` batches' bytes: from 1 GB in order, and from one place."""
    n_batches = n_rows * WIDTH * 2 // (BATCH * WIDTH * dtype.itemsize)
    source = torch.zeros(n_batches * BATCH, WIDTH, dtype=dtype)
    source += 1
    targets, place = torch.ones(8, BATCH, WIDTH, dtype=dtype), itertools.cycle(range(n_batches))

    def in_order() -> None:
        for _ in range(n):
            number = next(place)
            targets[number % 8].copy_(source[number * BATCH : (number + 1) * BATCH])

    def in_cache() -> None:
        for _ in range(n):
            targets[0].copy_(source[:BATCH])

    return in_order, in_cache


def reading(table: Table, shards: list[dict[str, Tensor]], name: str, rounds: int) -> None:
    """Rates of all ways over one store, for both dtypes."""
    acts, rows = [shard["acts"] for shard in shards], Rows([shard["acts"] for shard in shards])
    for label, dtype in DELIVERED.items():
        streams = [shuffled_indices(torch.arange(len(rows)), batch_size=BATCH, seed=seed, epochs=None) for seed in range(2)]
        in_order, in_cache = memcpy(len(rows), dtype, PER_ROUND)
        ways = {
            "memcpy": in_order,
            "ours": drained(batches_now(rows, streams[0], dtype), PER_ROUND),
            "before": drained(batches_before(acts, streams[1], dtype), PER_ROUND),
            "in cache": in_cache,
        }
        seconds = {way: statistics.median(values) / PER_ROUND for way, values in alternate(ways, rounds).items()}
        for way, value in seconds.items():
            table.add(
                f"{name}, as {label}: {way}", BATCH * WIDTH * dtype.itemsize / value / 1e9, "GB/s", note=f"{1e3 * value:.3f} ms a batch"
            )
        table.add(f"{name}, as {label}: over memcpy", seconds["memcpy"] / seconds["ours"], "ratio", f">= {MEMCPY_BAR:g}")
        table.add(f"{name}, as {label}: over before", seconds["before"] / seconds["ours"], "ratio")
        table.add(f"{name}, as {label}: over a copy in cache", seconds["in cache"] / seconds["ours"], "ratio")


def eight_bits(table: Table, shards: list[dict[str, Tensor]], rounds: int) -> None:
    """The rate of rows stored in eight bits."""
    rows = Rows([shard["acts"] for shard in shards], [shard["norms"] for shard in shards])
    stream = shuffled_indices(torch.arange(len(rows)), batch_size=BATCH, seed=0, epochs=None)
    in_order, _ = memcpy(2 * len(rows), torch.float32, PER_ROUND)
    seconds = alternate({"memcpy": in_order, "ours": drained(batches_now(rows, stream, torch.float32), PER_ROUND)}, rounds)
    memcpy_s, ours_s = (statistics.median(seconds[way]) / PER_ROUND for way in ("memcpy", "ours"))
    table.add("int8, as float32: ours", BATCH * WIDTH * 4 / ours_s / 1e9, "GB/s", note=f"{1e3 * ours_s:.3f} ms a batch")
    table.add("int8, as float32: over memcpy", memcpy_s / ours_s, "ratio", f">= {MEMCPY_BAR:g}")


def training(table: Table, rows: Rows, rounds: int) -> None:
    """What our training step consumes, and what it costs to read for it now and ahead."""

    def store() -> Iterator[Tensor]:
        return batches_now(rows, shuffled_indices(torch.arange(len(rows)), batch_size=STEP_ROWS, seed=0, epochs=None), torch.float32)

    kept = list(itertools.islice(store(), 4))
    sources = {"in memory": itertools.cycle(kept), "read, ahead 0": prefetched(store(), 0), "read, ahead 2": prefetched(store(), 2)}
    ways = {}
    for name, source in sources.items():
        dictionary, state, _ = fresh(D_SAE, "alive")
        steps = _steps(dictionary, state, source)
        ways[name] = lambda steps=steps: [next(steps) for _ in range(4)]
    seconds = {name: [value / 4 for value in values] for name, values in alternate(ways, rounds).items()}
    base = statistics.median(seconds["in memory"])
    for name, values in seconds.items():
        table.add(f"step, {name}", 1e3 * statistics.median(values), "ms", note=f"min {1e3 * min(values):.2f}")
    for name in ("read, ahead 0", "read, ahead 2"):
        table.add(f"step, {name}: over in memory", statistics.median(seconds[name]) / base, "ratio", f"<= {PREFETCH_BAR:g}")
    source = store()
    read = statistics.median(alternate({"read": drained(source, 8)}, rounds)["read"]) / 8
    table.add("rows read over rows trained on, per second", base / read, "ratio", f">= {STEP_BAR:g}", f"{1e3 * read:.3f} ms a batch")
    for each in sources.values():
        if hasattr(each, "close"):
            each.close()


def _steps(dictionary, state, source: Iterator[Tensor]) -> Iterator:
    from bench_train import OBJECTIVE

    from sae.training.loop import train

    return train(dictionary, source, OBJECTIVE, state.config, state=state)


def slow(table: Table, n: int, wait: float = 0.02) -> None:
    """A source that waits 20 ms for each batch, before a consumer that works as long."""

    def source() -> Iterator[int]:
        for number in range(n):
            time.sleep(wait)
            yield number

    for depth in (0, 2):
        started = time.perf_counter()
        for _ in prefetched(source(), depth):
            time.sleep(wait)
        taken = (time.perf_counter() - started) / n
        table.add(f"slow source, ahead {depth}", 1e3 * taken, "ms", note=f"waits {1e3 * wait:g} ms, is worked on for {1e3 * wait:g} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the temporary stores are written; a folder of the system's otherwise")
    parser.add_argument("--only", choices=("reading", "int8", "training", "slow"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table, rounds = Table(), 5 if options.quick else options.rounds
    n_rows = 200_000 if options.quick else 900_000
    print(f"width {WIDTH}, batches of {BATCH}, {options.threads} threads, {n_rows} rows, {sys.platform}; medians of {rounds} rounds")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shards = written(Path(folder) / "64", 64, n_rows)
        if options.only in (None, "reading"):
            reading(table, shards, "64 shards", rounds)
            reading(table, written(Path(folder) / "1000", 1000, n_rows), "1,000 shards", rounds)
        if options.only in (None, "int8"):
            eight_bits(table, written(Path(folder) / "int8", 64, n_rows, "int8"), rounds)
        if options.only in (None, "training"):
            training(table, Rows([shard["acts"] for shard in shards]), rounds)
        if options.only in (None, "slow"):
            slow(table, 10 if options.quick else 50)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
