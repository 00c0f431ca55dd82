"""The kernels in torch, on any device and in any precision: the oracle of the others."""

from sae.dictionaries.kernels.reference.products import (
    Revival,
    Slots,
    above,
    adam_,
    decode_error,
    keep_largest_,
    product,
    project_,
    revive,
    row_dots,
    scattered_sum,
    sum_squares,
    top,
    unit_rows_,
    weighted_rows,
    weighted_rows_t,
)  # fmt: skip
from sae.dictionaries.kernels.reference.pursuit import Path, gram, gram_fits, pursue, reverse_sweep, select_orthogonally

__all__ = [
    "Path", "Revival", "Slots", "above", "adam_", "decode_error", "gram", "gram_fits", "keep_largest_", "product", "project_", "pursue",
    "reverse_sweep", "revive", "row_dots", "scattered_sum", "select_orthogonally", "sum_squares", "top", "unit_rows_", "weighted_rows", "weighted_rows_t",
]  # fmt: skip
