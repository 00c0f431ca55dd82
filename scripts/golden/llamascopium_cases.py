"""What llamascopium is asked to check: one dictionary of every kind that its format holds."""

from typing import Any

import torch

from sae.dictionaries.activations import BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.scaling import Scaling
from scripts.golden.exact import filled, scaling

D, D_SAE = 12, 37
"""37 / 12 is rounded: the library takes the whole part of 12 times what the file says."""
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": ReLU()},
    "top_k": {"activation": TopK(k=5)},
    "batch_top_k": {"activation": BatchTopK(k=4.5)},
    "jump_relu": {"activation": JumpReLU()},
    "not_subtracted": {"activation": JumpReLU(), "apply_b_dec_to_input": False},
    "constant_norm": {"activation": TopK(k=5), "normalisation": "constant_norm"},
    "transcoder": {"activation": JumpReLU(), "d_out": D},
    "scaled": {"activation": JumpReLU()},
    "scaled_and_centred": {"activation": TopK(k=5)},
}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, options) in enumerate(KINDS.items(), 1):
        config = AutoencoderConfig(d_in=D, d_sae=D_SAE, **options)
        origin, scales = {"model": "HuggingFaceTB/SmolLM2-135M", "site": "blocks.15.hook_resid_mid"}, {}
        if name == "transcoder":
            origin["target_site"] = "blocks.15.hook_mlp_out"
            scales = {"scaling": Scaling(torch.zeros(D), 0.25), "target_scaling": Scaling(torch.zeros(D), 0.5)}
        elif name.startswith("scaled"):
            scales = {"scaling": scaling(D, 0.25, seed) if "centred" in name else Scaling(torch.zeros(D), 0.25)}
        made[name] = filled(Autoencoder(config, provenance=origin, **scales), seed)
    return made
