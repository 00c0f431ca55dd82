"""What config.json of dictionary_learning says: the class and its tensors, the options of every trainer, the site."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import FormatError
from sae.interop.files import check_keys

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"


@dataclass(frozen=True)
class Layout:
    """The tensors of one class."""

    b_enc: str
    """Name of the encoder's bias, [d_sae]."""
    b_dec: str
    """Name of the decoder's bias, [d_in]."""
    linear: bool = True
    """Whether the maps are `encoder.weight` [d_sae, d_in] and `decoder.weight` [d_in, d_sae]; else W_enc [d_in, d_sae] and W_dec [d_sae, d_in]."""
    subtracts: bool = True
    """Whether b_dec is subtracted before encoding."""

    @property
    def maps(self) -> tuple[str, str]:
        """Names of the encoder's and the decoder's map."""
        return ("encoder.weight", "decoder.weight") if self.linear else ("W_enc", "W_dec")


LAYOUTS = {
    "AutoEncoder": Layout("encoder.bias", "bias"),
    "AutoEncoderNew": Layout("encoder.bias", "decoder.bias", subtracts=False),
    "GatedAutoEncoder": Layout("gate_bias", "decoder_bias"),
    "AutoEncoderTopK": Layout("encoder.bias", "b_dec"),
    "BatchTopKSAE": Layout("encoder.bias", "b_dec"),
    "JumpReluAutoEncoder": Layout("b_enc", "b_dec", linear=False, subtracts=False),
    "MatryoshkaBatchTopKSAE": Layout("b_enc", "b_dec", linear=False),
}
"""dict_class -> its tensors."""
MISSPELT = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
"""Until February 2025 the library wrote this name."""
DEFAULT_CLASSES = {"StandardTrainer": "AutoEncoder", "GatedSAETrainer": "GatedAutoEncoder"}
"""What these trainers train unless told otherwise; until May 2024 they wrote no dict_class."""
THRESHOLDED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
SHARED = frozenset({"trainer_class", "dict_class", "activation_dim", "dict_size", "layer", "lm_name", "submodule_name"})
"""Keys of every trainer that say what the dictionary is and where it belongs."""
RUN = frozenset({"lr", "steps", "seed", "device", "wandb_name", "warmup_steps", "decay_start"})
TOP_K = RUN | {"k", "auxk_alpha", "threshold_beta", "threshold_start_step"}
ANNEAL = RUN | {
    "sparsity_function", "sparsity_penalty", "p_start", "p_end", "anneal_start", "n_sparsity_updates", "resample_steps",
    "sparsity_queue_length", "sparsity_warmup_steps", "activation_queue_length", "sparsity_loss_queue_length", "adaptive_sparsity_penalty",
}  # fmt: skip
GROUPS = frozenset({"group_fractions", "group_weights", "group_sizes", "top_k_aux", "weights_temperature"})
TRAINERS: dict[str, frozenset[str]] = {
    "StandardTrainer": RUN | {"l1_penalty", "resample_steps", "sparsity_warmup_steps"},
    "StandardTrainerAprilUpdate": RUN | {"l1_penalty", "sparsity_warmup_steps"},
    "StandardTrainerNew": RUN | {"l1_penalty", "lambda_warm_steps"},
    "PAnnealTrainer": ANNEAL,
    "PAnnealTrainerNew": ANNEAL | {"lambda_warm_steps"},
    "GatedAnnealTrainer": ANNEAL,
    "GatedSAETrainer": RUN | {"l1_penalty", "sparsity_warmup_steps"},
    "GatedTrainerNew": RUN | {"l1_penalty", "lambda_warm_steps"},
    "TopKTrainer": TOP_K,
    "TrainerTopK": TOP_K,
    "BatchTopKTrainer": TOP_K | {"top_k_aux"},
    "TrainerBatchTopK": TOP_K | {"top_k_aux"},
    "MatryoshkaBatchTopKTrainer": TOP_K | GROUPS,
    "MatroyshkaBatchTopKTrainer": TOP_K | GROUPS,
    "JumpReluTrainer": RUN | {"bandwidth", "sparsity_penalty", "sparsity_warmup_steps", "target_l0"},
    "TrainerJumpRelu": RUN | {"bandwidth", "sparsity_penalty", "sparsity_warmup_steps", "target_l0"},
}
"""trainer_class -> the options that the library has written for it, besides the shared ones."""
BUFFER = frozenset({"d_submodule", "io", "n_ctxs", "ctx_len", "refresh_batch_size", "out_batch_size", "device", "layer"})
BACKUP = frozenset({"step", "ae", "optimizer", "config", "norm_factor"})


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What config.json says of one dictionary."""

    dict_class: str
    """The owner's class, spelt as today."""
    trainer: Mapping[str, Any]
    """Options of the trainer, as they are in the file."""
    d_in: int | None
    """Width, where it is stated."""
    d_sae: int | None
    """Number of latents, where it is stated."""
    k: int | None
    """Active latents per row, where they are stated."""
    transcoder: bool
    """Whether it explains a module's output by its input."""
    known: Mapping[str, str | None]
    """model, site and target_site, as far as they are certain."""
    notes: list[str]
    """Sentences for the provenance."""

    @property
    def layout(self) -> Layout:
        """The tensors of the class."""
        return LAYOUTS[self.dict_class]


def stated(raw: dict[str, Any], path: Path) -> Stated:
    """What the configuration says. Raises FormatError for unknown keys, classes and trainers, and for what contradicts itself."""
    check_keys(raw, known={"trainer", "buffer"}, required={"trainer"}, path=path)
    trainer, buffer = (_object(raw, name, path) for name in ("trainer", "buffer"))
    trainer_class = _text(trainer, "trainer_class", path)
    if trainer_class is not None and trainer_class not in TRAINERS:
        raise FormatError(f"{path}: trainer_class must be one of {', '.join(TRAINERS)}, got {trainer_class!r}")
    options = TRAINERS[trainer_class] if trainer_class else frozenset({"k", "group_sizes", "bandwidth"})
    required = frozenset() if trainer_class in DEFAULT_CLASSES else frozenset({"dict_class"})
    check_keys(trainer, known=SHARED | options, required=required, path=f"{path} (trainer)")
    check_keys(buffer, known=BUFFER, required=set(), path=f"{path} (buffer)")
    dict_class = _text(trainer, "dict_class", path) or DEFAULT_CLASSES.get(trainer_class or "")
    dict_class = MISSPELT.get(dict_class, dict_class)
    if dict_class not in LAYOUTS:
        reason = ", which has no latents: it copies its input" if dict_class == "IdentityDict" else ""
        raise FormatError(f"{path}: dict_class must be one of {', '.join(LAYOUTS)}, got {dict_class!r}{reason}")
    known, notes = _sites(trainer, buffer, path)
    if "dict_class" not in trainer:
        notes.append(f"the file is older than dict_class: {dict_class} is what {trainer_class} trained")
    return Stated(
        dict_class=dict_class,
        trainer=trainer,
        d_in=_whole(trainer, "activation_dim", path),
        d_sae=_whole(trainer, "dict_size", path),
        k=_whole(trainer, "k", path),
        transcoder=buffer.get("io") == "in_to_out",
        known=known,
        notes=notes,
    )


def _object(raw: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = raw.get(name, {})
    if not isinstance(value, dict):
        raise FormatError(f"{path}: {name} must be an object, got {str(value)[:80]!r}")
    return value


def _whole(options: Mapping[str, Any], name: str, path: Path) -> int | None:
    """A positive whole number, where it is stated."""
    value = options.get(name)
    if value is not None and (type(value) is not int or value < 1):
        raise FormatError(f"{path}: {name} must be a positive whole number, got {str(value)[:80]!r}")
    return value


def _text(options: Mapping[str, Any], name: str, path: Path) -> str | None:
    """A text, where it is stated."""
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{path}: {name} must be text, got {str(value)[:80]!r}")
    return value


def _sites(trainer: Mapping[str, Any], buffer: Mapping[str, Any], path: Path) -> tuple[dict[str, str | None], list[str]]:
    """(model and sites as far as the configuration is sure of them, notes)."""
    io = _text(buffer, "io", path) or "out"
    if io not in ("in", "out", "in_to_out"):
        raise FormatError(f"{path}: io must be 'in', 'out' or 'in_to_out', got {io!r}")
    model, name = _text(trainer, "lm_name", path), _text(trainer, "submodule_name", path)
    block = re.fullmatch(r"resid_post_layer_(0|[1-9]\d*)", name or "")
    if block is None:
        return {"model": model}, [f"the submodule is called {name!r}, layer {trainer.get('layer')!r}: the site is not known"]
    if trainer.get("layer") not in (None, int(block[1])):
        raise FormatError(f"{path}: layer is {trainer['layer']!r}, and submodule_name is {name!r}")
    output = f"blocks.{block[1]}.hook_resid_post"
    if io == "out":
        return {"model": model, "site": output}, [f"the site is that of the submodule's name {name!r}, the library's for a block's output"]
    note = f"io is {io!r} for the submodule {name!r}: what its input is called is not certain"
    return ({"model": model, "target_site": output} if io == "in_to_out" else {"model": model}), [note]
