"""`sae index`: what a dictionary finds in a store, written down once so that every question is quick.

sae index run/dictionary --store acts --out index                 token texts and logit effects from the store's model, by its name
sae index run/dictionary --store acts --out index --model default
sae index run/dictionary --store acts --out index --model none    tokens by their ids, no logit effects
sae serve index                                                   look at it

The same command again finds the index that is there, or goes on where it was interrupted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from sae.activations.manifest import MANIFEST, UNFINISHED
from sae.activations.store import ActivationStore
from sae.cli.disk import bytes_there
from sae.cli.machine import DEFAULT, compute_device, load_model, set_threads
from sae.cli.options import Flag, Source, command, flags, put
from sae.cli.terminal import console, follow_stages, stoppable
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary
from sae.errors import ConfigError, SaeError
from sae.fingerprint import from_json
from sae.inspection.build import IndexProgress, build_index
from sae.inspection.encoded import record_framing, recorded_framing
from sae.inspection.exports.provenance import Provenance, provenance_of, record_provenance
from sae.inspection.index import FeatureIndex
from sae.inspection.live import framing_of
from sae.inspection.settings import IndexConfig
from sae.models.language_model import LanguageModel

NONE = "none"
UNITS = {"encode": "tokens", "summarise": "latents", "relate": "latents"}
"""What each stage of a build counts."""
FLAGS: dict[str, Flag] = {flag.name: flag for flag in flags([Source(IndexConfig, (), "What is kept")], left_out=(), swept=())}


def index(
    dictionary: Annotated[Path, typer.Argument(metavar="DICTIONARY", help="Folder of a dictionary, or of a run.")],
    *,
    store: Annotated[Path, typer.Option(help="Folder of the activation store.")],
    out: Annotated[Path, typer.Option(help="Folder of the index to make.")],
    site: Annotated[str | None, typer.Option(help="Site of the store (default: the one that the dictionary was trained on).")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="`default`, a folder, a .gguf file, a hub name, or `none`; left out: the store's, by its name."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What pages call the dictionary (default: the name of its folder).")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens encoded at once.")] = 8192,
    device: Annotated[str | None, typer.Option(help="Where to encode (default: a GPU where there is one).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: torch's).")] = None,
    given: Any = None,
) -> None:
    """Build the index of a dictionary over a store: every value it takes, and what a page shows of each latent.

    Pages, notebooks, the server and exports read it. The same command again finds what is there, or goes on after an interruption.
    """
    set_threads(threads)
    tree: dict[str, Any] = {}
    for option, value in (given or {}).items():
        put(tree, FLAGS[option], value, {})
    config = from_json(IndexConfig, tree, where="options")
    where = compute_device(device)
    loaded, opened = _dictionary(dictionary), _store(store)
    chosen = _site(loaded, opened, site)
    lm = None if model == NONE else _model(model, opened, where)
    called = name or _name(dictionary)
    for label, text in (
        ("dictionary", f"{called}: {type(loaded).__name__}, {loaded.d_sae:,} latents of width {loaded.d_in}"),
        ("store", f"{store}: {opened.n_tokens:,} tokens at {chosen}"),
        ("model", f"{lm.name}, for token texts and logit effects" if lm else "none: tokens are shown by their ids, without logit effects"),
    ):
        console.print(f"{label:<10} {text}", highlight=False, soft_wrap=True, markup=False)
    with stoppable("the same command goes on"):
        steps = build_index(opened, chosen, loaded.to(where), out, batch_tokens=batch_tokens, config=config, name=called, model=lm)
        follow_stages(_told(steps), lambda stage: UNITS.get(stage, ""))
    _record(opened, chosen, out)
    _print_result(out)


index_command = command(index, list(FLAGS.values()))


def _told(steps: Iterator[IndexProgress]) -> Iterator[tuple[str, int, int]]:
    """The steps; that the index was there already is said in words."""
    for stage, done, total in steps:
        if stage == "found":
            console.print("found      the index is there already", highlight=False)
        else:
            yield stage, done, total


def _dictionary(path: Path) -> Dictionary:
    for folder in (path.expanduser(), path.expanduser() / "dictionary"):
        if (folder / "config.json").is_file():
            return load_dictionary(folder).eval()
    there = "holds no config.json" if path.expanduser().exists() else "does not exist"
    raise ConfigError(f"DICTIONARY must be the folder of a dictionary (config.json, weights.safetensors) or of a run; {path} {there}")


def _name(path: Path) -> str:
    folder = path.expanduser().resolve()
    return folder.parent.name if folder.name == "dictionary" else folder.name


def _store(path: Path) -> ActivationStore:
    if (path / MANIFEST).exists():
        return ActivationStore.open(path)
    state = "is not complete: capture the rest first" if (path / UNFINISHED).exists() else f"is none: it has no {MANIFEST}"
    raise ConfigError(f"--store must be the folder of an activation store, {path} {state}")


def _site(dictionary: Dictionary, store: ActivationStore, asked: str | None) -> str:
    """The site asked for, or the dictionary's, or the only one of its width. Raises ConfigError naming those there are."""
    fitting = [name for name in store.site_names if store.site(name).width == dictionary.d_in]
    trained = str(dictionary.provenance.get("site") or "")
    found = asked or (trained if trained in store.site_names else "") or (fitting[0] if len(fitting) == 1 else "")
    if found not in fitting:
        what = f"got {asked}" if asked else "none was given"
        said = f"trained on {trained}; " if trained else ""
        there = ", ".join(fitting) or f"none (there are {', '.join(store.site_names)})"
        raise ConfigError(
            f"--site must be a site of the store of the dictionary's width {dictionary.d_in}, {what} ({said}of it there are {there})"
        )
    return found


def _model(source: str | None, store: ActivationStore, device: Any) -> LanguageModel:
    """The language model. Raises ConfigError that also says how to do without one."""
    try:
        return load_model(source, stored=store.manifest, dtype=None, device=device)
    except SaeError as error:
        raise ConfigError(f"--model must name the store's language model, {DEFAULT} or {NONE}: {error}") from error


def _record(store: ActivationStore, site: str, out: Path) -> None:
    """Keep beside the index whose texts it quotes, which exports repeat, and how they were framed, which serving texts repeats."""
    framing = framing_of(store, site)
    if recorded_framing(out) != framing:
        record_framing(out, framing)
    manifest = store.manifest
    known = Provenance(
        model=manifest.model.name if manifest.model else "",
        dataset=manifest.corpus.name,
        revision=manifest.corpus.digest,
        licence=manifest.corpus.licence,
    )
    if provenance_of(FeatureIndex.open(out)) != known:
        record_provenance(out, known)


def _print_result(out: Path) -> None:
    made = FeatureIndex.open(out)
    active = made.statistics.n_active
    n_dead = int((active == 0).sum())
    rows = (
        ("index", f"{out}: {decimal(bytes_there(out))}, {int(active.sum()):,} values over {made.n_tokens:,} tokens"),
        ("latents", f"{made.d_sae:,}, of which {n_dead:,} ({n_dead / made.d_sae:.1%}) never fire"),
        ("look", f"sae serve {out}"),
    )
    for label, text in rows:
        console.print(f"{label:<10} {text}", highlight=False, soft_wrap=True, markup=False)
