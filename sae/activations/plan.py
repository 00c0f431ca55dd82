"""What a store is to become: checked against what is there, and announced in `unfinished.json` before anything else is written."""

from dataclasses import replace
from pathlib import Path

from sae.activations.manifest import (
    MANIFEST,
    OWN_CAPTURE_FIELDS,
    UNFINISHED,
    Manifest,
    differences,
    pending_manifest,
    read_manifest,
    write_manifest,
)
from sae.activations.shards import store_lock
from sae.errors import ConfigError
from sae.storage import lock
from sae.storage.atomic import TEMPORARY_PREFIX


def announce(path: Path, wanted: Manifest, *, alone: bool = True, dry: bool = False) -> bool:
    """Whether there is anything to do to make the store at `path` what is wanted; if so, and not `dry`, that is written down there.

    `alone` says that no other process is at work on the store; while one is, only the same may be wanted. Raises ConfigError when what is
    there is neither nothing nor the beginning of what is wanted, naming every difference.
    """
    if dry:
        return _check(path, wanted, alone=alone)
    with lock(store_lock(path)):
        needed = _check(path, wanted, alone=alone)
        if needed and not is_announced(path, wanted):
            write_manifest(path, wanted, UNFINISHED)
        return needed


def is_announced(path: Path, wanted: Manifest) -> bool:
    """Whether the same is written down already, perhaps with more that is known by now (how many rows there are)."""
    known = pending_manifest(path)
    return known is not None and not differences(known, wanted, but=()) and (known.n_rows == wanted.n_rows or wanted.n_rows == 0)


def _check(path: Path, wanted: Manifest, *, alone: bool) -> bool:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"path must be a folder, {path} is a file: choose another path")
    if not path.exists() or all(entry.name.startswith(TEMPORARY_PREFIX) for entry in path.iterdir()):
        return True
    known = pending_manifest(path)  # first: a process that completes the store writes the one before it removes the other
    finished = (path / MANIFEST).exists()
    if not finished and known is None:
        raise ConfigError(
            f"path must be a new folder or an activation store, {path} is neither: it has no {MANIFEST} or {UNFINISHED}; choose another path"
        )
    if finished and _is_there(path, wanted):
        return False
    if known is not None and (finished or any(path.glob("shards/[0-9]*"))):
        problems = differences(known, wanted, but=OWN_CAPTURE_FIELDS if alone else ())
        if problems and finished:
            raise ConfigError(
                f"{path} is being added to by another capture that has not ended; finish that one first: " + "; ".join(problems)
            )
        if problems and not alone:
            raise ConfigError(f"{path} is being filled by another process, with something else: wait for its end: " + "; ".join(problems))
        if problems:
            raise ConfigError(f"{path} was begun with something else, choose another path or remove it: " + "; ".join(problems))
    return True


def _is_there(path: Path, wanted: Manifest) -> bool:
    """Whether the complete store at `path` has what is wanted. Raises ConfigError when it can never become that."""
    stored = read_manifest(path)
    sites_differ = stored.sites != wanted.sites
    extends = sites_differ and set(stored.sites) < set(wanted.sites) and wanted.n_rows == stored.n_rows > 0
    like = replace(stored, sites=wanted.sites, capture=replace(stored.capture, sites=wanted.capture.sites)) if extends else stored
    problems = differences(like, wanted)
    if stored.capture.n_tokens > wanted.capture.n_tokens:
        problems += [
            f"capture.n_tokens is {stored.capture.n_tokens} in the finished store, {wanted.capture.n_tokens} now, and a store is never shortened"
        ]
    if problems:
        hint = "; to add a site to the same tokens use extend" if sites_differ and not extends else ""
        raise ConfigError(f"{path} was begun with something else, choose another path or remove it: " + "; ".join(problems) + hint)
    if extends:
        return False
    return stored.n_rows >= wanted.capture.n_rows or stored.capture == wanted.capture
