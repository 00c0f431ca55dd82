"""The training loop, an iterator: logging, checkpoints, early stopping and progress bars belong to the caller's `for`.

    for step in train(dictionary, batches, objective, config):
        if step.index % 100 == 0:
            logger.info("step %d fvu %.3f", step.index, step.fvu)

One step: loss -> gradient -> its part along each atom removed -> clip -> Adam -> atoms back to unit norm. With the projection Adam moves
atoms on the sphere; without it, renormalising alone distorts the step (on the hierarchical benchmark of 2506.03093 it fails to recover the
atoms).
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError, SaeError
from sae.fingerprint import to_json
from sae.training.firing import tokens_since_fired
from sae.training.objectives import Losses, Objective
from sae.training.schedules import learning_rate

DIVERGED_FVU = 1e3
"""An FVU above this stops the run: a dictionary that always answers 0 has about 1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a dictionary is trained."""

    n_steps: int
    """Length of the run, in steps (batches)."""
    learning_rate: float = 2e-3
    """Adam's peak rate."""
    warmup_steps: int = 50
    """Steps over which the rate rises linearly from 0."""
    decay_share: float = 0.5
    """Last share of the run over which the rate falls linearly to 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    epsilon: float = 1e-8
    """Adam's denominator offset."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all parameters together."""
    dead_tokens: int = 20_000
    """Tokens without firing after which a latent is dead."""

    def __post_init__(self) -> None:
        allowed = {
            "n_steps": (self.n_steps >= 1, "at least 1"),
            "learning_rate": (math.isfinite(self.learning_rate) and self.learning_rate > 0, "positive"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "decay_share": (0 <= self.decay_share <= 1, "in [0, 1]"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "in [0, 1)"),
            "epsilon": (self.epsilon > 0, "positive"),
            "clip_norm": (self.clip_norm > 0, "positive"),
            "dead_tokens": (self.dead_tokens >= 1, "at least 1"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise ConfigError(f"{name} must be {text}, got {getattr(self, name)} (TrainConfig)")


@dataclass
class TrainState:
    """Everything besides the dictionary that the next step depends on. `train` updates it in place."""

    config: TrainConfig
    """The run it belongs to."""
    optimiser: torch.optim.Adam
    """Adam over the dictionary's parameters, with its moments."""
    since_fired: Int[Tensor, "d_sae"]
    """Tokens since each latent last fired."""
    step: int = 0
    """Steps done; a resumed run skips this many batches."""
    n_tokens: int = 0
    """Tokens seen."""

    @staticmethod
    def start(dictionary: Dictionary, config: TrainConfig) -> "TrainState":
        """The state before the first step."""
        optimiser = torch.optim.Adam(dictionary.parameters(), lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)
        return TrainState(config, optimiser, torch.zeros(dictionary.d_sae, dtype=torch.long, device=dictionary.W_dec.device))

    @property
    def dead(self) -> Bool[Tensor, "d_sae"]:
        """Which latents have not fired for more than `dead_tokens` tokens."""
        return self.since_fired > self.config.dead_tokens


@dataclass(frozen=True)
class Step:
    """What one step did."""

    index: int
    """Number of the step, from 0."""
    n_tokens: int
    """Tokens seen so far, this step's included."""
    loss: float
    """The objective before the update."""
    fvu: float
    """Fraction of the batch's variance unexplained before the update."""
    l0: float
    """Mean number of active latents per token."""
    dead_share: float
    """Share of latents that are dead, after this step's firing."""
    learning_rate: float
    """Adam's rate in this step."""
    state: TrainState
    """The live state, for checkpoints."""


def train(
    dictionary: Dictionary,
    batches: Iterable[Float[Tensor, "n d_in"]],
    objective: Objective,
    config: TrainConfig,
    *,
    state: TrainState | None = None,
) -> Iterator[Step]:
    """Train `dictionary` in place on batches of activations; yields after every step and ends after `config.n_steps`.

    To resume, pass the state of `load_training` with its dictionary, and batches that start at batch `state.step`: on a CPU the weights are
    then bit-equal to an uninterrupted run's. Draws no random numbers. Raises ConfigError if the state belongs to another configuration, and
    SaeError naming
    the step for NaN or Inf in a batch, for a loss that diverges, and if the batches end early.
    """
    state = state or TrainState.start(dictionary, config)
    for field in fields(TrainConfig):
        ours, theirs = getattr(config, field.name), getattr(state.config, field.name)
        if ours != theirs:
            raise ConfigError(f"config.{field.name} must be that of the resumed run, {theirs}, got {ours} (train)")
    return _steps(dictionary, iter(batches), objective, config, state)


def _steps(
    dictionary: Dictionary, batches: Iterator[Tensor], objective: Objective, config: TrainConfig, state: TrainState
) -> Iterator[Step]:
    # islice takes exactly the batches that are needed from an iterator that others may share.
    for batch in itertools.islice(batches, config.n_steps - state.step):
        rate = learning_rate(
            state.step, peak=config.learning_rate, n_steps=config.n_steps, warmup_steps=config.warmup_steps, decay_share=config.decay_share
        )
        losses = _update_(dictionary, batch, objective, state, rate)
        state.since_fired = tokens_since_fired(state.since_fired, losses.codes)
        state.step += 1
        state.n_tokens += len(batch)
        dead_share = float(state.dead.double().mean())
        yield Step(
            state.step - 1, state.n_tokens, float(losses.total), float(losses.fvu), losses.codes.mean_l0(), dead_share, rate, state
        )
    if state.step < config.n_steps:
        raise SaeError(f"batches ended after {state.step} steps, n_steps={config.n_steps} were asked for (train)")


def _update_(dictionary: Dictionary, batch: Tensor, objective: Objective, state: TrainState, rate: float) -> Losses:
    try:
        x = dictionary.scaled(batch)
        losses = objective(dictionary, x, state.dead)
    except SaeError as error:
        raise SaeError(f"bad batch at step {state.step}: {error}") from error
    loss, fvu = losses.total.item(), losses.fvu.item()
    if not (math.isfinite(loss) and fvu <= DIVERGED_FVU):
        raise SaeError(f"the loss diverged at step {state.step}: loss {loss:.4g}, fvu {fvu:.4g} (train)")
    state.optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    project_gradient_(dictionary)
    torch.nn.utils.clip_grad_norm_(dictionary.parameters(), state.config.clip_norm)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.step()
    dictionary.normalise_()
    return losses._replace(total=losses.total.detach())


@torch.no_grad()
def project_gradient_(dictionary: Dictionary) -> None:
    """Remove from the gradient of every (unit) atom its part along the atom: g_i <- g_i - (g_i . d_i) d_i."""
    grad, atoms = dictionary.W_dec.grad, dictionary.W_dec
    if grad is not None:
        grad.addcmul_(atoms, torch.linalg.vecdot(grad, atoms)[:, None], value=-1)


def describe(config: TrainConfig, objective: Any) -> dict[str, Any]:
    """The run's configuration as JSON, for a dictionary's provenance."""
    return {"config": to_json(config), "objective": to_json(objective)}
