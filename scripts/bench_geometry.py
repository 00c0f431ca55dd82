"""How long the geometry of a whole dictionary takes, and of a million tokens of its codes.

    atoms          65,536 atoms of width 768: nearest neighbours, Babel function, coherence and histogram in one pass; the products of that pass
                   alone; eigenvalue spectrum; dimensionality of every atom; clusters by the graph of neighbours and by spherical k-means
    coactivation   10^6 tokens x 16,384 latents at k = 32: exact counts of all pairs, the 30 strongest partners of every latent by phi, the same
                   by blocks of 256 tokens, and partners among 65,536 latents
    lobes          30 partners by phi of every latent -> 32 spectral lobes, their agreement with clusters by cosine
    growth         seconds against the number of atoms (pass, k-means) and of tokens (co-activation), and the exponent of a power law
    oracles        scikit-learn's NearestNeighbors and scipy's sparse X^T X at the same work, in alternation, with equal results
    dimension      the intrinsic dimension of 50,000 points (bench_dimension)

Every part runs in a process of its own, so that its peak memory is its own. Beside the seconds stand those of the processor, which another
program on the machine changes less. `--quick` is a short version; `--json FILE` writes rows of name, value, unit.
"""

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_train import Table, alternate
from torch import Tensor

from sae.geometry.coactivation import Firings, coactivation, firings, nearest_by_coactivation
from sae.geometry.frames import frame
from sae.geometry.kmeans import spherical_kmeans
from sae.geometry.lobes import coactivation_graph, compare_agreement, neighbour_graph, spectral_lobes_of_graph
from sae.geometry.multidimensional.clusters import clusters_of_labels
from sae.geometry.pairs import TILE, atom_pairs
from sae.geometry.similarity import nearest_atoms
from sae.geometry.spectrum import covariance_eigenvalues

WIDTH, K, N_NEIGHBOURS, MAX_ORDER, BLOCK = 768, 32, 30, 32, 256
SECONDS_BAR, MEMORY_BAR = 180.0, 4.0
PARTS = ("atoms", "coactivation", "lobes", "growth", "oracles", "dimension")


def dictionary(n_atoms: int) -> Tensor:
    """Atoms around a common direction, three of four of them in cones of 32: cosines near 0.7 within a cone."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, n_atoms // 32), WIDTH, generator=generator)
    atoms = torch.randn(n_atoms, WIDTH, generator=generator)
    in_cone = torch.arange(n_atoms) % 4 > 0
    atoms[in_cone] = 0.65 * atoms[in_cone] + centres[torch.randint(len(centres), (int(in_cone.sum()),), generator=generator)]
    return torch.nn.functional.normalize(atoms + 0.1 * torch.randn(WIDTH, generator=generator))


def codes(n: int, n_latents: int) -> tuple[Tensor, Tensor]:
    """Exactly K different latents a row, rates falling like 1/(rank + 5)."""
    rng, share = np.random.default_rng(0), n_latents // K
    cumulative = np.cumsum(1 / (np.arange(share) + 5.0))
    indices = np.empty((n, K), np.int64)
    for slot in range(K):
        ranks = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
        indices[:, slot] = np.minimum(ranks, share - 1) * K + slot
    return torch.from_numpy(indices), torch.full((n,), K)


class Clock:
    """Rows of seconds, of the wall and of the processor, and their sum."""

    def __init__(self, table: Table):
        self.table, self.wall, self.processor = table, 0.0, 0.0

    def __call__(self, name: str, function: Callable[[], object], note: str = "", bar: str = "") -> object:
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.wall, self.processor = self.wall + wall, self.processor + processor
        self.table.add(name, wall, "s", bar, note)
        self.table.add(f"{name}, processor", processor, "s")
        return result

    def total(self, name: str) -> None:
        self.table.add(name, self.wall, "s", f"<= {SECONDS_BAR:g}")
        self.table.add(f"{name}, processor over {torch.get_num_threads()} threads", self.processor / torch.get_num_threads(), "s")


def peak(table: Table, part: str) -> None:
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table.add(f"{part}: peak memory", gibibytes, "GiB", f"<= {MEMORY_BAR:g}", "resident, of the whole process")


def products(atoms: Tensor, share: int) -> None:
    """The products of one in `share` of the tiles of a pass, on the same team of threads, and nothing else."""
    from sae.dictionaries.kernels.cpu import team

    n_down = len(atoms) // TILE
    tiles = [(r, c) for r in range(n_down) for c in range(r, n_down)][::share]
    team.each(lambda t: atoms[tiles[t][0] * TILE :][:TILE] @ atoms[tiles[t][1] * TILE :][:TILE].T, len(tiles))


def bench_atoms(table: Table, quick: bool) -> None:
    """Everything about 65,536 atoms."""
    from scipy.sparse.csgraph import connected_components

    atoms_of = 8192 if quick else 65_536
    atoms, clock = dictionary(atoms_of), Clock(table)
    atom_pairs(atoms[:2048], n_neighbours=N_NEIGHBOURS, max_order=MAX_ORDER)  # compiles what is compiled
    size = f"{atoms_of} x {WIDTH}"
    pairs = clock(
        "atoms: one pass", lambda: atom_pairs(atoms, n_neighbours=N_NEIGHBOURS, max_order=MAX_ORDER), f"{size}, k = {N_NEIGHBOURS}"
    )
    clock("atoms: eigenvalue spectrum", lambda: covariance_eigenvalues(atoms))
    tight = clock("atoms: dimensionality and frame", lambda: frame(atoms))

    def components() -> Tensor:
        near = pairs.cosines[:, :2]
        graph = neighbour_graph(pairs.atom_ids[:, :2], near * (near > 0.5))
        return clusters_of_labels(torch.from_numpy(connected_components(graph, directed=False)[1]).long()).sizes

    sizes = clock("atoms: clusters of the neighbours' graph", components, "2 nearest, cos > 0.5")
    n_clusters = atoms_of // 64
    found = clock(
        f"atoms: spherical k-means, {n_clusters} clusters",
        lambda: spherical_kmeans(atoms, n_clusters=n_clusters, generator=torch.Generator().manual_seed(0)),
    )
    clock.total("atoms: total")
    peak(table, "atoms")
    share = 4 if quick else 16
    before = time.perf_counter(), time.process_time()
    products(atoms, share)
    table.add("atoms: products of the pass alone", share * (time.perf_counter() - before[0]), "s", note=f"from 1 of {share} tiles")
    table.add("atoms: products of the pass alone, processor", share * (time.process_time() - before[1]), "s")
    print(
        f"mu {pairs.coherence:.3f}, mu_1({MAX_ORDER}) {pairs.babel[-1]:.2f}, sum of D {tight.total_dimensionality:.1f} of {WIDTH}, "
        f"{len(sizes)} components, the largest {int(sizes[0])}; k-means mean cosine {found.objectives[-1]:.3f} after {len(found.objectives)}"
    )


def bench_coactivation(table: Table, quick: bool) -> None:
    """Everything about the codes of a million tokens."""
    n, n_latents = (100_000, 4096) if quick else (1_000_000, 16_384)
    _compile()
    rows, clock = codes(n, n_latents), Clock(table)
    size = f"{n} tokens x {n_latents}, k = {K}"
    fired = clock("co-activation: sort the firings", lambda: firings(*rows, n_latents=n_latents), size)
    pairs = clock("co-activation: exact counts of all pairs", lambda: coactivation(fired))
    clock.total("co-activation: total of both")
    peak(table, "co-activation")
    n_pairs = len(pairs.counts)
    del pairs
    clock(f"co-activation: {N_NEIGHBOURS} partners by phi", lambda: nearest_by_coactivation(fired, "phi", n_neighbours=N_NEIGHBOURS))
    del fired
    blocks = clock(
        "co-activation: sort the firings of blocks", lambda: firings(*rows, n_latents=n_latents, block=BLOCK), f"of {BLOCK} tokens"
    )
    clock("co-activation: partners by phi, blocks", lambda: nearest_by_coactivation(blocks, "phi", n_neighbours=N_NEIGHBOURS))
    print(f"{n_pairs} pairs occur of {n_latents * (n_latents - 1) // 2}; {len(blocks.latent_ids) / blocks.n_units:.0f} latents a block")
    del blocks, rows
    wide = 4 * n_latents
    fired = firings(*codes(n, wide), n_latents=wide)
    clock(f"co-activation: partners by phi among {wide}", lambda: nearest_by_coactivation(fired, "phi", n_neighbours=N_NEIGHBOURS))
    peak(table, "co-activation, all")


def _compile() -> None:
    small = firings(*codes(1000, 512), n_latents=512)
    coactivation(small), nearest_by_coactivation(small, "phi", n_neighbours=5)
    firings(*codes(1000, 512), n_latents=512, block=BLOCK)


def bench_lobes(table: Table, quick: bool) -> None:
    """Lobes of a dictionary of 16,384 latents that fire in 32 topics."""
    n_latents, n_lobes = (4096, 8) if quick else (16_384, 32)
    fired, topic = topics(4000, n_latents, n_lobes)
    clock = Clock(table)
    near = clock("lobes: partners by phi", lambda: nearest_by_coactivation(fired, "phi", n_neighbours=N_NEIGHBOURS), f"{n_latents} latents")
    graph = coactivation_graph(near)
    found = clock(f"lobes: {n_lobes} spectral lobes", lambda: spectral_lobes_of_graph(graph, n_lobes=n_lobes, seed=0))
    generator = torch.Generator().manual_seed(0)
    agreement = clock(
        "lobes: agreement and 100 permutations", lambda: compare_agreement(topic, found.labels, n_null=100, generator=generator)
    )
    table.add("lobes: adjusted mutual information with the topics", agreement.value, "", "", f"null {agreement.null_mean:.4f}")
    peak(table, "lobes")


def topics(n_blocks: int, n_latents: int, n_lobes: int) -> tuple[Firings, Tensor]:
    """Blocks of one topic each; latents of it fire 20 times as often as elsewhere, rates log-uniform over 0.003..0.05; and topics of latents."""
    rng = np.random.default_rng(0)
    topic, of_block = rng.integers(0, n_lobes, n_latents), rng.integers(0, n_lobes, n_blocks)
    rate = np.exp(rng.uniform(np.log(0.003), np.log(0.05), n_latents))
    rows = [np.flatnonzero(rng.random(n_latents) < rate * np.where(topic == t, 20.0, 1.0)) for t in of_block]
    counts = torch.tensor([len(row) for row in rows])
    indices = torch.zeros(n_blocks, int(counts.max()), dtype=torch.int64)
    for t, row in enumerate(rows):
        indices[t, : len(row)] = torch.from_numpy(row)
    return firings(indices, counts, n_latents=n_latents), torch.from_numpy(topic)


def bench_growth(table: Table, quick: bool) -> None:
    """Exponents of seconds of the processor."""
    scale = 1 if quick else 4
    for name, sizes, run in (
        ("pass against atoms", [2048 * scale, 4096 * scale, 8192 * scale], _pass_of),
        ("k-means of 256 against atoms", [2048 * scale, 4096 * scale, 8192 * scale], _kmeans_of),
        ("exact counts against tokens", [25_000 * scale, 50_000 * scale, 100_000 * scale], _counts_of),
    ):
        seconds = []
        for size in sizes:
            function = run(size)
            started = time.process_time()
            function()
            seconds.append(time.process_time() - started)
            table.add(f"growth: {name}, {size}", seconds[-1], "s", note="processor")
        logs = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
        table.add(f"growth: {name}, exponent", statistics.linear_regression(*logs).slope, "")


def _pass_of(size: int) -> Callable[[], object]:
    atoms = dictionary(size)
    return lambda: atom_pairs(atoms, n_neighbours=N_NEIGHBOURS, max_order=MAX_ORDER)


def _kmeans_of(size: int) -> Callable[[], object]:
    atoms = dictionary(size)
    return lambda: spherical_kmeans(atoms, n_clusters=256, generator=torch.Generator().manual_seed(0), n_iterations=5, tolerance=0.0)


def _counts_of(size: int) -> Callable[[], object]:
    _compile()
    fired = firings(*codes(size, 4096), n_latents=4096)
    return lambda: coactivation(fired)


def bench_oracles(table: Table, quick: bool) -> None:
    """The same work by scikit-learn and scipy."""
    from sklearn.neighbors import NearestNeighbors

    rounds, atoms = (1, dictionary(4096)) if quick else (3, dictionary(16_384))
    rows, kept = atoms.numpy(), {}

    def brute() -> None:
        kept["theirs"] = NearestNeighbors(n_neighbors=N_NEIGHBOURS + 1, algorithm="brute", metric="cosine").fit(rows).kneighbors(rows)[0]

    def ours() -> None:
        kept["ours"] = nearest_atoms(atoms, n_neighbours=N_NEIGHBOURS).cosines.numpy()

    seconds = alternate({"ours": ours, "scikit-learn": brute}, rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        table.add(f"oracles: {N_NEIGHBOURS} nearest of {len(atoms)}, {name}", value, "s")
    table.add("oracles: nearest, scikit-learn over ours", median["scikit-learn"] / median["ours"], "ratio")
    difference = np.abs(1 - np.sort(kept["theirs"], axis=1)[:, 1:] - kept["ours"]).max()
    table.add("oracles: largest difference of a cosine", float(difference), "", "<= 1e-05")

    n, n_latents = (20_000, 4096) if quick else (200_000, 16_384)
    _compile()
    fired = firings(*codes(n, n_latents), n_latents=n_latents)
    matrix = fired.csr()

    def scipys() -> None:
        kept["X^T X"] = matrix.T @ matrix

    seconds = alternate({"ours": lambda: kept.update(pairs=coactivation(fired)), "scipy": scipys}, rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        table.add(f"oracles: counts of {n} tokens x {n_latents}, {name}", value, "s")
    table.add("oracles: counts, scipy over ours", median["scipy"] / median["ours"], "ratio")
    total = int(kept["X^T X"].sum() - matrix.sum())
    equal = total == 2 * int(kept["pairs"].counts.sum(dtype=torch.int64)) and kept["X^T X"].nnz == 2 * len(kept["pairs"].counts) + int(
        (fired.firing > 0).sum()
    )
    table.add("oracles: equal counts", float(equal), "", "== 1")


def bench_dimension(table: Table, quick: bool) -> None:
    """What bench_dimension measures, where it is there."""
    if importlib.util.find_spec("bench_dimension") is None:
        print("no bench_dimension beside this program", flush=True)
        return
    from bench_dimension import rows

    table.rows += rows(quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    if options.only:
        table = Table()
        globals()[f"bench_{options.only}"](table, options.quick)
        rows = table.rows
    else:
        rows = []
        for part in PARTS:
            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "rows.json"
                arguments = [sys.executable, __file__, "--only", part, "--json", str(written), *(["--quick"] if options.quick else [])]
                subprocess.run(arguments, check=True)
                rows += json.loads(written.read_text())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
