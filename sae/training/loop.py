"""The training loop, an iterator: logging, checkpoints, early stopping and progress bars belong to the caller's `for`.

    for step in train(dictionary, batches, objective, config):
        if step.index % 100 == 0:
            logger.info("step %d fvu %.3f", step.index, step.fvu)

For a transcoder every batch is a pair (acts of the input site, acts of the output site).

One step: loss -> gradient -> its part along each atom removed -> clip -> Adam -> atoms back to unit norm. With the projection Adam moves
atoms on the sphere; without it, renormalising alone distorts the step (on the hierarchical benchmark of 2506.03093 it fails to recover the
atoms).
"""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.kernels.dispatch import gathered
from sae.errors import ConfigError, SaeError
from sae.fingerprint import to_json
from sae.training.objectives import Losses, Moment, Objective
from sae.training.optimisers import Optimiser, OptimiserConfig
from sae.training.peers import Peers
from sae.training.revival import Resampling, resample_
from sae.training.schedules import KAnnealing, learning_rate
from sae.training.sharded import ShardedAutoencoder
from sae.training.world import World

logger = logging.getLogger(__name__)
Batch = Float[Tensor, "n d_in"] | tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]
"""Activations, or for a transcoder those of the input and of the output site."""
DIVERGED_FVU = 1e3
"""An FVU above this stops the run: a dictionary that always answers 0 has about 1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a dictionary is trained."""

    n_steps: int
    """Length of the run, in steps (batches)."""
    learning_rate: float = 2e-3
    """The optimiser's peak rate."""
    warmup_steps: int = 50
    """Steps over which the rate rises linearly from 0."""
    decay_share: float = 0.5
    """Last share of the run over which the rate falls linearly."""
    final_share: float = 0.0
    """What the rate falls towards, as a share of the peak."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How gradients become steps."""
    dead_tokens: int = 20_000
    """Tokens without firing after which a latent is dead."""
    ema_decay: float = 0.0
    """Decay per step of the running average of the weights; 0 keeps none."""
    annealing: KAnnealing | None = None
    """How k falls to the dictionary's own; absent, it is the same throughout."""
    resampling: Resampling | None = None
    """When dead latents are started anew; absent, never."""

    def __post_init__(self) -> None:
        allowed = {
            "n_steps": (self.n_steps >= 1, "at least 1"),
            "learning_rate": (math.isfinite(self.learning_rate) and self.learning_rate > 0, "positive"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "decay_share": (0 <= self.decay_share <= 1, "in [0, 1]"),
            "final_share": (0 <= self.final_share <= 1, "in [0, 1]"),
            "dead_tokens": (self.dead_tokens >= 1, "at least 1"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise ConfigError(f"{name} must be {text}, got {getattr(self, name)} (TrainConfig)")


@dataclass
class TrainState:
    """What training keeps besides the dictionary; changed in place by every step."""

    config: TrainConfig
    """The run's configuration."""
    optimiser: Optimiser
    """The optimiser with its moments."""
    since_fired: Int[Tensor, "d_sae"]
    """Tokens since each latent last fired."""
    averages: dict[str, Tensor]
    """Running averages of the parameters, by name; empty without `ema_decay`."""
    step: int = 0
    """Steps done; a resumed run skips this many batches."""
    n_tokens: int = 0
    """Tokens seen."""
    pressure: float = 1.0
    """Factor on the sparsity penalty."""

    @staticmethod
    def start(dictionary: Dictionary, config: TrainConfig) -> "TrainState":
        """The state before the first step."""
        since = torch.zeros(dictionary.d_sae, dtype=torch.long, device=dictionary.W_dec.device)
        averages = {name: parameter.detach().clone() for name, parameter in dictionary.named_parameters()} if config.ema_decay else {}
        return TrainState(config, Optimiser(dictionary, config.optimiser), since, averages)

    def tensors(self) -> dict[str, Tensor]:
        """The state's own tensors, by their names on disk."""
        moments = {f"{moment}.{name}": tensor for name, moments in self.optimiser.moments.items() for moment, tensor in moments.items()}
        return {"since_fired": self.since_fired, **moments, **{f"average.{name}": tensor for name, tensor in self.averages.items()}}

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
    """The optimiser's rate in this step."""
    gradient_norm: float
    """Norm of the gradient of all parameters, projected, before clipping."""
    pressure: float
    """Factor on the sparsity penalty in this step."""
    state: TrainState
    """The live state, for checkpoints."""


def train(
    dictionary: Dictionary,
    batches: Iterable[Batch],
    objective: Objective,
    config: TrainConfig,
    *,
    state: TrainState | None = None,
    world: World | None = None,
) -> Iterator[Step]:
    """Train `dictionary` in place on batches of activations; yields after every step and ends after `config.n_steps`.

    To resume, pass the state of `load_training` with its dictionary, and batches that start at batch `state.step`: on a CPU the weights are
    then bit-equal to an uninterrupted run's. Draws no random numbers from the global generator. With a `world` of several processes each
    passes its own share of the batches (`world.rows`); all start from the first one's weights and state and stay the same. Raises
    ConfigError if the state belongs to another configuration, and SaeError naming the step for NaN or Inf in a batch, for a loss or a
    gradient that is not finite or diverges, and if the batches end early; the dictionary is then as the last whole step left it.
    """
    state = state or TrainState.start(dictionary, config)
    for each in fields(TrainConfig):
        ours, theirs = getattr(config, each.name), getattr(state.config, each.name)
        if ours != theirs:
            raise ConfigError(f"config.{each.name} must be that of the resumed run, {theirs}, got {ours} (train)")
    if config.annealing and dictionary.k is None:
        raise ConfigError("annealing must be absent for a dictionary without a fixed k (train)")
    world = world or World()
    if isinstance(dictionary, ShardedAutoencoder) and config.resampling:
        raise ConfigError("resampling must be absent for a sharded dictionary: AuxK revives its dead latents (train)")
    shards = dictionary.shards if isinstance(dictionary, ShardedAutoencoder) else Peers()
    if shards.size != world.along_latents.size:
        raise ConfigError(f"dictionary must be sharded over the world's {world.along_latents.size} processes, got {shards.size} (train)")
    own = [*dictionary.parameters(), *dictionary.buffers(), *state.tensors().values()]
    world.begin_(own, _description(dictionary, objective, config, state))
    return _steps(dictionary, iter(batches), objective, config, state, world)


def _description(dictionary: Dictionary, objective: Objective, config: TrainConfig, state: TrainState) -> dict[str, Any]:
    """What must be the same in all processes, besides tensors."""
    where = {"step": state.step, "n_tokens": state.n_tokens, "pressure": state.pressure, **dictionary.scales}
    kinds = {"dictionary": type(dictionary).__name__, "objective": type(objective).__name__}
    frozen = [value for value in (dictionary.config, config, objective) if is_dataclass(value)]
    return {**kinds, **where, "config": to_json(frozen)}


def _steps(
    dictionary: Dictionary, batches: Iterator[Batch], objective: Objective, config: TrainConfig, state: TrainState, world: World
) -> Iterator[Step]:
    # next takes exactly the batches that are needed from an iterator that others may share.
    while state.step < config.n_steps:
        with world.together():
            batch = next(batches, None)
            if batch is None:
                raise SaeError(f"batches ended after {state.step} steps, n_steps={config.n_steps} were asked for (train)")
            with gathered(dictionary.W_dec), _blamed_on_batch(state.step):
                x, target = _scaled(dictionary, batch)
        with gathered(dictionary.W_dec):
            step = _step(dictionary, x, target, objective, config, state, world.at(len(x)))
        yield step


def _scaled(dictionary: Dictionary, batch: Batch) -> tuple[Tensor, Tensor | None]:
    acts, acts_out = batch if isinstance(batch, tuple) else (batch, None)
    return dictionary.scaled(acts), None if acts_out is None else dictionary.scaled_target(acts_out)


@contextmanager
def _blamed_on_batch(step: int) -> Iterator[None]:
    try:
        yield
    except SaeError as error:
        raise SaeError(f"bad batch at step {step}: {error}") from error


def _step(
    dictionary: Dictionary, x: Tensor, target: Tensor | None, objective: Objective, config: TrainConfig, state: TrainState, world: World
) -> Step:
    rate = learning_rate(
        state.step, peak=config.learning_rate, n_steps=config.n_steps, warmup_steps=config.warmup_steps, decay_share=config.decay_share,
        final_share=config.final_share,
    )  # fmt: skip
    with _blamed_on_batch(state.step):
        losses = objective(dictionary, x, target, _moment(dictionary, config, state, world))
    loss, fvu = world.total(losses.total.detach()).item(), losses.fvu.item()
    if not (math.isfinite(loss) and fvu <= DIVERGED_FVU):
        raise SaeError(f"the loss diverged at step {state.step}: loss {loss:.4g}, fvu {fvu:.4g} (train)")
    norm = _update_(dictionary, losses.total, state, rate, world)
    pressure, state.pressure = state.pressure, losses.pressure
    _take_note_(dictionary, x, losses, state, world)
    return Step(
        index=state.step - 1, n_tokens=state.n_tokens, loss=loss, fvu=fvu, l0=losses.l0, dead_share=float(state.dead.double().mean()),
        learning_rate=rate, gradient_norm=norm, pressure=pressure, state=state,
    )  # fmt: skip


def _moment(dictionary: Dictionary, config: TrainConfig, state: TrainState, world: World) -> Moment:
    k = None
    if config.annealing and dictionary.k is not None:
        k = config.annealing.at(state.step, end=dictionary.k, n_steps=config.n_steps)
    return Moment(dead=state.dead, step=state.step, k=k, pressure=state.pressure, world=world)


def _update_(dictionary: Dictionary, loss: Tensor, state: TrainState, rate: float, world: World) -> float:
    for parameter in dictionary.parameters():
        parameter.grad = None
    loss.backward()
    world.reduce_gradients_(list(dictionary.parameters()))
    norm = state.optimiser.step_(dictionary, rate, world)
    if state.averages:
        keep = min(state.config.ema_decay, (1 + state.step) / (10 + state.step))
        with torch.no_grad():
            for name, parameter in dictionary.named_parameters():
                state.averages[name].lerp_(parameter, 1 - keep)
    return norm


def _take_note_(dictionary: Dictionary, x: Tensor, losses: Losses, state: TrainState, world: World) -> None:
    """Count the step and what fired in it, and start dead latents anew where that is due."""
    world.settle_(dictionary, losses.codes)
    all_dead = bool(state.dead.all())
    state.since_fired = world.since_fired(state.since_fired, losses.codes)
    state.step += 1
    state.n_tokens += world.n_rows
    resampling = state.config.resampling
    if resampling and resampling.is_due(state.step, state.config.n_steps):
        revived = resample_(dictionary, x, losses.residual, state.dead, state.optimiser, seed=state.step, world=world)
        state.since_fired = state.since_fired.masked_fill(revived, 0)
        if bool(revived.any()):
            logger.info("step %d: %d dead latents started anew", state.step, int(revived.sum()))
    if bool(state.dead.all()) and not all_dead:
        logger.warning("step %d: no latent has fired for %d tokens", state.step, state.config.dead_tokens)


@torch.no_grad()
def averaged(dictionary: Dictionary, state: TrainState) -> Dictionary:
    """A copy of `dictionary` with the running averages of its weights, atoms back on the unit sphere. Raises ConfigError if none are kept."""
    if not state.averages:
        raise ConfigError("state must hold averages: set ema_decay in TrainConfig (averaged)")
    copy = deepcopy(dictionary)
    for name, parameter in copy.named_parameters():
        parameter.copy_(state.averages[name])
    copy.normalise_()
    return copy


def describe(config: TrainConfig, objective: Any) -> dict[str, Any]:
    """The run's configuration as JSON, for a dictionary's provenance."""
    return {"config": to_json(config), "objective": to_json(objective)}
