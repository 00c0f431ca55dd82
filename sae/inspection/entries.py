"""The non-zero values of a dictionary over a store, kept twice: by token (CSR, in segments) and by latent (CSC).

    by_token/00000.safetensors      start [n + 1], latent [nnz], value [nnz], step [nnz]     entries of token t are start[t] .. start[t + 1]
    by_latent/entries.safetensors   start [d_sae + 1], token [nnz], value [nnz], step [nnz]  entries of latent i, tokens ascending

A segment covers whole rows of the store and never changes; the order within a token is the encoder's. `step` is there for matching pursuits
only: the step (from 0) at which the latent was first selected; a segment in which it is everywhere the place within the token leaves it out.
`value` is float16 or float32 and is multiplied by the scale that the manifest states, a power of two: 1 where the largest |value| lies in
1..30,000, so that neither overflow nor underflow touches a value that matters. Everything here is read by memory mapping, without torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped

from sae.errors import FormatError
from sae.inspection.manifest import IndexManifest, SegmentRecord
from sae.storage import map_arrays

BY_LATENT = "by_latent/entries.safetensors"
FLOAT16_TINY = 2.0**-24
UNSCALED = (1.0, 3e4)
"""Largest |value| that needs no scale."""
SCALED_MAX = 2.0**14
"""Largest |value| / scale where there is a scale; half of it at least."""


class Entries(NamedTuple):
    """Non-zero values: of one latent (`ids` are flat token indices) or of one token (`ids` are latents)."""

    ids: Integer[np.ndarray, "n"]
    """Flat token indices, ascending; or latent ids in the order of encoding."""
    values: Float[np.ndarray, "n"]
    """The values, float32."""
    steps: Integer[np.ndarray, "n"] | None
    """Step of first selection from 0, for a matching pursuit."""


class TokenEntries(NamedTuple):
    """The entries of several tokens, one token after the other."""

    start: Integer[np.ndarray, "n_tokens_and_1"]
    """Entries of the i-th token asked for are start[i] .. start[i + 1]."""
    latents: Integer[np.ndarray, "nnz"]
    """Latent ids in the order of encoding."""
    values: Float[np.ndarray, "nnz"]
    """The values, float32."""
    steps: Integer[np.ndarray, "nnz"] | None
    """Step of first selection from 0, for a matching pursuit."""


def segment_name(number: int) -> str:
    """Name of a segment within the folder of an index."""
    return f"by_token/{number:05d}.safetensors"


def latent_dtype(d_sae: int) -> np.dtype:
    """The narrowest id of a latent."""
    return np.dtype("<u2") if d_sae <= 2**16 else np.dtype("<u4")


def token_dtype(n_tokens: int) -> np.dtype:
    """The narrowest id of a token, of at least 32 bits."""
    return np.dtype("<u4") if n_tokens <= 2**32 else np.dtype("<u8")


def value_scale(largest: float, dtype: str) -> float:
    """The power of two that values of a largest magnitude `largest` are divided by when stored."""
    if dtype == "float32" or largest == 0 or UNSCALED[0] <= largest <= UNSCALED[1]:
        return 1.0
    return float(2.0 ** np.ceil(np.log2(largest / SCALED_MAX)))


def stored_values(values: Float[np.ndarray, "n"], dtype: str, scale: float) -> Float[np.ndarray, "n"]:
    """The values as they are stored. float16 keeps the sign and non-zeroness of values that are too small for it."""
    if dtype == "float32":
        return values.astype("<f4")
    scaled = values.astype(np.float32) / np.float32(scale)
    stored = scaled.astype("<f2")
    lost = (stored == 0) & (values != 0)
    if lost.any():
        stored[lost] = np.copysign(np.float16(FLOAT16_TINY), scaled[lost])
    return stored


def read_values(stored: Float[np.ndarray, "n"], scale: float) -> Float[np.ndarray, "n"]:
    """float32 values of stored ones."""
    values = stored.astype(np.float32)
    return values if scale == 1.0 else values * np.float32(scale)


def checked_arrays(path: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a file, each of the dtypes (`u2|u4`) and the shape that is expected of its name; FormatError names what is not."""
    arrays = map_arrays(path)
    for name, (dtypes, shape) in expected.items():
        if name not in arrays:
            if name in optional:
                continue
            raise FormatError(f"{path} has no {name!r}; the index is damaged, build it again")
        found = arrays[name]
        if found.dtype.str.lstrip("<|=") not in dtypes.split("|") or found.shape != shape:
            raise FormatError(f"{path}: {name!r} must be {dtypes} of shape {list(shape)}, got {found.dtype.str} of {list(found.shape)}")
    return arrays


class LatentView:
    """The view by latent, for reading."""

    def __init__(self, folder: Path, manifest: IndexManifest) -> None:
        path, n = folder / BY_LATENT, manifest.n_entries
        value = {"float16": "f2", "float32": "f4"}[manifest.config.value_dtype]
        expected = {
            "start": ("i8", (manifest.source.d_sae + 1,)),
            "token": ("u4|u8", (n,)),
            "value": (value, (n,)),
            "step": ("u1|u2", (n,)),
        }
        arrays = checked_arrays(path, expected, optional=() if manifest.n_steps else ("step",))
        self.scale, self.start = manifest.value_scale, arrays["start"]
        self.ids, self.values, self.steps = arrays["token"], arrays["value"], arrays.get("step")
        _require_places(path, self.start, n)

    def __getitem__(self, latent: int) -> Entries:
        part = slice(int(self.start[latent]), int(self.start[latent + 1]))
        steps = None if self.steps is None else self.steps[part].astype(np.int64)
        return Entries(self.ids[part].astype(np.int64), read_values(self.values[part], self.scale), steps)


class Segment:
    """One piece of the view by token, for reading; `step` is worked out where it is not stored."""

    def __init__(self, path: Path, record: SegmentRecord, value_dtype: str, *, pursuit: bool) -> None:
        n = record.n_entries
        value = {"float16": "f2", "float32": "f4"}[value_dtype]
        expected = {
            "start": ("u4|i8", (record.n_tokens + 1,)), "latent": ("u2|u4", (n,)), "value": (value, (n,)), "step": ("u1|u2", (n,)),
        }  # fmt: skip
        arrays = checked_arrays(path, expected, optional=("step",))
        self.record, self.pursuit = record, pursuit
        self.start, self.latents, self.values, self.steps = arrays["start"], arrays["latent"], arrays["value"], arrays.get("step")
        _require_places(path, self.start, n)

    def at(self, tokens: Integer[np.ndarray, "n"]) -> TokenEntries:
        """The entries of tokens of this segment, given by their flat indices."""
        local = np.asarray(tokens, np.int64) - self.record.first_token
        begin, end = self.start[local].astype(np.int64), self.start[local + 1].astype(np.int64)
        counts = end - begin
        start = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        if len(local) and (counts[:-1] + begin[:-1] == begin[1:]).all():  # consecutive tokens: no gather
            places: slice | np.ndarray = slice(int(begin[0]), int(end[-1]))
        else:
            places = np.arange(start[-1]) + np.repeat(begin - start[:-1], counts)
        steps = None
        if self.pursuit:
            steps = np.arange(start[-1]) - np.repeat(start[:-1], counts) if self.steps is None else self.steps[places].astype(np.int64)
        return TokenEntries(start, self.latents[places].astype(np.int64), read_values(self.values[places], self.record.scale), steps)


def _require_places(path: Path, start: Integer[np.ndarray, "n"], n_entries: int) -> None:
    if int(start[0]) != 0 or int(start[-1]) != n_entries:
        raise FormatError(f"{path}: 'start' must run from 0 to {n_entries}, got {int(start[0])}..{int(start[-1])}; build the index again")


class TokenView:
    """The view by token: all segments, each mapped when it is first needed."""

    def __init__(self, folder: Path, manifest: IndexManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.first = np.array([record.first_token for record in manifest.segments], np.int64)
        self._open: dict[int, Segment] = {}

    def segment(self, number: int) -> Segment:
        """The segment of this number. Raises FormatError when its file is damaged."""
        if number not in self._open:
            record, pursuit = self.manifest.segments[number], self.manifest.source.kind == "coefficient"
            self._open[number] = Segment(self.folder / segment_name(number), record, self.manifest.config.value_dtype, pursuit=pursuit)
        return self._open[number]

    def at(self, tokens: Integer[np.ndarray, "n"]) -> TokenEntries:
        """The entries of the tokens with these flat indices, in the order asked for."""
        tokens = np.asarray(tokens, np.int64)
        if not len(tokens):
            return TokenEntries(np.zeros(1, np.int64), tokens, np.zeros(0, np.float32), tokens if self._pursuit else None)
        numbers = np.searchsorted(self.first, tokens, side="right") - 1
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        parts = [self.segment(int(numbers[run[0]])).at(tokens[run]) for run in np.split(np.arange(len(tokens)), cuts)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    @property
    def _pursuit(self) -> bool:
        return self.manifest.source.kind == "coefficient"


def _joined(parts: Sequence[TokenEntries]) -> TokenEntries:
    counts = np.concatenate([np.diff(part.start) for part in parts])
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    steps = None if parts[0].steps is None else np.concatenate([part.steps for part in parts if part.steps is not None])
    return TokenEntries(start, np.concatenate([p.latents for p in parts]), np.concatenate([p.values for p in parts]), steps)


def unique_runs(values: Shaped[np.ndarray, "n"]) -> Integer[np.ndarray, "m"]:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
