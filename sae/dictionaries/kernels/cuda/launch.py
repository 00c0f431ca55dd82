"""Starting a Triton kernel, and float32 products that are float32.

A kernel is a function under `@triton.jit`. Those of this package also carry `@no_type_check`: the tests' type checker wraps every function it
may, and a wrapped one cannot be compiled.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from sae.errors import SaeError

N_THREADS_PER_WARP = 32


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, n_warps: int = 4, **constants: Any) -> None:
    """Run `kernel` for every index of `grid` on the device of its first argument; nothing where the grid is empty.

    Raises SaeError for a tensor that is not contiguous: kernels read memory in order.
    """
    for argument in arguments:
        if isinstance(argument, Tensor) and not argument.is_contiguous():
            raise SaeError(f"tensors must be contiguous, got strides {argument.stride()} for shape {tuple(argument.shape)} (CUDA kernels)")
    if 0 in grid:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=n_warps, enable_fp_fusion=True)


def block(size: int, *, least: int = 16, most: int) -> int:
    """The power of two that holds `size` entries, between `least` and `most`."""
    return min(max(triton.next_power_of_2(size), least), most)


def warps(n_entries: int, *, per_thread: int, most: int = 16) -> int:
    """Warps of a program that holds `n_entries` entries, about `per_thread` of them in each thread; a power of two from 1 to `most`."""
    return min(max(triton.next_power_of_2(n_entries // (per_thread * N_THREADS_PER_WARP)), 1), most)


@contextmanager
def float32_products() -> Iterator[None]:
    """Inside, torch multiplies float32 matrices in float32: neither TensorFloat-32 nor autocast, whatever the program has set."""
    matmul = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        with torch.autocast("cuda", enabled=False):
            yield
    finally:
        setattr(matmul, name, before)
