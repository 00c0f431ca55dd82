"""What the scripts that check our files against their owners share: torch and the standard library, nothing of this project."""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

BAR = 1e-5
"""Largest difference of codes or outputs."""


def agreement(target: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """The digests of a folder that we wrote, and how far the owner's codes and output of it are from ours. Fails beyond BAR."""
    difference = max(float((found[name] - expected[name]).abs().max()) for name in ("codes", "output"))
    assert difference < BAR, f"{target}: the owner's codes or output differ by {difference}"
    files = sorted(path for path in target.rglob("*") if path.is_file() and path.name != "expected.safetensors")
    digests = {str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    print(f"{target.name}: {difference:.1e}")
    return {"sha256": digests, "largest_difference": difference}


def write_checked(golden: Path, library: str, seen: Mapping[str, Any]) -> None:
    """Write `checked.json`."""
    (golden / "checked.json").write_text(json.dumps({"library": library, "cases": seen}, indent=2) + "\n")


def run(about: str | None, record: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """The program: `record FOLDER` or `check FOLDER`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "check"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"record": record, "check": check}[arguments.command](arguments.folder)
