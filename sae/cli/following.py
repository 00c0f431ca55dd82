"""How a capture is followed: a bar for each of its stages on a terminal, about twenty lines where the output goes elsewhere.

    capture    ━━━━━━━━━━━━━━  12,345/200,000 tokens    2,345/s  0:01:20 left  28.4 MB of 460.8 MB

Where several processes share the work, one of them is followed, and the others are taken to be as fast.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.filesize import decimal
from rich.progress import Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from sae.activations.progress import CaptureProgress
from sae.cli.screen import N_LINES, NarrowingBar, clock, console


class Step(NamedTuple):
    """Progress of what is no capture."""

    stage: str
    """What is being done."""
    n_tokens: int
    """Tokens done."""
    n_tokens_total: int
    """Tokens there are to do."""
    n_tokens_run: int = 0
    """None was put through a model."""


Progressing = CaptureProgress | Step
WIDE = 100
"""Columns from which on a line also says how many bytes there will be."""


@dataclass
class Pace:
    """How fast a stage goes."""

    n_processes: int
    """Processes that share the work."""
    bytes_per_token: int
    """What a captured token takes on disk, all sites together."""
    began: float = 0.0
    """When its first work was done, by `clock`."""
    found: int = 0
    """Tokens that were there before."""
    first: int = 0
    """Tokens of this run at that moment: it is not known how long they took."""
    clock: Callable[[], float] = time.perf_counter
    """Seconds."""

    def start(self, progress: Progressing) -> None:
        """The first progress of a stage."""
        self.began, self.first = self.clock(), self._worked(progress)
        self.found = progress.n_tokens - self.first

    def done(self, progress: Progressing) -> int:
        """Tokens done by all processes."""
        own = self._worked(progress)
        if progress.stage != "capture" or own == 0:
            self.found = max(self.found, progress.n_tokens - own)
            return progress.n_tokens
        return min(progress.n_tokens_total, max(progress.n_tokens, self.found + own * self.n_processes))

    def text(self, progress: Progressing) -> str:
        """The numbers on one line."""
        done, total = self.done(progress), progress.n_tokens_total
        n_processes = self.n_processes if progress.stage == "capture" else 1
        seconds, worked = self.clock() - self.began, (self._worked(progress) - self.first) * n_processes
        rate = worked / seconds if seconds > 0 and worked > 0 else 0.0
        speed = f"{rate:,.0f}/s" if rate else "-/s"
        left = clock((total - done) / rate) if rate else "-"
        line = f"{done:>{len(f'{total:,}')},}/{total:,} tokens  {speed:>9}  {left:>7} left"
        if progress.stage != "capture" or not self.bytes_per_token:
            return line
        size = f"{line}  {decimal(done * self.bytes_per_token)}"
        return size if console.width < WIDE else f"{size} of {decimal(total * self.bytes_per_token)}"

    def _worked(self, progress: Progressing) -> int:
        return progress.n_tokens_run if progress.stage == "capture" else progress.n_tokens


class LineFollower:
    """A line at the end of each stage, and before it about `N_LINES`, a second apart at least: for files and pipes."""

    def __init__(self, pace: Pace):
        self.pace = pace
        self.stage, self.next, self.shown = "", 0, 0.0

    def show(self, progress: Progressing) -> None:
        """Print the numbers every so many tokens, and at the end of a stage."""
        if progress.stage != self.stage:
            self.stage, self.next, self.shown = progress.stage, 0, self.pace.clock()
            self.pace.start(progress)
        done, now = self.pace.done(progress), self.pace.clock()
        if (done >= self.next and now - self.shown >= 1.0) or progress.n_tokens >= progress.n_tokens_total:
            self.next, self.shown = done + progress.n_tokens_total // N_LINES, now
            console.print(f"{progress.stage:<10} {self.pace.text(progress)}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is left to do."""


class LiveFollower:
    """A bar and a line of numbers for each stage, renewed in place."""

    def __init__(self, pace: Pace):
        self.pace = pace
        self.bars = Progress(
            TextColumn("{task.description:<10}"), NarrowingBar(bar_width=14), _Numbers(), console=console, refresh_per_second=5
        )
        self.tasks: dict[str, TaskID] = {}
        self.bars.start()

    def show(self, progress: Progressing) -> None:
        """Bring the line up to date."""
        if progress.stage not in self.tasks:
            self.pace.start(progress)
            self.tasks[progress.stage] = self.bars.add_task(progress.stage, total=progress.n_tokens_total, numbers="")
        self.bars.update(self.tasks[progress.stage], completed=self.pace.done(progress), numbers=self.pace.text(progress))

    def close(self) -> None:
        """Stop renewing; the last state stays on the screen."""
        self.bars.stop()


class _Numbers(ProgressColumn):
    """The numbers of the last step."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")), no_wrap=True)


def follow(steps: Iterable[Progressing], *, bytes_per_token: int = 0, n_processes: int = 1, shown: bool = True) -> None:
    """Go through the steps to their end, showing how far they are."""
    if not shown:
        for _ in steps:
            pass
        return
    pace = Pace(n_processes, bytes_per_token)
    follower = LiveFollower(pace) if console.is_terminal else LineFollower(pace)
    try:
        for progress in steps:
            follower.show(progress)
    finally:
        follower.close()
