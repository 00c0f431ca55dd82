"""What sparsify is asked to check: TopK autoencoders and transcoders, scaled and not."""

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from scripts.golden.exact import filled, scaling

D_IN, D_SAE = 12, 32


def cases() -> dict[str, Dictionary]:
    """Dictionaries by name."""
    plain = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(k=5))
    raw = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(k=5), apply_b_dec_to_input=False)
    made: dict[str, Dictionary] = {
        "top_k": filled(Autoencoder(plain, provenance={"site": "blocks.3.hook_resid_post"}), 1),
        "top_k_unit_atoms": filled(Autoencoder(plain), 2, unit=True),
        "top_k_scaled": filled(Autoencoder(plain, scaling(D_IN, 0.5, 3)), 3),
        "top_k_raw_input": filled(Autoencoder(raw), 4),
        "top_k_raw_input_scaled": filled(Autoencoder(raw, scaling(D_IN, 0.5, 5)), 5),
    }
    for skip in (False, True):
        config = AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(k=4), d_out=D_IN, skip=skip, apply_b_dec_to_input=False)
        name = "skip_transcoder" if skip else "transcoder"
        made[name] = filled(Autoencoder(config), 6 + skip)
        scales = {"scaling": scaling(D_IN, 0.5, 8 + skip), "target_scaling": scaling(D_IN, 2.0, 10 + skip)}
        made[f"{name}_scaled"] = filled(Autoencoder(config, **scales), 12 + skip)
    return made
