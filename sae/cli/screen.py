"""What the programs show: the console, how a training run is followed, how one is stopped."""

import math
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from sae.training.log import Record

console = Console()
N_LINES = 20
"""Lines about each run where the output is not a terminal."""


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


def clock(seconds: float) -> str:
    """h:mm:ss, or a dash for what is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


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


class NarrowingBar(BarColumn):
    """A bar that gives way to the numbers on a narrow screen."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if console.width >= 120 else Text("")


class _Numbers(ProgressColumn):
    """The numbers of the last step."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")))


def display(n_steps: int, batch_size: int) -> Display:
    """What suits the output."""
    return LiveDisplay(n_steps, batch_size) if console.is_terminal else LineDisplay(n_steps, batch_size)


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C ends the program with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; {advice}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(128 + signal.SIGINT) from None
