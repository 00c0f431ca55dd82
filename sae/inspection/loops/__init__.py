"""Loops of the index that numba compiles. Each has a plain numpy form elsewhere, which is its oracle and stands in where numba is not."""

import importlib.util
from collections.abc import Callable
from functools import cache


@cache
def available() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None


def share(function: Callable[[int], None], n_blocks: int) -> None:
    """function(0), ..., function(n_blocks - 1), shared by the team of threads where there is one."""
    if not available():
        for block in range(n_blocks):
            function(block)
        return
    from sae.dictionaries.kernels.cpu import team

    team.each(function, n_blocks)


def n_threads() -> int:
    """Threads that share blocks."""
    if not available():
        return 1
    from sae.dictionaries.kernels.cpu import team

    return team.size()
