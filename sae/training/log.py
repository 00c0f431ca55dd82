"""The log of a run, `log.jsonl`: one JSON object a line, one line a step, flushed as soon as it is written.

    {"step": 0, "n_tokens": 1024, "loss": 1.31, "fvu": 1.29, "l0": 32.0, "dead_share": 0.0, ..., "tokens_per_second": 21034.5}
    {"step": 17, "error": "the loss diverged at step 17: ..."}                     the last line of a run that failed

A resumed run cuts the lines past its checkpoint before it writes its own, so every step is there once. JSON has no NaN: a number that is not
finite is null.
"""

import json
import math
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sae.errors import FormatError
from sae.training.loop import Step

PACE_STEPS = 20
"""Steps that the tokens per second are averaged over."""


@dataclass(frozen=True)
class Record:
    """One line of the log."""

    step: int
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
    """Share of latents that are dead."""
    n_revived: int
    """Latents that were dead before the step and are not after it, because they fired or were started anew."""
    learning_rate: float
    """The optimiser's rate."""
    gradient_norm: float
    """Norm of the projected gradient before clipping."""
    pressure: float
    """Factor on the sparsity penalty."""
    tokens_per_second: float
    """Tokens trained on per second of wall time, over the last steps; null in the first step of a process."""

    @staticmethod
    def of(step: Step, *, n_revived: int, tokens_per_second: float) -> "Record":
        """The record of a step."""
        shared = ("n_tokens", "loss", "fvu", "l0", "dead_share", "learning_rate", "gradient_norm", "pressure")
        values = {name: getattr(step, name) for name in shared}
        return Record(step=step.index, n_revived=n_revived, tokens_per_second=tokens_per_second, **values)

    def json(self) -> dict[str, int | float | None]:
        """The record as JSON, null for what is not finite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


class Pace:
    """Tokens per second over the last `PACE_STEPS` steps."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS + 1)

    def at(self, seconds: float, n_tokens: int) -> float:
        """The rate once `n_tokens` have been seen at the time `seconds`; NaN at the first call."""
        self._marks.append((seconds, n_tokens))
        (first, before), (last, now) = self._marks[0], self._marks[-1]
        return (now - before) / (last - first) if last > first else math.nan


class Log:
    """A log that is open for writing; made by `Log.open`."""

    def __init__(self, file: BinaryIO):
        self._file = file

    @staticmethod
    def open(path: str | Path, *, start: int) -> "Log":
        """The log at `path`, cut to the steps before `start`. Raises FormatError naming the line that is not a record or is out of order."""
        path = Path(path)
        if path.exists():
            os.truncate(path, _end_of_steps_before(path, start))
        return Log(open(path, "ab"))

    def write(self, record: Record) -> None:
        """Add a line; it survives the end of this process."""
        self._line(record.json())

    def fail(self, step: int, error: str) -> None:
        """Add a line that says why the run ended at `step`."""
        self._line({"step": step, "error": error})

    def sync(self) -> None:
        """Bring every line to the disk, so that what a checkpoint stands on is there."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
        self._file.flush()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log. A last line that a kill has torn is left out. Raises FormatError naming a line that is not a record."""
    return [value for value, _ in _lines(Path(path))]


def _lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """(value, where the line ends) of every whole line."""
    found, end, previous = [], 0, -1
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line)
            except ValueError as error:
                raise FormatError(f"{path}: line {number} is not JSON") from error
            step = value.get("step") if isinstance(value, dict) else None
            if not isinstance(step, int) or step <= previous:
                raise FormatError(f"{path}: line {number} must hold a step after {previous}, got {step!r}")
            end, previous = end + len(line), step
            found.append((value, end))
    return found


def _end_of_steps_before(path: Path, start: int) -> int:
    return max((end for value, end in _lines(path) if value["step"] < start), default=0)
