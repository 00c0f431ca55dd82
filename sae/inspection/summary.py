"""The summary bundle: what the cards need, as arrays with one row per latent.

With the token ids of the corpus and the texts of the vocabulary it serves every card; the entries themselves are only read by queries.
Passages are kept as the flat index of their peak token (`slots`: strongest, most negative, of the intervals, random, near misses), and the
latent's values within the window as (offset, value) pairs, slot by slot.

Latents are taken in blocks of some million entries, so memory does not grow with the corpus; threads share the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from sae.inspection.contexts import DUPLICATE_AFTER, DUPLICATE_BEFORE, sample_keys
from sae.inspection.corpus_facts import CorpusFacts
from sae.inspection.entries import LatentView, read_values
from sae.inspection.reader import slots
from sae.inspection.settings import HISTOGRAM_BINS, N_NEAR_MISS, N_RANDOM, NEAR_MISS_DRAWS, QUANTILES, IndexConfig
from sae.inspection.statistics import density_intervals, histogram_ranges, quantiles_of_sorted

BLOCK_ENTRIES = 2**20
"""Entries of a block, unless one latent has more."""
BLOCK_LATENTS = 512
"""Latents of a block."""


@dataclass(frozen=True)
class Block:
    """The entries of some consecutive latents."""

    first: int
    """The first latent."""
    start: Int[np.ndarray, "m_and_1"]
    """Entries of latent first + i are start[i] .. start[i + 1]."""
    tokens: Int[np.ndarray, "nnz"]
    """Flat token indices, ascending within a latent."""
    values: Float[np.ndarray, "nnz"]
    """Their values, float32."""
    ordered: Float[np.ndarray, "nnz"]
    """The values of each latent, ascending."""
    steps: Integer[np.ndarray, "nnz"] | None
    """Steps of first selection, for a matching pursuit."""

    @property
    def rows(self) -> slice:
        """The latents, as rows of the summary."""
        return slice(self.first, self.first + len(self.start) - 1)

    @staticmethod
    def of(view: LatentView, first: int, last: int) -> "Block":
        """Latents first..last-1 of a view."""
        start = view.start[first : last + 1].astype(np.int64)
        part = slice(int(start[0]), int(start[-1]))
        start -= start[0]
        values = read_values(view.values[part], view.scale)
        ordered = values.copy()
        for begin, end in zip(start[:-1].tolist(), start[1:].tolist(), strict=True):
            ordered[begin:end].sort()
        return Block(first, start, view.ids[part].astype(np.int64), values, ordered, None if view.steps is None else view.steps[part])


class SummaryBuilder:
    """Fills the summary block by block; blocks may come in any order, and from several threads."""

    def __init__(self, facts: CorpusFacts, config: IndexConfig, *, d_sae: int, n_steps: int, compiled: bool) -> None:
        self.facts, self.config, self.n_steps, self.compiled = facts, config, n_steps, compiled
        self.arrays = _empty_arrays(config, d_sae, n_steps)
        self.groups = slots(config)
        self.windows: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def add(self, block: Block) -> None:
        """Fill the rows of a block."""
        rows = {name: array[block.rows] for name, array in self.arrays.items()}
        self._values(rows, block)
        if self.compiled:
            from sae.inspection.loops import filling as way
        else:
            from sae.inspection import filling as way
        way.fill_statistics(rows, block, self.facts)
        n, a = np.diff(block.start), rows.pop("document_sums")
        rows["density_interval"][:] = density_intervals(n, a[:, 0], a[:, 1], self.facts.sizes)
        way.fill_passages(rows, self.groups, block, self.facts, self.config)
        self.windows[block.first] = way.windows(rows["slots"], block, self.facts, self.config.before, self.config.after)

    def _values(self, rows: dict[str, np.ndarray], block: Block) -> None:
        """What follows from the ordered values alone."""
        n, alive = np.diff(block.start), np.diff(block.start) > 0
        rows["n_active"][:] = n
        rows["min"][alive], rows["max"][alive] = block.ordered[block.start[:-1][alive]], block.ordered[block.start[1:][alive] - 1]
        rows["quantiles"][:] = quantiles_of_sorted(block.ordered, block.start, QUANTILES)
        rows["histogram_range"][:] = histogram_ranges(rows["min"], rows["max"])
        tops, m = np.maximum(rows["max"].astype(np.float64), 0), self.config.n_intervals
        edges = tops[:, None] * np.arange(m + 1) / m
        edges[:, -1] = tops
        rows["interval_range"][:] = np.stack([edges[:, :-1], edges[:, 1:]], axis=2)[:, ::-1]

    def finish(self) -> dict[str, np.ndarray]:
        """All arrays, once every block has been added."""
        counts, offsets, inside = ([self.windows[first][i] for first in sorted(self.windows)] for i in range(3))
        self.arrays.pop("document_sums")
        return self.arrays | {
            "window_start": np.r_[0, np.cumsum(np.concatenate([c.reshape(-1) for c in counts] or [np.zeros(0, np.int64)]))].astype(
                np.int64
            ),
            "window_offsets": np.concatenate(offsets or [np.zeros(0)]).astype(np.uint16),
            "window_values": np.concatenate(inside or [np.zeros(0)]).astype(np.float32),
            "occurrences": self.facts.occurrences.astype(np.int64),
        }


def block_bounds(start: Int[np.ndarray, "d_sae_and_1"]) -> Iterator[tuple[int, int]]:
    """(first, last) of blocks that cover all latents."""
    first, d_sae = 0, len(start) - 1
    while first < d_sae:
        last = int(np.searchsorted(start, int(start[first]) + BLOCK_ENTRIES, side="right")) - 1
        last = min(max(last, first + 1), first + BLOCK_LATENTS, d_sae)
        yield first, last
        first = last


def keys_of(block: Block, seed: int) -> dict[str, np.ndarray]:
    """Keys of the draws of each latent, by stream."""
    latents = np.arange(block.rows.start, block.rows.stop)
    return {stream: sample_keys(seed, latents, stream) for stream in ("intervals", "random", "near_miss")}


def _empty_arrays(config: IndexConfig, n: int, n_steps: int) -> dict[str, np.ndarray]:
    zeros = {"n_active": np.int64, "n_documents": np.int64, "max": np.float32, "min": np.float32}
    arrays = {name: np.zeros(n, dtype) for name, dtype in zeros.items()}
    arrays |= {name: np.zeros(n) for name in ("mean", "mean_square", "token_bits", "next_bits")}
    arrays |= {name: np.zeros((n, 2)) for name in ("density_interval", "histogram_range", "document_sums")}
    return arrays | {
        "quantiles": np.zeros((n, len(QUANTILES))),
        "histogram": np.zeros((n, HISTOGRAM_BINS), np.int64),
        "slots": np.full((n, slots(config)["near_miss"].stop), -1, np.int64),
        "interval_range": np.zeros((n, config.n_intervals, 2)),
        "interval_active": np.zeros((n, config.n_intervals), np.int64),
        "driving_ids": np.full((n, config.n_driving), -1, np.int64),
        "driving_active": np.zeros((n, config.n_driving), np.int64),
        "driving_mass": np.zeros((n, config.n_driving)),
        "driving_share": np.zeros((n, config.n_driving)),
        "steps": np.zeros((n, n_steps), np.int64),
    }


N_DRAWS, N_KEPT = NEAR_MISS_DRAWS, {"random": N_RANDOM, "near_miss": N_NEAR_MISS}
SAME = (DUPLICATE_BEFORE, DUPLICATE_AFTER)
