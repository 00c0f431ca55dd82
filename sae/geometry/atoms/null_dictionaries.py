"""Dictionaries that look like a given one but have nothing to do with another: what a comparison of two has to be read against.

    random       uniform unit directions                          no structure at all
    covariance   w ~ N(mean of the atoms, their covariance), normalised     the anisotropy of the data, which raises all cosines
    rotated      W Q, Q a random rotation of R^d                  the cosines within the dictionary, but not its anisotropy
    reflected    W V diag(+-1) V^T, V the eigenvectors of W^T W   the cosines within the dictionary and its second moment W^T W, exactly

`reflected` flips each principal axis of the atoms with probability 1/2: an orthogonal map that commutes with W^T W. It keeps most, so it is
the hardest to beat. Normalising makes the covariance of `covariance` only approximately that of the atoms.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.nulls import random_directions
from sae.geometry.rows import unit_rows

NullKind = Literal["random", "covariance", "rotated", "reflected"]
"""What is kept of a dictionary in its null; the module's text says it of each."""


def null_dictionary(atoms: Float[Tensor, "n_atoms d_in"], kind: NullKind, *, generator: torch.Generator) -> Float[Tensor, "n_atoms d_in"]:
    """One draw of a null dictionary with as many unit atoms as `atoms`, on their device, in float32 or wider.

    Needs one eigendecomposition of d x d for `covariance` and `reflected`, one QR for `rotated`. Raises ConfigError for another kind, and
    for an atom that is zero or not finite.
    """
    rows = unit_rows(atoms, minimum=1, argument="atoms", where="null_dictionary")
    if kind == "random":
        return random_directions(len(rows), rows, generator=generator)
    if kind == "covariance":
        return _of_covariance(rows, generator)
    if kind == "rotated":
        return rows @ random_rotation(rows.shape[1], generator=generator).to(rows)
    if kind == "reflected":
        wide = rows.double()
        axes = torch.linalg.eigh(wide.T @ wide).eigenvectors
        signs = torch.randint(0, 2, (rows.shape[1],), generator=generator, device=generator.device).to(axes) * 2 - 1
        return (wide @ (axes * signs) @ axes.T).to(rows.dtype)
    raise ConfigError(f"null must be one of {list(get_args(NullKind))}, got {kind!r} (null_dictionary)")


def random_rotation(d: int, *, generator: torch.Generator) -> Float[Tensor, "d d"]:
    """A uniform (Haar) orthogonal matrix, float64, on the generator's device: QR of a Gaussian matrix, the signs of R's diagonal moved to Q
    (Mezzadri 2007, math-ph/0609050).
    """
    normal = torch.randn(d, d, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()


def _of_covariance(rows: Tensor, generator: torch.Generator) -> Tensor:
    wide = rows.double()
    mean = wide.mean(dim=0)
    centred = wide - mean
    values, axes = torch.linalg.eigh(centred.T @ centred / len(rows))
    root = axes * values.clamp(min=0).sqrt()
    normal = torch.randn(len(rows), rows.shape[1], generator=generator, dtype=torch.float64, device=generator.device).to(rows.device)
    drawn = mean + normal @ root.T
    return (drawn / drawn.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)).to(rows.dtype)
