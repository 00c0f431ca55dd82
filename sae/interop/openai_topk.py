"""OpenAI's autoencoders of GPT-2 small (github.com/openai/sparse_autoencoder): one torch file, the state dict of an Autoencoder.

    pre_bias [d_in]   latent_bias [d_sae]   encoder.weight [d_sae, d_in]   decoder.weight [d_in, d_sae]
    activation "TopK" | "ReLU"   activation_state_dict {"k": 32, "postact_fn": "ReLU"} | {}   (activation.k, activation.postact_fn: the same again)
    stats_last_nonzero, latents_activation_frequency, latents_mean_square [d_sae]        statistics of training, not read

    z = activation((x - pre_bias) W_enc + latent_bias)        x_hat = z W_dec + pre_bias

For "TopK" (release v5; Gao et al. 2024, 2406.04093) every x is normalised, (acts - mean) / (std + 1e-5) with the unbiased std over its
dimensions, and the reconstruction is brought back; for "ReLU" (v1, v4) it is not. The owner's `from_state_dict` ties the two in the same way.
A file with tied weights has decoder.linear.weight [d_sae, d_in], the encoder's, in place of decoder.weight: it is read, which
`from_state_dict` itself does not do. It does not read what `state_dict` makes of a TopK either, for that says k and postact_fn twice; the
published files do not, both are read. A file without "activation" is a ReLU one, as there.

The published path .../gpt2-small/{location}/autoencoders/{layer}.pt names the site; without such a path it is not known.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.activations import ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError
from sae.interop.files import Tensors, check_keys, read_torch, write_torch
from sae.interop.rewriting import assembled, encoder_bias, plain, provenance

__all__ = ["read", "write"]

STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
SPOKEN = ("activation", "activation_state_dict")
"""What is said in words."""
LOCATIONS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
"""The owner's name of an activation of a block -> its TransformerLens name, as in the owner's README."""


def read(path: str | Path) -> Autoencoder:
    """The autoencoder in the torch file `path`. Raises FormatError naming what is wrong; nothing in the file is executed."""
    path = Path(path)
    values = read_torch(path)
    activation, config = _activation(values, path)
    tensors = Tensors({name: value for name, value in values.items() if name not in SPOKEN and not name.startswith("activation.")}, path)
    decoder = "decoder.linear.weight" if tensors.has("decoder.linear.weight") else "decoder.weight"
    tensors.require("pre_bias", "latent_bias", "encoder.weight", decoder)
    b_dec, b_enc = tensors.take("pre_bias", None), tensors.take("latent_bias", None)
    d_in, d_sae = len(b_dec), len(b_enc)
    W_enc = tensors.take("encoder.weight", d_sae, d_in)
    W_dec = W_enc if decoder == "decoder.linear.weight" else tensors.take(decoder, d_in, d_sae).T
    tensors.ignore(*STATISTICS)
    notes = _notes(values, path)
    if W_dec is W_enc:
        if not torch.equal(tensors.take(decoder, d_sae, d_in), W_enc):
            raise FormatError(f"{path}: decoder.linear.weight must be encoder.weight, the weights being tied, and differs from it")
        notes.append("tied weights: the decoder is the encoder's transpose, a copy of it here")
    tensors.finish()
    try:
        own = AutoencoderConfig(
            d_in=d_in, d_sae=d_sae, activation=activation, normalisation="layer_norm" if isinstance(activation, TopK) else "none"
        )
    except ConfigError as error:
        raise FormatError(f"{path} describes no autoencoder: {error}") from error
    sites, told = _sites(path)
    parameters = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    return assembled(own, parameters, provenance("openai_topk", config, [*tensors.notes(), *notes, *told], **sites))


def _activation(values: dict[str, Any], path: Path) -> tuple[TopK | ReLU, dict[str, Any]]:
    """(the activation, what the file says of it)."""
    name, state = values.get("activation", "ReLU"), values.get("activation_state_dict", {})
    if not isinstance(state, dict):
        raise FormatError(f"{path}: activation_state_dict must be a dictionary, got a {type(state).__name__}")
    for key in (key for key in values if key.startswith("activation.")):
        option = key.removeprefix("activation.")
        said = (values[key], state.get(option))
        if not all(isinstance(value, (int, str)) for value in said) or said[0] != said[1]:
            raise FormatError(f"{path}: {key} must be what activation_state_dict says of {option}, {said[1]!r}; got {said[0]!r}")
    config = {key: values[key] if key == "activation" else dict(state) for key in SPOKEN if key in values}
    where = f"{path}: activation_state_dict"
    if name == "ReLU":
        check_keys(state, known=set(), required=set(), path=where)
        return ReLU(), config
    if name != "TopK":
        raise FormatError(f"{path}: activation must be 'TopK' or 'ReLU', got {name!r}")
    check_keys(state, known=set(), required={"k", "postact_fn"}, path=where)
    k, after = state["k"], state["postact_fn"]
    if type(k) is not int or k < 1:
        raise FormatError(f"{where}: k must be a positive whole number, got {k!r}")
    if after != "ReLU":
        raise FormatError(
            f"{where}: postact_fn must be 'ReLU', got {after!r}: the k largest, negative ones among them, are no activation here"
        )
    return TopK(k), config


def _notes(values: dict[str, Any], path: Path) -> list[str]:
    if "activation" not in values:
        return ["the file names no activation: ReLU, as its owner reads it"]
    if values["activation"] == "TopK":
        return ["activation TopK: every input is normalised by its own mean and standard deviation, as its owner reads it"]
    return []


def _sites(path: Path) -> tuple[dict[str, str], list[str]]:
    """(site and model where the path is a published one, notes)."""
    *above, location, folder, name = ("", "", "", *path.absolute().parts)
    found = re.fullmatch(r"(0|[1-9]\d*)\.pt", name)
    place = re.fullmatch(rf"({'|'.join(LOCATIONS)})(?:_v4|_v5_32k|_v5_128k)?", location)
    if found is None or place is None or folder != "autoencoders":
        return {}, ["the path is not .../{location}/autoencoders/{layer}.pt: the site is not known"]
    known = {"site": f"blocks.{found[1]}.{LOCATIONS[place[1]]}"}
    if above[-1] == "gpt2-small":
        known["model"] = "gpt2"
    return known, [f"the site is that of the path {location}/{folder}/{name}"]


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` as a torch file that the owner's Autoencoder.from_state_dict loads, for the same codes and reconstructions.

    Scaling is folded in, and an encoder that does not subtract b_dec gets b_enc + b_dec W_enc; statistics are those of a new autoencoder.
    Raises ConfigError for what the format cannot hold: a transcoder, any activation but TopK and ReLU, TopK of inputs that are not
    layer-normalised, ReLU of inputs that are.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"path must be a file for openai_topk, such as 6.pt, and {path} is a folder (openai_topk.write)")
    autoencoder = plain(dictionary, "openai_topk", normalisations=("none", "layer_norm"))
    config, activation = autoencoder.config, autoencoder.config.activation
    if autoencoder.is_transcoder:
        raise ConfigError("dictionary must not be a transcoder for openai_topk; `saelens` and `sparsify` hold them (openai_topk.write)")
    if not isinstance(activation, (TopK, ReLU)):
        raise ConfigError(f"activation must be TopK or ReLU for openai_topk, got {type(activation).__name__} (openai_topk.write)")
    wanted = "layer_norm" if isinstance(activation, TopK) else "none"
    if config.normalisation != wanted:
        raise ConfigError(
            f"normalisation must be {wanted!r} for {type(activation).__name__} in openai_topk, got {config.normalisation!r}: the format has no "
            "word for it and its owner's code assumes that; `saelens` holds both (openai_topk.write)"
        )
    write_torch(path, _state(autoencoder))


def _state(autoencoder: Autoencoder) -> dict[str, Any]:
    activation, n = autoencoder.config.activation, autoencoder.d_sae
    weights: dict[str, Tensor] = {
        "pre_bias": autoencoder.b_dec,
        "latent_bias": encoder_bias(autoencoder, subtracts=True),
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
        "latents_activation_frequency": torch.ones(n),
        "latents_mean_square": torch.zeros(n),
        "encoder.weight": autoencoder.W_enc.T,
        "decoder.weight": autoencoder.W_dec.T,
    }
    plain_weights = {name: tensor.detach() if name in STATISTICS else tensor.detach().float() for name, tensor in weights.items()}
    state = {"k": activation.k, "postact_fn": "ReLU"} if isinstance(activation, TopK) else {}
    return {**plain_weights, "activation": "TopK" if isinstance(activation, TopK) else "ReLU", "activation_state_dict": state}
