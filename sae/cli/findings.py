"""How batteries show themselves on the console: what there is, what is being measured, and tables of findings that suit narrow screens."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sae.cli.screen import NarrowingBar, console
from sae.evaluation.batteries import BATTERIES, Battery, Done, Finding, Inputs, Results, Task
from sae.evaluation.batteries.wording import null_text, p_text, value_text
from sae.inspection.finding_tables import span
from sae.inspection.geometry_page import rule

WIDE, MIDDLE, MOST = 110, 76, 6
"""Columns from which on the table has all its columns, and all but two; subjects of a quantity up to which each has its line."""
NEEDS = {
    "dictionary": "a dictionary",
    "other": "a second dictionary",
    "store": "a store",
    "sites": "a store of several sites",
    "model": "a model",
    "truth": "planted features",
}


def list_batteries(batteries: Mapping[str, Battery] = BATTERIES) -> None:
    """Print every battery with its measures, what they need, and their quantities."""
    for battery in batteries.values():
        console.print(f"[bold]{battery.name}[/bold]  {battery.about}", highlight=False)
        for measure in battery.measures:
            needs = " and ".join(NEEDS[need] for need in measure.needs)
            console.print(f"  {measure.name}  [dim]needs {needs}[/dim]", highlight=False)
            console.print(f"    [dim]{', '.join(quantity.name for quantity in measure.quantities)}[/dim]", highlight=False)


def print_settings(inputs: Inputs, tasks: Sequence[Task], *, quick: bool) -> None:
    """Print what is going to be measured, and with which settings."""
    what = ", ".join(inputs.names[key] for key in ("dictionary", "other", "store", "model") if key in inputs.names)
    where = f" at {inputs.site}" if inputs.site else ""
    names = ", ".join(dict.fromkeys(task.measure.name for task in tasks))
    looked = "quick look" if quick else "default sizes"
    console.print(f"{what}{where}: {names}; {looked}, seed {inputs.seed}", highlight=False, markup=False)
    for task in {task.measure.name: task for task in tasks}.values():
        settings = ", ".join(f"{name} {value}" for name, value in vars(task.config).items())
        console.print(f"  {task.measure.name}: {settings}", highlight=False, markup=False, style="dim")


def show_progress(tasks: Sequence[Task], run: Callable[[Task], Done]) -> Iterator[Done]:
    """Run the tasks one after the other: a bar on a terminal, a line for each elsewhere."""
    if not console.is_terminal:
        for task in tasks:
            done = run(task)
            console.print(_line(done), highlight=False, soft_wrap=True, markup=False)
            yield done
        return
    columns = (TextColumn("{task.description}"), NarrowingBar(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=len(tasks))
        for task in tasks:
            bars.update(bar, description=task.label)
            done = run(task)
            if done.outcome is None:
                bars.console.print(_line(done), highlight=False, soft_wrap=True, markup=False)
            bars.advance(bar)
            yield done


def _line(done: Done) -> str:
    if done.outcome is None:
        return f"{done.task.label:<24} left out: {done.reason}"
    return f"{done.task.label:<24} {'cached' if done.cached else f'{done.seconds:.1f} s'}"


def print_findings(results: Results) -> None:
    """The findings by measure, and the rule that says what stands out."""
    for group in results.groups:
        table = Table(title=group.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        names = _columns()
        for name in names:
            table.add_column(name, justify="left" if name == "quantity" else "right", overflow="fold")
        for several in _by_quantity(group.findings):
            if len(several) > MOST:
                table.add_row(*(escape(_span(several, name)) for name in names))
                continue
            for found in several:
                table.add_row(*(escape(cell_text(found, name)) for name in names), style="bold" if found.stands_out == "yes" else None)
        console.print(table, highlight=False)
    for name, reason in results.left_out:
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False)
    console.print(rule(results), highlight=False, markup=False)


def _by_quantity(findings: Sequence[Finding]) -> list[list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for each in findings:
        found.setdefault(each.name, []).append(each)
    return list(found.values())


def _span(several: Sequence[Finding], column: str) -> str:
    """One line for a quantity of many sites: from the smallest to the largest."""
    n, values, nulls, out = span(several)
    cells = {"quantity": f"{several[0].name} · {n} of them", "value": values, "null": nulls, "stands out": out, "out": out}
    return cells.get(column) or "–"


def _columns() -> tuple[str, ...]:
    if console.width >= WIDE:
        return ("quantity", "value", "null", "p", "stands out")
    return ("quantity", "value", "null", "out") if console.width >= MIDDLE else ("quantity", "value", "out")


def cell_text(found: Finding, column: str) -> str:
    """What a column of the table says of a number."""
    if column == "quantity":
        return f"{found.name} · {found.subject}" if found.subject else found.name
    cells = {
        "value": value_text(found) or "–",
        "null": null_text(found, short=console.width < WIDE),
        "p": p_text(found),
        "stands out": found.stands_out,
        "out": found.stands_out,
    }
    return cells[column]
