"""Keeping a store whole: what is wrong with it, and capturing again what is damaged.

problems(path)  ->  [(file, what)]          repair(path, model, corpus): damaged files dropped, their shards captured again
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae.activations.claims import TOKENS, Claims
from sae.activations.collect import check_model, rows_of, tokens_to_disk
from sae.activations.completion import already_complete, read_statistics, restore, statistics_file
from sae.activations.corpus import Corpus
from sae.activations.filling import fill
from sae.activations.manifest import Manifest, ShardRecord, read_manifest
from sae.activations.progress import CaptureProgress
from sae.activations.shards import (
    RECORD_FILE,
    TOKENS_FILE,
    check_file,
    check_record,
    read_record,
    rewrite_record,
    shard_folder,
    site_file,
    store_lock,
)
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

    A store without a problem is left alone, and so is what others have begun to add to it. `model` is the one that the store was captured
    from; a shard whose tokens are damaged also needs the `corpus`. Damaged statistics and records need neither. Killed at any moment, the
    next call continues. Raises ConfigError, before anything is changed, when what is needed is not given or is another one than the store's.
    """
    path = Path(path)
    stored, found = read_manifest(path), problems(path)
    names = {problem.file.name for problem in found if _is_data(problem)}
    if names:
        if stored.model is None:
            raise ConfigError(f"{_named(found)} cannot be captured again, the store was imported: import it again elsewhere (repair)")
        if model is None:
            raise ConfigError(f"model must be given to capture {_named(found)} again: {stored.model.name} ({stored.model.digest}) (repair)")
        check_model(model, stored, path)
    if TOKENS_FILE in names:
        _check_corpus(corpus, stored, path)
    return _repair(path, stored, found, model, corpus) if found else already_complete(path)


def _is_data(problem: Problem) -> bool:
    """Whether the file is one that is captured, not one that is measured or written from the manifest."""
    return problem.shard is not None and problem.file.name != RECORD_FILE


def _named(found: list[Problem]) -> str:
    names = [str(problem.file) for problem in found if _is_data(problem)]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_corpus(corpus: Corpus | None, stored: Manifest, path: Path) -> None:
    if corpus is None:
        raise ConfigError(
            f"corpus must be given, since tokens of {path} are damaged: {stored.corpus.name} ({stored.corpus.digest}) (repair)"
        )
    if corpus.digest != stored.corpus.digest:
        raise ConfigError(
            f"corpus must be the store's {stored.corpus.name} ({stored.corpus.digest}), got {corpus.name} ({corpus.digest}) (repair)"
        )


def _repair(
    path: Path, stored: Manifest, found: list[Problem], model: LanguageModel | None, corpus: Corpus | None
) -> Iterator[CaptureProgress]:
    with Claims(path) as claims, claims.at_work(lambda alone: alone):
        with claims.holding(TOKENS):
            for index in sorted({problem.shard for problem in found if problem.shard is not None}):
                _drop(path, stored, index)
            if model is not None and corpus is not None and any(problem.file.name == TOKENS_FILE for problem in found):
                yield from tokens_to_disk(rows_of(model, corpus, stored.capture), path, stored)
        if model is not None and any(_is_data(problem) for problem in found):
            yield from fill(model, path, stored, claims)
        yield from restore(path, stored, claims, _affected(stored, found))


def _affected(stored: Manifest, found: list[Problem]) -> set[str]:
    """Sites whose numbers may have been measured while a file was damaged."""
    names = {problem.file.name for problem in found}
    return {site.name for site in stored.sites if site_file(site.name) in names or TOKENS_FILE in names}


def _drop(path: Path, stored: Manifest, index: int) -> None:
    """Remove a shard's damaged files and let its record name the sound ones, those that others have begun to add among them."""
    folder, shard = shard_folder(path, stored, index), stored.shards[index]
    damaged = {problem.file.name for name in shard.files for problem in _problem(path, stored, index, name)}
    with lock(store_lock(path)):
        if not folder.exists():
            return
        added = ShardRecord(n_rows=shard.n_rows, files={}, errors={})
        with contextlib.suppress(FormatError):
            added = read_record(folder)
        sound = {name: file for name, file in {**added.files, **shard.files}.items() if name not in damaged}
        rewrite_record(folder, ShardRecord(n_rows=shard.n_rows, files=sound, errors={**added.errors, **shard.errors}))
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
