"""Several stores as one: the rows of the first, then those of the second, ...

    documents of store i are renumbered from   1 + max over the stores before it   on, so that no two stores share one

The stores' files are linked, not copied, where the file system can: they are never written again, so both stores stay what they are.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sae.activations.claims import TOKENS, Claims
from sae.activations.completion import already_complete, complete
from sae.activations.corpus import MAX_DOCUMENT_ID
from sae.activations.manifest import CorpusRecord, Manifest, ShardRecord, differences, read_manifest
from sae.activations.plan import announce
from sae.activations.progress import CaptureProgress
from sae.activations.shards import (
    TOKENS_FILE,
    Runs,
    check_sizes,
    expanded,
    read_record,
    rewrite_record,
    shard_folder,
    site_file,
    sound_files,
    store_lock,
    write_tokens,
)
from sae.errors import ConfigError
from sae.fingerprint import digest
from sae.storage import atomic_path, lock, map_tensors

MAY_DIFFER = ("n_tokens", "if_short", "rows_per_shard", "rows_per_batch")


def merge(paths: Sequence[str | Path], target: str | Path) -> Iterator[CaptureProgress]:
    """Make one store at `target` of the complete stores at `paths`, in this order; yields progress, and can be continued after a stop.

    They must have the same model, sites, context, dtype, separators and mask. Raises ConfigError naming what differs, for a corpus that comes
    twice (its tokens would), and when `target` holds something else.
    """
    sources, target = [Path(path) for path in paths], Path(target)
    stored = [read_manifest(source) for source in sources]
    for source, manifest in zip(sources, stored, strict=True):
        for index, shard in enumerate(manifest.shards):
            check_sizes(shard_folder(source, manifest, index), shard)
    wanted = _merged(sources, stored)
    return _merge(sources, stored, target, wanted) if announce(target, wanted, dry=True) else already_complete(target)


def _merged(sources: list[Path], stored: list[Manifest]) -> Manifest:
    if len(stored) < 2:
        raise ConfigError(f"paths must name at least 2 stores, got {len(stored)} (merge)")
    first = stored[0]
    for source, manifest in zip(sources[1:], stored[1:], strict=True):
        unlike = differences(first, replace(manifest, corpus=first.corpus), but=MAY_DIFFER)
        if unlike:
            raise ConfigError(f"{source} cannot be merged with {sources[0]}: " + "; ".join(unlike) + " (merge)")
    digests = [manifest.corpus.digest for manifest in stored]
    for number, each in enumerate(digests):
        if each in digests[:number]:
            again = sources[digests.index(each)]
            raise ConfigError(
                f"{sources[number]} has the corpus of {again}: the same tokens would come twice; ask for more tokens of it instead"
            )
    n_rows = sum(manifest.n_rows for manifest in stored)
    corpus = CorpusRecord(
        name=" + ".join(manifest.corpus.name for manifest in stored),
        digest=digest({"merged": [[manifest.corpus.digest, manifest.n_rows] for manifest in stored]}),
        licence="; ".join(dict.fromkeys(manifest.corpus.licence for manifest in stored)),
    )
    capture = replace(first.capture, n_tokens=n_rows * first.capture.context, if_short="error")
    shards = tuple(shard for manifest in stored for shard in manifest.shards)
    return replace(first, corpus=corpus, capture=capture, n_rows=n_rows, shards=shards, statistics={})


def _merge(sources: list[Path], stored: list[Manifest], target: Path, wanted: Manifest) -> Iterator[CaptureProgress]:
    context, n_rows, index, first_document = wanted.capture.context, 0, 0, 0
    with Claims(target) as claims, claims.at_work(lambda alone: announce(target, wanted, alone=alone)) as needed:
        if not needed:
            yield from already_complete(target)
            return
        with claims.holding(TOKENS):  # another process that merges the same waits, and finds all shards there
            for source, manifest in zip(sources, stored, strict=True):
                next_document = first_document
                for number, shard in enumerate(manifest.shards):
                    origin = shard_folder(source, manifest, number)
                    folder = shard_folder(target, wanted, index)
                    last = _copy(origin, shard, target, folder, wanted, first_document)
                    next_document, index, n_rows = max(next_document, last + 1), index + 1, n_rows + shard.n_rows
                    yield CaptureProgress("capture", n_rows * context, wanted.n_rows * context, 0)
                first_document = next_document
        yield from complete(target, wanted, claims)


def _copy(origin: Path, shard: ShardRecord, target: Path, folder: Path, wanted: Manifest, first_document: int) -> int:
    """Makes one shard of the target; returns the largest number of a document in it."""
    stored = map_tensors(origin / TOKENS_FILE)
    numbers = stored["document_ids"].long() + first_document
    if int(numbers.max()) > MAX_DOCUMENT_ID:
        raise ConfigError(
            f"{origin} has documents up to {int(numbers.max())} when renumbered, above {MAX_DOCUMENT_ID}: merge it first (merge)"
        )
    runs = Runs(stored["document_starts"], numbers.int())
    names = {site_file(site.name) for site in wanted.sites}
    if not {TOKENS_FILE, *names} <= sound_files(folder):
        ids = expanded(runs, shard.n_rows * wanted.capture.context).view(shard.n_rows, -1)
        if TOKENS_FILE not in sound_files(folder):
            write_tokens(target, folder, stored["tokens"].int() if wanted.token_dtype else None, ids, wanted.token_dtype)
        for name in names:
            _link(origin / name, folder / name)
        with lock(store_lock(target)):
            record = read_record(folder)
            files = {**record.files, **{name: shard.files[name] for name in names}}
            rewrite_record(folder, replace(record, files=files, errors=shard.errors))
    return int(runs.ids.max())


def _link(origin: Path, place: Path) -> None:
    """The same file in another place: a hard link, or a copy where there can be none."""
    place.unlink(missing_ok=True)
    try:
        os.link(origin, place)
    except OSError:  # another file system, or one without links
        with atomic_path(place) as temporary:
            shutil.copyfile(origin, temporary)
