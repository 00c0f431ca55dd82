"""Golden files of dictionary_learning, recorded from its own forward pass, and its own look at what this package wrote.

Runs in an environment of its own with `torch` and `einops` (recorded with torch 2.13.0 and einops 0.8.2), and the source beside it, which is
not imported as a whole because its `__init__` wants nnsight:

    git clone https://github.com/saprmarks/dictionary_learning && git -C dictionary_learning checkout 60ec6bf
    DICTIONARY_LEARNING=$PWD/dictionary_learning python scripts/golden/dictionary_learning.py record tests/golden/interop/dictionary_learning
    DICTIONARY_LEARNING=$PWD/dictionary_learning python scripts/golden/dictionary_learning.py check WRITTEN/dictionary_learning

`dictionary.py`, `utils.py` and `trainers/*.py` are loaded into an empty package; the modules that `utils.py` imports for data sets alone stand in
as empty ones. Every dictionary is loaded by the owner's `utils.load_dictionary`. `check` reads what `scripts.golden.write` wrote, compares
the owner's codes and output with expected.safetensors, and notes the digests of the files it has seen in checked.json of the golden folder.
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

D_IN, D_SAE, N_ROWS, K = 12, 32, 14, 5
NORM_FACTOR = 2.5
LIBRARY = "dictionary_learning 0.1.0 at 60ec6bf"
GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/interop/dictionary_learning"
STAND_INS = {
    "datasets": ["load_dataset"],
    "zstandard": [],
    "transformers": ["AutoModelForCausalLM", "AutoTokenizer"],
}
BUFFER = {
    "d_submodule": D_IN,
    "io": "out",
    "n_ctxs": 1280,
    "ctx_len": 128,
    "refresh_batch_size": 512,
    "out_batch_size": 8192,
    "device": "cpu",
}
CASES: dict[str, tuple[str, str]] = {
    "standard": ("AutoEncoder", "standard.StandardTrainerAprilUpdate"),
    "standard_new": ("AutoEncoderNew", "p_anneal.PAnnealTrainer"),
    "gated": ("GatedAutoEncoder", "gdm.GatedSAETrainer"),
    "top_k": ("AutoEncoderTopK", "top_k.TopKTrainer"),
    "batch_top_k": ("BatchTopKSAE", "batch_top_k.BatchTopKTrainer"),
    "jump_relu": ("JumpReluAutoEncoder", "jumprelu.JumpReluTrainer"),
    "matryoshka": ("MatryoshkaBatchTopKSAE", "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer"),
    "backup": ("BatchTopKSAE", "batch_top_k.BatchTopKTrainer"),
}
"""Case -> the class of the dictionary, and the trainer that writes its configuration."""


def owner(name: str) -> Any:
    """A module of the owner's package, without running the package's own `__init__`."""
    if "dictionary_learning" not in sys.modules or not hasattr(sys.modules["dictionary_learning"], "__path__"):
        package = types.ModuleType("dictionary_learning")
        package.__path__ = [str(Path(os.environ["DICTIONARY_LEARNING"]) / "dictionary_learning")]
        sys.modules["dictionary_learning"] = package
        for stand_in, names in STAND_INS.items():
            module = types.ModuleType(stand_in)
            for attribute in names:
                setattr(module, attribute, object)
            sys.modules[stand_in] = module
    return importlib.import_module(f"dictionary_learning.{name}")


def dictionary_class(name: str) -> Any:
    """A dictionary class of the owner's."""
    for module in ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k"):
        if hasattr(owner(module), name):
            return getattr(owner(module), name)
    raise KeyError(name)


def trainer(name: str) -> Any:
    """A trainer as a user makes one; its `config` is what the owner writes."""
    module, trainer_class = name.split(".")
    options: dict[str, Any] = {"lm_name": "EleutherAI/pythia-70m-deduped", "layer": 3, "seed": 0, "steps": 100, "warmup_steps": 10}
    options |= {"activation_dim": D_IN, "dict_size": D_SAE, "device": "cpu", "submodule_name": "resid_post_layer_3"}
    if module in ("top_k", "batch_top_k", "matryoshka_batch_top_k"):
        options["k"] = K
    if module == "matryoshka_batch_top_k":
        options["group_fractions"] = [0.25, 0.25, 0.5]
    if module in ("standard", "gdm", "p_anneal", "jumprelu"):
        options["sparsity_warmup_steps"] = 20
    return getattr(owner(f"trainers.{module}"), trainer_class)(**options)


@torch.no_grad()
def randomise_(module: torch.nn.Module, seed: int) -> None:
    """Every parameter drawn anew, biases and norms included; thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 1 else 0.4))
        if name == "threshold":
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
    if "threshold" in dict(module.named_buffers()):
        module.threshold.fill_(1.3)


def record(folder: Path) -> None:
    """Write one folder for every case: the owner's files, and what its forward pass makes of them."""
    for seed, (case, (class_name, trainer_name)) in enumerate(CASES.items()):
        target = folder / case
        target.mkdir(parents=True, exist_ok=True)
        made = trainer(trainer_name)
        if class_name == "AutoEncoderNew":
            made.ae = dictionary_class(class_name)(D_IN, D_SAE)
        randomise_(made.ae, seed)
        config = {"trainer": made.config | {"dict_class": class_name}, "buffer": BUFFER}
        (target / "config.json").write_text(json.dumps(config, indent=4))
        state = {name: tensor.clone() for name, tensor in made.ae.state_dict().items()}
        if case == "backup":  # what is saved while training goes on, in units of acts / norm_factor
            backup = {"step": 40, "ae": state, "optimizer": made.optimizer.state_dict(), "config": made.config, "norm_factor": NORM_FACTOR}
            torch.save(backup, target / "ae.pt")
            made.ae.scale_biases(NORM_FACTOR)  # what the owner does before it saves the final file
            loaded = made.ae
        else:
            torch.save(state, target / "ae.pt")
            loaded, _ = owner("utils").load_dictionary(str(target), "cpu")
        acts = torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(100 + seed)) * 2
        with torch.no_grad():
            found = {"acts": acts, "codes": loaded.encode(acts), "output": loaded(acts)}
        save_file({name: value.contiguous() for name, value in found.items()}, target / "expected.safetensors")
        print(f"{case}: L0 {float((found['codes'] != 0).sum(1).float().mean()):.2f}")


def check(folder: Path) -> None:
    """Load what this package wrote, compare, and note what was seen."""
    seen = {}
    for target in sorted(path for path in folder.iterdir() if path.is_dir()):
        loaded, _ = owner("utils").load_dictionary(str(target), "cpu")
        expected = load_file(target / "expected.safetensors")
        with torch.no_grad():
            codes, output = loaded.encode(expected["acts"]), loaded(expected["acts"])
        seen[target.name] = agreement(target, {"codes": codes, "output": output}, expected)
    write_checked(GOLDEN, LIBRARY, seen)


if __name__ == "__main__":
    run(__doc__, record, check)
