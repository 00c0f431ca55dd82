"""Which process works on what, when several fill one store.

A claim is an advisory lock on one byte of a file beside the store. The system lets go of it when the process ends, however it ends, so the
work of one that died is taken over by the others. Claims do not hold between iterators of one process: an iterator that was abandoned
half-way must not stand in the way of the next. Two that work on one shard write the same bytes, and the first to finish wins.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from sae.errors import CacheError

TOKENS, COMPLETION, WORK, FIRST_SHARD = 0, 1, 2, 16
"""Bytes: writing the tokens, completing the store, being at work on it, the first shard."""
T = TypeVar("T")


class Claims:
    """The claims of this process on parts of the store at `path`; a context in which they can be held."""

    def __init__(self, path: Path):
        self.file = path.parent / f".{path.name}.claims"
        self._handle = -1

    def __enter__(self) -> "Claims":
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CacheError(
                f"{self.file} cannot be written ({error.strerror}): choose a folder for the store where you may write"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._handle)

    def try_shard(self, index: int) -> bool:
        """Claim a shard, unless another process works on it."""
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, FIRST_SHARD + index)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release_shard(self, index: int) -> None:
        """Let others have the shard."""
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, FIRST_SHARD + index)

    @contextlib.contextmanager
    def at_work(self, begin: Callable[[bool], T]) -> Iterator[T]:
        """Be one of the processes at work on the store. Yields what `begin` returns, which is told whether there is no other."""
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, WORK)
            alone = True
        except (BlockingIOError, PermissionError):
            fcntl.lockf(self._handle, fcntl.LOCK_SH, 1, WORK)
            alone = False
        begun = begin(alone)
        fcntl.lockf(self._handle, fcntl.LOCK_SH, 1, WORK)
        try:
            yield begun
        finally:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, WORK)

    @contextlib.contextmanager
    def holding(self, part: int) -> Iterator[None]:
        """Wait for a claim, on TOKENS or COMPLETION or a shard's byte, and hold it."""
        fcntl.lockf(self._handle, fcntl.LOCK_EX, 1, part)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # an abandoned iterator may end after its file was closed
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, part)
