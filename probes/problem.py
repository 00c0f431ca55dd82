"""What a probe is fitted to, told apart from where it comes from: labelled rows, and a source of matrices that have those rows.

    X = source.read(name)[problem.rows],      y = problem.y,      groups = problem.groups

One source serves many problems and gives one matrix per layer, model or dictionary: a matrix is read once and every problem takes its rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from sae.errors import ConfigError

if TYPE_CHECKING:
    Features: TypeAlias = Any  # scipy has no static types
else:
    Features = Float[np.ndarray, "_ _"] | sparse.csr_matrix | sparse.csr_array
Target = Literal["binary", "classes", "number"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Labels of some rows, and which of them a split must keep together.

    Raises ConfigError for lengths that differ, labels that are not 0..n_classes-1, a number that is not finite.
    """

    name: str
    """What to call it in a table or a file name."""
    rows: Int[np.ndarray, "_"]
    """Row of the source's matrices that each label belongs to."""
    y: Int[np.ndarray, "_"] | Float[np.ndarray, "_"]
    """Labels: 0 and 1, class numbers, or numbers to predict."""
    groups: Int[np.ndarray, "_"]
    """Document of each row; splits keep these together."""
    classes: tuple[str, ...]
    """What the labels 0, 1, ... mean; empty where y is a number."""

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.y) == len(self.groups):
            sizes = f"{len(self.rows)} rows, {len(self.y)} labels, {len(self.groups)} groups"
            raise ConfigError(f"rows, y and groups must have equal lengths, got {sizes} (problem {self.name!r})")
        if len(self.rows) and self.rows.min() < 0:
            raise ConfigError(f"rows must be at least 0, got {self.rows.min()} (problem {self.name!r})")
        if len(self.classes) == 1:
            raise ConfigError(
                f"classes must name two classes or more, or none for a number, got {list(self.classes)} (problem {self.name!r})"
            )
        if self.classes and (self.y.dtype.kind not in "iu" or not np.isin(self.y, range(len(self.classes))).all()):
            found = np.unique(self.y)[:5].tolist()
            raise ConfigError(f"y must hold 0..{len(self.classes) - 1}, one per class, got {found} (problem {self.name!r})")
        if not self.classes and not np.isfinite(self.y).all():
            raise ConfigError(f"y must be finite, got {int((~np.isfinite(self.y)).sum())} entries that are not (problem {self.name!r})")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def target(self) -> Target:
        """What is predicted: one class of two, one of several, or a number."""
        return {0: "number", 2: "binary"}.get(len(self.classes), "classes")  # type: ignore[return-value]


@runtime_checkable
class FeatureSource(Protocol):
    """Matrices with common rows: one per layer, per dictionary, or both."""

    @property
    def names(self) -> tuple[str, ...]:
        """The matrices there are, such as sites of a store."""
        ...

    @property
    def n_rows(self) -> int:
        """Rows of every matrix."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the matrices: the source's part of a cache key."""
        ...

    def read(self, name: str) -> Features:
        """The matrix [n_rows, d], float32, dense or sparse. Raises ConfigError for an unknown name."""
        ...
