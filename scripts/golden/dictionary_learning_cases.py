"""What dictionary_learning is asked to check: one dictionary of every class that it has."""

from typing import Any

from sae.dictionaries.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.scaling import Scaling
from scripts.golden.exact import filled, scaling

D_IN, D_SAE = 12, 32
GROUPS = [8, 8, 16]
ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "relu_unit": ReLU(),
    "gated": Gated(),
    "top_k": TopK(k=5),
    "batch_top_k": BatchTopK(k=4.0),
    "jump_relu": JumpReLU(),
    "matryoshka": BatchTopK(k=4.0),
    "scaled": TopK(k=5),
}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, activation) in enumerate(ACTIVATIONS.items(), 1):
        config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation)
        scaled: Scaling | None = scaling(D_IN, 0.25, seed) if name == "scaled" else None
        origin: dict[str, Any] = {"model": "EleutherAI/pythia-70m-deduped", "site": "blocks.3.hook_resid_post"}
        if name == "matryoshka":  # as it is after reading one
            known = {"trainer": {"dict_class": "MatryoshkaBatchTopKSAE"}}
            origin["foreign"] = {"format": "dictionary_learning", "config": known, "group_sizes": GROUPS, "notes": []}
        made[name] = filled(Autoencoder(config, scaled, provenance=origin), seed, unit=name == "relu_unit")
    return made
