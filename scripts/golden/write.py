"""Write dictionaries in foreign formats, for the foreign libraries to load and check.

    python -m scripts.golden.write FOLDER [FORMAT ...]

A format F of `sae.interop` takes part by a module `scripts/golden/F_cases.py` with

    cases() -> dict[str, Dictionary]      what to write, by name; all parameters random, biases included (see scripts.golden.exact)
    FILE = "ae.pt"                        only where the format is one file: its name inside the case's folder, or such names by case

and a line in FORMATS. Each case becomes FOLDER/F/CASE/: the files that `sae.interop.F.write` makes, and expected.safetensors with acts
[n, d_in], codes [n, d_sae] and output [n, d_out] of this package. The checks are made by `scripts/golden/F.py check FOLDER`, which runs where
the foreign library is installed, compares its own forward, and notes the digests of the files it has seen in
tests/golden/interop/F/checked.json.
"""

import argparse
import importlib
from pathlib import Path

import torch
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.storage import save_tensors

FORMATS = ("saelens", "gemma_scope", "sparsify", "openai_topk", "dictionary_learning", "llama_scope", "llamascopium")
N_ROWS = 16
EXPECTED = "expected.safetensors"


def write(name: str, folder: Path) -> list[str]:
    """Write every case of one format under folder/name; returns the names of the cases."""
    cases, module = importlib.import_module(f"scripts.golden.{name}_cases"), importlib.import_module(f"sae.interop.{name}")
    written = cases.cases()
    for case, dictionary in written.items():
        target = folder / name / case
        target.mkdir(parents=True, exist_ok=True)
        file = getattr(cases, "FILE", "")
        module.write(dictionary, target / (file if isinstance(file, str) else file.get(case, "")))
        save_tensors(target / EXPECTED, expected(dictionary))
    return list(written)


def expected(dictionary: Dictionary) -> dict[str, Tensor]:
    """What the foreign library must find: acts, dense codes and output of the dictionary with its scaling folded in."""
    acts = 2 * torch.randn(N_ROWS, dictionary.d_in, generator=torch.Generator().manual_seed(11))
    folded = dictionary.fold().eval()
    with torch.no_grad():
        return {"acts": acts, "codes": folded.encode(acts).dense().contiguous(), "output": folded(acts).contiguous()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("formats", nargs="*", default=FORMATS, metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all of them by default")
    arguments = parser.parse_args()
    for name in arguments.formats:
        print(f"{name}: {', '.join(write(name, arguments.folder))}")


if __name__ == "__main__":
    main()
