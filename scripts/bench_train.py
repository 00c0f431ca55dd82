"""What a TopK training step costs: ours, and the dense one that torch users write, in one process and in alternation.

    naive    dense encode, torch.topk, scatter, dense decode, AuxK over the full width, autograd, projection, clip, Adam, unit norm; float32
    ours     one `next` of `sae.training.train`, the same objective and data

Data are sparse sums of features that fire with Zipf's frequencies. "dead" latents have encoder bias -40 and their counter forced, so AuxK
runs over an eighth of the width in every step; "answering" ones are dead by their counter, but a tenth of the norm keeps them out of the k
largest while half their pre-activations are positive, so nothing about AuxK is trivially 0. Times are medians over rounds, with the minimum
beside them. Peak memory is the growth of the resident set over three steps in a fresh process that has compiled its kernels (the peak is
reset through /proc). `--quick` is a short version; `--json FILE` writes rows of name, value and unit. A bar is printed beside each row that
has one.
"""

import argparse
import json
import math
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
from sae.dictionaries.kernels.cpu import team
from sae.training.loop import TrainConfig, TrainState, train
from sae.training.objectives import Moment, ReconstructionObjective
from sae.training.schedules import learning_rate

D_IN, BATCH, K, K_AUX = 576, 2048, 32, 256
OBJECTIVE = ReconstructionObjective()
DEAD_BAR, ALIVE_BAR, ENCODE_BAR, MEMORY_BAR, FVU_BAR, LINEAR_BAR = 12.0, 10.0, 6.0, 2.5, 0.01, 1.0
GRADIENT_BARS = {"alive": 1e-5, "bias -40": 1e-5, "answering": 2e-3}


class Table:
    """Rows as they are measured, printed at once."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, name: str, value: float, unit: str, bar: str = "", note: str = "") -> None:
        self.rows.append({"name": name, "value": value, "unit": unit})
        print(f"{name:<58}{value:>11.4g} {unit:<9}{bar:>12}  {note}", flush=True)


def data(n: int, seed: int, d_in: int = D_IN) -> Tensor:
    """[n, d_in] sums of about 40 of 6144 unit features with log-normal magnitudes plus noise, of mean 0 and mean norm sqrt(d_in)."""
    fixed, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    features = torch.nn.functional.normalize(torch.randn(6144, d_in, generator=fixed))
    chances = 1 / (torch.arange(6144) + 10.0)
    chosen = torch.multinomial((chances / chances.sum()).expand(n, -1), 40, generator=draw)
    magnitudes = torch.randn(n, 40, generator=draw).mul_(0.5).exp_()
    x = torch.nn.functional.embedding_bag(chosen, features, per_sample_weights=magnitudes, mode="sum")
    x += 0.02 * torch.randn(n, d_in, generator=draw)
    x -= x.mean(0)
    return x * (math.sqrt(d_in) / x.norm(dim=1).mean())


class Naive:
    """The dense step on copies of a dictionary's parameters."""

    def __init__(self, dictionary: Autoencoder, k: int = K):
        self.k = k
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            tensor.detach().clone().contiguous().requires_grad_()
            for tensor in (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec)
        )
        self.parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.optimiser = torch.optim.Adam(self.parameters, lr=1e-6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts = (x - self.b_dec) @ self.W_enc + self.b_enc
        values, indices = pre_acts.topk(self.k)
        return torch.zeros_like(pre_acts).scatter(1, indices, values.relu()), pre_acts

    def loss(self, x: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor]:
        z, pre_acts = self.encode(x)
        error = x - (z @ self.W_dec + self.b_dec)
        loss = error.square().sum() / (x - x.mean(0)).square().sum()
        if dead is not None:
            left = error.detach()
            values, indices = pre_acts.masked_fill(~dead, -torch.inf).topk(min(K_AUX, int(dead.sum())))
            answers = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
            rest = left - answers @ self.W_dec
            loss = loss + OBJECTIVE.aux_coefficient * rest.square().sum() / (left - left.mean(0)).square().sum()
        return loss, z

    def step(self, x: Tensor, dead: Tensor | None) -> Tensor:
        loss, z = self.loss(x, dead)
        self.optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        return z.detach()

    def train(self, batches: list[Tensor], config: TrainConfig) -> None:
        """A whole run, with the loop's schedule and count of dead tokens."""
        since = torch.zeros(self.W_dec.shape[0], dtype=torch.long)
        for step, x in enumerate(batches):
            self.optimiser.param_groups[0]["lr"] = learning_rate(
                step, peak=config.learning_rate, n_steps=config.n_steps, warmup_steps=config.warmup_steps, decay_share=config.decay_share
            )
            dead = since > config.dead_tokens
            fired = self.step(x, dead if bool(dead.any()) else None) != 0
            last = torch.where(fired.any(0), len(x) - 1 - fired.flip(0).int().argmax(0), -1)
            since = torch.where(last >= 0, len(x) - 1 - last, since + len(x))


def fresh(d_sae: int, kind: str, k: int = K) -> tuple[Autoencoder, TrainState, Tensor | None]:
    """A new dictionary, a state in which an eighth of its latents is dead unless `kind` is "alive", and those latents."""
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=d_sae, activation=TopK(k)), seed=1)
    state = TrainState.start(dictionary, TrainConfig(n_steps=10**6, learning_rate=1e-6, dead_tokens=10**9))
    if kind == "alive":
        return dictionary, state, None
    dead = torch.arange(d_sae) < d_sae // 8
    state.since_fired[dead] = 2 * 10**9
    with torch.no_grad():
        if kind == "answering":
            dictionary.W_enc[:, dead] *= 0.1
        else:
            dictionary.b_enc[dead] = -40.0
    return dictionary, state, dead


def steps_of(dictionary: Autoencoder, state: TrainState, x: list[Tensor]) -> Iterator:
    def forever() -> Iterator[Tensor]:
        while True:
            yield from x

    return train(dictionary, forever(), OBJECTIVE, state.config, state=state)


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; a round runs each once, and the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, function in ways.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(table: Table, name: str, seconds: dict[str, list[float]], bar: float | None, flops: float = 0.0, roof: float = 0.0) -> None:
    for way, values in seconds.items():
        table.add(f"{name}: {way}", 1e3 * statistics.median(values), "ms", note=f"min {1e3 * min(values):.1f}")
    ratio = statistics.median(seconds["naive"]) / statistics.median(seconds["ours"])
    best = min(seconds["naive"]) / min(seconds["ours"])
    table.add(f"{name}: times naive", ratio, "ratio", f">= {bar:g}" if bar else "", f"of minima {best:.1f}")
    if flops:
        table.add(f"{name}: useful FLOP over fp32 GEMM rate", flops / statistics.median(seconds["ours"]) / roof, "share")


def rates(table: Table) -> float:
    """Print the machine's GEMM rates; returns the float32 one in FLOP/s."""
    x, rows, flops = torch.randn(BATCH, D_IN), torch.randn(4608, D_IN), 2.0 * BATCH * 4608 * D_IN
    low, low_rows = x.bfloat16(), rows.bfloat16()
    small, small_rows = x.mul(30).to(torch.int8), rows.mul(30).to(torch.int8)

    def tiles(block: int) -> None:
        for start in range(0, 4608, 1024):
            torch._int_mm(small[256 * block : 256 * (block + 1)], small_rows[start : start + 1024].T)

    seconds = alternate(
        {"fp32": lambda: x @ rows.T, "bf16": lambda: low @ low_rows.T, "int8 tiles": lambda: team.each(tiles, BATCH // 256)}, 9
    )
    for name, values in seconds.items():
        table.add(f"GEMM {name}", flops / min(values) / 1e9, "GFLOP/s")
    return flops / min(seconds["fp32"])


def step_times(table: Table, d_sae: int, kind: str, rounds: int, roof: float) -> None:
    dictionary, state, dead = fresh(d_sae, kind)
    naive, x = Naive(dictionary), [data(BATCH, seed) for seed in range(2)]
    ours = steps_of(dictionary, state, x)
    seconds = alternate({"naive": lambda: naive.step(x[0], dead), "ours": lambda: [next(ours) for _ in range(4)]}, rounds)
    seconds["ours"] = [value / 4 for value in seconds["ours"]]
    n_dead = 0 if dead is None else int(dead.sum())
    flops = 2.0 * BATCH * D_IN * (d_sae + 5 * K + 5 * n_dead)
    compare(table, f"step, {d_sae} latents, {kind}", seconds, ALIVE_BAR if dead is None else DEAD_BAR, flops, roof)


def encode_times(table: Table, d_sae: int, rounds: int) -> None:
    dictionary, _, _ = fresh(d_sae, "alive")
    naive, x = Naive(dictionary), data(BATCH, 0)
    with torch.no_grad():
        seconds = alternate({"naive": lambda: naive.encode(x)[0], "ours": lambda: dictionary.encode(x)}, rounds)
    compare(table, f"encode, {d_sae} latents", seconds, ENCODE_BAR if d_sae == 16384 else None)


def gradients(table: Table, d_sae: int, kind: str) -> None:
    """The largest relative difference of a parameter's gradient from dense autograd's."""
    dictionary, _, dead = fresh(d_sae, kind)
    naive, x = Naive(dictionary), data(BATCH, 0)
    mask = torch.zeros(d_sae, dtype=torch.bool) if dead is None else dead
    OBJECTIVE(dictionary, x, None, Moment(dead=mask)).total.backward()
    naive.loss(x, dead)[0].backward()
    # AuxK moves dead latents only: ours does not pass it on to b_dec through their answers.
    names = ("W_enc", "W_dec", "b_enc", "b_dec") if dead is None else ("W_enc", "W_dec", "b_enc")
    pairs = [(getattr(dictionary, name).grad, getattr(naive, name).grad) for name in names]
    worst = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    table.add(f"gradient against autograd, {d_sae} latents, {kind}", worst, "relative", f"<= {GRADIENT_BARS[kind]:g}")


def quality(table: Table, n_steps: int) -> None:
    """FVU on unseen data after a run of each from the same start on the same batches."""
    x, unseen = data(n_steps * 512, 7), data(8192, 8)
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=2048, activation=TopK(K)), seed=1)
    naive, batches = Naive(dictionary), list(x.split(512))
    config = TrainConfig(n_steps=n_steps, dead_tokens=20_000)
    naive.train(batches, config)
    *_, last = train(dictionary, batches, OBJECTIVE, config)
    with torch.no_grad():
        variance = (unseen - unseen.mean(0)).square().sum()
        theirs = float((unseen - naive.encode(unseen)[0] @ naive.W_dec - naive.b_dec).square().sum() / variance)
        ours = float((unseen - dictionary(unseen)).square().sum() / variance)
    table.add(f"FVU after {n_steps} steps: naive", theirs, "share")
    table.add(f"FVU after {n_steps} steps: ours", ours, "share", note=f"{last.dead_share:.1%} dead at the end")
    table.add(f"FVU after {n_steps} steps: difference", abs(ours / theirs - 1), "relative", f"<= {FVU_BAR:g}")


def growth(table: Table, quick: bool) -> None:
    """Exponents of the step's time, fitted to logarithms of medians."""
    x = [data(BATCH, 0)]
    widths, ks = ((2048, 4096, 8192) if quick else (2048, 4096, 8192, 16384)), ((8, 16, 32) if quick else (8, 16, 32, 64))
    for name, cases in (("d_sae", [(d_sae, K) for d_sae in widths]), ("k", [(4096, k) for k in ks])):
        runs = {case: steps_of(*fresh(case[0], "alive", case[1])[:2], x) for case in cases}
        seconds = alternate({str(case): (lambda run=run: next(run)) for case, run in runs.items()}, 3 if quick else 7)
        sizes = [math.log(case[0] if name == "d_sae" else case[1]) for case in cases]
        slope = statistics.linear_regression(sizes, [math.log(statistics.median(values)) for values in seconds.values()]).slope
        text = ", ".join(f"{1e3 * statistics.median(values):.0f}" for values in seconds.values())
        table.add(f"exponent of the step's time in {name}", slope, "", f"<= {LINEAR_BAR:g}", f"ms: {text}")


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def memory_of(d_sae: int, kind: str) -> int:
    """Bytes by which the resident set grew at most while a dictionary was made and stepped three times."""
    x = [data(BATCH, 0)]
    for small in ("alive", "answering"):
        warm = steps_of(*fresh(1024, small)[:2], x)
        next(warm), next(warm)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run = steps_of(*fresh(d_sae, kind)[:2], x)
    for _ in range(3):
        next(run)
    return resident("VmHWM") - before


def memory(table: Table, d_sae: int, kind: str, threads: int) -> None:
    command = [sys.executable, __file__, "--memory-of", str(d_sae), kind, "--threads", str(threads)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parameters = 4 * (2 * d_sae * D_IN + d_sae + D_IN)
    allowed = 3 * parameters + 2 * BATCH * d_sae
    name = f"peak memory of a step, {d_sae} latents, {kind}"
    table.add(name, peak / 2**20, "MiB", note=f"parameters {parameters >> 20}, with moments {3 * parameters >> 20}")
    table.add(f"{name}: over params + moments + bf16 [batch, d_sae]", peak / allowed, "ratio", f"<= {MEMORY_BAR:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("steps", "encode", "gradients", "quality", "growth", "memory"))
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory_of(int(options.memory_of[0]), options.memory_of[1]))
        return
    table, rounds = Table(), 3 if options.quick else options.rounds
    kinds = ("alive", "bias -40") if options.quick else ("alive", "bias -40", "answering")
    print(f"d_in {D_IN}, batch {BATCH}, k {K}, k_aux {K_AUX}, {options.threads} threads; milliseconds are medians")
    roof = rates(table)
    for d_sae in (4608,) if options.quick else (4608, 16384):
        for kind in kinds if options.only in (None, "steps") else ():
            step_times(table, d_sae, kind, rounds if d_sae == 4608 else min(rounds, 4), roof)
        if options.only in (None, "encode"):
            encode_times(table, d_sae, rounds)
        for kind in ("alive", "answering") if options.only in (None, "memory") and Path("/proc/self/clear_refs").exists() else ():
            memory(table, d_sae, kind, options.threads)
    for kind in kinds if options.only in (None, "gradients") else ():
        gradients(table, 4608, kind)
    if options.only in (None, "quality"):
        quality(table, 100 if options.quick else 500)
    if options.only in (None, "growth"):
        growth(table, options.quick)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
