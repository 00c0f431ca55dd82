"""Loops of the index that numba compiles. Each has a plain numpy form elsewhere, which is its oracle and stands in where numba is not."""

import importlib.util
from functools import cache


@cache
def available() -> bool:
    """Whether numba is there."""
    return importlib.util.find_spec("numba") is not None
