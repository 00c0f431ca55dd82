"""The processes that train together, as the objective and the loop see them; a single process is the smallest world.

    batch = the rows of rank 0, then those of rank 1, ...         loss = sum over ranks of what each computes on its own rows

Each rank divides its squared errors by the variance of the whole batch, so that its loss is a share of the whole one and gradients add up.
What is no sum (which values BatchTopK keeps, which latents fired last, which rows dead latents start from) is settled over the whole batch:
the result is that of one process which sees it all, up to the rounding of sums in another order.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.activations import BatchTopK
from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.dictionaries.kernels.dispatch import kernels_for
from sae.errors import ConfigError, SaeError
from sae.fingerprint import digest
from sae.training.firing import tokens_since_fired
from sae.training.peers import Peers, bounds, n_of_largest

Batch = TypeVar("Batch", Tensor, tuple[Tensor, Tensor])
DRIFT = 1e-3
"""Relative difference between the gradients' norms of two ranks above which their weights are no longer the same."""


@dataclass(frozen=True, eq=False)
class World:
    """Processes in a grid: those that share the rows of a batch, and those that share the latents of a dictionary."""

    along_rows: Peers = field(default_factory=Peers)
    """Those that hold the same latents and see other rows."""
    along_latents: Peers = field(default_factory=Peers)
    """Those that see the same rows and hold other latents; see `ShardedAutoencoder`."""
    everyone: Peers = field(default_factory=Peers)
    """All of them."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""
    counts: tuple[int, ...] = (0,)
    """Rows of each rank in the batch at hand; see `at`."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints, and saves what is the same in all."""
        return self.everyone.rank == 0

    def rows(self, batch: Batch) -> Batch:
        """This process's rows of a batch that every process has: consecutive ones, as many as others have or one more.

        Raises ConfigError if there are fewer rows than processes to share them.
        """
        if isinstance(batch, tuple):
            return self.rows(batch[0]), self.rows(batch[1])
        peers = self.along_rows
        if len(batch) < peers.size:
            raise ConfigError(f"batch must have a row for each of {peers.size} processes, got {len(batch)} (World.rows)")
        start, stop = bounds(len(batch), peers.rank, peers.size)
        return batch[start:stop]

    def together(self) -> AbstractContextManager[None]:
        """What fails in the `with` block in one process fails in all."""
        return self.everyone.together()

    def begin_(self, tensors: list[Tensor], description: Mapping[str, Any]) -> None:
        """Start from the tensors of the first rank, in place. Raises ConfigError where a rank describes its run otherwise than the first."""
        if self.everyone.alone:
            return
        own = torch.tensor([*bytes.fromhex(digest(description))], device=self.device)
        first = own.clone()
        self.everyone.adopt_([first])
        with self.together():
            if not torch.equal(own, first):
                raise ConfigError("dictionary.config, config, objective and state must be those of process 0, got others (train)")
        self.along_rows.adopt_(tensors)

    def at(self, n_rows: int) -> "World":
        """The world at a batch of which this process has n_rows rows."""
        return replace(self, counts=tuple(self.along_rows.counts(n_rows)))

    @property
    def n_rows(self) -> int:
        """Rows of the whole batch at hand."""
        return sum(self.counts)

    @property
    def rows_before(self) -> int:
        """Rows of the batch at hand that lower ranks have."""
        return sum(self.counts[: self.along_rows.rank])

    def explain(self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], ask: Ask) -> Explained:
        """`dictionary.explain`, where BatchTopK's share of this rank's rows is the one it has in the whole batch."""
        if self._couples_rows(dictionary):
            ask = replace(ask, k=self._own_k(dictionary, x, dictionary.k if ask.k is None else ask.k))
        return dictionary.explain(x, ask)

    def total(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum of `value` over the ranks; without a gradient."""
        return self.along_rows.total(value)

    @property
    def share(self) -> float:
        """This rank's part of the rows of the batch at hand."""
        return 1.0 if self.along_rows.alone else self.counts[self.along_rows.rank] / self.n_rows

    def variance(self, y: Float[Tensor, "n width"]) -> Float[Tensor, ""]:
        """sum |y - mean y|^2 over the rows of the batch at hand; without a gradient.

        Each rank sums over its own n_r rows about their own mean m_r; the whole has sum_r n_r |m_r - m|^2 on top (Chan, Golub & LeVeque 1983).
        """
        y = y.detach()
        mean = y.sum(0) / len(y)
        energy, offset = _energy(y), float(len(y) * mean.double().square().sum())
        # Scaled activations have a small mean: subtracting its square then loses no digits, and spares a copy of the batch.
        own = energy - offset if offset < 0.5 * float(energy) else _energy(y - mean)
        own = own.to(y.dtype)
        if self.along_rows.alone:
            return own
        wide = torch.promote_types(y.dtype, torch.float32)
        parts = self.along_rows.concatenated(torch.cat([mean, own[None]])[None].to(wide), [1] * self.along_rows.size)
        means, n = parts[:, :-1], torch.tensor(self.counts, dtype=wide, device=y.device)
        between = (n @ (means - (n @ means) / n.sum()).square()).sum()
        return (parts[:, -1].sum() + between).to(y.dtype)

    def reduce_gradients_(self, parameters: list[torch.nn.Parameter]) -> None:
        """Put the sum of the gradients over the ranks into `grad`, in place."""
        self.along_rows.add_up_([parameter.grad for parameter in parameters if parameter.grad is not None])

    def agreed(self, norm: float) -> float:
        """One value for what every rank has computed of the same gradient. Raises SaeError if the values differ by more than rounding."""
        if self.along_rows.alone:
            return norm
        high, low = self.along_rows.largest(torch.tensor([norm, -norm], dtype=torch.float64)).tolist()
        if high + low > DRIFT * high:
            raise SaeError(f"the processes have drifted apart: gradient norms from {-low:.6g} to {high:.6g} of the same gradient")
        return high

    def settle_(self, dictionary: Dictionary, codes: SparseCodes) -> None:
        """`dictionary.settle_`, in place; BatchTopK takes note of the smallest positive value of the batch at hand."""
        if self._couples_rows(dictionary):
            positive = codes.values[codes.values > 0]
            least = self.along_rows.smallest(positive.min() if len(positive) else codes.values.new_tensor(torch.inf))
            one = torch.where(least.isfinite(), least, 0.0).view(1, 1)
            codes = SparseCodes.of_slots(torch.zeros_like(one, dtype=torch.long), one, codes.d_sae)
        dictionary.settle_(codes)

    def since_fired(self, since: Int[Tensor, "d_sae"], codes: SparseCodes) -> Int[Tensor, "d_sae"]:
        """Tokens since each latent fired, after the rows of the batch at hand have been seen in the order of the ranks."""
        n, own = len(codes), tokens_since_fired(since, codes)
        if self.along_rows.alone:
            return own
        n_after = self.n_rows - self.rows_before - n
        silent = torch.iinfo(own.dtype).max
        last = self.along_rows.smallest(torch.where(own < n, own + n_after, silent))
        return torch.where(last < silent, last, since + self.n_rows)

    def taken(self, y: Float[Tensor, "n width"], numbers: Int[Tensor, "m"]) -> Float[Tensor, "m width"]:
        """Rows of the batch at hand by their numbers in it."""
        if self.along_rows.alone:
            return y[numbers]
        own = numbers - self.rows_before
        mine = (own >= 0) & (own < len(y))
        rows = y.new_zeros(len(numbers), y.shape[1])
        rows[mine] = y[own[mine]]
        return self.total(rows)

    def _couples_rows(self, dictionary: Dictionary) -> TypeGuard[Autoencoder]:
        """Whether which values of a row are kept depends on rows of other ranks."""
        return not self.along_rows.alone and isinstance(dictionary, Autoencoder) and isinstance(dictionary.config.activation, BatchTopK)

    @torch.no_grad()
    def _own_k(self, dictionary: Autoencoder, x: Tensor, k: float) -> float:
        """How many values per row of this rank are among the round(k n) largest of all n rows."""
        kernels, peers, d_sae = kernels_for(dictionary.W_enc), self.along_rows, dictionary.d_sae
        centred = x if dictionary.is_transcoder else x - dictionary.b_dec
        n_kept = round(k * self.n_rows)
        width = min(d_sae, int(4 * k) + 8)
        while True:
            values = kernels.top(centred, dictionary.W_enc.T.contiguous(), dictionary.b_enc, width, False).values
            n_own = n_of_largest(values.reshape(-1), n_kept, peers)
            least = values.reshape(-1).topk(n_own).values[-1] if n_own else torch.inf
            # Where the last candidate of a row is kept, the row may hold more that would be.
            cut = torch.tensor(float(width < d_sae and bool((values[:, -1] >= least).any())))
            if not float(peers.largest(cut)):
                return n_own / len(x)
            width = min(d_sae, 2 * width)


def _energy(y: Tensor) -> Tensor:
    """sum |y|^2 in float64 over the rows' float32 norms; one norm over all entries would be off by 1e-5."""
    return torch.linalg.vector_norm(y, dim=1).double().square().sum()
