"""The non-zero values of a dictionary over a store, kept twice: by token (CSR) and by latent (CSC).

    by_token/   start [n_tokens + 1], latent [nnz], value [nnz], step [nnz]    entries of token t are start[t] .. start[t + 1], as encoded
    by_latent/  start [d_sae + 1],    token  [nnz], value [nnz], step [nnz]    entries of latent i, tokens ascending

`step` is there for matching pursuits only: the step (from 0) at which the latent was first selected. Every array is one raw little-endian
`.npy` file read by memory mapping. The second view is made from the first by a counting scatter: counts per latent give every latent its
place, then one pass moves the entries, chunk by chunk, so memory is O(chunk + d_sae).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError, FormatError

CHUNK = 2**21
"""Entries moved at once by the scatter."""
FLOAT16_MAX, FLOAT16_TINY = 65504.0, 2.0**-24


class Entries(NamedTuple):
    """Non-zero values: of one latent (`ids` are flat token indices) or of one token (`ids` are latents)."""

    ids: Integer[np.ndarray, "n"]
    """Flat token indices, ascending; or latent ids in the order of encoding."""
    values: Float[np.ndarray, "n"]
    """The values, float32."""
    steps: Integer[np.ndarray, "n"] | None
    """Step of first selection from 0, for a matching pursuit."""


class FlatCodes(NamedTuple):
    """A batch of codes without padding."""

    rows: Integer[np.ndarray, "nnz"]
    """Row of the batch, ascending."""
    latents: Integer[np.ndarray, "nnz"]
    """Latent ids."""
    values: Float[np.ndarray, "nnz"]
    """Values, none of them zero."""
    steps: Integer[np.ndarray, "nnz"]
    """Place within the row: for a pursuit the step of first selection."""


def flatten(codes: SparseCodes, *, repeated: bool) -> FlatCodes:
    """The codes' entries row by row in their order. With `repeated`, a latent that stands twice in a row (a pursuit may select it again)
    is one entry: its values added, at the step of its first selection. Entries that are zero are dropped."""
    indices, values = codes.indices.cpu().numpy(), codes.values.detach().float().cpu().numpy()
    rows, steps = np.nonzero(np.arange(indices.shape[1]) < codes.counts.cpu().numpy()[:, None])
    latents, values = indices[rows, steps].astype(np.int64), values[rows, steps]
    if repeated and len(latents):
        _, first, inverse = np.unique(rows * codes.d_sae + latents, return_index=True, return_inverse=True)
        if len(first) < len(latents):
            total = np.bincount(inverse, weights=values).astype(np.float32)
            order = np.argsort(first)
            first, values = first[order], total[order]
            rows, latents, steps = rows[first], latents[first], steps[first]
    kept = values != 0
    return FlatCodes(rows[kept], latents[kept], values[kept], steps[kept])


class Column:
    """A one-dimensional `.npy` file that grows; its header is completed by `close`."""

    def __init__(self, path: Path, dtype: np.dtype | type | str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.length = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "wb")  # noqa: SIM115  closed by `close`
        self._header()

    def _header(self) -> None:
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, description)  # numpy pads it, so that a longer length fits later

    def append(self, values: Shaped[np.ndarray, "n"]) -> None:
        """Add values at the end."""
        self.file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Write the final length into the header."""
        self._header()
        self.file.close()


def stored_values(values: Float[np.ndarray, "n"], dtype: str, where: str) -> Float[np.ndarray, "n"]:
    """The values as they will be read back. float16 keeps the sign and non-zeroness of tiny values; ConfigError when one is too large for
    it."""
    if not np.isfinite(values).all():
        raise FormatError(f"the dictionary gave a value that is not finite ({where}): {values[~np.isfinite(values)][0]}")
    if dtype == "float32":
        return values.astype(np.float32)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise ConfigError(f"value_dtype 'float16' holds at most {FLOAT16_MAX:.0f}, but a value is {largest:g} ({where}); use 'float32'")
    tiny = np.abs(values) < FLOAT16_TINY
    return np.where(tiny, np.copysign(FLOAT16_TINY, values), values).astype(np.float16)


class TokenMajorWriter:
    """Writes `by_token/` batch by batch, and counts entries per latent on the way; a context manager, the files are complete after it."""

    def __init__(self, folder: Path, *, d_sae: int, n_tokens: int, value_dtype: str, pursuit: bool) -> None:
        self.value_dtype = value_dtype
        self.columns = {
            "latent": Column(folder / "latent.npy", np.uint16 if d_sae <= 2**16 else np.int32),
            "value": Column(folder / "value.npy", value_dtype),
        } | ({"step": Column(folder / "step.npy", np.uint16)} if pursuit else {})
        self.start = folder / "start.npy"
        self.per_token = np.zeros(n_tokens, np.int64)
        self.per_latent = np.zeros(d_sae, np.int64)

    def append(self, tokens: Integer[np.ndarray, "batch"], codes: FlatCodes) -> None:
        """Add the entries of a batch; `tokens` are the flat indices of its rows, above all earlier ones."""
        where = f"tokens {tokens[0]}..{tokens[-1]}"
        self.columns["latent"].append(codes.latents)
        self.columns["value"].append(stored_values(codes.values, self.value_dtype, where))
        if "step" in self.columns:
            self.columns["step"].append(codes.steps)
        self.per_token[tokens] = np.bincount(codes.rows, minlength=len(tokens))
        self.per_latent += np.bincount(codes.latents, minlength=len(self.per_latent))

    def __enter__(self) -> "TokenMajorWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for column in self.columns.values():
            column.close()
        np.save(self.start, np.r_[0, np.cumsum(self.per_token)].astype("<i8"), allow_pickle=False)


def scatter_by_latent(by_token: Path, by_latent: Path, per_latent: Integer[np.ndarray, "d_sae"]) -> None:
    """Write `by_latent/` from `by_token/`; `per_latent` are the entries of each latent."""
    by_latent.mkdir()
    token_start, latents = _mapped(by_token / "start.npy"), _mapped(by_token / "latent.npy")
    start = np.r_[0, np.cumsum(per_latent)].astype("<i8")
    np.save(by_latent / "start.npy", start, allow_pickle=False)
    token_dtype = np.dtype("<u4") if len(token_start) <= 2**32 else np.dtype("<i8")
    sources = {name: _mapped(by_token / f"{name}.npy") for name in ("value", "step") if (by_token / f"{name}.npy").exists()}
    targets = {name: _created(by_latent / f"{name}.npy", source.dtype, len(latents)) for name, source in sources.items()}
    tokens = _created(by_latent / "token.npy", token_dtype, len(latents))
    place = start[:-1].copy()
    for begin in range(0, len(latents), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        order = np.argsort(latents[chunk], kind="stable")
        ordered = np.asarray(latents[chunk])[order].astype(np.int64)
        counts = np.bincount(ordered, minlength=len(place))
        target = np.arange(len(ordered)) + np.repeat(place - np.r_[0, np.cumsum(counts)[:-1]], counts)
        flat = np.searchsorted(token_start, np.arange(begin, begin + len(ordered)), side="right") - 1
        tokens[target] = flat[order]
        for name, source in sources.items():
            targets[name][target] = np.asarray(source[chunk])[order]
        place += counts
    for array in (tokens, *targets.values()):
        array.flush()


def _created(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))


def _mapped(path: Path) -> np.ndarray:
    """A `.npy` file by memory mapping; FormatError names the file when it cannot be read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FormatError(f"{path} does not exist") from error
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


class EntryView:
    """One of the two views, for reading: `view[i]` gives the entries of row i (a token, or a latent)."""

    def __init__(self, folder: Path, ids: str) -> None:
        self.start = _mapped(folder / "start.npy")
        self.ids, self.values = _mapped(folder / f"{ids}.npy"), _mapped(folder / "value.npy")
        self.steps = _mapped(folder / "step.npy") if (folder / "step.npy").exists() else None

    def __getitem__(self, row: int) -> Entries:
        part = slice(int(self.start[row]), int(self.start[row + 1]))
        steps = None if self.steps is None else np.asarray(self.steps[part])
        return Entries(np.asarray(self.ids[part]).astype(np.int64), np.asarray(self.values[part]).astype(np.float32), steps)

    def ids_of(self, rows: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "nnz"]:
        """The ids of all entries of these rows, one row after the other."""
        begin, end = np.asarray(self.start[rows]), np.asarray(self.start[rows + 1])
        shift = np.repeat(begin - np.r_[0, np.cumsum(end - begin)[:-1]], end - begin)
        return np.asarray(self.ids[np.arange(len(shift)) + shift]).astype(np.int64)
