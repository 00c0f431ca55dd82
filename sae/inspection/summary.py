"""The summary bundle: what the cards need, as arrays with one row per latent.

With the token ids of the corpus and the texts of the vocabulary it serves every card; the entries themselves are only read by queries.
Passages are kept as the flat index of their peak token, and the latent's values within the window as (offset, value) pairs, slot by slot:
first the strongest passages, then the most negative, then the interval samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from sae.inspection.contexts import TokenTable, interval_samples, top_contexts, window_values
from sae.inspection.entries import Entries
from sae.inspection.settings import HISTOGRAM_BINS, QUANTILES, IndexConfig
from sae.inspection.statistics import density_interval, driving_tokens, held_out_bits, step_histogram, value_histogram


@dataclass(frozen=True)
class CorpusFacts:
    """What the statistics need to know of the corpus besides the tokens."""

    table: TokenTable
    """Token ids and documents."""
    used: Bool[np.ndarray, "n_tokens"]
    """Tokens that are not masked."""
    occurrences: Int[np.ndarray, "vocabulary"]
    """How often each token id is among them."""
    base: Float[np.ndarray, "vocabulary"]
    """Its frequency among them."""
    following: Int[np.ndarray, "n_tokens"]
    """Id of the next token of the row; -1 at its end."""
    following_base: Float[np.ndarray, "vocabulary"]
    """Frequency of each id among the followers of the used tokens."""
    rank: Int[np.ndarray, "n_tokens"]
    """Document of each token as a number from 0, by first appearance among the used tokens; -1 for a document without any."""
    sizes: Int[np.ndarray, "n_documents"]
    """Used tokens of each document."""

    @staticmethod
    def of(table: TokenTable, used: Bool[np.ndarray, "n_tokens"], n_vocabulary: int) -> "CorpusFacts":
        """The facts of a corpus."""
        ids = table.ids.astype(np.int64)
        following = np.full_like(ids, -1)
        following[:, :-1] = ids[:, 1:]
        flat, following, documents = ids.reshape(-1), following.reshape(-1), table.documents.reshape(-1)
        names, first = np.unique(documents[used], return_index=True)
        appearance = np.empty(len(names), np.int64)
        appearance[np.argsort(first, kind="stable")] = np.arange(len(names))
        place = np.clip(np.searchsorted(names, documents), 0, max(len(names) - 1, 0))
        rank = np.where(names[place] == documents, appearance[place], -1) if len(names) else np.full(len(flat), -1)
        occurrences = np.bincount(flat[used], minlength=n_vocabulary)
        followers = np.bincount(following[used & (following >= 0)], minlength=n_vocabulary)
        sizes = np.bincount(rank[used], minlength=len(names))
        base, following_base = occurrences / max(occurrences.sum(), 1), followers / max(followers.sum(), 1)
        return CorpusFacts(table, used, occurrences, base, following, following_base, rank, sizes)


class SummaryBuilder:
    """Collects the summary latent by latent, in order."""

    def __init__(self, facts: CorpusFacts, config: IndexConfig, *, d_sae: int, n_steps: int) -> None:
        self.facts, self.config, self.n_steps = facts, config, n_steps
        self.arrays = _empty_arrays(config, d_sae, n_steps)
        self.window_counts: list[int] = []
        self.window_offsets: list[np.ndarray] = []
        self.window_values: list[np.ndarray] = []

    def add(self, latent: int, entries: Entries) -> None:
        """Fill the rows of one latent; latents come in ascending order."""
        row = {name: array[latent, ...] for name, array in self.arrays.items()}  # views, also of single numbers
        tokens, values = entries.ids, entries.values
        documents = self.facts.rank[tokens]
        row["n_active"][...] = len(tokens)
        row["n_documents"][...] = len(np.unique(documents))
        row["density_interval"][:] = density_interval(documents, self.facts.sizes)
        bins = value_histogram(values, n_bins=HISTOGRAM_BINS)
        row["histogram_range"][:] = bins.edges[[0, -1]]
        row["histogram"][:] = bins.counts
        if len(tokens):
            self._values(row, values)
            self._tokens(row, tokens, values, documents)
        if entries.steps is not None:
            row["steps"][:] = step_histogram(entries.steps, n_steps=self.n_steps)
        self._passages(row, latent, tokens, values)

    def _values(self, row: dict[str, np.ndarray], values: Float[np.ndarray, "n"]) -> None:
        row["max"][...], row["min"][...] = values.max(), values.min()
        row["mean"][...] = values.astype(np.float64).mean()
        row["quantiles"][:] = np.quantile(values.astype(np.float64), QUANTILES)

    def _tokens(
        self,
        row: dict[str, np.ndarray],
        tokens: Integer[np.ndarray, "n"],
        values: Float[np.ndarray, "n"],
        documents: Integer[np.ndarray, "n"],
    ) -> None:
        facts, half = self.facts, documents % 2 == 0
        ids, following = facts.table.ids.reshape(-1)[tokens].astype(np.int64), facts.following[tokens]
        followed = following >= 0
        row["token_bits"][...] = held_out_bits(ids, half, facts.base)
        row["next_bits"][...] = held_out_bits(following[followed], half[followed], facts.following_base)
        driving = driving_tokens(ids, values, n=self.config.n_driving)
        n = len(driving.ids)
        row["driving_ids"][:n], row["driving_active"][:n] = driving.ids, driving.n_active
        row["driving_mass"][:n], row["driving_share"][:n] = driving.mass, driving.share

    def _passages(self, row: dict[str, np.ndarray], latent: int, tokens: Integer[np.ndarray, "n"], values: Float[np.ndarray, "n"]) -> None:
        config, table = self.config, self.facts.table
        top = top_contexts(tokens, values, table, n=config.n_examples)
        row["top"][: len(top)] = top
        bottom = top_contexts(tokens, values, table, n=config.n_examples, largest=False)
        row["bottom"][: len(bottom)] = bottom
        samples = interval_samples(values, n_intervals=config.n_intervals, n_samples=config.n_interval_samples, seed=(config.seed, latent))
        for j, sample in enumerate(samples):
            row["interval_range"][j], row["interval_active"][j] = (sample.low, sample.high), sample.n_active
            row["interval_tokens"][j, : len(sample.picks)] = tokens[sample.picks]
        for token in _slots(row):
            start, stop = table.window(token, config.before, config.after) if token >= 0 else (0, 0)
            offsets, inside = window_values(tokens, values, start, stop)
            self.window_counts.append(len(offsets))
            self.window_offsets.append(offsets.astype(np.int16))
            self.window_values.append(inside)

    def finish(self) -> dict[str, np.ndarray]:
        """All arrays, once every latent has been added."""
        nothing = [np.zeros(0)]
        return self.arrays | {
            "window_start": np.r_[0, np.cumsum(np.array(self.window_counts, np.int64))].astype(np.int64),
            "window_offsets": np.concatenate(self.window_offsets or nothing).astype(np.int16),
            "window_values": np.concatenate(self.window_values or nothing).astype(np.float32),
            "occurrences": self.facts.occurrences.astype(np.int64),
        }


def _slots(row: dict[str, np.ndarray]) -> Iterator[int]:
    for name in ("top", "bottom", "interval_tokens"):
        yield from row[name].reshape(-1).tolist()


def _empty_arrays(config: IndexConfig, n: int, n_steps: int) -> dict[str, np.ndarray]:
    intervals, samples = config.n_intervals, config.n_interval_samples
    return {
        "n_active": np.zeros(n, np.int64),
        "n_documents": np.zeros(n, np.int64),
        "density_interval": np.zeros((n, 2)),
        "max": np.zeros(n, np.float32),
        "min": np.zeros(n, np.float32),
        "mean": np.zeros(n),
        "quantiles": np.zeros((n, len(QUANTILES))),
        "token_bits": np.zeros(n),
        "next_bits": np.zeros(n),
        "histogram_range": np.zeros((n, 2)),
        "histogram": np.zeros((n, HISTOGRAM_BINS), np.int64),
        "top": np.full((n, config.n_examples), -1, np.int64),
        "bottom": np.full((n, config.n_examples), -1, np.int64),
        "interval_range": np.zeros((n, intervals, 2)),
        "interval_active": np.zeros((n, intervals), np.int64),
        "interval_tokens": np.full((n, intervals, samples), -1, np.int64),
        "driving_ids": np.full((n, config.n_driving), -1, np.int64),
        "driving_active": np.zeros((n, config.n_driving), np.int64),
        "driving_mass": np.zeros((n, config.n_driving)),
        "driving_share": np.zeros((n, config.n_driving)),
        "steps": np.zeros((n, n_steps), np.int64),
    }
