"""Capture: run a language model over a corpus and keep its activations, as an iterator that can be stopped at any moment.

    corpus --tokenize--> documents --pack--> rows of `context` tokens --capture--> acts --> shards --> statistics --> complete

A shard is `rows_per_shard` consecutive rows, and forward passes never cross a shard's border, so what a shard holds does not depend on
where an earlier run was stopped. Finished shards are found again by their folders; their rows are not run through the model twice.
Shards are written by a thread of their own while the model works on the next one.

Several processes may fill one store: with `rank` r of `n_ranks`, a process runs the shards r, r + n_ranks, ... and whichever finds that
all are there completes the store.
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sae.activations.corpus import Corpus, Document
from sae.activations.manifest import (
    DTYPES,
    CaptureConfig,
    CorpusRecord,
    Manifest,
    ModelRecord,
    SiteStatistics,
    differences,
    read_manifest,
    write_manifest,
)
from sae.activations.shards import (
    TOKENS_FILE,
    ShardBuffers,
    SiteBuffers,
    read_record,
    shard_folder,
    site_file,
    store_lock,
    write_shard,
)
from sae.activations.statistics import Moments, centred_norm_sum, check_finite, median_norm, merge, moments, usable
from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest
from sae.models.language_model import LanguageModel
from sae.models.sites import Site
from sae.models.tokens import TokenRow, pack
from sae.storage import lock, map_tensors
from sae.storage.atomic import TEMPORARY_PREFIX

CHARACTERS_PER_TOKENIZATION = 50_000  # enough for the tokenizer to be efficient, little to have done in vain
T = TypeVar("T")


class CaptureProgress(NamedTuple):
    """How far a capture is."""

    stage: Literal["capture", "statistics"]
    """What is being done: first the capture of all tokens, then two passes over what was stored."""
    n_tokens: int
    """Tokens done in this stage, those of earlier runs included."""
    n_tokens_total: int
    """Tokens there are to do in this stage."""
    n_tokens_run: int
    """Tokens that this run put through the model in this stage."""


def collect(
    model: LanguageModel, corpus: Corpus, path: str | Path, config: CaptureConfig, *, rank: int = 0, n_ranks: int = 1
) -> Iterator[CaptureProgress]:
    """Fill the activation store at `path`, yielding progress after every forward pass; when the iterator ends the store is complete.

    A store that is there already is continued, if it was begun with the same model, corpus and config, and left alone if it is complete.
    Killed at any moment, the next call continues, and the finished folder is byte for byte that of an uninterrupted run.

    Raises, before anything is written, ConfigError for an unknown site or a store begun with something else (naming what differs); while
    running, FormatError for NaN or infinite activations (naming site, row and position), CacheError for a full disk, ConfigError when the
    corpus is shorter than `config.n_tokens` and `config.if_short` is "error" (saying how many tokens it has).

    >>> for progress in collect(model, corpus, "store", CaptureConfig(sites=("blocks.15.hook_resid_post",), n_tokens=200_000)):
    ...     bar.update(progress.n_tokens)
    """
    if not 0 <= rank < n_ranks:
        raise ConfigError(f"rank must be in 0..n_ranks-1={n_ranks - 1}, got {rank} (collect)")
    path = Path(path)
    manifest = _describe(model, corpus, config)
    _check_startable(path, manifest)
    return _collect(model, corpus, path, manifest, rank, n_ranks)


def _describe(model: LanguageModel, corpus: Corpus, config: CaptureConfig) -> Manifest:
    if config.context > model.shape.n_ctx:
        raise ConfigError(f"context must be at most n_ctx={model.shape.n_ctx} of {model.name}, got {config.context} (CaptureConfig)")
    if config.bos_id is not None and not 0 <= config.bos_id < model.shape.d_vocab:
        raise ConfigError(f"bos_id must be in 0..d_vocab-1={model.shape.d_vocab - 1}, got {config.bos_id} (CaptureConfig)")
    record = ModelRecord(
        name=model.name,
        digest=model.digest,
        dtype=str(model.dtype).removeprefix("torch."),
        d_vocab=model.shape.d_vocab,
        vocabulary=digest(model.tokenizer.get_vocab()),
        separator_id=model.separator_id if config.separator else None,
    )
    return Manifest(
        model=record,
        corpus=CorpusRecord(name=corpus.name, digest=corpus.digest, licence=corpus.licence),
        capture=config,
        sites=tuple(model.site(name) for name in config.sites),
        statistics={},
    )


def _check_startable(path: Path, wanted: Manifest) -> None:
    """Raises ConfigError when what is at `path` is neither nothing nor the beginning of the wanted store."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"path must be a folder, {path} is a file (collect)")
    if not path.exists() or all(entry.name.startswith(TEMPORARY_PREFIX) for entry in path.iterdir()):
        return
    if not (path / "manifest.json").exists():
        raise ConfigError(f"path must be a new folder or an activation store, {path} is neither: it has no manifest.json (collect)")
    stored = read_manifest(path)
    if not stored.complete and not any(path.glob("shards/[0-9]*")):
        return  # nothing was captured yet
    problems = differences(stored, wanted)
    if stored.complete and stored.capture != wanted.capture:
        problems += [
            f"capture.{name} is {getattr(stored.capture, name)!r} in the finished store, {getattr(wanted.capture, name)!r} now"
            for name in ("n_tokens", "if_short")
            if getattr(stored.capture, name) != getattr(wanted.capture, name)
        ]
    if problems:
        raise ConfigError(f"{path} was begun with something else, choose another path or remove it: " + "; ".join(problems))


def _collect(model: LanguageModel, corpus: Corpus, path: Path, wanted: Manifest, rank: int, n_ranks: int) -> Iterator[CaptureProgress]:
    config = wanted.capture
    with lock(store_lock(path)):
        _check_startable(path, wanted)
        finished = read_manifest(path) if (path / "manifest.json").exists() else wanted
        if not finished.complete:
            write_manifest(path, wanted)
    if finished.complete:
        n_tokens = finished.n_rows * config.context
        yield CaptureProgress("capture", n_tokens, n_tokens, 0)
        return
    n_rows = yield from _capture(model, corpus, path, wanted, rank, n_ranks)
    n_shards = -(-n_rows // config.rows_per_shard)
    if all(shard_folder(path, index).exists() for index in range(n_shards)):
        yield from _complete(path, wanted, n_rows, n_shards)


def _rows(model: LanguageModel, corpus: Corpus, config: CaptureConfig) -> Iterator[TokenRow]:
    """Every row of the packed corpus, in order; a few documents are in memory at a time."""

    def documents() -> Iterator[tuple[int, Sequence[int]]]:
        for chunk in _texts_of_length(corpus.documents(), CHARACTERS_PER_TOKENIZATION):
            token_lists = model.tokenize([document.text for document in chunk])
            yield from zip((document.id for document in chunk), token_lists, strict=True)

    separator_id = model.separator_id if config.separator else None
    return pack(documents(), context=config.context, separator_id=separator_id, bos_id=config.bos_id)


def _texts_of_length(documents: Iterable[Document], n_characters: int) -> Iterator[list[Document]]:
    """Consecutive documents, in lists that end with the document that brings them to `n_characters`."""
    chunk, length = [], 0
    for document in documents:
        chunk.append(document)
        length += len(document.text)
        if length >= n_characters:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _capture(model: LanguageModel, corpus: Corpus, path: Path, manifest: Manifest, rank: int, n_ranks: int) -> Iterator[CaptureProgress]:
    """Runs the shards of this rank that are not there yet; its return value is the number of rows in the whole store."""
    config, sites = manifest.capture, manifest.sites
    n_rows, n_tokens_run, total = 0, 0, config.n_rows * config.context
    pending: Future[None] | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer") as writer:
        rows = itertools.islice(_rows(model, corpus, config), config.n_rows)
        for index, chunk in enumerate(_chunks(rows, config.rows_per_shard)):
            short = n_rows + len(chunk) < config.n_rows and len(chunk) < config.rows_per_shard
            if short and config.if_short == "error":
                n_rows += len(chunk)
                break
            tokens, document_ids = torch.stack([row.tokens for row in chunk]), torch.stack([row.document_ids for row in chunk])
            if index % n_ranks != rank or _is_there(path, index, tokens, document_ids):
                yield CaptureProgress("capture", (n_rows + len(chunk)) * config.context, total, n_tokens_run)
            else:
                buffers = ShardBuffers(tokens, document_ids, _allocate(len(chunk) * config.context, sites, config))
                for first in range(0, len(chunk), config.rows_per_batch):
                    batch = tokens[first : first + config.rows_per_batch]
                    _run(model, batch, sites, buffers, first_row=n_rows, row=first, context=config.context)
                    n_tokens_run += batch.numel()
                    yield CaptureProgress("capture", (n_rows + first + len(batch)) * config.context, total, n_tokens_run)
                if pending is not None:
                    pending.result()
                pending = writer.submit(write_shard, path, index, buffers, d_vocab=manifest.model.d_vocab)
            n_rows += len(chunk)
        if pending is not None:
            pending.result()
    _check_length(corpus, config, n_rows)
    return n_rows


def _check_length(corpus: Corpus, config: CaptureConfig, n_rows: int) -> None:
    n_tokens = n_rows * config.context
    if n_rows == 0:
        raise ConfigError(f"corpus {corpus.name!r} has too few tokens to fill one row of context={config.context} (collect)")
    if n_rows < config.n_rows and config.if_short == "error":
        raise ConfigError(
            f"n_tokens must be at most {n_tokens}, got {config.n_tokens}: corpus {corpus.name!r} has no more tokens in whole rows of "
            f"{config.context}; ask for at most {n_tokens}, or set if_short='accept'; finished shards are kept (collect)"
        )


def _allocate(n_tokens: int, sites: Sequence[Site], config: CaptureConfig) -> dict[str, SiteBuffers]:
    dtype = DTYPES[config.dtype]
    return {s.name: SiteBuffers(torch.empty(n_tokens, s.width, dtype=dtype), torch.empty(n_tokens, dtype=torch.float32)) for s in sites}


def _run(
    model: LanguageModel, batch: Tensor, sites: Sequence[Site], buffers: ShardBuffers, *, first_row: int, row: int, context: int
) -> None:
    """One forward pass, into rows `row`, `row + 1`, ... of a shard whose first row is row `first_row` of the store."""
    captured = model.capture(batch, sites)
    rows = slice(row * context, (row + len(batch)) * context)
    for site in sites:
        acts, norms = buffers.sites[site.name].acts[rows], buffers.sites[site.name].norms[rows]
        acts.copy_(captured[site].reshape(-1, site.width))
        torch.linalg.vector_norm(acts, dim=1, dtype=torch.float32, out=norms)
        if not bool(torch.isfinite(norms).all()):
            check_finite(acts, site=site.name, first_token=(first_row + row) * context, context=context)


def _is_there(path: Path, index: int, tokens: Tensor, document_ids: Tensor) -> bool:
    """Whether this shard was captured before, from these very rows; a last shard left by a run that asked for fewer tokens is removed.

    Raises FormatError when a finished shard has other tokens: the corpus or the tokenizer is not what its digest says.
    """
    folder = shard_folder(path, index)
    if not folder.exists():
        return False
    record = read_record(folder)
    if record.n_rows != len(tokens):
        with lock(store_lock(path)):
            shutil.rmtree(folder)
        return False
    stored = map_tensors(folder / TOKENS_FILE)
    if not (torch.equal(stored["tokens"].long(), tokens.long()) and torch.equal(stored["document_ids"].long(), document_ids.long())):
        raise FormatError(f"{folder / TOKENS_FILE} holds other tokens than the corpus gives now, although both have the same digest")
    return True


def _complete(path: Path, wanted: Manifest, n_rows: int, n_shards: int) -> Iterator[CaptureProgress]:
    records = tuple(read_record(shard_folder(path, index)) for index in range(n_shards))
    statistics = {}
    for site in wanted.sites:
        measured = yield from _statistics(path, wanted, site, n_rows, n_shards)
        statistics[site.name] = measured.record()
    with lock(store_lock(path)):
        for folder in (path, path / "shards"):
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):  # of runs that were killed; whoever is alive writes under this lock
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for index in itertools.count(n_shards):  # of a run that asked for more tokens
            if not shard_folder(path, index).exists():
                break
            shutil.rmtree(shard_folder(path, index))
        write_manifest(path, replace(wanted, complete=True, n_rows=n_rows, shards=records, statistics=statistics))


def _statistics(path: Path, wanted: Manifest, site: Site, n_rows: int, n_shards: int) -> Iterator[CaptureProgress]:
    """Two passes over one site's shards; its return value is their SiteStatistics."""
    context, rule = wanted.capture.context, wanted.mask
    total = 2 * n_rows * context * len(wanted.sites)
    done = 2 * n_rows * context * wanted.sites.index(site)
    shards = [map_tensors(shard_folder(path, index) / site_file(site.name)) for index in range(n_shards)]
    norms = torch.cat([shard["norms"] for shard in shards])
    median = median_norm(norms, context=context, skipped_positions=rule.skipped_positions)
    threshold = rule.norm_ratio * median
    keep = usable(norms, context=context, skipped_positions=rule.skipped_positions, threshold=threshold)
    parts = keep.split([len(shard["norms"]) for shard in shards])
    sums = Moments(0, np.zeros(site.width), 0.0)
    for shard, part in zip(shards, parts, strict=True):
        sums = merge(sums, moments(shard["acts"][part]))
        yield CaptureProgress("statistics", done := done + len(part), total, 0)
    centred = 0.0
    for shard, part in zip(shards, parts, strict=True):
        centred += centred_norm_sum(shard["acts"][part], sums.mean)
        yield CaptureProgress("statistics", done := done + len(part), total, 0)
    return SiteStatistics(
        n=sums.n,
        mean=torch.from_numpy(sums.mean),
        mean_norm=float(norms[keep].double().mean()),
        mean_centred_norm=centred / sums.n,
        median_norm=median,
        threshold=threshold,
        total_variance=sums.deviation / sums.n,
    )
