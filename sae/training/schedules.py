"""What changes over a run.

rate(step) = peak * min(1, (step + 1) / warmup_steps, final + (1 - final) (n_steps - step) / decay_steps),        step = 0..n_steps-1
k(step)    = start + (end - start) min(1, step / (share n_steps)),     or start until then and end from there on
"""

from dataclasses import dataclass
from typing import Literal

from sae.errors import ConfigError


def learning_rate(step: int, *, peak: float, n_steps: int, warmup_steps: int, decay_share: float, final_share: float = 0.0) -> float:
    """Rate of step `step`, from 0: linear rise to `peak` over `warmup_steps`, linear fall towards final_share * peak over the last
    `decay_share` of the run.

    With final_share 0 the last step's rate is peak / decay_steps, not 0. Raises ConfigError for a step outside the run.
    """
    if not 0 <= step < n_steps:
        raise ConfigError(f"step must be in 0..n_steps-1={n_steps - 1}, got {step} (learning_rate)")
    rise = (step + 1) / max(warmup_steps, 1)
    fall = final_share + (1 - final_share) * min(1.0, (n_steps - step) / max(round(decay_share * n_steps), 1))
    return peak * min(1.0, rise, fall)


@dataclass(frozen=True, kw_only=True)
class KAnnealing:
    """Training starts with more active latents than it ends with, which keeps latents from dying while k is small.

    After Makhzani & Frey 2013 (1312.5663) section 2.2.
    """

    start: float
    """Active latents per row at the first step."""
    share: float = 0.5
    """Share of the run after which the dictionary's own k is reached."""
    shape: Literal["linear", "step"] = "linear"
    """Whether k falls evenly, or all at once at the end of that share."""

    def __post_init__(self) -> None:
        if not self.start > 0:
            raise ConfigError(f"start must be positive, got {self.start} (KAnnealing)")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be in (0, 1], got {self.share} (KAnnealing)")
        if self.shape not in ("linear", "step"):
            raise ConfigError(f"shape must be 'linear' or 'step', got {self.shape!r} (KAnnealing)")

    def at(self, step: int, *, end: float, n_steps: int) -> float:
        """Active latents per row at a step of a run that ends with `end`."""
        done = min(1.0, step / (self.share * n_steps))
        if self.shape == "step":
            return end if done >= 1 else self.start
        return self.start + (end - self.start) * done
