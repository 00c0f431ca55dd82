"""What the questions to an index ask of it. `sae.inspection.index.FeatureIndex` has it."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from sae.inspection.entries import Entries
from sae.inspection.manifest import IndexManifest
from sae.inspection.reader import FeatureStatistics, RecordReader
from sae.inspection.records import FeatureRecord


@runtime_checkable
class ReadableIndex(Protocol):
    """The reading side of an index."""

    @property
    def manifest(self) -> IndexManifest:
        """What it was made from."""
        ...

    @property
    def reader(self) -> RecordReader:
        """Its summary bundle."""
        ...

    @property
    def d_sae(self) -> int:
        """Latents."""
        ...

    @property
    def n_tokens(self) -> int:
        """Tokens looked at."""
        ...

    @property
    def statistics(self) -> FeatureStatistics:
        """One number per latent."""
        ...

    def record(self, latent: Any) -> FeatureRecord:
        """All that is shown about a latent."""
        ...

    def entries(self, latent: Any) -> Entries:
        """Every non-zero value of a latent."""
        ...

    def at_tokens(self, tokens: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "nnz"]:
        """The latents of all entries at these tokens."""
        ...
