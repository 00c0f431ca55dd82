"""What makes a store complete: its statistics, and the manifest that names every file.

Until the manifest is replaced, by one rename, a store that is being added to stays what it was, for readers and after a crash.
"""

import functools
import math
import shutil
from collections.abc import Collection, Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from sae.activations.claims import COMPLETION, Claims
from sae.activations.manifest import (
    MANIFEST,
    UNFINISHED,
    FileRecord,
    Manifest,
    ShardRecord,
    SiteStatistics,
    SiteSummary,
    pending_manifest,
    read_manifest,
    write_manifest,
)
from sae.activations.plan import is_announced
from sae.activations.progress import CaptureProgress
from sae.activations.shards import TOKENS_FILE, Runs, check_sizes, expanded, read_record, remove_shard, shard_folder, site_file, store_lock
from sae.activations.statistics import Moments, Piece, eligible_positions, measure, symmetric, upper_triangle
from sae.errors import FormatError
from sae.models.sites import Site
from sae.storage import checksum, lock, map_tensors, save_tensors, sync
from sae.storage.atomic import TEMPORARY_PREFIX


def complete(path: Path, wanted: Manifest, claims: Claims) -> Iterator[CaptureProgress]:
    """Measure what is not measured yet and write the manifest; another process that completes the store is waited for."""
    with claims.holding(COMPLETION):
        if (path / MANIFEST).exists() and not is_announced(path, wanted):
            return  # it has been completed in the meantime, and somebody may want more of it by now
        finished = yield from _with_statistics(path, wanted, ())
        with lock(store_lock(path)):
            write_manifest(path, finished)
            sweep_up(path)


def restore(path: Path, stored: Manifest, claims: Claims, sites: Collection[str]) -> Iterator[CaptureProgress]:
    """Write the manifest of a store whose damaged files were made again; what was measured of `sites` is measured once more.

    What others have begun to add to the store is left for them to finish.
    """
    with claims.holding(COMPLETION):
        restored = yield from _with_statistics(path, replace(stored, statistics={}), sites)
        with lock(store_lock(path)):
            write_manifest(path, restored)
            if pending_manifest(path) is None:
                sweep_up(path)


def _with_statistics(path: Path, wanted: Manifest, again: Collection[str]) -> Generator[CaptureProgress, None, Manifest]:
    """The manifest with the records of all shards and what is measured; only sites in `again`, or with other files, are measured."""
    names = {TOKENS_FILE, *(site_file(site.name) for site in wanted.sites)}
    records = tuple(_own(path, wanted, index, names) for index in range(len(wanted.shard_rows)))
    finished = replace(wanted, shards=records)
    before = read_manifest(path) if (path / MANIFEST).exists() else None
    statistics: dict[str, SiteSummary] = {}
    for number, site in enumerate(wanted.sites):
        if site.name not in again and before is not None and _same_files(before, finished, site) and _is_sound(path, before, site):
            statistics[site.name] = before.statistics[site.name]
        else:
            statistics[site.name] = yield from _measured(path, finished, site, number)
    return replace(finished, statistics=statistics)


def _own(path: Path, wanted: Manifest, index: int, names: set[str]) -> ShardRecord:
    """The record of a shard, with the files that are wanted of it. Raises FormatError when one is missing or has another size."""
    folder = shard_folder(path, wanted, index)
    record = read_record(folder)
    sites = {site.name for site in wanted.sites}
    own = replace(
        record,
        files={name: file for name, file in record.files.items() if name in names},
        errors={site: error for site, error in record.errors.items() if site in sites},
    )
    check_sizes(folder, own)
    return own


def already_complete(path: Path) -> Iterator[CaptureProgress]:
    """The progress of what has nothing left to do. What a killed run left behind is removed, unless somebody is at work on the store."""
    stored = read_manifest(path)
    if pending_manifest(path) is not None or any(path.glob(f"{TEMPORARY_PREFIX}*")):
        with Claims(path) as claims, claims.at_work(lambda alone: alone) as alone, lock(store_lock(path)):
            left = pending_manifest(path)
            if alone and (left is None or (left.capture == stored.capture and left.sites == stored.sites)):
                sweep_up(path)
    n_tokens = stored.n_rows * stored.capture.context
    yield CaptureProgress("capture", n_tokens, n_tokens, 0)


def sweep_up(path: Path) -> None:
    """Remove from a complete store what does not belong to it: leftovers of runs that were killed, shards and statistics that were replaced."""
    manifest = read_manifest(path)
    shards = {shard_folder(path, manifest, index).name for index in range(len(manifest.shards))}
    for folder in (path / "shards").iterdir():
        if folder.name.startswith(TEMPORARY_PREFIX):
            shutil.rmtree(folder)
        elif folder.name not in shards:
            remove_shard(folder)
    arrays = {statistics_file(path, name, summary).name for name, summary in manifest.statistics.items()}
    for file in (path / "statistics").iterdir():
        if file.name not in arrays:
            file.unlink()
    for file in [*path.glob(f"{TEMPORARY_PREFIX}*"), *path.glob(f"shards/*/{TEMPORARY_PREFIX}*")]:
        file.unlink()
    (path / UNFINISHED).unlink(missing_ok=True)


def statistics_file(path: Path, site: str, summary: SiteSummary) -> Path:
    """Where a site's mean and covariance are; the name holds their checksum, so that a new one never replaces what a reader uses."""
    return path / "statistics" / f"{site}.{summary.arrays.checksum[:12]}.safetensors"


def read_statistics(path: Path, site: Site, summary: SiteSummary) -> tuple[SiteStatistics, Tensor]:
    """The site's statistics and its covariance [width, width]. Raises FormatError when their file is missing or damaged."""
    file = statistics_file(path, site.name, summary)
    if checksum(file) != summary.arrays.checksum:
        raise FormatError(f"{file} is damaged: its checksum is not that of the bytes that were written; `sae store repair` measures again")
    arrays = map_tensors(file)
    numbers = {key: value for key, value in asdict(summary).items() if key != "arrays"}
    return SiteStatistics(**numbers, mean=arrays["mean"]), symmetric(arrays["covariance"], site.width)


def site_pieces(path: Path, manifest: Manifest, site: Site) -> Iterator[Piece]:
    """The site's shards, memory-mapped, with the positions that may be used."""
    for index, n_rows in enumerate(manifest.shard_rows):
        acts = map_tensors(shard_folder(path, manifest, index) / site_file(site.name))
        yield Piece(acts["acts"], acts["norms"], _eligible(path, manifest, index, n_rows))


def _eligible(path: Path, manifest: Manifest, index: int, n_rows: int) -> Bool[Tensor, "n_tokens"]:
    context, skipped = manifest.capture.context, manifest.mask.skipped_positions
    if not manifest.capture.isolated:
        return _eligible_rows(n_rows, context, skipped)
    stored = map_tensors(shard_folder(path, manifest, index) / TOKENS_FILE)
    ids = expanded(Runs(stored["document_starts"], stored["document_ids"]), n_rows * context).view(n_rows, context)
    return eligible_positions(ids, skipped_positions=skipped, isolated=True).flatten()


@functools.lru_cache(maxsize=4)
def _eligible_rows(n_rows: int, context: int, skipped: tuple[int, ...]) -> Bool[Tensor, "n_tokens"]:
    """The same in every shard of a length: documents are of no account."""
    ids = torch.zeros(n_rows, context, dtype=torch.int32)
    return eligible_positions(ids, skipped_positions=skipped, isolated=False).flatten()


def _same_files(before: Manifest, now: Manifest, site: Site) -> bool:
    def files(manifest: Manifest) -> list[tuple[FileRecord | None, FileRecord]]:
        return [(shard.files.get(site_file(site.name)), shard.files[TOKENS_FILE]) for shard in manifest.shards]

    return site.name in before.statistics and files(before) == files(now)


def _is_sound(path: Path, manifest: Manifest, site: Site) -> bool:
    """Whether the file of the site's statistics is as it was written."""
    summary = manifest.statistics[site.name]
    file = statistics_file(path, site.name, summary)
    return file.exists() and checksum(file) == summary.arrays.checksum


def _measured(path: Path, manifest: Manifest, site: Site, number: int) -> Iterator[CaptureProgress]:
    """Measures a site; its return value is what the manifest keeps."""
    n_tokens = manifest.n_rows * manifest.capture.context
    total, done = 2 * n_tokens * len(manifest.sites), 2 * n_tokens * number
    steps = measure(lambda: site_pieces(path, manifest, site), width=site.width, norm_ratio=manifest.mask.norm_ratio)
    while True:
        try:
            done += next(steps)
        except StopIteration as stop:
            return _summary(path, manifest, site, stop.value)
        yield CaptureProgress("statistics", done, total, 0)


def _summary(path: Path, manifest: Manifest, site: Site, found: Moments) -> SiteSummary:
    variance = float(found.covariance.diagonal().sum())
    if not (math.isfinite(variance) and math.isfinite(found.mean_norm)):
        raise FormatError(
            f"{path} has numbers at {site.name} that are not finite, which were when they were written: a file is damaged; "
            "`sae store repair` captures it again"
        )
    lost = [shard.errors[site.name] for shard in manifest.shards]
    squared = sum(error.squared for error in lost) / max(1, sum(error.n for error in lost))
    arrays = {"mean": found.mean, "covariance": upper_triangle(found.covariance)}
    scratch = path / "statistics" / f"{site.name}.safetensors"
    record = FileRecord(checksum=save_tensors(scratch, arrays), n_bytes=scratch.stat().st_size)
    summary = SiteSummary(
        n=found.n,
        n_outliers=found.n_outliers,
        mean_norm=found.mean_norm,
        mean_centred_norm=found.mean_centred_norm,
        median_norm=found.median_norm,
        threshold=found.threshold,
        total_variance=variance,
        storage_fvu=squared / variance if variance > 0 else 0.0,
        arrays=record,
    )
    scratch.replace(statistics_file(path, site.name, summary))
    sync(scratch.parent)
    return summary
