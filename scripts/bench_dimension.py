"""How long the intrinsic dimension of a cloud of points takes, all estimators together, and beside scikit-dimension.

    battery    every estimator of `sae.geometry.dimension.battery` on 50,000 points of width 768, and the parts of it; the neighbour search alone
               at smaller N, and the exponent with which both grow
    rate       useful flops of the search, N^2 d, over the machine's own float32 GEMM rate, measured in between
    peer       TwoNN, MLE (k = 20), CorrInt and lPCA of scikit-dimension on the same points, in alternation with the same four numbers of ours (one
               search for 20 neighbours) and with the whole battery, which gives intervals and scales besides; and how far the numbers differ

The cloud is a curved one: tanh features of 32 Gaussian coordinates, and noise. Compiled loops are compiled before anything is timed. `--quick`
is a short version; `--json FILE` writes rows of name, value, unit. A bar is printed beside each row that has one.
"""

import argparse
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import torch
from bench_train import Table, alternate
from torch import Tensor

from sae.geometry.dimension import (
    DimensionConfig,
    battery,
    battery_of,
    correlation_dimension,
    linear_dimension,
    log_distances,
    log_sums,
    maximum_likelihood,
    nearest_neighbours,
    two_nn_estimates,
)

N_POINTS, WIDTH, N_NEIGHBOURS, N_PEER = 50_000, 768, 128, 5_000
SECONDS_BAR = 60.0


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    """[n, d] float32 points near a curved set of 32 dimensions."""
    fixed, draw = torch.Generator().manual_seed(1), torch.Generator().manual_seed(seed)
    features = torch.tanh(torch.randn(n, 32, generator=draw) @ torch.randn(32, 64, generator=fixed) / 3)
    return features @ torch.randn(64, d, generator=fixed) + 0.3 * torch.randn(n, d, generator=draw) * torch.linspace(0, 1, d)


def seconds(function: Callable[[], object]) -> tuple[float, object]:
    """How long it took, and what it gave."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def gemm_rate() -> float:
    """FLOP/s of one float32 product of 4096 x 768 with 768 x 4096."""
    a, out = torch.randn(4096, WIDTH), torch.empty(4096, 4096)
    best = min(seconds(lambda: torch.mm(a, a.T, out=out))[0] for _ in range(5))
    return 2 * 4096**2 * WIDTH / best


def generator() -> torch.Generator:
    """The same draws for every way."""
    return torch.Generator().manual_seed(0)


def scale(table: Table, sizes: list[int]) -> None:
    """The battery at growing N; its largest size has the bar."""
    searches, wholes = [], []
    for n in sizes:
        points = cloud(n, WIDTH)
        before = gemm_rate()
        search, neighbours = seconds(lambda points=points: nearest_neighbours(points, n_neighbours=N_NEIGHBOURS))
        roof = (before + gemm_rate()) / 2
        rest, found = seconds(lambda neighbours=neighbours: battery_of(neighbours, generator=generator()))
        bar = f"<= {SECONDS_BAR:g}" if n == N_POINTS else ""
        table.add(
            f"battery, N = {n}", search + rest, "s", bar, f"width {WIDTH}; TwoNN {found.two_nn_ml.value:.1f}, PCA-99 {found.linear.pca_99}"
        )
        table.add(f"search for {N_NEIGHBOURS} neighbours, N = {n}", search, "s")
        table.add(f"everything else, N = {n}", rest, "s", note=f"{found.config.n_resamples} halves")
        table.add(f"search over float32 GEMM, N = {n}", n * n * WIDTH / search / roof, "share", note=f"GEMM at {roof / 1e9:.0f} GFLOP/s")
        searches.append(search)
        wholes.append(search + rest)
    if len(sizes) > 1:
        ratio = math.log(sizes[-1] / sizes[-2])
        table.add("search grows with N to the power", math.log(searches[-1] / searches[-2]) / ratio, "", note=f"{sizes[-2]} to {sizes[-1]}")
        table.add("battery grows with N to the power", math.log(wholes[-1] / wholes[-2]) / ratio, "", note=f"{sizes[-2]} to {sizes[-1]}")


def peer(table: Table, n: int, rounds: int) -> None:
    """The same four numbers by scikit-dimension."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import skdim

        points = cloud(n, WIDTH)
        array, theirs, ours = points.numpy(), {}, {}

        def loop() -> None:
            theirs["TwoNN"] = skdim.id.TwoNN().fit(array).dimension_
            theirs["MLE"] = skdim.id.MLE().fit(array, n_neighbors=20).dimension_
            theirs["CorrInt"] = skdim.id.CorrInt().fit(array).dimension_
            theirs["lPCA"] = skdim.id.lPCA().fit(array).dimension_

        def four() -> None:
            neighbours = nearest_neighbours(points, n_neighbours=20)
            logs = log_distances(neighbours, (1, 2, 20))
            ours["TwoNN"] = two_nn_estimates(logs)[1].item()
            ours["MLE"] = maximum_likelihood(log_sums(logs), k=20).item()
            ours["CorrInt"] = correlation_dimension(neighbours, generator=generator(), n_references=n).value
            ours["lPCA"] = linear_dimension(neighbours.points).fukunaga_olsen

        def whole() -> None:
            battery(points, generator=generator())

        taken = alternate({"the same four numbers": four, "whole battery": whole, "scikit-dimension": loop}, rounds)
    for name, values in taken.items():
        table.add(f"peer, N = {n}: {name}", statistics.median(values), "s", note=f"min {min(values):.2f}")
    for name in ("the same four numbers", "whole battery"):
        ratio = statistics.median(taken["scikit-dimension"]) / statistics.median(taken[name])
        table.add(f"peer, N = {n}: scikit-dimension over {name}", ratio, "ratio")
    worst = max(abs(ours[name] / float(theirs[name]) - 1) for name in ours)
    table.add("peer: largest relative difference", worst, "", "<= 0.001", ", ".join(f"{k} {v:.2f}" for k, v in ours.items()))


def rows(quick: bool) -> list[dict]:
    """All rows, printed as they are measured."""
    table = Table()
    battery(cloud(1200, 40), generator=generator(), config=DimensionConfig(n_resamples=2))  # compiles what is compiled
    scale(table, [2_000, 5_000] if quick else [12_500, 25_000, N_POINTS])
    peer(table, 1_500 if quick else N_PEER, 1 if quick else 3)
    return table.rows


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = rows(options.quick)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
