"""Experiment trackers that a run can report to besides its own log: Weights & Biases and Trackio.

Neither is needed, and neither is imported unless it is asked for. What a tracker receives are the records of the log; the log on disk stays
the one that is exact. After a kill the steps between the last checkpoint and the kill are reported again, with the same numbers.
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from sae.errors import ConfigError

TrackerKind = Literal["wandb", "trackio"]
REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""Environment variables that make Trackio send what it gets to another machine."""


@runtime_checkable
class Tracker(Protocol):
    """What receives the numbers of a run."""

    def log(self, values: Mapping[str, int | float], step: int) -> None:
        """Take the numbers of one step."""
        ...

    def finish(self) -> None:
        """Bring everything to its place; nothing is logged afterwards."""
        ...


class _Run:
    """A run of either package: both have `log(metrics, step=)` and `finish()`."""

    def __init__(self, run: Any):
        self._run = run

    def log(self, values: Mapping[str, int | float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


def open_tracker(
    kind: TrackerKind, *, project: str, name: str, run_id: str, config: Mapping[str, Any], folder: str | Path, offline: bool = False
) -> Tracker:
    """A tracker for the run `run_id`, which goes on where the same id was tracked before.

    `offline` keeps everything on this machine: wandb writes below `folder`, from where `wandb sync` can send it later; Trackio writes to its
    own folder. Without it each follows its own settings. Raises ConfigError, naming the extra to install, when the package is not there, and
    when `offline` is asked for while the environment sends Trackio elsewhere.
    """
    if kind not in get_args(TrackerKind):
        raise ConfigError(f"kind must be one of {', '.join(get_args(TrackerKind))}, got {kind!r} (open_tracker)")
    try:
        package = importlib.import_module(kind)
    except ImportError as error:
        raise ConfigError(f"tracker {kind!r} needs the package {kind}: pip install 'sae-workbench[{kind}]' ({error})") from error
    if kind == "wandb":
        mode = "offline" if offline else None
        shared = {"project": project, "name": name, "config": dict(config)}
        identity = {"id": run_id[:16], "resume": None if offline else "allow", "reinit": "create_new"}  # a sweep has several runs at once
        return _Run(package.init(**shared, **identity, dir=str(folder), mode=mode))
    elsewhere = [variable for variable in REMOTE if os.environ.get(variable)]
    if offline and elsewhere:
        raise ConfigError(
            f"{elsewhere[0]} must not be set when trackio is to stay offline, got {os.environ[elsewhere[0]]!r} (open_tracker)"
        )
    return _Run(package.init(project=project, name=f"{name}-{run_id[:8]}", config=dict(config), resume="allow", embed=False))
