"""sparsify (EleutherAI, eai-sparsify 1.3.3): a folder named after the module that it explains.

    cfg.json            d_in, num_latents (0: d_in * expansion_factor), k, activation, transcode, skip_connection, and options of training
    sae.safetensors     encoder.weight [d_sae, d_in]   encoder.bias [d_sae]   W_dec [d_sae, d_in]   b_dec [d_in]   (W_skip [d_in, d_in])

    z = the k largest of ReLU((x - b_dec) W_enc + b_enc)        x_hat = z W_dec + b_dec        a coder that transcodes does not subtract b_dec
    y_hat = z W_dec + b_dec + x W_skip^T                                                        skip_connection

The equations are those of `SparseCoder.encode`, `decode` and `forward`. Two kinds of older files are read as the library of their time did.
Until August 2024 there was `signed`: the k largest in size, with their signs. Until February 2025 a coder with skip_connection subtracted
b_dec too; that is rewritten to b_enc - b_dec W_enc, for a transcoder here never subtracts. Today's library ignores `signed`, and such a
dictionary is not written. GroupMax is refused: no activation here keeps one latent of each group.

The file names no site. The folder's name is the path of a module in the Hugging Face model; where that is a block, its MLP or its attention,
the module's output is a TransformerLens site (in models that normalise what the MLP gives, such as Gemma 2, TransformerLens's is the
normalised one). The input of such a module has no name there, so a transcoder's `site` is known only for a whole block.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sae.dictionaries.activations import AbsTopK, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.interop.files import Tensors, check_keys, read_json, read_safetensors, write_json, write_safetensors
from sae.interop.rewriting import assembled, bias_without_shift, encoder_bias, foreign_config, plain, provenance

__all__ = ["read", "write"]

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
OUTPUTS = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}
"""Module below a block -> the TransformerLens name of its output."""


@dataclass(frozen=True, kw_only=True)
class CoderConfig:
    """cfg.json; the defaults are the library's."""

    d_in: int
    """Width of the input and of the output."""
    activation: Literal["topk", "groupmax"] = "topk"
    """Which latents are kept."""
    expansion_factor: int = 32
    """d_sae / d_in where num_latents is 0."""
    normalize_decoder: bool = True
    """Training only: unit atoms, except in a transcoder."""
    num_latents: int = 0
    """d_sae, or 0."""
    k: int = 32
    """Active latents per row."""
    multi_topk: bool = False
    """Training only: a second loss with 4 k latents."""
    skip_connection: bool = False
    """Whether there is a W_skip."""
    transcode: bool = False
    """Whether it explains a module's output by its input."""
    signed: bool = False
    """Until August 2024: codes keep their signs."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.num_latents or self.d_in * self.expansion_factor


def read(path: str | Path) -> Autoencoder:
    """The coder in the folder `path`. Raises FormatError naming the file and what is wrong with it."""
    folder = Path(path)
    raw = read_json(folder / CONFIG)
    config = _config(raw, folder / CONFIG)
    transcoder = config.transcode or config.skip_connection
    own = _own_config(config, transcoder, folder / CONFIG)
    tensors = Tensors(read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    wanted = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if config.skip_connection else [])]
    tensors.require(*wanted)
    d_in, d_sae = config.d_in, config.d_sae
    try:
        W_enc = tensors.take("encoder.weight", d_sae, d_in).T
    except FormatError as error:
        raise FormatError(f"{error} ({CONFIG} says d_in {d_in} and {d_sae} latents)") from error
    parameters = {
        "W_enc": W_enc,
        "b_enc": tensors.take("encoder.bias", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }
    if config.skip_connection:
        parameters["W_skip"] = tensors.take("W_skip", d_in, d_in).T
    tensors.finish()
    notes = [*tensors.notes(), *_notes(raw, config)]
    if transcoder and not config.transcode:
        parameters["b_enc"] = bias_without_shift(parameters["W_enc"], parameters["b_enc"], parameters["b_dec"])
    sites, told = _sites(folder, transcoder)
    return assembled(own, parameters, provenance("sparsify", raw, [*notes, *told], **sites))


def _config(raw: dict[str, Any], path: Path) -> CoderConfig:
    names = set(CoderConfig.__dataclass_fields__)
    check_keys(raw, known=names, required={"d_in"}, path=path)
    try:
        config = from_json(CoderConfig, raw, where="cfg")
    except ConfigError as error:
        raise FormatError(f"{path} is not a sparsify configuration: {error}") from error
    if config.activation == "groupmax":
        raise FormatError(
            f"{path} has the activation groupmax, which keeps the largest latent of each of k={config.k} groups: none here does"
        )
    return config


def _own_config(config: CoderConfig, transcoder: bool, path: Path) -> AutoencoderConfig:
    try:
        return AutoencoderConfig(
            d_in=config.d_in,
            d_sae=config.d_sae,
            activation=AbsTopK(config.k) if config.signed else TopK(config.k),
            d_out=config.d_in if transcoder else None,
            skip=config.skip_connection,
            apply_b_dec_to_input=not transcoder,
        )
    except ConfigError as error:
        raise FormatError(f"{path} describes no coder: {error}") from error


def _notes(raw: dict[str, Any], config: CoderConfig) -> list[str]:
    notes = []
    if "k" not in raw:
        notes.append(f"the file says no k: it is the library's default {config.k}")
    if config.multi_topk:
        notes.append(
            f"trained with multi_topk: the library's forward then returns what 4 k latents give; here k={config.k}, as in its encode"
        )
    if config.signed:
        notes.append(
            "signed: codes keep their signs, as in the library until August 2024; today's ignores the key and reads unsigned codes"
        )
    if config.skip_connection and not config.transcode:
        notes.append("skip_connection without transcode: the coder subtracts b_dec from its input, which is part of b_enc here")
    elif "transcode" not in raw:
        notes.append("the file is older than the key transcode: a coder that explains a module's output by its input would look the same")
    return notes


def _sites(folder: Path, transcoder: bool) -> tuple[dict[str, str], list[str]]:
    """(site and target_site where the folder's name states them, notes)."""
    seeded = re.fullmatch(r"seed\d+", folder.name)
    module = folder.absolute().parent.name if seeded else folder.absolute().name
    notes = [f"one of several seeds: {folder.name}"] if seeded else []
    found = re.fullmatch(r"(?:layers|h)\.(0|[1-9]\d*)(?:\.([a-z_]+))?", module)
    if found is None or (found[2] or "") not in OUTPUTS:
        return {}, [*notes, f"the folder {module!r} is no block, MLP or attention by its name: the site is not known"]
    block, part = f"blocks.{found[1]}.", found[2] or ""
    output = block + OUTPUTS[part]
    if not transcoder:
        return {"site": output}, [*notes, f"the site is that of the folder's name {module!r}, the output of that module"]
    notes.append(f"explains the output of {module!r}, the folder's name, by the input of that module")
    return {"target_site": output, **({} if part else {"site": block + "hook_resid_pre"})}, notes


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` as a folder that sparsify loads, for the same codes and reconstructions of unscaled activations.

    Scaling is folded in, and an encoder that does not subtract b_dec gets b_enc + b_dec W_enc. Raises ConfigError for what the format
    cannot hold: any activation but TopK, a normalised input, a transcoder between two widths.
    """
    autoencoder = plain(dictionary, "sparsify")
    config = autoencoder.config
    if not isinstance(config.activation, TopK):
        raise ConfigError(
            f"activation must be TopK for sparsify, got {type(config.activation).__name__}; `saelens` holds it (sparsify.write)"
        )
    if config.d_out not in (None, config.d_in):
        raise ConfigError(f"d_out must be d_in={config.d_in} for sparsify, got {config.d_out}; `saelens` holds both (sparsify.write)")
    tensors = {
        "encoder.weight": autoencoder.W_enc.T,
        "encoder.bias": encoder_bias(autoencoder, subtracts=not autoencoder.is_transcoder),
        "W_dec": autoencoder.W_dec,
        "b_dec": autoencoder.b_dec,
        **({"W_skip": autoencoder.W_skip.T} if config.skip else {}),
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()})
    write_json(folder / CONFIG, _cfg(autoencoder, foreign_config(dictionary, "sparsify")))


def _cfg(autoencoder: Autoencoder, known: dict[str, Any]) -> dict[str, Any]:
    """cfg.json: what was read goes back, and what the parameters say is said."""
    config, options = autoencoder.config, dict(known)
    if options.get("num_latents", 0) or options.get("expansion_factor", 32) * config.d_in != config.d_sae:
        options["num_latents"] = config.d_sae
    if "normalize_decoder" not in options:
        norms = torch.linalg.vector_norm(autoencoder.W_dec.detach(), dim=1)
        options["normalize_decoder"] = bool((norms - 1).abs().max() < 1e-3)
    determined = {"k": config.activation.k, "transcode": autoencoder.is_transcoder, "skip_connection": config.skip, "d_in": config.d_in}
    if "signed" in options:
        determined["signed"] = False
    defaults = {"activation": "topk", "expansion_factor": 32, "num_latents": 0, "multi_topk": False}
    return defaults | options | determined | {"activation": "topk"}
