"""`probes fit`: k-sparse and dense probes on the matrices of a file, with their controls."""

from pathlib import Path
from typing import Annotated

import typer

from probes.cli.output import say
from sae.fingerprint import to_json
from sae.storage import write_json


def fit(
    file: Annotated[Path, typer.Argument(help="A .npz file with y, groups and one or more matrices; see probes.features.write_features.")],
    k: Annotated[list[int] | None, typer.Option(help="Columns a sparse probe may read; repeat for several.")] = None,
    ranking: Annotated[list[str] | None, typer.Option(help="How columns are ranked; repeat for several.")] = None,
    folds: Annotated[int, typer.Option(help="Folds, split by group.")] = 5,
    shuffles: Annotated[int, typer.Option(help="Label shuffles behind each null.")] = 10,
    bootstrap: Annotated[int, typer.Option(help="Draws of groups behind each interval.")] = 1000,
    c: Annotated[float, typer.Option("--C", help="Inverse strength of the L2 penalty.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Also write the rows and the configuration to this file.")] = None,
) -> None:
    """Fit sparse and dense probes on every matrix of FILE, and print each score with its interval and what chance gives."""
    from probes.features import read_features
    from probes.table import ProbeTableConfig, probe_table, render_table

    defaults = ProbeTableConfig()
    config = ProbeTableConfig(
        ks=tuple(k or defaults.ks),
        rankings=tuple(ranking or defaults.rankings),
        C=c,
        n_folds=folds,
        n_bootstrap=bootstrap,
        n_shuffles=shuffles,
        seed=seed,
    )
    problem = read_features(file)
    rows = probe_table(problem.features, problem.y, problem.groups, config)
    n_groups = len(set(problem.groups.tolist()))
    say(f"{len(problem.y)} rows in {n_groups} groups, {problem.y.mean():.0%} with label 1; {folds} folds, split by group")
    say(render_table(rows))
    if json is not None:
        write_json(json, to_json({"config": config, "rows": rows}))
