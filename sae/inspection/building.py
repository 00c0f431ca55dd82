"""How an index comes to be on disk: a working folder beside its place, filled piece by piece, renamed when it is whole.

    .building-<name>/building.json     the key that is being worked towards; with the same key, what is there is trusted
                     lock              held while a build runs
                     by_token/ ...     as in the finished index; `manifest.json` is written last

Killed at any moment, the next build goes on from the segments that are there, and the result is byte for byte that of an uninterrupted one.
An index of a store that has grown since takes the place of the old one, whose segments it reuses.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.errors import FormatError
from sae.inspection import loops
from sae.inspection.contexts import TokenTable
from sae.inspection.corpus_facts import CorpusFacts
from sae.inspection.entries import LatentView, TokenView
from sae.inspection.manifest import MANIFEST, IndexManifest, read_manifest, work_folder, write_manifest
from sae.inspection.neighbours import PairCounter, totals
from sae.inspection.records import FeatureSource
from sae.inspection.segments import CodeSource, SegmentPlan, write_by_latent, write_segments
from sae.inspection.settings import IndexConfig
from sae.inspection.summary import Block, SummaryBuilder, block_bounds
from sae.storage import lock, map_arrays, read_json, save_arrays, sync, write_json
from sae.storage.atomic import TEMPORARY_PREFIX, replace_folder

BLOCKS_PER_ROUND = 24
"""Blocks of latents between two reports of progress."""
GROWS = ("store", "codes", "texts", "labels")
"""Parts of the key in which an index may differ from that of the same store when it was smaller."""


class IndexProgress(NamedTuple):
    """How far a build has come."""

    stage: str
    """`encode` (units are tokens), `sort` (one unit), `summarise` and `relate` (latents), or `found` when the index was there already."""
    done: int
    """Units done."""
    total: int
    """Units of this stage."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an index is made from, besides its codes."""

    plan: SegmentPlan
    """The corpus and its segments."""
    config: IndexConfig
    """The settings."""
    key: Mapping[str, Any]
    """Names the contents."""
    source: FeatureSource
    """What its features belong to; documents are counted here."""
    texts: list[str]
    """The text of every token id."""
    labels: Mapping[int, Mapping[str, str | int]]
    """Labels by document."""
    directions: Callable[[int], tuple[dict[str, np.ndarray], str]]
    """(arrays of the summary that follow from the dictionary's directions, how the map was made in words)."""


def run(job: Job, codes: CodeSource, folder: Path) -> Iterator[IndexProgress]:
    """Build the index; it is in `folder` when the iterator is exhausted.

    Raises FormatError when `folder` holds something else, CacheError when another process is building it.
    """
    earlier = _earlier(job, folder)
    if earlier is not None and dict(earlier.key) == dict(job.key):
        yield IndexProgress("found", 1, 1)
        return
    work = work_folder(folder)
    with lock(work / "lock", wait=False):
        if not (work / MANIFEST).is_file() or not _finished(job, work):
            yield from _fill(job, codes, work, [folder] if earlier is not None else [])
        _tidy(work)
        replace_folder(work, folder)


def _earlier(job: Job, folder: Path) -> IndexManifest | None:
    """The manifest of the index that is there: the same one, or one of the same store when it had fewer rows."""
    if not folder.exists():
        return None
    manifest, key = read_manifest(folder), dict(job.key)
    if dict(manifest.key) == key:
        return manifest
    same = {name: value for name, value in manifest.key.items() if name not in GROWS}
    if same == {name: value for name, value in key.items() if name not in GROWS} and (folder / "by_token").is_dir():
        stored, table = map_arrays(folder / "tokens.safetensors"), job.plan.table
        ids, documents = stored["ids"], stored["documents"]
        n, whole = len(ids), ids.shape[1] == table.context and len(ids) < len(table.ids)
        if whole and np.array_equal(ids, table.ids[:n]) and np.array_equal(documents, table.documents[:n]):
            return manifest
    raise FormatError(f"{folder} holds the index of something else; choose another folder, or remove it")


def _finished(job: Job, work: Path) -> bool:
    """Whether an earlier build had come to its end but for the renaming."""
    try:
        return dict(read_manifest(work).key) == dict(job.key)
    except FormatError:
        return False


def _fill(job: Job, codes: CodeSource, work: Path, earlier: list[Path]) -> Iterator[IndexProgress]:
    trusted = _trusted(job, work)
    (work / MANIFEST).unlink(missing_ok=True)
    write_json(work / "building.json", dict(job.key))
    n, records = int(job.plan.used.sum()), []
    for done, record in write_segments(job.plan, codes, work, earlier, trusted=trusted):
        records += [record] if record is not None else []
        yield IndexProgress("encode", done, n)
    codes.finish()
    scale, n_entries, n_steps = write_by_latent(job.plan, work, records)
    yield IndexProgress("sort", 1, 1)
    facts = CorpusFacts.of(job.plan.table, job.plan.used, len(job.texts))
    told = {
        "key": dict(job.key),
        "config": job.config,
        "source": FeatureSource(**{**vars(job.source), "n_tokens": n, "n_documents": len(facts.sizes)}),
        "segments": tuple(records),
        "n_entries": n_entries,
        "n_steps": n_steps,
        "value_scale": scale,
        "precision": precision(job.config, scale),
    }
    manifest = IndexManifest(format_version=0, map_method="", files={}, checksums={}, **told)
    arrays = yield from _summarise(job, work, manifest, facts)
    more, map_method = job.directions(job.plan.d_sae)
    save_arrays(work / "summary.safetensors", {name: _little(array) for name, array in (arrays | more).items()})
    _write_corpus(job, work, facts)
    _tidy(work)  # so that the manifest names only what belongs to the index
    write_manifest(work, **told, map_method=map_method)
    for item in sorted(work.rglob("*")):
        sync(item)
    sync(work)


def _trusted(job: Job, work: Path) -> bool:
    """Whether what is in the working folder was left by a build of the same index."""
    try:
        return read_json(work / "building.json") == dict(job.key)
    except FormatError:
        return False


def precision(config: IndexConfig, scale: float) -> str:
    """How precise the values are, in words."""
    if config.value_dtype == "float32":
        return "Values are float32, as encoded; all statistics are of these."
    scaled = "" if scale == 1.0 else f" Stored values are divided by {scale:g}."
    return f"Values are float16: rounded by at most 1 part in 2048 (2^-11); all statistics are of the rounded values.{scaled}"


def _summarise(job: Job, work: Path, manifest: IndexManifest, facts: CorpusFacts) -> Iterator[IndexProgress]:
    """All arrays of the summary that follow from the codes."""
    d_sae, view = job.plan.d_sae, LatentView(work, manifest)
    builder = SummaryBuilder(facts, job.config, d_sae=d_sae, n_steps=manifest.n_steps, compiled=loops.available())
    _ = facts.ids, facts.run_bounds, facts.places  # worked out once, before threads ask for them
    bounds = list(block_bounds(view.start.astype(np.int64)))
    for begin in range(0, len(bounds), BLOCKS_PER_ROUND):
        part = bounds[begin : begin + BLOCKS_PER_ROUND]
        loops.share(lambda number, part=part: builder.add(Block.of(view, *part[number])), len(part))
        yield IndexProgress("summarise", part[-1][1], d_sae)
    arrays, n_tokens = builder.finish(), manifest.source.n_tokens
    n = arrays["n_active"].astype(np.float64)
    firing, values = totals(n, n, n_tokens), totals(arrays["mean"] * n, arrays["mean_square"] * n, n_tokens)
    counter = PairCounter(view, TokenView(work, manifest), firing, values, n_tokens, job.config.n_neighbours)
    for done in counter.rounds():
        yield IndexProgress("relate", done, d_sae)
    for name, found in counter.related.items():
        arrays |= {f"{name}_ids": found.ids, f"{name}_values": found.values, f"{name}_counts": found.counts}
    return arrays


def _write_corpus(job: Job, work: Path, facts: CorpusFacts) -> None:
    table: TokenTable = job.plan.table
    start, length = facts.runs
    document = table.documents.reshape(-1)[start]
    order = np.argsort(document, kind="stable")
    narrow = np.int32 if table.n_tokens < 2**31 else np.int64
    runs = {"run_document": document[order], "run_start": start[order].astype(narrow), "run_length": length[order].astype(narrow)}
    arrays = {"ids": table.ids, "documents": table.documents, "used": job.plan.used, **runs}
    save_arrays(work / "tokens.safetensors", {name: _little(array) for name, array in arrays.items()})
    write_json(work / "vocabulary.json", job.texts)
    write_json(work / "documents.json", {str(document): dict(values) for document, values in job.labels.items()})


def _tidy(work: Path) -> None:
    """Remove what does not belong to the finished index: files of killed writers, and segments of a larger store."""
    for path in sorted(work.rglob("*")):
        if path.name.startswith(TEMPORARY_PREFIX):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (work / "building.json").unlink(missing_ok=True)
    (work / "lock").unlink(missing_ok=True)


def _little(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
