"""Where the language model runs: one call at a time in a thread of its own, a short queue, a time limit.

A call that waits and is given up (its client left, or its time is over) never starts. One that already runs cannot be interrupted inside
the model; its client is answered at once, and its place is free when it ends.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

from sae.inspection.server.failures import Busy, Left, TooSlow

RETRY_AFTER = 2
"""Seconds after which a refused client may ask again."""
POLL_SECONDS = 0.1
"""How often it is looked whether the client is still there."""


CLIENT_LEFT: ContextVar[Callable[[], Awaitable[bool]] | None] = ContextVar("client_left", default=None)
"""Tells of the request that is answered whether its client is gone; the gate sets it."""


class Compute:
    """Runs functions one at a time; at most `queue` wait, each for at most `seconds` in all."""

    def __init__(self, *, seconds: float, queue: int) -> None:
        self.seconds, self.queue = seconds, queue
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="language-model")
        self.n_pending, self.lock = 0, threading.Lock()

    async def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`function(*args, **options)`. Raises Busy when the queue is full or memory ran out, TooSlow when the time is over."""
        future = self._submitted(lambda: function(*args, **options))
        try:
            return await self._awaited(future)
        except MemoryError:
            raise Busy("memory ran out; ask for less text", retry_after=RETRY_AFTER) from None
        except RuntimeError as error:
            if not isinstance(error, _out_of_memory()):
                raise
            raise Busy("the accelerator's memory ran out; ask for less text", retry_after=RETRY_AFTER) from error
        finally:
            future.cancel()

    async def _awaited(self, future: "Future[Any]") -> Any:
        """The result. Raises TooSlow when the time is over, and Left when the client is gone."""
        waiting, left = asyncio.wrap_future(future), CLIENT_LEFT.get()
        end = time.monotonic() + self.seconds
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=max(0.0, min(POLL_SECONDS, end - time.monotonic())))
            if not waiting.done() and time.monotonic() >= end:
                raise TooSlow(f"the computation took longer than {self.seconds:g} seconds; ask for less text")
            if not waiting.done() and left is not None and await left():
                raise Left("the client is gone")
        return waiting.result()

    def close(self) -> None:
        """Start nothing more."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _submitted(self, call: Callable[[], Any]) -> "Future[Any]":
        with self.lock:
            if self.n_pending > self.queue:
                raise Busy(f"{self.queue} requests already wait for the language model", retry_after=RETRY_AFTER)
            self.n_pending += 1
        future = self.pool.submit(call)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: "Future[Any]") -> None:
        with self.lock:
            self.n_pending -= 1


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """torch's own failure for a full accelerator, where torch is there."""
    torch = sys.modules.get("torch")
    return (torch.OutOfMemoryError,) if torch is not None else ()
