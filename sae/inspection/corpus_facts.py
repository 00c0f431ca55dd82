"""What the statistics of latents need to know of the corpus, worked out once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from sae.inspection.contexts import TokenTable


def place_dtype(n_tokens: int) -> np.dtype:
    """The narrowest signed integer that holds a flat token index and the end of the last token."""
    return np.dtype(np.int32 if n_tokens < 2**31 else np.int64)


@dataclass(frozen=True)
class CorpusFacts:
    """The corpus besides its tokens; arrays over tokens go by flat index."""

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
        following = np.full(table.ids.shape, -1, np.int32)
        following[:, :-1] = table.ids[:, 1:]
        flat, following, documents = table.ids.reshape(-1), following.reshape(-1), table.documents.reshape(-1)
        names, first = np.unique(documents[used], return_index=True)
        appearance = np.empty(len(names), np.int32)
        appearance[np.argsort(first, kind="stable")] = np.arange(len(names), dtype=np.int32)
        place = np.clip(np.searchsorted(names, documents), 0, max(len(names) - 1, 0))
        rank = np.where(names[place] == documents, appearance[place], -1) if len(names) else np.full(len(flat), -1)
        occurrences = np.bincount(flat[used], minlength=n_vocabulary)
        followers = np.bincount(following[used & (following >= 0)], minlength=n_vocabulary)
        sizes = np.bincount(rank[used], minlength=len(names))
        base, following_base = occurrences / max(occurrences.sum(), 1), followers / max(followers.sum(), 1)
        return CorpusFacts(table, used, occurrences, base, following, following_base, rank.astype(np.int32), sizes)

    @cached_property
    def ids(self) -> Integer[np.ndarray, "n_tokens"]:
        """Token ids."""
        return np.ascontiguousarray(self.table.ids.reshape(-1))

    @cached_property
    def runs(self) -> tuple[Int[np.ndarray, "n_runs"], Int[np.ndarray, "n_runs"]]:
        """(first token, number of tokens) of every piece of a document within a row."""
        documents = self.table.documents
        opens = np.ones(documents.shape, bool)
        opens[:, 1:] = documents[:, 1:] != documents[:, :-1]
        start = np.flatnonzero(opens.reshape(-1))
        return start, np.diff(np.r_[start, documents.size])

    @cached_property
    def run_bounds(self) -> tuple[Int[np.ndarray, "n_tokens"], Int[np.ndarray, "n_tokens"]]:
        """(first token, one past the last) of the piece that each token belongs to."""
        start, length = self.runs
        narrow = place_dtype(self.table.n_tokens)
        return np.repeat(start.astype(narrow), length), np.repeat((start + length).astype(narrow), length)

    @cached_property
    def places(self) -> tuple[Int[np.ndarray, "vocabulary_and_1"], Int[np.ndarray, "n_used"]]:
        """(start, tokens): the used tokens with id v are tokens[start[v]] .. tokens[start[v + 1]], ascending."""
        used = np.flatnonzero(self.used).astype(place_dtype(self.table.n_tokens))
        return np.r_[0, np.cumsum(self.occurrences)].astype(np.int64), used[np.argsort(self.ids[used], kind="stable")]
