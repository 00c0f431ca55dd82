"""An autoencoder, turned into the folder that dictionary_learning loads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.activations import BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.interop.dictionary_learning.config import CONFIG, LAYOUTS, MISSPELT, NAME, SHARED, WEIGHTS
from sae.interop.files import write_json, write_torch
from sae.interop.rewriting import encoder_bias, foreign_config, kept_threshold, made_folder, plain


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` as a folder that `utils.load_dictionary` loads, for the same codes and reconstructions of unscaled activations.

    Scaling is folded in, and b_enc says what b_dec says where the class does it otherwise. ReLU with atoms of other norms than one becomes an
    AutoEncoderNew, whose codes the loader leaves alone. Raises ConfigError for what the format cannot hold: AbsTopK, a normalised
    input, a linear path, two widths, a BatchTopK whose k is not whole.
    """
    autoencoder = plain(dictionary, NAME)
    if autoencoder.config.skip or autoencoder.config.d_out not in (None, autoencoder.d_in):
        raise ConfigError(
            f"dictionary must have one width and no linear path for {NAME}, got d_in={autoencoder.d_in}, d_out={autoencoder.config.d_out}, "
            f"skip={autoencoder.config.skip}; `saelens` holds transcoders (dictionary_learning.write)"
        )
    foreign = dictionary.provenance.get("foreign") if foreign_config(dictionary, NAME) else {}
    dict_class = _class_of(autoencoder, foreign)
    folder = made_folder(path, NAME)
    write_torch(folder / WEIGHTS, _tensors(autoencoder, dict_class, foreign))
    write_json(folder / CONFIG, _config(autoencoder, dict_class, dictionary.provenance, foreign.get("config", {})))


def _class_of(autoencoder: Autoencoder, foreign: Mapping[str, Any]) -> str:
    activation = autoencoder.config.activation
    if isinstance(activation, BatchTopK):
        kept_threshold(autoencoder, NAME)
        if activation.k != int(activation.k) or activation.k < 1:
            raise ConfigError(
                f"k must be whole for {NAME}, got {activation.k}: with_activation(BatchTopK({max(round(activation.k), 1)}.0)) keeps the "
                "threshold, which alone decides the codes (dictionary_learning.write)"
            )
        return "MatryoshkaBatchTopKSAE" if sum(foreign.get("group_sizes", ())) == autoencoder.d_sae else "BatchTopKSAE"
    if isinstance(activation, ReLU):
        norms = torch.linalg.vector_norm(autoencoder.W_dec.detach(), dim=1)
        subtracts = autoencoder.config.apply_b_dec_to_input and not autoencoder.is_transcoder
        return "AutoEncoder" if subtracts and torch.allclose(norms, torch.ones_like(norms)) else "AutoEncoderNew"
    classes = {TopK: "AutoEncoderTopK", JumpReLU: "JumpReluAutoEncoder", Gated: "GatedAutoEncoder"}
    if type(activation) not in classes:
        raise ConfigError(
            f"activation must be ReLU, Gated, TopK, BatchTopK or JumpReLU for {NAME}, got {type(activation).__name__}; `saelens` holds it "
            "(dictionary_learning.write)"
        )
    return classes[type(activation)]


@torch.no_grad()
def _tensors(autoencoder: Autoencoder, dict_class: str, foreign: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the owner's module."""
    layout, activation = LAYOUTS[dict_class], autoencoder.config.activation
    b_enc = encoder_bias(autoencoder, subtracts=layout.subtracts)
    encoder, decoder = layout.maps
    state: dict[str, Tensor] = {layout.b_dec: autoencoder.b_dec, layout.b_enc: b_enc}
    state |= {name: W.T if layout.linear else W for name, W in ((encoder, autoencoder.W_enc), (decoder, autoencoder.W_dec))}
    if isinstance(activation, Gated):
        state |= {"r_mag": autoencoder.r_mag, "mag_bias": autoencoder.b_mag + autoencoder.r_mag.exp() * (b_enc - autoencoder.b_enc)}
    if isinstance(activation, JumpReLU):
        state["threshold"] = autoencoder.log_threshold.double().exp().clamp_max(torch.finfo(torch.float32).max)
    state = {name: tensor.detach().float() for name, tensor in state.items()}
    if isinstance(activation, (TopK, BatchTopK)):
        known = autoencoder.threshold if isinstance(activation, BatchTopK) else torch.tensor(float(foreign.get("threshold", -1.0)))
        state |= {"k": torch.tensor(int(activation.k), dtype=torch.int), "threshold": known.detach().float()}
    if dict_class == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor(foreign["group_sizes"])
    return state


def _config(autoencoder: Autoencoder, dict_class: str, origin: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: what was read goes back; what the parameters say is said."""
    config, activation = autoencoder.config, autoencoder.config.activation
    trainer = dict(known.get("trainer", {}))
    if MISSPELT.get(trainer.get("dict_class", ""), trainer.get("dict_class")) != dict_class:  # options of another class's trainer
        trainer = {key: value for key, value in trainer.items() if key in SHARED - {"trainer_class"}} | {"dict_class": dict_class}
    trainer |= {"activation_dim": config.d_in, "dict_size": config.d_sae}
    if isinstance(activation, (TopK, BatchTopK)):
        trainer["k"] = int(activation.k)
    if isinstance(activation, JumpReLU) and "bandwidth" not in trainer and "trainer_class" not in trainer:
        trainer["bandwidth"] = activation.bandwidth
    if "lm_name" not in trainer and isinstance(origin.get("model"), str):
        trainer["lm_name"] = origin["model"]
    site = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", str(origin.get("target_site" if autoencoder.is_transcoder else "site")))
    if "submodule_name" not in trainer and "layer" not in trainer and site:
        trainer |= {"layer": int(site[1]), "submodule_name": f"resid_post_layer_{site[1]}"}
    buffer = dict(known.get("buffer", {}))
    if autoencoder.is_transcoder:
        buffer["io"] = "in_to_out"
    return {"trainer": trainer} | ({"buffer": buffer} if buffer else {})
