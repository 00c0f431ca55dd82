"""The rows of the summary by compiled loops; `sae.inspection.filling` is the plain form."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from sae.inspection.corpus_facts import CorpusFacts
from sae.inspection.loops import passages, summary
from sae.inspection.settings import NEAR_MISS_DRAWS, IndexConfig
from sae.inspection.summary import SAME, Block, keys_of


def fill_statistics(rows: Mapping[str, np.ndarray], block: Block, facts: CorpusFacts) -> None:
    """Moments, histogram, documents, bits, driving tokens and steps."""
    start, tokens, values = block.start, block.tokens, block.values
    low, high = rows["histogram_range"].T
    edges = np.linspace(low, high, rows["histogram"].shape[1] + 1, axis=-1)
    summary.fill_histograms(start, block.ordered, np.ascontiguousarray(edges), rows["histogram"])
    summary.fill_moments(start, values, rows["mean"], rows["mean_square"])
    summary.fill_documents(start, tokens, facts.rank, facts.sizes, rows["n_documents"], rows["document_sums"])
    summary.fill_bits(start, tokens, facts.ids, facts.rank, facts.base, rows["token_bits"])
    summary.fill_bits(start, tokens, facts.following, facts.rank, facts.following_base, rows["next_bits"])
    driving = (rows[f"driving_{name}"] for name in ("ids", "active", "mass", "share"))
    summary.fill_driving(start, tokens, values, facts.ids, len(facts.base), *driving)
    if block.steps is not None:
        summary.fill_steps(start, np.ascontiguousarray(block.steps), rows["steps"])


def fill_passages(
    rows: Mapping[str, np.ndarray], groups: Mapping[str, slice], block: Block, facts: CorpusFacts, config: IndexConfig
) -> None:
    """The passages of every group."""
    start, tokens, values, slots, keys = block.start, block.tokens, block.values, rows["slots"], keys_of(block, config.seed)
    corpus = (facts.ids, facts.rank, *facts.run_bounds, len(facts.sizes), *SAME)
    for name, sign in (("top", 1), ("bottom", -1)):
        passages.choose_strongest(start, tokens, values, block.ordered, sign, *corpus, slots[:, groups[name]])
    ranges = rows["interval_range"][:, ::-1]  # ascending, as the edges must be
    edges = np.ascontiguousarray(np.concatenate([ranges[:, :1, 0], ranges[:, :, 1]], axis=1))
    counts = np.zeros((len(start) - 1, config.n_intervals), np.int64)
    summary.fill_intervals(start, block.ordered, edges, counts)
    rows["interval_active"][:] = counts[:, ::-1]
    out = np.full((len(start) - 1, config.n_intervals, config.n_interval_samples), -1, np.int64)
    passages.draw_samples(start, tokens, values, edges, counts, keys["intervals"], *corpus, out)
    slots[:, groups["intervals"]] = out[:, ::-1].reshape(len(out), -1)
    everything, n = np.tile([-np.inf, np.inf], (len(start) - 1, 1)), np.diff(start)[:, None]
    random = np.full((len(start) - 1, 1, slots[0, groups["random"]].size), -1, np.int64)
    passages.draw_samples(start, tokens, values, everything, n, keys["random"], *corpus, random)
    slots[:, groups["random"]] = random[:, 0]
    near = slots[:, groups["near_miss"]]
    driving = (rows["driving_ids"], rows["driving_active"])
    passages.draw_near_misses(start, tokens, *driving, *facts.places, NEAR_MISS_DRAWS, keys["near_miss"], *corpus, near)


def windows(
    slots: Int[np.ndarray, "m n_slots"], block: Block, facts: CorpusFacts, before: int, after: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entries in every passage's window, their offsets, their values)."""
    run_start, run_stop = facts.run_bounds
    places, counts = np.zeros(slots.shape, np.int64), np.zeros(slots.shape, np.int64)
    total = passages.count_windows(block.start, block.tokens, slots, run_start, run_stop, before, after, places, counts)
    offsets, inside = np.empty(total, np.uint16), np.empty(total, np.float32)
    passages.fill_windows(block.tokens, block.values, slots, run_start, before, places, counts, offsets, inside)
    return counts, offsets, inside
