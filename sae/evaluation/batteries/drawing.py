"""Pieces of figures that several measures draw."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from sae.evaluation.figures import Series


def null_band(name: str, x: Sequence[float | int], draws: Float[Tensor, "n_null points"]) -> Series:
    """The mean of null draws with a band of two standard deviations, cut off at the smallest and largest draw."""
    mean, spread = draws.double().mean(dim=0), 2 * draws.double().std(dim=0)
    low, high = torch.maximum(mean - spread, draws.double().amin(dim=0)), torch.minimum(mean + spread, draws.double().amax(dim=0))
    return Series(name, tuple(x), tuple(mean.tolist()), tuple(low.tolist()), tuple(high.tolist()), role="null")


def histogram(name: str, values: Real[Tensor, " n"], edges: Float[Tensor, " bins"], *, null: bool = False) -> Series:
    """Shares of the values between the edges, as bars."""
    counts = torch.histogram(values.detach().cpu().double(), edges.cpu().double()).hist
    return Series(
        name, tuple(edges.tolist()), tuple((counts / max(len(values), 1)).tolist()), mark="bars", role="null" if null else "result"
    )


def shared_edges(*values: Real[Tensor, "_"], n: int = 60) -> Float[Tensor, " edges"]:
    """Edges of `n` equal bins that hold all values."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    width = (high - low) or max(abs(high), 1.0) * 1e-3
    return torch.linspace(low - 1e-6 * width, high + 1e-6 * width, n + 1, dtype=torch.float64)
