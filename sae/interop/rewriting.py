"""The same function with other parameters: what a format cannot say in one way, said in another.

    z = activation((x - b_dec) W_enc + b_enc) = activation(x W_enc + b_enc'),        b_enc' = b_enc - b_dec W_enc

The sums are made in float64 and rounded once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError

__all__ = [
    "assembled",
    "bias_without_shift",
    "check_finite",
    "encoder_bias",
    "foreign_config",
    "kept_threshold",
    "made_folder",
    "plain",
    "provenance",
]


@torch.no_grad()
def assembled(config: AutoencoderConfig, tensors: Mapping[str, Tensor], origin: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder of these parameters, without any scaling; `origin` is its provenance. All parameters must be among `tensors`."""
    dictionary = Autoencoder(config, provenance=origin)
    own = dict(dictionary.named_parameters()) | {name: buffer for name, buffer in dictionary.named_buffers() if name == "threshold"}
    assert own.keys() == tensors.keys(), f"{sorted(own)} are not {sorted(tensors)}"
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
    return dictionary.eval()


def plain(dictionary: Dictionary, title: str, *, normalisations: Sequence[str] = ("none",)) -> Autoencoder:
    """The autoencoder with its scaling folded in. Raises ConfigError for another kind of dictionary, and for a normalisation of its input
    that the format called `title` does not have.
    """
    if not isinstance(dictionary, Autoencoder):
        raise ConfigError(
            f"dictionary must be an Autoencoder for {title}, got a {type(dictionary).__name__}: the format has an encoder of one layer; "
            "`sae` holds every dictionary, `saelens` also matching pursuit"
        )
    if dictionary.config.normalisation not in normalisations:
        raise ConfigError(
            f"dictionary must have normalisation {' or '.join(map(repr, normalisations))} for {title}, "
            f"got {dictionary.config.normalisation!r}; `saelens` holds it"
        )
    return dictionary if dictionary.scaling.is_identity and dictionary.target_scaling.is_identity else dictionary.fold()


@torch.no_grad()
def bias_without_shift(
    W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, "d_sae"], b_dec: Float[Tensor, "d_in"]
) -> Float[Tensor, "d_sae"]:
    """b_enc - b_dec W_enc: the bias under which x W_enc gives what (x - b_dec) W_enc gave."""
    return (b_enc.double() - b_dec.double() @ W_enc.double()).float()


def encoder_bias(autoencoder: Autoencoder, *, subtracts: bool) -> Float[Tensor, "d_sae"]:
    """The bias that gives the same codes in a format whose encoder `subtracts` b_dec from its input, or does not."""
    own = autoencoder.config.apply_b_dec_to_input and not autoencoder.is_transcoder
    if own == subtracts:
        return autoencoder.b_enc.detach()
    return bias_without_shift(autoencoder.W_enc, autoencoder.b_enc, autoencoder.b_dec if own else -autoencoder.b_dec)


def kept_threshold(autoencoder: Autoencoder, format: str) -> Float[Tensor, ""]:
    """BatchTopK's threshold. Raises ConfigError for a negative one, which no rule of a row has."""
    if not float(autoencoder.threshold) >= 0:
        raise ConfigError(f"threshold must be at least 0 for {format}, got {float(autoencoder.threshold)} (BatchTopK)")
    return autoencoder.threshold.detach()


def check_finite(parameters: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises FormatError where what a file says to multiply or divide by has made a parameter infinite; a log_threshold of -Inf is zero."""
    for name, parameter in parameters.items():
        zero = torch.isneginf(parameter) if name == "log_threshold" else False
        if not bool((torch.isfinite(parameter) | zero).all()):
            raise FormatError(f"{path}: {name} is not finite once the factors that the file states are folded in")


def made_folder(path: str | Path, format: str) -> Path:
    """The folder `path`, made where it does not exist. Raises ConfigError for a file."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"path must be a folder for {format}, {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def provenance(format: str, config: Mapping[str, Any], notes: Sequence[str], **known: str | None) -> dict[str, Any]:
    """What a reader says of where a dictionary comes from; `known` are site, target_site and model, where a file states them."""
    origin: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    return origin | {"foreign": {"format": format, "config": dict(config), "notes": list(notes)}}


def foreign_config(dictionary: Dictionary, format: str) -> dict[str, Any]:
    """The configuration that this dictionary had in a file of the same format; empty for one from elsewhere."""
    foreign = dictionary.provenance.get("foreign")
    return dict(foreign.get("config", {})) if isinstance(foreign, dict) and foreign.get("format") == format else {}
