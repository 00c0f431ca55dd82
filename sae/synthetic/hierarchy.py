"""The two-level tree of concepts on which shallow autoencoders absorb and matching pursuit does not.

    x = sum_i z_i f_i,      z_child > 0 only if z_parent > 0,      f_i . f_j = 0 for features of different levels

Costa et al. 2025 (2506.03093) section 4 and appendix B: 20 features in R^20. Eleven parents exclude each other: three internal ones
(probability 0.2 each) and eight leaves (0.05 each), which sums to 1. Each internal parent has three children (0.2 each given the parent,
exclusive; none with 0.4). Active features have independent amplitudes N(1.5, 0.25^2). E[L0] = 1 + 0.6 * 0.6 = 1.36. Features 0, 4, 8 are
internal parents, each followed by its children; 12-19 are leaves.

Within a group of n features (the parents; each triple of children) an orthonormal basis q is mixed and normalised,

    f_i ~ a q_i + b sum over the others of q_j,      a = 1 - mix,   b = mix / (n - 1),      cos = (2 a b + (n - 2) b^2) / (a^2 + (n - 1) b^2)

so that all pairs of the group have the same cosine, and groups stay orthogonal to each other whatever it is (conditional orthogonality).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError

N_FEATURES = 20
"""Features, and dimensions of the space they lie in."""
PARENTS = (0, 4, 8, 12, 13, 14, 15, 16, 17, 18, 19)
"""The parents: three with children, eight leaves."""
CHILDREN = {0: (1, 2, 3), 4: (5, 6, 7), 8: (9, 10, 11)}
"""The children of each internal parent."""
LEVELS = tuple(0 if feature in PARENTS else 1 for feature in range(N_FEATURES))
"""Depth of every feature: 0 for parents, 1 for children."""
MEAN_L0 = 1.36
"""Expected number of active features of a sample."""
COSINES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Cosines within the groups at which the paper's experiments run."""


class Amplitude(NamedTuple):
    """Distribution N(mean, deviation^2) of an active feature's value."""

    mean: float
    """Expected value."""
    deviation: float
    """Standard deviation; 0 makes every active value equal to the mean."""


STANDARD = Amplitude(1.5, 0.25)
"""Amplitude of every feature unless another is given."""
CONSTANT = Amplitude(1.5, 0.0)
"""No variance: the best code of a parent with its child is then a single latent along their sum, so every sparse method absorbs."""
UNIT_PARENT = Amplitude(1.0, 0.25)
"""Amplitude of the parents in table 1, where the children's mean and deviation vary."""


def mix_for_cosine(cosine: float, n: int) -> float:
    """The mix at which all pairs among n orthonormal vectors, mixed as in the module's text, have the given cosine.

        t = b / a = cosine / (1 + sqrt((1 - cosine) (1 + (n - 1) cosine))),        mix = (n - 1) t / (1 + (n - 1) t)

    the root with t = 0 at cosine 0 of (n - 2 - (n - 1) cosine) t^2 + 2 t - cosine = 0. Raises ConfigError unless n >= 2 and
    0 <= cosine <= 1.
    """
    if n < 2:
        raise ConfigError(f"n must be at least 2, got {n} (mix_for_cosine)")
    if not 0 <= cosine <= 1:
        raise ConfigError(f"cosine must be in 0..1, got {cosine} (mix_for_cosine)")
    ratio = cosine / (1 + math.sqrt((1 - cosine) * (1 + (n - 1) * cosine)))
    return (n - 1) * ratio / (1 + (n - 1) * ratio)


def tree_features(generator: torch.Generator, *, parent_cosine: float = 0.0, child_cosine: float = 0.0) -> Float[Tensor, "20 20"]:
    """True unit features, one a row: a random orthonormal basis, mixed to the given cosine among the parents and within each triple of
    children.

    The paper gives both the same cosine, one of `COSINES`. Raises ConfigError for a cosine outside 0..1.
    """
    basis = torch.linalg.qr(torch.randn(N_FEATURES, N_FEATURES, generator=generator)).Q
    features = basis.clone()
    for group, cosine in ((PARENTS, parent_cosine), *((children, child_cosine) for children in CHILDREN.values())):
        mix = mix_for_cosine(cosine, len(group))
        members = basis[list(group)]
        others = members.sum(0) - members
        features[list(group)] = (1 - mix) * members + mix / (len(group) - 1) * others
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True)


def tree_codes(n: int, generator: torch.Generator, *, parent: Amplitude = STANDARD, child: Amplitude = STANDARD) -> Float[Tensor, "n 20"]:
    """True codes of n samples: one parent each and, for an internal parent, at most one of its children.

    Amplitudes are not clipped: with a deviation that is not small beside the mean a value may be negative.
    """
    probability = torch.tensor([0.2 if feature in CHILDREN else 0.05 for feature in PARENTS])
    chosen = torch.tensor(PARENTS)[torch.multinomial(probability, n, replacement=True, generator=generator)]
    which = torch.multinomial(torch.tensor([0.2, 0.2, 0.2, 0.4]), n, replacement=True, generator=generator)
    mean, deviation = torch.tensor([parent.mean, child.mean]), torch.tensor([parent.deviation, child.deviation])
    amplitude = mean + deviation * torch.randn(n, 2, generator=generator)
    codes = torch.zeros(n, N_FEATURES)
    row = torch.arange(n)
    codes[row, chosen] = amplitude[:, 0]
    internal = torch.isin(chosen, torch.tensor(list(CHILDREN))) & (which < 3)
    codes[row[internal], (chosen + 1 + which)[internal]] = amplitude[internal, 1]
    return codes


def tree_batches(
    features: Float[Tensor, "20 d_in"],
    generator: torch.Generator,
    *,
    batch_size: int = 200,
    parent: Amplitude = STANDARD,
    child: Amplitude = STANDARD,
) -> Iterator[Float[Tensor, "batch_size d_in"]]:
    """Endless batches of samples x = z F, drawn many at a time because drawing few costs as much."""
    while True:
        codes = tree_codes(100 * batch_size, generator, parent=parent, child=child)
        yield from (codes @ features).split(batch_size)
