"""A probing problem in one file: matrices, dense or sparse, with the labels and the documents of their rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from probes.selection import Labels
from probes.validation import Features, Groups
from sae.errors import ConfigError, FormatError
from sae.storage import atomic_path

SPARSE_PARTS = ("data", "indices", "indptr", "shape")


class LabelledFeatures(NamedTuple):
    """A probing problem as a file holds it."""

    features: dict[str, Features]
    """Name of each matrix -> X."""
    y: Labels
    """Labels, 0 and 1."""
    groups: Groups
    """Document of each row."""


def write_features(path: str | Path, features: Mapping[str, Features], y: Labels, groups: Groups) -> None:
    """One .npz file, written atomically: arrays `y`, `groups`, each dense matrix under its name, each sparse one as name.data, .indices,
    .indptr and .shape. Raises ConfigError for a name that is taken or has a dot.
    """
    arrays: dict[str, Any] = {"y": y, "groups": groups}
    for name, X in features.items():
        if name in ("y", "groups") or "." in name or "/" in name:
            raise ConfigError(f"a matrix must not be named y or groups, nor have a dot or slash in its name, got {name!r} (write_features)")
        if sparse.issparse(X):
            arrays |= {f"{name}.{part}": np.asarray(getattr(X, part)) for part in SPARSE_PARTS}
        else:
            arrays[name] = X
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_features(path: str | Path) -> LabelledFeatures:
    """What `write_features` wrote; or any .npz with y, groups and one or more matrices. Raises FormatError naming the file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files} if isinstance(file, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"{path} is not an .npz file of plain arrays: {error}") from error
    for name in ("y", "groups"):
        if name not in arrays:
            raise FormatError(f"{path} must hold the array {name!r}, it holds {sorted(arrays)}")
    y, groups = arrays.pop("y"), arrays.pop("groups")
    features: dict[str, Any] = {}
    for name in list(dict.fromkeys(key.removesuffix(f".{part}") for key in arrays for part in SPARSE_PARTS if key.endswith(f".{part}"))):
        try:
            data, indices, indptr, shape = (arrays.pop(f"{name}.{part}") for part in SPARSE_PARTS)
            features[name] = sparse.csr_matrix((data, indices, indptr), shape=tuple(shape.tolist()))
        except (KeyError, ValueError, TypeError) as error:
            raise FormatError(f"{path}: {name} is not a sparse matrix (data, indices, indptr, shape): {error}") from error
    features |= arrays
    for name, X in features.items():
        if X.ndim != 2 or X.dtype.kind != "f":
            raise FormatError(f"{path}: {name} must be a matrix of floats [n, d], got {X.dtype} of shape {list(X.shape)}")
    if not features or y.ndim != 1 or groups.ndim != 1 or y.dtype.kind not in "iub":
        raise FormatError(f"{path} must hold one matrix or more, and integer labels y [n] and groups [n]; it holds {sorted(features)}")
    return LabelledFeatures(features, y, groups)
