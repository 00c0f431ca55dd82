"""Moments of activations, and the norm above which a token counts as an outlier.

    threshold = ratio * median |a|    mu = (1/n) sum a    Sigma = (1/n) sum (a - mu)(a - mu)^T    total variance = tr Sigma

The first position of a window and some separators carry norms a hundred times the median (Sun et al., "Massive activations in large language
models", arXiv 2402.17762), so that any mean that includes them is meaningless: the median and threshold come first, the sums after them.

Activations are read twice, piece after piece, and memory does not grow with their number. Sums run in float64 over blocks of float32 products
of activations less a fixed shift (the mean of the first block), so that nothing is lost where the mean is large beside the deviations
(Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983). Tiles of the product are computed by one thread each: the bits
do not depend on the number of threads.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae.activations.formats import widen
from sae.dictionaries.kernels.cpu import team
from sae.errors import FormatError
from sae.models.tokens import offsets_in_document

BLOCK_ROWS = 4096
"""Rows summed in float32 before they are added in float64."""
PART_ROWS = 512
"""Rows that one thread adds up at a time."""
TILE = 144
"""Columns of the covariance that one thread computes at a time."""


class Piece(NamedTuple):
    """Some consecutive tokens of one site."""

    acts: Shaped[Tensor, "n width"]
    """As stored."""
    norms: Float[Tensor, "n"]
    """|a|."""
    eligible: Bool[Tensor, "n"]
    """Whether the position may be used at all, whatever its norm."""


@dataclass(frozen=True)
class Moments:
    """What is measured of a site, over the tokens that the mask keeps."""

    n: int
    """Tokens kept."""
    n_outliers: int
    """Eligible tokens left out for their norm."""
    mean: Float[Tensor, "width"]
    """mu, float64."""
    covariance: Float[Tensor, "width width"]
    """Sigma, float64."""
    mean_norm: float
    """Mean of |a|."""
    mean_centred_norm: float
    """Mean of |a - mu|."""
    median_norm: float
    """Median of |a| over eligible tokens, outliers included."""
    threshold: float
    """Largest norm kept."""


def eligible_positions(
    document_ids: Int[Tensor, "rows context"], *, skipped_positions: tuple[int, ...], isolated: bool
) -> Bool[Tensor, "rows context"]:
    """False at the skipped positions of a window: of the row, or of the document within the row where documents are isolated."""
    rows, context = document_ids.shape
    positions = offsets_in_document(document_ids) if isolated else torch.arange(context).expand(rows, context)
    return ~torch.isin(positions, torch.tensor(skipped_positions, dtype=positions.dtype))


def measure(pieces: Callable[[], Iterable[Piece]], *, width: int, norm_ratio: float) -> Iterator[int]:
    """The Moments of all pieces, as the iterator's return value; it yields the number of tokens of each piece, twice over.

    `pieces` starts a new pass. Without any eligible token all moments are 0.
    """
    median = median_of(lambda: (piece.norms[piece.eligible].numpy() for piece in pieces()))
    threshold = norm_ratio * median
    sums, n_outliers, norm_sum = Sums(width), 0, 0.0
    for piece in pieces():
        keep = kept(piece, threshold)
        n_outliers += int(piece.eligible.sum() - keep.sum())
        norm_sum += _sum(piece.norms[keep])
        for block, left_out in _blocks(piece, keep):
            sums.add_(block, left_out)
        yield len(keep)
    mean, covariance, n = sums.mean, sums.covariance, max(sums.n, 1)
    centred, mean32 = 0.0, mean.float()
    for piece in pieces():
        for block, left_out in _blocks(piece, kept(piece, threshold)):
            lengths = torch.linalg.vector_norm(block.sub_(mean32), dim=1)
            centred += _sum(lengths.index_fill_(0, left_out, 0.0))
        yield len(piece.norms)
    return Moments(sums.n, n_outliers, mean, covariance, norm_sum / n, centred / n, median, threshold)


def kept(piece: Piece, threshold: float) -> Bool[Tensor, "n"]:
    """Which tokens are used: eligible, and of norm at most `threshold`."""
    return piece.eligible & (piece.norms.double() <= threshold)


def _blocks(piece: Piece, keep: Bool[Tensor, "n"]) -> Iterator[tuple[Float[Tensor, "rows width"], Int[Tensor, "left_out"]]]:
    """Consecutive rows in float32, in memory of their own, and the numbers of those among them that are not kept."""
    for acts, norms, part in zip(piece.acts.split(BLOCK_ROWS), piece.norms.split(BLOCK_ROWS), keep.split(BLOCK_ROWS), strict=True):
        left_out = (~part).nonzero().squeeze(1)
        if len(left_out) < len(part):
            yield widen(acts, norms) if acts.dtype != torch.float32 else acts.clone(), left_out


def _sum(values: Float[Tensor, "n"]) -> float:
    """In float64, in an order that does not depend on the number of threads."""
    return float(values.numpy().sum(dtype=np.float64))


class Sums:
    """Running sums of rows, and of products of rows less a shift, in float64."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.shift = torch.zeros(width)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)
        """Of which only the tiles on and above the diagonal are kept up."""

    def add_(self, rows: Float[Tensor, "rows width"], left_out: Int[Tensor, "left_out"]) -> None:
        """Add rows but those with the numbers `left_out`; what is given is overwritten."""
        if not self.n:
            self.shift = rows.index_fill(0, left_out, 0.0).sum(dim=0) / (len(rows) - len(left_out))
        rows[left_out] = self.shift  # less the shift they are nothing
        self.n += len(rows) - len(left_out)
        parts = rows.split(PART_ROWS)
        totals: list[Tensor] = [self.total] * len(parts)

        def shift(number: int) -> None:
            totals[number] = parts[number].sum(dim=0, dtype=torch.float64)
            parts[number].sub_(self.shift)

        team.each(shift, len(parts))
        self.total += sum(totals) - len(left_out) * self.shift.double()
        width = rows.shape[1]
        corners = [(top, left) for top in range(0, width, TILE) for left in range(top, width, TILE)]

        def multiply(number: int) -> None:
            top, left = corners[number]
            a, b = rows[:, top : top + TILE], rows[:, left : left + TILE]
            self.products[top : top + TILE, left : left + TILE] += a.T @ b

        team.each(multiply, len(corners))

    @property
    def mean(self) -> Float[Tensor, "width"]:
        """mu."""
        return self.total / max(self.n, 1)

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """Sigma."""
        if not self.n:
            return self.products
        beyond = self.mean - self.shift.double()
        upper = (self.products / self.n - torch.outer(beyond, beyond)).triu()
        return upper + upper.triu(1).T


def median_of(pieces: Callable[[], Iterable[Float[np.ndarray, "n"]]]) -> float:
    """The median of numbers >= 0 in float32, the mean of the middle two of an even number; 0 of none. Memory does not grow with their number.

    The bits of such floats order like them: one pass counts the upper sixteen, a second the lower sixteen where the middle two fall.
    """
    counts = np.zeros(2**16, dtype=np.int64)
    for values in pieces():
        counts += np.bincount(values.view(np.uint32) >> 16, minlength=2**16)
    n = int(counts.sum())
    if n == 0:
        return 0.0
    ranks = ((n - 1) // 2, n // 2)
    ends = np.cumsum(counts)
    upper = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    lower = {bits: np.zeros(2**16, dtype=np.int64) for bits in upper}
    for values in pieces():
        bits = values.view(np.uint32)
        for high, found in lower.items():
            found += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=2**16)
    middle = []
    for rank, high in zip(ranks, upper, strict=True):
        within = rank - int(ends[high] - counts[high])
        low = int(np.searchsorted(np.cumsum(lower[high]), within, side="right"))
        middle.append(float(np.array([high << 16 | low], dtype=np.uint32).view(np.float32)[0]))
    return (middle[0] + middle[1]) / 2


def upper_triangle(matrix: Float[Tensor, "width width"]) -> Float[Tensor, "entries"]:
    """The entries on and above the diagonal of a symmetric matrix, row by row."""
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


def symmetric(triangle: Float[Tensor, "entries"], width: int) -> Float[Tensor, "width width"]:
    """The symmetric matrix with this upper triangle."""
    matrix = torch.zeros(width, width, dtype=triangle.dtype)
    row, column = torch.triu_indices(width, width)
    matrix[row, column] = triangle
    matrix[column, row] = triangle
    return matrix


def check_finite(norms: Float[Tensor, "n"], *, site: str, first_token: int, context: int) -> None:
    """Raises FormatError naming the site, row and position of the first activation that is NaN or infinite, by its norm."""
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        token = first_token + int((~finite).nonzero()[0, 0])
        where = f"row {token // context}, position {token % context}"
        raise FormatError(
            f"{site} has NaN or infinite activations at {int((~finite).sum())} tokens here, the first in {where}; what was captured before is "
            "kept: run the model in a wider dtype (bfloat16 or float32), or look at the text there"
        )
