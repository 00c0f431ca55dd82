"""What a sweep does, and one of its cells."""

from dataclasses import dataclass

from probes.selection import RANKINGS
from probes.validation import ProbeScore
from sae.errors import ConfigError

DENSE, RANDOM = "dense", "random coordinates"
"""Names of the two controls that are cells of their own."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What to fit to every problem and matrix, and how to score it."""

    ks: tuple[int, ...] = (1, 2, 4, 16, 64)
    """Numbers of columns of the sparse probes."""
    rankings: tuple[str, ...] = ("mean_difference",)
    """Names of `probes.selection.RANKINGS`."""
    C: float = 1.0
    """Inverse strength of the L2 penalty on z-scored columns, for all probes; classes are balanced by weights."""
    test_share: float = 0.3
    """Share of the documents held out for the scores."""
    n_folds: int = 3
    """Folds of the other documents, for validation; 1 holds `test_share` of them out once."""
    n_bootstrap: int = 1000
    """Draws of test documents behind each interval."""
    n_shuffles: int = 5
    """Label shuffles behind the null of each sparse probe (and one behind that of the dense one); 0 for none."""
    n_random: int = 5
    """Draws of random coordinates that each such cell averages; 0 for none."""
    dense: bool = True
    """Whether to fit all columns too."""
    seed: int = 0
    """Seed of splits, bootstrap, shuffles and random coordinates."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or len(set(self.ks)) < len(self.ks):
            raise ConfigError(f"ks must hold different positive integers, got {list(self.ks)} (SweepConfig)")
        unknown = [name for name in self.rankings if name not in RANKINGS]
        if unknown or not self.rankings or len(set(self.rankings)) < len(self.rankings):
            raise ConfigError(f"rankings must be different names out of {', '.join(RANKINGS)}, got {list(self.rankings)} (SweepConfig)")
        for name, least in (("n_folds", 1), ("n_bootstrap", 1), ("n_shuffles", 0), ("n_random", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)} (SweepConfig)")
        if not self.C > 0:
            raise ConfigError(f"C must be positive, got {self.C} (SweepConfig)")
        if not 0 < self.test_share < 1:
            raise ConfigError(f"test_share must be in (0, 1), got {self.test_share} (SweepConfig)")


@dataclass(frozen=True)
class SweepCell:
    """One probe: a problem, a matrix, a method and a k."""

    problem: str
    """Name of the problem."""
    matrix: str
    """Name of the matrix."""
    method: str
    """Ranking of a sparse probe, or "dense", or "random coordinates"."""
    k: int
    """Columns the probe reads."""
    d: int
    """Columns there are."""
    validation: dict[str, float]
    """Scores on the validation folds of the training documents, to choose by; empty for random coordinates."""
    test: ProbeScore
    """Scores on the test documents of the probe fitted to all training documents, with intervals and nulls."""
    support: tuple[int, ...]
    """The columns that probe reads, best first; empty for the two controls."""
