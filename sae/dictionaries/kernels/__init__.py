"""Kernels: the few operations that take the time, each with an exact gradient. Callers use these names and do not know what runs beneath."""

from sae.dictionaries.kernels.differentiable import Errors, encode, explain, pursue, revive, weighted_rows
from sae.dictionaries.kernels.dispatch import using
from sae.dictionaries.kernels.orthogonal import pursue_orthogonally
from sae.dictionaries.kernels.reference import Path, Slots
from sae.dictionaries.kernels.rules import Above, Rule, Top, TopOfBatch

__all__ = [
    "Above", "Errors", "Path", "Rule", "Slots", "Top", "TopOfBatch", "encode", "explain", "pursue", "pursue_orthogonally", "revive", "using",
    "weighted_rows",
]  # fmt: skip
