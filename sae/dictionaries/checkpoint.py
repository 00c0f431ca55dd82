"""A dictionary on disk: a folder that describes itself.

    config.json           {"format": 1, "kind": "Autoencoder", "config": {...}, "scale": s, "digest": "..."}; a transcoder also "target_scale"
    weights.safetensors   W_dec [d_sae, d_in], b_dec [d_in], scaling_mean [d_in], and what else the kind has
    provenance.json       where it came from: site, model and store digests, training configuration

The folder appears whole or not at all. Loading is strict: an unknown key, a missing or unexpected tensor, a wrong shape or changed bytes
are errors that name the file and the thing.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codebook import Codebook, CodebookConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import atomic_folder, load_tensors, read_json, save_tensors, write_json

FORMAT = 1
KINDS: dict[str, tuple[type[Dictionary], type]] = {
    "Autoencoder": (Autoencoder, AutoencoderConfig),
    "MatchingPursuit": (MatchingPursuit, PursuitConfig),
    "Codebook": (Codebook, CodebookConfig),
}


def save_dictionary(dictionary: Dictionary, folder: str | Path) -> None:
    """Write `dictionary` to `folder`, atomically; loading it back gives bit-equal parameters and the same digest."""
    with atomic_folder(folder) as temporary:
        write_dictionary(dictionary, temporary)


def write_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write the three files into an existing folder that belongs to something larger."""
    head = {
        "format": FORMAT,
        "kind": type(dictionary).__name__,
        "config": to_json(dictionary.config),
        **dictionary.scales,
        "digest": dictionary.digest,
    }
    write_json(folder / "config.json", head)
    save_tensors(folder / "weights.safetensors", dictionary.state_dict())
    write_json(folder / "provenance.json", to_json(dictionary.provenance))


def load_dictionary(folder: str | Path) -> Dictionary:
    """The dictionary saved in `folder`, on the CPU. Raises FormatError naming what is damaged, missing, unexpected or of another format."""
    folder = Path(folder)
    path = folder / "config.json"
    head = _head(path)
    dictionary_class, config_class = KINDS[head["kind"]]
    tensors, provenance = load_tensors(folder / "weights.safetensors"), read_json(folder / "provenance.json")
    try:
        config = from_json(config_class, head["config"], where="config")
        _check_widths(folder / "weights.safetensors", tensors, config)
        dictionary = dictionary_class(config, provenance=provenance, **_scalings(config, head))
    except ConfigError as error:
        raise FormatError(f"{path} does not describe a {head['kind']}: {error}") from error
    _check_tensors(folder / "weights.safetensors", tensors, dictionary.state_dict())
    dictionary.to(tensors["W_dec"].dtype)
    dictionary.load_state_dict(tensors)
    if dictionary.digest != head["digest"]:
        raise FormatError(f"{folder} is damaged: its weights digest to {dictionary.digest[:12]}, not {str(head['digest'])[:12]}")
    return dictionary


def _check_widths(path: Path, tensors: dict[str, Tensor], config: Any) -> None:
    """Raises FormatError where the configuration's widths are not those of the tensors: nothing is made because a file claims to be large."""
    d_out = getattr(config, "d_out", None) or config.d_in
    for name, shape in (("W_dec", [config.d_sae, d_out]), ("scaling_mean", [config.d_in])):
        if name not in tensors:
            raise FormatError(f"{path} lacks the tensor {name!r}")
        if list(tensors[name].shape) != shape:
            raise FormatError(f"{path}: {name} must have shape {shape}, got {list(tensors[name].shape)}")


def _scalings(config: Any, head: dict[str, Any]) -> dict[str, Scaling]:
    """The scalings by argument name, with means still to be filled in."""
    scalings = {"scaling": Scaling(torch.zeros(config.d_in), from_json(float, head["scale"], where="scale"))}
    if "target_scale" in head:
        scale = from_json(float, head["target_scale"], where="target_scale")
        scalings["target_scaling"] = Scaling(torch.zeros(config.d_out or config.d_in), scale)
    return scalings


def _head(path: Path) -> dict[str, Any]:
    head = read_json(path)
    keys = {"format", "kind", "config", "scale", "digest"}
    if isinstance(head, dict) and "target_scale" in head:
        keys.add("target_scale")
    if not isinstance(head, dict) or set(head) != keys:
        found = sorted(set(head) ^ keys) if isinstance(head, dict) else [type(head).__name__]
        raise FormatError(f"{path} must have exactly the keys {sorted(keys)}; missing or unknown: {found}")
    if head["format"] != FORMAT:
        raise FormatError(f"{path} has format {head['format']!r}, this version reads {FORMAT}")
    if not isinstance(head["kind"], str) or head["kind"] not in KINDS:
        raise FormatError(f"{path} has kind {head['kind']!r}, allowed: {sorted(KINDS)}")
    return head


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in sorted(set(found) | set(expected)):
        if name not in expected:
            raise FormatError(f"{path} has an unexpected tensor {name!r}; expected {sorted(expected)}")
        if name not in found:
            raise FormatError(f"{path} lacks the tensor {name!r}")
        if found[name].shape != expected[name].shape:
            raise FormatError(f"{path}: {name} must have shape {list(expected[name].shape)}, got {list(found[name].shape)}")
    dtypes = sorted({str(tensor.dtype) for tensor in found.values()})
    if len(dtypes) > 1 or not found["W_dec"].is_floating_point():
        raise FormatError(f"{path} must hold tensors of one floating dtype, got {dtypes}")
