"""A store for other programs: Parquet for DuckDB, Spark, Trino and `datasets`; an Arrow folder that SAELens trains from; plain arrays.

    Parquet      a row is a token:        token, document, row, position, and for every site  <site>.usable  and  <site> [width]
    Arrow        a row is a sequence:     <site> [context, width], token_ids [context], document_ids [context]
    arrays       a file is a tensor:      <site> [n, width], tokens [rows, context], document_ids [rows, context]

bfloat16, which Parquet and Arrow do not have, and eight-bit storage become float32, which holds them exactly. Files are written one by one
in a folder beside the target, which is renamed at the end: a killed export leaves nothing half-written in its place, and the next call goes on
from the files that are there. Some 32 MB of activations are in memory at a time, however long the store is.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.completion import site_pieces
from sae.activations.formats import widen
from sae.activations.shards import TOKENS_FILE, Runs, expanded, shard_folder
from sae.activations.statistics import Piece, kept
from sae.activations.store import ActivationStore
from sae.errors import ConfigError
from sae.fingerprint import digest, tensor_bytes, to_json
from sae.models.sites import Site
from sae.storage import atomic_path, map_tensors, write_json
from sae.storage.atomic import TEMPORARY_PREFIX
from sae.storage.tensors import CODES

if TYPE_CHECKING:
    import pyarrow

RECORD = "export.json"
PIECE_BYTES = 32_000_000
"""Activations in memory at a time, and in one row group of a Parquet file (bytes)."""
ExportDtype = Literal["float16", "float32"]


class ExportProgress(NamedTuple):
    """How far an export is."""

    n_tokens: int
    """Tokens written, by earlier runs too; in `export_arrays` once for every file."""
    n_tokens_total: int
    """Tokens there are to write."""


def export_parquet(
    store: ActivationStore, folder: str | Path, *, sites: Sequence[str] | None = None, dtype: ExportDtype | None = None
) -> Iterator[ExportProgress]:
    """Write the store as Parquet files, one per shard, into the new folder; yields progress.

    Columns: `token` (int32; absent from stores without token ids), `document`, `row`, `position` (in the row), and per site a list of
    `width` numbers under the site's name and, as `<site>.usable`, whether the store's mask keeps the token. `sites` None means all;
    `dtype` None is float16 for a store of float16, else float32. Read by `datasets.load_dataset("parquet", data_files="folder/*.parquet")`
    and `duckdb.sql("from 'folder/*.parquet'")`.

    Raises ConfigError, before anything is written, for an unknown site and a folder that is there already; CacheError for a full disk.
    """
    import pyarrow.parquet

    export = _Export(store, Path(folder), "parquet", _sites(store, sites), _dtype(store, dtype))
    ids = [*(["token"] if store.has_tokens else []), "document", "row", "position"]

    def write(shard: "_Shard", file: Path) -> None:
        pieces = (_token_table(shard, first, stop) for first, stop in shard.ranges())
        first = next(pieces)
        options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ids, "write_statistics": ids}
        with pyarrow.parquet.ParquetWriter(file, first.schema, **options) as writer:
            for table in (first, *pieces):
                writer.write_table(table, row_group_size=len(table))

    return export.run(lambda index: f"{index:05d}.parquet", write)


def export_arrow(
    store: ActivationStore, folder: str | Path, *, sites: Sequence[str] | None = None, dtype: ExportDtype | None = None
) -> Iterator[ExportProgress]:
    """Write the store as a `datasets` folder whose rows are sequences, as SAELens caches activations; yields progress.

    `datasets.load_from_disk(folder)` reads it, SAELens trains from it (`cached_activations_path`), and `import_saelens` brings it back, with
    its documents. Columns: every site [context, width], `token_ids` [context] where there are any, `document_ids` [context]. Options and
    errors are those of `export_parquet`.
    """
    import pyarrow

    export = _Export(store, Path(folder), "arrow", _sites(store, sites), _dtype(store, dtype))
    n_shards = len(store.manifest.shards)
    features = _features(export)

    def write(shard: "_Shard", file: Path) -> None:
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, features.arrow_schema) as writer:
            for first, stop in shard.ranges(store.context):
                writer.write_table(_row_table(shard, features, first, stop))

    def name(index: int) -> str:
        return f"data-{index:05d}-of-{n_shards:05d}.arrow"

    def finish(place: Path) -> None:
        import datasets

        datasets.DatasetInfo(features=features, license=store.manifest.corpus.licence).write_to_directory(str(place))
        state = {"_data_files": [{"filename": name(index)} for index in range(n_shards)], "_fingerprint": export.digest[:16]}
        settings = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
        write_json(place / "state.json", {**state, **settings})

    return export.run(name, write, finish)


def export_arrays(
    store: ActivationStore,
    folder: str | Path,
    *,
    sites: Sequence[str] | None = None,
    file_format: Literal["safetensors", "npy"] = "safetensors",
) -> Iterator[ExportProgress]:
    """Write one file per site, [n, width], and `tokens` and `document_ids`, [rows, context], into the new folder; yields progress.

    The dtype is that of the store, float32 for eight-bit storage and, in `.npy` files, for bfloat16. A tensor in a safetensors file is called
    `acts`, `tokens` or `document_ids`. `import_arrays` brings them back. Errors are those of `export_parquet`.
    """
    if file_format not in ("safetensors", "npy"):
        raise ConfigError(f"file_format must be 'safetensors' or 'npy', got {file_format!r} (export_arrays)")
    plain = store.dtype in (torch.float16, torch.float32) or (file_format == "safetensors" and store.dtype == torch.bfloat16)
    export = _Export(store, Path(folder), file_format, _sites(store, sites), store.dtype if plain else torch.float32)
    return export.run_by_tensor()


@dataclass(frozen=True)
class _Shard:
    """One shard, memory-mapped."""

    tokens: Int[Tensor, "n"] | None
    document_ids: Int[Tensor, "n"]
    sites: dict[Site, tuple[Piece, Bool[Tensor, "n"]]]
    dtype: torch.dtype
    first_row: int
    context: int

    def acts(self, site: Site, first: int, stop: int) -> Float[Tensor, "rows width"]:
        """The site's activations of tokens `first` to `stop - 1`, as they are exported. Raises ConfigError when they do not fit the dtype."""
        piece, _ = self.sites[site]
        stored, norms = piece.acts[first:stop], piece.norms[first:stop]
        wide = widen(stored, norms) if stored.dtype == torch.int8 else stored
        found = wide.to(self.dtype)
        if self.dtype == torch.float16 and not bool(torch.isfinite(found).all()):
            largest = float(wide.abs().max())
            raise ConfigError(f"dtype must be 'float32' for {site.name}: it has activations of {largest:.4g}, above 65504 (export)")
        return found

    def ranges(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Consecutive ranges of tokens of about PIECE_BYTES, beginning at multiples of `multiple`."""
        per_token = sum(site.width for site in self.sites) * self.dtype.itemsize
        step = max(1, PIECE_BYTES // (per_token * multiple)) * multiple
        for first in range(0, len(self.document_ids), step):
            yield first, min(first + step, len(self.document_ids))


class _Export:
    """What is exported, and where to."""

    def __init__(self, store: ActivationStore, folder: Path, kind: str, sites: tuple[Site, ...], dtype: torch.dtype) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"folder must be a new one, {folder} is there already; choose another or remove it (export)")
        self.store, self.folder, self.sites, self.dtype = store, folder, sites, dtype
        self.record = {"format": kind, "dtype": str(dtype).removeprefix("torch."), "sites": [to_json(site) for site in sites]}
        self.record |= {"store": store.digest, "context": store.context, "n_rows": store.n_rows, "n_shards": len(store.manifest.shards)}
        self.record |= {
            "model": to_json(store.manifest.model),
            "corpus": to_json(store.manifest.corpus),
            "mask": to_json(store.manifest.mask),
        }
        self.digest = digest(self.record)
        self.place = folder.parent / f"{TEMPORARY_PREFIX}{self.digest[:12]}-{folder.name}"
        """Where it is written until it is whole; the same for every attempt at the same export."""

    def run(
        self, name: Callable[[int], str], write: Callable[[_Shard, Path], None], finish: Callable[[Path], None] | None = None
    ) -> Iterator[ExportProgress]:
        """One file per shard."""
        done = 0
        for index, shard in enumerate(self.shards()):
            file = self.place / name(index)
            if not file.exists():
                with atomic_path(file) as temporary:
                    write(shard, temporary)
            done += len(shard.document_ids)
            yield ExportProgress(done, self.store.n_tokens)
        self._finish(finish)

    def run_by_tensor(self) -> Iterator[ExportProgress]:
        """One file per site, and the ids."""
        store, kind, done = self.store, self.record["format"], 0
        ids = (store.n_rows, store.context)
        tensors: list[tuple[str, str, torch.dtype, tuple[int, ...]]] = [
            (s.name, "acts", self.dtype, (store.n_tokens, s.width)) for s in self.sites
        ]
        tensors += [("tokens", "tokens", torch.int32, ids)] if store.has_tokens else []
        tensors += [("document_ids", "document_ids", torch.int32, ids)]
        for name, key, dtype, shape in tensors:
            file = self.place / f"{name}.{kind}"
            if file.exists():
                done += store.n_tokens
                yield ExportProgress(done, store.n_tokens * len(tensors))
                continue
            with atomic_path(file) as temporary, open(temporary, "xb") as out:
                _write_header(out, kind, key, dtype, shape)
                for shard in self.shards():
                    for first, stop in shard.ranges():
                        whole = {"tokens": shard.tokens, "document_ids": shard.document_ids}.get(key)
                        block = shard.acts(store.site(name), first, stop) if key == "acts" else whole[first:stop]
                        out.write(tensor_bytes(block))
                        done += stop - first
                        yield ExportProgress(done, store.n_tokens * len(tensors))
        self._finish(None)

    def shards(self) -> Iterator[_Shard]:
        """The shards of the store in order."""
        store, first_row = self.store, 0
        pieces = [site_pieces(store.path, store.manifest, site) for site in self.sites]
        thresholds = [store.manifest.statistics[site.name].threshold for site in self.sites]
        for index, found in enumerate(zip(*pieces, strict=True)):
            stored = map_tensors(shard_folder(store.path, store.manifest, index) / TOKENS_FILE)
            n_rows = store.manifest.shard_rows[index]
            runs = Runs(stored["document_starts"], stored["document_ids"])
            keeps = [kept(piece, threshold) for piece, threshold in zip(found, thresholds, strict=True)]
            yield _Shard(
                tokens=stored["tokens"].flatten().to(torch.int32) if store.has_tokens else None,
                document_ids=expanded(runs, n_rows * store.context),
                sites=dict(zip(self.sites, zip(found, keeps, strict=True), strict=True)),
                dtype=self.dtype,
                first_row=first_row,
                context=store.context,
            )
            first_row += n_rows

    def _finish(self, finish: Callable[[Path], None] | None) -> None:
        for leftover in self.place.glob(f"{TEMPORARY_PREFIX}*"):  # of attempts that were killed
            leftover.unlink()
        if finish is not None:
            finish(self.place)
        write_json(self.place / RECORD, self.record)
        try:
            os.replace(self.place, self.folder)
        except OSError as error:
            raise ConfigError(f"folder must be a new one, {self.folder} was made by another process in the meantime: {error}") from error


def _sites(store: ActivationStore, sites: Sequence[str] | None) -> tuple[Site, ...]:
    if isinstance(sites, str) or (sites is not None and not sites):
        raise ConfigError(f"sites must be several names, or None for all of {', '.join(store.site_names)}, got {sites!r} (export)")
    return tuple(store.site(name) for name in sites or store.site_names)


def _dtype(store: ActivationStore, dtype: str | None) -> torch.dtype:
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"dtype must be 'float16', 'float32' or None, got {dtype!r} (export)")
    wanted = dtype or ("float16" if store.dtype == torch.float16 else "float32")
    return torch.float16 if wanted == "float16" else torch.float32


def _token_table(shard: _Shard, first: int, stop: int) -> "pyarrow.Table":
    import pyarrow

    index = np.arange(first, stop)
    columns: dict[str, Any] = {} if shard.tokens is None else {"token": shard.tokens[first:stop].numpy()}
    columns |= {"document": shard.document_ids[first:stop].numpy(), "row": shard.first_row + index // shard.context}
    columns["position"] = (index % shard.context).astype(np.int32)
    for site, (_, keep) in shard.sites.items():
        columns[f"{site.name}.usable"] = keep[first:stop].numpy()
        values = pyarrow.array(shard.acts(site, first, stop).numpy().reshape(-1))
        columns[site.name] = pyarrow.FixedSizeListArray.from_arrays(values, site.width)
    return pyarrow.table(columns)


def _features(export: _Export) -> Any:
    from datasets import Array2D, Features, Sequence, Value

    store, dtype = export.store, str(export.dtype).removeprefix("torch.")
    columns: dict[str, Any] = {site.name: Array2D(shape=(store.context, site.width), dtype=dtype) for site in export.sites}
    names = ["token_ids", "document_ids"] if store.has_tokens else ["document_ids"]
    return Features({**columns, **{name: Sequence(Value("int32"), length=store.context) for name in names}})


def _row_table(shard: _Shard, features: Any, first: int, stop: int) -> "pyarrow.Table":
    import pyarrow

    def lists(values: Any, length: int) -> Any:
        return pyarrow.ListArray.from_arrays(np.arange(0, len(values) + 1, length, dtype=np.int32), values)

    schema, columns = features.arrow_schema, []
    for name in schema.names:
        if name in ("token_ids", "document_ids"):
            ids = shard.document_ids if name == "document_ids" or shard.tokens is None else shard.tokens
            values = pyarrow.array(ids[first:stop].numpy())
            columns.append(pyarrow.FixedSizeListArray.from_arrays(values, shard.context).cast(schema.field(name).type))
        else:
            [site] = [site for site in shard.sites if site.name == name]
            cells = lists(lists(pyarrow.array(shard.acts(site, first, stop).numpy().reshape(-1)), site.width), shard.context)
            columns.append(pyarrow.ExtensionArray.from_storage(schema.field(name).type, cells))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _write_header(out: Any, kind: str, key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """What comes before the bytes of the one tensor of a file."""
    if kind == "npy":
        descr = np.lib.format.dtype_to_descr(torch.empty(0, dtype=dtype).numpy().dtype)
        np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
        return
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    text = json.dumps({key: {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [0, n_bytes]}}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
