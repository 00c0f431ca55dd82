"""The console, and what every program shows on it. Nothing here needs torch: a program that only reads starts at once."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

console = Console()
N_LINES = 20
"""Lines about a piece of work where the output is not a terminal."""


class NarrowingBar(BarColumn):
    """A bar that gives way to the numbers on a narrow screen."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if console.width >= 120 else Text("")


def clock(seconds: float) -> str:
    """h:mm:ss, or a dash for what is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C ends the program with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; {advice}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(128 + signal.SIGINT) from None


def follow_stages(steps: Iterable[tuple[str, int, int]], units: Callable[[str], str]) -> None:
    """Go through the steps (stage, done, total) to their end: a bar for each stage on a terminal, a line at its end and some before it
    elsewhere. `units` says what a stage counts."""
    if not console.is_terminal:
        shown: dict[str, float] = {}  # from which count on a stage has its next line
        for stage, done, total in steps:
            if done >= min(shown.get(stage, 0), total) and shown.get(stage, 0) < math.inf:
                shown[stage] = math.inf if done >= total else done + max(1, total // N_LINES)
                console.print(f"{stage:<10} {done:>{len(f'{total:,}')},}/{total:,} {units(stage)}", highlight=False, soft_wrap=True)
        return
    columns = (TextColumn("{task.description:<10}"), NarrowingBar(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[units]}"))
    tasks = {}
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        for stage, done, total in steps:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, units=units(stage))
            bars.update(tasks[stage], completed=done, total=total)
