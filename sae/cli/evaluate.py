"""`sae evaluate` and `sae compare`: every metric of a dictionary, and of several side by side, as a table, a page and a file.

    sae evaluate run/dictionary --store acts                     reconstruction, densities, description length
    sae evaluate run/dictionary --store acts --model default     and cross-entropy, absorption, probing, disentanglement
    sae evaluate downloaded/sae --store acts --format saelens    of any library that `sae convert` reads
    sae compare run/a run/b run/c --store acts                   a column for each, and the frontiers

Every result is cached: the same command again reads it, and after an interruption it goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from sae.cli.findings import MIDDLE, cell_text, list_batteries, print_settings, show_progress
from sae.cli.machine import DEFAULT, compute_device, load_model, set_threads
from sae.cli.paths import distinct_names, load_any_dictionary, open_store, refuse_foreign
from sae.cli.screen import console, stoppable
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs, perform
from sae.evaluation.batteries.wording import interval_text, value_text
from sae.evaluation.common_distortion import CommonLengths, common_lengths
from sae.evaluation.frontiers import Comparison, compare
from sae.evaluation.headlines import Line
from sae.evaluation.report import (
    EVALUATION,
    EvalReport,
    evaluation_inputs,
    evaluation_report,
    evaluation_tasks,
)
from sae.evaluation.suite.registry import evaluations
from sae.fingerprint import to_json
from sae.inspection.evaluation_page import comparison_page, evaluation_page, length_section
from sae.inspection.report import write_report
from sae.models.assets import SMOLLM2
from sae.models.language_model import LanguageModel
from sae.storage import write_json

COMPARISON = "comparison.json"

Store = Annotated[Path | None, typer.Option(help="Folder of the activation store.")]
Site = Annotated[str | None, typer.Option(help="Site of the store (default: the dictionary's, or the store's only one).")]
Model = Annotated[str | None, typer.Option(help="`default`, a folder, a .gguf file, a hub name: for cross-entropy, absorption, probing.")]
BatteryOption = Annotated[list[str] | None, typer.Option(help="Battery to run; repeat for several (default: what suits; see --list).")]
Format = Annotated[str | None, typer.Option(help="Format of the dictionary, where its files do not tell it.")]
Quick = Annotated[bool, typer.Option("--quick", help="Smaller samples: a first look.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of samples, resamples and nulls.")]
Cache = Annotated[Path | None, typer.Option(help="Folder of results; default: results/ in the user cache folder.")]
Threads = Annotated[int | None, typer.Option(help="Threads (default: torch's).")]
Device = Annotated[str | None, typer.Option(help="Where to compute (default: a GPU where there is one).")]
ToList = Annotated[bool, typer.Option("--list", help="List the batteries, their measures and what they need, and stop.")]


def evaluate_command(
    dictionary: Annotated[
        str | None, typer.Argument(metavar="DICTIONARY", help="Folder or file of a dictionary, or folder of a run.")
    ] = None,
    *,
    store: Store = None,
    site: Site = None,
    model: Model = None,
    other: Annotated[str | None, typer.Option(help="The same dictionary trained from another seed, for stability.")] = None,
    battery: BatteryOption = None,
    format: Format = None,
    out: Annotated[Path, typer.Option(help="Folder for report/index.html and evaluation.json.")] = Path("evaluation"),
    quick: Quick = False,
    as_json: AsJson = False,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    device: Device = None,
    listed: ToList = False,
) -> None:
    """Score a dictionary by all its metrics, each with its definition and its interval over documents.

    Writes OUT/report/index.html, a page that needs nothing else, and OUT/evaluation.json. Every result is cached: the same command again
    reads it, and after an interruption it goes on.
    """
    if listed:
        list_batteries(evaluations())
        return
    if dictionary is None:
        raise ConfigError("DICTIONARY must be given; `sae evaluate --list` says what can be measured")
    set_threads(threads)
    refuse_foreign(out / "report")
    paths = [dictionary, *([other] if other else [])]
    inputs = _inputs(paths, store, site, model, format, device, cache, seed)
    report = _report(inputs, battery, quick=quick, quiet=as_json)
    write_report(evaluation_page(report), out / "report")
    report.save(out)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    _print_lines(report)
    console.print(f"{out / 'report' / 'index.html'}\n{out / EVALUATION}", highlight=False, soft_wrap=True, markup=False)


def compare_command(
    dictionaries: Annotated[list[str] | None, typer.Argument(metavar="DICTIONARY...", help="Two dictionaries or more.")] = None,
    *,
    store: Store = None,
    site: Site = None,
    model: Model = None,
    battery: BatteryOption = None,
    format: Format = None,
    out: Annotated[Path, typer.Option(help="Folder for report/index.html and comparison.json.")] = Path("comparison"),
    quick: Quick = False,
    as_json: AsJson = False,
    seed: Seed = 0,
    cache: Cache = None,
    threads: Threads = None,
    device: Device = None,
) -> None:
    """Score dictionaries side by side: one table, and the frontiers of sparsity against what is lost.

    Writes OUT/report/index.html and OUT/comparison.json. What `sae evaluate` has measured of one of them before is read from the cache.
    """
    paths = dictionaries or []
    if len(paths) < 2:
        raise ConfigError(f"DICTIONARY must be given twice or more, got {len(paths)}: `sae evaluate` is for one")
    set_threads(threads)
    refuse_foreign(out / "report")
    reports, measured = {}, {}
    language_model = _model(model, store, device)
    for path, name in zip(paths, distinct_names(paths), strict=True):
        measured[name] = _inputs([path], store, site, language_model, format, device, cache, seed, name=name)
        reports[name] = _report(measured[name], battery, quick=quick, quiet=as_json)
    compared = compare(reports)
    lengths = _common_lengths(measured, reports, quick=quick)
    more = [] if lengths is None else [length_section(lengths)]
    write_report(comparison_page(compared, reports, more), out / "report")
    everything = {"comparison": to_json(compared), "lengths": to_json(lengths), "reports": to_json(reports)}
    write_json(out / COMPARISON, everything)
    if as_json:
        typer.echo(json.dumps(everything, indent=1))
        return
    _print_compared(compared)
    console.print(f"{out / 'report' / 'index.html'}\n{out / COMPARISON}", highlight=False, soft_wrap=True, markup=False)


def _common_lengths(inputs: Mapping[str, Inputs], reports: Mapping[str, EvalReport], *, quick: bool) -> CommonLengths | None:
    """Description lengths at one distortion, where lengths and reconstructions of all were measured on the same tokens."""
    known = {name: {(row["measure"], row["quantity"]): row["value"] for row in report.table} for name, report in reports.items()}
    fvus = {name: found.get(("reconstruction", "FVU")) for name, found in known.items()}
    if not all(("description", "description length") in found for found in known.values()) or None in fvus.values():
        return None
    with stoppable("the same command goes on"):
        return common_lengths(inputs, fvus, n_tokens=4000 if quick else 10_000)


def _inputs(
    paths: Sequence[str],
    store: Path | None,
    site: str | None,
    model: str | LanguageModel | None,
    format: str | None,
    device: str | None,
    cache: Path | None,
    seed: int,
    *,
    name: str | None = None,
) -> Inputs:
    """What the paths and options name. Raises ConfigError saying what to do."""
    where = compute_device(device)
    loaded = [load_any_dictionary(path, format).to(where) for path in paths]
    names = dict(zip(("dictionary", "other"), [name] if name else distinct_names(paths), strict=False))
    opened = open_store(store) if store is not None else None
    if isinstance(model, str):
        model, source = _model(model, store, device), model
        names["model"] = SMOLLM2.name if source == DEFAULT else Path(source).name
    return evaluation_inputs(
        loaded[0], opened, other=loaded[1] if len(loaded) > 1 else None, model=model, site=site, cache=cache, seed=seed, names=names
    )


def _model(source: str | None, store: Path | None, device: str | None) -> LanguageModel | None:
    """The model, in the precision of the store's capture."""
    if source is None:
        return None
    stored = open_store(store).manifest if store is not None else None
    return load_model(source, stored=stored, dtype=None, device=compute_device(device))


def _report(inputs: Inputs, batteries: Sequence[str] | None, *, quick: bool, quiet: bool) -> EvalReport:
    """Measure, showing what goes on unless `quiet`."""
    tasks = evaluation_tasks(inputs, batteries or None, quick=quick)
    if quiet:
        done = [perform(task, inputs) for task in tasks]
    else:
        print_settings(inputs, tasks, quick=quick)
        with stoppable("the same command goes on"):
            done = list(show_progress(tasks, lambda task: perform(task, inputs)))
    return evaluation_report(done, inputs, quick=quick)


def _print_lines(report: EvalReport) -> None:
    """The headlines of an evaluation, or all its numbers where it has no headline; then what to know, and what was left out."""
    table = Table(
        title=f"Evaluation of {escape(report.name)}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    wide = console.width >= MIDDLE
    for name in ("number", "value", *(("95 % interval",) if wide else ())):
        table.add_column(name, justify="left" if name == "number" else "right", overflow="fold")
    lines = report.lines or [Line(cell_text(found, "quantity"), "", found) for found in report.findings]
    for each in lines:
        cells = (each.label, value_text(each.found) or "–", *((interval_text(each.found) or "–",) if wide else ()))
        table.add_row(*map(escape, cells))
    console.print(table, highlight=False)
    for caveat in report.caveats:
        console.print(caveat, highlight=False, markup=False)
    for what, reason in (*report.results.left_out, *report.unmeasured):
        console.print(f"not measured: {what}: {reason}", highlight=False, markup=False, style="dim")


def _print_compared(comparison: Comparison) -> None:
    """The headlines of a comparison, or all its numbers; a dictionary a column, or a line where the screen is narrow. The best is bold."""
    table = Table(title="Comparison", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    wide = console.width >= 28 + 14 * len(comparison.names)
    for name in ("number", *(comparison.names if wide else ("dictionary", "value"))):
        table.add_column(escape(name), justify="left" if name in ("number", "dictionary") else "right", overflow="fold")
    for row in [row for row in comparison.rows if row.headline] or comparison.rows:
        label = escape(row.title)
        texts = {name: _bold(value_text(replace(found, unit="")) or "–", name == row.best) for name, found in row.findings.items()}
        if wide:
            table.add_row(label, *(texts.get(name, "–") for name in comparison.names))
        else:
            for i, (name, text) in enumerate(texts.items()):
                table.add_row(label if i == 0 else "", escape(name), text)
    console.print(table, highlight=False)
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False)


def _bold(text: str, bold: bool) -> str:
    return f"[bold green]{escape(text)}[/]" if bold else escape(text)
