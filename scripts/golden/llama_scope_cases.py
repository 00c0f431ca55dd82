"""What lm-saes as of October 2024 is asked to check: one dictionary of every kind that its format holds."""

from typing import Any

import torch

from sae.dictionaries.activations import BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from scripts.golden.exact import filled, scaling

D, D_SAE = 12, 36
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": ReLU()},
    "top_k": {"activation": TopK(k=5)},
    "batch_top_k": {"activation": BatchTopK(k=4.5)},
    "jump_relu": {"activation": JumpReLU()},
    "not_subtracted": {"activation": JumpReLU(), "apply_b_dec_to_input": False},
    "constant_norm": {"activation": JumpReLU(), "normalisation": "constant_norm"},
    "transcoder": {"activation": JumpReLU(), "d_out": D},
    "scaled": {"activation": TopK(k=5)},
}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, options) in enumerate(KINDS.items(), 1):
        config = AutoencoderConfig(d_in=D, d_sae=D_SAE, **options)
        origin = {"model": "meta-llama/Llama-3.1-8B", "site": "blocks.8.hook_resid_mid"}
        if name == "transcoder":
            origin["target_site"] = "blocks.8.hook_mlp_out"
        made[name] = filled(Autoencoder(config, scaling(D, 0.25, seed) if name == "scaled" else None, provenance=origin), seed)
        if isinstance(config.activation, JumpReLU):  # the format has one threshold for all
            with torch.no_grad():
                made[name].log_threshold.fill_(-0.75)
    return made
