"""What a page about one cluster shows, as values: components, cosines and singular values of its atoms, whether they lie on a cone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.multidimensional.reconstruction import ClusterCloud, Components, cluster_components
from sae.geometry.rows import unit_rows


@dataclass(frozen=True, eq=False)
class ClusterView:
    """One cluster, to be looked at."""

    row_ids: Int[Tensor, " n"]
    """Rows of the codes, in the order of the components' scores."""
    components: Components
    """Principal components of the reconstruction by the cluster."""
    cosines: Float[Tensor, "n_members n_members"]
    """Cosines of its atoms, in the order of `leaves`."""
    leaves: Int[Tensor, " n_members"]
    """Numbers within the cluster, by angle in the plane of the centred atoms: a ring shows as a band that wraps round."""
    singular_values: Float[Tensor, " n_members"]
    """Singular values of the unit atoms, descending; zeros beyond the rank."""
    centred_singular_values: Float[Tensor, " n_members"]
    """The same less their mean, which on a cone is the axis: a ring leaves two large ones."""


def cluster_view(cloud: ClusterCloud, *, n_components: int = 5) -> ClusterView:
    """The view of a cluster's cloud. Raises ConfigError as `cluster_components`, and for a zero atom."""
    found = cluster_components(cloud, n_components=n_components)
    atoms = unit_rows(cloud.atoms, minimum=1, argument="cloud.atoms", where="cluster_view").double()
    centred = atoms - atoms.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    plane = centred @ axes[:2].T
    angles = torch.atan2(plane[:, -1], plane[:, 0])
    leaves = angles.argsort(stable=True)
    return ClusterView(
        row_ids=cloud.row_ids,
        components=found,
        cosines=(atoms @ atoms.T).clamp(-1, 1)[leaves][:, leaves],
        leaves=leaves,
        singular_values=_padded(torch.linalg.svdvals(atoms), len(atoms)),
        centred_singular_values=_padded(torch.linalg.svdvals(centred), len(atoms)),
    )


def plane(components: Components, first: int) -> Float[Tensor, "n 2"]:
    """The scores on components `first` and `first + 1`, numbered from 1 as the paper does: 1 is the plane 1-2, in which intensity often
    is one of the two. Raises ConfigError where there is no such plane.
    """
    if not 1 <= first < components.scores.shape[1]:
        raise ConfigError(f"first must be in 1..{components.scores.shape[1] - 1}, the planes there are, got {first} (plane)")
    return components.scores[:, first - 1 : first + 1]


def _padded(values: Float[Tensor, " k"], length: int) -> Float[Tensor, " length"]:
    return torch.cat([values, values.new_zeros(max(0, length - len(values)))])
