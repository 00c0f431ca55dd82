"""Bytes that are either wholly on disk or not there at all.

A file (or folder) is written beside its final place under a temporary name, flushed to the disk, and renamed. A reader, or a run that
starts after a crash, sees the old state or the new one, never something in between.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import xxhash

from sae.errors import CacheError, FormatError

TEMPORARY_PREFIX = ".partial-"


def user_cache_dir() -> Path:
    """Where the workbench keeps what it can make again: `$SAE_WORKBENCH_HOME`, else the platform's user cache folder."""
    home = os.environ.get("SAE_WORKBENCH_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("sae-workbench"))


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:12]}-{path.name}"


@contextlib.contextmanager
def _explain_write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"no space left on device while writing {path}; nothing was left half-written, free some room and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CacheError(
                f"{path} cannot be written ({error.strerror}): choose a folder you may write to, or change its permissions"
            ) from error
        raise


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success the file written there is flushed and renamed to `path`, on an error it is removed.

    Raises CacheError when the disk is full. The parent folder is made if need be.
    """
    path = Path(path)
    with _explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it is flushed and renamed to `path`, replacing what was there; on an error removed."""
    path = Path(path)
    with _explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            for item in sorted(temporary.rglob("*")):
                sync(item)
            sync(temporary)
            replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, path: Path) -> None:
    """Give a finished folder, flushed, its name `path` on the same file system; what was there is removed after it."""
    if path.exists():
        retired = _temporary(path)
        os.replace(path, retired)
        os.replace(source, path)
        shutil.rmtree(retired)
    else:
        os.replace(source, path)
    sync(path.parent)


def checksum(path: str | Path) -> str:
    """XXH3-128 of a file's bytes: finds any damage that is not made on purpose, as fast as a disk reads. Raises FormatError if it is missing."""
    state = xxhash.xxh3_128()
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 22):
                state.update(piece)
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    return state.hexdigest()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON value atomically: indented, sorted keys, UTF-8, finite numbers only."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8"))


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises FormatError naming the file when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply, or a number of thousands of digits
        raise FormatError(f"{path} is not valid JSON: {error}") from error


@contextlib.contextmanager
def lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive advisory lock between processes; waits for its turn, or raises CacheError when another holds it and `wait` is false.
    The lock file is left behind, empty; it is released by a crash."""
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise CacheError(f"{path} is held by another process that writes there; wait until it has finished, then run again") from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
