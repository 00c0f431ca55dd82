"""What readers of Gemma Scope are asked to check: both versions, every activation that they hold, scaled or not."""

import torch

from sae.dictionaries.activations import Activation, BatchTopK, JumpReLU, ReLU
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from scripts.golden.exact import filled, grid, scaling

D_IN, D_SAE, D_OUT = 12, 32, 10
ACTIVATIONS: dict[str, Activation] = {"jump_relu": JumpReLU(), "relu": ReLU(), "batch_top_k": BatchTopK(k=4.5)}
KNOWN = {"site": "blocks.3.hook_resid_post", "model": "google/gemma-3-270m"}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name; the first word is the version."""
    made: dict[str, Dictionary] = {}
    for version in ("v1", "v2"):
        for seed, (name, activation) in enumerate(ACTIVATIONS.items(), 1):
            for subtracts in (True, False):
                config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, apply_b_dec_to_input=subtracts)
                scaled = scaling(D_IN, 0.5, seed) if subtracts else None
                case = f"{version}_{name}{'_scaled' if subtracts else ''}"
                made[case] = _filled(Autoencoder(config, scaled, provenance=KNOWN), seed)
        d_out, skip = (D_OUT, False) if version == "v1" else (D_IN, True)
        config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=JumpReLU(), d_out=d_out, skip=skip, apply_b_dec_to_input=False)
        scales = {"scaling": scaling(D_IN, 0.5, 7), "target_scaling": scaling(d_out, 2.0, 8)}
        known = {"target_site": "blocks.3.hook_mlp_out", "model": KNOWN["model"]}
        made[f"{version}_transcoder"] = _filled(Autoencoder(config, **scales, provenance=known), 9)
    return made


@torch.no_grad()
def _filled(dictionary: Autoencoder, seed: int) -> Autoencoder:
    """All parameters random; thresholds of JumpReLU are powers of two, and one is 0."""
    filled(dictionary, seed)
    if isinstance(dictionary.config.activation, JumpReLU):
        dictionary.log_threshold.copy_((grid(D_SAE, seed=seed) * 3).round().mul(torch.tensor(2.0).log()))
        dictionary.log_threshold[5] = -torch.inf
    return dictionary


FILE = {case: "params.npz" for case in cases() if case.startswith("v1")}
