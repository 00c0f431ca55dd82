"""Golden files of OpenAI's autoencoder format, recorded from and checked by its owner's code.

    python scripts/golden/openai_topk.py record tests/golden/interop/openai_topk --source CLONE
    python scripts/golden/openai_topk.py check FOLDER --source CLONE

CLONE is a clone of https://github.com/openai/sparse_autoencoder at commit 4965b941e9eb590b00b253a2c406db1e1b193942; of its
package only model.py is used, which needs torch alone (recorded with 2.13.0). Runs in an environment of its own; nothing of
this project is imported. `record` writes one folder a case: a state dict as Autoencoder.state_dict gives it, saved under the path of the
published files, and expected.safetensors with acts, codes and output of the owner's own forward. `check` loads such folders written
by this project's writer with Autoencoder.from_state_dict, compares, and writes checked.json.
"""

import argparse
import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-5
CHECKED = Path(__file__).resolve().parents[2] / "tests/golden/interop/openai_topk/checked.json"
N_ROWS = 14
LIBRARY = "openai/sparse_autoencoder 4965b941e9eb590b00b253a2c406db1e1b193942"


def main() -> None:
    """Record or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, required=True, help="the clone named above")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.source))
    warnings.filterwarnings("ignore", message="Positional args are being deprecated", category=FutureWarning)
    (check if arguments.command == "check" else record)(arguments.folder)


def record(folder: Path) -> None:
    """The layer-normalised TopK release, the same with the keys that `state_dict` says twice, a ReLU release in torch's old file format,
    and tied weights.
    """
    from sparse_autoencoder.model import Autoencoder, TopK

    topk = Autoencoder(32, 12, activation=TopK(k=5), normalize=True)
    record_case(folder / "topk", "resid_post_mlp_v5_32k/autoencoders/6.pt", topk, seed=1)
    wordy = Autoencoder(24, 8, activation=TopK(k=3), normalize=True)
    record_case(folder / "topk_of_state_dict", "resid_delta_attn_v5_128k/autoencoders/11.pt", wordy, seed=4, twice=True)
    record_case(folder / "relu", "mlp_post_act/autoencoders/3.pt", Autoencoder(28, 10), seed=2, zipped=False)
    record_case(folder / "tied", "tied.pt", Autoencoder(24, 9, tied=True), seed=3)


def record_case(folder: Path, name: str, autoencoder: torch.nn.Module, *, seed: int, zipped: bool = True, twice: bool = False) -> None:
    """Random parameters and statistics, the state dict on disk, and what the autoencoder does.

    `state_dict` gives a TopK's k and postact_fn a second time, as activation.k and activation.postact_fn, with which `from_state_dict` does not
    load it; the published files do not have these, and only the case `twice` does.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        autoencoder.stats_last_nonzero += torch.randint(1000, autoencoder.stats_last_nonzero.shape, generator=generator)
        for statistic in (autoencoder.latents_activation_frequency, autoencoder.latents_mean_square):
            statistic.copy_(torch.rand(statistic.shape, generator=generator))
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value for key, value in autoencoder.state_dict().items() if twice or not key.startswith("activation.")}
    with open(path, "wb") as file:
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
    acts = 2 * torch.randn(N_ROWS, len(autoencoder.pre_bias), generator=generator) + 0.7
    codes, output = run(autoencoder, acts)
    tensors = {"acts": acts, "codes": codes, "output": output}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


@torch.no_grad()
def run(autoencoder: torch.nn.Module, acts: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, output) of the owner's forward."""
    _, codes, output = autoencoder(acts)
    return codes, output


def check(folder: Path) -> None:
    """Compare what the owner's code makes of our files with what we do; write checked.json."""
    from sparse_autoencoder.model import Autoencoder

    cases = {}
    for case in sorted(path.parent for path in folder.glob("*/expected.safetensors")):
        (path,) = case.rglob("*.pt")
        ours = load_file(case / "expected.safetensors")
        codes, output = run(Autoencoder.from_state_dict(torch.load(path, weights_only=True)), ours["acts"])
        difference = max(apart(codes, ours["codes"]), apart(output, ours["output"]))
        assert difference < TOLERANCE, f"{case.name} differs by {difference}"
        cases[case.name] = {"sha256": digests(case), "largest_difference": difference}
    CHECKED.write_text(json.dumps({"library": LIBRARY, "cases": cases}, indent=2) + "\n")


def apart(theirs: Tensor, ours: Tensor) -> float:
    """Largest difference, for values above 1 as a share of the largest of them."""
    return float((theirs - ours).abs().max()) / max(1.0, float(ours.abs().max()))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the format, by its path below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "expected.safetensors")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
