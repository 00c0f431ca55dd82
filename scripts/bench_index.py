"""How long an index takes to build from codes, how large it is, and how fast it answers.

    build     10^6 tokens x 16,384 latents at k = 32, log-normal densities, codes read from disk: both views, all statistics and passages of every
              latent, exact co-activation and correlation of all pairs; seconds by stage, memory, bytes per non-zero. What follows from a
              dictionary's directions alone (neighbours by cosine, map) is timed beside it, on 768 wide random atoms
    query     opening; the strongest passages of a random latent; a document of 128 tokens; a whole card; warm, medians
    growth    seconds and bytes of 10^5 and 10^6 tokens, and the exponent of a power law

Every part runs in a process of its own, so that its peak memory is its own. Beside the seconds stand those of the processor, which another
program on the machine changes less. `--quick` is a short version; `--json FILE` writes rows of name, value, unit. `benchmark_index(folder)`
builds the index for other programs, such as a load test of the server.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.inspection.build import build_index_from_codes
from sae.inspection.index import FeatureIndex
from sae.inspection.map import atom_map
from sae.inspection.neighbours import neighbours
from sae.inspection.query import top_examples

if TYPE_CHECKING:
    from bench_train import Table

K, CONTEXT, VOCABULARY, SIGMA, BATCH = 32, 128, 32_000, 1.9, 65_536
BUILD_BAR, BYTES_BAR, TOP_BAR, DOCUMENT_BAR, OPEN_BAR = 10.0, 12.0, 1.0, 2.0, 50.0
PARTS = ("build", "query", "growth")


class Corpus:
    """Synthetic codes on disk, with the tokens they belong to."""

    def __init__(self, folder: Path, n_tokens: int, d_sae: int) -> None:
        self.folder, self.d_sae, self.n = folder, d_sae, -(-n_tokens // CONTEXT) * CONTEXT
        rng = np.random.default_rng(0)
        chance = 1 / (np.arange(VOCABULARY) + 10.0)
        self.tokens = np.searchsorted(np.cumsum(chance), rng.random(self.n) * chance.sum()).clip(0, VOCABULARY - 1).astype(np.int32)
        lengths = rng.choice([64, 128, 192, 256, 512], size=self.n // 64)
        self.documents = np.repeat(np.arange(len(lengths)), lengths)[: self.n].astype(np.int32)
        if not (folder / "values.npy").exists():
            self._write(rng)

    def _write(self, rng: np.random.Generator) -> None:
        """Exactly K different latents a row: one of every K-th share of the latents, by log-normal weights."""
        share = self.d_sae // K
        latents = rng.permutation(self.d_sae).reshape(K, share)
        weights = np.exp(SIGMA * rng.standard_normal((K, share)))
        indices = np.lib.format.open_memmap(self.folder / "indices.npy", mode="w+", dtype=np.int32, shape=(self.n, K))
        values = np.lib.format.open_memmap(self.folder / "values.npy", mode="w+", dtype=np.float32, shape=(self.n, K))
        for begin in range(0, self.n, BATCH):
            rows = slice(begin, min(begin + BATCH, self.n))
            for slot in range(K):
                cumulative = np.cumsum(weights[slot])
                drawn = np.searchsorted(cumulative, rng.random(rows.stop - rows.start) * cumulative[-1]).clip(0, share - 1)
                indices[rows, slot] = latents[slot][drawn]
            values[rows] = np.exp(0.7 * rng.standard_normal((rows.stop - rows.start, K)))

    def codes(self, n: int) -> Iterator[SparseCodes]:
        """The first n rows in batches, memory-mapped."""
        indices, values = (np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in ("indices", "values"))
        for begin in range(0, n, BATCH):
            rows = slice(begin, min(begin + BATCH, n))
            counts = torch.full((rows.stop - rows.start,), K)
            yield SparseCodes(torch.from_numpy(indices[rows]), torch.from_numpy(values[rows]), counts, self.d_sae)

    def build(self, folder: Path, n_tokens: int, **options: object) -> dict[str, np.ndarray]:
        """Build the index of the first tokens; seconds of every stage, of the wall and of the processor."""
        n = -(-n_tokens // CONTEXT) * CONTEXT
        table = [torch.from_numpy(each[:n].reshape(-1, CONTEXT)) for each in (self.tokens, self.documents)]
        texts = [f" w{i}" for i in range(VOCABULARY)]
        stages: dict[str, np.ndarray] = {}
        before = now()
        build = build_index_from_codes(
            self.codes(n), *table, folder, d_sae=self.d_sae, codes_digest=f"synthetic {n}", name="synthetic", vocabulary=texts, **options
        )
        for progress in build:
            after = now()
            stages[progress.stage] = stages.get(progress.stage, 0.0) + after - before
            before = after
        return stages | {"write": now() - before}


def now() -> np.ndarray:
    """Seconds of the wall and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def benchmark_index(folder: str | Path, *, n_tokens: int = 1_000_000, d_sae: int = 16_384, atoms: bool = True) -> Path:
    """The benchmark's index in `folder` (found again where it is there); with `atoms`, of a dictionary that has directions."""
    folder = Path(folder)
    dictionary = Autoencoder(AutoencoderConfig(d_in=64, d_sae=d_sae, activation=TopK(k=K))) if atoms else None
    with tempfile.TemporaryDirectory(dir=folder.parent) as codes:
        Corpus(Path(codes), n_tokens, d_sae).build(folder, n_tokens, dictionary=dictionary)
    return folder


class Memory:
    """The largest anonymous (not file-backed) resident memory while a block runs, above that at its beginning."""

    def __enter__(self) -> "Memory":
        self.begin = self.peak = self.peak_all = anonymous()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.01)

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    @property
    def growth(self) -> float:
        """MiB."""
        return (self.peak - self.begin) / 2**20


def anonymous() -> int:
    """Bytes of anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sizes(quick: bool) -> tuple[int, int]:
    return (100_000, 4096) if quick else (1_000_000, 16_384)


def bench_build(table: "Table", quick: bool, folder: Path) -> None:
    n, d_sae = sizes(quick)
    small = Corpus(_made(folder / "small-codes"), 4096, 512)
    small.build(folder / "small", 4096, segment_tokens=2048)  # compiles what is compiled
    corpus = Corpus(_made(folder / "codes"), n, d_sae)
    with Memory() as memory:
        stages = corpus.build(folder / "index", n)
    note = {
        "encode": "segments written",
        "sort": "view by latent",
        "summarise": "statistics, passages",
        "relate": "co-activation, correlation",
    }
    for stage, (wall, processor) in stages.items():
        table.add(f"build: {stage}", wall, "s", note=f"processor {processor:.2f} s; {note.get(stage, 'summary, corpus, checksums')}")
    wall, processor = sum(stages.values())
    table.add("build: total", wall, "s", f"<= {BUILD_BAR:g}", f"{corpus.n} tokens x {d_sae}, k = {K}")
    table.add(f"build: processor over {torch.get_num_threads()} threads", processor / torch.get_num_threads(), "s")
    n_entries = FeatureIndex.open(folder / "index").manifest.n_entries
    views = size_of(folder / "index" / "by_token") + size_of(folder / "index" / "by_latent")
    table.add("build: bytes per non-zero, both views", views / n_entries, "B", f"<= {BYTES_BAR:g}")
    table.add("build: summary bundle", (size_of(folder / "index") - views) / 2**20, "MiB")
    segment = 2**17 * K * (4 + 4 + 2)
    table.add("build: peak of anonymous memory", memory.growth, "MiB", note=f"a segment in float32 with ids: {segment / 2**20:.0f} MiB")
    atoms = torch.randn(d_sae, 768, generator=torch.Generator().manual_seed(0))
    for name, function in (("neighbours by cosine", lambda: neighbours(atoms, n_neighbours=16)), ("map", lambda: atom_map(atoms.numpy()))):
        began = time.perf_counter()
        function()
        table.add(f"beside it: {name}", time.perf_counter() - began, "s", note=f"{d_sae} x 768")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def timed(function: Callable[[int], object], arguments: list[int]) -> list[float]:
    """Milliseconds of every call, after one round that warms what is read."""
    for argument in arguments:
        function(argument)
    taken = []
    for argument in arguments:
        began = time.perf_counter()
        function(argument)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def bench_query(table: "Table", quick: bool, folder: Path) -> None:
    n, d_sae = sizes(quick)
    if not (folder / "index").exists():
        Corpus(_made(folder / "codes"), n, d_sae).build(folder / "index", n)
    opened = timed(lambda _: FeatureIndex.open(folder / "index"), [0] * 20)
    table.add("query: open", float(np.median(opened)), "ms", f"< {OPEN_BAR:g}")
    index, rng = FeatureIndex.open(folder / "index"), np.random.default_rng(1)
    alive = np.flatnonzero(index.statistics.n_active > 0)
    latents = rng.choice(alive, size=300, replace=False).tolist()
    documents = [d for d in index.document_ids.tolist() if len(index.reader.document_tokens(d)) == CONTEXT]
    documents = rng.choice(documents, size=200, replace=False).tolist()
    for name, function, arguments, bar in (
        ("entries of a random latent", index.entries, latents, ""),
        ("stored top 20 passages of a random latent", lambda i: index.examples(i)[:20], latents, f"< {TOP_BAR:g}"),
        ("top 20 passages afresh from the entries", lambda i: top_examples(index, i, 20), latents, ""),
        ("whole record of a random latent", index.record, latents, ""),
        ("document of 128 tokens", index.document, documents, f"< {DOCUMENT_BAR:g}"),
    ):
        taken = timed(function, arguments)
        table.add(f"query: {name}, median", float(np.median(taken)), "ms", bar, f"p99 {np.percentile(taken, 99):.2f} ms")
    densest = int(index.statistics.n_active.argmax())
    table.add("query: entries of the densest latent", float(np.median(timed(index.entries, [densest] * 5))), "ms")


def bench_growth(table: "Table", quick: bool, folder: Path) -> None:
    n, d_sae = sizes(quick)
    corpus = Corpus(_made(folder / "codes"), n, d_sae)
    Corpus(_made(folder / "small-codes"), 4096, 512).build(folder / "small-again", 4096, segment_tokens=2048)
    seconds, bytes_of, parts = [], [], (n // 10, n)
    for size in parts:
        with Memory() as memory:
            wall, processor = sum(corpus.build(folder / f"growth-{size}", size).values())
        entries = folder / f"growth-{size}"
        seconds.append(processor)
        bytes_of.append(size_of(entries / "by_token") + size_of(entries / "by_latent"))
        table.add(f"growth: {size} tokens", wall, "s", note=f"processor {processor:.2f} s")
        table.add(f"growth: {size} tokens, both views", bytes_of[-1] / 2**20, "MiB")
        table.add(f"growth: {size} tokens, peak of anonymous memory", memory.growth, "MiB")
    for name, values in (("processor seconds", seconds), ("bytes", bytes_of)):
        table.add(f"growth: exponent of {name}", math.log(values[1] / values[0]) / math.log(parts[1] / parts[0]), "", "<= 1.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--folder", type=Path, help="where codes and indexes are kept; a temporary folder by default")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.only and options.folder:
        from bench_train import Table  # beside this program, which others may import from elsewhere

        table = Table()
        globals()[f"bench_{options.only}"](table, options.quick, _made(options.folder))
        rows = table.rows
    else:
        with tempfile.TemporaryDirectory() as temporary:
            rows = _each_part([options.only] if options.only else list(PARTS), options, options.folder or Path(temporary))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _each_part(parts: list[str], options: argparse.Namespace, folder: Path) -> list[dict]:
    rows = []
    for part in parts:
        written = _made(folder) / f"{part}.json"
        arguments = [sys.executable, __file__, "--only", part, "--json", str(written), "--folder", str(folder)]
        subprocess.run([*arguments, *(["--quick"] if options.quick else [])], check=True)
        rows += json.loads(written.read_text())
    return rows


if __name__ == "__main__":
    main()
