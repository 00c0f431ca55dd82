"""The learning rate over a run: linear warm-up, constant, linear decay to zero.

    rate(step) = peak * min(1, (step + 1) / warmup_steps, (n_steps - step) / decay_steps),        step = 0..n_steps-1
"""

from sae.errors import ConfigError


def learning_rate(step: int, *, peak: float, n_steps: int, warmup_steps: int, decay_share: float) -> float:
    """Rate of step `step`, from 0: linear rise to `peak` over `warmup_steps`, linear fall towards 0 over the last `decay_share` of the run.

    The last step's rate is peak / decay_steps, not 0. Raises ConfigError for a step outside the run.
    """
    if not 0 <= step < n_steps:
        raise ConfigError(f"step must be in 0..n_steps-1={n_steps - 1}, got {step} (learning_rate)")
    rise = (step + 1) / max(warmup_steps, 1)
    fall = (n_steps - step) / max(round(decay_share * n_steps), 1)
    return peak * min(1.0, rise, fall)
