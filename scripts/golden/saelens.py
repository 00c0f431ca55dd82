"""What SAELens itself makes of small random dictionaries, and what it makes of ours.

    python scripts/golden/saelens.py record tests/golden/interop/saelens
    python -m scripts.golden.write WRITTEN saelens          (in this package's environment)
    python scripts/golden/saelens.py check WRITTEN/saelens

Runs in an environment of its own, with Python 3.11 and sae-lens 6.54.12 (which brings torch, safetensors and transformer-lens 3.9).
`record` saves one dictionary of every kind with SAELens' own classes, loads it again with SAELens' own loader and writes beside it what that
says: expected.safetensors with acts [n, d_in], codes [n, d_sae] and output [n, d_out]. `check` loads with SAELens what `sae.interop.saelens`
has written, compares with the expected.safetensors beside it and writes checked.json: the digests of the files and the largest difference.
"""

import argparse
import hashlib
import json
import tempfile
import warnings
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sae_lens.saes as lens
import torch
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_SAE, D_OUT, N_ROWS = 12, 32, 10, 14
CONFIG, WEIGHTS, EXPECTED = "cfg.json", "sae_weights.safetensors", "expected.safetensors"
CHECKED = Path(__file__).resolve().parents[2] / "tests/golden/interop/saelens/checked.json"
TOLERANCE = 1e-5
Case = Callable[[Path, torch.Generator], None]
CASES: dict[str, Case] = {}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def fill(sae: Any, generator: torch.Generator, *, unit: bool = False) -> Any:
    """Random parameters: no bias is zero and atoms have norms from 0.7 to 1.3 (`unit`: norm 1)."""
    for name, tensor in sorted([*sae.named_parameters(), *sae.named_buffers()]):
        drawn = 0.4 * normal(generator, *tensor.shape)
        if name == "W_dec":
            drawn = torch.nn.functional.normalize(drawn, dim=1)
            drawn = drawn if unit else drawn * (0.7 + 0.6 * torch.rand(len(drawn), 1, generator=generator))
        if name in ("threshold", "topk_threshold"):
            drawn = drawn.abs() + 0.05
        tensor.copy_(drawn)
    return sae


def metadata(**more: Any) -> SAEMetadata:
    known = {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_post", "context_size": 128, "prepend_bos": True}
    return SAEMetadata(**(known | {"our_own_note": {"runs": [1, 2]}} | more))


def acts_for(generator: torch.Generator, sae: Any) -> Tensor:
    """Random rows; the last two are so near b_dec that a pursuit has next to nothing to explain."""
    acts = 1.5 * normal(generator, N_ROWS, sae.cfg.d_in) + 0.3
    if sae.cfg.architecture() == "matching_pursuit":
        start = sae.b_dec * sae.cfg.apply_b_dec_to_input
        acts[-2:] = start.detach() + 0.002 * normal(generator, 2, sae.cfg.d_in)
    return acts


def say(folder: Path, generator: torch.Generator, sae: Any, scaler: ActivationScaler | None = None) -> None:
    """Write what SAELens' own forward gives for random activations."""
    sae, scaler = sae.eval(), scaler or ActivationScaler()
    acts = acts_for(generator, sae)
    shape = (N_ROWS, 3, D_IN // 3) if sae.cfg.reshape_activations == "hook_z" else (N_ROWS, D_IN)
    with torch.no_grad():
        x = scaler.scale(acts).reshape(shape)
        codes, output = sae.encode(x), sae(x)
    assert torch.isfinite(codes).all()
    assert torch.isfinite(output).all()
    said = {"acts": acts, "codes": codes, "output": scaler.unscale(output.reshape(N_ROWS, -1))}
    save_file({name: tensor.float().contiguous() for name, tensor in said.items()}, folder / EXPECTED)


def inference(name: str, config: type, *, unit: bool = False, after: Callable[[Path], None] | None = None, **options: Any) -> None:
    """A case: an inference dictionary saved by save_model, changed by `after`, loaded by SAE.load_from_disk."""

    def case(folder: Path, generator: torch.Generator) -> None:
        width = {"d_in": D_IN, "d_sae": D_SAE, "metadata": metadata()}
        cfg = config(**(width | options))
        sae = fill(lens.SAE.get_sae_class_for_architecture(cfg.architecture())(cfg), generator, unit=unit)
        sae.save_model(folder)
        if after:
            after(folder)
        say(folder, generator, lens.SAE.load_from_disk(folder, dtype="float32"))

    CASES[name] = case


def training(name: str, config: type, *, saved: str = "checkpoint", after: Callable[[Path], None] | None = None, **options: Any) -> None:
    """A case: a dictionary in training, saved as a checkpoint or for inference. What counts is what its inference form says."""

    def case(folder: Path, generator: torch.Generator) -> None:
        width = {"d_in": D_IN, "d_sae": D_SAE, "metadata": metadata()}
        cfg = config(**(width | options))
        sae = fill(TrainingSAE.get_sae_class_for_architecture(cfg.architecture())(cfg), generator)
        sae.save_model(folder) if saved == "checkpoint" else sae.save_inference_model(folder)
        if after:
            after(folder)
        if saved == "inference":
            return say(folder, generator, lens.SAE.load_from_disk(folder))
        scaler = ActivationScaler()
        if (folder / "activation_scaler.json").exists():
            scaler.load(folder / "activation_scaler.json")
        with tempfile.TemporaryDirectory() as temporary:
            TrainingSAE.load_from_disk(folder).save_inference_model(temporary)
            return say(folder, generator, lens.SAE.load_from_disk(temporary), scaler)

    CASES[name] = case


def change_weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def after(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return after


def change_config(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def after(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(change(config)))

    return after


def scaler_file(folder: Path) -> None:
    ActivationScaler(scaling_factor=0.37).save(str(folder / "activation_scaler.json"))


def logarithm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("log_threshold" if n == "threshold" else n): (t.log() if n == "threshold" else t) for n, t in tensors.items()}


def some_thresholds_not_positive(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors["threshold"][:4] = torch.tensor([0.0, -0.2, -3.0, 0.0])
    return tensors


def before_6(**flat: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The flat configuration of SAELens 0 to 5, with the names of those versions."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        kept = {name: config[name] for name in ("d_in", "d_sae", "apply_b_dec_to_input")}
        return kept | {"dtype": "torch.float32", "device": "cpu", "model_name": "tiny", "context_size": 128, "lr": 0.0004} | flat

    return change


def declare_cases() -> None:
    for name, config, options in (
        ("standard", lens.StandardSAEConfig, {}),
        ("topk", lens.TopKSAEConfig, {"k": 5}),
        ("abstopk", lens.AbsTopKSAEConfig, {"k": 5}),
        ("jumprelu", lens.JumpReLUSAEConfig, {}),
        ("gated", lens.GatedSAEConfig, {}),
        ("matching_pursuit", lens.MatchingPursuitSAEConfig, {"unit": True, "max_iterations": 6}),
    ):
        inference(name, config, **options)
        inference(f"{name}_raw_input", config, apply_b_dec_to_input=False, **options)
    declare_training()
    declare_pursuits()
    declare_transcoders()
    declare_inputs()
    declare_files()


def declare_training() -> None:
    widths = {"matryoshka_widths": [8, 16, D_SAE]}
    training("standard_training", lens.StandardTrainingSAEConfig)
    training("gated_training", lens.GatedTrainingSAEConfig)
    training("topk_training", lens.TopKTrainingSAEConfig, k=5)
    training("topk_training_plain", lens.TopKTrainingSAEConfig, k=5, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False)
    training("topk_training_saved", lens.TopKTrainingSAEConfig, saved="inference", k=5)
    training("abstopk_training", lens.AbsTopKTrainingSAEConfig, k=5)
    training("batchtopk_training", lens.BatchTopKTrainingSAEConfig, k=4.5)
    training(
        "batchtopk_training_plain", lens.BatchTopKTrainingSAEConfig, k=4, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False
    )
    training("batchtopk_saved", lens.BatchTopKTrainingSAEConfig, saved="inference", k=4.5)
    training("matryoshka_training", lens.MatryoshkaBatchTopKTrainingSAEConfig, k=4.5, **widths)
    training("matryoshka_saved", lens.MatryoshkaBatchTopKTrainingSAEConfig, saved="inference", k=4.5, **widths)
    training("jumprelu_training", lens.JumpReLUTrainingSAEConfig)
    training("jumprelu_log_threshold", lens.JumpReLUTrainingSAEConfig, after=change_weights(logarithm))
    training("matching_pursuit_training", lens.MatchingPursuitTrainingSAEConfig, decoder_init_norm=1.0)
    inference("topk_rescaled", lens.TopKSAEConfig, k=5, rescale_acts_by_decoder_norm=True)
    inference("abstopk_rescaled", lens.AbsTopKSAEConfig, k=5, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    inference("jumprelu_low_thresholds", lens.JumpReLUSAEConfig, after=change_weights(some_thresholds_not_positive))


def declare_pursuits() -> None:
    config, on = lens.MatchingPursuitSAEConfig, {"residual_threshold": 0.0, "stop_on_duplicate_support": False}
    inference("pursuit_default", config)
    inference("pursuit_iterations", config, **on, max_iterations=5)
    inference("pursuit_no_limit", config, **on)
    inference("pursuit_more_than_atoms", config, **(on | {"stop_on_duplicate_support": True}), max_iterations=40)
    inference("pursuit_threshold", config, **(on | {"residual_threshold": 2.0}), unit=True)
    inference("pursuit_threshold_long", config, **(on | {"residual_threshold": 2.0}))
    inference("pursuit_repeat", config, **(on | {"stop_on_duplicate_support": True}), unit=True)
    inference("pursuit_repeat_long", config, **(on | {"stop_on_duplicate_support": True}))
    inference("pursuit_layer_norm", config, max_iterations=6, normalize_activations="layer_norm")
    inference("pursuit_constant_norm", config, max_iterations=6, normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False)


def declare_transcoders() -> None:
    out = {
        "apply_b_dec_to_input": False,
        "metadata": metadata(hook_name="blocks.3.ln2.hook_normalized", hook_name_out="blocks.3.hook_mlp_out"),
    }
    for name, config in (
        ("transcoder", lens.TranscoderConfig),
        ("jumprelu_transcoder", lens.JumpReLUTranscoderConfig),
        ("skip_transcoder", lens.SkipTranscoderConfig),
        ("jumprelu_skip_transcoder", lens.JumpReLUSkipTranscoderConfig),
    ):
        inference(name, config, **out, d_out=D_OUT)
    inference("skip_transcoder_square", lens.SkipTranscoderConfig, **out, d_out=D_IN)


def declare_inputs() -> None:
    def z_config(**changes: Any) -> dict[str, Any]:
        return {"reshape_activations": "hook_z", "metadata": metadata(hook_name="blocks.3.attn.hook_z", **changes)}

    inference("layer_norm", lens.TopKSAEConfig, k=5, normalize_activations="layer_norm")
    inference("layer_norm_raw_input", lens.GatedSAEConfig, normalize_activations="layer_norm", apply_b_dec_to_input=False)
    inference("constant_norm", lens.StandardSAEConfig, normalize_activations="constant_norm_rescale")
    inference("constant_norm_raw_input", lens.JumpReLUSAEConfig, normalize_activations="constant_norm_rescale", apply_b_dec_to_input=False)
    inference("average", lens.StandardSAEConfig, normalize_activations="expected_average_only_in")
    training("average_scaler", lens.StandardTrainingSAEConfig, normalize_activations="expected_average_only_in", after=scaler_file)
    training("average_scaler_plain", lens.BatchTopKTrainingSAEConfig, normalize_activations="expected_average_only_in", k=4,
             apply_b_dec_to_input=False, after=scaler_file)  # fmt: skip
    training("average_scaler_pursuit", lens.MatchingPursuitTrainingSAEConfig, normalize_activations="expected_average_only_in",
             decoder_init_norm=1.0, residual_threshold=0.8, after=scaler_file)  # fmt: skip
    inference("hook_z", lens.StandardSAEConfig, **z_config())


def declare_files() -> None:
    def ones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"scaling_factor": torch.ones(D_SAE)}

    def halves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}

    old = {"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3, "hook_point_head_index": None}
    topk = {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "hook_name": "blocks.3.attn.hook_z",
        "sae_lens_training_version": "4.1",
    }
    averaged = {"hook_name": "blocks.3.hook_resid_pre", "hook_layer": 3, "normalize_activations": True, "architecture": "jumprelu"}
    inference("before_6", lens.StandardSAEConfig, after=change_config(before_6(**old, normalize_activations=False)))
    inference("before_6_topk", lens.TopKSAEConfig, k=5, after=change_config(before_6(**topk)))
    inference("before_6_average", lens.JumpReLUSAEConfig, after=lambda folder: (
        change_config(before_6(**averaged))(folder), change_weights(ones)(folder))[0])  # fmt: skip
    inference("bfloat16", lens.TopKSAEConfig, k=5, dtype="bfloat16", after=change_weights(halves))


def record(folder: Path) -> None:
    declare_cases()
    for name, case in CASES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case(folder / name, torch.Generator().manual_seed(zlib.crc32(name.encode())))
        size = sum(path.stat().st_size for path in (folder / name).iterdir())
        active = load_file(folder / name / EXPECTED)["codes"].count_nonzero(1)
        print(
            f"{name:28} {size:6,} bytes, {active.float().mean():5.1f} active latents a row, from {int(active.min())} to {int(active.max())}"
        )


def check(folder: Path) -> None:
    """Load what was written, compare, and note which bytes were compared."""
    cases: dict[str, Any] = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        expected = load_file(case / EXPECTED)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            sae = lens.SAE.load_from_disk(case).eval()
            acts = expected["acts"].unflatten(1, (3, -1)) if sae.cfg.reshape_activations == "hook_z" else expected["acts"]
            said = {"codes": sae.encode(acts), "output": sae(acts).reshape(len(acts), -1)}
        difference = max(float((said[name] - expected[name]).abs().max()) for name in said)
        files = sorted(path for path in case.iterdir() if path.name != EXPECTED)
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        cases[case.name] = {"sha256": digests, "largest_difference": difference}
        print(f"{case.name:28} {sae.cfg.architecture():24} differs by {difference:.1e}")
        if difference > TOLERANCE:
            raise SystemExit(f"{case.name} differs by {difference:.1e}, at most {TOLERANCE:.0e} is allowed")
    CHECKED.write_text(json.dumps({"library": f"sae-lens {version('sae-lens')}", "cases": cases}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"record": record, "check": check}[arguments.command](arguments.folder)


if __name__ == "__main__":
    main()
