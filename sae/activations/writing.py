"""Stores of activations that are already there: imported ones, and whatever is computed elsewhere, written as a capture writes its own."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.claims import TOKENS, Claims
from sae.activations.completion import already_complete, complete
from sae.activations.filling import storage_error
from sae.activations.formats import is_exact, narrow_, widen
from sae.activations.manifest import DTYPES, UNFINISHED, Manifest, StorageError, folder_name, write_manifest
from sae.activations.plan import announce
from sae.activations.progress import CaptureProgress
from sae.activations.shards import SiteBuffers, site_file, sound_files, store_lock, write_sites, write_tokens
from sae.activations.statistics import check_finite, eligible_positions
from sae.errors import ConfigError
from sae.storage import lock


@dataclass(frozen=True)
class RowPiece:
    """Some consecutive rows with their activations."""

    document_ids: Int[Tensor, "rows context"]
    """The document of every token."""
    tokens: Int[Tensor, "rows context"] | None
    """Token ids, where there are any."""
    acts: Mapping[str, Float[Tensor, "_ _"]]
    """Activations [rows * context, width] by site name."""


def write_store(path: str | Path, manifest: Manifest, pieces: Iterable[RowPiece]) -> Iterator[CaptureProgress]:
    """Fill the store at `path` that `manifest` describes with the rows of `pieces`, which may have any lengths; yields progress.

    Stopped at any moment, the next call with the same pieces continues to the same bytes: shards that are there are not written again. Raises
    ConfigError when the folder holds something else, when pieces do not fit the manifest, and when they are no row at all; FormatError for NaN
    or infinite activations; CacheError for a full disk.
    """
    path = Path(path)
    if not announce(path, manifest, dry=True):
        return already_complete(path)
    return _write(path, manifest, pieces)


def _write(path: Path, wanted: Manifest, pieces: Iterable[RowPiece]) -> Iterator[CaptureProgress]:
    config, n_rows, n_run = wanted.capture, 0, 0
    with Claims(path) as claims, claims.at_work(lambda alone: announce(path, wanted, alone=alone)) as needed:
        if not needed:
            yield from already_complete(path)
            return
        with claims.holding(TOKENS):  # another process that writes the same waits, and finds all shards there
            for index, piece in enumerate(cut((_checked(wanted, piece) for piece in pieces), config.rows_per_shard)):
                first, n_rows = n_rows, n_rows + len(piece.document_ids)
                folder = path / "shards" / folder_name(index, len(piece.document_ids), config.rows_per_shard)
                if not {site_file(site.name) for site in wanted.sites} <= sound_files(folder):
                    sites = _narrowed(wanted, piece, first)
                    write_tokens(path, folder, piece.tokens, piece.document_ids, wanted.token_dtype)
                    write_sites(path, folder, sites)
                    n_run += piece.document_ids.numel()
                yield CaptureProgress("capture", n_rows * config.context, max(n_rows, config.n_rows) * config.context, n_run)
        if n_rows != config.n_rows:
            raise ConfigError(f"n_tokens must be that of the pieces, {n_rows * config.context}, got {config.n_tokens} (write_store)")
        wanted = replace(wanted, n_rows=n_rows)
        with lock(store_lock(path)):
            write_manifest(path, wanted, UNFINISHED)
        yield from complete(path, wanted, claims)


def _checked(wanted: Manifest, piece: RowPiece) -> RowPiece:
    """The piece. Raises ConfigError when its rows are not such as the manifest describes."""
    context, n_rows = wanted.capture.context, len(piece.document_ids)
    if piece.document_ids.shape[1] != context:
        raise ConfigError(f"document_ids must be [rows, context={context}], got {list(piece.document_ids.shape)} (write_store)")
    if (piece.tokens is None) != (wanted.token_dtype is None):
        raise ConfigError(
            f"tokens must be given if and only if the manifest has a token_dtype, which is {wanted.token_dtype} (write_store)"
        )
    if piece.tokens is not None and n_rows:
        limit = 2**31 if wanted.model is None else wanted.model.d_vocab
        limit = min(limit, 2**16) if wanted.token_dtype == "uint16" else limit
        low, high = (int(bound) for bound in piece.tokens.aminmax())
        if piece.tokens.shape != piece.document_ids.shape or low < 0 or high >= limit:
            shape = f"{low}..{high} of shape {list(piece.tokens.shape)}"
            raise ConfigError(f"tokens must be in 0..{limit - 1}, of shape {[n_rows, context]}, got {shape} (write_store)")
    for site in wanted.sites:
        acts = piece.acts.get(site.name)
        if acts is None or acts.shape != (n_rows * context, site.width):
            shape = None if acts is None else list(acts.shape)
            raise ConfigError(f"acts of {site.name} must be [{n_rows * context}, {site.width}], a row per token, got {shape} (write_store)")
    return piece


def _narrowed(wanted: Manifest, piece: RowPiece, first_row: int) -> dict[str, SiteBuffers]:
    context, rule, dtype = wanted.capture.context, wanted.mask, DTYPES[wanted.capture.dtype]
    eligible = eligible_positions(piece.document_ids, skipped_positions=rule.skipped_positions, isolated=wanted.capture.isolated).flatten()
    found: dict[str, SiteBuffers] = {}
    for site in wanted.sites:
        acts = piece.acts[site.name]
        stored, norms = torch.empty(acts.shape, dtype=dtype), torch.empty(len(acts))
        narrow_(acts, stored, norms, where=f"activations of {site.name}")
        check_finite(norms, site=site.name, first_token=first_row * context, context=context)
        lost = None if is_exact(acts.dtype, dtype) else (acts.float() - widen(stored, norms)).square().sum(dim=1)
        error: StorageError = storage_error(norms, lost, eligible, rule.norm_ratio)
        found[site.name] = SiteBuffers(stored, norms, error)
    return found


def cut(pieces: Iterable[RowPiece], rows_per_shard: int) -> Iterator[RowPiece]:
    """The same rows in pieces of `rows_per_shard`, the last one perhaps shorter."""
    pending: list[RowPiece] = []
    n_pending = 0
    for piece in pieces:
        pending.append(piece)
        n_pending += len(piece.document_ids)
        if n_pending >= rows_per_shard:
            joined, start = _joined(pending), 0
            for start in range(0, n_pending - rows_per_shard + 1, rows_per_shard):
                yield _part(joined, start, start + rows_per_shard)
            rest = _part(joined, start + rows_per_shard, n_pending)
            n_pending = len(rest.document_ids)
            pending = [rest] if n_pending else []
    if pending:
        yield _joined(pending)


def _joined(pieces: list[RowPiece]) -> RowPiece:
    if len(pieces) == 1:
        return pieces[0]
    tokens = [piece.tokens for piece in pieces if piece.tokens is not None]
    return RowPiece(
        torch.cat([piece.document_ids for piece in pieces]),
        torch.cat(tokens) if tokens else None,
        {name: torch.cat([piece.acts[name] for piece in pieces]) for name in pieces[0].acts},
    )


def _part(piece: RowPiece, start: int, stop: int) -> RowPiece:
    context = piece.document_ids.shape[1]
    acts = {name: acts[start * context : stop * context] for name, acts in piece.acts.items()}
    return RowPiece(piece.document_ids[start:stop], None if piece.tokens is None else piece.tokens[start:stop], acts)
