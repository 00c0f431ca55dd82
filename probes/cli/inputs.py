"""What the commands are given: tasks by name or file, a store or a model with sites, dictionaries; and the matrices these make."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae.errors import ConfigError

Tasks = Annotated[
    list[str],
    typer.Option(
        "--task", help="A task of `probes tasks`, or a .csv, .jsonl or .parquet file; repeat for several.", rich_help_panel="Data"
    ),
]
ModelName = Annotated[
    str, typer.Option("--model", help="`default`, a folder, a .gguf file or a hub name.", show_default=True, rich_help_panel="Data")
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="A store made of the tasks' texts (see `probes.features.task_corpus`), read in place of running the model.",
        rich_help_panel="Data",
    ),
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--site", help="Name or pattern of a site; repeat for several. Left out: all of the store.", rich_help_panel="Data"),
]
Dictionaries = Annotated[
    list[Path] | None,
    typer.Option("--dictionary", help="Folder of a dictionary, whose latents are probed too; repeat for several.", rich_help_panel="Data"),
]
TextColumn = Annotated[str, typer.Option(help="Column of a file's texts.", rich_help_panel="Data")]
LabelColumn = Annotated[str, typer.Option(help="Column of a file's labels.", rich_help_panel="Data")]
GroupColumn = Annotated[str | None, typer.Option(help="Column of what splits keep together, such as the document.", rich_help_panel="Data")]
Pooling = Annotated[Literal["mean", "last", "max"], typer.Option(help="How the tokens of a text become one row.", rich_help_panel="Data")]
Rows = Annotated[int | None, typer.Option("--rows", help="Rows of each class at most, drawn by the seed.", min=1, rich_help_panel="Data")]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is probed."""

    tasks: tuple[str, ...]
    """Names of tasks, or files."""
    model: str
    """The language model."""
    store: Path | None
    """A store of the tasks' texts; None: the model is run."""
    sites: tuple[str, ...]
    """Sites or patterns; empty: all of the store."""
    dictionaries: tuple[Path, ...]
    """Folders of dictionaries."""
    columns: tuple[str, str, str | None]
    """Text, label and group columns of files."""
    pooling: str
    """How the tokens of a text become one row."""
    n_rows: int | None
    """Rows of each class at most."""
    seed: int
    """Seed of the draw."""


def make_task(name: str, columns: Any = None) -> Any:
    """The task of that name, or the one in a file of rows. Raises ConfigError for neither, and for a task that needs a language model."""
    from probes.tasks import CATALOGUE, task_from_file

    if name in CATALOGUE:
        entry = CATALOGUE[name]
        if entry.needs == "model":
            raise ConfigError(f"task {name!r} is made with a language model: call probes.tasks.CATALOGUE[{name!r}].make(model)")
        return entry.make()
    if Path(name).is_file():
        return task_from_file(name, columns)
    raise ConfigError(f"a task must be a file or one of {', '.join(CATALOGUE)}, got {name!r}; `probes tasks` says what each asks")


def read_data(config: DataConfig) -> Any:
    """The tasks' problems and the source of their matrices (`probes.features.ProbeData`); codes and passes of the model are cached."""
    from probes.features import RowConfig, from_model, from_store
    from probes.tasks import Columns
    from sae.activations.store import ActivationStore
    from sae.dictionaries.checkpoint import load_dictionary
    from sae.models.assets import default_model
    from sae.models.language_model import LanguageModel
    from sae.storage import ResultCache, user_cache_dir

    if config.store is None and not config.sites:
        raise ConfigError("--site must be given where the model is run, e.g. --site 'blocks.*.hook_resid_post'")
    columns = Columns(text=config.columns[0], label=config.columns[1], group=config.columns[2])
    tasks = [_drawn(make_task(name, columns), config) for name in config.tasks]
    names = [path.name for path in config.dictionaries]
    if len(set(names)) < len(names):
        raise ConfigError(f"folders of dictionaries must have different names, got {names}")
    dictionaries = {path.name: load_dictionary(path) for path in config.dictionaries}
    options: dict[str, Any] = {
        "dictionaries": dictionaries,
        "cache": ResultCache(user_cache_dir() / "results"),
        "config": RowConfig(text_pooling=config.pooling),
    }
    model = LanguageModel.load(default_model() if config.model == "default" else config.model)
    if config.store is not None:
        store = ActivationStore.open(config.store, model_digest=model.digest)
        sites = _matching(store.site_names, config.sites) if config.sites else None
        return from_store(store, tasks, model.tokenizer, sites=sites, **options)
    return from_model(model, tasks, config.sites, **options)


def _drawn(task: Any, config: DataConfig) -> Any:
    from probes.tasks import TokenTask

    if config.n_rows is None:
        return task
    if isinstance(task, TokenTask):
        from dataclasses import replace

        return replace(task, n_rows=2 * config.n_rows, seed=config.seed)
    if not task.classes:
        return task.sample(min(config.n_rows, len(task)), seed=config.seed)
    return task.subsample(min(config.n_rows, *task.counts.values()), seed=config.seed)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    from fnmatch import fnmatchcase

    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        raise ConfigError(f"--site must match a site of the store ({', '.join(names)}), got {', '.join(patterns)}")
    return found
