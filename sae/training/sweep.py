"""Several dictionaries trained on one pass over the activations.

runs = {"k 16": Run(first, objective, config), "k 32": Run(second, objective, config)}
for steps in sweep(store.batches(...), runs):
    print({name: step.fvu for name, step in steps.items()})
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.training.loop import Batch, Step, TrainConfig, TrainState, train
from sae.training.objectives import Objective


@dataclass(frozen=True, eq=False)
class Run:
    """One of the dictionaries that are trained together."""

    dictionary: Dictionary
    """What is trained, in place."""
    objective: Objective
    """Its loss."""
    config: TrainConfig
    """How it is trained."""
    state: TrainState | None = None
    """Where it stands, for a run that goes on."""


def sweep(batches: Iterable[Batch], runs: Mapping[str, Run]) -> Iterator[dict[str, Step]]:
    """Feed every batch to all runs in turn; yields the steps by name, and ends when all runs have. Only the batch at hand is held.

    Runs may differ in everything but where they stand: all must have the same number of steps done. Each is exactly what `train` alone
    would do. Raises ConfigError for no runs, or for runs at different steps.
    """
    if not runs:
        raise ConfigError("runs must hold at least one run, got none (sweep)")
    done = {name: run.state.step if run.state else 0 for name, run in runs.items()}
    if len(set(done.values())) > 1:
        raise ConfigError(f"runs must all have the same number of steps done, got {done} (sweep)")
    streams = itertools.tee(batches, len(runs))
    going = {
        name: train(run.dictionary, stream, run.objective, run.config, state=run.state)
        for (name, run), stream in zip(runs.items(), streams, strict=True)
    }
    return _lockstep(going)


def _lockstep(going: dict[str, Iterator[Step]]) -> Iterator[dict[str, Step]]:
    while going:
        steps: dict[str, Step] = {}
        for name, run in list(going.items()):
            step = next(run, None)
            if step is None:
                del going[name]
            else:
                steps[name] = step
        if steps:
            yield steps
