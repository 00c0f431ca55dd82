"""Golden files of Llama Scope v1, recorded from the code that its authors released it with, and that code's look at what this package wrote.

Runs in an environment of its own with `torch`, `transformer-lens`, `einops`, `jaxtyping` and `pydantic` (recorded with torch 2.13.0 and
transformer-lens 3.9.0), and the source beside it as of 2024-10-30, which is not imported as a whole because its `__init__` wants a database:

    git clone https://github.com/OpenMOSS/Language-Model-SAEs && git -C Language-Model-SAEs checkout 1e710367
    LM_SAES=$PWD/Language-Model-SAEs/src python scripts/golden/llama_scope.py record tests/golden/interop/llama_scope
    LM_SAES=$PWD/Language-Model-SAEs/src python scripts/golden/llama_scope.py check WRITTEN/llama_scope

`lm_saes/sae.py` and `config.py` are loaded into an empty package, with an empty module for the activation store, of which they use a name only.
Codes are those of `SparseAutoEncoder.encode` after `from_pretrained`, which folds normalisation and decoder norms into the weights; the output is the
`reconstructed` of `compute_loss`, in units of the activations. `check` reads what `scripts.golden.write` wrote, compares, and notes the digests
of the files it has seen in checked.json of the golden folder.
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

D_MODEL, EXPANSION, N_ROWS = 12, 3, 14
LIBRARY = "lm-saes at 1e710367"
GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/interop/llama_scope"
RESIDUAL = "blocks.8.hook_resid_post"
NORMS = {"in": 6.3125, "out": 6.3125}
CASES: dict[str, dict[str, Any]] = {
    "released": {"act_fn": "jumprelu", "jump_relu_threshold": 1.2021484375, "norm_activation": "dataset-wise"},
    "pre_bias": {
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.7,
        "norm_activation": "dataset-wise",
        "apply_decoder_bias_to_pre_encoder": True,
    },
    "transcoder": {
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.1,
        "norm_activation": "dataset-wise",
        "hook_point_in": "blocks.8.hook_resid_mid",
        "hook_point_out": "blocks.8.hook_mlp_out",
        "dataset_average_activation_norm": {"in": 6.3125, "out": 0.75},
    },
    "plain": {"act_fn": "relu", "norm_activation": "none", "sparsity_include_decoder_norm": False, "use_decoder_bias": False},
    "top_k": {"act_fn": "topk", "top_k": 5, "norm_activation": "dataset-wise"},
    "top_k_with_threshold": {"act_fn": "topk", "top_k": 5, "jump_relu_threshold": 0.4, "norm_activation": "dataset-wise"},
    "token_wise": {
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.8,
        "norm_activation": "token-wise",
        "sparsity_include_decoder_norm": False,
    },
}
"""Case -> what differs from the hyperparameters of the release."""


def owner() -> tuple[Any, Any]:
    """(SAEConfig, SparseAutoEncoder) of the authors, without running their package's own `__init__`."""
    if "lm_saes" not in sys.modules:
        package, activation = types.ModuleType("lm_saes"), types.ModuleType("lm_saes.activation")
        package.__path__ = [str(Path(os.environ["LM_SAES"]) / "lm_saes")]
        store = types.ModuleType("lm_saes.activation.activation_store")
        store.ActivationStore = object
        sys.modules |= {"lm_saes": package, "lm_saes.activation": activation, "lm_saes.activation.activation_store": store}
    module = importlib.import_module("lm_saes.sae")
    module.version = lambda name: "1e710367"  # it is not an installed distribution
    return importlib.import_module("lm_saes.config").SAEConfig, module.SparseAutoEncoder


def forward(folder: Path, acts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Codes and output of the files in a folder, by the authors' code."""
    _, autoencoder = owner()
    loaded = autoencoder.from_pretrained(str(folder))
    with torch.no_grad():
        _, (_, found) = loaded.compute_loss(acts)
        return {"acts": acts, "codes": loaded.encode(acts).contiguous(), "output": found["reconstructed"].contiguous()}


def record(folder: Path) -> None:
    """Write one folder for every case: the authors' files, and what their forward pass makes of them."""
    config_class, autoencoder = owner()
    for seed, (case, options) in enumerate(CASES.items()):
        target = folder / case
        (target / "checkpoints").mkdir(parents=True, exist_ok=True)
        released = {"hook_point_in": RESIDUAL, "d_model": D_MODEL, "expansion_factor": EXPANSION, "dataset_average_activation_norm": NORMS}
        config = config_class(**released | {"apply_decoder_bias_to_pre_encoder": False, "use_batch_norm_mse": True} | options)
        made = autoencoder(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in sorted(made.named_parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.8 if parameter.ndim == 1 else 0.4))
        config.save_hyperparameters(str(target))
        (target / "lm_config.json").write_text(json.dumps({"model_name": "meta-llama/Llama-3.1-8B", "d_model": D_MODEL}, indent=4))
        made.save_pretrained(str(target / "checkpoints" / "final.safetensors"))
        found = forward(target, torch.randn(N_ROWS, D_MODEL, generator=torch.Generator().manual_seed(100 + seed)) * 2)
        save_file(found, target / "expected.safetensors")
        print(f"{case}: L0 {float((found['codes'] != 0).sum(1).float().mean()):.2f}")


def check(folder: Path) -> None:
    """Load what this package wrote, compare, and note what was seen."""
    seen = {}
    for target in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = load_file(target / "expected.safetensors")
        found = forward(target, expected["acts"])
        seen[target.name] = agreement(target, found, expected)
    write_checked(GOLDEN, LIBRARY, seen)


if __name__ == "__main__":
    run(__doc__, record, check)
