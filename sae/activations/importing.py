"""Activations that another program computed, as a store: arrays, `.npy` and `.safetensors` files, read piece by piece.

    acts [n, width]  or  [rows, context, width]          token index t = row * context + position,   n = rows * context

Nothing is loaded whole: files are memory-mapped, and a shard's worth of rows is in memory at a time. Stopped at any moment, the same import
continues where it was and ends in the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from sae.activations.manifest import DTYPES, CaptureConfig, CorpusRecord, Manifest, MaskRule, ModelRecord
from sae.activations.progress import CaptureProgress
from sae.activations.shards import token_dtype
from sae.activations.sources import ACTS_DTYPES, ID_DTYPES, ArrowFolder, ArrowPart, Source, Stack
from sae.activations.writing import RowPiece, write_store
from sae.errors import ConfigError
from sae.fingerprint import digest
from sae.models.sites import Site

SHARD_BYTES = 64_000_000
"""Activations of all sites in one shard, where `rows_per_shard` is not given (bytes)."""


@dataclass(frozen=True, kw_only=True)
class ImportedRows:
    """What is to be imported, opened and found to fit together; nothing of it is read yet."""

    acts: Mapping[str, Stack]
    """Activations by site name, each [rows, context, width]."""
    tokens: Stack | None
    """Token ids [rows, context]."""
    document_ids: Stack | None
    """Documents [rows, context] or [rows]; None makes every row a document of its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and context."""
        rows, context, _ = next(iter(self.acts.values())).shape
        return rows, context

    def origin(self) -> dict[str, Any]:
        """What the digest of the import is taken over: reads every file once."""
        ids = {"tokens": self.tokens, "document_ids": self.document_ids}
        return {
            "acts": {name: stack.origin() for name, stack in self.acts.items()},
            **{name: None if stack is None else stack.origin() for name, stack in ids.items()},
            "shape": list(self.shape),
        }

    def pieces(self, rows_per_piece: int) -> Iterator[RowPiece]:
        """All rows, in order, so many at a time."""
        rows, context = self.shape
        for first in range(0, rows, rows_per_piece):
            stop = min(first + rows_per_piece, rows)
            acts = {name: stack.read(first, stop).reshape(-1, stack.shape[-1]) for name, stack in self.acts.items()}
            ids = torch.arange(first, stop) if self.document_ids is None else self.document_ids.read(first, stop).long()
            ids = ids.reshape(stop - first, -1).expand(-1, context)
            tokens = None if self.tokens is None else self.tokens.read(first, stop).long()
            yield RowPiece(ids, tokens, acts)


def import_arrays(
    arrays: Mapping[str, Source],
    path: str | Path,
    *,
    tokens: Source | None = None,
    document_ids: Source | None = None,
    context: int | None = None,
    name: str = "imported arrays",
    licence: str = "not stated",
    model_record: ModelRecord | None = None,
    dtype: str | None = None,
    mask: MaskRule | None = None,
    rows_per_shard: int | None = None,
) -> Iterator[CaptureProgress]:
    """Fill the store at `path` with activations that are already there, by site name; yields progress, and ends when the store is complete.

    An array is [n, width], or [rows, context, width]; a source is a numpy array, a tensor, a `.npy` or `.safetensors` file (with the name of
    its tensor where it has several: `("acts.safetensors", "acts")`), or a list of those, one after the other. All sites have the same n.
    `context` tells how [n, width] is cut into rows; None takes it from what has three axes and from `tokens` [rows, context], else it is
    1: vectors that stand alone. `document_ids` is [rows], [n] or [rows, context]; without it every row is a document of its own, so that the
    split by document is one by row.

    `dtype` None stores what the arrays hold (float64 as float32). `mask` None skips position 0 of rows longer than 1, as a capture does, and
    nothing of vectors that stand alone; norms above 6 medians are outliers. `rows_per_shard` None makes shards of about 64 MB.

    Raises, before anything is written, ConfigError for shapes that do not fit together, an unknown dtype, ids out of range, and a path that
    holds something else; FormatError for a file that is damaged; while running, FormatError naming site, row and position of a NaN.
    """
    rows = open_rows(arrays, tokens=tokens, document_ids=document_ids, context=context)
    corpus = CorpusRecord(name=name, digest="", licence=licence)
    return import_rows(rows, path, corpus=corpus, model_record=model_record, dtype=dtype, mask=mask, rows_per_shard=rows_per_shard)


def import_rows(
    rows: ImportedRows,
    path: str | Path,
    *,
    corpus: CorpusRecord,
    model_record: ModelRecord | None,
    dtype: str | None,
    mask: MaskRule | None,
    rows_per_shard: int | None,
) -> Iterator[CaptureProgress]:
    """`import_arrays` of what is opened already; the digest of `corpus` is replaced by that of the rows' bytes."""
    stored = dtype or storage_dtype([stack.dtype for stack in rows.acts.values()])
    if stored not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, or None for that of the arrays, got {dtype!r} (import)")
    n_rows, context = rows.shape
    sites = tuple(Site.of(name, stack.shape[-1]) for name, stack in rows.acts.items())
    row_bytes = context * sum(site.width for site in sites) * DTYPES[stored].itemsize
    config = CaptureConfig(
        sites=tuple(site.name for site in sites),
        n_tokens=n_rows * context,
        context=context,
        dtype=stored,  # pyright: ignore[reportArgumentType]
        rows_per_shard=rows_per_shard or max(1, SHARD_BYTES // row_bytes),
        rows_per_batch=1,
        separator=False,
    )
    manifest = Manifest(
        model=model_record,
        corpus=corpus,
        capture=config,
        sites=sites,
        mask=mask or MaskRule(skipped_positions=(0,) if context > 1 else ()),
        token_dtype=_token_dtype(rows.tokens, model_record),  # pyright: ignore[reportArgumentType]
    )

    def steps() -> Iterator[CaptureProgress]:
        found = replace(manifest, corpus=replace(corpus, digest=digest({"import": rows.origin()})))
        yield from write_store(path, found, rows.pieces(config.rows_per_shard))

    return steps()


def open_rows(
    arrays: Mapping[str, Source], *, tokens: Source | None = None, document_ids: Source | None = None, context: int | None = None
) -> ImportedRows:
    """The arrays, mapped and brought to [rows, context, width]. Raises ConfigError when they do not fit together, naming what and how."""
    if not arrays:
        raise ConfigError("arrays must hold at least one site, got none; give a mapping of site names to arrays or files (import)")
    acts = {name: Stack.open(source, f"arrays[{name!r}]", ACTS_DTYPES) for name, source in arrays.items()}
    ids = None if tokens is None else Stack.open(tokens, "tokens", ID_DTYPES)
    documents = None if document_ids is None else Stack.open(document_ids, "document_ids", ID_DTYPES)
    return fitted(acts, tokens=ids, document_ids=documents, context=context)


def fitted(
    acts: Mapping[str, Stack], *, tokens: Stack | None = None, document_ids: Stack | None = None, context: int | None = None
) -> ImportedRows:
    """The same brought to one number of rows and one context. Raises ConfigError when that cannot be."""
    for name, stack in acts.items():
        if len(stack.shape) not in (2, 3) or 0 in stack.shape:
            raise ConfigError(
                f"{stack.label} must be [n, width] or [rows, context, width], none of them 0, got {list(stack.shape)} (import)"
            )
        Site.of(name, stack.shape[-1])
    stated = {} if context is None else {"context": context}
    stated |= {stack.label: stack.shape[1] for stack in acts.values() if len(stack.shape) == 3}
    stated |= {stack.label: stack.shape[1] for stack in (tokens,) if stack is not None and len(stack.shape) == 2}
    if len(set(stated.values())) > 1 or min(stated.values(), default=1) < 1:
        raise ConfigError(f"context must be one number, at least 1, got {', '.join(f'{k}: {v}' for k, v in stated.items())} (import)")
    length = next(iter(stated.values()), 1)
    acts = {name: stack.folded(length, stack.shape[-1:]) for name, stack in acts.items()}
    first = next(iter(acts.values()))
    tokens = None if tokens is None else tokens.folded(length, ())
    if document_ids is not None and document_ids.shape != first.shape[:1]:
        document_ids = document_ids.folded(length, ())
    for stack in (*acts.values(), tokens, document_ids):
        if stack is not None and stack.shape[0] != first.shape[0]:
            raise ConfigError(f"{stack.label} must have {first.shape[0]} rows as {first.label} has, got {stack.shape[0]} (import)")
    for stack in (tokens, document_ids):
        if stack is not None:
            stack.check_ids()
    return ImportedRows(acts=acts, tokens=tokens, document_ids=document_ids)


def storage_dtype(found: Sequence[torch.dtype]) -> str:
    """The narrowest storage dtype of floating point numbers that holds all of these; float32 for float64."""
    widest = reduce(torch.promote_types, found)
    return str(torch.float32 if widest == torch.float64 else widest).removeprefix("torch.")


def _token_dtype(tokens: Stack | None, model: ModelRecord | None) -> str | None:
    if tokens is None:
        return None
    largest = tokens.largest()
    if model is not None and largest >= model.d_vocab:
        raise ConfigError(f"tokens must be in 0..d_vocab-1={model.d_vocab - 1} of {model.name}, got {largest} (import)")
    return token_dtype(largest + 1 if model is None else model.d_vocab)


def import_saelens(
    folder: str | Path,
    path: str | Path,
    *,
    sites: Sequence[str] = (),
    name: str | None = None,
    licence: str = "not stated",
    model_record: ModelRecord | None = None,
    dtype: str | None = None,
    mask: MaskRule | None = None,
    rows_per_shard: int | None = None,
) -> Iterator[CaptureProgress]:
    """Fill the store at `path` with what SAELens's CacheActivationsRunner left in `folder`; otherwise as `import_arrays`.

    From version 4 on that is a `datasets` folder whose rows are sequences: columns of Array2D [context, width] named as the hooks, and from
    version 6 `token_ids`. `sites` picks columns; none means all. Every row becomes a document of its own, since where documents begin was not
    kept, unless there are `document_ids`, which `export_arrow` adds.

    Version 4 shuffled activations over rows before it saved them, unless told not to: then positions mean nothing, and
    `mask=MaskRule(skipped_positions=())` keeps the first of every row. Version 3 left files `0.safetensors`, `1.safetensors`, ... of
    shuffled vectors that do not say where they are from: `sites` must be that one name.

    Raises ConfigError for a folder that is neither, and as `import_arrays` does.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"folder must be one that SAELens cached activations in, {folder} is not a folder (import_saelens)")
    rows = _saelens_rows(folder, tuple(sites))
    corpus = CorpusRecord(name=name or folder.resolve().name, digest="", licence=licence)
    return import_rows(rows, path, corpus=corpus, model_record=model_record, dtype=dtype, mask=mask, rows_per_shard=rows_per_shard)


def _saelens_rows(folder: Path, sites: tuple[str, ...]) -> ImportedRows:
    files = sorted((file for file in folder.glob("*.safetensors") if file.stem.isdecimal()), key=lambda file: int(file.stem))
    if files:
        if len(sites) != 1:
            raise ConfigError(
                f"sites must be the one hook that was cached, as the files of {folder} do not name it, got {sites} (import_saelens)"
            )
        return open_rows({sites[0]: [(file, "activations") for file in files]})
    if not (folder / "state.json").is_file():
        begun = (folder / ".tmp_shards").is_dir()
        advice = (
            "SAELens did not finish it; give one of the folders in its .tmp_shards"
            if begun
            else "it has no state.json and no 0.safetensors"
        )
        raise ConfigError(f"folder {folder} is not one that SAELens cached activations in: {advice} (import_saelens)")
    from datasets import Array2D

    saved = ArrowFolder(folder)
    columns = {name: feature for name, feature in saved.features.items() if isinstance(feature, Array2D)}
    absent = sorted(set(sites) - set(columns))
    if absent or not columns:
        raise ConfigError(
            f"sites must be columns of Array2D of {folder}, which are {', '.join(columns) or 'none'}, got {absent or 'nothing'} (import_saelens)"
        )
    parts = {name: ArrowPart(saved, name, columns[name].shape, columns[name].dtype) for name in sites or columns}
    acts = {name: Stack.of([part], part.label, ACTS_DTYPES) for name, part in parts.items()}
    context = next(iter(acts.values())).shape[1]
    ids = {name: ArrowPart(saved, name, (context,), "int32") for name in ("token_ids", "document_ids") if name in saved.features}
    stacks = {name: Stack.of([part], part.label, ID_DTYPES) for name, part in ids.items()}
    return fitted(acts, tokens=stacks.get("token_ids"), document_ids=stacks.get("document_ids"))
