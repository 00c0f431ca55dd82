"""CPU kernels: loops compiled by numba, matrix products by torch, on a team of threads of our own."""

from sae.dictionaries.kernels.cpu.dense import keep_largest_, product
from sae.dictionaries.kernels.cpu.gram import gram
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.dictionaries.kernels.cpu.pursuit import gram_fits, pursue, reverse_sweep
from sae.dictionaries.kernels.cpu.revival import revive
from sae.dictionaries.kernels.cpu.selection import top
from sae.dictionaries.kernels.cpu.sparse import decode_error, row_dots, scattered_sum, weighted_rows, weighted_rows_t
from sae.dictionaries.kernels.cpu.team import gathered
from sae.dictionaries.kernels.cpu.updates import adam_, project_, sum_squares
from sae.dictionaries.kernels.reference import above, unit_rows_

__all__ = [
    "above", "adam_", "decode_error", "gathered", "gram", "gram_fits", "keep_largest_", "product", "project_", "pursue",
    "recycled", "reverse_sweep", "revive", "row_dots", "scattered_sum", "sum_squares", "top", "unit_rows_", "weighted_rows", "weighted_rows_t",
]  # fmt: skip
