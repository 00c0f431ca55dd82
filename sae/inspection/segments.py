"""The two views of an index as they are written: segments in the order of tokens, reused where they can be, then the view by latent.

A segment says in its metadata what it was made from: the key (dictionary, site, settings), a checksum of its token ids, documents and mask,
and one of the activations (or the name of the codes). A segment that says the same as would be written is taken as it is, whether an
interrupted build left it or an earlier index of a smaller store holds it.

The view by latent is made from the segments by a counting scatter: entries per latent give every latent its place, then one pass moves the
entries, segment by segment, so memory is O(d_sae + segment).
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import xxhash
from jaxtyping import Int, Integer

from sae.dictionaries.codes import SparseCodes
from sae.errors import FormatError
from sae.inspection import loops
from sae.inspection.contexts import TokenTable
from sae.inspection.entries import BY_LATENT, Segment, segment_name, token_dtype
from sae.inspection.manifest import SegmentRecord
from sae.inspection.packing import SegmentWriter, pack
from sae.storage import atomic_path, create_arrays, read_header

CHUNK = 2**21
"""Entries moved at once by the scatter without compiled loops."""
RANGES_PER_THREAD = 2


@runtime_checkable
class CodeSource(Protocol):
    """Where the codes of an index come from, token after token."""

    def encode(self, tokens: Integer[np.ndarray, "n"]) -> Iterator[SparseCodes]:
        """The codes of these tokens, the next ones in order, in pieces."""
        ...

    def skip(self, tokens: Integer[np.ndarray, "n"]) -> None:
        """Pass over tokens whose codes are on disk already."""
        ...

    def finish(self) -> None:
        """Called when all tokens have been taken; raises ConfigError when something is left over."""
        ...

    def encoded_digest(self) -> str:
        """Names the input of the tokens that were encoded last."""
        ...

    def digest_of(self, tokens: Integer[np.ndarray, "n"]) -> str:
        """Names the input of these tokens, without encoding them."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """How the tokens of a corpus are cut into segments, and what decides their contents."""

    table: TokenTable
    """The corpus."""
    used: np.ndarray
    """Tokens that are looked at."""
    rows_per_segment: int
    """Rows of a segment."""
    d_sae: int
    """Latents."""
    value_dtype: str
    """Stored precision of the values."""
    pursuit: bool
    """Whether codes come in the order of selection."""
    key: str
    """Digest of what decides the codes besides the tokens' own input."""

    def bounds(self) -> list[tuple[int, int]]:
        """(first token, tokens) of every segment; one empty segment for an empty corpus."""
        context, n_rows = self.table.context, len(self.table.ids)
        rows = range(0, max(n_rows, 1), self.rows_per_segment)
        return [(row * context, (min(row + self.rows_per_segment, n_rows) - row) * context) for row in rows]

    def tokens_of(self, first: int, n: int) -> Int[np.ndarray, "m"]:
        """Flat indices of the used tokens of a segment."""
        return first + np.flatnonzero(self.used[first : first + n])

    def metadata(self, first: int, n: int) -> dict[str, str]:
        """What a segment says of itself, but for the input of its tokens."""
        state = xxhash.xxh3_128()
        for array in (self.table.ids.reshape(-1), self.table.documents.reshape(-1), self.used):
            state.update(np.ascontiguousarray(array[first : first + n]).data)
        return {"key": self.key, "tokens": state.hexdigest(), "first": str(first), "count": str(n)}


def write_segments(
    plan: SegmentPlan, source: CodeSource, folder: Path, earlier: Sequence[Path], *, trusted: bool
) -> Iterator[tuple[int, SegmentRecord | None]]:
    """Write all segments into `folder`; yields (tokens done, None) as it goes and (tokens done, record) after each segment.

    Those in `folder` that fit are kept: after a look at the input of their tokens, or without it where they are `trusted`. So are those of
    the folders `earlier`, which are linked or copied.
    """
    done = 0
    for number, (first, n) in enumerate(plan.bounds()):
        path, tokens, wanted = folder / segment_name(number), plan.tokens_of(first, n), plan.metadata(first, n)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = _found(plan, source, path, [path, *(other / segment_name(number) for other in earlier)], wanted, tokens, trusted)
        if record is not None:
            source.skip(tokens)
            done += len(tokens)
            yield done, record
            continue
        writer, taken = SegmentWriter((first, n), d_sae=plan.d_sae, value_dtype=plan.value_dtype, pursuit=plan.pursuit), 0
        for codes in source.encode(tokens):
            batch = tokens[taken : taken + len(codes)]
            writer.append(batch, pack(codes, where=f"tokens {batch[0]}..{batch[-1]}"))
            taken, done = taken + len(codes), done + len(codes)
            yield done, None
        yield done, writer.write(path, {**wanted, "input": source.encoded_digest()})


def _found(
    plan: SegmentPlan, source: CodeSource, path: Path, places: Iterable[Path], wanted: dict[str, str], tokens: np.ndarray, trusted: bool
) -> SegmentRecord | None:
    for place in places:
        record = _fitting(plan, place, wanted)
        if record is None:
            continue
        if not (trusted and place == path) and read_header(place)[1].get("input") != source.digest_of(tokens):
            continue
        if place != path:
            path.unlink(missing_ok=True)
            _link(place, path)
        return record
    return None


def _fitting(plan: SegmentPlan, path: Path, wanted: dict[str, str]) -> SegmentRecord | None:
    """The segment at `path`, if it is whole and made from what is wanted."""
    try:
        header, metadata, _ = read_header(path)
        if any(metadata.get(name) != value for name, value in wanted.items()):
            return None
        n_entries = header["latent"]["shape"][0]
        scale, first, n = float(metadata["scale"]), int(wanted["first"]), int(wanted["count"])
        record = SegmentRecord(first_token=first, n_tokens=n, n_entries=n_entries, scale=scale)
        Segment(path, record, plan.value_dtype, pursuit=plan.pursuit)
    except (ValueError, KeyError, IndexError):  # FormatError is a ValueError
        return None
    return record


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def count_entries(plan: SegmentPlan, segments: Sequence[Segment]) -> Int[np.ndarray, "d_sae"]:
    """Entries of each latent. Raises FormatError for a latent that there is not."""
    counts = np.zeros(plan.d_sae, np.int64)
    for segment in segments:
        if len(segment.latents) and int(segment.latents.max()) >= plan.d_sae:
            raise FormatError(f"a segment names latent {int(segment.latents.max())} of d_sae={plan.d_sae}; build the index again")
        if loops.available():
            from sae.inspection.loops.packing import count_latents

            count_latents(segment.latents, counts)
        else:
            counts += np.bincount(segment.latents, minlength=plan.d_sae)
    return counts


def n_steps_of(segments: Sequence[Segment]) -> int:
    """Steps of the pursuit: one more than the last step at which anything was selected."""
    most = 0
    for segment in segments:
        if segment.steps is not None:
            most = max(most, int(segment.steps.max()) + 1 if len(segment.steps) else 0)
        elif len(segment.latents):
            most = max(most, int(np.diff(segment.start.astype(np.int64)).max()))
    return most


def write_by_latent(plan: SegmentPlan, folder: Path, records: Sequence[SegmentRecord]) -> tuple[float, int, int]:
    """Write the view by latent; returns (scale, entries, steps of the pursuit or 0)."""
    segments = [Segment(folder / segment_name(i), r, plan.value_dtype, pursuit=plan.pursuit) for i, r in enumerate(records)]
    counts = count_entries(plan, segments)
    start = np.r_[0, np.cumsum(counts)].astype("<i8")
    scale, n = max((segment.record.scale for segment in segments if segment.record.n_entries), default=1.0), int(start[-1])
    n_steps = n_steps_of(segments) if plan.pursuit else 0
    described = {
        "start": (start.dtype, start.shape),
        "token": (token_dtype(plan.table.n_tokens), (n,)),
        "value": (np.dtype({"float16": "<f2", "float32": "<f4"}[plan.value_dtype]), (n,)),
    } | ({"step": (np.dtype("u1" if n_steps <= 2**8 else "<u2"), (n,))} if plan.pursuit else {})
    with atomic_path(folder / BY_LATENT) as temporary:
        arrays = create_arrays(temporary, described)
        arrays["start"][:] = start
        move = _scatter_by_loops if loops.available() else _scatter_by_sorting
        place = start[:-1].astype(np.int64)
        for segment in segments:
            move(segment, scale, place, arrays)
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
    return scale, n, n_steps


def _rescaled(values: np.ndarray, segment: Segment, scale: float) -> np.ndarray:
    """Stored values of a segment, as they are stored at another scale."""
    if segment.record.scale == scale or values.dtype != np.float16:
        return values
    moved = (torch.from_numpy(values.astype(np.float32)) * (segment.record.scale / scale)).half().numpy()
    lost = (moved == 0) & (values != 0)
    moved[lost] = np.copysign(np.float16(2.0**-24), values[lost])
    return moved


def _scatter_by_loops(segment: Segment, scale: float, place: Int[np.ndarray, "d_sae"], arrays: dict[str, np.ndarray]) -> None:
    from sae.inspection.loops.packing import scatter

    values = _rescaled(segment.values, segment, scale)
    kind = np.uint16 if values.dtype == np.float16 else values.dtype
    steps = np.zeros(0, np.uint8) if segment.steps is None else segment.steps
    step_out = np.asarray(arrays.get("step", np.zeros(0, np.uint8)))
    out = (np.asarray(arrays["token"]), np.asarray(arrays["value"]).view(kind), step_out)
    ends = np.cumsum(np.diff(np.asarray(arrays["start"])))
    parts = loops.n_threads() * RANGES_PER_THREAD if loops.n_threads() > 1 else 1
    cuts = [0, *np.searchsorted(ends, np.arange(1, parts) * (ends[-1] / parts)).tolist(), len(place)]

    def work(number: int) -> None:
        low, high = cuts[number], max(cuts[number], cuts[number + 1])
        scatter(low, high, segment.record.first_token, segment.start, segment.latents, values.view(kind), steps, place, *out)

    loops.share(work, parts)


def _scatter_by_sorting(segment: Segment, scale: float, place: Int[np.ndarray, "d_sae"], arrays: dict[str, np.ndarray]) -> None:
    start, n = segment.start.astype(np.int64), len(segment.latents)
    for begin in range(0, n, CHUNK):
        chunk = slice(begin, min(begin + CHUNK, n))
        order = np.argsort(segment.latents[chunk], kind="stable")
        ordered = segment.latents[chunk][order].astype(np.int64)
        counts = np.bincount(ordered, minlength=len(place))
        target = np.arange(len(ordered)) + np.repeat(place - np.r_[0, np.cumsum(counts)[:-1]], counts)
        token = np.searchsorted(start, np.arange(chunk.start, chunk.stop), side="right") - 1
        arrays["token"][target] = (token + segment.record.first_token)[order]
        arrays["value"][target] = _rescaled(segment.values[chunk], segment, scale)[order]
        if "step" in arrays:
            steps = np.arange(chunk.start, chunk.stop) - start[token] if segment.steps is None else segment.steps[chunk]
            arrays["step"][target] = steps[order]
        place += counts
