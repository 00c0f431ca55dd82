"""From batches of codes to a segment on disk: padding dropped, repeats merged, values scaled to float16.

The one place that knows both `SparseCodes` and the layout of `sae.inspection.entries`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError, FormatError
from sae.inspection.entries import FLOAT16_TINY, latent_dtype, value_scale
from sae.inspection.manifest import SegmentRecord
from sae.storage import save_arrays


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


class Packed(NamedTuple):
    """A batch of codes as it is stored, but for the scale."""

    counts: Int[np.ndarray, "n"]
    """Entries of each row."""
    latents: Integer[np.ndarray, "nnz"]
    """Latent ids, narrow."""
    values: Float[np.ndarray, "nnz"]
    """Values, float32."""
    steps: Integer[np.ndarray, "nnz"] | None
    """Step of first selection; None where it is the place within the row."""


def flatten(codes: SparseCodes, *, repeated: bool = True) -> FlatCodes:
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


def pack(codes: SparseCodes, *, where: str) -> Packed:
    """The codes as they are stored. Raises FormatError for values that are not finite, ConfigError for latents out of range."""
    n, k = codes.indices.shape
    _check(codes, where)
    if k and bool((codes.counts == k).all()) and not _any_repeat(codes.indices, codes.d_sae) and bool((codes.values != 0).all()):
        latents = codes.indices.cpu().reshape(-1).numpy().astype(latent_dtype(codes.d_sae))
        return Packed(np.full(n, k, np.int64), latents, codes.values.detach().float().cpu().reshape(-1).numpy(), None)
    flat = flatten(codes)
    counts = np.bincount(flat.rows, minlength=n).astype(np.int64)
    place = np.arange(len(flat.rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    steps = None if (place == flat.steps).all() else flat.steps.astype(np.uint8 if k <= 2**8 else np.uint16)
    return Packed(counts, flat.latents.astype(latent_dtype(codes.d_sae)), flat.values.astype(np.float32), steps)


def _check(codes: SparseCodes, where: str) -> None:
    values = codes.values.detach()
    total = values.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        bad = values[~torch.isfinite(values)]
        raise FormatError(f"the codes hold a value that is not finite ({where}): {float(bad[0]) if len(bad) else float(total)}")
    if codes.indices.numel():
        low, high = (int(bound) for bound in codes.indices.aminmax())
        if low < 0 or high >= codes.d_sae:
            raise ConfigError(f"codes must name latents in 0..d_sae-1={codes.d_sae - 1}, got {low if low < 0 else high} ({where})")


def _any_repeat(indices: torch.Tensor, d_sae: int) -> bool:
    if indices.shape[1] < 2:
        return False
    from sae.inspection.loops import available

    if available():
        from sae.inspection.loops.packing import any_repeat

        return bool(any_repeat(indices.cpu().numpy(), np.full(d_sae, -1, np.int64)))
    ordered = indices.sort(dim=1).values
    return bool((ordered[:, 1:] == ordered[:, :-1]).any())


class SegmentWriter:
    """Collects the batches of one segment and writes it; memory is that of one segment."""

    def __init__(self, bounds: tuple[int, int], *, d_sae: int, value_dtype: str, pursuit: bool) -> None:
        self.first_token, self.n_tokens = bounds
        self.d_sae, self.value_dtype, self.pursuit = d_sae, value_dtype, pursuit
        self.per_token = np.zeros(self.n_tokens, np.int64)
        self.parts: list[Packed] = []

    def append(self, tokens: Integer[np.ndarray, "n"], packed: Packed) -> None:
        """Add the codes of these tokens, given by their flat indices, above all earlier ones."""
        self.per_token[np.asarray(tokens) - self.first_token] = packed.counts
        self.parts.append(packed)

    def write(self, path: Path, metadata: Mapping[str, str]) -> SegmentRecord:
        """Write the segment, atomically. The same codes give the same bytes, however they were cut into batches."""
        values = _joined([part.values for part in self.parts], np.dtype(np.float32))
        scale = value_scale(float(np.abs(values).max(initial=0.0)), self.value_dtype)
        start = np.zeros(self.n_tokens + 1, np.int64)
        np.cumsum(self.per_token, out=start[1:])
        arrays = {
            "start": start.astype("<u4") if start[-1] < 2**32 else start,
            "latent": _joined([part.latents for part in self.parts], latent_dtype(self.d_sae)),
            "value": _narrow(values, self.value_dtype, scale),
        }
        if self.pursuit and any(part.steps is not None for part in self.parts):
            steps = _joined(list(self._steps()), np.dtype(np.uint8))
            arrays["step"] = steps.astype("<u2" if steps.max(initial=0) >= 2**8 else "u1")
        save_arrays(path, arrays, {**metadata, "scale": repr(scale)})
        return SegmentRecord(first_token=self.first_token, n_tokens=self.n_tokens, n_entries=int(start[-1]), scale=scale)

    def _steps(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            if part.steps is not None:
                yield part.steps
            else:
                place = np.arange(len(part.latents)) - np.repeat(np.cumsum(part.counts) - part.counts, part.counts)
                yield place.astype(np.uint8 if not len(place) or place.max() < 2**8 else np.uint16)


def _joined(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _narrow(values: Float[np.ndarray, "n"], dtype: str, scale: float) -> np.ndarray:
    """`stored_values`, by torch, which converts many times faster."""
    if dtype == "float32":
        return values.astype("<f4", copy=False)
    scaled = torch.from_numpy(values) / scale if scale != 1.0 else torch.from_numpy(values)
    stored = scaled.half()
    lost = stored == 0
    if bool(lost.any()):
        stored[lost] = torch.copysign(torch.tensor(FLOAT16_TINY, dtype=torch.float16), scaled[lost]).half()
    return stored.numpy()


class CodesInTurn:
    """Rows of codes taken from batches of any size, in order."""

    def __init__(self, batches: Iterable[SparseCodes], d_sae: int) -> None:
        self.batches, self.d_sae = iter(batches), d_sae
        self.current: SparseCodes | None = None
        self.place = self.n_taken = 0

    def take(self, n: int) -> Iterator[SparseCodes]:
        """The next `n` rows, in pieces. Raises ConfigError when there are not so many, or a batch is over another number of latents."""
        while n:
            if self.current is None or self.place == len(self.current):
                self.current, self.place = next(self.batches, None), 0
                if self.current is None:
                    raise ConfigError(
                        f"codes must have a row for every token that is used, but ended after {self.n_taken} (build_index_from_codes)"
                    )
                if self.current.d_sae != self.d_sae:
                    raise ConfigError(f"codes must be over d_sae={self.d_sae} latents, got {self.current.d_sae} (build_index_from_codes)")
            count = min(n, len(self.current) - self.place)
            piece = self.current[self.place : self.place + count]
            self.place, self.n_taken, n = self.place + count, self.n_taken + count, n - count
            if count:
                yield piece

    def finish(self) -> None:
        """Raises ConfigError when rows are left over."""
        left = 0 if self.current is None else len(self.current) - self.place
        if left or any(len(batch) for batch in self.batches):
            raise ConfigError(f"codes must have a row for every token that is used, {self.n_taken}, got more (build_index_from_codes)")
