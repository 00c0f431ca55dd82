"""What decides the contents of an index."""

from dataclasses import dataclass, fields
from typing import Literal

from sae.errors import ConfigError

HISTOGRAM_BINS = 40
"""Bins of every value histogram; even, so that zero is an edge also with both signs."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Probabilities of the stored quantiles."""
N_RANDOM, N_NEAR_MISS = 10, 10
"""Random passages and near misses kept for each latent."""
NEAR_MISS_DRAWS = 24
"""Occurrences of one driving token that are looked at, at most, to find near misses."""
SEGMENT_TOKENS = 2**17
"""Tokens of a segment, rounded down to whole rows."""


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """What an index keeps for each latent."""

    n_examples: int = 20
    """Strongest passages kept (passages), and as many most negative ones."""
    n_intervals: int = 5
    """Equal-width intervals of (0, max] that are sampled."""
    n_interval_samples: int = 4
    """Passages sampled from each interval."""
    before: int = 32
    """Tokens shown before the peak token."""
    after: int = 16
    """Tokens shown after it."""
    n_driving: int = 12
    """Driving tokens kept (vocabulary items)."""
    n_neighbours: int = 16
    """Neighbours kept of each kind."""
    n_effects: int = 12
    """Promoted and suppressed tokens kept, each."""
    value_dtype: Literal["float32", "float16"] = "float16"
    """Stored precision of the values; float16 (relative error at most 2^-11) takes 10 bytes a non-zero in all, float32 14."""
    seed: int = 0
    """Seed of all samples."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("before", "after", "seed") else 1
            if field.name == "value_dtype":
                if value not in ("float32", "float16"):
                    raise ConfigError(f"value_dtype must be 'float32' or 'float16', got {value!r} (IndexConfig)")
            elif isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{field.name} must be an integer of at least {least}, got {value!r} (IndexConfig)")
