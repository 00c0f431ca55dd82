"""llamascopium (OpenMOSS; 2.0.0b34), until 2026 lm-saes: the files of Llama Scope's successor.

    config.json                   sae_type "sae", d_model, expansion_factor, act_fn, norm_activation, hook_point_in, hook_point_out, ...
    sae_weights.safetensors       W_E [d, d_sae]   b_E [d_sae]   W_D [d_sae, d]   b_D [d]   activation_function.log_jumprelu_threshold [d_sae]
    (or .pt)                      dataset_average_activation_norm.{hook}: one number each, uninitialised where it is not used

    x = acts s_in,  f = activation(g (x W_E + b_E)) / g,  y = (f W_D + b_D) / s_out        s = sqrt(d) / norm of the hook ("dataset-wise")
    g_j = |W_D_j| with sparsity_include_decoder_norm, else 1                               s = sqrt(d) / |acts| of each row ("token-wise")
                                                                                           s = 1: folded into the weights before ("inference")

The equations are those of `SparseAutoEncoder.encode` and `decode` between `normalize_activations` and `denormalize_activations`. g changes nothing in
a ReLU; a JumpReLU's thresholds are divided by g; a TopK ranks by it, so its atoms are scaled to unit norm and its codes are g f here. Mean
norms are the dictionary's scaling. Early files (2025; Llama Scope R1-Distill) have encoder.weight [d_sae, d], decoder.weight [d, d_sae] and so
on, and an option to subtract b_D from the input, which becomes b_E - b_D W_E.

Refused: what makes a row's codes depend on its batch ("batch-wise", act_fn "batchtopk"), a gated encoder, other kinds than "sae", and weights in
torch's distributed format (.dcp). What is written has no g: sparsity_include_decoder_norm is false, except for ReLU where it was true.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sae.dictionaries.activations import Activation, BatchTopK, JumpReLU, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.interop.files import Tensors, check_keys, read_json, write_json, write_safetensors
from sae.interop.openmoss import check_form, is_transcoder, normalisation_of, stated_sites, weights_in, written_sites
from sae.interop.rewriting import (
    bias_without_shift,
    check_finite,
    encoder_bias,
    foreign_config,
    kept_threshold,
    made_folder,
    plain,
    provenance,
)

__all__ = ["read", "write"]

NAME = "llamascopium"
CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
NORM, THRESHOLD = "dataset_average_activation_norm.", "activation_function.log_jumprelu_threshold"
FREE = frozenset(
    {
        "dtype", "device", "seed", "use_triton_kernel", "sparsity_threshold_for_triton_spmm_kernel", "sparsity_threshold_for_csr",
        "promote_act_fn_dtype", "circuit_tracing_mode", "jump_relu_threshold", "jumprelu_threshold_grad_scale", "force_unit_decoder_norm",
        "sae_pretrained_name_or_path", "strict_loading",
    }
)  # fmt: skip
"""Keys of this and of earlier versions that change nothing in the equations."""
OTHER_KINDS = {"crosscoder", "mixcoder", "clt", "lorsa", "molt"}


@dataclass(frozen=True, kw_only=True)
class Stated:
    """The keys of config.json that say what the dictionary computes; the defaults are the library's."""

    d_model: int
    """Width of input and output."""
    expansion_factor: float
    """d_sae is the whole part of d_model * expansion_factor."""
    hook_point_in: str
    """TransformerLens name of the input's site."""
    hook_point_out: str | None = None
    """That of the output's; the input's where absent (early files)."""
    sae_type: str = "sae"
    """Kind of dictionary."""
    act_fn: Literal["relu", "jumprelu", "topk", "batchtopk", "batchlayertopk", "layertopk"] = "relu"
    """What is kept of the pre-activations."""
    norm_activation: Literal["token-wise", "batch-wise", "dataset-wise", "inference"] = "dataset-wise"
    """What is done to activations first."""
    sparsity_include_decoder_norm: bool = True
    """Whether pre-activations are multiplied by the norms of the atoms before the activation, and codes divided by them."""
    top_k: int = 50
    """Active latents per row."""
    jumprelu_threshold_window: float = 2.0
    """Width of the kernel that trains thresholds."""
    use_decoder_bias: bool = True
    """Whether there is a b_D."""
    apply_decoder_bias_to_pre_encoder: bool = False
    """Early files: whether it is subtracted from the input."""
    use_glu_encoder: bool = False
    """Whether pre-activations are gated by a second encoder."""

    @property
    def is_transcoder(self) -> bool:
        """Whether it explains another site than it reads."""
        return is_transcoder(self)

    @property
    def hooks(self) -> tuple[str, str]:
        """Names of the input's and of the output's site."""
        return self.hook_point_in, self.hook_point_out or self.hook_point_in


def read(path: str | Path) -> Autoencoder:
    """The dictionary in the folder `path`. Raises FormatError naming the file and what is wrong with it."""
    folder = Path(path)
    raw = read_json(folder / CONFIG)
    said = _said(raw, folder / CONFIG)
    tensors = weights_in(folder)
    parameters = _parameters(tensors, said)
    scalings = _scalings(tensors, said)
    tensors.finish()
    notes = tensors.notes() + _without_norms_(parameters, said, tensors.path)
    activation: Activation = {"relu": ReLU(), "topk": TopK(said.top_k)}.get(said.act_fn) or _jump_relu(said)
    if said.act_fn == "topk" and tensors.has("encoder.weight"):
        notes.append("an early file with act_fn topk: its library kept negative values too in rows with fewer than k positive ones")
    if said.use_decoder_bias and said.apply_decoder_bias_to_pre_encoder:
        parameters["b_enc"] = bias_without_shift(parameters["W_enc"], parameters["b_enc"], parameters["b_dec"])
        notes.append("the file subtracts decoder.bias from the input, which is part of b_enc here")
    check_finite(parameters, tensors.path)
    if said.act_fn == "jumprelu" and said.norm_activation == "inference":
        notes.append(
            "norm_activation is 'inference': the scale of the activations was folded in. The library's fold leaves a JumpReLU's thresholds as they "
            "were, so it may be active elsewhere than in training; the file does not show it"
        )
    try:
        config = AutoencoderConfig(
            d_in=said.d_model,
            d_sae=len(parameters["b_enc"]),
            activation=activation,
            d_out=said.d_model if said.is_transcoder else None,
            apply_b_dec_to_input=False,
            normalisation=normalisation_of(said, folder / CONFIG),
        )
    except ConfigError as error:
        raise FormatError(f"{folder / CONFIG} describes no dictionary: {error}") from error
    sites = stated_sites(said)
    dictionary = Autoencoder(config, provenance=provenance(NAME, raw, notes, **sites), **scalings)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            parameter.copy_(parameters[name])
    return dictionary.eval()


def _said(raw: dict[str, Any], path: Path) -> Stated:
    known = set(Stated.__dataclass_fields__)
    if raw.get("sae_type", "sae") != "sae":
        kind = "another kind of dictionary" if str(raw["sae_type"]) in OTHER_KINDS else "not known"
        raise FormatError(f"{path} has sae_type {str(raw['sae_type'])[:80]!r}, {kind}: only 'sae' has a counterpart here")
    check_keys(raw, known=known, required={"d_model", "expansion_factor", "hook_point_in"}, path=path, free=FREE)
    try:
        said = from_json(Stated, {key: value for key, value in raw.items() if key in known}, where="config")
    except ConfigError as error:
        raise FormatError(f"{path} is not a configuration of llamascopium: {error}") from error
    if said.d_model < 1 or not 1 <= said.d_model * said.expansion_factor < 2**31:
        raise FormatError(
            f"{path}: d_model must be at least 1 and times expansion_factor a number of latents, got {said.d_model} and {said.expansion_factor}"
        )
    if said.use_glu_encoder:
        raise FormatError(f"{path} has use_glu_encoder: pre-activations gated by a second encoder have no counterpart here")
    for key, value in (("norm_activation", said.norm_activation), ("act_fn", said.act_fn)):
        if "batch" in value:
            raise FormatError(
                f"{path} has {key} {value!r}, which the library computes over the batch: a row's codes would depend on the other rows"
                + (", and the file has no threshold to encode one row with" if key == "act_fn" else "")
            )
    if said.act_fn == "layertopk":
        raise FormatError(f"{path} has act_fn 'layertopk', which only a cross-layer transcoder has")
    normalisation_of(said, path)
    return said


def _parameters(tensors: Tensors, said: Stated) -> dict[str, Tensor]:
    """The weights as they are in the file, by our names."""
    d, n = said.d_model, int(said.d_model * said.expansion_factor)
    early = tensors.has("encoder.weight")
    encoder, b_enc, decoder, b_dec = (
        ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias") if early else ("W_E", "b_E", "W_D", "b_D")
    )
    threshold = "log_jumprelu_threshold" if early and not tensors.has(THRESHOLD) else THRESHOLD
    jumps = said.act_fn == "jumprelu"
    tensors.require(encoder, b_enc, decoder, *([b_dec] if said.use_decoder_bias else []), *([threshold] if jumps else []))
    parameters = {
        "W_enc": tensors.take(encoder, n, d).T.contiguous() if early else tensors.take(encoder, d, n),
        "b_enc": tensors.take(b_enc, n),
        "W_dec": tensors.take(decoder, d, n).T.contiguous() if early else tensors.take(decoder, n, d),
        "b_dec": tensors.take(b_dec, d) if said.use_decoder_bias else torch.zeros(d),
    }
    if jumps:
        stored = tensors.found[threshold]
        zero = torch.isneginf(stored) if isinstance(stored, Tensor) and stored.is_floating_point() else None
        if zero is not None:  # a threshold of zero, the only infinity that means something
            tensors.found[threshold] = torch.where(zero, 0, stored)
        parameters["log_threshold"] = tensors.take(threshold, n)
        if zero is not None:
            parameters["log_threshold"][zero] = -torch.inf
    return parameters


def _scalings(tensors: Tensors, said: Stated) -> dict[str, Scaling]:
    """The scaling of the input and, for a transcoder, of the output."""
    tensors.ignore(*(NORM + hook for hook in said.hooks))
    if said.norm_activation != "dataset-wise":  # what is stored is then uninitialised memory
        return {}
    scalings = {}
    for name, hook in zip(("scaling", "target_scaling"), said.hooks, strict=True):
        norm = tensors.scalar(NORM + hook)
        if not (norm > 0 and 0 < math.sqrt(said.d_model) / norm < math.inf):
            raise FormatError(f"{tensors.path}: {NORM + hook} must be a positive norm, got {norm}")
        scalings[name] = Scaling(torch.zeros(said.d_model), math.sqrt(said.d_model) / norm)
    return scalings if said.is_transcoder else {"scaling": scalings["scaling"]}


def _without_norms_(parameters: dict[str, Tensor], said: Stated, path: Path) -> list[str]:
    """The same codes (TopK: g times them) without the norms of the atoms in the rule; returns notes."""
    if not said.sparsity_include_decoder_norm or said.act_fn == "relu":
        return []
    norms = torch.linalg.vector_norm(parameters["W_dec"], dim=1)
    if not bool((norms > 0).all()):
        raise FormatError(
            f"{path}: sparsity_include_decoder_norm divides by the norms of the atoms, and {int((norms == 0).sum())} are zero"
        )
    if said.act_fn == "jumprelu":
        parameters["log_threshold"] = (parameters["log_threshold"].double() - norms.double().log()).float()
        return ["sparsity_include_decoder_norm: thresholds are divided by the norms of the atoms, codes are the library's"]
    parameters["W_enc"], parameters["b_enc"] = parameters["W_enc"] * norms, parameters["b_enc"] * norms
    parameters["W_dec"] = parameters["W_dec"] / norms[:, None]
    return [
        "sparsity_include_decoder_norm: latents are ranked by codes times norms of atoms, so atoms are scaled to unit norm and codes by it"
    ]


def _jump_relu(said: Stated) -> JumpReLU:
    window = said.jumprelu_threshold_window
    return JumpReLU(bandwidth=window) if window > 0 else JumpReLU()


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` as a folder that llamascopium loads, for the same codes and reconstructions.

    A scaling without a mean stays one ("dataset-wise"), any other is folded in. An encoder that subtracts b_dec gets b_enc - b_dec W_enc, and
    BatchTopK becomes JumpReLU with its threshold. Raises ConfigError for what the format cannot hold: Gated and AbsTopK, a linear path,
    two widths, normalisation other than to constant norm.
    """
    autoencoder = _suited(dictionary)
    known = foreign_config(dictionary, NAME)
    options = _options(autoencoder, dictionary.provenance, known)
    tensors = {
        "W_E": autoencoder.W_enc,
        "b_E": encoder_bias(autoencoder, subtracts=False),
        "W_D": autoencoder.W_dec,
        "b_D": autoencoder.b_dec,
    }
    if options["act_fn"] == "jumprelu":
        tensors[THRESHOLD] = _log_thresholds(autoencoder)
    if options["norm_activation"] == "dataset-wise":
        target, hooks = autoencoder.target_scaling, (options["hook_point_in"], options["hook_point_out"])
        for hook, scaling in zip(hooks, (autoencoder.scaling, target), strict=True):
            tensors[NORM + hook] = torch.tensor(math.sqrt(autoencoder.d_in) / scaling.scale)
    folder = made_folder(path, NAME)
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, stored, {"version": "2.0.0b34"})
    write_json(folder / CONFIG, options)


def _log_thresholds(autoencoder: Autoencoder) -> Tensor:
    """Of every latent, BatchTopK's one threshold too."""
    if isinstance(autoencoder.config.activation, BatchTopK):
        return kept_threshold(autoencoder, NAME).double().log().expand(autoencoder.d_sae)
    return autoencoder.log_threshold


def _suited(dictionary: Dictionary) -> Autoencoder:
    """The dictionary, its scaling folded in unless the format can say it. Raises ConfigError for what the format cannot hold."""
    folded = plain(dictionary, NAME, normalisations=("none", "constant_norm"))
    config = folded.config
    check_form(config, NAME)
    if not isinstance(config.activation, (ReLU, TopK, BatchTopK, JumpReLU)):
        raise ConfigError(
            f"activation must be ReLU, TopK, BatchTopK or JumpReLU for {NAME}, got {type(config.activation).__name__}; `saelens` holds it "
            "(llamascopium.write)"
        )
    assert isinstance(dictionary, Autoencoder)  # `plain` refuses others
    centred = bool(dictionary.scaling.mean.any()) or bool(dictionary.target_scaling.mean.any())
    return folded if centred or config.normalisation != "none" else dictionary


def _options(autoencoder: Autoencoder, origin: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: what was read goes back, and what the parameters say is said."""
    config, activation = autoencoder.config, autoencoder.config.activation
    scaled = not (autoencoder.scaling.is_identity and autoencoder.target_scaling.is_identity)
    norm = "token-wise" if config.normalisation == "constant_norm" else "dataset-wise" if scaled else "inference"
    options = dict(known) | {
        "sae_type": "sae",
        "d_model": config.d_in,
        "expansion_factor": _expansion(config.d_in, config.d_sae, known.get("expansion_factor")),
        **written_sites(autoencoder, origin, known),
        "act_fn": {ReLU: "relu", TopK: "topk"}.get(type(activation), "jumprelu"),
        "norm_activation": norm,
        "sparsity_include_decoder_norm": isinstance(activation, ReLU) and known.get("sparsity_include_decoder_norm", False),
        "use_decoder_bias": True,
        "use_glu_encoder": False,
    }
    options.pop("apply_decoder_bias_to_pre_encoder", None)
    if isinstance(activation, (TopK, BatchTopK)):
        options["top_k"] = max(round(activation.k), 1)
    if isinstance(activation, JumpReLU):
        options["jumprelu_threshold_window"] = activation.bandwidth
    return options


def _expansion(d_model: int, d_sae: int, known: Any) -> int | float:
    """A factor whose product with d_model has the whole part d_sae: the quotient may be rounded to just below it."""
    factor = known if isinstance(known, (int, float)) and int(d_model * known) == d_sae else d_sae / d_model
    return factor if int(d_model * factor) == d_sae else math.nextafter(factor, math.inf)
