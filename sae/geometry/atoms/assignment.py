"""One-to-one pairs between two sets, from the similarities s_ij of their members.

    optimal pairs          max over one-to-one m of sum_i s_{i, m(i)}, the smaller set exhausted        (Hungarian method)
    mutual nearest         (i, j) with j = argmax_j' s_ij' and i = argmax_i' s_i'j
    shared at tau          number of pairs with s > tau, over the size of a set

The optimal pairs of n sets cost O(n^3) and n^2 memory. `best_pairs_of_candidates` works on a few candidates a row. Row i also gets a column of
its own that stands for "none of the candidates", worth c_i = its smallest candidate similarity, so at least as much as any s_ij that was left
out. The optimum with those columns is therefore an upper bound of the full optimum, and where no row needs its own column the pairs are
optimal for the full matrix. Rows that do are paired in further rounds among what is left, and `Pairs.bound` says how much that may have cost.
The sparse assignment is that of Jonker & Volgenant 1987 (Computing 38, 325-340), as scipy has it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError

LARGEST_WHOLE = 2048
"""At most this many rows left over are paired over all the columns that are left."""
LOWEST = 1e6
"""Below minus this no similarity lies; what a row's own column is worth where all its candidates are listed."""
TIE = 1e-9
"""By how much a candidate is preferred to a row's own column of the same worth."""

Nearest = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(rows, columns, k) -> the k largest similarities of each of the rows to the columns, falling, and their positions in `columns`."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """One-to-one pairs of a set of `n_rows` and one of `n_columns`, in the order of `rows`."""

    rows: Int[Tensor, " n_pairs"]
    """Members of the first set, ascending, each at most once."""
    columns: Int[Tensor, " n_pairs"]
    """The partner of each in the second set, each at most once."""
    similarities: Float[Tensor, " n_pairs"]
    """Their similarities, float64."""
    n_rows: int
    """Size of the first set."""
    n_columns: int
    """Size of the second set."""
    bound: float
    """An upper bound of the sum of similarities over all pairings that exhaust the smaller set; nan where none was asked for."""

    @property
    def mean(self) -> float:
        """Mean similarity of the pairs; nan for no pairs."""
        return float(self.similarities.mean()) if len(self.rows) else float("nan")

    @property
    def shortfall(self) -> float:
        """How far the mean similarity can be below the optimal pairs': (bound - sum) / n_pairs; 0 where the pairs are known to be optimal, nan
        where no bound is known.
        """
        short = (self.bound - float(self.similarities.sum())) / max(len(self.rows), 1)
        return short if math.isnan(short) else max(0.0, short)

    def chosen(self, keep: Bool[Tensor, " n_pairs"]) -> "Pairs":
        """Some of the pairs, of the same two sets; their bound is not known."""
        return Pairs(self.rows[keep], self.columns[keep], self.similarities[keep], self.n_rows, self.n_columns, float("nan"))

    def share_above(self, threshold: float, *, of: Literal["smaller", "rows", "columns"] = "smaller") -> float:
        """Pairs with similarity > `threshold` over the size of the smaller set, of the first or of the second.

        Raises ConfigError for another `of`.
        """
        sizes = {"smaller": min(self.n_rows, self.n_columns), "rows": self.n_rows, "columns": self.n_columns}
        if of not in sizes:
            raise ConfigError(f"of must be one of {list(sizes)}, got {of!r} (Pairs.share_above)")
        return int((self.similarities > threshold).sum()) / sizes[of]

    def swapped(self) -> "Pairs":
        """The same pairs with the two sets exchanged."""
        order = self.columns.argsort()
        return Pairs(self.columns[order], self.rows[order], self.similarities[order], self.n_columns, self.n_rows, self.bound)


def best_pairs(similarity: Float[Tensor, "n m"]) -> Pairs:
    """The pairs with the largest sum of similarities, the smaller set exhausted; O(n m min(n, m)) time, n m float64 memory.

    Ties are broken arbitrarily but always in the same way. Raises ConfigError for an empty matrix, NaN or Inf.
    """
    from scipy.optimize import linear_sum_assignment

    values = _checked(similarity, "best_pairs")
    rows, columns = (torch.from_numpy(each) for each in linear_sum_assignment(values.numpy(), maximize=True))
    found = values[rows, columns]
    return Pairs(rows, columns, found, *values.shape, float(found.sum()))


def mutual_pairs(best_of_rows: Int[Tensor, " n"], best_of_columns: Int[Tensor, " m"], similarities_of_rows: Float[Tensor, " n"]) -> Pairs:
    """The pairs that are each other's nearest, from the nearest member of every row and of every column.

    `similarities_of_rows` holds s_{i, best_of_rows[i]}. No search: pairs may leave members of both sets out. -1 stands for "none". Raises
    ConfigError for numbers outside the other set.
    """
    n, m = len(best_of_rows), len(best_of_columns)
    forward, back = best_of_rows.detach().cpu().long(), best_of_columns.detach().cpu().long()
    for name, ids, size in (("best_of_rows", forward, m), ("best_of_columns", back, n)):
        if len(ids) and not (int(ids.min()) >= -1 and int(ids.max()) < size):
            raise ConfigError(f"{name} must be in -1..{size - 1}, got {int(ids.min())}..{int(ids.max())} (mutual_pairs)")
    rows = torch.arange(n)
    mutual = (forward >= 0) & (back[forward.clamp(min=0)] == rows)
    return Pairs(rows[mutual], forward[mutual], similarities_of_rows.detach().cpu().double()[mutual], n, m, float("nan"))


def best_pairs_of_candidates(
    rows: Int[Tensor, " n_edges"],
    columns: Int[Tensor, " n_edges"],
    similarities: Float[Tensor, " n_edges"],
    *,
    n_rows: int,
    n_columns: int,
    floor: Float[Tensor, " n_rows"],
) -> Pairs:
    """The optimal pairs over a list of candidates (i, j, s_ij), and an upper bound of what all n m similarities could give.

    `floor[i]` must be at least every s_ij of row i that is not listed; a candidate listed twice counts once. Rows without a partner among
    their candidates are left unpaired: `bound` counts `floor` for them. Needs n_rows <= n_columns (exchange the sets otherwise). Raises
    ConfigError for sizes and numbers out of range, NaN and Inf, and similarities beyond 1e6 in size.
    """
    where = "best_pairs_of_candidates"
    if not 1 <= n_rows <= n_columns:
        raise ConfigError(f"n_rows must be in 1..n_columns={n_columns}, got {n_rows}; exchange the two sets ({where})")
    i, j = rows.detach().cpu().long(), columns.detach().cpu().long()
    s, least = similarities.detach().cpu().double(), floor.detach().cpu().double()
    if not (len(i) == len(j) == len(s)) or len(least) != n_rows:
        sizes = [len(i), len(j), len(s), len(least)]
        raise ConfigError(
            f"rows, columns, similarities and floor must have n_edges, n_edges, n_edges and n_rows entries, got {sizes} ({where})"
        )
    if not bool(s.isfinite().all() and least.isfinite().all()):
        raise ConfigError(f"similarities and floor must be finite ({where})")
    for name, ids, size in (("rows", i, n_rows), ("columns", j, n_columns)):
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < size):
            raise ConfigError(f"{name} must be in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())} ({where})")
    key, first = np.unique((i * n_columns + j).numpy(), return_index=True)
    i, j, s = torch.from_numpy(key // n_columns), torch.from_numpy(key % n_columns), s[torch.from_numpy(first)]
    partner = _sparse_assignment(i, j, s, n_rows, n_columns, least)
    chosen = partner < n_columns
    all_rows = torch.arange(n_rows)
    values = least.clone()
    values[chosen] = s[torch.from_numpy(np.searchsorted(key, (all_rows[chosen] * n_columns + partner[chosen]).numpy()))]
    return Pairs(all_rows[chosen], partner[chosen], values[chosen], n_rows, n_columns, float(values.sum()))


def _sparse_assignment(i: Tensor, j: Tensor, s: Tensor, n_rows: int, n_columns: int, least: Tensor) -> Tensor:
    """Partner of every row; n_columns + i for the column that belongs to row i alone."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    own = torch.arange(n_rows)
    weight = torch.cat([s, least - TIE])
    cost = 1 + weight.max() - weight  # positive: an explicit zero would not be an edge
    graph = csr_matrix(
        (cost.numpy(), (torch.cat([i, own]).numpy(), torch.cat([j, n_columns + own]).numpy())), shape=(n_rows, n_columns + n_rows)
    )
    return torch.from_numpy(min_weight_full_bipartite_matching(graph)[1].astype(np.int64))


def best_pairs_of_nearest(nearest: Nearest, *, n_rows: int, n_columns: int, n_candidates: int = 32) -> Pairs:
    """Pairs of two large sets without their n m similarities: first over the `n_candidates` nearest of every row, then over what is left.

    `nearest(rows, columns, k)` gives, for the chosen rows, their k largest similarities to the chosen columns, falling, and the positions
    of those in `columns`. Every round pairs optimally over the candidates; the last one, of at most 2048 rows, over all that is left.
    `bound` is that of the first round, so `shortfall` is 0 where the pairs are those of the Hungarian method. Equal to it always where
    n_candidates >= min(n_rows, n_columns): no row of n needs more than its n nearest. Needs n_rows <= n_columns; raises ConfigError
    otherwise, and for n_candidates < 2: a single candidate is worth what its row's own column is.
    """
    if n_candidates < 2:
        raise ConfigError(
            f"n_candidates must be at least 2, got {n_candidates}; with one, all rows that want a column want it alike (best_pairs_of_nearest)"
        )
    rows, columns = torch.arange(n_rows), torch.arange(n_columns)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    bound = None
    while len(rows):
        whole = len(rows) <= LARGEST_WHOLE
        k = min(len(columns), len(rows) if whole and found else n_candidates)
        similarities, positions = nearest(rows, columns, k)
        complete = k >= min(len(rows), len(columns))
        floor = torch.full((len(rows),), -LOWEST, dtype=torch.float64) if complete else similarities[:, -1].double().cpu()
        own = torch.arange(len(rows)).repeat_interleave(k)
        made = best_pairs_of_candidates(
            own, positions.flatten(), similarities.flatten(), n_rows=len(rows), n_columns=len(columns), floor=floor
        )
        bound = made.bound if bound is None else bound
        found.append((rows[made.rows], columns[made.columns], made.similarities))
        rows, columns = _without(rows, made.rows), _without(columns, made.columns)
    i, j, s = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = i.argsort()
    return Pairs(i[order], j[order], s[order], n_rows, n_columns, float(bound or 0.0))


def _without(members: Tensor, taken: Tensor) -> Tensor:
    free = torch.ones(len(members), dtype=torch.bool)
    free[taken] = False
    return members[free]


def _checked(similarity: Tensor, where: str) -> Tensor:
    if similarity.ndim != 2 or not similarity.numel():
        raise ConfigError(f"similarity must be a matrix with at least one row and column, got shape {list(similarity.shape)} ({where})")
    if not bool(similarity.isfinite().all()):
        raise ConfigError(f"similarity must be finite, got NaN or Inf in {int((~similarity.isfinite()).sum())} entries ({where})")
    return similarity.detach().double().cpu()
