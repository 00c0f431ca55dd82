"""How a training run is followed on the console."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from sae.cli.terminal import N_LINES, NarrowingBar, clock, console, stoppable
from sae.training.log import Record

__all__ = ["N_LINES", "Display", "LineDisplay", "LiveDisplay", "NarrowingBar", "clock", "console", "display", "numbers", "stoppable"]


@runtime_checkable
class Display(Protocol):
    """Follows the runs that are trained together."""

    def show(self, records: Mapping[str, Record]) -> None:
        """Show the records of a step."""
        ...

    def close(self) -> None:
        """Leave the screen as it is."""
        ...


def numbers(record: Record, *, n_steps: int, batch_size: int) -> str:
    """The numbers of a record on one line."""
    rate = record.tokens_per_second
    speed = f"{rate:8,.0f} tokens/s" if math.isfinite(rate) else f"{'-':>8} tokens/s"
    left = (n_steps - record.step - 1) * batch_size / rate if math.isfinite(rate) and rate > 0 else math.nan
    return f"loss {record.loss:7.4f}  FVU {record.fvu:6.4f}  L0 {record.l0:6.1f}  dead {record.dead_share:6.1%}  {speed}  {clock(left):>8} left"


class LineDisplay:
    """About `N_LINES` lines a run, for files and pipes."""

    def __init__(self, n_steps: int, batch_size: int):
        self.n_steps, self.batch_size = n_steps, batch_size
        self.every = max(1, n_steps // N_LINES)

    def show(self, records: Mapping[str, Record]) -> None:
        """Print the runs' numbers every so many steps."""
        for name, record in records.items():
            done = record.step + 1
            if done % self.every == 0 or done == self.n_steps:
                label = "" if name == "." else f"{name}  "
                text = numbers(record, n_steps=self.n_steps, batch_size=self.batch_size)
                console.print(f"{label}step {done:>{len(str(self.n_steps))}}/{self.n_steps}  {text}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left to do."""


class LiveDisplay:
    """A bar and a line of numbers for each run, renewed in place."""

    def __init__(self, n_steps: int, batch_size: int):
        self.n_steps, self.batch_size = n_steps, batch_size
        columns: list[ProgressColumn] = [TextColumn("{task.description}"), NarrowingBar(bar_width=14), MofNCompleteColumn(), _Numbers()]
        self.bars = Progress(*columns, console=console, refresh_per_second=5)
        self.tasks: dict[str, TaskID] = {}
        self.bars.start()

    def show(self, records: Mapping[str, Record]) -> None:
        """Bring the lines up to date."""
        for name, record in records.items():
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task("train" if name == "." else name, total=self.n_steps, numbers="")
            text = numbers(record, n_steps=self.n_steps, batch_size=self.batch_size)
            self.bars.update(self.tasks[name], completed=record.step + 1, numbers=text)

    def close(self) -> None:
        """Stop renewing; the last state stays on the screen."""
        self.bars.stop()


class _Numbers(ProgressColumn):
    """The numbers of the last step."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")))


def display(n_steps: int, batch_size: int) -> Display:
    """What suits the output."""
    return LiveDisplay(n_steps, batch_size) if console.is_terminal else LineDisplay(n_steps, batch_size)
