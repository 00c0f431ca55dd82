"""What one cluster of atoms adds to the reconstruction, token by token, and its principal components.

    r_t = sum_{i in C} z_ti w_i       without the decoder bias, for the tokens t with |z_ti| > threshold for some i in C

Engels et al. 2024 (arXiv 2405.14860), section 4. The r_t lie in the span of |C| atoms, so with W_C^T = Q R they are the rows of Z_C R^T in the
coordinates Q: everything here is done in |C| dimensions, and no [n, d_in] matrix is made.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.geometry.rows import require_points


@runtime_checkable
class SparseMatrix(Protocol):
    """A scipy sparse matrix or array [n, d_sae]."""

    def tocsc(self) -> Any:
        """The same by column."""


@dataclass(frozen=True, eq=False)
class ClusterCloud:
    """The reconstruction by one cluster, on the tokens where it is active."""

    row_ids: Int[Tensor, " n"]
    """Rows of the codes, ascending."""
    codes: Float[Tensor, "n n_members"]
    """z of the cluster's atoms on those rows, float64."""
    atoms: Float[Tensor, "n_members d_in"]
    """The cluster's atoms."""
    n_active: int
    """Number of rows on which the cluster is active, before any were left out."""

    def points(self) -> Float[Tensor, "n d_in"]:
        """r, float64."""
        return self.codes @ self.atoms.double()


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of a cloud, centred, in the order of their variance; each component's largest entry is positive."""

    scores: Float[Tensor, "n n_components"]
    """Coordinates of the points, float64, mean 0."""
    directions: Float[Tensor, "n_components d"]
    """Orthonormal rows, float64."""
    mean: Float[Tensor, " d"]
    """Mean of the points, float64."""
    variance_shares: Float[Tensor, " n_components"]
    """Share of the variance along each, descending; zeros where the points do not vary."""


def code_columns(codes: SparseCodes | SparseMatrix) -> Any:
    """The codes by column, as scipy's CSC matrix: make it once for many clusters. A matrix in that form is returned as it is."""
    return codes.csr().tocsc() if isinstance(codes, SparseCodes) else codes.tocsc()


def cluster_cloud(
    codes: SparseCodes | SparseMatrix,
    atoms: Float[Tensor, "d_sae d_in"],
    members: Int[Tensor, " n_members"],
    *,
    threshold: float = 0.0,
    max_rows: int | None = 20_000,
) -> ClusterCloud:
    """The tokens on which a latent of `members` exceeds `threshold` in magnitude, with its cluster's codes and atoms.

    Above `max_rows` such tokens, that many are taken at equal distances in the order of the rows (the paper takes the first 20,000, which are
    of few documents). With a CSC matrix from `code_columns` the cost is that of the members' non-zeros. No active token gives an empty cloud.

    Raises ConfigError if `atoms` and the codes differ in width, for members that are none, repeated or outside 0..d_sae-1, NaN or Inf among
    the cluster's atoms and codes, a negative threshold and max_rows < 1.
    """
    columns = code_columns(codes)
    _check(columns.shape[1], atoms, members, threshold, max_rows)
    part = columns[:, members.cpu().numpy()]
    heads = part.indices[np.abs(part.data) > threshold]
    row_ids = np.unique(heads)
    n_active = len(row_ids)
    if max_rows is not None and n_active > max_rows:
        row_ids = row_ids[np.linspace(0, n_active - 1, max_rows).round().astype(np.int64)]
    chosen = torch.from_numpy(part[row_ids].toarray().astype(np.float64)) if n_active else torch.zeros(0, len(members), dtype=torch.float64)
    if not chosen.isfinite().all():
        raise ConfigError("codes must be finite, got NaN or Inf among those of the cluster (cluster_cloud)")
    own = atoms.detach()[members.to(atoms.device)]
    return ClusterCloud(torch.from_numpy(row_ids.astype(np.int64)), chosen.to(own.device), own, n_active)


def cluster_components(cloud: ClusterCloud, *, n_components: int = 5) -> Components:
    """The first min(n_components, |C|, d_in) principal components of r. O(n |C|^2 + |C|^2 d_in).

    Raises ConfigError for an empty cloud and n_components < 1.
    """
    if len(cloud.codes) < 1:
        raise ConfigError("cloud must hold at least 1 active row, got 0; leave out clusters that never fire (cluster_components)")
    axes, lengths = torch.linalg.qr(cloud.atoms.double().T)
    inside = components(cloud.codes @ lengths.T, n_components=n_components)
    directions = inside.directions @ axes.T
    signs = _signs(directions)
    return Components(inside.scores * signs, directions * signs[:, None], inside.mean @ axes.T, inside.variance_shares)


def components(points: Float[Tensor, "n d"], *, n_components: int = 5) -> Components:
    """The first min(n_components, d, n) principal components of any cloud; of points that do not vary, with variance shares of 0.

    Raises ConfigError for no points, NaN or Inf, and n_components < 1.
    """
    require_points(points, minimum=1, argument="points", where="components")
    if n_components < 1:
        raise ConfigError(f"n_components must be at least 1, got {n_components} (components)")
    cloud = points.detach().double()
    mean = cloud.mean(0)
    centred = cloud - mean
    if len(centred) > 4 * centred.shape[1]:  # the d x d product first: much faster, and as exact for the leading directions
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        squares, directions = values.flip(0).clamp_min(0), vectors.flip(1).T
    else:
        _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
        squares = lengths.square()
    total = squares.sum()
    # What centring leaves of equal rows is rounding.
    constant = total <= (16 * torch.finfo(torch.float64).eps) ** 2 * cloud.square().sum()
    shares = torch.zeros_like(squares) if constant else squares / total
    directions = directions[:n_components]
    directions = directions * _signs(directions)[:, None]
    return Components(centred @ directions.T, directions, mean, shares[:n_components])


def _signs(directions: Float[Tensor, "k d"]) -> Float[Tensor, " k"]:
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0).to(directions)


def _check(
    d_sae: int, atoms: Float[Tensor, "d_sae d_in"], members: Int[Tensor, " n_members"], threshold: float, max_rows: int | None
) -> None:
    where = "(cluster_cloud)"
    if len(atoms) != d_sae:
        raise ConfigError(f"atoms must have a row for each of the codes' d_sae={d_sae} latents, got {len(atoms)} rows {where}")
    if len(members) < 1 or len(members.unique()) < len(members) or members.min() < 0 or members.max() >= d_sae:
        raise ConfigError(f"members must name latents of 0..{d_sae - 1}, each once and at least one, got {members.tolist()[:10]} {where}")
    if not threshold >= 0:
        raise ConfigError(f"threshold must be at least 0, got {threshold} {where}")
    if max_rows is not None and max_rows < 1:
        raise ConfigError(f"max_rows must be at least 1, or None for all, got {max_rows} {where}")
    require_points(atoms[members.to(atoms.device)], minimum=1, argument="atoms", where="cluster_cloud")
