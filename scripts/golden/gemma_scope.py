"""Golden files of the Gemma Scope formats, checked by the published forward and by a second reader.

    python scripts/golden/gemma_scope.py record tests/golden/interop/gemma_scope
    python scripts/golden/gemma_scope.py check FOLDER

The owner publishes files and equations, no library:

    acts = ReLU(x W_enc + b_enc) H(x W_enc + b_enc - threshold)        output = acts W_dec + b_dec (+ x affine_skip_connection)

(Lieberum et al. 2024, 2408.05147, section 2; the tutorials of both releases). They are written out here in float64. The second reader is SAELens,
whose loaders of these formats are right except that they leave b_dec unscaled for SAEs of embeddings. Runs in an environment of its own, Python 3.11 with
`pip install sae-lens==6.54.12`; nothing of this project is imported. `record` writes one folder a case: params.npz (Gemma 2) or config.json
and params.safetensors (Gemma 3) with random parameters, and expected.safetensors with acts, codes and output. `check` loads such
folders written by this project's writer, compares both readers with it, and writes checked.json.
"""

import argparse
import hashlib
import importlib.metadata
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

TOLERANCE = 1e-5
CHECKED = Path(__file__).resolve().parents[2] / "tests/golden/interop/gemma_scope/checked.json"
N_ROWS = 14
MARGIN = 1e-4
"""No pre-activation may lie nearer to its threshold: rounding must not decide what is active."""
CONFIG = {"width": 32, "model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 12}
HOOK = "model.layers.13."
SAE = {"hf_hook_point_in": HOOK + "output", "hf_hook_point_out": HOOK + "output", **CONFIG, "affine_connection": False, "type": "sae"}
TRANSCODER = {
    "hf_hook_point_in": HOOK + "pre_feedforward_layernorm.output", "hf_hook_point_out": HOOK + "post_feedforward_layernorm.output",
    **CONFIG, "affine_connection": True, "type": "transcoder",
}  # fmt: skip


def main() -> None:
    """Record or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    (check if arguments.command == "check" else record)(arguments.folder)


def record(folder: Path) -> None:
    """All cases, with random parameters throughout."""
    record_case(folder / "v1", 1, d_in=12, d_out=12)
    record_case(folder / "v1_small_names", 2, d_in=10, d_out=10, small=True, low=-0.4)
    record_case(folder / "v1_transcoder", 3, d_in=10, d_out=14)
    record_case(folder / "v2", 6, d_in=12, d_out=12, config=SAE)
    record_case(folder / "v2_transcoder", 8, d_in=11, d_out=11, config=TRANSCODER)


def record_case(
    folder: Path, seed: int, *, d_in: int, d_out: int, config: dict | None = None, small: bool = False, low: float = 0.05
) -> None:
    """One dictionary of random numbers, as its owner would publish it, and what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    n = CONFIG["width"]
    shapes = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_enc": (n,), "b_dec": (d_out,)}
    params = {name: 0.4 * generator.standard_normal(shape) for name, shape in shapes.items()}
    params["threshold"] = generator.uniform(low, 1.2, n)
    if small:
        params["threshold"][3] = 0.0
    if config and config["affine_connection"]:
        params["affine_skip_connection"] = 0.3 * generator.standard_normal((d_in, d_out))
    params = {name: value.astype(np.float32) for name, value in params.items()}
    acts = (1.5 * generator.standard_normal((N_ROWS, d_in)) + 0.3).astype(np.float32)
    pre = acts.astype(np.float64) @ params["W_enc"] + params["b_enc"]
    assert np.abs(pre - params["threshold"]).min() > MARGIN, "a pre-activation is too near its threshold"
    codes, output = published(params, acts)
    save_file({"acts": acts, "codes": codes, "output": output}, folder / "expected.safetensors")
    lower = {name.replace("W_", "w_"): value for name, value in params.items()}
    if config is None:
        np.savez(folder / "params.npz", **(lower if small else params))
    else:
        save_file(lower, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps(config))


def published(params: dict[str, np.ndarray], acts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, output) by the equations above."""
    wide = {name.replace("w_", "W_"): value.astype(np.float64) for name, value in params.items()}
    x = acts.astype(np.float64)
    pre = x @ wide["W_enc"] + wide["b_enc"]
    codes = np.maximum(pre, 0) * (pre > wide["threshold"])
    output = codes @ wide["W_dec"] + wide["b_dec"]
    if "affine_skip_connection" in wide:
        output = output + x @ wide["affine_skip_connection"]
    return codes.astype(np.float32), output.astype(np.float32)


def saelens(folder: Path, params: dict[str, np.ndarray], acts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes, output) by SAELens's loaders of these formats, the download replaced by the folder."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    shapes = {name.replace("W_", "w_"): list(value.shape) for name, value in params.items()}
    (d_in, d_sae), d_out = shapes["w_enc"], shapes["w_dec"][1]

    def local(repo: str = "", filename: str = "", **options: object) -> str:
        return str(folder / Path(filename).name)

    with mock.patch.multiple(loaders, hf_hub_download=local, get_safetensors_tensor_shapes=lambda *_: shapes):
        if not (folder / "params.npz").exists():
            kind = json.loads((folder / "config.json").read_text())["type"]
            name = "transcoder/layer_13" if kind == "transcoder" else "resid_post/layer_13"
            config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-1b-pt", name)
        elif d_in == d_out:
            widths = {"d_in": d_in, "d_sae": d_sae}
            config, state, _ = loaders.gemma_2_sae_huggingface_loader(
                "google/gemma-scope-2b-pt-res", "layer_20/width_16k", cfg_overrides=widths
            )
        else:
            widths = {"d_in": d_in, "d_sae": d_sae, "d_out": d_out}
            repository = "google/gemma-scope-2b-pt-transcoders"
            config, state, _ = loaders.gemma_2_transcoder_huggingface_loader(repository, "layer_20/width_16k", cfg_overrides=widths)
    sae = SAE.from_dict({**handle_config_defaulting(config), "device": "cpu"})
    sae.load_state_dict(state)
    with torch.no_grad():
        x = torch.from_numpy(acts)
        return sae.encode(x).numpy(), sae(x).numpy()


def check(folder: Path) -> None:
    """Compare what both readers make of our files with what we do, for values above 1 as a share of the largest; write checked.json."""
    cases = {}
    for case in sorted(path.parent for path in folder.glob("*/expected.safetensors")):
        ours = load_file(case / "expected.safetensors")
        npz = case / "params.npz"
        params = dict(np.load(npz, allow_pickle=False)) if npz.exists() else load_file(case / "params.safetensors")
        differences = [
            float(np.abs(theirs - ours[name]).max()) / max(1.0, float(np.abs(ours[name]).max()))
            for found in (published(params, ours["acts"]), saelens(case, params, ours["acts"]))
            for name, theirs in zip(("codes", "output"), found, strict=True)
        ]
        assert max(differences) < TOLERANCE, f"{case.name} differs by {max(differences)}"
        cases[case.name] = {"sha256": digests(case), "largest_difference": max(differences)}
    library = f"published forward, and sae-lens {importlib.metadata.version('sae-lens')}"
    CHECKED.write_text(json.dumps({"library": library, "cases": cases}, indent=2) + "\n")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the format, by its path below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "expected.safetensors")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
