"""The cloud of a dictionary's atoms as a whole: whether it is clustered beyond its covariance."""

from dataclasses import dataclass

import torch

from sae.evaluation.batteries.findings import Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.geometry.galaxy import compare_negentropy
from sae.geometry.rows import unit_rows


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """Settings of `clustering`."""

    n_atoms: int = 5000
    """Atoms, drawn at random where there are more."""
    n_components: int = 10
    """Principal coordinates."""
    n_null: int = 99
    """Gaussian clouds."""


def clustering(inputs: Inputs, config: ClusteringConfig) -> Outcome:
    """Negentropy of the atoms beside Gaussian clouds of the same covariance."""
    atoms = unit_rows(inputs.atoms(), minimum=8, argument="atoms", where="clustering")
    generator = inputs.generator("clustering")
    chosen = atoms[torch.randperm(len(atoms), generator=generator)[: config.n_atoms]]
    found = compare_negentropy(chosen, n_components=min(config.n_components, atoms.shape[1]), n_null=config.n_null, generator=generator)
    return Outcome((of_null(QUANTITY, found, note=f"{len(chosen):,} atoms, {config.n_components} principal coordinates"),))


QUANTITY = Quantity(
    "negentropy",
    "How much less spread out the atoms are than a Gaussian of their covariance: above its null, they form clumps.",
    "Li et al. 2024, arXiv 2410.19750, with the estimator of Kozachenko & Leonenko 1987",
    unit="nats",
    alternative="greater",
    null="Gaussian clouds of the same covariance",
)
CLUSTERING = Measure(
    name="clustering",
    title="Clustering entropy",
    text="Whether the cloud of atoms is clumped beyond what its covariance says, in its main directions.",
    needs=("dictionary",),
    quantities=(QUANTITY,),
    compute=clustering,
    config=ClusteringConfig(),
    quick=ClusteringConfig(n_atoms=2000),
)
