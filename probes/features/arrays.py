"""Matrices in memory, or mapped from a file, as a source for problems."""

import hashlib
from collections.abc import Mapping

import numpy as np
from scipy import sparse

from probes.problem import Features
from sae.errors import ConfigError
from sae.fingerprint import canonical


class ArraySource:
    """Named matrices with common rows, dense or CSR. Raises ConfigError for none, for other kinds, or for numbers of rows that differ.

    `digest` None: SHA-256 of the matrices.

    >>> source = ArraySource({"embedding": embedding})        # row i is token i
    >>> problem = vocabulary_problem(model.vocabulary(), "has_leading_space")
    """

    def __init__(self, matrices: Mapping[str, Features], digest: str | None = None):
        for name, X in matrices.items():
            is_matrix = (isinstance(X, np.ndarray) and X.dtype.kind == "f") or (sparse.issparse(X) and X.format == "csr")
            if not is_matrix or X.ndim != 2:
                raise ConfigError(f"matrices[{name!r}] must be a matrix of floats or a CSR matrix, got a {type(X).__name__} (ArraySource)")
        sizes = {name: X.shape[0] for name, X in matrices.items()}
        if len(set(sizes.values())) != 1:
            raise ConfigError(f"matrices must be one or more of equally many rows, got {sizes or 'none'} (ArraySource)")
        self._matrices = dict(matrices)
        self._digest = digest

    def __repr__(self) -> str:
        return f"ArraySource({self.n_rows:,} rows; {', '.join(f'{name} {X.shape[1]}' for name, X in self._matrices.items())})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrices."""
        return tuple(self._matrices)

    @property
    def n_rows(self) -> int:
        """Rows of every matrix."""
        return next(iter(self._matrices.values())).shape[0]

    @property
    def digest(self) -> str:
        """SHA-256 of what made the matrices, or of the matrices."""
        if self._digest is None:
            state = hashlib.sha256()
            for name, X in self._matrices.items():
                parts = (X.data, X.indices, X.indptr) if sparse.issparse(X) else (X,)
                state.update(canonical([name, list(X.shape), [str(part.dtype) for part in parts]]).encode("ascii"))
                for part in parts:
                    state.update(np.ascontiguousarray(part).tobytes())
            self._digest = state.hexdigest()
        return self._digest

    def read(self, name: str) -> Features:
        """The matrix, as it was given. Raises ConfigError for an unknown name."""
        if name not in self._matrices:
            raise ConfigError(f"name must be one of {', '.join(self._matrices)}, got {name!r} (ArraySource)")
        return self._matrices[name]
