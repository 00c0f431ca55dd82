"""Processes that exchange tensors. One alone exchanges nothing, so what is written for several is also what one process runs.

Every function here is collective: all peers call it, in the same order. What it returns is the same on every peer to the last bit, so that
decisions taken on it are too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from sae.errors import SaeError

BUCKET_BYTES = 1 << 20
"""Tensors smaller than this travel together, in one message."""
OTHER_FAILURE = "an error that is no SaeError; its own output names it"
"""What the peers are told of a failure that is not one of ours."""


@dataclass(frozen=True, eq=False)
class Peers:
    """The processes of a torch process group, or with no group this process alone."""

    rank: int = 0
    """This process's number among them."""
    size: int = 1
    """How many there are."""
    reference: Callable[[], Any] | None = None
    """A weak reference to the torch.distributed process group: one that outlives the connections aborts the interpreter at its end."""

    def __deepcopy__(self, memo: dict) -> "Peers":
        return self  # a group of processes has no copy

    @property
    def alone(self) -> bool:
        """Whether there is nobody to exchange with."""
        return self.size == 1

    def total(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The sum of `value` over the peers; without a gradient."""
        return self._reduced(value.detach(), dist.ReduceOp.SUM)

    def largest(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The entrywise maximum of `value` over the peers."""
        return self._reduced(value.detach(), dist.ReduceOp.MAX)

    def smallest(self, value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """The entrywise minimum of `value` over the peers."""
        return self._reduced(value.detach(), dist.ReduceOp.MIN)

    def counts(self, n: int) -> list[int]:
        """The number `n` of every peer, by rank."""
        if self.alone:
            return [n]
        mine = torch.zeros(self.size, dtype=torch.long, device=self._device)
        mine[self.rank] = n
        return self.total(mine).tolist()

    def concatenated(self, values: Shaped[Tensor, "n *rest"], counts: list[int] | None = None) -> Shaped[Tensor, "n_all *rest"]:
        """The rows of all peers, by rank; each may have another number of them, which `counts` holds where the caller knows it."""
        if self.alone:
            return values
        counts = self.counts(len(values)) if counts is None else counts
        padded = torch.zeros(max(counts), *values.shape[1:], dtype=values.dtype, device=self._device)
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _explained():
            dist.all_gather(parts, padded, group=self._group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(values.device)

    def add_up_(self, tensors: list[Tensor]) -> None:
        """Put the sum over the peers into every tensor, in place: large ones as they lie in memory, small ones in one message."""
        if self.alone:
            return
        large = [tensor for tensor in tensors if tensor.nbytes >= BUCKET_BYTES and in_memory_order(tensor).is_contiguous()]
        small = [tensor for tensor in tensors if not any(tensor is other for other in large)]
        kinds = {tensor.dtype for tensor in small}
        flat = {dtype: torch.cat([tensor.reshape(-1) for tensor in small if tensor.dtype == dtype]) for dtype in kinds}
        messages = [*(in_memory_order(tensor) for tensor in large), *(flat[dtype] for dtype in sorted(kinds, key=str))]
        with _explained():
            for work in [dist.all_reduce(message, group=self._group, async_op=True) for message in messages]:
                work.wait()
        for dtype, summed in flat.items():
            these = [tensor for tensor in small if tensor.dtype == dtype]
            for tensor, part in zip(these, summed.split([tensor.numel() for tensor in these]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def adopt_(self, tensors: list[Tensor]) -> None:
        """Put what the first peer has into every tensor, in place."""
        if self.alone:
            return
        with _explained():
            for tensor in tensors:
                dist.broadcast(in_memory_order(tensor), group=self._group, group_src=0)

    def sent_to_first(self, tensor: Tensor, source: int, shape: tuple[int, ...]) -> Tensor:
        """On the first peer the tensor of peer `source`, which has the given shape; elsewhere this peer's own."""
        if source == 0 or self.rank not in (0, source):
            return tensor
        with _explained():
            if self.rank == source:
                dist.send(tensor.contiguous(), group=self._group, group_dst=0)
                return tensor
            received = tensor.new_empty(shape)
            dist.recv(received, group=self._group, group_src=source)
            return received

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in the `with` block on one peer fails on all, there with a SaeError that quotes it; all leave the block at one time."""
        if self.alone:
            yield
            return
        message: str = OTHER_FAILURE
        told: list[str] = []
        try:
            yield
            message = ""
        except SaeError as error:
            message = str(error)
            raise
        finally:
            told = self._messages(message)
        failed = [f"process {rank} of {self.size} failed: {text}" for rank, text in enumerate(told) if text]
        if failed:
            raise SaeError("; ".join(failed))

    def _messages(self, message: str) -> list[str]:
        data = message.encode()
        lengths = self.counts(len(data))
        if not any(lengths):
            return [""] * self.size
        text = bytes(self.concatenated(torch.tensor([*data], dtype=torch.uint8, device=self._device), lengths).tolist())
        ends = [sum(lengths[: rank + 1]) for rank in range(self.size)]
        return [text[end - length : end].decode() for end, length in zip(ends, lengths, strict=True)]

    def _reduced(self, value: Tensor, operation: Any) -> Tensor:
        if self.alone:
            return value
        result = value.to(self._device, copy=True).contiguous()
        with _explained():
            dist.all_reduce(result, op=operation, group=self._group)
        return result.to(value.device)

    @property
    def _group(self) -> Any:
        group = self.reference() if self.reference else None
        if group is None:
            raise SaeError("the processes have parted: a World is of use inside its `with launched()` block only (Peers)")
        return group

    @property
    def _device(self) -> torch.device:
        """Where messages must lie: NCCL carries tensors of the GPU only."""
        on_gpu = dist.get_backend(self._group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def bounds(n: int, rank: int, size: int) -> tuple[int, int]:
    """Which of 0 .. n - 1 belong to peer `rank`: consecutive shares that differ by one at most, the larger ones first."""
    share, rest = divmod(n, size)
    start = rank * share + min(rank, rest)
    return start, start + share + (rank < rest)


def n_of_largest(values: Float[Tensor, "m"], n_kept: int, peers: Peers) -> int:
    """How many of the n_kept largest positive values of all peers together are this peer's; of equal ones the lower rank's come first."""
    own = values.topk(min(n_kept, len(values))).values
    counts = peers.counts(int((own > 0).sum()))
    everyone = peers.concatenated(own[: counts[peers.rank]], counts)
    start = sum(counts[: peers.rank])
    kept = everyone.argsort(descending=True, stable=True)[:n_kept]
    return int(((kept >= start) & (kept < start + counts[peers.rank])).sum())


def in_memory_order(tensor: Tensor) -> Tensor:
    """A contiguous view of the same memory (W_enc is stored by columns)."""
    tensor = tensor.detach()
    return tensor if tensor.is_contiguous() else tensor.T


@contextmanager
def _explained() -> Iterator[None]:
    """What torch says when the connection to a peer is lost, as an error that names the cause."""
    try:
        yield
    except RuntimeError as error:
        raise SaeError(f"another process of the run has ended or does not answer: {error}") from error
