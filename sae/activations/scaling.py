"""The scaling that a dictionary trained on a store should use.

x = (acts - mean) * scale,        scale = sqrt(d) / E|acts - mean|,        so that E|x| = sqrt(d)
"""

import math

import torch

from sae.activations.store import ActivationStore
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.models.sites import Site


def fit_scaling(store: ActivationStore, site: str | Site) -> Scaling:
    """The scaling that removes the site's mean and brings the mean norm to sqrt(d), over the tokens that the mask keeps.

    One number per coordinate of norm sqrt(d) is the scale on which learning rates and loss weights of different models and layers are
    comparable (Templeton et al., "Scaling monosemanticity", 2024; Lieberum et al., "Gemma Scope", arXiv 2408.05147, section 3.3, which fix
    the mean squared norm instead). Raises ConfigError when all activations are equal.
    """
    measured = store.statistics(site)
    if not measured.mean_centred_norm > 0:
        raise ConfigError(
            f"site {store.site(site).name} of {store.path} has the same activation at every token: it has no scale (fit_scaling)"
        )
    return Scaling(measured.mean.to(torch.float32), math.sqrt(len(measured.mean)) / measured.mean_centred_norm)
