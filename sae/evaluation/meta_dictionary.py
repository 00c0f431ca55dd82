"""Meta-dictionaries: is an atom itself a sparse sum of a few others' parts?

    w_i ~ b + sum_j z_ij v_j         w_i: unit atoms of a dictionary, its rows of W_dec; v_j: d_meta meta-atoms; k of them on average (BatchTopK)
    explained = 1 - sum_i |w_i - w_hat_i|^2 / sum_i |w_i - w_bar|^2

Leask et al. 2025 (2502.04878). A dictionary of any points explains some of their variance, and the atoms are also what it was trained on, so the
number is read against

    null       as many random atoms with the same mean and covariance, a meta-dictionary trained anew on each draw: is there more than covariance?
    rotated    the same meta-dictionary on the atoms turned at random: how far are the meta-atoms about these directions?
    plain      a dictionary of d_meta atoms trained on activations instead, both coded by orthogonal pursuit with the same k: are the meta-atoms the
               features that a small dictionary would have found?
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.activations import BatchTopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.reconstruction import reconstruction
from sae.geometry.atoms.null_dictionaries import NullKind, null_dictionary
from sae.geometry.nulls import NullStatistic, compare
from sae.geometry.rows import unit_rows
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """How a meta-dictionary is trained."""

    d_meta: int
    """Number of meta-atoms."""
    k: float = 4.0
    """Meta-atoms per atom, on average."""
    n_steps: int = 1000
    """Length of the training, in steps."""
    batch_size: int = 512
    """Atoms per step; at most all of them."""
    learning_rate: float = 4e-3
    """Adam's peak rate."""
    seed: int = 0
    """Seed of the start and of the order of the atoms."""

    def __post_init__(self) -> None:
        if self.d_meta < 1 or not 0 < self.k <= self.d_meta or self.batch_size < 1:
            values = (self.d_meta, self.k, self.batch_size)
            raise ConfigError(f"d_meta, k, batch_size must be at least 1, in (0, d_meta], at least 1, got {values} (MetaConfig)")


@dataclass(frozen=True, eq=False)
class MetaDictionary:
    """A meta-dictionary and how much of the atoms it explains."""

    dictionary: Autoencoder
    """The meta-dictionary, over unit atoms."""
    codes: SparseCodes
    """The meta-atoms of every atom."""
    explained: NullStatistic
    """Share of the atoms' variance explained, beside null dictionaries with a meta-dictionary trained anew."""
    rotated: float
    """Share that the same meta-dictionary explains of the atoms turned at random; may be below 0."""
    l0: float
    """Mean number of meta-atoms per atom, which BatchTopK's threshold makes about k."""


@dataclass(frozen=True)
class PursuedShares:
    """Variance of atoms explained by orthogonal pursuit with the same k over two sets of directions."""

    meta: float
    """Over the meta-atoms."""
    plain: float
    """Over the other dictionary's atoms."""
    k: int
    """Selections per atom."""


def train_meta_dictionary(atoms: Float[Tensor, "n_atoms d_in"], config: MetaConfig) -> Autoencoder:
    """A BatchTopK dictionary of the unit rows of `atoms`, in eval mode; repeatable from the seed.

    Raises ConfigError for an atom that is zero or not finite, and fewer atoms than meta-atoms, which could each have their own.
    """
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="train_meta_dictionary").float()
    if len(rows) <= config.d_meta:
        raise ConfigError(f"d_meta must be below the number of atoms {len(rows)}, got {config.d_meta} (train_meta_dictionary)")
    shape = AutoencoderConfig(d_in=rows.shape[1], d_sae=config.d_meta, activation=BatchTopK(k=config.k))
    made = Autoencoder(shape, Scaling.fitted(rows), seed=config.seed)
    initialise_(made, rows, seed=config.seed)
    training = TrainConfig(n_steps=config.n_steps, learning_rate=config.learning_rate)
    for _ in train(made, _batches(rows, config), ReconstructionObjective(), training):
        pass
    return made.eval()


def meta_dictionary(
    atoms: Float[Tensor, "n_atoms d_in"],
    config: MetaConfig,
    *,
    null: NullKind = "covariance",
    n_null: int = 5,
    generator: torch.Generator,
) -> MetaDictionary:
    """A meta-dictionary of `atoms` and what it explains beside its controls; see the module's text. Trains 1 + n_null dictionaries.

    Only nulls that change the atoms' own arrangement say anything: "covariance" and "random". Raises ConfigError for the others, and as
    `train_meta_dictionary`.
    """
    if null not in ("covariance", "random"):
        raise ConfigError(f"null must be 'covariance' or 'random': training anew undoes every rotation, got {null!r} (meta_dictionary)")
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="meta_dictionary").float()
    made = train_meta_dictionary(rows, config)
    scores = reconstruction(made, [rows]).scores
    draws = []
    for _ in range(n_null):
        other = null_dictionary(rows, null, generator=generator)
        draws.append(reconstruction(train_meta_dictionary(other, config), [other]).scores.explained_variance)
    turned = null_dictionary(rows, "rotated", generator=generator)
    with torch.no_grad():
        codes = made.encode(rows).detach()
    return MetaDictionary(
        dictionary=made,
        codes=codes,
        explained=compare(scores.explained_variance, draws),
        rotated=reconstruction(made, [turned]).scores.explained_variance,
        l0=scores.l0,
    )


def pursued_shares(
    atoms: Float[Tensor, "n_atoms d_in"],
    meta_atoms: Float[Tensor, "d_meta d_in"],
    plain_atoms: Float[Tensor, "d_plain d_other"],
    *,
    k: int = 4,
) -> PursuedShares:
    """How much of the atoms' variance k meta-atoms explain, and k atoms of a plain dictionary of the same size, coefficients of either sign.

    Both are coded about the mean of the atoms by signed orthogonal pursuit, so that only the directions differ and not the encoders. Raises
    ConfigError for dictionaries of different sizes or widths.
    """
    if meta_atoms.shape != plain_atoms.shape:
        raise ConfigError(
            f"plain_atoms must have the shape of meta_atoms {list(meta_atoms.shape)}, got {list(plain_atoms.shape)}: more directions explain more "
            "(pursued_shares)"
        )
    rows = unit_rows(atoms, minimum=2, argument="atoms", where="pursued_shares").float()
    shares = []
    for name, directions in (("meta_atoms", meta_atoms), ("plain_atoms", plain_atoms)):
        unit = unit_rows(directions, minimum=1, argument=name, where="pursued_shares").float()
        config = PursuitConfig(d_in=rows.shape[1], d_sae=len(unit), k=k, selection="signed", orthogonal=True)
        pursuit = MatchingPursuit(config, Scaling(rows.mean(dim=0), 1.0))
        pursuit.load_state_dict({**pursuit.state_dict(), "W_dec": unit})
        shares.append(reconstruction(pursuit.eval(), [rows]).scores.explained_variance)
    return PursuedShares(shares[0], shares[1], k)


def _batches(rows: Tensor, config: MetaConfig) -> Iterator[Tensor]:
    """All rows in random order, again and again."""
    generator = torch.Generator().manual_seed(config.seed)
    size, waiting = min(config.batch_size, len(rows)), torch.zeros(0, dtype=torch.long)
    for _ in range(config.n_steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(len(rows), generator=generator)])
        yield rows[waiting[:size]]
        waiting = waiting[size:]
