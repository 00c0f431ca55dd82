"""What matching pursuit costs: our kernels, the plain loops, and our own TopK step, in one process and in alternation.

    naive encode    c = r @ D.T;  a, j = c.max(1);  r -= a D[j]                  k times, float32, no autograd
    naive step      the same under autograd, then projection, clip, Adam and unit norm, as torch users write them
    ours            `kernels.pursue` with the Gram matrix given (one dictionary, many batches) and built in the call; one `next` of `train`

Data are sparse sums of features that fire with Zipf's frequencies, the dictionary is those features with noise. Times are medians over rounds.
`--quick` is a short version; `--json FILE` writes rows of name, value and unit. A bar is printed beside each row that has one.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.kernels.cpu.gram import gram, gram_of, quantised
from sae.dictionaries.kernels.cpu.pursuit import pursue, reverse_sweep
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective

D_IN, BATCH = 576, 2048
ENCODE_BARS = {8: 5.0, 16: 10.0, 32: 15.0}
STEP_BAR, TOPK_BAR, LINEAR_BAR = 25.0, 3.0, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-of", choices=("naive", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory_of(options.memory_of))
        return
    table = Table()
    print(f"d_in {D_IN}, batch {BATCH}, {options.threads} threads; milliseconds are medians")
    rates(table)
    for d_sae in (4608,) if options.quick else (4608, 16384):
        encoding(table, d_sae, (8, 16, 32) if d_sae == 4608 else (8, 32), 3 if options.quick or d_sae > 4608 else options.rounds)
    parts(table, options.rounds)
    for k in (16,) if options.quick else (16, 32):
        steps(table, k, 2 if options.quick else 4, options.rounds)
    growth(table, options.quick)
    if not options.quick:
        memory(table, options.threads)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=2) + "\n")


class Table:
    """Rows as they come, printed and kept."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str | float]] = []

    def add(self, name: str, value: float, unit: str, bar: str = "") -> None:
        """One row, with the bar it is held against."""
        self.rows.append({"name": name, "value": value, "unit": unit})
        print(f"  {name:<64}{value:>12.4g} {unit:<8}{bar}", flush=True)


def planted(d_sae: int, n: int = BATCH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(x, atoms): about 40 of 6144 features active, firing by Zipf's law, mean norm sqrt(d_in); atoms are the features and noise."""
    draw = torch.Generator().manual_seed(seed)
    features = unit(torch.randn(max(6144, d_sae), D_IN, generator=draw))
    share = 1 / torch.arange(1, 6145) ** 0.8
    share = (40 * share / share.sum()).clamp(max=0.5)
    codes = torch.exp(0.5 * torch.randn(n, 6144, generator=draw)) * (torch.rand(n, 6144, generator=draw) < share)
    x = codes @ features[:6144] + 0.05 * torch.randn(n, D_IN, generator=draw)
    x = x - x.mean(0)
    atoms = unit(features[:d_sae] + 0.3 / math.sqrt(D_IN) * torch.randn(d_sae, D_IN, generator=draw))
    return x * (math.sqrt(D_IN) / x.norm(dim=1).mean()), atoms


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way, all of them run in turn in each round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


@torch.no_grad()
def naive_pursuit(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(indices, residual) by recomputation."""
    r, picks = x, []
    for _ in range(k):
        a, j = (r @ atoms.T).max(1)
        r = r - a[:, None] * atoms[j]
        picks.append(j)
    return torch.stack(picks, 1), r


def rates(table: Table) -> None:
    """How fast the machine multiplies."""
    x, atoms = torch.randn(BATCH, D_IN), torch.randn(4608, D_IN)
    low = {"float32": (x, atoms), "bfloat16": (x.bfloat16(), atoms.bfloat16())}
    ms = alternate({name: lambda a=a, b=b: a @ b.T for name, (a, b) in low.items()}, 9)
    for name, value in ms.items():
        table.add(f"GEMM {name}", 2 * BATCH * 4608 * D_IN / value / 1e6, "GFLOP/s")


def encoding(table: Table, d_sae: int, ks: tuple[int, ...], rounds: int) -> None:
    """Encoding one batch, and whether it is the same code."""
    x, atoms = planted(d_sae)
    given = gram(atoms)
    build = alternate({"gram": lambda: gram(atoms)}, 3)["gram"]
    table.add(f"d_sae {d_sae}: Gram matrix, once per dictionary", build, "ms")
    for k in ks:
        ms = alternate({
            "naive": lambda k=k: naive_pursuit(x, atoms, k),
            "given": lambda k=k: pursue(x, atoms, k, None, False, given),
            "built": lambda k=k: pursue(x, atoms, k, None, False),
        }, rounds)  # fmt: skip
        name = f"encode d_sae {d_sae} k {k}"
        table.add(f"{name}: naive", ms["naive"], "ms")
        table.add(f"{name}: Gram given", ms["given"], "ms")
        bar = f">= {ENCODE_BARS[k]:g}" if d_sae == 4608 else ""
        table.add(f"{name}: naive / Gram given", ms["naive"] / ms["given"], "x", bar)
        table.add(f"{name}: Gram built in the call", ms["built"], "ms")
        table.add(f"{name}: naive / Gram built", ms["naive"] / ms["built"], "x", bar)
        indices, residual = naive_pursuit(x, atoms, k)
        for way, matrix in (("given", given), ("built", None)):
            path = pursue(x, atoms, k, None, False, matrix)
            same = (path.indices == indices).all(1)
            table.add(f"{name}: same sequence of atoms, Gram {way}", 100 * float(same.double().mean()), "%")
            difference = (path.residual - residual)[same].norm(dim=1) / x[same].norm(dim=1)
            table.add(f"{name}: largest residual difference over |x|, Gram {way}", float(difference.max()), "", "<= 1e-5")


def parts(table: Table, rounds: int) -> None:
    """Where a training step's time goes, kernel by kernel."""
    x, atoms = planted(4608)
    given, low = gram(atoms), quantised(atoms)
    path = pursue(x, atoms, 16, None, False, given)
    zeros = torch.zeros(BATCH, 16)
    ms = alternate({
        "D in eight bits": lambda: quantised(atoms),
        "Gram matrix from eight bits": lambda: gram_of(low),
        "pursuit, Gram given, k 1": lambda: pursue(x, atoms, 1, None, False, given),
        "pursuit, Gram given, k 16": lambda: pursue(x, atoms, 16, None, False, given),
        "pursuit, Gram built, k 16": lambda: pursue(x, atoms, 16, None, False),
        "reverse sweep, k 16": lambda: reverse_sweep(path, atoms, zeros, path.residual),
    }, rounds)  # fmt: skip
    for name, value in ms.items():
        table.add(f"kernel: {name}", value, "ms")


def our_step(d_sae: int, k: int, x: Tensor, atoms: Tensor) -> Callable[[], object]:
    """One step of `train` on a MatchingPursuit."""
    dictionary = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=d_sae, k=k))
    with torch.no_grad():
        dictionary.W_dec.copy_(atoms)
    return stepper(dictionary, x)


def topk_step(d_sae: int, k: int, x: Tensor, atoms: Tensor) -> Callable[[], object]:
    """One step of `train` on a TopK autoencoder of the same size."""
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=d_sae, activation=TopK(k=k)))
    with torch.no_grad():
        dictionary.W_dec.copy_(atoms)
        dictionary.W_enc.copy_(atoms.T)
    return stepper(dictionary, x)


def stepper(dictionary: MatchingPursuit | Autoencoder, x: Tensor) -> Callable[[], object]:
    def batches() -> Iterator[Tensor]:
        while True:
            yield x

    config = TrainConfig(n_steps=10_000, learning_rate=1e-4, dead_tokens=10**12)
    run = train(dictionary, batches(), ReconstructionObjective(), config)
    return lambda: next(run)


def naive_step(k: int, x: Tensor, atoms: Tensor) -> Callable[[], object]:
    """One step with the pursuit unrolled under autograd."""
    W_dec, b_dec = torch.nn.Parameter(atoms.clone()), torch.nn.Parameter(torch.zeros(D_IN))
    optimiser = torch.optim.Adam([W_dec, b_dec], lr=1e-4)

    def step() -> float:
        r = x - b_dec
        for _ in range(k):
            a, j = (r @ W_dec.T).max(1)
            r = r - a[:, None] * W_dec[j]
        loss = r.square().sum() / (x - x.mean(0)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
        torch.nn.utils.clip_grad_norm_([W_dec, b_dec], 1.0)
        optimiser.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        return loss.item()

    return step


def steps(table: Table, k: int, naive_rounds: int, rounds: int) -> None:
    """A training step end to end."""
    x, atoms = planted(4608)
    ways = {"ours": our_step(4608, k, x, atoms), "TopK": topk_step(4608, k, x, atoms), "naive": naive_step(k, x, atoms)}
    ms = alternate(ways, naive_rounds)
    naive = ms["naive"]
    del ways["naive"]
    ms = alternate(ways, 3 * rounds)
    name = f"training step d_sae 4608 k {k}"
    table.add(f"{name}: naive, unrolled autograd", naive, "ms")
    table.add(f"{name}: ours", ms["ours"], "ms", "<= 100" if k == 16 else "")
    table.add(f"{name}: our TopK", ms["TopK"], "ms")
    table.add(f"{name}: naive / ours", naive / ms["ours"], "x", f">= {STEP_BAR:g}" if k == 16 else "")
    table.add(f"{name}: ours / our TopK", ms["ours"] / ms["TopK"], "x", f"<= {TOPK_BAR:g}" if k == 16 else "")


def growth(table: Table, quick: bool) -> None:
    """Exponents of cost in d_sae and in k: least squares in logarithms."""
    sizes, ks = ((1152, 2304, 4608) if quick else (1152, 2304, 4608, 9216, 16384)), (4, 8, 16, 32)
    by_size = {d_sae: encode_and_step(d_sae, 16) for d_sae in sizes}
    by_k = {k: encode_and_step(4608, k) for k in ks}
    for d_sae, ms in by_size.items():
        table.add(f"growth: encode, Gram given, d_sae {d_sae} k 16", ms["encode"], "ms")
        table.add(f"growth: training step, d_sae {d_sae} k 16", ms["step"], "ms")
    bar = f"<= {LINEAR_BAR:g}"
    table.add("exponent of encode in d_sae", exponent(by_size, "encode"), "", bar)
    table.add("exponent of the training step in d_sae", exponent(by_size, "step"), "", bar)
    table.add("exponent of encode in k", exponent(by_k, "encode"), "", bar)
    table.add("exponent of the training step in k", exponent(by_k, "step"), "", bar)


def encode_and_step(d_sae: int, k: int) -> dict[str, float]:
    """Milliseconds of encoding with the Gram matrix given and of a training step."""
    x, atoms = planted(d_sae)
    given = gram(atoms)
    return alternate({"encode": lambda: pursue(x, atoms, k, None, False, given), "step": our_step(d_sae, k, x, atoms)}, 5)


def exponent(times: dict[int, dict[str, float]], name: str) -> float:
    return statistics.linear_regression([math.log(size) for size in times], [math.log(ms[name]) for ms in times.values()]).slope


def memory(table: Table, threads: int) -> None:
    """Memory that three training steps at k 16 take beyond the data, each in a process of its own."""
    for way in ("naive", "ours"):
        command = [sys.executable, __file__, "--memory-of", way, "--threads", str(threads)]
        grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        table.add(f"memory of training d_sae 4608 k 16: {way}", grown, "MiB")


def memory_of(way: str) -> float:
    x, atoms = planted(4608)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = our_step(4608, 16, x, atoms) if way == "ours" else naive_step(16, x, atoms)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
