"""Golden files of llamascopium, recorded from its own forward pass, and its own look at what this package wrote.

Runs in an environment of its own with `llamascopium` 2.0.0b34 (recorded with torch 2.13.0 and transformer-lens 3.9.0). The files of its early
releases (Llama Scope R1-Distill) have other tensor names; they are recorded from the source of 2025-04-06, which is not imported as a whole
because its `__init__` wants a database:

    pip install llamascopium==2.0.0b34
    git clone https://github.com/OpenMOSS/Language-Model-SAEs && git -C Language-Model-SAEs checkout de270345
    LM_SAES=$PWD/Language-Model-SAEs/src python scripts/golden/llamascopium.py record tests/golden/interop/llamascopium
    python scripts/golden/llamascopium.py check WRITTEN/llamascopium

Codes are those of `encode` on normalised activations, and the output is `decode` with the normalisation undone: what the owner's trainer and
analysis do around the model. `check` reads what `scripts.golden.write` wrote, compares, and notes the digests of the files it has seen in
checked.json of the golden folder.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from noted import agreement, run, write_checked
from safetensors.torch import load_file, save_file

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # this file has the package's name

D_MODEL, EXPANSION, N_ROWS = 12, 3, 14
LIBRARY = "llamascopium 2.0.0b34"
GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/interop/llamascopium"
HOOK = "blocks.15.hook_resid_post"
TRANSCODER = {"hook_point_in": "blocks.15.hook_resid_mid", "hook_point_out": "blocks.15.hook_mlp_out"}
NORMS = (5.5, 2.25)
CASES: dict[str, dict[str, Any]] = {
    "jump_relu": {"act_fn": "jumprelu"},
    "jump_relu_plain": {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False},
    "jump_relu_inference": {"act_fn": "jumprelu", "norm_activation": "inference"},
    "top_k": {"act_fn": "topk", "top_k": 5},
    "top_k_plain": {"act_fn": "topk", "top_k": 5, "sparsity_include_decoder_norm": False},
    "relu": {"act_fn": "relu", "use_decoder_bias": False},
    "token_wise": {"act_fn": "topk", "top_k": 6, "norm_activation": "token-wise", "sparsity_include_decoder_norm": False},
    "transcoder": {"act_fn": "jumprelu"} | TRANSCODER,
    "torch_file": {"act_fn": "relu", "norm_activation": "inference"},
}
"""Case -> what differs from a residual autoencoder with dataset-wise normalisation."""
EARLY_CASES: dict[str, dict[str, Any]] = {
    "early": {"act_fn": "jumprelu", "norm_activation": "dataset-wise"},
    "early_pre_bias": {"act_fn": "jumprelu", "norm_activation": "inference", "apply_decoder_bias_to_pre_encoder": True},
}
"""The same for the early releases."""


def early_owner() -> tuple[Any, Any]:
    """(SAEConfig, SparseAutoEncoder) of the early releases, without running that package's own `__init__`."""
    if "lm_saes" not in sys.modules:
        package, database, kernels = (types.ModuleType(f"lm_saes{name}") for name in ("", ".database", ".kernels"))
        package.__path__ = [str(Path(os.environ["LM_SAES"]) / "lm_saes")]
        database.MongoClient, kernels.decode_with_triton_spmm_kernel = object, None
        sys.modules |= {"lm_saes": package, "lm_saes.database": database, "lm_saes.kernels": kernels}
    module = importlib.import_module("lm_saes.sae")
    module.version = lambda name: "de270345"  # it is not an installed distribution
    return importlib.import_module("lm_saes.config").SAEConfig, module.SparseAutoEncoder


def owner() -> tuple[Any, Any]:
    """(SAEConfig, SparseAutoEncoder) of the package."""
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    return SAEConfig, SparseAutoEncoder


@torch.no_grad()
def randomise_(module: torch.nn.Module, seed: int) -> None:
    """Every parameter drawn anew, biases, thresholds and norms included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.8 if parameter.ndim == 1 else 0.4))
        if "threshold" in name:
            parameter.copy_(parameter - 0.5)


def batch_of(config: Any, acts: torch.Tensor) -> dict[str, torch.Tensor]:
    """The activations at the input's hook and, where it is another, zeros at the output's, whose values only a loss would use."""
    return {config.hook_point_out: torch.zeros_like(acts), config.hook_point_in: acts}


@torch.no_grad()
def forward(folder: Path, acts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes and output of the files in a folder, by the owner's code."""
    loaded = owner()[1].from_pretrained(str(folder))
    normalised, scales = loaded.normalize_activations(batch_of(loaded.cfg, acts), return_scale_factor=True)
    codes = loaded.encode(normalised[loaded.cfg.hook_point_in])
    hook = loaded.cfg.hook_point_out
    output = loaded.denormalize_activations({hook: loaded.decode(codes)}, {hook: scales[hook]})[hook]
    return {"acts": acts, "codes": codes.contiguous(), "output": output.contiguous()}


@torch.no_grad()
def early_forward(folder: Path, acts: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same by the code of the early releases."""
    loaded = early_owner()[1].from_pretrained(str(folder), dtype=torch.float32)
    loaded.current_l1_coefficient = 0.0
    _, (_, found) = loaded.compute_loss(batch_of(loaded.cfg, acts))
    return {"acts": acts, "codes": found["feature_acts"].contiguous(), "output": found["reconstructed"].contiguous()}


def record(folder: Path) -> None:
    """Write one folder for every case: the owner's files, and what its forward pass makes of them."""
    for seed, (case, options) in enumerate((CASES | EARLY_CASES).items()):
        config_class, autoencoder = early_owner() if case in EARLY_CASES else owner()
        target = folder / case
        target.mkdir(parents=True, exist_ok=True)
        shape = {"sae_type": "sae", "hook_point_in": HOOK, "hook_point_out": HOOK, "d_model": D_MODEL, "expansion_factor": EXPANSION}
        config = config_class(**shape | options, dtype=torch.float32)
        made = autoencoder(config)
        randomise_(made, seed)
        norms = dict(zip((config.hook_point_in, config.hook_point_out), NORMS, strict=True))
        if config.norm_activation == "inference":  # the owner then saves uninitialised memory; a NaN stands for it
            norms = dict.fromkeys(norms, float("nan"))
        made.set_dataset_average_activation_norm(norms)
        config.save_hyperparameters(str(target))
        made.save_checkpoint(target / ("sae_weights.pt" if case == "torch_file" else "sae_weights.safetensors"))
        acts = torch.randn(N_ROWS, D_MODEL, generator=torch.Generator().manual_seed(100 + seed)) * 2
        found = early_forward(target, acts) if case in EARLY_CASES else forward(target, acts)
        save_file(found, target / "expected.safetensors")
        print(f"{case}: L0 {float((found['codes'] != 0).sum(1).float().mean()):.2f}")


def check(folder: Path) -> None:
    """Load what this package wrote, compare, and note what was seen."""
    seen = {}
    for target in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = load_file(target / "expected.safetensors")
        found = forward(target, expected["acts"])
        config = json.loads((target / "config.json").read_text())
        if config["norm_activation"] == "dataset-wise":  # expected are the codes of a dictionary with its scaling folded in
            norm = load_file(target / "sae_weights.safetensors")[f"dataset_average_activation_norm.{config['hook_point_in']}"]
            found["codes"] = found["codes"] * float(norm) / D_MODEL**0.5
        seen[target.name] = agreement(target, found, expected)
    write_checked(GOLDEN, LIBRARY, seen)


if __name__ == "__main__":
    run(__doc__, record, check)
