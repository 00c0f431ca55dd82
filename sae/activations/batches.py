"""Which tokens go into which batch: splits by document, and an order in which every batch is a uniform sample of the whole store.

    epoch e of a stream with seed s visits the tokens in the order of one random permutation P(s, e);
    batch b is positions b B .. (b + 1) B - 1 of  P(s, 0) P(s, 1) P(s, 2) ...

so that every token comes exactly once per epoch, all training batches have the same size, and batch b can be named without making those
before it. A shuffle through a buffer of a few sequences, the usual way, leaves a batch made of a few documents, and neighbours alike:
`mixing` and `neighbour_mixing` measure that. Indices are int32 up to 2^31 tokens: the tokens and their order take 8 bytes per token.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from sae.errors import ConfigError


class Split(NamedTuple):
    """Flat token indices of a store, separated by document; ascending, and together they are all tokens."""

    train: Int[Tensor, "n_train"]
    """Tokens of the documents to train on."""
    held_out: Int[Tensor, "n_held_out"]
    """Tokens of the documents that are kept apart."""


def document_hashes(document_ids: Int[np.ndarray, "n"], seed: int) -> UInt64[np.ndarray, "n"]:
    """A hash of each document's number and the seed, uniform on 0 .. 2^64 - 1: splitmix64 twice (Steele, Lea, Flood, OOPSLA 2014)."""
    return _splitmix(_splitmix(document_ids.astype(np.uint64)) ^ np.uint64(seed % 2**64))


def _splitmix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def split_by_document(document_ids: Int[Tensor, "n_tokens"], *, held_out: float, seed: int) -> Split:
    """The tokens of documents whose hash is below `held_out` x 2^64, and the others.

    Whether a document is held out depends on its number and the seed alone, not on what else is in the store, so that a longer capture of
    the same corpus keeps the split; if that would leave one side empty, the document with the lowest (highest) hash is moved there. Raises
    ConfigError when there is one document only, or `held_out` is not between 0 and 1.
    """
    numbers = document_ids.numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    return split_runs(torch.from_numpy(starts), document_ids[starts], len(numbers), held_out=held_out, seed=seed)


def split_runs(starts: Int[Tensor, "runs"], document_ids: Int[Tensor, "runs"], n_tokens: int, *, held_out: float, seed: int) -> Split:
    """What `split_by_document` returns, from runs of consecutive tokens of one document: where each begins (the first at 0), and which it is."""
    if not 0.0 < held_out < 1.0:
        raise ConfigError(f"held_out must be above 0 and below 1, got {held_out} (split)")
    documents, which = np.unique(document_ids.numpy(), return_inverse=True)
    if len(documents) < 2:
        raise ConfigError(f"held_out={held_out} needs a store with at least 2 documents, this one has {len(documents)} (split)")
    hashes = document_hashes(documents, seed)
    apart = hashes < np.uint64(int(held_out * 2.0**64))
    if not apart.any():
        apart[hashes.argmin()] = True
    if apart.all():
        apart[hashes.argmax()] = False
    chosen = np.repeat(apart[which], np.diff(starts.numpy(), append=n_tokens))
    tokens = np.arange(n_tokens, dtype=narrowest(n_tokens))
    return Split(torch.from_numpy(tokens[~chosen]), torch.from_numpy(tokens[chosen]))


def shuffled(tokens: Int[np.ndarray, "n"], *, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """The tokens in the order P(seed, epoch), uniformly random among all orders of n things."""
    order = tokens.copy()
    np.random.default_rng([seed, epoch]).shuffle(order)  # the same swaps whatever is shuffled, so tokens[P] without an array for P
    return order


def narrowest(n: int) -> type[np.signedinteger]:
    """The numpy integer that holds 0 .. n - 1 in least memory: int32 below 2^31, or int64."""
    return np.int32 if n <= 2**31 else np.int64


def shuffled_indices(
    tokens: Int[Tensor, "n"], *, batch_size: int, seed: int, epochs: int | None, skip: int = 0, n_batches: int | None = None
) -> Iterator[Int[Tensor, "batch"]]:
    """Batches `skip`, `skip + 1`, ... of the stream of `tokens`; `n_batches` of them, or until `epochs` are over (None: without end).

    A batch may begin in one epoch and end in the next; only the last of a finite stream can be smaller. Raises ConfigError for sizes out of
    range, and when an endless stream's batch would hold a token twice.
    """
    n = len(tokens)
    if n == 0:
        raise ConfigError("there is no usable token to make batches of (batches)")
    if batch_size < 1 or (epochs is None and batch_size > n):
        raise ConfigError(f"batch_size must be in 1..{n}, the number of usable tokens, got {batch_size} (batches)")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed} (batches)")
    if skip < 0 or (n_batches is not None and n_batches < 0):
        raise ConfigError(f"skip and n_batches must be at least 0, got skip={skip}, n_batches={n_batches} (batches)")
    numbers = tokens.numpy().astype(narrowest(int(tokens.max()) + 1), copy=False)
    return _stream(numbers, batch_size, seed, None if epochs is None else epochs * n, skip * batch_size, n_batches)


def _stream(
    tokens: Int[np.ndarray, "n"], batch_size: int, seed: int, end: int | None, start: int, n_batches: int | None
) -> Iterator[Tensor]:
    n = len(tokens)
    epoch, order = -1, tokens
    while (end is None or start < end) and n_batches != 0:
        pieces, position = [], start
        stop = start + batch_size if end is None else min(start + batch_size, end)
        while position < stop:
            if position // n != epoch:
                epoch = position // n
                order = shuffled(tokens, seed=seed, epoch=epoch)
            first = position - epoch * n
            pieces.append(order[first : first + stop - position])
            position += len(pieces[-1])
        yield torch.from_numpy(np.concatenate(pieces, dtype=np.int64))
        start = stop
        n_batches = None if n_batches is None else n_batches - 1


def mixing(batch_document_ids: Int[Tensor, "batch"], document_ids: Int[Tensor, "n"]) -> float:
    """Distinct documents in a batch, divided by the number expected of a uniform sample of the same size from all tokens; 1.0 is perfect.

        E[distinct] = sum_d 1 - C(n - c_d, B) / C(n, B)        c_d tokens of document d among n, B tokens drawn without replacement

    Below 1 a batch repeats documents more than chance does. Raises ConfigError when the batch is empty or larger than the population.
    """
    n, batch = len(document_ids), len(batch_document_ids)
    if not 1 <= batch <= n:
        raise ConfigError(f"batch_document_ids must have 1..{n} entries, got {batch} (mixing)")
    counts = torch.unique(document_ids, return_counts=True)[1].double()
    rest = n - counts
    log_absent = _log_choose(rest, batch) - _log_choose(torch.tensor(float(n), dtype=torch.float64), batch)
    absent = torch.where(rest >= batch, log_absent.exp(), 0.0)
    return len(batch_document_ids.unique()) / float((1.0 - absent).sum())


def _log_choose(n: Tensor, k: int) -> Tensor:
    """log C(n, k) where n >= k; meaningless, but finite, below."""
    return torch.lgamma(n + 1.0) - math.lgamma(k + 1.0) - torch.lgamma((n - k).clamp(min=0.0) + 1.0)


@dataclass(frozen=True)
class Correlation:
    """How alike neighbouring rows are."""

    value: float
    """Mean cosine of neighbouring rows about the store's mean."""
    standard_error: float
    """Of the value, as an estimate for all batches of its kind."""
    n_pairs: int
    """Pairs of neighbours."""


@dataclass(frozen=True)
class NeighbourMixing:
    """How alike neighbouring rows of batches are, beside what no shuffle can beat and what a shuffle must destroy."""

    batches: Correlation
    """In the batches."""
    permutation: Correlation
    """In as many batches of a fresh, uniformly random permutation of the same tokens; not 0, for some directions are common."""
    in_order: Correlation
    """In as many runs of consecutive tokens: what no shuffle leaves."""

    @property
    def excess(self) -> float:
        """batches - permutation; within a few of its standard errors of 0 where the batches are mixed."""
        return self.batches.value - self.permutation.value

    @property
    def excess_error(self) -> float:
        """Standard error of the excess."""
        return math.hypot(self.batches.standard_error, self.permutation.standard_error)

    @property
    def left(self) -> float:
        """The share of the store's own order that is left in the batches, excess / (in order - permutation): 0 is mixed, 1 not shuffled."""
        return self.excess / (self.in_order.value - self.permutation.value)

    @property
    def left_error(self) -> float:
        """Standard error of the share, the scale (in order - permutation) taken as known."""
        return self.excess_error / abs(self.in_order.value - self.permutation.value)


def neighbour_correlation(batch: Float[Tensor, "n width"], mean: Float[Tensor, "width"]) -> Correlation:
    """c = 1/(n-1) sum_i u_i . u_(i+1),  u = (a - mean) / |a - mean|,  0 where a = mean; from -1 to 1.

    Of rows in random order, c is |E u|^2 on average and pairs that share no row are independent, so with autocovariances g of u_i . u_(i+1)
    its standard error is sqrt((g_0 + 2 g_1) / (n - 1)); of other rows the error is a lower bound. Raises ConfigError below 3 rows.
    """
    if len(batch) < 3:
        raise ConfigError(f"batch must have at least 3 rows, got {len(batch)} (neighbour_correlation)")
    directions = torch.nn.functional.normalize(batch.float() - mean.float(), dim=1)
    cosines = (directions[:-1] * directions[1:]).sum(dim=1).double()
    about = cosines - cosines.mean()
    variance = float(about.square().mean() + 2 * (about[:-1] * about[1:]).sum() / len(about))
    return Correlation(float(cosines.mean()), math.sqrt(max(variance, 0.0) / len(cosines)), len(cosines))


def neighbour_mixing(
    read: Callable[[Int[Tensor, "n"]], Float[Tensor, "n width"]],
    batches: Iterable[Int[Tensor, "n"]],
    tokens: Int[Tensor, "n_tokens"],
    *,
    mean: Float[Tensor, "width"],
    seed: int,
) -> NeighbourMixing:
    """The neighbours of `batches` of `tokens`, whose activations `read` gives, and those of a random permutation and of runs in order.

    Each batch counts once; standard errors are those of the mean over batches, from their spread. `seed` draws the permutation and where the
    runs begin. Raises ConfigError for fewer than 2 batches, and for a batch of fewer than 3 rows or of more than there are tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    found: tuple[list[Correlation], ...] = ([], [], [])
    left = torch.empty(0, dtype=torch.int64)
    for batch in batches:
        n = len(batch)
        if n > len(tokens):
            raise ConfigError(f"a batch must have at most as many rows as there are tokens, {len(tokens)}, got {n} (neighbour_mixing)")
        if len(left) < n:
            left = torch.randperm(len(tokens), generator=generator)
        start = int(torch.randint(len(tokens) - n + 1, (), generator=generator))
        for kind, index in zip(found, (batch, tokens[left[:n]], tokens[start : start + n]), strict=True):
            kind.append(neighbour_correlation(read(index), mean))
        left = left[n:]
    if len(found[0]) < 2:
        raise ConfigError(f"batches must be at least 2, got {len(found[0])} (neighbour_mixing)")
    return NeighbourMixing(*(_pooled(kind) for kind in found))


def _pooled(parts: Sequence[Correlation]) -> Correlation:
    values = torch.tensor([part.value for part in parts], dtype=torch.float64)
    return Correlation(float(values.mean()), float(values.std() / math.sqrt(len(parts))), sum(part.n_pairs for part in parts))
