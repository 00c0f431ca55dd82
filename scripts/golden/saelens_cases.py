"""What SAELens is asked to check: one dictionary of every kind that its format holds."""

from sae.dictionaries.activations import AbsTopK, Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from scripts.golden.exact import filled

D_IN, D_SAE = 12, 32
ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "top_k": TopK(k=5),
    "abs_top_k": AbsTopK(k=5),
    "batch_top_k": BatchTopK(k=4.5),
    "jump_relu": JumpReLU(),
    "gated": Gated(),
}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, activation) in enumerate(ACTIVATIONS.items(), 1):
        made[name] = filled(Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation)), seed)
    return made
