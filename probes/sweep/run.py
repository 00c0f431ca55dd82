"""Every problem on every matrix: read once, in parallel, resumed from what is on disk.

    unit of work     a matrix with all its problems that are not known yet
    unit on disk     a problem on a matrix under a configuration: one entry of the ResultCache

A killed sweep loses the matrices it was at and no more. What a cell holds depends neither on the number of processes nor on which problems
are swept together beyond rounding: every matrix is worked on by one thread.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
from threadpoolctl import threadpool_limits

from probes.problem import FeatureSource, Problem
from probes.sweep.cells import matrix_cells
from probes.sweep.config import SweepCell, SweepConfig
from probes.sweep.plan import Plan, binary_problems, plan, problem_digest
from probes.sweep.result import SweepResult
from sae.errors import ConfigError
from sae.fingerprint import from_json, to_json
from sae.storage import Key, ResultCache, read_json, write_json

VERSION = 1
CELLS = "cells.json"


@dataclass(frozen=True)
class SweepStep:
    """One matrix done."""

    matrix: str
    """Its name."""
    cells: tuple[SweepCell, ...]
    """Its cells, problem after problem."""
    n_done: int
    """Matrices done so far, this one included."""
    n_matrices: int
    """Matrices in all."""
    n_computed: int
    """Problems of this matrix that were not on disk."""


def sweep(
    problems: Sequence[Problem],
    source: FeatureSource,
    config: SweepConfig | None = None,
    *,
    name: str = "sweep",
    matrices: Sequence[str] | None = None,
    cache: ResultCache | None = None,
    n_jobs: int = 1,
    progress: Callable[[SweepStep], None] | None = None,
) -> SweepResult:
    """Sparse probes, the dense baseline and the controls for every problem, matrix, ranking and k, all on the same documents.

    problems: with two classes, or with several, each of which is then set against the others. matrices: names of `source`, all of them by
    default. name: what the result is called beside others (a model, a kind of features). n_jobs: as joblib counts; a backend chosen
    with `joblib.parallel_config` is used, and one of processes needs a source that can be pickled. progress: called after every matrix.

    Raises ConfigError, before anything is read, for problems that cannot be split by document or an unknown matrix; and when a matrix is
    read, naming it, for a k above its width or values that are not finite.

        result = sweep(problems, source, cache=ResultCache("results"), n_jobs=2)
        result.best("era", k=4).matrix, result.table(), result.figure()
    """
    config = config or SweepConfig()
    cells: dict[str, tuple[SweepCell, ...]] = {}
    for step in sweep_steps(problems, source, config, matrices=matrices, cache=cache, n_jobs=n_jobs):
        cells[step.matrix] = step.cells
        if progress is not None:
            progress(step)
    order = source.names if matrices is None else matrices
    return SweepResult(name, config, tuple(cell for matrix in order for cell in cells[matrix]))


def sweep_steps(
    problems: Sequence[Problem],
    source: FeatureSource,
    config: SweepConfig,
    *,
    matrices: Sequence[str] | None = None,
    cache: ResultCache | None = None,
    n_jobs: int = 1,
) -> Iterator[SweepStep]:
    """The same, matrix after matrix as they are done; each is on disk when it is given. Stopping the iteration stops the work."""
    names = _checked_names(source, matrices)
    plans = [plan(binary, config) for problem in problems for binary in binary_problems(problem)]
    titles = [each.problem.name for each in plans]
    if not plans or len(set(titles)) < len(titles):
        raise ConfigError(f"problems must hold at least one, with different names, got {titles} (sweep)")
    digests = [problem_digest(each.problem) for each in plans]
    keys = {name: [_key(config, source, name, digest) for digest in digests] for name in names}
    missing = {name: [i for i in range(len(plans)) if cache is None or not cache.has(keys[name][i])] for name in names}

    def finished(name: str, computed: list[list[SweepCell]], n_done: int) -> SweepStep:
        parts = dict(zip(missing[name], computed, strict=True))
        if cache is not None:
            for i, part in parts.items():
                cache.build(keys[name][i], lambda folder, part=part: write_json(folder / CELLS, to_json(part)))
            parts = {i: parts[i] if i in parts else _stored(cache.path(key)) for i, key in enumerate(keys[name])}
        cells = tuple(cell for i in range(len(plans)) for cell in parts[i])
        return SweepStep(name, cells, n_done, len(names), len(computed))

    n_done = 0
    for name in names:
        if not missing[name]:
            n_done += 1
            yield finished(name, [], n_done)
    todo = [name for name in names if missing[name]]
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    for name, computed in work(joblib.delayed(_work)(source, name, [plans[i] for i in missing[name]], config) for name in todo):
        n_done += 1
        yield finished(name, computed, n_done)


def _work(source: FeatureSource, name: str, plans: list[Plan], config: SweepConfig) -> tuple[str, list[list[SweepCell]]]:
    with threadpool_limits(1):
        return name, matrix_cells(name, source.read(name), plans, config)


def _checked_names(source: FeatureSource, matrices: Sequence[str] | None) -> tuple[str, ...]:
    if matrices is None:
        return source.names
    unknown = [name for name in matrices if name not in source.names]
    if unknown or not matrices or len(set(matrices)) < len(matrices):
        raise ConfigError(f"matrices must be different names out of {', '.join(source.names)}, got {list(matrices)} (sweep)")
    return tuple(matrices)


def _key(config: SweepConfig, source: FeatureSource, name: str, problem: str) -> Key:
    return Key("probes.sweep", VERSION, {"sweep": to_json(config), "matrix": name}, {"source": source.digest, "problem": problem})


def _stored(folder: Path) -> list[SweepCell]:
    return from_json(list[SweepCell], read_json(folder / CELLS), where=str(folder / CELLS))
