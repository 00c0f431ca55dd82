"""Loops over the units in which latents fire: sort the firings both ways, and count the latents that fire beside a given one.

Counting goes latent by latent, in one of two ways. The units where latent i fires are walked, and one is added for every other latent of each
to a vector of F counts that stays in the cache: sum over units of (size)^2 increments. Or every latent is a row of n_units bits, and the ones
common to two rows are counted, eight words at a time: F^2 n_units / 64 words. Blocks of tokens, where a third of all latents may fire, need
the second.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic

from sae.dictionaries.kernels.cpu.loops import compiled

ROWS = 16
"""Latents counted together: their bits stay in the cache while those of all others pass by."""


@compiled
def count_firings(indices: np.ndarray, fires: np.ndarray, unit_of_row: np.ndarray, stamp: np.ndarray, firing: np.ndarray) -> int:
    """firing[j] = number of units in which latent j fires; returns the first latent out of range, or -1. Rows of unit -1 are left out."""
    n_latents = len(firing)
    for r in range(indices.shape[0]):
        unit = unit_of_row[r]
        if unit >= 0:
            for s in range(indices.shape[1]):
                if fires[r, s]:
                    j = indices[r, s]
                    if j < 0 or j >= n_latents:
                        return r * indices.shape[1] + s
                    firing[j] += stamp[j] != unit
                    stamp[j] = unit
    return -1


@compiled
def sort_by_latent(
    indices: np.ndarray, fires: np.ndarray, unit_of_row: np.ndarray, stamp: np.ndarray, next_place: np.ndarray, units: np.ndarray
) -> None:
    """units[next_place[j] ...] = the units of latent j, ascending; `next_place` ends one past the last."""
    for r in range(indices.shape[0]):
        unit = unit_of_row[r]
        if unit >= 0:
            for s in range(indices.shape[1]):
                if fires[r, s]:
                    j = indices[r, s]
                    if stamp[j] != unit:
                        stamp[j] = unit
                        units[next_place[j]] = unit
                        next_place[j] += 1


@compiled
def sort_by_unit(latent_starts: np.ndarray, units: np.ndarray, unit_starts: np.ndarray, latent_ids: np.ndarray, slots: np.ndarray) -> None:
    """latent_ids: the latents of each unit, ascending, from unit_starts[unit]; slots[place] = where in its unit a latent stands."""
    size = np.zeros(len(unit_starts) - 1, np.int32)
    for j in range(len(latent_starts) - 1):
        for place in range(latent_starts[j], latent_starts[j + 1]):
            unit = units[place]
            slots[place] = size[unit]
            latent_ids[unit_starts[unit] + size[unit]] = j
            size[unit] += 1


@compiled
def count_by_units(
    first: int, last: int, latent_starts: np.ndarray, units: np.ndarray, slots: np.ndarray,
    unit_starts: np.ndarray, latent_ids: np.ndarray, later: int, together: np.ndarray,
) -> None:  # fmt: skip
    """together[i - first, j] = units where i and j fire, i in first..last-1; only for j > i if `later`; from the units of i."""
    together[: last - first] = 0
    for i in range(first, last):
        row = together[i - first]
        for place in range(latent_starts[i], latent_starts[i + 1]):
            unit = units[place]
            begin = unit_starts[unit] + (slots[place] + 1 if later else 0)
            for p in range(begin, unit_starts[unit + 1]):
                row[latent_ids[p]] += 1


@intrinsic
def ones(typing: object, word: types.Type) -> object:
    """Number of ones among the bits of a word; an instruction, of which the compiler makes vectors."""

    def generate(context: object, builder: object, signature: object, values: tuple) -> object:
        return builder.ctpop(values[0])

    return word(word), generate


@compiled
def set_bits(latent_starts: np.ndarray, units: np.ndarray, words: np.ndarray) -> None:
    """Bit t of the row of words of latent j is 1 where j fires in unit t."""
    for j in range(len(latent_starts) - 1):
        for place in range(latent_starts[j], latent_starts[j + 1]):
            unit = np.uint64(units[place])
            words[j, unit >> np.uint64(6)] |= np.uint64(1) << (unit & np.uint64(63))


@compiled
def count_by_bits(first: int, last: int, words: np.ndarray, later: int, together: np.ndarray) -> None:
    """The same as `count_by_units` from the bits of the latents: F n_units / 64 words a latent, however many fire."""
    n_latents, n_words = words.shape
    for j in range(first + 1 if later else 0, n_latents):
        theirs = words[j]
        for i in range(first, last):
            ours, total = words[i], np.uint64(0)
            for w in range(n_words):
                total += ones(ours[w] & theirs[w])
            together[i - first, j] = total


@compiled
def upper_rows(
    first: int, last: int, least: int, words: np.ndarray, latent_starts: np.ndarray, units: np.ndarray, slots: np.ndarray,
    unit_starts: np.ndarray, latent_ids: np.ndarray, sizes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(ids, counts) of the pairs (i, j), j > i, that fire together in at least `least` units, for i in first..last-1, row after row;
    sizes[i] = how many those of i are. By bits where there are any `words`.
    """
    n_latents = len(latent_starts) - 1
    together = np.empty((ROWS, n_latents), np.int32)
    ids, counts = np.empty(n_latents * ROWS, np.int32), np.empty(n_latents * ROWS, np.int32)
    n = 0
    for begin in range(first, last, ROWS):
        end = min(begin + ROWS, last)
        if words.shape[1] > 0:
            count_by_bits(begin, end, words, 1, together)
        else:
            count_by_units(begin, end, latent_starts, units, slots, unit_starts, latent_ids, 1, together)
        if n + ROWS * n_latents > len(ids):
            grown = 2 * len(ids) + ROWS * n_latents
            more_ids, more_counts = np.empty(grown, np.int32), np.empty(grown, np.int32)
            more_ids[:n], more_counts[:n] = ids[:n], counts[:n]
            ids, counts = more_ids, more_counts
        for i in range(begin, end):
            before, row = n, together[i - begin]
            for j in range(i + 1, n_latents):
                ids[n], counts[n] = j, row[j]  # written in any case, kept if it counts: no branch to mispredict
                n += row[j] >= least
            sizes[i] = n - before
    return ids[:n].copy(), counts[:n].copy()


@compiled
def score(kind: int, n11: float, n_i: float, n_j: float, T: float) -> float:
    """The affinity number `kind` of `sae.geometry.affinity.AFFINITIES`; n11, n_i and n_j are above 0."""
    if kind == 0:
        return (T - n_i - n_j + 2 * n11) / T
    if kind == 1:
        return n11 / (n_i + n_j - n11)
    if kind == 2:
        return 2 * n11 / (n_i + n_j)
    if kind == 3:
        return n11 / min(n_i, n_j)
    if kind == 5:
        return T * n11 / (n_i * n_j)
    spread = np.sqrt(n_i * (T - n_i)) * np.sqrt(n_j * (T - n_j))
    return (T * n11 - n_i * n_j) / spread if spread > 0 else 0.0


@compiled
def nearest_rows(
    first: int, last: int, kind: int, n_units: int, words: np.ndarray, latent_starts: np.ndarray, units: np.ndarray, slots: np.ndarray,
    unit_starts: np.ndarray, latent_ids: np.ndarray, best_ids: np.ndarray, best_counts: np.ndarray, best: np.ndarray,
) -> None:  # fmt: skip
    """For i in first..last-1, the latents that fire beside i with the largest affinities, in row i of the last three arrays."""
    n_latents = len(latent_starts) - 1
    together = np.empty((ROWS, n_latents), np.int32)
    for begin in range(first, last, ROWS):
        end = min(begin + ROWS, last)
        if words.shape[1] > 0:
            count_by_bits(begin, end, words, 0, together)
        else:
            count_by_units(begin, end, latent_starts, units, slots, unit_starts, latent_ids, 0, together)
        for i in range(begin, end):
            together[i - begin, i] = 0
            keep_best(together[i - begin], i, kind, n_units, latent_starts, best_ids[i], best_counts[i], best[i])


@compiled
def keep_best(
    row: np.ndarray, i: int, kind: int, n_units: int, latent_starts: np.ndarray, ids: np.ndarray, counts: np.ndarray, best: np.ndarray
) -> None:
    """The latents with the largest affinities among those with a count in `row`, best first, the lower number first where two are equal."""
    n_i, n_best, found = latent_starts[i + 1] - latent_starts[i], len(best), 0
    for j in range(len(row)):
        if row[j] > 0:
            value = score(kind, row[j], n_i, latent_starts[j + 1] - latent_starts[j], n_units)
            if found < n_best or value > best[n_best - 1]:
                place = min(found, n_best - 1)
                while place > 0 and value > best[place - 1]:
                    ids[place], counts[place], best[place] = ids[place - 1], counts[place - 1], best[place - 1]
                    place -= 1
                ids[place], counts[place], best[place] = j, row[j], value
                found = min(found + 1, n_best)
