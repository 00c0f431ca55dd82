"""Planted features: sparse sums of known unit vectors.

    x = sum_i s_i a_i f_i,      s_i ~ Bernoulli(k / n_features) independent,      a_i = max(N(1, 1/4), 0.1)

where 1/4 is the variance unless given.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def planted_features(n_features: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "n_features d_in"]:
    """Independent uniform unit vectors, one a row."""
    features = torch.randn(n_features, d_in, generator=generator)
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True)


def planted_codes(
    n: int, n_features: int, generator: torch.Generator, *, k: float, deviation: float = 0.5, least: float = 0.1
) -> Float[Tensor, "n n_features"]:
    """True codes: each feature active with probability k / n_features, with amplitude N(1, deviation^2) clipped below at `least`."""
    active = torch.rand(n, n_features, generator=generator) < k / n_features
    amplitude = (1 + deviation * torch.randn(n, n_features, generator=generator)).clamp_min(least)
    return amplitude * active


def recovery(features: Float[Tensor, "n_features d_in"], atoms: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n_features"]:
    """For every true feature, the largest cosine with an atom."""
    unit = torch.nn.functional.normalize
    return (unit(features, dim=1) @ unit(atoms, dim=1).T).amax(1)
