"""`sae store`: what is in an activation store, whether it is whole, and making others of it.

sae store info STORE                              what it was made from, statistics, size, mixing of batches
sae store verify STORE                            every byte against its checksum; status 1 with a line for each problem
sae store repair STORE                            damaged files captured again
sae store merge A B --out C                       one store of several
sae store import site=acts.npy --out STORE        activations that another program computed
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.filesize import decimal

from sae.activations.exporting import export_arrays, export_arrow, export_parquet
from sae.activations.importing import import_arrays, import_saelens
from sae.activations.maintenance import Problem, problems, repair
from sae.activations.manifest import MANIFEST, UNFINISHED, Manifest, read_manifest
from sae.activations.merging import merge
from sae.activations.shards import RECORD_FILE, TOKENS_FILE
from sae.activations.store import ActivationStore
from sae.cli.corpora import CorpusChoice, corpus_option
from sae.cli.disk import bytes_there
from sae.cli.following import Step, follow
from sae.cli.machine import ModelDtype, compute_device, load_model, set_threads
from sae.cli.options import Flag, Source, command, flags, put
from sae.cli.screen import console, stoppable
from sae.cli.summary import how_far, print_summary, print_unfinished, progress_line
from sae.errors import ConfigError
from sae.fingerprint import from_json

ExportFormat = Literal["parquet", "arrow", "safetensors", "npy"]
StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
OutFolder = Annotated[Path, typer.Option(help="Folder of the store to make.")]
store_app = typer.Typer(no_args_is_help=True, help="Activation stores: look, check, mend, join, bring in and out.")
FLAGS: dict[str, Flag] = {flag.name: flag for flag in flags([Source(CorpusChoice, (), "Corpus")], left_out=(), swept=())}


@store_app.command("info")
def store_info(store: StoreFolder, *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What is in a store: what it was made from, its sites with their statistics, its size on disk, how well its batches are mixed.

    Of a capture that has not ended: how far it is, and how to go on.
    """
    if not (store / MANIFEST).exists() and (store / UNFINISHED).exists():
        print_unfinished(store, as_json=as_json)
    else:
        _complete(store)
        print_summary(ActivationStore.open(store), as_json=as_json)


@store_app.command("verify")
def store_verify(store: StoreFolder) -> None:
    """Read every byte of a store and compare it with what was written; status 1 when something is damaged, with a line for each file."""
    with stoppable("nothing was changed"):
        found = _problems(store)
    _print_problems(found)
    if found:
        console.print(_advice(store, found), highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)
    n_files = sum(len(shard.files) for shard in _complete(store).shards)
    console.print(f"{n_files:,} files are as they were written", highlight=False)


def _complete(store: Path) -> Manifest:
    """The manifest of a complete store. Raises ConfigError when there is none, saying what to do."""
    if (store / MANIFEST).exists():
        return read_manifest(store)
    if (store / UNFINISHED).exists():
        raise ConfigError(f"{store} is not complete: {progress_line(how_far(store))}")
    raise ConfigError(f"STORE must be the folder of an activation store, {store} is none: it has no {MANIFEST}")


def _problems(store: Path) -> list[Problem]:
    n_bytes = sum(file.n_bytes for shard in _complete(store).shards for file in shard.files.values())
    with console.status(f"reading {n_bytes / 1e9:,.2f} GB"):
        return problems(store)


def _print_problems(found: list[Problem]) -> None:
    for problem in found:
        text = problem.what if str(problem.file) in problem.what else f"{problem.file}: {problem.what}"
        console.print(text.split("; `sae store repair`")[0], highlight=False, soft_wrap=True, markup=False)


def _advice(store: Path, found: list[Problem]) -> str:
    """How to mend it."""
    stored = _complete(store)
    what = f"{len(found):,} {'problem' if len(found) == 1 else 'problems'}; "
    if stored.model is None and _needs_model(found):
        return what + "the activations were imported: import them again into a new folder"
    corpus = corpus_option(stored.corpus.name) if _needs_corpus(found) else ""
    return what + f"to mend: sae store repair {store}{corpus}"


def _needs_model(found: list[Problem]) -> bool:
    return any(problem.shard is not None and problem.file.name != RECORD_FILE for problem in found)


def _needs_corpus(found: list[Problem]) -> bool:
    return any(problem.file.name == TOKENS_FILE for problem in found)


def store_repair(
    store: StoreFolder,
    *,
    model: Annotated[
        str | None, typer.Option(help="`default`, a folder, a .gguf file or a hub name; left out: the store's, by its name.")
    ] = None,
    model_dtype: Annotated[ModelDtype | None, typer.Option(help="Dtype to compute in (default: that of the store).")] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute (default: a GPU where there is one).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: torch's).")] = None,
    given: Any = None,
) -> None:
    """Capture again what is damaged, from the tokens in the store; nothing else is touched. Damaged tokens need the corpus as well."""
    set_threads(threads)
    tree: dict[str, Any] = {}
    for name, value in given.items():
        put(tree, FLAGS[name], value, {})
    choice = from_json(CorpusChoice, tree, where="corpus")
    stored = _complete(store)
    with stoppable("the same command goes on"):
        found = _problems(store)
        if not found:
            console.print("nothing is damaged", highlight=False)
            return
        _print_problems(found)
        if stored.model is None and _needs_model(found):
            raise ConfigError(f"{store} holds imported activations, which no model can make again: import them into a new folder")
        if _needs_corpus(found) and not choice.corpus:
            raise ConfigError(f"--corpus must be given, since tokens are damaged: {stored.corpus.name!r}, digest {stored.corpus.digest}")
        lm = load_model(model, stored=stored, dtype=model_dtype, device=compute_device(device)) if _needs_model(found) else None
        follow(repair(store, lm, choice.open(lm) if choice.corpus else None))
    console.print(f"mended: {store} is as it was written", highlight=False, soft_wrap=True, markup=False)


store_app.command("repair")(command(store_repair, list(FLAGS.values())))


@store_app.command("merge")
def store_merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Folders of the stores.")], *, out: OutFolder
) -> None:
    """Join stores that were captured alike from different corpora: the rows of the first, then those of the second, and so on."""
    for store in stores:
        _complete(store)
    with stoppable("the same command goes on"):
        follow(merge(stores, out))
    print_summary(ActivationStore.open(out))


@store_app.command("export")
def store_export(
    store: StoreFolder,
    *,
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format", help="parquet: a row a token; arrow: a row a sequence, as SAELens and `datasets` read it; or plain arrays."
        ),
    ] = "parquet",
    site: Annotated[list[str] | None, typer.Option(help="Site to export; repeat for several (default: all).")] = None,
    dtype: Annotated[
        Literal["float16", "float32"] | None,
        typer.Option(help="Dtype of the numbers, for parquet and arrow (default: what holds the store's)."),
    ] = None,
) -> None:
    """Write a store as files that other programs read: Parquet or Arrow for `datasets`, duckdb and SAELens, or plain arrays."""
    _complete(store)
    opened = ActivationStore.open(store)
    with stoppable("the same command goes on"):
        if form in ("safetensors", "npy"):
            if dtype is not None:
                raise ConfigError(f"--dtype does not apply to --format {form}, which keeps that of the store")
            steps = export_arrays(opened, out, sites=site or None, file_format=form)  # pyright: ignore[reportArgumentType]
        else:
            export = export_parquet if form == "parquet" else export_arrow
            steps = export(opened, out, sites=site or None, dtype=dtype)
        follow(Step("export", progress.n_tokens, progress.n_tokens_total) for progress in steps)
    console.print(f"{decimal(bytes_there(out))} in {out}; to read it: {_reading(out, form)}", highlight=False, soft_wrap=True, markup=False)


def _reading(out: Path, form: str) -> str:
    """How Python reads what was exported."""
    return {
        "parquet": f"datasets.load_dataset('parquet', data_files='{out}/*.parquet')",
        "arrow": f"datasets.load_from_disk('{out}')",
        "safetensors": "safetensors.torch.load_file, one file a site",
        "npy": "numpy.load, one file a site",
    }[form]


@store_app.command("import")
def store_import(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="[SITE=]FILE...",
            help="SITE=acts.npy, or SITE=file.safetensors:KEY where the file has several tensors; several of one site are joined in their "
            "order. Without SITE=, --site says which. Or a folder that SAELens cached activations in.",
        ),
    ],
    *,
    out: OutFolder,
    form: Annotated[
        Literal["arrays", "saelens"] | None, typer.Option("--format", help="What FILE is (default: saelens for a folder, else arrays).")
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Site of the files that do not say; for SAELens the columns to take.")] = None,
    tokens: Annotated[str | None, typer.Option(help="File of token ids [rows, context].")] = None,
    document_ids: Annotated[str | None, typer.Option(help="File of document numbers [rows] or [rows, context].")] = None,
    context: Annotated[int | None, typer.Option(help="Length of a row, for arrays [n, width] (default: that of --tokens, or 1).")] = None,
    name: Annotated[str | None, typer.Option(help="What to call where they are from.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the texts.")] = "not stated",
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "int8"] | None, typer.Option(help="Dtype to store (default: that of the files).")
    ] = None,
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows in one shard (default: about 64 MB).")] = None,
) -> None:
    """Make a store of activations that another program computed: arrays [n, width] or [rows, context, width], or a SAELens cache."""
    shared: dict[str, Any] = {"licence": licence, "dtype": dtype, "rows_per_shard": rows_per_shard}
    folders = [file for file in files if "=" not in file and Path(file).expanduser().is_dir()]
    with stoppable("the same command goes on"):
        if form == "saelens" or (form is None and folders):
            if len(files) != 1:
                raise ConfigError(f"FILE must be one folder for --format saelens, got {len(files)}: {', '.join(files)}")
            for option, value in (("--tokens", tokens), ("--document-ids", document_ids), ("--context", context)):
                if value is not None:
                    raise ConfigError(f"{option} does not apply to --format saelens, whose folder says it")
            follow(import_saelens(files[0], out, sites=tuple(site or ()), name=name, **shared))
        else:
            arrays = _by_site(files, site or [])
            ids = {"tokens": tokens and _keyed(tokens), "document_ids": document_ids and _keyed(document_ids)}
            follow(import_arrays(arrays, out, **ids, context=context, name=name or "imported arrays", **shared))
    print_summary(ActivationStore.open(out))


def _by_site(files: list[str], sites: list[str]) -> dict[str, Any]:
    """The files of every site, in their order."""
    if len(sites) > 1:
        raise ConfigError(f"--site must be one for files that do not say theirs, got {', '.join(sites)}: write SITE=FILE")
    arrays: dict[str, list[Any]] = {}
    for text in files:
        left, equals, right = text.partition("=")
        named = bool(equals) and "/" not in left and not Path(text).exists()
        if not named and not sites:
            raise ConfigError(f"{text} does not say which site it is: write SITE={text}, or give --site")
        arrays.setdefault(left if named else sites[0], []).append(_keyed(right if named else text))
    return arrays


def _keyed(text: str) -> Any:
    """FILE or FILE.safetensors:KEY as `import_arrays` takes it."""
    file, colon, key = text.rpartition(":")
    return (file, key) if colon and file.endswith(".safetensors") and not Path(text).exists() else text
