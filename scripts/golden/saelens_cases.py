"""What SAELens is asked to check: one dictionary of every kind that its format holds."""

import torch

from sae.dictionaries.activations import AbsTopK, Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from scripts.golden.exact import filled, scaling

D_IN, D_SAE, D_OUT = 12, 32, 10
ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "top_k": TopK(k=5),
    "abs_top_k": AbsTopK(k=5),
    "batch_top_k": BatchTopK(k=4.5),
    "jump_relu": JumpReLU(),
    "gated": Gated(),
}
PURSUITS: dict[str, PursuitConfig] = {
    "pursuit": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=6),
    "pursuit_tolerance": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=12, tolerance=2.0),
    "pursuit_repeat": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=12, stop_on_repeat=True),
    "pursuit_layer_norm": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=6, normalisation="layer_norm"),
    "pursuit_scaled": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=12, tolerance=1.0),
    "pursuit_long_atoms": PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=6, unit_norm=False, tolerance=0.25),
}


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    made: dict[str, Dictionary] = {}
    for seed, (name, activation) in enumerate(ACTIVATIONS.items(), 1):
        for subtracts in (True, False):
            config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, apply_b_dec_to_input=subtracts)
            made[name if subtracts else f"{name}_raw_input"] = filled(Autoencoder(config), seed)
        config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, apply_b_dec_to_input=seed % 2 == 0)
        made[f"{name}_scaled"] = filled(Autoencoder(config, scaling(D_IN, 0.5, seed)), seed + 10)
    of_z = Autoencoder(
        AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=ReLU()), provenance={"site": "blocks.1.attn.hook_z", "model": "tiny"}
    )
    made["of_z"] = filled(of_z, 19)
    return made | _normalised() | _transcoders() | _pursuits()


def _normalised() -> dict[str, Dictionary]:
    made: dict[str, Dictionary] = {}
    for seed, how in enumerate(("layer_norm", "constant_norm"), 20):
        for subtracts in (True, False):
            config = AutoencoderConfig(
                d_in=D_IN, d_sae=D_SAE, activation=TopK(k=5), apply_b_dec_to_input=subtracts, normalisation=how
            )  # fmt: skip
            made[how if subtracts else f"{how}_raw_input"] = filled(Autoencoder(config), seed)
    return made


def _transcoders() -> dict[str, Dictionary]:
    made: dict[str, Dictionary] = {}
    for seed, name in enumerate(("relu", "jump_relu", "batch_top_k"), 30):
        for skip in (False, True):
            scales = {"scaling": scaling(D_IN, 0.5, seed), "target_scaling": scaling(D_OUT, 2.0, seed + 5)} if skip else {}
            config = AutoencoderConfig(
                d_in=D_IN, d_sae=D_SAE, activation=ACTIVATIONS[name], d_out=D_OUT, skip=skip, apply_b_dec_to_input=False
            )  # fmt: skip
            made[f"{name}_transcoder{'_skip_scaled' if skip else ''}"] = filled(Autoencoder(config, **scales), seed)
    square = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=ReLU(), d_out=D_IN, skip=True, apply_b_dec_to_input=False)
    return made | {"square_skip_transcoder": filled(Autoencoder(square), 39)}


def _pursuits() -> dict[str, Dictionary]:
    made: dict[str, Dictionary] = {}
    for seed, (name, config) in enumerate(PURSUITS.items(), 40):
        shrunk = Scaling(torch.zeros(D_IN), 0.5) if name == "pursuit_scaled" else None
        made[name] = filled(MatchingPursuit(config, shrunk), seed, unit=True)
        if not config.unit_norm:
            with torch.no_grad():
                made[name].W_dec.mul_(torch.tensor([0.75, 1.25]).repeat(D_SAE // 2)[:, None])
    return made
