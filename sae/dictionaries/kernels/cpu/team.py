"""A team of threads, one per torch thread, that share a list of blocks.

Each member multiplies with one thread and keeps its block in its own cache from the product to the last loop. torch's OpenMP threads spin
for milliseconds after every parallel region; a second set of threads beside them would wait for a core that does nothing.

Where the team is as large as the machine, each member stays on a core of its own while a round lasts. Left alone on a busy machine, Linux
wakes them all on the core they last shared, and the round is over before its balancer looks.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_members: dict[int, ThreadPoolExecutor] = {}
_own = threading.local()
os.register_at_fork(after_in_child=_members.clear)


def size() -> int:
    """Members of the team: the number of threads torch may use, or might before `gathered` kept them for the team."""
    return getattr(_own, "held", None) or torch.get_num_threads()


@contextmanager
def gathered() -> Iterator[None]:
    """Keep the calling thread's other torch threads out of the way of the team inside the `with` block: torch's own operations there run on
    one thread, and leave nobody spinning on the core that the team's next round needs.
    """
    if getattr(_own, "held", None):
        yield
        return
    _own.held = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_own.held)
        _own.held = None


def each(function: Callable[[int], None], n_blocks: int) -> None:
    """function(0), ..., function(n_blocks - 1), each once, in any order, members taking the next block as they become free; no gradients
    are recorded.

    Raises what a block raised. Functions must not call `each` again.
    """
    n_members = min(size(), n_blocks)
    if n_members <= 1:
        with torch.no_grad():
            for block in range(n_blocks):
                function(block)
        return
    blocks = itertools.count()

    def work() -> None:
        with torch.no_grad(), _on_own_core():
            while (block := next(blocks)) < n_blocks:
                function(block)

    for member in [_team(size()).submit(work) for _ in range(n_members)]:
        member.result()


def _team(n_members: int) -> ThreadPoolExecutor:
    if n_members not in _members:
        team = ThreadPoolExecutor(n_members, thread_name_prefix="sae-kernel")
        all_here = threading.Barrier(n_members)

        def enter() -> None:
            torch.get_num_threads()  # makes torch take this thread's number from the default; later it stays what we set
            torch.set_num_threads(1)
            _own.place, _own.of = all_here.wait(), n_members

        for member in [team.submit(enter) for _ in range(n_members)]:
            member.result()
        # torch keeps the number per thread, but the last one set is also the default of threads still to come.
        torch.set_num_threads(torch.get_num_threads())
        _members[n_members] = team
    return _members[n_members]


@contextmanager
def _on_own_core() -> Iterator[None]:
    """Hold the calling member on its own core, if there is exactly one for each of its team."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(cores) != _own.of:
        yield
        return
    os.sched_setaffinity(0, {sorted(cores)[_own.place]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
