"""Reading ahead: while the caller works on one batch, a thread reads the next ones.

    seconds per batch = max(read, work)  instead of  read + work,        as long as the thread finds a core

Reading from memory is work for the same cores, so ahead of a step that keeps every core busy it gains nothing: two cores, a step of 46 ms
and a read of under 1 ms are as fast with it as without. It pays where reading waits, for a disk or a network folder.

The thread has one torch thread of its own, and holds `depth` batches at most.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from sae.errors import ConfigError

T = TypeVar("T")
_END = object()


def prefetched(batches: Iterator[T], depth: int) -> Iterator[T]:
    """The same values in the same order, up to `depth` of them read in advance by a background thread; with 0, `batches` itself.

    The thread starts with the first `next`. What `batches` raises is raised here, after the batches that came before it. When the caller
    closes the iterator, drops it or fails, the read in progress is finished, the thread ends, and `batches` is closed; nobody else may
    use `batches` meanwhile. Raises ConfigError when `depth` is negative.

        for batch in prefetched(store.batches(site, batch_size=4096, seed=0), depth=2): ...
    """
    if depth < 0:
        raise ConfigError(f"depth must be at least 0, got {depth} (prefetched); 0 reads when asked, 2 is enough to hide a disk")
    return _ahead(batches, depth) if depth else batches


def _ahead(batches: Iterator[T], depth: int) -> Iterator[T]:
    # One future per batch, so that no thread ever waits for room in a queue: neither the end of the program nor a caller that has gone
    # away can find it blocked.
    reader = ThreadPoolExecutor(1, thread_name_prefix="sae-prefetch")
    try:
        reader.submit(_work_alone).result()
        torch.set_num_threads(torch.get_num_threads())  # the last number set anywhere is the default of threads to come
        waiting = deque(reader.submit(next, batches, _END) for _ in range(depth))
        while (batch := waiting.popleft().result()) is not _END:
            waiting.append(reader.submit(next, batches, _END))
            yield batch
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
        if hasattr(batches, "close"):
            batches.close()


def _work_alone() -> None:
    torch.get_num_threads()  # makes torch take this thread's number from the default; later it stays what is set here
    torch.set_num_threads(1)
