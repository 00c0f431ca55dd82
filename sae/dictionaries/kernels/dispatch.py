"""Which module's kernels run: numba on a float32 CPU, Triton on a CUDA device, torch everywhere else. All have the same functions.

with using("reference"): ...        the torch kernels, whatever the machine
"""

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels import reference
from sae.dictionaries.kernels.reference.products import is_dense

Backend = Literal["reference", "cpu", "cuda"]
_chosen: ContextVar[Backend | None] = ContextVar("backend", default=None)


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Run the kernels of `backend` inside the `with` block: to compare, or to look for a fault."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def kernels_for(x: Tensor) -> ModuleType:
    """The module whose kernels work on tensors like x."""
    return _module(_chosen.get() or _best(x))


def gathered(x: Tensor) -> AbstractContextManager[None]:
    """Inside the `with` block nothing but the kernels uses more than one thread, where they bring threads of their own (numba)."""
    return getattr(kernels_for(x), "gathered", nullcontext)()


def difference(rows: Float[Tensor, "n width"], shift: Float[Tensor, "width"]) -> Float[Tensor, "n width"]:
    """rows - shift, in memory that is used again where the kernels keep some; differentiable."""
    recycled = getattr(kernels_for(rows), "recycled", None)
    if recycled is None or rows.dtype != torch.float32 or (torch.is_grad_enabled() and (rows.requires_grad or shift.requires_grad)):
        return rows - shift
    return torch.sub(rows, shift, out=recycled(*rows.shape))


def products_for(rows: Tensor, k: int) -> ModuleType:
    """The module that multiplies codes of k slots with `rows`: torch's dense product where the codes are hardly sparse."""
    return reference if is_dense(k, len(rows)) else kernels_for(rows)


def _best(x: Tensor) -> Backend:
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return "cpu"
    if x.dtype == torch.float32 and x.device.type == "cuda" and _has_triton():
        return "cuda"
    return "reference"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _module(backend: Backend) -> ModuleType:
    if backend == "reference":
        return reference
    return importlib.import_module(f"sae.dictionaries.kernels.{backend}")
