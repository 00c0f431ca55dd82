"""Moments of activations, and the norm above which a token counts as an outlier.

    threshold = ratio * median |a|    mu = (1/n) sum a    Sigma = (1/n) sum (a - mu)(a - mu)^T    total variance = tr Sigma

The first position of a window and some separators carry norms a hundred times the median (Sun et al., "Massive activations in large language
models", arXiv 2402.17762), so that any mean that includes them is meaningless: the median and threshold come first, the sums after them.

Activations are read twice, piece after piece, and memory does not grow with their number. The mean is summed in float64. Products are those of
activations less a fixed shift near the mean of the first block, so that nothing is lost where the mean is large beside the deviations (Chan,
Golub, LeVeque, "Algorithms for computing the sample variance", 1983): in float32 within a block, in float64 over blocks; see
`sae.dictionaries.kernels.cpu.second_moments` for bfloat16. Parts are computed by one thread each: the bits do not depend on their number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae.activations.formats import widen
from sae.dictionaries.kernels.cpu import second_moments, team
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.errors import FormatError
from sae.models.tokens import offsets_in_document

BLOCK_ROWS = 4096
"""Rows summed in float32 before they are added in float64."""
PART_ROWS = 512
"""Rows, or pairs of rows, that one thread adds up at a time."""
FAR = 4.0
"""A column of bfloat16 is shifted where its mean is more than so many times its spread from 0."""
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
        for block, rows in _blocks(piece, keep):
            sums.add_(block, rows)
        yield len(keep)
    mean, covariance, n = sums.mean, sums.covariance, max(sums.n, 1)
    centred = 0.0
    for piece in pieces():
        for block, rows in _blocks(piece, kept(piece, threshold)):
            centred += sums.centred_lengths(block, rows)
        yield len(piece.norms)
    return Moments(sums.n, n_outliers, mean, covariance, norm_sum / n, centred / n, median, threshold)


def kept(piece: Piece, threshold: float) -> Bool[Tensor, "n"]:
    """Which tokens are used: eligible, and of norm at most `threshold`."""
    return piece.eligible & (piece.norms.double() <= threshold)


class Block(NamedTuple):
    """Consecutive rows as they are stored."""

    acts: Shaped[Tensor, "n width"]
    """As stored."""
    norms: Float[Tensor, "n"]
    """|a|."""


def _blocks(piece: Piece, keep: Bool[Tensor, "n"]) -> Iterator[tuple[Block, Int[Tensor, "rows"]]]:
    """Consecutive rows, and the numbers of those among them that are kept."""
    for acts, norms, part in zip(piece.acts.split(BLOCK_ROWS), piece.norms.split(BLOCK_ROWS), keep.split(BLOCK_ROWS), strict=True):
        rows = part.nonzero().squeeze(1)
        if len(rows):
            yield Block(acts, norms), rows


def _sum(values: Float[Tensor, "n"]) -> float:
    """In float64, in an order that does not depend on the number of threads."""
    return float(values.numpy().sum(dtype=np.float64))


class Sums:
    """Running sums of rows, and of products of rows less a shift, in float64."""

    def __init__(self, width: int) -> None:
        self.n, self.width = 0, width
        self.shift = torch.zeros(width)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(second_moments.padded(width), second_moments.padded(width), dtype=torch.float64)
        """Of which only what is on and above the diagonal counts."""

    def add_(self, block: Block, rows: Int[Tensor, "rows"]) -> None:
        """Add the rows of these numbers."""
        exact = block.acts.dtype == torch.bfloat16 and second_moments.is_fast()
        if not self.n:
            sample = widen(block.acts[rows[:PART_ROWS]], block.norms[rows[:PART_ROWS]])
            self.shift = sample.mean(dim=0)
            if exact:
                far = self.shift.abs() > FAR * sample.std(dim=0, correction=0)
                self.shift = torch.where(far, self.shift.bfloat16().float(), 0.0)
        if exact:
            self._add_bfloat16_(block.acts, rows)
        else:
            self._add_float32_(widen(*block)[rows])
        self.n += len(rows)

    def _add_bfloat16_(self, acts: Tensor, rows: Tensor) -> None:
        n_pairs, width = -(-len(rows) // 2), len(self.products)
        bits, numbers = acts.view(torch.uint16).numpy(), rows.numpy()
        shift = torch.nn.functional.pad(self.shift, (0, width - self.width)).numpy()
        pairs = recycled(width * n_pairs, dtype=torch.uint32).numpy()
        n_parts, n_groups = -(-n_pairs // PART_ROWS), width // second_moments.GROUP
        totals = np.zeros((n_parts, width))

        def pack(part: int) -> None:
            words = np.zeros(width, dtype=np.uint32)
            ends = (part * PART_ROWS, min(n_pairs, (part + 1) * PART_ROWS))
            second_moments.pack(bits, numbers, shift, totals[part], words, words.view(np.float32), pairs, n_pairs, *ends)

        def multiply(number: int) -> None:
            group = n_groups - 1 - number  # the longest first
            columns = slice(group * second_moments.GROUP, (group + 1) * second_moments.GROUP)
            found = np.zeros((columns.stop, second_moments.GROUP), dtype=np.float32)
            second_moments.add_group(pairs, n_pairs, group, found.reshape(-1))
            self.products[: columns.stop, columns] += torch.from_numpy(found)

        team.each(pack, n_parts)
        team.each(multiply, n_groups)
        self.total += torch.from_numpy(totals.sum(axis=0)[: self.width])

    def _add_float32_(self, rows: Tensor) -> None:
        parts = rows.split(PART_ROWS)
        totals: list[Tensor] = [self.total] * len(parts)

        def shift(number: int) -> None:
            totals[number] = parts[number].sum(dim=0, dtype=torch.float64)
            parts[number].sub_(self.shift)

        corners = [(top, left) for top in range(0, self.width, TILE) for left in range(top, self.width, TILE)]

        def multiply(number: int) -> None:
            (top, left), end = corners[number], self.width
            a, b = rows[:, top : min(end, top + TILE)], rows[:, left : min(end, left + TILE)]
            self.products[top : top + a.shape[1], left : left + b.shape[1]] += a.T @ b

        team.each(shift, len(parts))
        team.each(multiply, len(corners))
        self.total += sum(totals)

    def centred_lengths(self, block: Block, rows: Int[Tensor, "rows"]) -> float:
        """The sum of |a - mu| over the rows of these numbers, once all have been added."""
        mean = self.mean.float()
        if block.acts.dtype != torch.bfloat16:
            return _sum(torch.linalg.vector_norm(widen(*block)[rows].sub_(mean), dim=1))
        bits, numbers, found = block.acts.view(torch.uint16).numpy(), rows.split(PART_ROWS), np.zeros(-(-len(rows) // PART_ROWS))

        def add(part: int) -> None:
            words = np.empty(self.width, dtype=np.uint32)
            found[part] = second_moments.centred_length_sum(bits, numbers[part].numpy(), mean.numpy(), words, words.view(np.float32))

        team.each(add, len(found))
        return float(found.sum())

    @property
    def mean(self) -> Float[Tensor, "width"]:
        """mu."""
        return self.total / max(self.n, 1)

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """Sigma."""
        products = self.products[: self.width, : self.width]
        if not self.n:
            return products
        beyond = self.mean - self.shift.double()
        upper = (products / self.n - torch.outer(beyond, beyond)).triu()
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
