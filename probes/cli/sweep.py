"""`probes sweep`: tasks x layers x k, on activations and latents, resumed from the cache."""

from typing import Annotated, Literal

import typer

from probes.cli.inputs import (
    DataConfig,
    Dictionaries,
    GroupColumn,
    LabelColumn,
    ModelName,
    Pooling,
    Rows,
    Sites,
    Store,
    Tasks,
    TextColumn,
    read_data,
)
from probes.cli.output import Figures, Json, draw, give, say


def sweep(
    task: Tasks,
    model: ModelName = "default",
    store: Store = None,
    site: Sites = None,
    dictionary: Dictionaries = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    group_column: GroupColumn = None,
    pooling: Pooling = "mean",
    rows: Rows = None,
    k: Annotated[list[int] | None, typer.Option(help="Columns a sparse probe may read; repeat for several.")] = None,
    ranking: Annotated[list[str] | None, typer.Option(help="How columns are ranked; repeat for several.")] = None,
    metric: Annotated[
        Literal["auc", "f1", "mcc", "accuracy", "balanced_accuracy", "precision", "recall", "average_precision"],
        typer.Option(help="The score that tables show and that layers are chosen by."),
    ] = "auc",
    c: Annotated[float, typer.Option("--C", help="Inverse strength of the L2 penalty.")] = 1.0,
    shuffles: Annotated[int, typer.Option(help="Label shuffles behind each null.")] = 5,
    bootstrap: Annotated[int, typer.Option(help="Draws of documents behind each interval.")] = 1000,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    json: Json = None,
    figures: Figures = None,
) -> None:
    """Sparse probes for every task, site, dictionary and k, beside all columns, shuffled labels and random coordinates.

    Documents are split in two: fitted on one part, scored on the other; layers are chosen on folds of the first. A killed sweep goes on.
    """
    from probes.sweep import SweepConfig, SweepStep
    from probes.sweep import sweep as run
    from sae.storage import ResultCache, user_cache_dir

    data = read_data(
        DataConfig(
            tasks=tuple(task),
            model=model,
            store=store,
            sites=tuple(site or ()),
            dictionaries=tuple(dictionary or ()),
            columns=(text_column, label_column, group_column),
            pooling=pooling,
            n_rows=rows,
            seed=seed,
        )
    )
    defaults = SweepConfig()
    config = SweepConfig(
        ks=tuple(k or defaults.ks),
        rankings=tuple(ranking or defaults.rankings),
        C=c,
        n_shuffles=shuffles,
        n_bootstrap=bootstrap,
        seed=seed,
    )

    def progress(step: SweepStep) -> None:
        how = (
            "read from the cache"
            if step.n_computed == 0
            else f"{step.n_computed} {'problem' if step.n_computed == 1 else 'problems'} fitted"
        )
        say(f"{step.n_done}/{step.n_matrices}  {step.matrix}: {how}")

    cache = ResultCache(user_cache_dir() / "results")
    found = run(data.problems, data.source, config, cache=cache, n_jobs=jobs, progress=progress)
    say("")
    tables = {problem: found.table(problem, metric=metric) for problem in found.problems}
    give({"rows": data.report(), **tables, "best": found.best_table(metric=metric)}, json=json, figures=None)
    if figures is not None:
        pages = {problem: found.figure(problem, metric=metric) for problem in found.problems} | {"against_k": found.k_figure(metric=metric)}
        draw(pages, figures)
