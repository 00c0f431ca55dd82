"""Matching pursuit in torch: selection by Gram rows, its exact gradient by a reverse sweep, and orthogonal pursuit.

Selection keeps the correlations c = D r instead of the residual:

    c_0 = D x,    j_t = argmax c_{t-1},    a_t = c_{t-1}[j_t],    c_t = c_{t-1} - a_t G[j_t],    G = D D^T

The gradient with the selection fixed (argmax has none) walks back through the residuals. With g_t = dL/dr_t and h_t = dL/da_t from outside:

    r_{t-1} = r_t + a_t d_t,    u_t = h_t - g_t . d_t,    dL/dd_t += u_t r_{t-1} - a_t g_t,    g_{t-1} = g_t + u_t d_t

which needs memory O(n d_in) for any number of steps.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.kernels.reference.products import weighted_rows

GRAM_BYTES = 1 << 30
"""The Gram matrix is used up to this size in bytes; beyond it correlations are recomputed from the residual at every step."""
CACHE_BYTES = 1 << 21
"""Correlations updated together, in bytes: a chunk of rows stays in the cache through all its steps."""
SWEEP_BYTES = 1 << 20
"""Size in bytes of each of the four [rows, d_in] buffers of the reverse sweep."""


class Path(NamedTuple):
    """Every step of a pursuit; slots after a row has stopped hold 0."""

    values: Float[Tensor, "n k"]
    """Coefficient a_t of every step."""
    indices: Int[Tensor, "n k"]
    """Atom j_t of every step."""
    counts: Int[Tensor, "n"]
    """Steps taken before the row stopped."""
    energies: Float[Tensor, "n k_steps"]
    """|r_t|^2 for t = 0..k."""
    residual: Float[Tensor, "n d_in"]
    """r_k = x - sum_t a_t d_{j_t}."""


def gram_fits(d_sae: int, element_size: int = 4) -> bool:
    """Whether a Gram matrix fits in GRAM_BYTES."""
    return d_sae * d_sae * element_size <= GRAM_BYTES


def uses_gram(n: int, k: int, d_sae: int, element_size: int) -> bool:
    """Whether pursuit computes G: it must fit and cost less (d_sae^2 / 2 dots) than recomputing (n (k - 1) d_sae dots)."""
    return gram_fits(d_sae, element_size) and d_sae <= 2 * n * (k - 1)


def gram(atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_sae"]:
    """G = D D^T; only the blocks on and below the diagonal are multiplied out."""
    d_sae, size = len(atoms), 256
    result = atoms.new_empty(d_sae, d_sae)
    for start in range(0, d_sae, size):
        stop = min(start + size, d_sae)
        torch.mm(atoms[start:stop], atoms[:stop].T, out=result[start:stop, :stop])
        result[:start, start:stop] = result[start:stop, :start].T
    return result


def pursue(
    x: Float[Tensor, "n d_in"],
    atoms: Float[Tensor, "d_sae d_in"],
    k: int,
    tol: float | None,
    signed: bool,
    gram_matrix: Float[Tensor, "d_sae d_sae"] | None = None,
) -> Path:
    """The pursuit of every row of x: at most k steps, fewer once |r| <= tol |x| or when no correlation exceeds the rounding error of
    |x|. `gram_matrix` is `gram(atoms)` where the caller has it.
    """
    n, d_sae = len(x), len(atoms)
    G = gram_matrix
    if G is None and uses_gram(n, k, d_sae, x.element_size()):
        G = gram(atoms)
    energy = x.square().sum(1)
    values, indices = x.new_zeros(k, n), torch.zeros(k, n, dtype=torch.long, device=x.device)
    chunk = max(1, CACHE_BYTES // (d_sae * x.element_size()))
    for start in range(0, n, 4 * chunk):
        correlations = x[start : start + 4 * chunk] @ atoms.T
        for inner in range(0, len(correlations), chunk):
            rows = slice(start + inner, min(start + inner + chunk, n))
            c = correlations[inner : inner + chunk]
            _select_chunk(c, x[rows], energy[rows], atoms, G, tol, signed, values[:, rows], indices[:, rows])
    values = values.T.contiguous()
    active = values != 0
    indices = indices.T * active
    energies = torch.cat([energy[:, None], (energy[:, None] - values.square().cumsum(1)).clamp_(min=0)], dim=1)
    return Path(values, indices, active.sum(1), energies, x - weighted_rows(values, indices, atoms))


def _select_chunk(
    c: Tensor, x: Tensor, energy: Tensor, atoms: Tensor, G: Tensor | None, tol: float | None, signed: bool, values: Tensor, indices: Tensor
) -> None:
    """Fill one chunk's values and indices [k, rows] in place; `c` holds its correlations and is overwritten.

    A row that stops has a = 0 from then on: its correlations no longer change, so it stays stopped.
    """
    floor = torch.finfo(c.dtype).eps * energy.sqrt()
    enough = None if tol is None else energy * (tol * tol)
    residual = x.clone() if G is None else None
    buffer = torch.empty_like(c)
    for t in range(len(values)):
        a, j = largest_entry(c, torch.abs(c, out=buffer) if signed else c)
        going = (a.abs() if signed else a) > floor
        if enough is not None:
            going &= energy > enough
        a = torch.mul(a, going, out=values[t])
        indices[t] = j
        if t % 8 == 7 and not bool(going.any()):
            return
        if t + 1 == len(values):
            return
        if enough is not None:
            energy = energy - a * a
        if G is not None:
            torch.index_select(G, 0, j, out=buffer)
            c.addcmul_(buffer, a[:, None], value=-1)
        else:
            assert residual is not None
            residual.addcmul_(atoms[j], a[:, None], value=-1)
            torch.mm(residual, atoms.T, out=c)


def largest_entry(c: Float[Tensor, "m d_sae"], score: Float[Tensor, "m d_sae"]) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
    """(c[row, j], j) with j = argmax score[row]: maxima over strided groups first, which vectorises, then a look into the best group."""
    n, width = score.shape
    size = next((s for s in (16, 8, 4) if width % s == 0 and width >= 16 * s), 1)
    if size == 1:
        j = score.argmax(1)
    else:
        groups = score.view(n, size, width // size)
        best = groups.amax(1).argmax(1)
        inside = groups.gather(2, best[:, None, None].expand(n, size, 1)).view(n, size)
        j = best + inside.argmax(1) * (width // size)
    return c.gather(1, j[:, None]).view(n), j


def reverse_sweep(
    path: Path, atoms: Float[Tensor, "d_sae d_in"], grad_values: Float[Tensor, "n k"], grad_residual: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "d_sae d_in"]]:
    """(dL/dx, dL/datoms) of a pursuit with its selection fixed, from dL/dvalues and dL/dresidual; see the module's text."""
    n, d_in = path.residual.shape
    grad_x, grad_atoms = grad_residual.clone(), torch.zeros_like(atoms)
    chunk = max(1, SWEEP_BYTES // (d_in * atoms.element_size()))
    residual, d, step = (atoms.new_empty(min(chunk, n), d_in) for _ in range(3))
    indices, values = path.indices.T.contiguous(), path.values.T.contiguous()[:, :, None]
    # A stopped row has a = 0 and j = 0; its u must vanish too.
    active, h = (values != 0).to(atoms.dtype), grad_values.T.contiguous()[:, :, None]
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        g = grad_x[rows]
        m, n_steps = len(g), int(path.counts[rows].max())
        r, d_t, dd = residual[:m].copy_(path.residual[rows]), d[:m], step[:m]
        for t in reversed(range(n_steps)):
            j, a = indices[t, rows], values[t, rows]
            torch.index_select(atoms, 0, j, out=d_t)
            u = (h[t, rows] - torch.linalg.vecdot(g, d_t)[:, None]) * active[t, rows]
            r.addcmul_(d_t, a)
            torch.mul(r, u, out=dd).addcmul_(g, a, value=-1)
            grad_atoms.index_add_(0, j, dd)
            g.addcmul_(d_t, u)
    return grad_x, grad_atoms


def select_orthogonally(x: Float[Tensor, "n d_in"], atoms: Float[Tensor, "d_sae d_in"], k: int, tol: float | None, signed: bool) -> Path:
    """The selections of orthogonal matching pursuit; `values` are left 0 for a refit by least squares.

    The residual is kept orthogonal to every selected atom through an orthonormal basis q_1..q_t of their span (Gram-Schmidt, twice):
    r_t = r_{t-1} - (q_t . r_{t-1}) q_t. An atom that lies in the span (up to sqrt(eps)) ends its row.
    """
    n, d_in = x.shape
    path = Path(x.new_zeros(n, k), torch.zeros(n, k, dtype=torch.long, device=x.device), x.new_zeros(n, dtype=torch.long),
                x.new_empty(n, k + 1), x.clone())  # fmt: skip
    chunk = max(1, (64 << 20) // (max(k * d_in, len(atoms)) * x.element_size()))
    for start in range(0, n, chunk):
        _select_orthogonally_chunk(Path(*(field[start : start + chunk] for field in path)), atoms, tol, signed)
    return path


def _select_orthogonally_chunk(path: Path, atoms: Tensor, tol: float | None, signed: bool) -> None:
    r, k = path.residual, path.values.shape[1]
    energy, eps = r.square().sum(1), torch.finfo(r.dtype).eps
    floor, enough = eps * energy.sqrt(), energy * (tol * tol if tol is not None else -1.0)
    taken = torch.zeros(len(r), len(atoms), dtype=torch.bool, device=r.device)
    basis = r.new_zeros(len(r), k, r.shape[1])
    path.energies[:, 0] = energy
    for t in range(k):
        c = (r @ atoms.T).masked_fill_(taken, 0.0)
        a, j = largest_entry(c, c.abs() if signed else c)
        q = atoms[j]
        for _ in range(2):
            q = q - torch.einsum("nt,ntd->nd", torch.einsum("ntd,nd->nt", basis[:, :t], q), basis[:, :t])
        norm = torch.linalg.vector_norm(q, dim=1)
        going = ((a.abs() if signed else a) > floor) & (energy > enough) & (norm > eps**0.5) & (path.counts == t)
        q = q / norm.clamp_min(eps)[:, None] * going[:, None]
        basis[:, t] = q
        projection = torch.linalg.vecdot(q, r)
        r.addcmul_(q, projection[:, None], value=-1)
        energy = (energy - projection * projection).clamp_(min=0)
        path.indices[:, t] = j * going
        path.counts.add_(going)
        path.energies[:, t + 1] = energy
        taken.scatter_(1, j[:, None], going[:, None] | taken.gather(1, j[:, None]))
