"""What the paths that a program is given are: dictionaries of any format, runs, stores, language models; and what to call them."""

from collections.abc import Sequence
from pathlib import Path

from sae.activations.manifest import MANIFEST, UNFINISHED
from sae.activations.store import ActivationStore
from sae.cli.machine import DEFAULT
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import KINDS
from sae.errors import ConfigError, FormatError
from sae.interop.formats import identify, read
from sae.storage import read_json


def recognise(path: str) -> str:
    """Whether a path is a `dictionary`, a `store` or a `model`. Raises ConfigError saying what is expected."""
    folder = Path(path).expanduser()
    if path == DEFAULT or folder.suffix == ".gguf":
        return "model"
    if (folder / MANIFEST).exists() or (folder / UNFINISHED).exists():
        return "store"
    if (folder / "dictionary" / "config.json").is_file():
        return "dictionary"
    if (folder / "config.json").is_file():
        head = read_json(folder / "config.json")
        if isinstance(head, dict) and head.get("kind") in KINDS:
            return "dictionary"
        if isinstance(head, dict) and ("model_type" in head or "architectures" in head):
            return "model"
    if folder.exists() and _is_foreign(folder):
        return "dictionary"
    kinds = "the folder of a dictionary (config.json, weights.safetensors; or in the format of another library), of a run, "
    there = "is none of them" if folder.exists() else "does not exist"
    rest = "of a store (manifest.json), or a language model (`default`, a folder, a .gguf file)"
    raise ConfigError(f"PATH must be {kinds}{rest}; {path} {there}")


def _is_foreign(path: Path) -> bool:
    try:
        return bool(identify(path))
    except FormatError:
        return False


def load_any_dictionary(path: str | Path, format: str | None = None) -> Dictionary:
    """The dictionary at `path`: our own, that of a run, or one of another library, in eval mode. Raises FormatError saying what is wrong."""
    return read(Path(path).expanduser(), format).eval()


def open_store(folder: str | Path) -> ActivationStore:
    """The store at `folder`. Raises ConfigError where there is none."""
    folder = Path(folder)
    if not (folder / MANIFEST).exists() and not (folder / UNFINISHED).exists():
        raise ConfigError(f"--store must be the folder of an activation store, {folder} is none: it has no {MANIFEST}")
    return ActivationStore.open(folder)


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths that tell them apart."""
    parts = [Path(path).expanduser().resolve().parts for path in paths]
    for n in range(1, max((len(part) for part in parts), default=0) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names) and not (n == 1 and names == ["dictionary"]):
            return names
    return [f"{'/'.join(part[-2:])} ({i + 1})" for i, part in enumerate(parts)]


def refuse_foreign(folder: Path) -> None:
    """Before any work: a folder that holds something else than a report is not written to."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.json").is_file():
        raise ConfigError(f"--out {folder.parent} holds a folder report/ that is not a report: choose another folder")
