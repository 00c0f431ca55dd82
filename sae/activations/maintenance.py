"""Keeping a store whole: what is wrong with it, and capturing again what is damaged.

problems(path)  ->  [(file, what)]          repair(path, model, corpus): damaged files dropped, their shards captured again
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from sae.activations.claims import Claims
from sae.activations.collect import check_model, rows_of, tokens_to_disk
from sae.activations.completion import already_complete, complete, read_statistics, statistics_file
from sae.activations.corpus import Corpus
from sae.activations.filling import fill
from sae.activations.manifest import Manifest, ShardRecord, read_manifest
from sae.activations.plan import announce
from sae.activations.progress import CaptureProgress
from sae.activations.shards import RECORD_FILE, TOKENS_FILE, check_file, check_record, rewrite_record, shard_folder, store_lock
from sae.errors import ConfigError, FormatError
from sae.models.language_model import LanguageModel
from sae.storage import lock


@dataclass(frozen=True)
class Problem:
    """One file that is not as it was written."""

    file: Path
    """Which."""
    what: str
    """What is wrong with it."""
    shard: int | None
    """The shard that it belongs to; None for statistics."""


def problems(path: str | Path) -> list[Problem]:
    """Every file of the complete store at `path` that is missing, truncated or damaged: sizes, checksums, headers and shapes. Reads all.

    Raises FormatError when there is no manifest that can be read.
    """
    path = Path(path)
    manifest = read_manifest(path)
    found: list[Problem] = []
    for index, shard in enumerate(manifest.shards):
        found += [problem for name in sorted(shard.files) for problem in _problem(path, manifest, index, name)]
        folder = shard_folder(path, manifest, index)
        try:
            check_record(folder, shard)
        except FormatError as error:
            found.append(Problem(folder / RECORD_FILE, str(error), index))
    for site in manifest.sites:
        summary = manifest.statistics[site.name]
        try:
            read_statistics(path, site, summary)
        except FormatError as error:
            found.append(Problem(statistics_file(path, site.name, summary), str(error), None))
    return found


def _problem(path: Path, manifest: Manifest, index: int, name: str) -> list[Problem]:
    try:
        check_file(path, manifest, index, name)
    except FormatError as error:
        return [Problem(shard_folder(path, manifest, index) / name, str(error), index)]
    return []


def repair(path: str | Path, model: LanguageModel | None = None, corpus: Corpus | None = None) -> Iterator[CaptureProgress]:
    """Make the store at `path` whole again: damaged files are dropped and captured again from the stored tokens; nothing else is touched.

    A store without a problem is left alone. `model` is the one that the store was captured from; a shard whose tokens are damaged also needs
    the `corpus`. Damaged statistics and records need neither. Killed at any moment, the next call continues. Raises ConfigError, before
    anything is changed, when what is needed is not given or is another one than the store's.
    """
    path = Path(path)
    stored, found = read_manifest(path), problems(path)
    bad = {problem.shard: set[str]() for problem in found if problem.shard is not None}
    for problem in found:
        if problem.shard is not None and problem.file.name != RECORD_FILE:
            bad[problem.shard].add(problem.file.name)
    if any(bad.values()):
        if model is None:
            raise ConfigError(f"model must be given to capture {_named(found)} again: the one with digest {_digest(stored)} (repair)")
        check_model(model, stored, path)
    if any(TOKENS_FILE in names for names in bad.values()):
        _check_corpus(corpus, stored, path)
    return _repair(path, stored, found, bad, model, corpus)


def _digest(stored: Manifest) -> str:
    return "unknown" if stored.model is None else stored.model.digest


def _named(found: list[Problem]) -> str:
    names = [str(problem.file) for problem in found if problem.shard is not None]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_corpus(corpus: Corpus | None, stored: Manifest, path: Path) -> None:
    if corpus is None:
        raise ConfigError(
            f"corpus must be given, since tokens of {path} are damaged: {stored.corpus.name} ({stored.corpus.digest}) (repair)"
        )
    if corpus.digest != stored.corpus.digest:
        raise ConfigError(f"corpus must be the store's {stored.corpus.name} ({stored.corpus.digest}), got {corpus.digest} (repair)")


def _repair(
    path: Path, stored: Manifest, found: list[Problem], bad: dict[int, set[str]], model: LanguageModel | None, corpus: Corpus | None
) -> Iterator[CaptureProgress]:
    if not found:
        yield from already_complete(path)
        return
    wanted = replace(stored, statistics={})
    with Claims(path) as claims, ExitStack() as stack:
        stack.enter_context(claims.at_work(lambda alone: announce(path, wanted, alone=alone, again=True)))
        for index, names in bad.items():
            _drop(path, stored, index, names)
        if any(TOKENS_FILE in names for names in bad.values()):
            assert model is not None
            assert corpus is not None
            yield from tokens_to_disk(rows_of(model, corpus, stored.capture), path, wanted)
        if model is not None and any(bad.values()):
            yield from fill(model, path, wanted, claims)
        yield from complete(path, wanted, claims)


def _drop(path: Path, stored: Manifest, index: int, names: set[str]) -> None:
    """Remove a shard's damaged files and let its record name the sound ones."""
    folder, shard = shard_folder(path, stored, index), stored.shards[index]
    with lock(store_lock(path)):
        if TOKENS_FILE in names and not folder.exists():
            return
        folder.mkdir(exist_ok=True)
        sound = {name: file for name, file in shard.files.items() if name not in names}
        rewrite_record(folder, ShardRecord(n_rows=shard.n_rows, files=sound, errors=shard.errors))
        for name in names:
            (folder / name).unlink(missing_ok=True)
