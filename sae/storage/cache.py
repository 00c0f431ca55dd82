"""ResultCache: every expensive result on disk, under a key that says exactly what produced it.

    Key(function, version, config, inputs)  --digest-->  <root>/<function>/<digest[:24]>/
        key.json          the key in full; a hit is believed only if it equals the key asked for
        ...               the result: whatever the caller wrote (safetensors, JSON, Parquet, folders)
        provenance.json   size and SHA-256 of every file, the seconds it took, when, and the library versions

An entry appears by renaming a finished folder, so a killed run leaves nothing that could be taken for a result. Two processes that ask for
the same key compute it once: the second waits for the first. A damaged entry is an error that names it; only `prune` removes anything.
"""

import dataclasses
import datetime
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import CacheError, ConfigError, FormatError
from sae.fingerprint import canonical, digest, digest_file, to_json
from sae.storage.atomic import TEMPORARY_PREFIX, atomic_folder, lock, read_json, write_json

logger = logging.getLogger(__name__)
OWN_FILES = ("key.json", "provenance.json")
ABANDONED_AFTER = 3600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Key:
    """What produced a result; two results are the same exactly when their keys are."""

    function: str
    """Name of the computation, for example `evaluation.reconstruction`; also the folder's name."""
    version: int
    """Raised by hand whenever the computation changes its meaning or its output."""
    config: Any
    """A frozen dataclass or JSON-like mapping with every option that matters."""
    inputs: Mapping[str, str]
    """Digest of every input, by name."""

    def __post_init__(self) -> None:
        if not self.function or not all(c.isalnum() or c in "._-" for c in self.function) or self.function.startswith("."):
            raise ConfigError(f"function must be made of letters, digits, '.', '_' and '-', got {self.function!r} (Key)")

    @property
    def digest(self) -> str:
        """SHA-256 of the key's canonical JSON."""
        return digest(self)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One stored result, as `sae cache ls` shows it."""

    path: Path
    """The entry's folder."""
    function: str
    """Name of the computation."""
    n_bytes: int
    """Size of the result's files, in bytes."""
    seconds: float
    """How long it took to compute, in seconds."""
    created: str
    """When it was finished, UTC, ISO 8601."""


class ResultCache:
    """A folder of results; see the module's text for the layout. Safe for concurrent readers and writers on one file system."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def path(self, key: Key) -> Path:
        """Where the result of `key` is, or would be."""
        return self.root / key.function / key.digest[:24]

    def has(self, key: Key) -> bool:
        """Whether a finished, matching result is there. Raises CacheError if the entry is damaged or belongs to another key."""
        path = self.path(key)
        if not path.exists():
            return False
        self._check(path, key)
        return True

    def build(self, key: Key, fill: Callable[[Path], None]) -> Path:
        """The folder with the result of `key`; `fill(folder)` is called to write it if it is not there yet.

        Raises CacheError naming the entry when it is damaged; nothing is recomputed silently over it.
        """
        path = self.path(key)
        if self.has(key):
            logger.debug("reused %s", path)
            return path
        with lock(self.root / ".locks" / f"{key.digest[:24]}.lock"):
            if self.has(key):
                return path
            started = time.perf_counter()
            with atomic_folder(path) as folder:
                fill(folder)
                clash = [name for name in OWN_FILES if (folder / name).exists()]
                if clash:
                    raise CacheError(f"the result of {key.function} wrote {clash[0]}, a name that the cache keeps for itself")
                write_json(folder / "provenance.json", _provenance(folder, time.perf_counter() - started))
                write_json(folder / "key.json", to_json(key))
        return path

    def entries(self) -> Iterator[Entry]:
        """Every finished entry, by function and digest. Raises FormatError naming a damaged one."""
        for path in self.folders():
            provenance = read_json(path / "provenance.json")
            n_bytes = sum(record["n_bytes"] for record in provenance["files"].values())
            yield Entry(path, path.parent.name, n_bytes, provenance["seconds"], provenance["created"])

    def folders(self) -> list[Path]:
        """The folder of every entry, sound or damaged; half-written ones are left out."""
        return [path for path in sorted(self.root.glob("[!.]*/[!.]*")) if path.is_dir()]

    def verify(self, path: str | Path) -> list[str]:
        """What is wrong with one entry, in words; an empty list when every file has its recorded size and SHA-256."""
        path = Path(path)
        try:
            key, files = read_json(path / "key.json"), read_json(path / "provenance.json")["files"]
        except FormatError as error:
            return [str(error)]
        problems = []
        if digest(key)[:24] != path.name:
            problems.append(f"{path / 'key.json'} does not match the entry's name")
        present = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - set(OWN_FILES)
        for name in sorted(present | set(files)):
            if name not in files:
                problems.append(f"{path / name} is not part of the result")
            elif name not in present:
                problems.append(f"{path / name} is missing")
            elif (path / name).stat().st_size != files[name]["n_bytes"] or digest_file(path / name) != files[name]["sha256"]:
                problems.append(f"{path / name} is damaged: its bytes are not the ones that were written")
        return problems

    def prune(self, drop: Callable[[Entry], bool] = lambda entry: False) -> list[Path]:
        """Remove damaged entries, folders that dead runs left half-written, and entries that `drop` says; returns what was removed.

        A half-written folder counts as dead when nothing in it was touched for an hour.
        """
        removed = [
            path for path in sorted(self.root.glob(f"[!.]*/{TEMPORARY_PREFIX}*")) if time.time() - path.stat().st_mtime > ABANDONED_AFTER
        ]
        removed += [path for path in self.folders() if self.verify(path)]
        for path in removed:
            shutil.rmtree(path)
        dropped = [entry.path for entry in self.entries() if drop(entry)]
        for path in dropped:
            shutil.rmtree(path)
        return removed + dropped

    def _check(self, path: Path, key: Key) -> None:
        try:
            stored = read_json(path / "key.json")
            files = read_json(path / "provenance.json")["files"]
        except FormatError as error:
            raise CacheError(f"the cached result {path} is damaged ({error}); remove it with `sae cache prune`") from error
        if canonical(stored) != canonical(key):
            raise CacheError(f"the cached result {path} was made by another key than the one asked for; remove it with `sae cache prune`")
        for name, record in files.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != record["n_bytes"]:
                raise CacheError(
                    f"the cached result {path} is damaged: {name} is missing or has another size; remove it with `sae cache prune`"
                )


def _provenance(folder: Path, seconds: float) -> dict[str, Any]:
    import torch  # a reader of results does without it

    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {
        "files": {str(f.relative_to(folder)): {"n_bytes": f.stat().st_size, "sha256": digest_file(f)} for f in files},
        "seconds": round(seconds, 3),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
