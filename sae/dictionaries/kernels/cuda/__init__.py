"""The kernels for CUDA devices, in Triton: float32, no float atomics, so that the same input gives the same bits on the same machine.

Dense products are torch's. Triton does what torch is slow at: gathered rows, sums per latent, the whole of a pursuit in one launch, and the
update of a parameter in one pass. Importing this package needs `triton`.
"""

from sae.dictionaries.kernels.cuda.pursuit import pursue, reverse_sweep
from sae.dictionaries.kernels.cuda.selection import keep_largest_, top
from sae.dictionaries.kernels.cuda.sparse import decode_error, row_dots, scattered_sum, weighted_rows, weighted_rows_t
from sae.dictionaries.kernels.cuda.update import adam_, product, project_, sum_squares
from sae.dictionaries.kernels.reference import revive

__all__ = [
    "adam_", "decode_error", "keep_largest_", "product", "project_", "pursue", "reverse_sweep", "revive", "row_dots", "scattered_sum",
    "sum_squares", "top", "weighted_rows", "weighted_rows_t",
]  # fmt: skip
