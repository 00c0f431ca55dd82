"""Orthogonal matching pursuit as a differentiable function: the selection fixed, the coefficients by least squares."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.kernels.differentiable import weighted_rows
from sae.dictionaries.kernels.reference import Path, select_orthogonally


def pursue_orthogonally(x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], k: int, tol: float | None, signed: bool) -> Path:
    """Orthogonal matching pursuit: coefficients by least squares on the selected atoms, differentiable in x and atoms, the selection
    held fixed.
    """
    with torch.no_grad():
        path = select_orthogonally(x.detach(), atoms.detach(), k, tol, signed)
    values = refitted(x, atoms, path.indices, path.counts)
    return path._replace(values=values, residual=x - weighted_rows(values, path.indices, atoms))


def refitted(
    x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], indices: Int[Tensor, "n k"], counts: Int[Tensor, "n"]
) -> Float[Tensor, "n k"]:
    """argmin_a |x - sum_s a_s d_{i_s}|^2 over the first `counts` slots of each row; 0 elsewhere."""
    k = indices.shape[1]
    identity = torch.eye(k, dtype=x.dtype, device=x.device)
    chunk = max(1, (64 << 20) // (k * x.shape[1] * x.element_size()))
    parts = []
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        active = torch.arange(k, device=x.device) < counts[rows, None]
        chosen = atoms[indices[rows]] * active[:, :, None]
        system = chosen @ chosen.mT + identity * ~active[:, None, :]
        target = torch.einsum("nkd,nd->nk", chosen, x[rows])
        parts.append(torch.cholesky_solve(target[:, :, None], torch.linalg.cholesky(system)).squeeze(2))
    return torch.cat(parts) if parts else x.new_zeros(0, k)
