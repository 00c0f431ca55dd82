"""The features of an index in an order, as a table."""

from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Float, Int

from sae.errors import ConfigError
from sae.inspection.format import bits, number, percent
from sae.inspection.listing import Column, listing_html, listing_text
from sae.inspection.query import MAX_DENSITY, MIN_ACTIVE, TELLING_DEFINITION, telling_order
from sae.inspection.reader import FeatureStatistics
from sae.inspection.reading import ReadableIndex

TELLING = "telling"
"""The order that is no statistic by itself."""


@dataclass(frozen=True)
class FeatureTable:
    """Features in an order. A notebook shows each with its strongest passage."""

    ids: Int[np.ndarray, "n"]
    """Latent ids, in the order."""
    values: Float[np.ndarray, "n"]
    """What they are ordered by."""
    by: str
    """Its name."""
    n_allowed: int
    """Latents that the filters let through."""
    definition: str
    """The order and the filters, in words."""
    index: ReadableIndex = field(repr=False, compare=False)
    """Where the features are."""

    def __len__(self) -> int:
        return len(self.ids)

    def _written(self, latent: int) -> str:
        value = float(self.values[int(np.flatnonzero(self.ids == latent)[0])])
        if self.by == "density":
            return percent(value)
        return bits(value) if self.by in (TELLING, "token_bits", "next_bits") else number(value)

    def _title(self) -> str:
        return f"{len(self)} of {self.n_allowed} features by {self.by.replace('_', ' ')}"

    def _repr_html_(self) -> str:
        # Density and telling have columns of their own already.
        own = [] if self.by in ("density", TELLING) else [Column(self.by.replace("_", " "), self._written)]
        return listing_html(self.index, self.ids.tolist(), title=self._title(), footer=self.definition, columns=own)

    def __repr__(self) -> str:
        notes = {} if self.by == "density" else {latent: f"{self.by} {self._written(latent)}" for latent in self.ids.tolist()}
        return listing_text(self.index, self.ids.tolist(), title=self._title(), notes=notes)


def sort_keys(statistics: FeatureStatistics) -> tuple[str, ...]:
    """What features may be sorted by: "telling", and every statistic that is a number for each latent."""
    names = (each.name for each in fields(statistics) if each.name != "leading_token")
    return (TELLING, *(name for name in names if np.ndim(getattr(statistics, name)) == 1))


def top(
    index: ReadableIndex,
    *,
    by: str = TELLING,
    n: int = 20,
    ascending: bool = False,
    alive: bool = True,
    min_density: float = 0.0,
    max_density: float = 1.0,
) -> FeatureTable:
    """The first `n` features in an order, largest first (`ascending`: smallest), ties by latent id, missing numbers last.

    `by` is a field of the index's statistics (`density`, `max`, `min`, `mean`, `n_active`, `n_documents`, `token_bits`, `next_bits`, ...)
    or "telling": the held-out bits that a firing tells about its token plus those about the next, of latents that fire often enough to
    judge and not too often to mean one thing, few for each leading token (`sae.inspection.query`). With `alive` latents that never fire
    are left out; densities lie in [`min_density`, `max_density`]. Raises ConfigError for an unknown `by`, n < 1, or densities that are not
    in order within 0..1.
    """
    statistics = index.statistics
    allowed_keys = sort_keys(statistics)
    if by not in allowed_keys:
        raise ConfigError(f"by must be one of {', '.join(allowed_keys)}, got {by!r} (FeatureIndex.top)")
    if isinstance(n, bool) or n < 1:
        raise ConfigError(f"n must be at least 1, got {n!r} (FeatureIndex.top)")
    if not 0 <= min_density <= max_density <= 1:
        raise ConfigError(
            f"min_density and max_density must be in order within 0..1, got {min_density} and {max_density} (FeatureIndex.top)"
        )
    passes = (statistics.density >= min_density) & (statistics.density <= max_density) & ((statistics.n_active > 0) | (not alive))
    if by == TELLING:
        values = statistics.token_bits + statistics.next_bits
        passes &= (statistics.n_active >= MIN_ACTIVE) & (statistics.density <= MAX_DENSITY)
        ids = np.array(telling_order(statistics, passes, n=n, ascending=ascending), np.int64)
    else:
        values = np.asarray(getattr(statistics, by))
        allowed = np.flatnonzero(passes)
        keys = values[allowed].astype(float)
        ids = allowed[np.lexsort((allowed, keys if ascending else -keys))[:n]]  # NaN comes last either way
    definition = _definition(by, ascending, alive, min_density, max_density)
    return FeatureTable(ids, values[ids].astype(float), by, int(passes.sum()), definition, index)


def _definition(by: str, ascending: bool, alive: bool, min_density: float, max_density: float) -> str:
    order = TELLING_DEFINITION if by == TELLING else f"Ordered by {by.replace('_', ' ')} over the tokens looked at."
    asked = [] if (min_density, max_density) == (0, 1) else [f"density from {percent(min_density)} to {percent(max_density)}"]
    left_out = ["latents that never fire are left out"] * (alive and by != TELLING)
    what = "; ".join([("smallest" if ascending else "largest") + " first", *asked, *left_out])
    return f"{order} {what[0].upper()}{what[1:]}."
