"""What capturing costs beyond the forward pass it cannot do without, and what an activation store costs to keep.

    speed      seconds of `sae.collect` over those of the Hugging Face model cut after the deepest site, `model(tokens)`, whose activations
               are thrown away; same dtype, one process, in alternation; bare is the faster of eager and fused ("sdpa") attention. One site
               and six. "To the end" adds the tokens' share of what follows the last pass: the last shard, statistics and manifest
    memory     peak resident memory of a process while it captures few and ten times as many tokens (Linux)
    disk       bytes of the store's folder over n_tokens x sum(widths) x bytes per number
    opening    seconds to open a store of 1,000 shards of six sites: every file is looked up
    mixing     correlation of neighbouring rows of batches, over that of a fresh random permutation of the same tokens

`--only NAME` runs one part; `--quick` is a short version; `--json FILE` writes rows of name, value, unit.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the quickstart sets it; read when torch is loaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import Corpus, from_texts, state_of_the_union
from sae.activations.store import ActivationStore
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.models.tokens import pack

ROWS_PER_BATCH, PASSES_PER_ROUND = 16, 2
LAYERS = (5, 7, 9, 11, 13, 15)
Rows = list[dict[str, Any]]


def bare_model(folder: Path, layer: int, dtype: torch.dtype, attention: str):
    """The Hugging Face model itself, with no block after `layer` and no unembedding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    model.model.layers = model.model.layers[: layer + 1]
    return model.model


def texts():
    """The addresses, as often as a corpus must be long."""
    return [document.text for document in state_of_the_union().documents()]


def alternate(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round but the first, which warms up; each round in an order of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(0)
    for round_number in range(rounds + 1):
        for name in order.sample(list(ways), len(ways)):
            started = time.perf_counter()
            ways[name]()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


class Stepped:
    """A capture that goes on by one round of forward passes at a time; a shard is written during the first passes of the next round."""

    def __init__(self, model: LanguageModel, corpus: Corpus, path: Path, config: CaptureConfig):
        self.path, self.steps = path, collect(model, corpus, path, config)
        while next(self.steps).stage == "tokens":
            pass

    def __call__(self) -> None:
        for _ in range(PASSES_PER_ROUND):
            next(self.steps)

    def finish(self) -> tuple[float, int]:
        """(seconds from the last timed round to the complete store, tokens of the store)"""
        started = time.perf_counter()
        for _ in self.steps:
            pass
        return time.perf_counter() - started, ActivationStore.open(self.path).n_tokens


def speed(options: argparse.Namespace) -> Rows:
    """The cost of `capture` and of `collect` over the bare pass."""
    folder, per_round = default_model(), PASSES_PER_ROUND * ROWS_PER_BATCH
    model = LanguageModel.load(folder)
    corpus = from_texts(texts() * 4)
    documents = ((document.id, model.tokenize([document.text])[0]) for document in corpus.documents())
    packed = pack(documents, context=128, separator_id=model.separator_id, bos_id=None)
    rows = torch.stack([next(packed).tokens for _ in range(per_round)]).long()
    names = {1: (f"blocks.{LAYERS[-1]}.hook_resid_post",), 6: tuple(f"blocks.{layer}.hook_resid_post" for layer in LAYERS)}

    def bare(attention: str) -> Callable[[], None]:
        reference = bare_model(folder, LAYERS[-1], model.dtype, attention)

        def run() -> None:
            with torch.inference_mode():
                for start in range(0, len(rows), ROWS_PER_BATCH):
                    reference(rows[start : start + ROWS_PER_BATCH], use_cache=False)

        return run

    def captured(n_sites: int) -> Callable[[], None]:
        sites = model.sites(names[n_sites])

        def run() -> None:
            for start in range(0, len(rows), ROWS_PER_BATCH):
                model.capture(rows[start : start + ROWS_PER_BATCH], sites)

        return run

    n_tokens = ((options.rounds + 1) * per_round + ROWS_PER_BATCH) * 128
    with tempfile.TemporaryDirectory(dir=options.folder) as target:
        for _ in collect(model, corpus, Path(target) / "warm", CaptureConfig(sites=names[1], n_tokens=2048)):
            pass  # loads what is compiled
        collects = {
            n: Stepped(
                model,
                corpus,
                Path(target) / str(n),
                CaptureConfig(sites=names[n], n_tokens=n_tokens, rows_per_batch=ROWS_PER_BATCH, rows_per_shard=per_round),
            )
            for n in (1, 6)
        }
        ways = {
            "bare, eager": bare("eager"),
            "bare, sdpa": bare("sdpa"),
            **{f"capture, {n} site{'s' * (n > 1)}": captured(n) for n in (1, 6)},
            **{f"collect, {n} site{'s' * (n > 1)}": steps for n, steps in collects.items()},
        }
        seconds = alternate(ways, options.rounds)
        for n, steps in collects.items():
            end, n_stored = steps.finish()
            share = end * len(rows) * 128 / n_stored
            name = f"collect, {n} site{'s' * (n > 1)}"
            seconds[f"{name}, to the end"] = [value + share for value in seconds[name]]
    return _speed_table(seconds, rows.numel(), str(model.dtype).removeprefix("torch."), options)


def _speed_table(seconds: dict[str, list[float]], n_tokens: int, dtype: str, options: argparse.Namespace) -> Rows:
    print(f"speed: layer {LAYERS[-1]}, {dtype}, {options.threads} threads, {n_tokens} tokens a round, {options.rounds} rounds")
    print(f"{'way':<28}{'tokens/s (median)':>20}{'ratio to bare: quartile':>26}{'median':>10}{'quartile':>10}")
    fastest = min(("bare, eager", "bare, sdpa"), key=lambda name: statistics.median(seconds[name]))
    found: Rows = []
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds[fastest], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rate = n_tokens / statistics.median(values)
        print(f"{name:<28}{rate:>20.0f}{low:>26.3f}{middle:>10.3f}{high:>10.3f}")
        found += [{"name": f"{name}: rate", "value": rate, "unit": "tokens/s"}]
        found += [{"name": f"{name} over bare", "value": middle, "unit": "ratio"}]
    return found


CAPTURE_AND_MEASURE = """
import sys
import torch
from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import Corpus, from_texts, state_of_the_union
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel


def memory(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name))


path, n_tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
model = LanguageModel.load(default_model())
corpus = from_texts([document.text for document in state_of_the_union().documents()])
list(model.tokenize(["warm"]))
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted from here
for _ in collect(model, corpus, path, CaptureConfig(sites=("blocks.0.hook_resid_post",), n_tokens=n_tokens, rows_per_batch=16)):
    pass
print(before, memory("VmHWM"))
"""


def memory_and_disk(options: argparse.Namespace) -> Rows:
    """Peak memory of a process that captures few and many tokens (after the first block: the store's part is what is looked at), and the
    bytes that the larger store takes. Nothing is known of what a mapped file's pages count for: they are in the numbers.
    """
    few, many = (20_000, 200_000) if options.quick else (50_000, 500_000)
    found: Rows = []
    print(f"memory: a process that captures block 0 of {default_model().name}")
    with tempfile.TemporaryDirectory(dir=options.folder) as target:
        for n_tokens in (few, many):
            command = [sys.executable, "-c", CAPTURE_AND_MEASURE, f"{target}/{n_tokens}", str(n_tokens), str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            before, peak = (int(number) / 1024 for number in done.stdout.split())
            print(f"  {n_tokens:>8} tokens: {before:6.0f} MiB before the capture, {peak:6.0f} MiB at its peak")
            found += [{"name": f"peak memory, {n_tokens} tokens", "value": peak, "unit": "MiB"}]
        for n_tokens in (few, many):
            store = ActivationStore.open(f"{target}/{n_tokens}")
            used = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
            ideal = store.n_tokens * sum(site.width for site in store.manifest.sites) * 2
            print(f"disk: {store.n_tokens} tokens of one site: {used / ideal - 1:.2%} over {ideal / 1e6:.1f} MB")
            found += [{"name": f"disk overhead, {n_tokens} tokens", "value": used / ideal - 1, "unit": "share"}]
        found += mixing(ActivationStore.open(f"{target}/{many}"))
    return found


def mixing(store: ActivationStore) -> Rows:
    """Correlation of neighbouring rows of batches, against a fresh permutation and the order of the tokens."""
    found = store.neighbour_mixing(store.site_names[0], batch_size=4096, seed=0, n_batches=24)
    ratio = found.batches.value / found.permutation.value
    print("mixing: mean cosine of neighbouring rows about the mean, of batches of 4096")
    for name, each in (("batches", found.batches), ("permutation", found.permutation), ("in order", found.in_order)):
        print(f"  {name:<12}{each.value:9.5f} +- {each.standard_error:.5f}")
    print(f"  batches over permutation {ratio:.3f}; of the tokens' own order {found.left:.2%} +- {found.left_error:.2%} is left")
    return [
        {"name": "neighbour correlation over a permutation's", "value": ratio, "unit": "ratio"},
        {"name": "order left in batches", "value": found.left, "unit": "share"},
    ]


def opening(options: argparse.Namespace) -> Rows:
    """Seconds to open a store of many shards and six sites."""
    from sae.activations.manifest import CorpusRecord, Manifest, MaskRule
    from sae.activations.writing import RowPiece, write_store
    from sae.models.sites import Site

    n_shards, names = 1000, [f"blocks.{layer}.hook_resid_post" for layer in LAYERS]
    config = CaptureConfig(sites=tuple(names), n_tokens=n_shards * 2, context=1, rows_per_shard=2)
    manifest = Manifest(
        model=None,
        corpus=CorpusRecord(name="noise", digest="0" * 64, licence="none"),
        capture=config,
        sites=tuple(Site.of(name, 16) for name in names),
        token_dtype=None,
        mask=MaskRule(skipped_positions=()),
    )
    pieces = (
        RowPiece(torch.arange(2 * i, 2 * i + 2)[:, None], None, {name: torch.randn(2, 16) for name in names}) for i in range(n_shards)
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as target:
        fsync, os.fsync = os.fsync, lambda handle: None  # 20,000 of them are not what is measured
        try:
            for _ in write_store(Path(target) / "store", manifest, pieces):
                pass
        finally:
            os.fsync = fsync
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            ActivationStore.open(Path(target) / "store")
            seconds.append(time.perf_counter() - started)
    middle = statistics.median(seconds)
    print(
        f"opening: {n_shards} shards of {len(names)} sites, {n_shards * (len(names) + 1)} files looked up: {middle * 1e3:.0f} ms (median of 7)"
    )
    return [{"name": "opening 1000 shards", "value": middle, "unit": "s"}]


PARTS = {"speed": speed, "memory": memory_and_disk, "opening": opening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where stores are written (default: the system's folder for temporary files)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 4
    torch.set_num_threads(options.threads)
    found = [row for name, part in PARTS.items() if options.only in (None, name) for row in part(options)]
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
