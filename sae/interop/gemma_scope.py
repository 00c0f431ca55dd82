"""Gemma Scope (Google DeepMind; Lieberum et al. 2024, 2408.05147): JumpReLU autoencoders and transcoders.

    1  (Gemma 2)  params.npz                              W_enc [d_in, d_sae]  W_dec [d_sae, d_out]  b_enc  b_dec  threshold [d_sae]
    2  (Gemma 3)  config.json and params.safetensors      the same names with a small w; affine_skip_connection [d_in, d_out] in some transcoders

    pi = x W_enc + b_enc        z = ReLU(pi) H(pi - threshold)        x_hat = z W_dec + b_dec (+ x affine_skip_connection)

b_dec is not subtracted from the input. Some files of version 1 have the small names too. A threshold of 0 or less leaves exactly ReLU(pi): it
is held as threshold 0, and written back as 0. A threshold is held as its logarithm, rounded to float32: a threshold that is written
may differ from the one read in the last bit, and reading it again gives the same logarithm.

Version 1 says neither site nor kind. Where a part of the path is a published repository's name (gemma-scope-2b-pt-res) and another one
layer_N, they are taken from there; else a file with one width is an autoencoder, and one with two is a transcoder. SAEs of embeddings act on
rows of the embedding table; Gemma multiplies those by sqrt(d_in), so for TransformerLens's hook_embed they need Scaling(0, 1 / sqrt(d_in)). (SAELens
scales W_enc and W_dec instead, and leaves b_dec as it is.) Crosscoders and cross-layer transcoders are refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.activations import BatchTopK, JumpReLU, ReLU
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.interop.files import Tensors, check_keys, read_json, read_npz, read_safetensors, write_json, write_npz, write_safetensors
from sae.interop.rewriting import assembled, encoder_bias, foreign_config, plain, provenance

__all__ = ["read", "write"]

CONFIG, WEIGHTS, ARRAYS = "config.json", "params.safetensors", "params.npz"
SKIP = "affine_skip_connection"
OUTPUTS = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
"""Version 1: end of the repository's name -> the TransformerLens name of the activation."""
HOOKS = {
    "output": "hook_resid_post",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "self_attn.o_proj.input": "attn.hook_z",
}
"""Version 2: hook point below model.layers.N -> TransformerLens name; what Gemma's MLP gives is normalised before it is hook_mlp_out."""


@dataclass(frozen=True, kw_only=True)
class ScopeConfig:
    """config.json of version 2."""

    architecture: Literal["jump_relu"]
    """The activation."""
    hf_hook_point_in: str | None = None
    """Module of the Hugging Face model that is read, and which side of it."""
    hf_hook_point_out: str | None = None
    """The one that is explained."""
    width: int | None = None
    """Number of latents."""
    model_name: str | None = None
    """The language model."""
    l0: float | None = None
    """Active latents per row that training aimed at."""
    affine_connection: bool | None = None
    """Whether there is an affine_skip_connection."""
    type: Literal["sae", "transcoder", "clt", "crosscoder"] | None = None
    """What it explains."""


def read(path: str | Path) -> Autoencoder:
    """The dictionary in a folder or in an .npz file. Raises FormatError naming the file and what is wrong with it."""
    file = _file(Path(path))
    if file.suffix == ".npz":
        tensors = Tensors(read_npz(file), file)
        places, notes, kind = _of_path(file)
        return _built(tensors, {}, places, notes, kind)
    tensors = Tensors(read_safetensors(file), file)
    beside = file.with_name(CONFIG)
    if not beside.exists():
        return _built(tensors, {}, {}, ["there is no config.json: kind and skip connection are those of the tensors"], None)
    raw = read_json(beside)
    config = _config(raw, beside)
    if config.affine_connection not in (None, tensors.has(SKIP)):
        has = "has one" if tensors.has(SKIP) else "has none"
        raise FormatError(f"{beside} says affine_connection {config.affine_connection}, and {file} {has}")
    places, notes = _of_hooks(config)
    dictionary = _built(tensors, raw, places, notes, _kind(config))
    if config.width not in (None, dictionary.d_sae):
        raise FormatError(f"{beside} says width {config.width}, and {file} has {dictionary.d_sae} latents")
    return dictionary


def _file(path: Path) -> Path:
    """The file of weights that `path` is or holds."""
    if not path.is_dir():
        if path.suffix not in (".npz", ".safetensors"):
            raise FormatError(f"{path} must be a folder, an .npz file or {WEIGHTS} (gemma_scope)")
        return _single_layer(path)
    arrays = [path / ARRAYS] if (path / ARRAYS).exists() else sorted(path.glob("*.npz"))
    found = [*arrays, *([path / WEIGHTS] if (path / WEIGHTS).exists() else [])]
    for part in sorted(path.glob("params_layer_*"))[:1]:
        _single_layer(part)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "neither"
        raise FormatError(f"{path} must hold {ARRAYS} or {WEIGHTS}, one of them; it holds {names} (gemma_scope)")
    return found[0]


def _single_layer(path: Path) -> Path:
    if path.name.startswith("params_layer_"):
        raise FormatError(f"{path} is a part of a crosscoder or cross-layer transcoder of Gemma Scope 2, which no dictionary here can hold")
    return path


def _config(raw: dict[str, Any], path: Path) -> ScopeConfig:
    check_keys(raw, known=set(ScopeConfig.__dataclass_fields__), required={"architecture"}, path=path)
    try:
        config = from_json(ScopeConfig, raw, where="config")
    except ConfigError as error:
        raise FormatError(f"{path} is not a configuration of Gemma Scope 2: {error}") from error
    if config.type in ("clt", "crosscoder") or "{" in f"{config.hf_hook_point_in}{config.hf_hook_point_out}":
        raise FormatError(f"{path} describes a crosscoder or cross-layer transcoder of Gemma Scope 2, which no dictionary here can hold")
    if config.type == "sae" and config.hf_hook_point_out not in (None, config.hf_hook_point_in):
        raise FormatError(
            f"{path} says type 'sae', and that it reads {config.hf_hook_point_in!r} and explains {config.hf_hook_point_out!r}, which a "
            "transcoder does"
        )
    return config


def _kind(config: ScopeConfig) -> str | None:
    if config.type is None and config.hf_hook_point_out is not None:
        return "sae" if config.hf_hook_point_out == config.hf_hook_point_in else "transcoder"
    return config.type


def _built(tensors: Tensors, raw: dict[str, Any], places: dict[str, str], notes: list[str], kind: str | None) -> Autoencoder:
    """The dictionary of these tensors; a transcoder if `kind` says so, and where it says nothing, by a skip connection or two widths."""
    W_enc, W_dec = (_spelled(tensors, name) for name in ("W_enc", "W_dec"))
    tensors.require(W_enc, W_dec, "b_enc", "b_dec", "threshold")
    if getattr(tensors.found[W_dec], "ndim", 2) == 3:
        raise FormatError(f"{tensors.path}: {W_dec} has an axis of layers: a cross-layer transcoder, which no dictionary here can hold")
    b_enc, b_dec = tensors.take("b_enc", None), tensors.take("b_dec", None)
    d_sae, d_out = len(b_enc), len(b_dec)
    parameters = {"b_enc": b_enc, "b_dec": b_dec, "W_dec": tensors.take(W_dec, d_sae, d_out)}
    parameters["W_enc"] = tensors.take(W_enc, d_out if kind == "sae" else None, d_sae)
    d_in, skip = len(parameters["W_enc"]), tensors.has(SKIP) and kind != "sae"
    if skip:
        parameters["W_skip"] = tensors.take(SKIP, d_in, d_out)
    threshold = tensors.take("threshold", d_sae)
    tensors.finish()
    parameters["log_threshold"] = threshold.double().clamp_min(0).log().float()
    n_open = int((threshold <= 0).sum())
    open_ones = [f"{n_open:,} of {d_sae:,} thresholds are 0 or less, which is ReLU: they are held as 0"] if n_open else []
    transcoder = kind == "transcoder" or skip or d_in != d_out
    config = AutoencoderConfig(
        d_in=d_in, d_sae=d_sae, activation=JumpReLU(), d_out=d_out if transcoder else None, skip=skip, apply_b_dec_to_input=False
    )
    return assembled(config, parameters, provenance("gemma_scope", raw, [*tensors.notes(), *open_ones, *notes], **places))


def _spelled(tensors: Tensors, name: str) -> str:
    small = name.replace("W_", "w_")
    return small if tensors.has(small) and not tensors.has(name) else name


def _of_path(path: Path) -> tuple[dict[str, str], list[str], str | None]:
    """(site, target_site and model; notes; kind), as far as the path of a file of version 1 states them."""
    parts = path.absolute().parts[:-1]
    named = next(
        (found for part in parts if (found := re.fullmatch(r"(?:.*--)?gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)", part))),
        None,
    )
    layers = {found[1] for part in parts if (found := re.fullmatch(r"layer_(0|[1-9]\d*)", part))}
    if named is None:
        return {}, ["the path names no repository of Gemma Scope: kind, model and site are not known"], None
    places = {"model": f"google/gemma-2-{named[1]}{'-it' if named[2] == 'it' else ''}"}
    told = f"model, kind and site are those of the path, {named[0]}"
    if "embedding" in parts:
        scaling = (
            "rows of the embedding table; TransformerLens's hook_embed is these times sqrt(d_in), and needs Scaling(0, 1 / sqrt(d_in))"
        )
        return places, [told, f"an SAE of embeddings: it reads {scaling}"], "sae"
    block = f"blocks.{next(iter(layers))}." if len(layers) == 1 else None
    if named[3] == "transcoders":
        read_from = "it reads what enters the MLP, after the norm with its weights: no site has that name"
        return {**places, **({"target_site": block + "hook_mlp_out"} if block else {})}, [told, read_from], "transcoder"
    return {**places, **({"site": block + OUTPUTS[named[3]]} if block else {})}, [told], "sae"


def _of_hooks(config: ScopeConfig) -> tuple[dict[str, str], list[str]]:
    """(site, target_site and model; notes), from the configuration of version 2."""
    places, notes = {} if config.model_name is None else {"model": config.model_name}, []
    hooks = {"site": config.hf_hook_point_in}
    if _kind(config) == "transcoder":
        hooks["target_site"] = config.hf_hook_point_out
    for name, hook in hooks.items():
        found = re.fullmatch(r"model\.layers\.(0|[1-9]\d*)\.(.+)", hook or "")
        if found is not None and found[2] in HOOKS:
            places[name] = f"blocks.{found[1]}.{HOOKS[found[2]]}"
        elif hook is not None:
            notes.append(f"{'reads' if name == 'site' else 'explains'} {hook}, for which there is no site")
    return places, notes


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` to a folder (version 2), or to a file `path` that ends in .npz (version 1), for the same codes and reconstructions.

    Scaling is folded in; where b_dec is subtracted from the input, b_enc - b_dec W_enc is written; ReLU has threshold 0, BatchTopK its one
    threshold. Raises ConfigError for what the format cannot hold: other activations, normalised inputs, and in version 1 a skip connection,
    or a transcoder with one width under a path that does not say so.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise ConfigError(f"path must be a folder or end in .npz for gemma_scope, got {path} (gemma_scope.write)")
    autoencoder = plain(dictionary, "gemma_scope")
    config = autoencoder.config
    tensors = {
        "W_enc": autoencoder.W_enc, "b_enc": encoder_bias(autoencoder, subtracts=False), "threshold": _threshold(autoencoder),
        "W_dec": autoencoder.W_dec, "b_dec": autoencoder.b_dec, **({SKIP: autoencoder.W_skip} if config.skip else {}),
    }  # fmt: skip
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    if path.suffix != ".npz":
        if (path / ARRAYS).exists():
            raise ConfigError(f"path must not hold another dictionary, {path} has {ARRAYS} (gemma_scope.write)")
        path.mkdir(parents=True, exist_ok=True)
        write_safetensors(path / WEIGHTS, {name.replace("W_", "w_"): tensor for name, tensor in tensors.items()})
        write_json(path / CONFIG, _described(autoencoder, foreign_config(dictionary, "gemma_scope")))
        return
    if config.skip:
        raise ConfigError(
            f"path must be a folder for a transcoder with a skip connection, got {path}: an .npz has none (gemma_scope.write)"
        )
    if config.d_out == config.d_in and _of_path(path)[2] != "transcoder":
        raise ConfigError(
            f"path must be a folder for a transcoder with d_out = d_in = {config.d_in}, got {path}: an .npz does not say that it is one "
            "(gemma_scope.write)"
        )
    write_npz(path, tensors)


@torch.no_grad()
def _threshold(autoencoder: Autoencoder) -> Float[Tensor, "d_sae"]:
    """The threshold of every latent."""
    activation = autoencoder.config.activation
    if isinstance(activation, ReLU):
        return torch.zeros_like(autoencoder.b_enc)
    if isinstance(activation, JumpReLU):
        threshold = autoencoder.log_threshold.double().exp().float()
    elif isinstance(activation, BatchTopK) and float(autoencoder.threshold) >= 0:
        threshold = autoencoder.threshold.expand_as(autoencoder.b_enc)
    else:
        raise ConfigError(
            f"activation must be JumpReLU, ReLU or BatchTopK with a threshold of at least 0 for gemma_scope, got {activation}; `saelens` holds "
            "others (gemma_scope.write)"
        )
    if not bool(torch.isfinite(threshold).all()):
        raise ConfigError("log_threshold must give finite thresholds for gemma_scope (gemma_scope.write)")
    return threshold


def _described(autoencoder: Autoencoder, known: dict[str, Any]) -> dict[str, Any]:
    """config.json of version 2: what was read goes back, what is known of site and model is said, and what the parameters say."""
    origin, modules = autoencoder.provenance, {site: hook for hook, site in HOOKS.items()}
    hooks: dict[str, Any] = {}
    for key, name in (("hf_hook_point_in", "site"), ("hf_hook_point_out", "target_site" if autoencoder.is_transcoder else "site")):
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", str(origin.get(name)))
        if found is not None and found[2] in modules:
            hooks[key] = f"model.layers.{found[1]}.{modules[found[2]]}"
    if isinstance(origin.get("model"), str):
        hooks["model_name"] = origin["model"]
    determined = {
        "width": autoencoder.d_sae, "architecture": "jump_relu", "affine_connection": autoencoder.config.skip,
        "type": "transcoder" if autoencoder.is_transcoder else "sae",
    }  # fmt: skip
    return hooks | known | determined
