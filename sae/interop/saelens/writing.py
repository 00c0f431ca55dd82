"""Write what SAELens loads: the inference form, in float32; the format is described in the package's text."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.activations import AbsTopK, BatchTopK, Gated, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError
from sae.interop.files import write_json, write_safetensors
from sae.interop.rewriting import foreign_config
from sae.interop.saelens.config import CONFIG, NORMALISATIONS, SCALER, VERSION, WEIGHTS, header

ARCHITECTURES: dict[type, str] = {
    ReLU: "standard", TopK: "topk", AbsTopK: "abstopk", BatchTopK: "jumprelu", JumpReLU: "jumprelu", Gated: "gated",
}  # fmt: skip
"""Activation -> architecture of an autoencoder."""
TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
"""Architecture of an autoencoder -> that of a transcoder."""
OF_ONE_DICTIONARY = (SCALER, "activation_whitening.safetensors", "sparsity.safetensors")
"""Files that SAELens puts beside the weights, and that belong to these weights alone."""
Parts = tuple[dict[str, Any], dict[str, Tensor]]
"""Keys of the configuration, and tensors."""


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write a folder that SAELens' `SAE.load_from_disk` reads, with its inference form of the dictionary.

    A scaling other than the identity is folded into the weights first: the function is the same, codes are then in units of the activations.
    A dictionary of z is written with reshape_activations hook_z, as SAELens hands over the heads of z apart. Metadata that were read from this
    format go back as they were; otherwise they are the site and the model of `provenance`. Files of the same names in an existing folder are
    replaced. Raises ConfigError for what the format does not have: codebooks, signed and orthogonal pursuit, and transcoders that keep other
    latents than ReLU, JumpReLU and BatchTopK do.
    """
    same_units = dictionary.scaling.is_identity
    folded = dictionary if same_units and not _scales_target(dictionary) else dictionary.fold()
    if isinstance(folded, Autoencoder):
        own, tensors = _autoencoder(folded)
    elif isinstance(folded, MatchingPursuit):
        own, tensors = _pursuit(folded)
    else:
        raise ConfigError(
            f"dictionary must be an Autoencoder or a MatchingPursuit, got a {type(dictionary).__name__}: SAELens has no such form, `sae` holds it"
        )
    base = {"d_in": dictionary.d_in, "d_sae": dictionary.d_sae, "dtype": "float32", "device": "cpu"}
    base |= _inputs(folded, same_units)
    folder = _target(Path(path))
    plain = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, plain)
    write_json(folder / CONFIG, base | own)


def _target(folder: Path) -> Path:
    """The folder, made. Raises ConfigError where files of another dictionary would be taken for this one's."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"path must be a folder for SAELens, {folder} is a file")
    stale = [name for name in OF_ONE_DICTIONARY if (folder / name).exists()]
    if stale:
        raise ConfigError(f"path must be a new folder, {folder} holds {', '.join(stale)} of another dictionary")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _scales_target(dictionary: Dictionary) -> bool:
    return isinstance(dictionary, Autoencoder) and not dictionary.target_scaling.is_identity


def _autoencoder(folded: Autoencoder) -> Parts:
    activation = folded.config.activation
    architecture = ARCHITECTURES[type(activation)]
    tensors = {"W_enc": folded.W_enc, "b_enc": folded.b_enc, "W_dec": folded.W_dec, "b_dec": folded.b_dec}
    own: dict[str, Any] = {"architecture": architecture, "apply_b_dec_to_input": folded.config.apply_b_dec_to_input}
    if isinstance(activation, (TopK, AbsTopK)):
        own |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(activation, BatchTopK):
        tensors["threshold"] = folded.threshold.expand(folded.d_sae)
    elif isinstance(activation, JumpReLU):
        tensors["threshold"] = folded.log_threshold.detach().double().exp().clamp_max(torch.finfo(torch.float32).max)
    elif isinstance(activation, Gated):
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": folded.b_mag, "r_mag": folded.r_mag}
    return (own | _transcoding(folded, architecture, tensors), tensors) if folded.is_transcoder else (own, tensors)


def _transcoding(folded: Autoencoder, architecture: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a transcoder's configuration has besides; its linear path goes into `tensors`."""
    if architecture not in TRANSCODERS:
        kind = type(folded.config.activation).__name__
        advice = " and `sparsify` where input and output are equally wide" if kind == "TopK" else ""
        raise ConfigError(
            f"dictionary must have ReLU, JumpReLU or BatchTopK, got a transcoder with {kind}: SAELens has no such form, `sae` holds it{advice}"
        )
    if folded.normalisation != "none":
        raise ConfigError(
            f"normalisation must be 'none', got a transcoder with {folded.normalisation!r}, which SAELens does not undo; `sae` holds it"
        )
    name = TRANSCODERS[architecture]
    if folded.config.skip:
        tensors["W_skip"] = folded.W_skip.T
        name = name.replace("transcoder", "skip_transcoder")
    return {"architecture": name, "apply_b_dec_to_input": False, "d_out": folded.W_dec.shape[1]}


def _pursuit(folded: MatchingPursuit) -> Parts:
    config = folded.config
    for wrong, what in ((config.selection != "positive", "signed selection"), (config.orthogonal, "orthogonal refitting")):
        if wrong:
            raise ConfigError(
                f"dictionary must select by the largest positive correlation, got a pursuit with {what}: SAELens has no such form, `sae` holds it"
            )
    own: dict[str, Any] = {"architecture": "matching_pursuit", "apply_b_dec_to_input": True, "max_iterations": config.k}
    own |= {"residual_threshold": config.tolerance, "stop_on_duplicate_support": config.stop_on_repeat}
    return own, {"W_dec": folded.W_dec, "b_dec": folded.b_dec}


def _inputs(folded: Dictionary, same_units: bool) -> dict[str, Any]:
    """How activations are prepared, and the metadata."""
    names = {how: name for name, how in NORMALISATIONS.items() if name != "expected_average_only_in"}
    keys: dict[str, Any] = {"normalize_activations": names[folded.normalisation], "reshape_activations": "none"}
    config = foreign_config(folded, "saelens")
    if not config:
        if str(folded.provenance.get("site")).endswith(".attn.hook_z") and not (isinstance(folded, Autoencoder) and folded.is_transcoder):
            keys["reshape_activations"] = "hook_z"
        return {**keys, "metadata": _metadata(folded.provenance)}
    before = header(config, Path("provenance") / CONFIG)
    if same_units and before.settings.get("normalize_activations") == "expected_average_only_in":
        keys["normalize_activations"] = "expected_average_only_in"
    keys["reshape_activations"] = before.settings.get("reshape_activations", "none")
    current = before.notes == ()
    return {**keys, "metadata": before.metadata if current else before.metadata | {"sae_lens_version": VERSION}}


def _metadata(provenance: dict[str, Any]) -> dict[str, Any]:
    """Metadata for a dictionary that did not come from SAELens."""
    training = provenance.get("training")
    feed = training.get("feed") if isinstance(training, dict) else None
    target = provenance.get("target_site") or (feed.get("target_site") if isinstance(feed, dict) else None)
    known = {"model_name": provenance.get("model"), "hook_name": provenance.get("site"), "hook_name_out": target}
    stated = {name: value for name, value in known.items() if isinstance(value, str)}
    return {"sae_lens_version": VERSION, "sae_lens_training_version": None, **stated}
