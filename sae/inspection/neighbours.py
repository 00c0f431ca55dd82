"""Close latents: by direction, by firing together, and by the correlation of their values.

    decoder, encoder cosine    over all pairs of directions
    phi_ij = (T C_ij - n_i n_j) / sqrt(n_i (T - n_i) n_j (T - n_j))           C_ij tokens on which both fire, of T looked at
    r_ij   = (T S_ij - A_i A_j) / sqrt((T Q_i - A_i^2) (T Q_j - A_j^2))       S_ij = sum z_i z_j, A = sum z, Q = sum z^2, over all T tokens

The counts and sums are exact, over all pairs of the dictionary; the strongest of each latent are kept. Only latents that share a token are
compared: for two that never do, phi and (with positive values) r are negative or 0. 0/0 is 0.
"""

import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sae.geometry.similarity import nearest_atoms
from sae.inspection import loops
from sae.inspection.entries import LatentView, TokenView, read_values

LATENTS_PER_BLOCK = 64
"""Latents that a thread takes at a time."""
BLOCKS_PER_ROUND = 16
"""Blocks between two reports of progress."""


class AtomNeighbours(NamedTuple):
    """Nearest atoms, nearest first; unused places hold id -1 and cosine 0."""

    ids: Int[np.ndarray, "n n_neighbours"]
    """Latent ids."""
    cosines: Float[np.ndarray, "n n_neighbours"]
    """Signed cosines, float32."""


def neighbours(atoms: Float[Tensor, "n d_in"], *, n_neighbours: int) -> AtomNeighbours:
    """For each atom the `n_neighbours` others with the largest signed cosine, fewer where there are not so many.

    An atom of length zero (a latent whose decoder row has died) has no direction: it gets no neighbours and is nobody's neighbour.
    """
    ids = np.full((len(atoms), n_neighbours), -1, np.int64)
    cosines = np.zeros((len(atoms), n_neighbours), np.float32)
    atoms = atoms.detach()
    usable = atoms.norm(dim=1).nonzero().flatten()
    n_found = min(n_neighbours, len(usable) - 1)
    if n_found >= 1:
        nearest = nearest_atoms(atoms[usable], n_neighbours=n_found)
        rows = usable.cpu().numpy()
        ids[rows, :n_found] = rows[nearest.atom_ids.cpu().numpy()]
        cosines[rows, :n_found] = nearest.cosines.float().cpu().numpy()
    return AtomNeighbours(ids, cosines)


class Related(NamedTuple):
    """For each latent those that go with it, strongest first; unused places hold id -1 and zeros."""

    ids: Int[np.ndarray, "d_sae n_neighbours"]
    """Latent ids."""
    values: Float[np.ndarray, "d_sae n_neighbours"]
    """phi or r."""
    counts: Int[np.ndarray, "d_sae n_neighbours"]
    """Tokens on which both fire."""


class Totals(NamedTuple):
    """What phi or r needs of each latent."""

    total: Float[np.ndarray, "d_sae"]
    """n_i, or A_i."""
    inverse_spread: Float[np.ndarray, "d_sae"]
    """1 / sqrt(n_i (T - n_i)), or 1 / sqrt(T Q_i - A_i^2); 0 where that is infinite."""


def totals(total: Float[np.ndarray, "d_sae"], squares: Float[np.ndarray, "d_sae"], n_tokens: int) -> Totals:
    """Of the sums and the sums of squares; for phi both are the counts."""
    spread = n_tokens * squares - total**2
    positive = spread > 1e-12 * n_tokens * np.maximum(squares, np.finfo(float).tiny)
    return Totals(total.astype(np.float64), np.where(positive, 1 / np.sqrt(np.where(positive, spread, 1.0)), 0.0))


class _Mapped(NamedTuple):
    """The segments as the loops take them."""

    arrays: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Start, latents and values of each; this keeps them in memory."""
    bounds: np.ndarray
    """First token of each, and one past the last."""
    scales: np.ndarray
    """What the values of each are multiplied by."""
    addresses: np.ndarray
    """Where the three arrays of each lie."""
    sizes: np.ndarray
    """Lengths of start, and of latents and values."""


class PairCounter:
    """Counts the pairs of an index, in rounds; `related` is complete when `rounds` is exhausted."""

    def __init__(
        self, by_latent: LatentView, by_token: TokenView, firing: Totals, values: Totals, n_tokens: int, n_neighbours: int
    ) -> None:
        self.by_latent, self.by_token, self.firing, self.values = by_latent, by_token, firing, values
        self.n_tokens, d_sae = n_tokens, len(firing.total)
        shape = (d_sae, min(n_neighbours, max(d_sae - 1, 1)))
        self.related = {
            name: Related(np.full(shape, -1, np.int64), np.zeros(shape), np.zeros(shape, np.int64))
            for name in ("coactivation", "correlation")
        }
        self._own = threading.local()

    def rounds(self) -> Iterator[int]:
        """Latents done, round after round."""
        d_sae = len(self.firing.total)
        firsts = range(0, d_sae, LATENTS_PER_BLOCK)
        work = self._by_loops if loops.available() else self._by_scipy
        _ = self._segments if loops.available() else self._matrix  # before threads ask for it
        for begin in range(0, len(firsts), BLOCKS_PER_ROUND):
            part = firsts[begin : begin + BLOCKS_PER_ROUND]
            loops.share(lambda number, part=part: work(part[number], min(part[number] + LATENTS_PER_BLOCK, d_sae)), len(part))
            yield min(d_sae, part[-1] + LATENTS_PER_BLOCK)

    def _by_loops(self, first: int, last: int) -> None:
        from sae.inspection.loops.neighbours import relate

        view, related = self.by_latent, [each for name in ("coactivation", "correlation") for each in self.related[name]]
        segments = self._segments
        of = (view.start, view.ids, _bits(view.values), segments.bounds, segments.scales * view.scale, segments.addresses, segments.sizes)
        relate(first, last, float(self.n_tokens), *of, *segments.arrays[0], self._scratch(), *self.firing, *self.values, *related)

    @cached_property
    def _segments(self) -> "_Mapped":
        found = [self.by_token.segment(number) for number in range(len(self.by_token.first))]
        wide = len({segment.start.dtype for segment in found}) > 1
        arrays = [(s.start.astype(np.int64) if wide else s.start, s.latents, _bits(s.values)) for s in found]
        ends = [segment.record.first_token + segment.record.n_tokens for segment in found]
        return _Mapped(
            arrays=arrays,
            bounds=np.array([found[0].record.first_token, *ends], np.int64),
            scales=np.array([segment.record.scale for segment in found]),
            addresses=np.array([[each.ctypes.data for each in three] for three in arrays], np.int64),
            sizes=np.array([[len(start), len(latents)] for start, latents, _ in arrays], np.int64),
        )

    def _scratch(self) -> np.ndarray:
        if not hasattr(self._own, "sums"):
            self._own.sums = np.zeros((len(self.firing.total), 2))
        return self._own.sums

    def _by_scipy(self, first: int, last: int) -> None:
        matrix = self._matrix
        block = matrix[:, first:last]
        both = np.asarray(((block != 0).astype(np.float64).T @ (matrix != 0).astype(np.float64)).todense())
        products = np.asarray((block.T @ matrix).todense())
        for name, sums, of in (("coactivation", both, self.firing), ("correlation", products, self.values)):
            scores = (self.n_tokens * sums - np.outer(of.total[first:last], of.total)) * np.outer(
                of.inverse_spread[first:last], of.inverse_spread
            )
            allowed = both > 0
            allowed[np.arange(last - first), np.arange(first, last)] = False
            scores[~allowed] = -np.inf
            found = self.related[name]
            order = np.argsort(-scores, axis=1, kind="stable")[:, : found.ids.shape[1]]
            kept = np.take_along_axis(allowed, order, 1)
            found.ids[first:last] = np.where(kept, order, -1)
            found.values[first:last] = np.where(kept, np.take_along_axis(scores, order, 1), 0.0)
            found.counts[first:last] = np.where(kept, np.take_along_axis(both, order, 1), 0)

    @cached_property
    def _matrix(self) -> Any:
        from scipy.sparse import csc_array

        view, last = self.by_latent, self.by_token.manifest.segments[-1]
        values = read_values(view.values, view.scale).astype(np.float64)
        shape = (last.first_token + last.n_tokens, len(self.firing.total))
        return csc_array((values, view.ids.astype(np.int64), np.asarray(view.start)), shape=shape)


def _bits(values: np.ndarray) -> np.ndarray:
    """Stored values as the loops take them: float16 by its bits."""
    return values.view(np.uint16) if values.dtype == np.float16 else values
