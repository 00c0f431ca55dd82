"""Golden files of the sparsify format, recorded from and checked by its owner's library.

    python scripts/golden/sparsify.py record tests/golden/interop/sparsify --signed-source CLONE
    python scripts/golden/sparsify.py check FOLDER

Runs in an environment of its own, Python 3.11 with `pip install eai-sparsify==1.3.3`; nothing of this project is imported. `record` writes
one folder a case: cfg.json and sae.safetensors as SparseCoder.save_to_disk leaves them, and expected.safetensors with acts, codes and
output of the library's own encode and forward. The case `signed` comes from the library as it was before it gave up signed codes, a clone
of https://github.com/EleutherAI/sparsify at commit f8a710bde2365e61d0b4d2b153f871047f3ed518. `check` loads such folders written by
this project's writer, compares the library's forward with theirs, and writes checked.json.
"""

import argparse
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-5
CHECKED = Path(__file__).resolve().parents[2] / "tests/golden/interop/sparsify/checked.json"
N_ROWS = 14
OLD_KEYS = ("expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection", "d_in")
"""What a cfg.json of December 2024 holds."""
CASES = {
    "layers.5": {"d_in": 10, "expansion_factor": 3, "k": 4},
    "layers.7.mlp": {"d_in": 12, "num_latents": 36, "k": 5, "transcode": True, "skip_connection": True, "multi_topk": True},
    "layers.3.attention": {"d_in": 9, "num_latents": 30, "k": 3, "skip_connection": True, "normalize_decoder": False},
    "bfloat16": {"d_in": 8, "num_latents": 24, "k": 6, "dtype": torch.bfloat16},
}


def main() -> None:
    """Record or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--signed-source", type=Path, help="a clone of the owner's repository at the commit named above")
    arguments = parser.parse_args()
    sys.path[:] = [
        path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent
    ]  # this file's name hides the library
    if arguments.command == "check":
        check(arguments.folder)
        return
    for number, (case, options) in enumerate(CASES.items()):
        record(arguments.folder / case, dict(options), torch.Generator().manual_seed(number))
    if arguments.signed_source is not None:
        record_signed(arguments.folder / "signed", arguments.signed_source)


def record(folder: Path, options: dict, generator: torch.Generator) -> None:
    """One case of today's library: save, load again, and run."""
    from sparsify import SparseCoder, SparseCoderConfig

    d_in, dtype = options.pop("d_in"), options.pop("dtype", torch.float32)
    coder = SparseCoder(d_in, SparseCoderConfig(**options), dtype=dtype)
    randomise_(coder, generator)
    coder.save_to_disk(folder)
    if folder.name == "layers.3.attention":  # a file from before the library's configuration said whether it transcodes
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps({key: config[key] for key in OLD_KEYS}))
    acts = 1.5 * torch.randn(N_ROWS, d_in, generator=generator) + 0.3
    save_expected(folder, acts, *run(SparseCoder.load_from_disk(folder).float(), acts))


def record_signed(folder: Path, source: Path) -> None:
    """The case with signed codes, by the library that still had them."""
    sys.path.insert(0, str(source))
    from sae.config import SaeConfig
    from sae.sae import Sae

    generator = torch.Generator().manual_seed(99)
    coder = Sae(10, SaeConfig(num_latents=32, k=5, signed=True))
    randomise_(coder, generator)
    coder.save_to_disk(folder)
    acts = torch.randn(N_ROWS, 10, generator=generator)
    coder = Sae.load_from_disk(folder)
    with torch.no_grad():
        found = coder(acts)
        codes = torch.zeros(N_ROWS, 32).scatter_(1, found.latent_indices, found.latent_acts)
    assert bool((codes < 0).any()), "signed codes must be tested"
    save_expected(folder, acts, codes, found.sae_out)


def randomise_(coder: torch.nn.Module, generator: torch.Generator) -> None:
    """Random values in every parameter: atoms of many norms, biases other than 0."""
    with torch.no_grad():
        for parameter in coder.parameters():
            size = 0.5 if parameter.ndim == 2 else 0.4
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def run(coder: torch.nn.Module, acts: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, output) of the library's own encode and forward."""
    values, indices, _ = coder.encode(acts)
    codes = torch.zeros(len(acts), coder.num_latents).scatter_(1, indices, values)
    if not coder.cfg.multi_topk:
        return codes, coder(acts).sae_out
    # With multi_topk the library's forward returns the reconstruction from 4 k latents, a part of its loss; encode has k.
    output = coder.decode(values, indices)
    return codes, output if coder.W_skip is None else output + acts @ coder.W_skip.mT


def save_expected(folder: Path, acts: Tensor, codes: Tensor, output: Tensor) -> None:
    """What the library made of `acts`."""
    tensors = {"acts": acts, "codes": codes, "output": output}
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


def check(folder: Path) -> None:
    """Compare what the library makes of our files with what we do; write checked.json."""
    from sparsify import SparseCoder

    cases = {}
    for case in sorted(path.parent for path in folder.glob("*/expected.safetensors")):
        ours = load_file(case / "expected.safetensors")
        codes, output = run(SparseCoder.load_from_disk(case), ours["acts"])
        difference = max(apart(codes, ours["codes"]), apart(output, ours["output"]))
        assert difference < TOLERANCE, f"{case.name} differs by {difference}"
        cases[case.name] = {"sha256": digests(case), "largest_difference": difference}
    head = {"library": f"eai-sparsify {importlib.metadata.version('eai-sparsify')}", "cases": cases}
    CHECKED.write_text(json.dumps(head, indent=2) + "\n")


def apart(theirs: Tensor, ours: Tensor) -> float:
    """Largest difference, for values above 1 as a share of the largest of them."""
    return float((theirs - ours).abs().max()) / max(1.0, float(ours.abs().max()))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the format, by its path below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "expected.safetensors")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
