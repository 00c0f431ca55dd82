"""Kernels: the few operations that take the time, each with an exact gradient. Callers use these names and do not know what runs beneath.
"""

from sae.dictionaries.kernels.differentiable import encode, pursue, pursue_orthogonally, weighted_rows
from sae.dictionaries.kernels.pursuit import Path

__all__ = ["Path", "encode", "pursue", "pursue_orthogonally", "weighted_rows"]
