"""`probes directions`: ways to find a concept's direction, side by side on one task."""

from typing import Annotated

import typer

from probes.cli.inputs import (
    DataConfig,
    GroupColumn,
    LabelColumn,
    ModelName,
    Pooling,
    Rows,
    Store,
    TextColumn,
    read_data,
)
from probes.cli.output import Figures, Json, give, say
from sae.errors import ConfigError


def directions(
    task: Annotated[list[str], typer.Option("--task", help="A task of two classes, or a file; with several, transfer between them.")],
    site: Annotated[str, typer.Option(help="Where the activations are from.")] = "blocks.15.hook_resid_post",
    model: ModelName = "default",
    store: Store = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    group_column: GroupColumn = None,
    pooling: Pooling = "mean",
    rows: Rows = 400,
    shuffles: Annotated[int, typer.Option(help="Label shuffles behind each null.")] = 10,
    bootstrap: Annotated[int, typer.Option(help="Draws of documents behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    json: Json = None,
    figures: Figures = None,
) -> None:
    """Mean difference, shrunk discriminant, logistic and PCA directions on each task: held-out AUC, cosines, stability, random directions.

    With several tasks also how far a direction of one separates another.
    """
    from probes.directions import (
        ComparisonConfig,
        LDADirection,
        LogisticDirection,
        MeanDifferenceDirection,
        compare_readers,
        direction_stability,
        labelled_rows,
        transfer,
    )

    readers = {"mean difference": MeanDifferenceDirection(), "LDA": LDADirection(), "logistic": LogisticDirection()}
    data = read_data(
        DataConfig(
            tasks=tuple(task),
            model=model,
            store=store,
            sites=(site,),
            dictionaries=(),
            columns=(text_column, label_column, group_column),
            pooling=pooling,
            n_rows=rows,
            seed=seed,
        )
    )
    if len(data.source.names) > 1:
        raise ConfigError(f"--site must name one site, {site!r} names {', '.join(data.source.names)}")
    sets = [labelled_rows(data.source, data.source.names[0], problem) for problem in data.problems]
    say(f"{data.source.names[0]}\n")
    config = ComparisonConfig(n_shuffles=shuffles, n_bootstrap=bootstrap, seed=seed)
    found = {}
    for each in sets:
        found[each.name] = compare_readers(readers, each, config)
        found[f"{each.name} stability"] = direction_stability(readers, each, seed=seed)
    if len(sets) > 1:
        found["transfer"] = transfer(readers, sets, seed=seed)
    give(found, json=json, figures=figures)
