"""`sae geometry`: measure a dictionary, a store, two dictionaries or a language model, and write a page about it.

    sae geometry run/dictionary                             its atoms
    sae geometry run/dictionary --store acts                and its codes on the store
    sae geometry acts --site 'blocks.*.hook_resid_post'     activations site by site, and the sites beside each other
    sae geometry run/a/dictionary run/b/dictionary --store acts        two dictionaries
    sae geometry default --prompts prompts.txt              every layer of a language model

Every result is cached: the same command again reads it, and after an interruption it goes on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sae.cli.findings import list_batteries, print_findings, print_settings, show_progress
from sae.cli.machine import DEFAULT, compute_device, load_model, set_threads
from sae.cli.paths import distinct_names, load_any_dictionary, open_store, recognise, refuse_foreign
from sae.cli.screen import console, stoppable
from sae.errors import ConfigError, FormatError
from sae.evaluation.batteries import Inputs, Results, Task, gather, perform, plan
from sae.evaluation.batteries.facts import facts_of
from sae.evaluation.batteries.sites import matching_sites, site_of
from sae.inspection.geometry_page import FINDINGS, findings_json, geometry_report, write_findings
from sae.inspection.report import write_report
from sae.models.assets import SMOLLM2
from sae.storage import ResultCache, user_cache_dir

OF_KIND = {
    frozenset({"dictionary"}): ("atoms",),
    frozenset({"dictionary", "store"}): ("atoms", "codes"),
    frozenset({"dictionary", "other"}): ("pair",),
    frozenset({"dictionary", "other", "store"}): ("pair",),
    frozenset({"store"}): ("activations",),
    frozenset({"store", "sites"}): ("activations", "layers"),
    frozenset({"model"}): ("layer_quality",),
}
"""Batteries that are run when none is named; `sparsity` of a model takes a pass over the prompts per draw, and is asked for."""
N_PROMPTS, SHORTEST = 640, 12


def geometry(
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="Folder of a dictionary, a run or a store; or a language model.")
    ] = None,
    second: Annotated[str | None, typer.Argument(metavar="[PATH2]", help="A dictionary to compare with, or the store.")] = None,
    *,
    battery: Annotated[list[str] | None, typer.Option(help="Battery to run; repeat for several (default: what suits; see --list).")] = None,
    store: Annotated[Path | None, typer.Option(help="Folder of the activation store that codes are computed on.")] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site or pattern of sites of the store; repeat for several.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, a prompt a line, for a language model (default: shipped speeches).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report/index.html and findings.json.")] = Path("geometry"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller samples and fewer null draws: a first look.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of samples and nulls.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of results; default: results/ in the user cache folder.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: torch's).")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the batteries, their measures and what they need, and stop.")] = False,
) -> None:
    """Measure the geometry of a dictionary, a store, two dictionaries or a language model: every number beside what chance gives.

    Writes OUT/report/index.html, a page with tables and figures that needs nothing else, and OUT/findings.json. Every result is cached:
    the same command again reads it.
    """
    if listed:
        list_batteries()
        return
    if path is None:
        raise ConfigError("PATH must be given: a dictionary, a store or a language model; `sae geometry --list` says what can be measured")
    set_threads(threads)
    inputs = _inputs(
        [path, *([second] if second else [])], store, site or [], prompts, ResultCache(cache or user_cache_dir() / "results"), seed
    )
    refuse_foreign(out / "report")
    tasks = plan(battery or OF_KIND[inputs.there], inputs, quick=quick)
    if not as_json:
        print_settings(inputs, tasks, quick=quick)
    with stoppable("the same command goes on"):
        results = gather(list(_performed(tasks, inputs, quiet=as_json)), seed=seed)
    _write(results, inputs, out, quick=quick)
    if as_json:
        typer.echo(json.dumps(findings_json(results, **_head(inputs, quick)), indent=1))
        return
    print_findings(results)
    console.print(f"{out / 'report' / 'index.html'}\n{out / FINDINGS}", highlight=False, soft_wrap=True, markup=False)


def _performed(tasks: Sequence[Task], inputs: Inputs, *, quiet: bool):
    if quiet:
        return (perform(task, inputs) for task in tasks)
    return show_progress(tasks, lambda task: perform(task, inputs))


def _write(results: Results, inputs: Inputs, out: Path, *, quick: bool) -> None:
    from sae.inspection.report_data import Fact

    facts = [Fact(name, value) for name, value in facts_of(inputs).items()]
    facts.append(Fact("Settings", "quick look" if quick else "default", f"seed {inputs.seed}"))
    title = "Geometry of " + " and ".join(inputs.names[key] for key in ("dictionary", "other", "store", "model") if key in inputs.names)
    write_report(geometry_report(results, title=title, facts=facts), out / "report")
    write_findings(results, out / FINDINGS, **_head(inputs, quick))


def _head(inputs: Inputs, quick: bool) -> dict[str, object]:
    return {"inputs": facts_of(inputs), "quick": quick}


def _inputs(
    paths: Sequence[str], store: Path | None, patterns: Sequence[str], prompts: Path | None, cache: ResultCache, seed: int
) -> Inputs:
    """What the paths and options name. Raises ConfigError saying what to do."""
    dictionaries, stores, models = [], [store] if store else [], []
    for path in paths:
        kind = recognise(path)
        {"dictionary": dictionaries, "store": stores, "model": models}[kind].append(path)
    if len(stores) > 1:
        raise ConfigError(
            f"one store must be given, got {stores[0]} and {stores[1]}; to compare layers, capture them as sites of one store"
        )
    if models and (dictionaries or stores or len(models) > 1):
        raise ConfigError(f"a language model must be given alone, got {' and '.join(map(str, [*paths, *([store] if store else [])]))}")
    if prompts and not models:
        raise ConfigError(f"--prompts goes with a language model, got {' and '.join(paths)}")
    if patterns and not stores:
        raise ConfigError(f"--site goes with a store, got {', '.join(patterns)}: give --store")
    if models:
        return _of_model(models[0], prompts, cache, seed)
    loaded = [load_any_dictionary(path) for path in dictionaries]
    opened = open_store(stores[0]) if stores else None
    sites = matching_sites(opened, patterns) if opened else ()
    names = dict(zip(("dictionary", "other"), distinct_names(dictionaries), strict=False))
    if opened:
        names["store"] = Path(stores[0]).resolve().name
    both = [*loaded, None, None]
    chosen = site_of(loaded, opened, patterns) if loaded and opened else ""
    return Inputs(cache, seed, both[0], both[1], opened, (chosen,) if chosen else sites, chosen, names=names)


def _of_model(source: str, prompts: Path | None, cache: ResultCache, seed: int) -> Inputs:
    model = load_model(source, stored=None, dtype=None, device=compute_device(None))
    texts = prompts_from(prompts)
    return Inputs(cache, seed, model=model, prompts=texts, names={"model": SMOLLM2.name if source == DEFAULT else Path(source).name})


def prompts_from(path: Path | None) -> tuple[str, ...]:
    """The lines of the file, or stretches of the shipped speeches."""
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"--prompts must be a text file with a prompt a line, {path} does not exist")
        try:
            lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except UnicodeDecodeError as error:
            raise FormatError(f"{path} must be UTF-8 text with a prompt a line: {error}") from error
        if len(lines) < 2:
            raise ConfigError(f"--prompts must hold at least 2 lines of text, got {len(lines)} ({path})")
        return lines
    from sae.activations.corpus import state_of_the_union
    from sae.evaluation.text_views import sampled_sentences

    return tuple(sampled_sentences((document.text for document in state_of_the_union().documents()), N_PROMPTS, shortest=SHORTEST))
