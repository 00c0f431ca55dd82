"""cfg.json of SAELens before version 6: one flat object that mixes what the dictionary is with how it was trained.

SAELens 6 reads it by renaming a few keys, giving defaults to others and leaving out the rest. Here the rest must be a key that one of those
versions wrote.
"""

from pathlib import Path
from typing import Any

from sae.errors import FormatError

RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
"""Old name -> the name that took its place."""
METADATA = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out",
)  # fmt: skip
"""Keys that became metadata."""
DICTIONARY = (
    "architecture", "activation_fn", "activation_fn_kwargs", "d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input",
    "normalize_activations", "finetuning_scaling_factor",
)  # fmt: skip
"""Keys that say what the dictionary computes."""
RUN = (
    "act_store_device", "adam_beta1", "adam_beta2", "autocast", "autocast_lm", "b_dec_init_method", "cached_activations_path",
    "checkpoint_path", "compile_llm", "compile_sae", "dataset_trust_remote_code", "dead_feature_estimation_method",
    "dead_feature_threshold", "dead_feature_window", "decoder_heuristic_init", "decoder_heuristic_init_norm", "decoder_orthogonal_init",
    "eval_batch_size_prompts", "eval_every_n_wandb_logs", "expansion_factor", "feature_reinit_scale", "feature_sampling_method",
    "feature_sampling_window", "finetuning_method", "finetuning_tokens", "from_pretrained_path", "hook_eval", "hook_layer",
    "hook_point_eval", "hook_point_layer", "init_encoder_as_decoder_transpose", "is_dataset_tokenized", "jumprelu_bandwidth",
    "jumprelu_init_threshold", "l1_coefficient", "l1_warm_up_steps", "llm_compilation_mode", "log_activations_store_to_wandb",
    "log_optimizer_state_to_wandb", "log_to_wandb", "lp_norm", "lr", "lr_decay_steps", "lr_end", "lr_scheduler_name", "lr_warm_up_steps",
    "model_kwargs", "mse_loss_normalization", "n_batches_in_buffer", "n_checkpoints", "n_eval_batches", "n_eval_seqs",
    "n_restart_cycles", "noise_scale", "normalize_sae_decoder", "resample_batches", "resume", "run_name", "sae_compilation_mode",
    "scale_sparsity_penalty_by_decoder_norm", "seed", "store_batch_size", "store_batch_size_prompts", "streaming", "tokens_per_buffer",
    "total_training_tokens", "train_batch_size", "train_batch_size_tokens", "training_tokens", "use_cached_activations",
    "use_ghost_grads", "verbose", "wandb_entity", "wandb_id", "wandb_log_frequency", "wandb_project",
)  # fmt: skip
"""Keys that say how it was trained: carried along, and nothing else."""
NAMES = frozenset(RENAMED) | frozenset(METADATA) | frozenset(DICTIONARY) | frozenset(RUN)
"""All of them."""


def in_current_form(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(settings with the names of version 6, metadata, notes). Raises FormatError for what version 6 does not have any more."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        renamed = RENAMED.get(name, name)
        if flat.get(renamed, value) != value:
            raise FormatError(f"{path} says both {flat[renamed]!r} and {value!r} for {renamed}")
        flat[renamed] = value
    notes = ["the configuration is of a version of SAELens before 6 and is read as version 6 reads it"]
    inner = flat.pop("metadata", None)
    metadata = {**(inner if isinstance(inner, dict) else {}), **{name: flat[name] for name in METADATA if name in flat}}
    settings = {name: value for name, value in flat.items() if name not in {*METADATA, *RUN, *DICTIONARY[1:3], "finetuning_scaling_factor"}}
    settings.setdefault("architecture", "standard")
    settings.setdefault("reshape_activations", "hook_z" if "hook_z" in str(flat.get("hook_name") or "") else "none")
    settings.update(_activation(flat, settings["architecture"], path))
    how = settings.get("normalize_activations")
    if how is None or isinstance(how, bool):
        settings["normalize_activations"] = "expected_average_only_in" if how else "none"
    return settings, metadata, notes


def _activation(flat: dict[str, Any], architecture: Any, path: Path) -> dict[str, Any]:
    """The architecture and k that activation_fn and activation_fn_kwargs mean."""
    name, options = flat.get("activation_fn") or "relu", flat.get("activation_fn_kwargs") or {}
    if name not in ("relu", "topk"):
        raise FormatError(f"{path} has activation_fn {name!r}, which SAELens dropped in version 6; relu and topk can be read")
    if not isinstance(options, dict) or not set(options) <= {"k"}:
        raise FormatError(f"{path} has activation_fn_kwargs {options!r}; only k is known")
    if name == "relu" and architecture != "topk":
        return {}
    if architecture not in ("standard", "topk"):
        raise FormatError(f"{path} has activation_fn 'topk' and architecture {architecture!r}: 'standard' and 'topk' can have it")
    k = options.get("k", flat.get("k"))
    if k is None:
        raise FormatError(f"{path} has activation_fn 'topk' and no k in activation_fn_kwargs")
    return {"architecture": "topk", "k": k}
