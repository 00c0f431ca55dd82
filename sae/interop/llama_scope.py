"""Llama Scope v1 (He et al. 2024, 2410.20526): the files of OpenMOSS's lm-saes as of October 2024.

    hyperparams.json                  act_fn, norm_activation, jump_relu_threshold (one number), ...
    lm_config.json                    model_name; may be absent
    checkpoints/final.safetensors     encoder.weight [d_sae, d]   encoder.bias [d_sae]   decoder.weight [d, d_sae]   decoder.bias [d]

The weights were trained on activations scaled to norm sqrt(d); the threshold was measured afterwards, on weights into which the library had
folded that scale and the norms of the atoms while it loaded them. So the fold comes first, in the order of `SparseAutoEncoder.from_config`:

    s_in = sqrt(d) / norm["in"],  s_out = sqrt(d) / norm["out"]                                   norm_activation "dataset-wise"
    b_enc = encoder.bias / s_in,  W_dec = decoder.weight^T s_in / s_out,  b_dec = decoder.bias / s_out,  W_enc = encoder.weight^T
    g_j = |W_dec_j|,  W_enc_j <- g_j W_enc_j,  b_enc <- g b_enc,  W_dec_j <- W_dec_j / g_j         sparsity_include_decoder_norm
    pi = x W_enc + b_enc,  z = pi where pi > jump_relu_threshold, else 0,  x_hat = z W_dec + b_dec     (x - b_dec: apply_decoder_bias_to_pre_encoder)

"token-wise" scales every row to norm sqrt(d), and its output back. Where hook_point_in and hook_point_out differ it is a transcoder of one width,
for which that has no inverse. A gated encoder ("use_glu_encoder") has no counterpart here. act_fn "topk" with a threshold stays TopK: the
library announces JumpReLU, and its forward, made before, keeps the k largest (checked).

What is written has the fold behind it: norm_activation "inference", sparsity_include_decoder_norm false.
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
from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.interop.files import Tensors, check_keys, read_json, write_json, write_safetensors
from sae.interop.openmoss import PLACES, SUFFIXES, check_form, is_transcoder, normalisation_of, stated_sites, weights_in, written_sites
from sae.interop.rewriting import (
    assembled,
    bias_without_shift,
    check_finite,
    foreign_config,
    kept_threshold,
    made_folder,
    plain,
    provenance,
)

__all__ = ["read", "write"]

NAME = "llama_scope"
CONFIG, MODEL, WEIGHTS = "hyperparams.json", "lm_config.json", "checkpoints/final.safetensors"
TRAINING = frozenset(
    {
        "device", "seed", "dtype", "bias_init_method", "decoder_exactly_fixed_norm", "init_decoder_norm", "init_encoder_norm",
        "init_encoder_with_decoder_transpose", "lp", "l1_coefficient", "l1_coefficient_warmup_steps", "k_warmup_steps", "use_batch_norm_mse",
        "use_ghost_grads", "tp_size", "ddp_size", "strict_loading", "sae_pretrained_name_or_path", "decoder_bias_init_method",
        "decoder_exactly_unit_norm", "sae_from_pretrained_path", "geometric_median_max_iter", "from_pretrained_path",
    }
)  # fmt: skip
"""Keys that say how it was trained or loaded, of this and of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The keys of hyperparams.json that say what the dictionary computes; the defaults are the library's."""

    d_model: int
    """Width of input and output."""
    hook_point_in: str
    """TransformerLens name of the input's site."""
    hook_point_out: str | None = None
    """That of the output's; the input's where absent."""
    d_sae: int | None = None
    """Number of latents; d_model * expansion_factor where absent."""
    expansion_factor: int = 128
    """d_sae / d_model."""
    act_fn: Literal["relu", "topk", "jumprelu"] = "relu"
    """What is kept of the pre-activations."""
    jump_relu_threshold: float = 0.0
    """Threshold of every latent, in units of the folded weights."""
    top_k: int = 50
    """Active latents per row."""
    norm_activation: Literal["none", "token-wise", "batch-wise", "dataset-wise", "inference"] = "token-wise"
    """What is done to activations first."""
    dataset_average_activation_norm: dict[str, float] | None = None
    """Mean norms "in" and "out"."""
    sparsity_include_decoder_norm: bool = True
    """Whether atoms are scaled to unit norm, and codes with them."""
    use_decoder_bias: bool = True
    """Whether there is a decoder.bias."""
    apply_decoder_bias_to_pre_encoder: bool = True
    """Whether it is subtracted from the input."""
    use_glu_encoder: bool = False
    """Whether pre-activations are gated by a second encoder."""

    @property
    def is_transcoder(self) -> bool:
        """Whether it explains another site than it reads."""
        return is_transcoder(self)


def read(path: str | Path) -> Autoencoder:
    """The dictionary in the folder `path`. Raises FormatError naming the file and what is wrong with it."""
    folder = Path(path)
    raw = read_json(folder / CONFIG)
    said = _hyperparameters(raw, folder / CONFIG)
    tensors = weights_in(folder)
    parameters = _parameters(tensors, said)
    told = _fold_(parameters, said, folder / CONFIG)
    check_finite(parameters, folder / CONFIG)
    activation, noted = _activation(said, folder / CONFIG)
    d_in, d_sae = parameters["W_enc"].shape
    if isinstance(activation, JumpReLU):
        theta = torch.full((d_sae,), said.jump_relu_threshold, dtype=torch.float64)
        parameters["log_threshold"] = theta.log().float()
    subtracts = said.use_decoder_bias and said.apply_decoder_bias_to_pre_encoder
    if said.is_transcoder and subtracts:
        parameters["b_enc"] = bias_without_shift(parameters["W_enc"], parameters["b_enc"], parameters["b_dec"])
        noted.append("the file subtracts decoder.bias from the input of a transcoder, which is part of b_enc here")
    try:
        config = AutoencoderConfig(
            d_in=d_in,
            d_sae=d_sae,
            activation=activation,
            d_out=d_in if said.is_transcoder else None,
            apply_b_dec_to_input=subtracts and not said.is_transcoder,
            normalisation=normalisation_of(said, folder / CONFIG),
        )
    except ConfigError as error:
        raise FormatError(f"{folder / CONFIG} describes no dictionary: {error}") from error
    sites = stated_sites(said)
    model = read_json(folder / MODEL) if (folder / MODEL).exists() else {}
    name = model.get("model_name") if isinstance(model.get("model_name"), str) else None
    origin = provenance(NAME, raw, [*tensors.notes(), *told, *noted], model=name, **sites)
    if model:
        origin["foreign"]["lm_config"] = model
    return assembled(config, parameters, origin)


def _hyperparameters(raw: dict[str, Any], path: Path) -> Hyperparameters:
    known = set(Hyperparameters.__dataclass_fields__)
    check_keys(raw, known=known, required={"d_model", "hook_point_in"}, path=path, free=TRAINING)
    try:
        said = from_json(Hyperparameters, {key: value for key, value in raw.items() if key in known}, where="hyperparams")
    except ConfigError as error:
        raise FormatError(f"{path} does not hold hyperparameters of Llama Scope: {error}") from error
    if said.use_glu_encoder:
        raise FormatError(f"{path} has use_glu_encoder: pre-activations gated by a second encoder have no counterpart here")
    if said.norm_activation == "batch-wise":
        raise FormatError(f"{path} has norm_activation 'batch-wise': a row's codes would depend on the other rows of its batch")
    normalisation_of(said, path)
    return said


def _parameters(tensors: Tensors, said: Hyperparameters) -> dict[str, Tensor]:
    """The weights as they are in the file, by our names."""
    d, n = said.d_model, said.d_sae or said.d_model * said.expansion_factor
    bias = ["decoder.bias"] if said.use_decoder_bias else []
    tensors.require("encoder.weight", "encoder.bias", "decoder.weight", *bias)
    parameters = {
        "W_enc": tensors.take("encoder.weight", n, d).T.contiguous(),
        "b_enc": tensors.take("encoder.bias", n),
        "W_dec": tensors.take("decoder.weight", d, n).T.contiguous(),
        "b_dec": tensors.take("decoder.bias", d) if bias else torch.zeros(d),
    }
    tensors.finish()
    return parameters


def _fold_(parameters: dict[str, Tensor], said: Hyperparameters, path: Path) -> list[str]:
    """Fold the scale of the activations and the norms of the atoms into the weights, in the library's order; returns notes."""
    notes = []
    if said.norm_activation == "dataset-wise":
        norms = said.dataset_average_activation_norm or {}
        if set(norms) != {"in", "out"} or not all(norm > 0 for norm in norms.values()):
            raise FormatError(
                f"{path} has norm_activation 'dataset-wise': dataset_average_activation_norm must be two positive norms, 'in' and 'out', "
                f"got {said.dataset_average_activation_norm}"
            )
        if not said.is_transcoder and norms["in"] != norms["out"]:
            notes.append(f"one site with two norms: {norms['in']} as input and {norms['out']} as output")
        s_in, s_out = (math.sqrt(said.d_model) / norms[name] for name in ("in", "out"))
        parameters["b_enc"] = parameters["b_enc"] / s_in
        parameters["W_dec"] = parameters["W_dec"] * s_in / s_out
        parameters["b_dec"] = parameters["b_dec"] / s_out
        notes.append(f"trained on activations of mean norm {norms['in']} scaled to sqrt(d): the scale is folded into the weights")
    if said.sparsity_include_decoder_norm:
        norms = torch.linalg.vector_norm(parameters["W_dec"], dim=1)
        if not bool((norms > 0).all()):
            raise FormatError(f"{path} has sparsity_include_decoder_norm, and {int((norms == 0).sum())} atoms have no norm to divide by")
        parameters["W_enc"], parameters["b_enc"] = parameters["W_enc"] * norms, parameters["b_enc"] * norms
        parameters["W_dec"] = parameters["W_dec"] / norms[:, None]
        notes.append(
            "sparsity_include_decoder_norm: atoms are scaled to unit norm, and codes by their norms, as the library does on loading"
        )
    return notes


def _activation(said: Hyperparameters, path: Path) -> tuple[Activation, list[str]]:
    if said.act_fn == "jumprelu":
        if said.jump_relu_threshold < 0:
            raise FormatError(f"{path}: jump_relu_threshold must be at least 0, got {said.jump_relu_threshold}: codes would be negative")
        return JumpReLU(), []
    if said.act_fn == "relu":
        return ReLU(), []
    if not said.jump_relu_threshold > 0:
        return TopK(said.top_k), []
    note = f"act_fn topk with jump_relu_threshold {said.jump_relu_threshold}: read as TopK, which the library's forward is, whatever it announces"
    return TopK(said.top_k), [note]


def write(dictionary: Dictionary, path: str | Path) -> None:
    """Write `dictionary` as a folder that lm-saes (October 2024) loads, for the same codes and reconstructions of unscaled activations.

    Scaling is folded in; BatchTopK becomes JumpReLU with its threshold. Raises ConfigError for what the format cannot hold: Gated and AbsTopK,
    thresholds that differ between latents, a linear path, two widths, normalisation other than to constant norm.
    """
    autoencoder = plain(dictionary, NAME, normalisations=("none", "constant_norm"))
    config = autoencoder.config
    check_form(config, NAME)
    foreign = dictionary.provenance.get("foreign") if foreign_config(dictionary, NAME) else {}
    options = _options(autoencoder, dictionary.provenance, foreign.get("config", {}))
    tensors = {
        "encoder.weight": autoencoder.W_enc.T,
        "encoder.bias": autoencoder.b_enc,
        "decoder.weight": autoencoder.W_dec.T,
        "decoder.bias": autoencoder.b_dec,
    }
    folder = made_folder(path, NAME)
    stale = [name for name in (f"{place}{suffix}" for place in PLACES[:2] for suffix in SUFFIXES) if (folder / name).exists()]
    if stale:
        raise ConfigError(
            f"path must be a new folder, {folder} holds {', '.join(stale)}, which the library would load first (llama_scope.write)"
        )
    (folder / WEIGHTS).parent.mkdir(exist_ok=True)
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, stored, {"version": "0.1.0"})
    model = foreign.get("lm_config") or ({"model_name": dictionary.provenance["model"]} if "model" in dictionary.provenance else {})
    if model:
        write_json(folder / MODEL, model)
    write_json(folder / CONFIG, options)


def _options(autoencoder: Autoencoder, origin: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """hyperparams.json: what was read goes back, and what the parameters say is said."""
    config = autoencoder.config
    defaults = {"dtype": "torch.float", "device": "cpu", "use_glu_encoder": False}
    exact = known.get("expansion_factor", 0) == config.d_sae / config.d_in
    return defaults | dict(known) | {
        **written_sites(autoencoder, origin, known),
        "d_model": config.d_in,
        "d_sae": config.d_sae,
        "expansion_factor": known["expansion_factor"] if exact else max(config.d_sae // config.d_in, 1),
        "norm_activation": "token-wise" if config.normalisation == "constant_norm" else "inference",
        "sparsity_include_decoder_norm": False,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": config.apply_b_dec_to_input and not autoencoder.is_transcoder,
        **_act_fn(autoencoder, known),
    }  # fmt: skip


def _act_fn(autoencoder: Autoencoder, known: Mapping[str, Any]) -> dict[str, Any]:
    activation = autoencoder.config.activation
    if isinstance(activation, TopK):
        return {"act_fn": "topk", "top_k": activation.k, "jump_relu_threshold": 0.0}
    if isinstance(activation, ReLU):
        return {"act_fn": "relu", "jump_relu_threshold": 0.0}
    if isinstance(activation, BatchTopK):
        return {"act_fn": "jumprelu", "jump_relu_threshold": float(kept_threshold(autoencoder, NAME)), "top_k": max(round(activation.k), 1)}
    if not isinstance(activation, JumpReLU):
        raise ConfigError(
            f"activation must be ReLU, TopK, BatchTopK or JumpReLU for {NAME}, got {type(activation).__name__}; `saelens` holds it "
            "(llama_scope.write)"
        )
    logarithms = autoencoder.log_threshold.detach().double()
    if bool((logarithms != logarithms[0]).any()):
        raise ConfigError(
            f"thresholds must be equal for {NAME}, which has one for all latents; they lie between {float(logarithms.exp().min()):.4g} and "
            f"{float(logarithms.exp().max()):.4g}: `llamascopium` and `saelens` hold them (llama_scope.write)"
        )
    theta = float(known.get("jump_relu_threshold", 0.0))
    kept = theta > 0 and torch.tensor(theta, dtype=torch.float64).log().float() == logarithms[0]
    return {"act_fn": "jumprelu", "jump_relu_threshold": theta if kept else float(logarithms[0].exp())}
