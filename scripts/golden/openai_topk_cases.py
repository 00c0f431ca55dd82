"""What OpenAI's code is asked to check: TopK of layer-normalised inputs, ReLU of plain ones."""

from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from scripts.golden.exact import filled, scaling

D_IN, D_SAE = 12, 32
FILE = "autoencoder.pt"


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, activation, normalisation) in enumerate((("top_k", TopK(k=5), "layer_norm"), ("relu", ReLU(), "none"))):
        for subtracts in (True, False):
            config = AutoencoderConfig(
                d_in=D_IN, d_sae=D_SAE, activation=activation, apply_b_dec_to_input=subtracts, normalisation=normalisation
            )  # fmt: skip
            case = name if subtracts else f"{name}_raw_input"
            made[case] = filled(Autoencoder(config), 10 * seed + subtracts)
            made[f"{case}_scaled"] = filled(Autoencoder(config, scaling(D_IN, 0.5, seed)), 10 * seed + 2 + subtracts)
    return made
