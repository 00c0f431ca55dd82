"""`sae train`: dictionaries of any architecture from an activation store, one or a sweep of them, in one pass over it.

    sae train STORE --out runs/a --architecture top_k --d-sae 2048 --k 32 --n-steps 2000
    sae train STORE --out runs/b --architecture pursuit --d-sae 2048 --k 16 --k 32 --n-steps 500          two, in runs/b/k_16 and runs/b/k_32
    sae train STORE --out runs/c --config runs/a/run.json --learning-rate 0.001                           as before, but for one thing

The options mirror the configurations of the library. The same command goes on where the last one was stopped.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.logging import RichHandler

from sae.activations.store import ActivationStore
from sae.cli.machine import compute_device, set_threads
from sae.cli.options import Flag, Source, command, flags, put
from sae.cli.scores import print_scores
from sae.cli.screen import console, display, stoppable
from sae.dictionaries.autoencoder import AutoencoderConfig
from sae.dictionaries.codebook import CodebookConfig
from sae.dictionaries.pursuit import PursuitConfig
from sae.errors import ConfigError
from sae.fingerprint import digest, from_json
from sae.storage import read_json
from sae.training.feed import FeedConfig
from sae.training.loop import TrainConfig
from sae.training.objectives import MatryoshkaObjective, MultiTopKObjective, ReconstructionObjective
from sae.training.plans import ACTIVATIONS, ARCHITECTURES, OBJECTIVES, Plan
from sae.training.session import Upkeep, finished, train_from_store
from sae.training.trackers import Tracker, TrackerKind, open_tracker

SWEPT = ("d_sae", "k", "learning_rate", "sparsity_coefficient", "target_l0")
DERIVED = ("d_in", "d_out")  # the store knows them
FOREIGN = ("apply_b_dec_to_input", "unit_norm")  # forms that others save; ours subtract b_dec and keep atoms on the sphere
SOURCES = (
    Source(FeedConfig, ("feed",), "Data"),
    *(Source(AutoencoderConfig, ("dictionary",), "Dictionary", name) for name in ACTIVATIONS),
    Source(PursuitConfig, ("dictionary",), "Dictionary", "pursuit"),
    Source(CodebookConfig, ("dictionary",), "Dictionary", "codebook"),
    *(Source(kind, ("dictionary", "activation"), "Dictionary", name) for name, kind in ACTIVATIONS.items()),
    Source(ReconstructionObjective, ("loss",), "Objective", "reconstruction"),
    Source(MatryoshkaObjective, ("loss",), "Objective", "matryoshka"),
    Source(MultiTopKObjective, ("loss",), "Objective", "multi_top_k"),
    Source(TrainConfig, ("training",), "Training"),
    Source(Upkeep, ("upkeep",), "Run"),
)
FLAGS: dict[str, Flag] = {flag.name: flag for flag in flags(SOURCES, left_out=(*DERIVED, *FOREIGN), swept=SWEPT)}
NEEDED = {"d_sae": ("dictionary", "d_sae"), "n_steps": ("training", "n_steps")}
PLAN_KEYS = ("architecture", "dictionary", "objective", "loss", "training", "atoms")

Architecture = Literal["top_k", "abs_top_k", "batch_top_k", "relu", "jump_relu", "gated", "pursuit", "codebook"]
ObjectiveName = Literal["reconstruction", "matryoshka", "multi_top_k"]


def train(
    store: Annotated[Path, typer.Argument(help="Folder of the activation store.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run; a sweep makes one sub-folder for each dictionary.")],
    architecture: Annotated[Architecture | None, typer.Option(help="What is trained (default top_k).")] = None,
    objective: Annotated[ObjectiveName | None, typer.Option(help="What is minimised (default reconstruction).")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file of settings, such as the run.json of a run; options override it.")] = None,
    atoms: Annotated[
        Literal["data", "random"] | None, typer.Option(help="What atoms start as (default: what suits the architecture).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of one process (default: torch's).")] = None,
    tracker: Annotated[TrackerKind | None, typer.Option(help="Also report to this experiment tracker.")] = None,
    project: Annotated[str, typer.Option(help="The tracker's project.")] = "sae-workbench",
    offline: Annotated[bool, typer.Option("--offline", help="The tracker sends nothing.")] = False,
    evaluation_tokens: Annotated[int, typer.Option(help="Held-out tokens that the result is measured on; 0 for no measurement.")] = 65_536,
    given: Any = None,
) -> None:
    """Train a dictionary on the activations in STORE, or with repeated options several on one pass; run it again to go on.

    Shows loss, FVU, L0, the share of dead latents and the speed, and at the end the held-out scores beside an untrained dictionary and a
    linear code of the same size. OUT/dictionary is the result, OUT/log.jsonl has every step.
    """
    set_threads(threads)
    activations = ActivationStore.open(store)
    settings = _read_settings(config)
    for name, value in (("architecture", architecture), ("objective", objective), ("atoms", atoms)):
        if value is not None:
            settings[name] = value
    plans, feed, upkeep = _resolve(activations, settings, given)
    where = compute_device(device)
    console.print(_title(activations, plans, feed, out), highlight=False, soft_wrap=True)
    if all(finished(out / name) for name in plans):
        console.print("finished already")
    with ExitStack() as stack:
        stack.enter_context(stoppable(f"the same command goes on from the last checkpoint in {out}"))
        stack.enter_context(_warnings_on_screen())
        trackers = _trackers(stack, tracker, plans, feed, activations, out, project=project, offline=offline)
        follow = display(next(iter(plans.values())).training.n_steps, feed.batch_size)
        stack.callback(follow.close)
        for records in train_from_store(activations, plans if len(plans) > 1 else plans["."], feed, out, upkeep=upkeep, device=where):
            follow.show(records)
            for name, record in records.items():
                if name in trackers:
                    trackers[name].log({key: value for key, value in record.json().items() if value is not None}, record.step)
    for name in plans:
        assert finished(out / name)
    print_scores(activations, plans, feed, out, n_tokens=evaluation_tokens, device=where)


train_command = command(train, list(FLAGS.values()))


def _read_settings(path: Path | None) -> dict[str, Any]:
    settings = {} if path is None else read_json(path)
    known = (*PLAN_KEYS, "feed", "upkeep")
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a JSON object with any of {', '.join(known)}, got {type(settings).__name__}")
    settings = {
        key: value for key, value in settings.items() if key not in ("format", "store")
    }  # a run.json also says what it was made from
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{path} has an unknown key {key!r}; allowed: {', '.join(known)}")
        if key in ("dictionary", "loss", "training", "feed", "upkeep") and not isinstance(value, dict):
            raise ConfigError(f"{key} in {path} must be an object, got {value!r}")
    return settings


def _resolve(store: ActivationStore, settings: dict[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Plan], FeedConfig, Upkeep]:
    """(plans by the name of their folder, feed, upkeep) of a settings file and the options that override it."""
    choices = {"architecture": settings.get("architecture", "top_k"), "objective": settings.get("objective", "reconstruction")}
    for name, allowed in (("architecture", ARCHITECTURES), ("objective", OBJECTIVES)):
        if choices[name] not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {choices[name]!r}")
    swept = {name: given[name] for name in SWEPT if name in given}  # in this order: folders are named by it
    for name, values in swept.items():
        if len(set(values)) < len(values):
            raise ConfigError(f"{FLAGS[name].option} must be given distinct values, got {values}")
    trees = {}
    for combination in itertools.product(*swept.values()):
        chosen = dict(zip(swept, combination, strict=True))
        tree = dict(settings)
        for name, value in {**given, **chosen}.items():
            put(tree, FLAGS[name], value, choices)
        folder = "-".join(f"{name}_{value:g}" for name, value in chosen.items() if len(swept[name]) > 1)
        trees[folder or "."] = tree
    first = next(iter(trees.values()))
    if len(store.site_names) > 1 and "site" not in first.get("feed", {}):
        raise ConfigError(f"--site must be given, one of {', '.join(store.site_names)}")
    feed = from_json(FeedConfig, {**_only_site(store), **first.get("feed", {})}, where="feed")
    upkeep = from_json(Upkeep, first.get("upkeep", {}), where="upkeep")
    return {name: _plan(store, tree, feed) for name, tree in trees.items()}, feed, upkeep


def _plan(store: ActivationStore, tree: Mapping[str, Any], feed: FeedConfig) -> Plan:
    for name, (section, key) in NEEDED.items():
        if key not in tree.get(section, {}):
            raise ConfigError(f"{FLAGS[name].option} must be given, or {section}.{key} in the file of --config")
    d_in, *d_out = [store.site(site).width for site in feed.sites]
    dictionary = {"d_in": d_in, **({"d_out": d_out[0]} if d_out else {}), **_without_none(tree["dictionary"])}
    return Plan.parse({key: value for key, value in {**tree, "dictionary": dictionary}.items() if key in PLAN_KEYS})


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _only_site(store: ActivationStore) -> dict[str, str]:
    return {"site": store.site_names[0]} if len(store.site_names) == 1 else {}


def _title(store: ActivationStore, plans: Mapping[str, Plan], feed: FeedConfig, out: Path) -> str:
    plan = next(iter(plans.values()))
    what = (
        f"{plan.architecture}, {plan.dictionary.d_sae} latents" if len(plans) == 1 else f"{len(plans)} dictionaries ({plan.architecture})"
    )
    sites = " -> ".join(feed.sites)
    n_steps, n_usable = plan.training.n_steps, store.statistics(feed.site).n
    return f"{what} at {sites}: {n_steps:,} steps of {feed.batch_size:,} tokens from {n_usable:,} usable ones; into {out}"


@contextmanager
def _warnings_on_screen() -> Iterator[None]:
    """The library's messages about a run (latents revived, all of them dead) appear above its numbers."""
    logger, handler = logging.getLogger("sae.training"), RichHandler(console=console, show_path=False, show_time=False)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _trackers(
    stack: ExitStack,
    kind: TrackerKind | None,
    plans: Mapping[str, Plan],
    feed: FeedConfig,
    store: ActivationStore,
    out: Path,
    *,
    project: str,
    offline: bool,
) -> dict[str, Tracker]:
    found: dict[str, Tracker] = {}
    for name, plan in plans.items() if kind else ():
        if not finished(out / name):
            description = {**plan.json(), "feed": {**feed.__dict__}, "store": store.digest}
            label = out.name if name == "." else f"{out.name}/{name}"
            (out / name).mkdir(parents=True, exist_ok=True)
            assert kind
            run_id = digest([description, str((out / name).resolve())])
            found[name] = open_tracker(
                kind, project=project, name=label, run_id=run_id, config=description, folder=out / name, offline=offline
            )
            stack.callback(found[name].finish)
    return found
