"""Capture: run a language model over a corpus and keep its activations, as an iterator that can be stopped at any moment.

    corpus --tokenize--> documents --pack--> tokens of all shards --capture--> activations --> statistics --> manifest

The tokens come first, so that a corpus that is too short is known before hours are spent on it, and nothing is tokenised twice. Shards and
forward passes begin at the same tokens however often the capture was stopped and whoever ran it.

Several processes may fill one store, started by torchrun or by hand, on one machine or on many that share the folder: each calls `collect`
with the same arguments, takes the next shard that nobody works on, and returns when the store is complete. The work of one that dies is
taken over by the others, or done by the next run.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sae.activations.claims import TOKENS, Claims
from sae.activations.completion import already_complete, complete
from sae.activations.corpus import Corpus
from sae.activations.filling import fill
from sae.activations.manifest import (
    UNFINISHED,
    CaptureConfig,
    CorpusRecord,
    Manifest,
    ModelRecord,
    folder_name,
    pending_manifest,
    read_manifest,
    write_manifest,
)
from sae.activations.plan import announce
from sae.activations.progress import CaptureProgress
from sae.activations.shards import (
    TOKENS_FILE,
    Runs,
    expanded,
    shard_folder,
    sound_files,
    store_lock,
    token_dtype,
    write_tokens,
)
from sae.activations.tokenisation import token_lists
from sae.errors import ConfigError, FormatError
from sae.models.language_model import LanguageModel
from sae.models.tokens import TokenRow, pack
from sae.storage import lock, map_tensors

__all__ = ["CaptureConfig", "CaptureProgress", "collect", "extend"]


def collect(model: LanguageModel, corpus: Corpus, path: str | Path, config: CaptureConfig) -> Iterator[CaptureProgress]:
    """Fill the activation store at `path`, yielding progress after every forward pass; when the iterator ends the store is complete.

    A store that was begun with the same model, corpus and config is continued, and left alone if it is complete; with a larger `n_tokens`, a
    complete one is added to, and stays readable as it was until the new tokens are all there. Killed at any moment, the next call continues,
    and the finished folder is byte for byte that of an uninterrupted run.

    Raises, before anything is written, ConfigError for an unknown site or a store begun with something else (naming what differs); while
    running, FormatError for NaN or infinite activations (naming site, row and position), CacheError for a full disk or a place that cannot
    be written, ConfigError when the corpus is shorter than `config.n_tokens` and `config.if_short` is "error" (saying how many tokens it has).

    >>> for progress in collect(model, corpus, "store", CaptureConfig(sites=("blocks.15.hook_resid_post",), n_tokens=200_000)):
    ...     bar.update(progress.n_tokens)
    """
    path, wanted = Path(path), _describe(model, corpus, config)
    plan = announce(path, wanted, dry=True)
    return _collect(model, corpus, path, wanted) if plan else already_complete(path)


def extend(model: LanguageModel, path: str | Path, sites: Sequence[str]) -> Iterator[CaptureProgress]:
    """Capture more sites of the tokens in the complete store at `path`; its corpus is not needed. Continued and shared like a capture.

    `sites` are names or patterns; those that are there already are left alone. Until the new ones are complete the store stays what it was.
    Raises ConfigError when the model is another one than the store's, and as `collect` does.
    """
    path = Path(path)
    stored = read_manifest(path)
    check_model(model, stored, path)
    new = tuple(site for site in model.sites(sites) if site not in stored.sites)
    if not new:
        return already_complete(path)
    config = replace(stored.capture, sites=(*stored.capture.sites, *(site.name for site in new)))
    wanted = replace(stored, capture=config, sites=(*stored.sites, *new))
    announce(path, wanted, dry=True)
    return _extend(model, path, wanted)


def _extend(model: LanguageModel, path: Path, wanted: Manifest) -> Iterator[CaptureProgress]:
    with Claims(path) as claims, ExitStack() as stack:
        stack.enter_context(claims.at_work(lambda alone: announce(path, wanted, alone=alone)))
        yield from fill(model, path, wanted, claims)
        yield from complete(path, wanted, claims)


def _describe(model: LanguageModel, corpus: Corpus, config: CaptureConfig) -> Manifest:
    if not 2 <= config.context <= model.shape.n_ctx:
        raise ConfigError(f"context must be in 2..n_ctx={model.shape.n_ctx} of {model.name}, got {config.context} (CaptureConfig)")
    if config.bos_id is not None and not 0 <= config.bos_id < model.shape.d_vocab:
        raise ConfigError(f"bos_id must be in 0..d_vocab-1={model.shape.d_vocab - 1}, got {config.bos_id} (CaptureConfig)")
    sites = model.sites(config.sites)
    return Manifest(
        model=_model_record(model, config),
        corpus=CorpusRecord(name=corpus.name, digest=corpus.digest, licence=corpus.licence),
        capture=replace(config, sites=tuple(site.name for site in sites)),
        sites=sites,
        token_dtype=token_dtype(model.shape.d_vocab),
    )


def _model_record(model: LanguageModel, config: CaptureConfig) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        digest=model.digest,
        dtype=str(model.dtype).removeprefix("torch."),
        d_vocab=model.shape.d_vocab,
        vocabulary=model.vocabulary_digest,
        separator_id=model.separator_id if config.separator else None,
    )


def check_model(model: LanguageModel, stored: Manifest, path: Path) -> None:
    """Raises ConfigError when the store was captured from another model, or in another dtype."""
    if stored.model is None:
        raise ConfigError(f"{path} holds imported activations of an unknown model: no model can add to it (extend)")
    now = replace(_model_record(model, stored.capture), name=stored.model.name)
    if now != stored.model:
        what = [
            key for key in ("digest", "dtype", "d_vocab", "vocabulary", "separator_id") if getattr(now, key) != getattr(stored.model, key)
        ]
        parts = "; ".join(f"{key} is {getattr(stored.model, key)} in the store, {getattr(now, key)} now" for key in what)
        raise ConfigError(f"{path} was captured from another model than {model.name} as it is now ({parts}): load the one it was made with")


def _collect(model: LanguageModel, corpus: Corpus, path: Path, wanted: Manifest) -> Iterator[CaptureProgress]:
    with Claims(path) as claims, ExitStack() as stack:
        if not stack.enter_context(claims.at_work(lambda alone: announce(path, wanted, alone=alone))):
            yield from already_complete(path)  # another process has completed it in the meantime
            return
        with claims.holding(TOKENS):
            known = pending_manifest(path) or read_manifest(path)
            if known.n_rows and known.capture == wanted.capture and all(_has_tokens(path, known, i) for i in range(len(known.shard_rows))):
                wanted = replace(wanted, n_rows=known.n_rows)
            else:
                wanted = yield from tokens_to_disk(rows_of(model, corpus, wanted.capture), path, wanted)
                with lock(store_lock(path)):
                    write_manifest(path, wanted, UNFINISHED)
        yield from fill(model, path, wanted, claims)
        yield from complete(path, wanted, claims)


def _has_tokens(path: Path, manifest: Manifest, index: int) -> bool:
    return TOKENS_FILE in sound_files(shard_folder(path, manifest, index))


def rows_of(model: LanguageModel, corpus: Corpus, config: CaptureConfig) -> Iterator[TokenRow]:
    """Every row of the packed corpus, in order, up to `config.n_rows`; a few documents are in memory at a time."""
    documents = token_lists(corpus.documents(), model.tokenize)
    separator_id = model.separator_id if config.separator else None
    return itertools.islice(pack(documents, context=config.context, separator_id=separator_id, bos_id=config.bos_id), config.n_rows)


def tokens_to_disk(rows: Iterator[TokenRow], path: Path, wanted: Manifest) -> Iterator[CaptureProgress]:
    """Begin every shard with its tokens; the return value is the manifest with the number of rows.

    Shards whose tokens are there already are compared. Raises FormatError when they hold others, and ConfigError when there are too few rows.
    """
    config, n_rows = wanted.capture, 0
    for index, chunk in enumerate(_chunks(rows, config.rows_per_shard)):
        short = n_rows + len(chunk) < config.n_rows and len(chunk) < config.rows_per_shard
        if short and config.if_short == "error":
            n_rows += len(chunk)
            break
        folder = path / "shards" / folder_name(index, len(chunk), config.rows_per_shard)
        tokens, ids = torch.stack([row.tokens for row in chunk]), torch.stack([row.document_ids for row in chunk])
        if TOKENS_FILE in sound_files(folder):
            _check_tokens(folder, tokens, ids)
        else:
            write_tokens(path, folder, tokens, ids, wanted.token_dtype)
        n_rows += len(chunk)
        yield CaptureProgress("tokens", n_rows * config.context, config.n_rows * config.context, 0)
    _check_length(wanted.corpus.name, config, n_rows)
    return replace(wanted, n_rows=n_rows)


def _check_tokens(folder: Path, tokens: torch.Tensor, document_ids: torch.Tensor) -> None:
    """Raises FormatError when a shard has other tokens: the corpus or the tokenizer is not what its digest says."""
    stored = map_tensors(folder / TOKENS_FILE)
    ids = expanded(Runs(stored["document_starts"], stored["document_ids"]), document_ids.numel())
    if not (torch.equal(stored["tokens"].long(), tokens.long()) and torch.equal(ids.long(), document_ids.flatten().long())):
        raise FormatError(
            f"{folder / TOKENS_FILE} holds other tokens than the corpus gives now, although both have the same digest: "
            "its files or its generator changed; capture into another folder"
        )


def _check_length(corpus: str, config: CaptureConfig, n_rows: int) -> None:
    n_tokens = n_rows * config.context
    if n_rows == 0:
        raise ConfigError(f"corpus {corpus!r} has too few tokens to fill one row of context={config.context} (collect)")
    if n_rows < config.n_rows and config.if_short == "error":
        raise ConfigError(
            f"n_tokens must be at most {n_tokens}, got {config.n_tokens}: corpus {corpus!r} has no more tokens in whole rows of "
            f"{config.context}; ask for at most {n_tokens}, or set if_short='accept' (collect)"
        )


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
