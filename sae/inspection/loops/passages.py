"""Loops that choose passages and gather the values around them; see `sae.inspection.contexts` for the rules.

Every choice goes down a ranked list of tokens: of each document only the first one stands for election, and of equal windows the first
stays. Lists are cut short where they may be, and the cut is moved when too few were found, so the result is that of the whole list.
"""

import numpy as np

from sae.dictionaries.kernels.cpu.loops import compiled
from sae.inspection.loops.summary import below

ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@compiled
def mix(z: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of z."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def same_window(t: int, u: int, ids: np.ndarray, run_start: np.ndarray, run_stop: np.ndarray, before: int, after: int) -> bool:
    """Whether the tokens around t and u, clipped to their runs, are the same and have them at the same place."""
    start_t, start_u = max(run_start[t], t - before), max(run_start[u], u - before)
    stop_t, stop_u = min(run_stop[t], t + after + 1), min(run_stop[u], u + after + 1)
    if t - start_t != u - start_u or stop_t - start_t != stop_u - start_u:
        return False
    different = 0
    for s in range(stop_t - start_t):
        different += ids[start_t + s] != ids[start_u + s]
    return different == 0


@compiled
def elect(
    ranked: np.ndarray, n_ranked: int, most: int, ids: np.ndarray, rank: np.ndarray, run_start: np.ndarray, run_stop: np.ndarray,
    before: int, after: int, stamp: np.ndarray, mark: int, chosen: np.ndarray,
) -> int:  # fmt: skip
    """chosen[:result] = the first `most` tokens of the list, one a document, without equal windows."""
    n = 0
    for r in range(n_ranked):
        t = ranked[r]
        d = rank[t]
        if stamp[d] == mark:
            continue
        stamp[d] = mark
        fresh = True
        for s in range(n):
            if same_window(t, chosen[s], ids, run_start, run_stop, before, after):
                fresh = False
                break
        if fresh:
            chosen[n] = t
            n += 1
            if n == most:
                break
    return n


@compiled
def choose_strongest(
    start: np.ndarray, tokens: np.ndarray, values: np.ndarray, ordered: np.ndarray, sign: int, ids: np.ndarray, rank: np.ndarray,
    run_start: np.ndarray, run_stop: np.ndarray, n_documents: int, before: int, after: int, out: np.ndarray,
) -> None:  # fmt: skip
    """out[i] = the strongest passages of latent i (of sign +1 or -1), strongest first, then earliest; unused places keep what is in them."""
    most, stamp, mark = out.shape[1], np.zeros(n_documents, np.int64), 0
    largest = 0
    for i in range(len(start) - 1):
        largest = max(largest, start[i + 1] - start[i])
    found, strength, ranked = np.empty(largest, np.int64), np.empty(largest, np.float32), np.empty(largest, np.int64)
    chosen = np.empty(most, np.int64)
    for i in range(len(start) - 1):
        begin, end = start[i], start[i + 1]
        n_signed = end - begin - below(ordered, begin, end, 0.0, 1) if sign > 0 else below(ordered, begin, end, 0.0, 0)
        prefix = 16 * most
        while n_signed > 0:
            place = min(prefix, n_signed) - 1
            least = sign * (ordered[end - 1 - place] if sign > 0 else ordered[begin + place])
            n = 0
            for p in range(begin, end):
                if sign * values[p] >= least:
                    found[n], strength[n] = tokens[p], -sign * values[p]
                    n += 1
            order = np.argsort(strength[:n], kind="mergesort")
            for r in range(n):
                ranked[r] = found[order[r]]
            mark += 1
            n_chosen = elect(ranked, n, most, ids, rank, run_start, run_stop, before, after, stamp, mark, chosen)
            if n_chosen == most or prefix >= n_signed:
                out[i, :n_chosen] = chosen[:n_chosen]
                break
            prefix *= 8


@compiled
def place_of(value: float, edges: np.ndarray) -> int:
    """j with edges[j] < value <= edges[j + 1], or -1."""
    for j in range(len(edges) - 1):
        if edges[j] < value <= edges[j + 1]:
            return j
    return -1


@compiled
def draw_samples(
    start: np.ndarray, tokens: np.ndarray, values: np.ndarray, edges: np.ndarray, counts: np.ndarray, keys: np.ndarray, ids: np.ndarray,
    rank: np.ndarray, run_start: np.ndarray, run_stop: np.ndarray, n_documents: int, before: int, after: int, out: np.ndarray,
) -> None:  # fmt: skip
    """out[i, j] = entries of interval j of latent i in the order of their priorities mix(keys[i] + token), as many as there are places;
    the counts are those of the intervals. Samples are then put strongest first.
    """
    most, stamp, mark = out.shape[2], np.zeros(n_documents, np.int64), 0
    largest = 0
    for i in range(len(start) - 1):
        largest = max(largest, start[i + 1] - start[i])
    found, where, priority = np.empty(largest, np.int64), np.empty(largest, np.int32), np.empty(largest, np.uint64)
    strength, mine, ranked = np.empty(largest, np.float32), np.empty(largest, np.int64), np.empty(largest, np.int64)
    chosen, limits, done = np.empty(most, np.int64), np.empty(out.shape[1], np.uint64), np.empty(out.shape[1], np.int32)
    for i in range(len(start) - 1):
        waiting = 0
        for j in range(out.shape[1]):
            few = counts[i, j] <= 16 * most
            limits[j] = ALL if few else np.uint64(16.0 * most / counts[i, j] * 1.8e19)
            done[j] = counts[i, j] == 0
            waiting += 1 - done[j]
        while waiting > 0:
            n = 0
            for p in range(start[i], start[i + 1]):
                j = place_of(np.float64(values[p]), edges[i])
                if j >= 0 and done[j] == 0:
                    chance = mix(keys[i] + np.uint64(tokens[p]))
                    if chance <= limits[j]:
                        found[n], where[n], priority[n], strength[n] = tokens[p], j, chance, values[p]
                        n += 1
            order = np.argsort(priority[:n], kind="mergesort")
            for j in range(out.shape[1]):
                if done[j] == 0:
                    m = 0
                    for r in range(n):
                        if where[order[r]] == j:
                            ranked[m], mine[m] = found[order[r]], order[r]
                            m += 1
                    mark += 1
                    n_chosen = elect(ranked, m, most, ids, rank, run_start, run_stop, before, after, stamp, mark, chosen)
                    if n_chosen == most or limits[j] == ALL:
                        put_strongest_first(chosen, n_chosen, ranked, mine, m, strength, out[i, j])
                        done[j] = 1
                        waiting -= 1
                    else:
                        limits[j] = ALL if limits[j] > ALL // np.uint64(8) else limits[j] * np.uint64(8)


@compiled
def put_strongest_first(
    chosen: np.ndarray, n_chosen: int, ranked: np.ndarray, mine: np.ndarray, m: int, strength: np.ndarray, out: np.ndarray
) -> None:
    """out[:n_chosen] = the chosen tokens by value, descending, then by token."""
    got = np.empty(n_chosen, np.float32)
    s = 0
    for r in range(m):  # chosen is in the order of ranked
        if s < n_chosen and ranked[r] == chosen[s]:
            value, place = strength[mine[r]], s
            while place > 0 and (value > got[place - 1] or (value == got[place - 1] and ranked[r] < out[place - 1])):
                got[place], out[place] = got[place - 1], out[place - 1]
                place -= 1
            got[place], out[place] = value, ranked[r]
            s += 1


@compiled
def fires(token: int, tokens: np.ndarray, begin: int, end: int) -> bool:
    """Whether tokens[begin:end], ascending, holds the token."""
    low, high = begin, end
    while low < high:
        middle = (low + high) >> 1
        if tokens[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low < end and tokens[low] == token


@compiled
def draw_near_misses(
    start: np.ndarray, tokens: np.ndarray, driving: np.ndarray, active: np.ndarray, occurrence_start: np.ndarray, occurrences: np.ndarray,
    n_draws: int, keys: np.ndarray, ids: np.ndarray, rank: np.ndarray, run_start: np.ndarray, run_stop: np.ndarray, n_documents: int,
    before: int, after: int, out: np.ndarray,
) -> None:  # fmt: skip
    """out[i] = occurrences of the driving tokens of latent i, each in turn, on which it does not fire."""
    most, stamp = out.shape[1], np.zeros(n_documents, np.int64)
    n_drawn, one = np.empty(driving.shape[1], np.int64), np.empty(1, np.int64)
    for i in range(len(start) - 1):
        n, progress = 0, start[i + 1] > start[i]
        n_drawn[:] = 0
        while n < most and progress:
            progress = False
            for s in range(driving.shape[1]):
                v = driving[i, s]
                if v < 0 or n == most:
                    break
                m = occurrence_start[v + 1] - occurrence_start[v]
                if active[i, s] == m:
                    continue
                taken = False
                while n_drawn[s] < n_draws and not taken:
                    draw = mix(mix(keys[i] + np.uint64(v)) + np.uint64(n_drawn[s]))
                    t = occurrences[occurrence_start[v] + np.int64(draw % np.uint64(m))]
                    n_drawn[s] += 1
                    if fires(t, tokens, start[i], start[i + 1]) or stamp[rank[t]] == i + 1:
                        continue
                    stamp[rank[t]] = i + 1
                    taken = True
                    for c in range(n):
                        if same_window(t, out[i, c], ids, run_start, run_stop, before, after):
                            taken = False
                            break
                    one[0] = t
                if taken:
                    out[i, n] = one[0]
                    n += 1
                    progress = True


@compiled
def count_windows(
    start: np.ndarray, tokens: np.ndarray, slots: np.ndarray, run_start: np.ndarray, run_stop: np.ndarray, before: int, after: int,
    places: np.ndarray, counts: np.ndarray,
) -> int:  # fmt: skip
    """Of every passage, where its window's entries begin (places) and how many there are (counts); returns their sum."""
    total = 0
    for i in range(slots.shape[0]):
        for s in range(slots.shape[1]):
            t = slots[i, s]
            counts[i, s] = 0
            if t >= 0:
                first, stop = max(run_start[t], t - before), min(run_stop[t], t + after + 1)
                low, high = start[i], start[i + 1]
                while low < high:
                    middle = (low + high) >> 1
                    if tokens[middle] < first:
                        low = middle + 1
                    else:
                        high = middle
                n = 0
                while low + n < start[i + 1] and tokens[low + n] < stop:
                    n += 1
                places[i, s], counts[i, s] = low, n
                total += n
    return total


@compiled
def fill_windows(
    tokens: np.ndarray, values: np.ndarray, slots: np.ndarray, run_start: np.ndarray, before: int,
    places: np.ndarray, counts: np.ndarray, offsets: np.ndarray, inside: np.ndarray,
) -> None:  # fmt: skip
    """The entries of every window: offset from its first token, and value."""
    n = 0
    for i in range(slots.shape[0]):
        for s in range(slots.shape[1]):
            if counts[i, s] > 0:
                first = max(run_start[slots[i, s]], slots[i, s] - before)
                for p in range(places[i, s], places[i, s] + counts[i, s]):
                    offsets[n], inside[n] = tokens[p] - first, values[p]
                    n += 1
