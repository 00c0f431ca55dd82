"""Rows of many memory-mapped shards, in any order, as one array.

    out[i] = row t_i,        shard s holds the rows start[s] .. start[s + 1] - 1, start[0] = 0

in the storage dtype, or widened to float32 while it is copied. Rows stored in eight bits are directions with their norm beside them:

    row = q |a| / |q|,       q int8 [width], |a| float32;  0 where q = 0
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.errors import ConfigError

BLOCK_BYTES = 1 << 20
"""What a thread writes at a time; a smaller read is done by the calling thread alone."""
WIDEST_INT8 = (2**31 - 1) // 127**2
"""Numbers whose squares fit in 32 bits together; wider int8 rows are read through torch."""
STORED = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8)
"""Dtypes of shards."""


class Rows:
    """The rows of one site, numbered through its shards. Holds no copy of them: where they are in memory, and that they stay there.

    `acts` are the shards' rows, `norms` their norms, which int8 storage needs. Raises ConfigError when widths or dtypes differ between
    shards, a dtype is none of STORED, or int8 comes without one norm per row.
    """

    def __init__(self, acts: Sequence[Shaped[Tensor, "_ width"]], norms: Sequence[Float[Tensor, "_"]] | None = None):
        _check(acts, norms)
        self._acts = tuple(acts)
        self._norms = tuple(norms) if norms is not None and acts[0].dtype == torch.int8 else None
        self._n = sum(len(shard) for shard in acts)
        self._table = _Table(self._acts, self._norms) if _addressable(self._acts, self._norms) else None

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        return f"Rows({len(self):,} of width {self.width}, {self.dtype}, in {len(self._acts)} shards)"

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self._acts[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """How the rows are stored."""
        return self._acts[0].dtype

    def gather(self, index: Int[Tensor, "n"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "n width"]:
        """The rows with these numbers, in this order, which may repeat; exact, except that a narrower dtype than the stored one rounds.

        The result is the caller's own. Its memory is used again once the caller has dropped it, so a loop over batches touches no fresh
        pages. Raises ConfigError when an index is out of range or `dtype` is not a floating one.
        """
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype must be a floating one, got {dtype} (gather); stored eight-bit rows are read as torch.float32")
        if index.dtype == torch.bool or index.dtype.is_floating_point:
            raise ConfigError(f"token_index must hold integers, got {index.dtype} (gather); a mask becomes indices by mask.nonzero()[:, 0]")
        if self._table is None:
            return gather_with_torch(self._acts, self._norms, index, dtype)
        direct = dtype if dtype == self.dtype or (dtype == torch.float32 and self.dtype != torch.float64) else self.dtype
        return self._table.gather(index, torch.float32 if direct == torch.int8 else direct).to(dtype)


def gather_with_torch(
    acts: Sequence[Shaped[Tensor, "_ width"]], norms: Sequence[Float[Tensor, "_"]] | None, index: Int[Tensor, "n"], dtype: torch.dtype
) -> Float[Tensor, "n width"]:
    """What `Rows.gather` returns, through torch's own operations, one shard after the other: the reference, and the way for the odd cases
    (shards that are not contiguous or not in the CPU's memory, rows of no width, int8 rows wider than WIDEST_INT8).
    """
    starts = torch.tensor([0, *(len(shard) for shard in acts)]).cumsum(0)
    _check_range(index, int(starts[-1]))
    out = torch.empty(len(index), acts[0].shape[1], dtype=dtype, device=acts[0].device)
    shards = torch.searchsorted(starts, index.long(), right=True) - 1
    for shard in shards.unique().tolist():
        here = (shards == shard).nonzero().squeeze(1)
        rows = index.long()[here] - starts[shard]
        found = acts[shard][rows]
        out[here] = found.to(dtype) if norms is None else _decoded(found, norms[shard][rows]).to(dtype)
    return out


def _decoded(q: Tensor, norms: Tensor) -> Tensor:
    size = q.long().square().sum(dim=1).double().sqrt()
    scale = torch.where(size > 0, norms.double() / size, 0.0).float()
    return q.float() * scale[:, None]


def _check(acts: Sequence[Tensor], norms: Sequence[Tensor] | None) -> None:
    if not acts:
        raise ConfigError("acts must have at least one shard, got none (Rows)")
    kinds = {(shard.shape[1], shard.dtype) for shard in acts}
    if len(kinds) > 1 or acts[0].dtype not in STORED:
        found = ", ".join(sorted(f"width {width} {dtype}" for width, dtype in kinds))
        raise ConfigError(f"acts must have one width and one dtype out of {', '.join(map(str, STORED))}, got {found} (Rows)")
    if acts[0].dtype == torch.int8 and (norms is None or [len(each) for each in norms] != [len(shard) for shard in acts]):
        raise ConfigError("int8 rows need norms, one float32 for each row of each shard (Rows)")


def _check_range(index: Tensor, n_rows: int) -> None:
    bad = index[(index < 0) | (index >= n_rows)]
    if len(bad):
        raise ConfigError(f"token_index must be in 0..n_tokens-1={n_rows - 1}, got {int(bad[0])} (gather)")


def _addressable(acts: tuple[Tensor, ...], norms: tuple[Tensor, ...] | None) -> bool:
    in_order = all(shard.device.type == "cpu" and shard.is_contiguous() for shard in (*acts, *(norms or ())))
    return in_order and any(shard.numel() for shard in acts) and (norms is None or acts[0].shape[1] <= WIDEST_INT8)


class _Table:
    """Where each shard begins, in rows and in memory."""

    def __init__(self, acts: tuple[Tensor, ...], norms: tuple[Tensor, ...] | None):
        filled = [shard for shard in range(len(acts)) if len(acts[shard])]
        starts = np.cumsum([0, *(len(acts[shard]) for shard in filled)], dtype=np.int64)
        self.n_rows, self.dtype, self.width = int(starts[-1]), acts[0].dtype, acts[0].shape[1]
        self.shards = np.stack([starts, _addresses([acts[shard] for shard in filled])])
        self.norms = None if norms is None else np.stack([starts, _addresses([norms[shard] for shard in filled])])
        self.first_shard, self.shift = _first_shards(starts)

    def gather(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows in the stored dtype or, where that is narrower, in float32."""
        from sae.dictionaries.kernels.cpu.memory import recycled

        numbers = index.detach().to(torch.int64).contiguous().numpy()
        out = recycled(len(numbers), self.width, dtype=dtype)
        copy, n = self._copier(out), max(1, BLOCK_BYTES // (self.width * dtype.itemsize))

        def block(b: int) -> None:
            part = slice(b * n, (b + 1) * n)
            if copy(numbers[part], part) >= 0:
                _check_range(index, self.n_rows)

        _each(block, -(-len(numbers) // n))
        return out

    def _copier(self, out: Tensor) -> Callable[[np.ndarray, slice], int]:
        """A function of row numbers and the part of `out` they go to, that copies them, or returns the place of the first impossible one."""
        from sae.dictionaries.kernels.cpu import copies

        where = (self.first_shard, self.shift)
        if out.dtype == self.dtype:
            rows = out.view(torch.uint8).numpy()
            return lambda numbers, part: copies.copy_rows(numbers, self.shards, *where, rows.shape[1], rows[part])
        if self.dtype == torch.bfloat16:
            bits = out.numpy().view(np.uint32)
            return lambda numbers, part: copies.widen_bfloat16(numbers, self.shards, *where, bits[part])
        floats = out.numpy()
        if self.dtype == torch.float16:
            return lambda numbers, part: copies.widen_float16(numbers, self.shards, *where, floats[part])
        return lambda numbers, part: copies.scale_int8(numbers, self.shards, self.norms, *where, floats[part])


_helpers: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_helpers.clear)


def _each(function: Callable[[int], None], n_blocks: int) -> None:
    """function(0), ..., function(n_blocks - 1), by the calling thread and by helpers as soon as they are awake, one thread per torch thread.

    A read takes a third of a millisecond, and to bring the kernels' team together takes as long as a third of a read.
    """
    from sae.dictionaries.kernels.cpu import team

    blocks = itertools.count()

    def work() -> None:
        while (block := next(blocks)) < n_blocks:
            function(block)

    n_helpers = min(team.size(), n_blocks) - 1
    if n_helpers < 1:
        return work()
    if n_helpers not in _helpers:
        _helpers[n_helpers] = ThreadPoolExecutor(n_helpers, thread_name_prefix="sae-gather")
    helping = [_helpers[n_helpers].submit(work) for _ in range(n_helpers)]
    try:
        return work()
    finally:
        for helper in helping:
            helper.result()


def _addresses(tensors: list[Tensor]) -> np.ndarray:
    """Where the tensors begin, and one entry more, that nothing reads."""
    return np.array([*(tensor.data_ptr() for tensor in tensors), 0], dtype=np.int64)


def _first_shards(starts: np.ndarray) -> tuple[np.ndarray, int]:
    """(first_shard, shift) of `copies.locate`: about four entries per shard, so that to search among shards of equal length is one comparison."""
    n_rows, shift = int(starts[-1]), 0
    while (n_rows >> shift) > 4 * len(starts) + 64:
        shift += 1
    blocks = np.minimum(np.arange((n_rows >> shift) + 2, dtype=np.int64) << shift, n_rows - 1)
    return np.searchsorted(starts, blocks, side="right").astype(np.int32) - 1, shift
