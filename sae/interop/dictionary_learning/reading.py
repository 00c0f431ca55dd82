"""Weights of dictionary_learning, turned into an autoencoder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.errors import FormatError
from sae.interop.dictionary_learning.config import BACKUP, CONFIG, NAME, THRESHOLDED, WEIGHTS, Stated, stated
from sae.interop.files import Tensors, check_keys, read_json, read_torch
from sae.interop.rewriting import assembled, bias_without_shift, check_finite, provenance


def read(path: str | Path) -> Autoencoder:
    """The dictionary of a trainer's folder (its ae.pt), or of one checkpoint. Raises FormatError naming the file and what is wrong with it."""
    weights = Path(path)
    weights = weights if weights.suffix in (".pt", ".pth") else weights / WEIGHTS
    config_path = _config_of(weights)
    raw = read_json(config_path)
    said = stated(raw, config_path)
    found = read_torch(weights)
    notes, norm_factor = list(said.notes), 1.0
    if "ae" in found:
        found, norm_factor, note = _of_backup(found, weights)
        notes.append(note)
    tensors = Tensors(found, weights)
    parameters, activation, told = _parameters(tensors, said, is_checkpoint=weights.parent.name == "checkpoints")
    extras = _extras(tensors, said, len(parameters["b_enc"]))
    tensors.finish()
    _rescale_(parameters, norm_factor)
    if extras.get("threshold", -1.0) > 0:
        extras["threshold"] *= norm_factor
    if said.dict_class == "AutoEncoder":
        told += _unit_atoms_(parameters)
    if said.transcoder and said.layout.subtracts:
        told += _without_shift_(parameters)
    check_finite(parameters, weights)
    d_in, d_sae = parameters["W_enc"].shape
    config = AutoencoderConfig(
        d_in=d_in,
        d_sae=d_sae,
        activation=activation,
        d_out=d_in if said.transcoder else None,
        apply_b_dec_to_input=said.layout.subtracts and not said.transcoder,
    )
    origin = provenance(NAME, raw, [*tensors.notes(), *notes, *told], **said.known)
    origin["foreign"] |= extras
    return assembled(config, parameters, origin)


def _config_of(weights: Path) -> Path:
    """config.json beside the weights, or beside the folder `checkpoints` that they are in."""
    folder = weights.parent.parent if weights.parent.name == "checkpoints" else weights.parent
    if not (folder / CONFIG).exists():
        raise FormatError(f"{folder / CONFIG} does not exist: it says of which class {weights} is, and two have the same tensors")
    return folder / CONFIG


def _of_backup(found: dict[str, Any], path: Path) -> tuple[dict[str, Any], float, str]:
    """(the weights, what their biases are to be multiplied by, a note) of a file that was saved while training went on."""
    check_keys(found, known=BACKUP, required={"ae", "norm_factor"}, path=path)
    if not isinstance(found["ae"], dict):
        raise FormatError(f"{path}: ae must hold the weights by name, it is a {type(found['ae']).__name__}")
    factor = 1.0 if found["norm_factor"] is None else Tensors(found, path).scalar("norm_factor")
    if factor <= 0:
        raise FormatError(f"{path}: norm_factor must be positive, got {factor}")
    note = f"saved at step {str(found.get('step'))[:20]} of a training on activations / {factor}: biases and threshold are multiplied by that factor"
    return found["ae"], factor, note


def _parameters(tensors: Tensors, said: Stated, *, is_checkpoint: bool) -> tuple[dict[str, Tensor], Activation, list[str]]:
    """(parameters by our names, activation, notes)."""
    layout, (encoder, decoder) = said.layout, said.layout.maps
    own = {"GatedAutoEncoder": ["r_mag", "mag_bias"], "JumpReluAutoEncoder": ["threshold"]}.get(said.dict_class, [])
    own = ["threshold", "k"] if said.dict_class in THRESHOLDED else own
    tensors.require(encoder, decoder, layout.b_enc, layout.b_dec, *own)
    d_in, d_sae = said.d_in, said.d_sae
    W_enc = tensors.take(encoder, d_sae, d_in).T if layout.linear else tensors.take(encoder, d_in, d_sae)
    d_in, d_sae = W_enc.shape
    W_dec = tensors.take(decoder, d_in, d_sae).T if layout.linear else tensors.take(decoder, d_sae, d_in)
    parameters = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": tensors.take(layout.b_enc, d_sae), "b_dec": tensors.take(layout.b_dec, d_in)}
    notes: list[str] = []
    if said.dict_class == "GatedAutoEncoder":
        parameters |= {"r_mag": tensors.take("r_mag", d_sae), "b_mag": tensors.take("mag_bias", d_sae)}
        return parameters, Gated(), notes
    if said.dict_class == "JumpReluAutoEncoder":
        threshold = tensors.take("threshold", d_sae)
        parameters["log_threshold"] = threshold.clamp_min(0).double().log().float()
        if (n_below := int((threshold < 0).sum())) > 0:
            notes.append(f"{n_below} thresholds are below 0, where the library's ReLU makes them 0")
        bandwidth = said.trainer.get("bandwidth")
        return parameters, (JumpReLU(bandwidth=bandwidth) if isinstance(bandwidth, float) and bandwidth > 0 else JumpReLU()), notes
    if said.dict_class in ("AutoEncoder", "AutoEncoderNew"):
        return parameters, ReLU(), notes
    k = _k(tensors, said, is_checkpoint=is_checkpoint, d_sae=d_sae)
    if said.dict_class == "AutoEncoderTopK":
        return parameters, TopK(k), notes
    threshold = tensors.scalar("threshold")
    if threshold < 0:
        raise FormatError(
            f"{tensors.path}: threshold is {threshold}, it was never measured: only the {k} n largest of a batch of n rows could be kept, "
            "and a row's codes would depend on its batch. Train past threshold_start_step, or measure a threshold, and save again"
        )
    parameters["threshold"] = torch.tensor(threshold, dtype=torch.float32)
    return parameters, BatchTopK(float(k)), notes


def _k(tensors: Tensors, said: Stated, *, is_checkpoint: bool, d_sae: int) -> int:
    """k of the weights: that of the configuration too, except at a step at which k was still falling."""
    if not tensors.has("k"):
        if said.k is None or said.k > d_sae:
            raise FormatError(f"{tensors.path} has no k, and its configuration must say one of at most {d_sae}: it says {said.k}")
        return said.k
    k = tensors.scalar("k")
    if k != int(k) or not 1 <= k <= d_sae:
        raise FormatError(f"{tensors.path}: k must be a whole number in 1..{d_sae}, got {k}")
    if said.k not in (None, int(k)) and not is_checkpoint:
        raise FormatError(f"{tensors.path}: k is {int(k)}, and its configuration says {said.k}")
    return int(k)


def _extras(tensors: Tensors, said: Stated, d_sae: int) -> dict[str, Any]:
    """What the class has besides and no equation uses: Matryoshka's groups, and the threshold of TopK."""
    if said.dict_class == "AutoEncoderTopK":
        return {"threshold": tensors.scalar("threshold")} if tensors.has("threshold") else {}
    if said.dict_class != "MatryoshkaBatchTopKSAE":
        return {}
    tensors.require("group_sizes")
    tensors.ignore("group_sizes")
    groups = tensors.found["group_sizes"]
    if not isinstance(groups, Tensor) or groups.ndim != 1 or not len(groups) or groups.is_floating_point() or groups.is_complex():
        raise FormatError(f"{tensors.path}: group_sizes must be a vector of whole numbers")
    if int(groups.min()) < 1 or int(groups.sum()) != d_sae:
        raise FormatError(f"{tensors.path}: group_sizes must be positive and sum to {d_sae} latents, got {groups.tolist()[:20]}")
    return {"group_sizes": groups.tolist()}


def _rescale_(parameters: dict[str, Tensor], factor: float) -> None:
    """What `scale_biases` does: the same function of activations that are `factor` times as large."""
    if factor != 1.0:
        for name in ("b_enc", "b_dec", "b_mag", "threshold"):
            if name in parameters:
                parameters[name] *= factor
        if "log_threshold" in parameters:
            parameters["log_threshold"] = (parameters["log_threshold"].double().exp() * factor).log().float()


def _unit_atoms_(parameters: dict[str, Tensor]) -> list[str]:
    """What `load_dictionary` does to an AutoEncoder: atoms of unit norm, codes multiplied by their norms."""
    norms = torch.linalg.vector_norm(parameters["W_dec"], dim=1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return []
    norms = torch.where(norms == 0, 1.0, norms)
    parameters["W_dec"], parameters["W_enc"] = parameters["W_dec"] / norms[:, None], parameters["W_enc"] * norms
    parameters["b_enc"] = parameters["b_enc"] * norms
    return ["the atoms were scaled to unit norm, and with them the codes, as the library's own load_dictionary does for AutoEncoder"]


def _without_shift_(parameters: dict[str, Tensor]) -> list[str]:
    """The biases of an encoder that does not subtract b_dec."""
    b_enc = parameters["b_enc"]
    parameters["b_enc"] = bias_without_shift(parameters["W_enc"], b_enc, parameters["b_dec"])
    if "b_mag" in parameters:
        parameters["b_mag"] = parameters["b_mag"] + parameters["r_mag"].exp() * (parameters["b_enc"] - b_enc)
    return ["the class subtracts b_dec from the input of a transcoder, which is part of b_enc here"]
