"""The two-level tree of concepts on which shallow autoencoders absorb and matching pursuit does not.

Costa et al. 2025 (2506.03093) section 4 and appendix B: 20 features in R^20. Eleven parents exclude each other: three internal ones
(probability 0.2 each) and eight leaves (0.05 each). Each internal parent has three children (0.2 each, exclusive; none with 0.4). Active
features have independent
amplitudes N(1.5, deviation^2). E[L0] = 1 + 0.6 * 0.6 = 1.36. Features 0, 4, 8 are internal parents, each followed by its children; 12-19
are leaves.
"""

import torch
from jaxtyping import Float
from torch import Tensor

N_FEATURES = 20
PARENTS = (0, 4, 8, 12, 13, 14, 15, 16, 17, 18, 19)
CHILDREN = {0: (1, 2, 3), 4: (5, 6, 7), 8: (9, 10, 11)}


def tree_features(generator: torch.Generator, *, parent_mix: float = 0.0, child_mix: float = 0.0) -> Float[Tensor, "20 20"]:
    """True unit features: an orthonormal basis, mixed within the parents and within each triple of children.

    q_i <- (1 - mix) q_i + mix / (n - 1) * sum of the others of its group, then normalised; mix 0 keeps the group orthogonal.
    """
    basis = torch.linalg.qr(torch.randn(N_FEATURES, N_FEATURES, generator=generator)).Q
    features = basis.clone()
    for group, mix in ((PARENTS, parent_mix), *((children, child_mix) for children in CHILDREN.values())):
        members = basis[list(group)]
        others = members.sum(0) - members
        features[list(group)] = (1 - mix) * members + mix / (len(group) - 1) * others
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True)


def tree_codes(n: int, generator: torch.Generator, *, deviation: float = 0.25) -> Float[Tensor, "n 20"]:
    """True codes of n samples: one parent each and, for an internal parent, at most one of its children."""
    probability = torch.tensor([0.2 if parent in CHILDREN else 0.05 for parent in PARENTS])
    parent = torch.tensor(PARENTS)[torch.multinomial(probability, n, replacement=True, generator=generator)]
    child = torch.multinomial(torch.tensor([0.2, 0.2, 0.2, 0.4]), n, replacement=True, generator=generator)
    amplitude = 1.5 + deviation * torch.randn(n, 2, generator=generator)
    codes = torch.zeros(n, N_FEATURES)
    row = torch.arange(n)
    codes[row, parent] = amplitude[:, 0]
    internal = torch.isin(parent, torch.tensor(list(CHILDREN))) & (child < 3)
    codes[row[internal], (parent + 1 + child)[internal]] = amplitude[internal, 1]
    return codes
