"""`sae capture`: the activations of a language model over a corpus, into a store; run again it goes on, or adds to what is there.

    sae capture default --corpus state_of_the_union --site blocks.15.hook_resid_post --n-tokens 200000 --out STORE
    sae capture --out STORE                                                              go on after a stop
    sae capture --out STORE --corpus state_of_the_union --n-tokens 400000                more tokens of the same corpus
    sae capture --out STORE --site 'blocks.*.hook_mlp_out'                               more sites of the same tokens
    torchrun --nproc-per-node 4 -m sae.cli capture ...                                   several processes, one store

What is not given is as it is in the store, where there is one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from sae.activations.collect import collect, extend
from sae.activations.corpus import Corpus, Document
from sae.activations.manifest import MANIFEST, UNFINISHED, CaptureConfig, Manifest, read_manifest
from sae.activations.progress import CaptureProgress
from sae.activations.store import ActivationStore
from sae.cli.corpora import CorpusChoice
from sae.cli.disk import bytes_there, check_space, free_bytes, store_bytes, token_bytes
from sae.cli.following import follow
from sae.cli.machine import ModelDtype, compute_device, load_model, processes, set_threads
from sae.cli.options import Flag, Source, command, flags, put
from sae.cli.screen import console, stoppable
from sae.cli.summary import print_summary
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json
from sae.models.language_model import LanguageModel
from sae.models.sites import Site

SOURCES = (Source(CorpusChoice, ("corpus",), "Corpus"), Source(CaptureConfig, ("capture",), "Capture"))
MAX_NAMES = 6
"""Sites that the plan names one by one."""
FLAGS: dict[str, Flag] = {flag.name: flag for flag in flags(SOURCES, left_out=("sites",), swept=())}


@dataclass(frozen=True)
class Task:
    """What a call is to do."""

    stored: Manifest | None
    """The complete store that is there."""
    begun: Manifest | None
    """What a capture that has not ended works towards."""
    config: CaptureConfig
    """What is wanted."""
    adds_sites: bool
    """Whether it only adds sites to the tokens that are there."""
    choice: CorpusChoice
    """The corpus asked for; no name where none was."""

    @property
    def known(self) -> Manifest | None:
        """What is there, complete or not."""
        return self.begun or self.stored

    @property
    def needs_corpus(self) -> bool:
        """Whether there are tokens to be read."""
        if self.begun is not None and self.begun.n_rows and self.begun.capture == self.config:
            return False
        return self.stored is None or self.config.n_rows > self.stored.n_rows


def capture(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="`default`, a folder, a .gguf file or a hub name; left out: the model of the store."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the store; one that is there is continued, or added to.")],
    site: Annotated[
        list[str] | None,
        typer.Option(help="TransformerLens name of a site, or a pattern such as 'blocks.*.hook_resid_post'; repeat for several."),
    ] = None,
    extend: Annotated[bool, typer.Option("--extend", help="Add the sites to those of the store, for the tokens that it has.")] = False,
    model_dtype: Annotated[ModelDtype | None, typer.Option(help="Dtype to compute in (default: what suits the device).")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1 (default: a GPU where there is one; under torchrun, one each).")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one process (default: torch's).")] = None,
    given: Any = None,
) -> None:
    """Capture the activations of MODEL over a corpus into a store.

    Stopped anywhere, the same command goes on; with a larger --n-tokens, or other sites and --extend, it adds to the store. What is not
    given is as in the store. Under torchrun the processes share the work.
    """
    rank, _, n_processes = processes()
    set_threads(threads)
    with stoppable(f"the same command goes on; what is finished in {out} stays"):
        task = _task(out, tuple(site or ()), given, adds=extend)
        where = compute_device(device)
        with console.status("loading the model"):
            lm = load_model(model, stored=task.known, dtype=model_dtype, device=where)
        corpus = _corpus(task, lm, out)
        work = _work(task, lm, corpus, out)
        needed, free = max(0, work.n_bytes - bytes_there(out)), free_bytes(out)
        if rank == 0:
            _print_plan(task, lm, corpus, work, f"{decimal(needed)} more for {out}, {decimal(free)} are free there")
        check_space(out, needed, free)
        follow(work.steps, bytes_per_token=work.bytes_per_token, n_processes=n_processes, shown=rank == 0)
        if rank == 0:
            print_summary(ActivationStore.open(out))


capture_command = command(capture, list(FLAGS.values()))


def _task(out: Path, sites: tuple[str, ...], given: dict[str, Any], *, adds: bool) -> Task:
    """What the options ask for, beside what is there. Raises ConfigError for what is missing or makes no sense."""
    tree: dict[str, Any] = {"corpus": {}, "capture": {}}
    for name, value in given.items():
        put(tree, FLAGS[name], value, {})
    choice = from_json(CorpusChoice, tree["corpus"], where="corpus")
    stored, begun = (read_manifest(out, name) if (out / name).exists() else None for name in (MANIFEST, UNFINISHED))
    known = begun or stored
    if adds and stored is None:
        raise ConfigError(f"--extend needs a complete store, {out} is none: finish it first, or leave --extend out")
    adds = adds or (stored is not None and not choice.corpus and (bool(sites) or _adds_sites(stored, begun)))
    if known is not None and known.model is None:
        raise ConfigError(f"{out} holds imported activations: no model can add to it; choose another --out")
    if known is None:
        for option, value in (("--corpus", choice.corpus), ("--site", sites), ("--n-tokens", "n_tokens" in given)):
            if not value:
                raise ConfigError(f"{option} must be given: there is no store at {out} yet to take it from")
    base = {} if known is None else to_json(known.capture)
    config = from_json(CaptureConfig, {**base, **({"sites": list(sites)} if sites else {}), **tree["capture"]}, where="capture")
    if adds:
        assert stored is not None
        _check_same(stored.capture, config)
    return Task(stored, begun, config, adds, choice)


def _adds_sites(stored: Manifest, begun: Manifest | None) -> bool:
    """Whether what was begun is more sites of the same tokens."""
    return begun is not None and begun.sites != stored.sites


def _check_same(stored: CaptureConfig, config: CaptureConfig) -> None:
    """Raises ConfigError when more sites are asked for and something else too."""
    for field in fields(CaptureConfig):
        was, now = getattr(stored, field.name), getattr(config, field.name)
        if field.name not in ("sites", "if_short") and was != now:
            option = f"--{field.name.replace('_', '-')}"
            more = "; for more tokens give --corpus, and add sites afterwards" if field.name == "n_tokens" else ""
            raise ConfigError(f"{option} must be {was}, that of the store, when sites are added to it, got {now}{more}")


def _corpus(task: Task, model: LanguageModel, out: Path) -> Corpus:
    """The corpus asked for; where none is needed, one that has the digest of the store's and cannot be read."""
    if task.choice.corpus:
        return task.choice.open(model)
    assert task.known is not None
    record = task.known.corpus
    if task.needs_corpus:
        raise ConfigError(f"--corpus must be given: {out} needs more of {record.name!r}, whose tokens are not all there")

    def unread() -> Iterator[Document]:
        raise ConfigError(f"--corpus must be given: {out} needs {record.name!r} to be read again")

    return Corpus(record.name, record.digest, record.licence, unread)


@dataclass(frozen=True)
class _Work:
    steps: Iterator[CaptureProgress]
    sites: tuple[Site, ...]
    """Those that the model is run for."""
    bytes_per_token: int
    """Of these sites."""
    n_bytes: int
    """Of the whole store in the end."""


def _work(task: Task, model: LanguageModel, corpus: Corpus, out: Path) -> _Work:
    config, sites = task.config, model.sites(task.config.sites)
    if task.adds_sites:
        assert task.stored is not None
        steps, there = extend(model, out, config.sites), task.stored.sites
        sites = tuple(site for site in sites if site not in there)
    else:
        steps, there = collect(model, corpus, out, config), ()
    n_bytes = store_bytes(config, (*there, *sites), model.shape.d_vocab)
    return _Work(steps, sites, token_bytes(config.dtype, sites), n_bytes)


def _print_plan(task: Task, model: LanguageModel, corpus: Corpus, work: _Work, disk: str) -> None:
    config = task.config
    names = [f"{site.name} ({site.width:,})" for site in work.sites] or ["none that is not there"]
    if len(names) > MAX_NAMES:
        total = sum(site.width for site in work.sites)
        names = [*names[: MAX_NAMES - 1], "...", f"{names[-1]}: {len(names)} sites, {total:,} numbers a token"]
    apart = ", documents kept apart" if config.isolated else ""
    for name, text in (
        ("model", f"{model.name}, {str(model.dtype).removeprefix('torch.')} on {model.device}"),
        ("corpus", f"{corpus.name}; licence: {corpus.licence}"),
        ("sites", ", ".join(names)),
        ("tokens", f"{config.n_rows * config.context:,} in {config.n_rows:,} rows of {config.context}{apart}"),
        ("disk", f"{disk}; stored as {config.dtype}"),
    ):
        console.print(f"{name:<7} {text}", highlight=False, soft_wrap=True, markup=False)
