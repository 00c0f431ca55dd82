"""The rows of the summary, latent by latent in numpy: the plain form of `sae.inspection.loops.filling`."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from sae.inspection.contexts import interval_samples, near_misses, sampled_contexts, top_contexts, window_values
from sae.inspection.corpus_facts import CorpusFacts
from sae.inspection.settings import N_NEAR_MISS, N_RANDOM, NEAR_MISS_DRAWS, IndexConfig
from sae.inspection.statistics import driving_tokens, held_out_bits, step_histogram, value_histogram
from sae.inspection.summary import Block, keys_of


def fill_statistics(rows: Mapping[str, np.ndarray], block: Block, facts: CorpusFacts) -> None:
    """Moments, histogram, documents, bits, driving tokens and steps."""
    for i in range(len(block.start) - 1):
        part = slice(int(block.start[i]), int(block.start[i + 1]))
        tokens, values = block.tokens[part], block.values[part]
        rows["histogram"][i] = value_histogram(values, n_bins=rows["histogram"].shape[1]).counts
        if block.steps is not None:
            rows["steps"][i] = step_histogram(block.steps[part], n_steps=rows["steps"].shape[1])
        if not len(tokens):
            continue
        exact, documents = values.astype(np.float64), facts.rank[tokens]
        rows["mean"][i], rows["mean_square"][i] = exact.mean(), (exact**2).mean()
        which, active = np.unique(documents, return_counts=True)
        rows["n_documents"][i] = len(which)
        rows["document_sums"][i] = (
            float((active.astype(np.float64) ** 2).sum()),
            float((active * facts.sizes[which].astype(np.float64)).sum()),
        )
        ids, following, half = facts.ids[tokens], facts.following[tokens], documents % 2 == 0
        rows["token_bits"][i] = held_out_bits(ids, half, facts.base)
        rows["next_bits"][i] = held_out_bits(following[following >= 0], half[following >= 0], facts.following_base)
        driving = driving_tokens(ids, values, n=rows["driving_ids"].shape[1])
        n = len(driving.ids)
        rows["driving_ids"][i, :n], rows["driving_active"][i, :n] = driving.ids, driving.n_active
        rows["driving_mass"][i, :n], rows["driving_share"][i, :n] = driving.mass, driving.share


def fill_passages(
    rows: Mapping[str, np.ndarray], groups: Mapping[str, slice], block: Block, facts: CorpusFacts, config: IndexConfig
) -> None:
    """The passages of every group."""
    keys, (start, places) = keys_of(block, config.seed), facts.places
    for i in range(len(block.start) - 1):
        part = slice(int(block.start[i]), int(block.start[i + 1]))
        tokens, values, row = block.tokens[part], block.values[part], rows["slots"][i]
        for name, largest in (("top", True), ("bottom", False)):
            _put(row[groups[name]], top_contexts(tokens, values, facts.table, n=config.n_examples, largest=largest))
        samples = interval_samples(
            tokens, values, facts.table, n_intervals=config.n_intervals, n_samples=config.n_interval_samples, key=keys["intervals"][i]
        )
        slots = row[groups["intervals"]].reshape(config.n_intervals, config.n_interval_samples)
        for j, sample in enumerate(samples):
            rows["interval_active"][i, j] = sample.n_active
            _put(slots[j], sample.picks)
        _put(row[groups["random"]], sampled_contexts(tokens, values, facts.table, n=N_RANDOM, key=keys["random"][i]))
        driving = rows["driving_ids"][i][rows["driving_ids"][i] >= 0]
        missed = near_misses(
            tokens,
            driving,
            [places[start[v] : start[v + 1]] for v in driving],
            facts.table,
            n=N_NEAR_MISS,
            n_draws=NEAR_MISS_DRAWS,
            key=keys["near_miss"][i],
        )
        _put(row[groups["near_miss"]], missed)


def _put(places: np.ndarray, tokens: np.ndarray) -> None:
    places[: len(tokens)] = tokens


def windows(
    slots: Int[np.ndarray, "m n_slots"], block: Block, facts: CorpusFacts, before: int, after: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entries in every passage's window, their offsets, their values)."""
    counts, offsets, inside = np.zeros(slots.shape, np.int64), [np.zeros(0, np.uint16)], [np.zeros(0, np.float32)]
    for i, s in np.argwhere(slots >= 0).tolist():
        part = slice(int(block.start[i]), int(block.start[i + 1]))
        where, values = window_values(block.tokens[part], block.values[part], *facts.table.window(int(slots[i, s]), before, after))
        counts[i, s] = len(where)
        offsets.append(where.astype(np.uint16))
        inside.append(values)
    return counts, np.concatenate(offsets), np.concatenate(inside)
