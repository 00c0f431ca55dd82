"""Every CUDA kernel against the torch ones on this machine's GPU, at sizes of real training: largest errors, times, and the ratio to torch.

    python scripts/check_cuda.py [--json FILE]

Errors are relative to the largest entry. "torch" is the reference on the same GPU, in blocks that suit it; for `top` the plain product and
torch.topk. Leaves with 1 where a kernel disagrees, or does not give the same bits twice; with 0 where there is no CUDA device.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.kernels import reference

SIZES = [(2048, 32, 576, 4608), (2048, 32, 576, 16384)]
"""n, k, d_in, d_sae."""


def relative_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest difference over the largest entry, of the worst result; NaN where either has one."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


@dataclass(frozen=True, eq=False)
class Check:
    """One kernel and what it is held against."""

    name: str
    kernel: Callable[[], Any]
    torch: Callable[[], Any]
    allowed: float = 1e-5
    error: Callable[[Any, Any], float] = relative_error


@dataclass(frozen=True, eq=False)
class Data:
    """Activations that are sparse sums of unit atoms with noise, codes whose latents are as unequal as real ones, answers for AuxK."""

    x: Tensor
    atoms: Tensor
    bias: Tensor
    values: Tensor
    indices: Tensor
    answers: Tensor
    second: Tensor


def draw(n: int, k: int, d_in: int, d_sae: int, device: str) -> Data:
    """Seeded random data of these sizes."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(d_sae, d_in, generator=generator)
    atoms /= atoms.norm(dim=1, keepdim=True)
    frequencies = 1 / torch.arange(8.0, d_sae + 8)
    indices = torch.multinomial(frequencies.expand(n, -1), k, generator=generator)
    values = torch.rand(n, k, generator=generator) + 0.2
    values[torch.rand(n, k, generator=generator) < 0.05] = 0
    x = reference.weighted_rows(values, indices, atoms) + 0.02 * torch.randn(n, d_in, generator=generator)
    bias, answers = 0.1 * torch.randn(d_sae, generator=generator), torch.randn(n, d_sae // 8, generator=generator)
    second = torch.rand(d_sae, d_in, generator=generator)
    return Data(*(tensor.to(device) for tensor in (x, atoms, bias, values, indices, answers, second)))


def in_place(function: Callable, *changed: Tensor) -> tuple[Tensor, ...]:
    """What `function` leaves of copies of the tensors."""
    copies = tuple(tensor.clone() for tensor in changed)
    function(*copies)
    return copies


def plain_top(data: Data, k: int, signed: bool) -> tuple[Tensor, Tensor]:
    """`top` as torch has it."""
    pre_acts = torch.addmm(data.bias, data.x, data.atoms.T)
    indices = (pre_acts.abs() if signed else pre_acts).topk(k).indices
    values = pre_acts.gather(1, indices)
    return (values if signed else values.relu()), indices


def slots_error(data: Data, signed: bool, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """Of the ranked values against torch's, and of the values against the pre-activations of the latents they are given for."""
    values, indices = ours
    exact = torch.stack([data.atoms[i].double() @ row + data.bias[i] for i, row in zip(indices, data.x.double(), strict=True)])
    ranked = (abs(values), abs(theirs[0])) if signed else (values, theirs[0])
    return max(relative_error(ranked[:1], ranked[1:]), relative_error((values,), (exact if signed else exact.relu(),)))


def path_error(ours: reference.Path, theirs: reference.Path) -> float:
    """Of values, energies and residual in the rows whose selections are the same in both; NaN if that is less than 99 of 100 rows.

    Correlations that differ by rounding alone are chosen from at random, and everything after such a choice differs.
    """
    same = (ours.indices == theirs.indices).all(1)
    if float(same.double().mean()) < 0.99:
        return float("nan")
    return relative_error(*(tuple(path[field][same] for field in (0, 3, 4)) for path in (ours, theirs)))


def product_checks(data: Data, k: int, cuda: ModuleType) -> Iterator[Check]:
    """Products, selections and updates."""
    x, atoms, values, indices, d_sae = data.x, data.atoms, data.values, data.indices, len(data.atoms)
    grad = data.second - 0.5
    for signed in (False, True):
        yield Check(
            f"top, {'signed' if signed else 'positive'}", partial(cuda.top, x, atoms, data.bias, k, signed),
            partial(plain_top, data, k, signed), error=partial(slots_error, data, signed),
        )  # fmt: skip
    k_aux = min(288, data.answers.shape[1] // 2)

    def adam(module: ModuleType, unit_rows: bool) -> tuple[Tensor, ...]:
        options = {"rate": 1e-3, "betas": (0.9, 0.999), "epsilon": 1e-8, "step": 3, "scale": 0.5, "unit_rows": unit_rows}
        return in_place(lambda p, m, v: module.adam_(p, grad, m, v, **options), atoms, grad, data.second)

    calls: dict[str, Callable[[ModuleType], Any]] = {
        "weighted_rows": lambda module: (module.weighted_rows(values, indices, atoms),),
        "row_dots": lambda module: (module.row_dots(x, indices, atoms),),
        "decode_error": lambda module: module.decode_error(values, indices, atoms, x),
        "weighted_rows_t": lambda module: (module.weighted_rows_t(values, indices, x, d_sae),),
        "scattered_sum": lambda module: (module.scattered_sum(values, indices, d_sae),),
        "keep_largest_": lambda module: in_place(lambda answers: module.keep_largest_(answers, k_aux), data.answers),
        "project_": lambda module: in_place(lambda g: module.project_(g, atoms), grad),
        "sum_squares": lambda module: (torch.tensor([module.sum_squares(grad)]),),
        "adam_": partial(adam, unit_rows=False),
        "adam_, unit rows": partial(adam, unit_rows=True),
    }
    for name, call in calls.items():
        yield Check(name, partial(call, cuda), partial(call, reference))
    yield Check("product", lambda: (cuda.product(x.T, x),), lambda: (x.T @ x,), allowed=2e-3)


def pursuit_checks(data: Data, k: int, cuda: ModuleType) -> Iterator[Check]:
    """Pursuit in its three ways, and its gradient."""
    x, atoms, d_sae = data.x, data.atoms, len(data.atoms)
    gram = atoms @ atoms.T
    few = x[: max(33, min(len(x), d_sae // 8))]  # with 4 steps too few for a Gram matrix to pay
    ways = {
        "Gram rows": (x, atoms, k, None, False, gram),
        "tolerance": (x, atoms, k, 0.2, True, gram),
        "residuals": (few, atoms, 4, None, False),
    }
    for name, arguments in ways.items():
        yield Check(
            f"pursue, {name}", partial(cuda.pursue, *arguments), partial(reference.pursue, *arguments), allowed=1e-4, error=path_error
        )
    path = reference.pursue(*ways["Gram rows"])
    arguments = (path, atoms, data.values, x)
    yield Check("reverse_sweep", partial(cuda.reverse_sweep, *arguments), partial(reference.reverse_sweep, *arguments), allowed=1e-4)


def milliseconds(function: Callable[[], Any], n_rounds: int = 11) -> float:
    """Median time of one call on the GPU, after two to warm up."""
    times = []
    for _ in range(n_rounds + 2):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times[2:])


def same_bits(function: Callable[[], tuple[Tensor, ...]]) -> bool:
    """Whether two calls give the same results to the bit."""
    return all(torch.equal(a, b) for a, b in zip(function(), function(), strict=True))


def run(check: Check, size: str, timed: Callable[[Callable[[], Any]], float]) -> dict[str, Any]:
    """Compare, time and print one check."""
    error, repeats = check.error(check.kernel(), check.torch()), same_bits(check.kernel)
    ours, theirs = timed(check.kernel), timed(check.torch)
    passed = error <= check.allowed and repeats  # NaN fails
    verdict = "ok" if passed else "WRONG" if repeats else "NOT THE SAME TWICE"
    print(f"{size:>22}  {check.name:20} error {error:8.1e}   {ours:8.3f} ms   torch {theirs:8.3f} ms   {theirs / ours:6.1f}x   {verdict}")
    return {"size": size, "name": check.name, "error": error, "ms": ours, "torch_ms": theirs, "passed": passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to check")
        return
    if importlib.util.find_spec("triton") is None:
        sys.exit("triton is not installed: the CUDA kernels cannot run")
    from sae.dictionaries.kernels import cuda

    # The reference's blocks are made for a CPU's cache.
    reference.pursuit.CACHE_BYTES = reference.pursuit.SWEEP_BYTES = 1 << 28
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    rows = []
    for n, k, d_in, d_sae in SIZES:
        data, size = draw(n, k, d_in, d_sae, "cuda"), f"n {n} d_sae {d_sae}"
        for checks in (product_checks, pursuit_checks):
            rows += [run(check, size, milliseconds) for check in checks(data, k, cuda)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    wrong = [f"{row['name']} ({row['size']})" for row in rows if not row["passed"]]
    if wrong:
        sys.exit("disagree: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
