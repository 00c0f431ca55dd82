"""The atoms nearest to each atom by decoder cosine."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sae.geometry.similarity import nearest_atoms


class AtomNeighbours(NamedTuple):
    """Nearest atoms, nearest first; unused places hold id -1 and cosine 0."""

    ids: Int[np.ndarray, "n n_neighbours"]
    """Latent ids."""
    cosines: Float[np.ndarray, "n n_neighbours"]
    """Signed cosines, float32."""


def neighbours(atoms: Float[Tensor, "n d_in"], *, n_neighbours: int) -> AtomNeighbours:
    """For each atom the `n_neighbours` others with the largest signed cosine, fewer where there are not so many.

    An atom of length zero (a latent whose decoder row has died) has no direction: it gets no neighbours and is nobody's neighbour.
    """
    ids = np.full((len(atoms), n_neighbours), -1, np.int64)
    cosines = np.zeros((len(atoms), n_neighbours), np.float32)
    atoms = atoms.detach()
    usable = atoms.norm(dim=1).nonzero().flatten()
    n_found = min(n_neighbours, len(usable) - 1)
    if n_found >= 1:
        nearest = nearest_atoms(atoms[usable], n_neighbours=n_found)
        rows = usable.cpu().numpy()
        ids[rows, :n_found] = rows[nearest.atom_ids.cpu().numpy()]
        cosines[rows, :n_found] = nearest.cosines.float().cpu().numpy()
    return AtomNeighbours(ids, cosines)
