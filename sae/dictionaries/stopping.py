"""Pursuit with atoms of any norm, or with rules that end a row early: the forms in which other libraries train and save pursuits.

    a_t = d_{j_t} . r_{t-1},    r_t = r_{t-1} - a_t d_{j_t}            whatever |d_j| is; a step shrinks the residual only while |d_j| < sqrt(2)
    a row ends after step t when   |r_t| < tolerance,   or when j_t was selected before (stop_on_repeat)

Selections come from the kernels; coefficients, residuals and ends are retraced step by step from them, so they are exact and differentiable with
the selection held fixed. As rows rarely take all k steps, selections are made for a few steps first and for more where a row goes on.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries import kernels
from sae.dictionaries.kernels import Path, reference

FIRST_STEPS = 32
"""Selections made at first; twice as many where a row is not at its end."""


def pursue_until(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    *,
    least: Float[Tensor, " n"],
    signed: bool,
    stop_on_repeat: bool,
    unit_norm: bool,
) -> Path:
    """The pursuit of every row of x for at most k steps, ended by the rules of the module's text; `least` is the tolerance of each row."""
    select = kernels.pursue if unit_norm else reference.pursue
    n_steps, left = min(k, FIRST_STEPS), torch.arange(len(x), device=x.device)
    parts: list[tuple[Tensor, Path]] = []
    while True:
        with torch.no_grad():
            order = select(x.detach()[left], atoms.detach(), n_steps, None, signed)
        path, ended = retraced(x[left], atoms, order.indices, order.counts, least[left], stop_on_repeat)
        ended |= order.counts < n_steps
        if n_steps == k or bool(ended.all()):
            return _joined([*parts, (left, path)], k)
        done = ended.nonzero().squeeze(1)
        parts.append((left[done], Path(*(field[done] for field in path))))
        left, n_steps = left[~ended], min(k, 2 * n_steps)


def retraced(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    order: Int[Tensor, "n k"],
    counts: Int[Tensor, " n"],
    least: Float[Tensor, " n"],
    stop_on_repeat: bool,
) -> tuple[Path, Bool[Tensor, " n"]]:
    """(the path along the given selections, which rows a rule has ended)."""
    residual, ended = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    n_taken = torch.zeros_like(counts)
    values, energies = [], [x.square().sum(1)]
    for t in range(order.shape[1]):
        goes_on = ~ended & (t < counts)
        d = atoms[order[:, t]]
        a = (residual * d).sum(1) * goes_on
        residual = residual - a[:, None] * d
        values.append(a)
        energies.append(torch.where(goes_on, residual.square().sum(1), energies[-1]))
        n_taken = n_taken + goes_on
        ended |= goes_on & (energies[-1].detach().sqrt() < least)
        if stop_on_repeat:
            ended |= goes_on & (order[:, :t] == order[:, t : t + 1]).any(1)
    taken = torch.arange(order.shape[1], device=x.device) < n_taken[:, None]
    return Path(torch.stack(values, 1), order * taken, n_taken, torch.stack(energies, 1), residual), ended


def _joined(parts: list[tuple[Tensor, Path]], k: int) -> Path:
    """The rows of all parts in their order, with as many slots as the longest row needs and k + 1 energies."""
    rows = torch.cat([rows for rows, _ in parts]).argsort()
    width = max(max((int(path.counts.max()) if len(path.counts) else 0) for _, path in parts), 1)
    fields = [torch.cat([_widened(getattr(path, name), width)[:, :width] for _, path in parts])[rows] for name in ("values", "indices")]
    energies = torch.cat([_last_repeated(path.energies, k + 1) for _, path in parts])[rows]
    counts, residual = (torch.cat([getattr(path, name) for _, path in parts])[rows] for name in ("counts", "residual"))
    return Path(fields[0], fields[1], counts, energies, residual)


def _widened(field: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(field, (0, max(width - field.shape[1], 0)))


def _last_repeated(energies: Tensor, width: int) -> Tensor:
    return torch.cat([energies, energies[:, -1:].expand(-1, width - energies.shape[1])], dim=1)
