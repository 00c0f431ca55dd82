"""SparseCodes: what a dictionary says about activations, kept sparse.

    z[row, indices[row, s]] += values[row, s]      for s < counts[row]

Row r of the batch has `counts[r]` active slots; the slots after them hold index 0 and value 0. The order of the slots is the encoder's:
largest first for TopK, order of selection for pursuit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.scaling import RowStatistics
from sae.errors import ConfigError

if TYPE_CHECKING:
    import scipy.sparse


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Sparse codes of n rows over d_sae latents."""

    indices: Int[Tensor, "n k_max"]
    """Latent of each slot."""
    values: Float[Tensor, "n k_max"]
    """Value of each slot; may be negative for signed and orthogonal pursuit."""
    counts: Int[Tensor, "n"]
    """Number of active slots of each row."""
    d_sae: int
    """Number of latents."""
    rows: RowStatistics | None = None
    """What the dictionary's normalisation took from every row, which decoding gives back; None where rows are not normalised."""

    @staticmethod
    def of_slots(indices: Int[Tensor, "n k_max"], values: Float[Tensor, "n k_max"], d_sae: int) -> "SparseCodes":
        """Codes whose active slots are those with a value other than 0, in the order they have. Differentiable in `values`."""
        active = values != 0
        counts = active.sum(1)
        if bool(active.all()):
            return SparseCodes(indices, values, counts, d_sae)
        if bool((active[:, 1:] & ~active[:, :-1]).any()):  # an unused slot before an active one
            order = (~active).to(torch.uint8).argsort(dim=1, stable=True)
            indices, values, active = indices.gather(1, order), values.gather(1, order), active.gather(1, order)
        return SparseCodes(indices * active, values * active, counts, d_sae)

    @staticmethod
    def concatenate(parts: Sequence["SparseCodes"]) -> "SparseCodes":
        """The rows of all parts, in order; rows are padded to the widest part. Raises ConfigError if the parts differ in d_sae."""
        if not parts:
            raise ConfigError("parts must hold at least one SparseCodes, got none (SparseCodes.concatenate)")
        widths = sorted({part.d_sae for part in parts})
        if len(widths) > 1:
            raise ConfigError(f"parts must share one d_sae, got {widths} (SparseCodes.concatenate)")
        padded = [part._padded(max(p.k_max for p in parts)) for part in parts]
        fields = [torch.cat([getattr(p, name) for p in padded]) for name in ("indices", "values", "counts")]
        kept = [part.rows for part in parts if part.rows is not None]
        if len(kept) not in (0, len(parts)):
            raise ConfigError("parts must all have row statistics, or none of them (SparseCodes.concatenate)")
        rows = RowStatistics(torch.cat([r.mean for r in kept]), torch.cat([r.scale for r in kept])) if kept else None
        return SparseCodes(*fields, widths[0], rows)

    @property
    def k_max(self) -> int:
        """Number of slots per row."""
        return self.indices.shape[1]

    def __len__(self) -> int:
        return self.indices.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "SparseCodes":
        """The chosen rows: a slice, a boolean mask or a tensor of row numbers."""
        if not isinstance(rows, (slice, Tensor)):
            raise ConfigError(f"rows must be a slice or a tensor, got {rows!r} (SparseCodes)")
        kept = None if self.rows is None else RowStatistics(self.rows.mean[rows], self.rows.scale[rows])
        return SparseCodes(self.indices[rows], self.values[rows], self.counts[rows], self.d_sae, kept)

    def active(self) -> Bool[Tensor, "n k_max"]:
        """Which slots are active."""
        return torch.arange(self.k_max, device=self.counts.device) < self.counts[:, None]

    def dense(self) -> Float[Tensor, "n d_sae"]:
        """z as a matrix; a latent that fills several slots of a row has their sum. Differentiable in `values`."""
        z = self.values.new_zeros(len(self), self.d_sae)
        return z.scatter_add(1, self.indices.long(), self.values * self.active())

    def csr(self) -> "scipy.sparse.csr_matrix":
        """z as a scipy CSR matrix [n, d_sae] with sorted column numbers; a latent that fills several slots of a row has their sum."""
        import scipy.sparse

        active = self.active().cpu()
        starts = torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)]).cpu().numpy()
        values = self.values.detach().cpu()[active]
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        matrix = scipy.sparse.csr_matrix((values.numpy(), self.indices.cpu()[active].numpy(), starts), shape=(len(self), self.d_sae))
        matrix.sum_duplicates()
        return matrix

    def merged(self) -> "SparseCodes":
        """The same z with a latent at most once per row, its values summed, in the order of first appearance. Differentiable in
        `values`.
        """
        n, k_max = self.indices.shape
        label = torch.where(self.active(), self.indices, self.d_sae)
        sorted_label, position = label.sort(dim=1, stable=True)
        opens = torch.ones_like(sorted_label, dtype=torch.bool)
        opens[:, 1:] = sorted_label[:, 1:] != sorted_label[:, :-1]
        slot_of_sorted = (opens.cumsum(1) - 1).clamp(min=0)
        opens &= sorted_label < self.d_sae
        # Each group of equal labels is ranked by the position of its first member: stable sorting puts that member at the group's opening.
        first = torch.full((n, k_max), k_max, device=label.device).scatter_reduce(1, slot_of_sorted, position, "amin")
        first = torch.where(torch.arange(k_max, device=label.device) < opens.sum(1, keepdim=True), first, k_max)
        rank = first.argsort(dim=1, stable=True).argsort(dim=1)
        target = rank.gather(1, slot_of_sorted)
        live = sorted_label < self.d_sae
        values = torch.zeros_like(self.values).scatter_add(1, target, self.values.gather(1, position) * live)
        indices = torch.zeros_like(self.indices).scatter_reduce(1, target, (sorted_label * live).to(self.indices.dtype), "amax")
        return SparseCodes(indices, values, opens.sum(1), self.d_sae, self.rows)

    def mean_l0(self) -> float:
        """Mean number of distinct active latents per row; nan for no rows."""
        if not len(self):
            return float("nan")
        label = torch.where(self.active(), self.indices, self.d_sae).sort(dim=1).values
        n_repeats = ((label[:, 1:] == label[:, :-1]) & (label[:, 1:] < self.d_sae)).sum()
        return float(self.counts.sum() - n_repeats) / len(self)

    def detach(self) -> "SparseCodes":
        """The same codes without their autograd history."""
        return replace(self, values=self.values.detach())

    def to(self, device: torch.device | str) -> "SparseCodes":
        """The same codes on another device."""
        rows = None if self.rows is None else RowStatistics(self.rows.mean.to(device), self.rows.scale.to(device))
        return SparseCodes(self.indices.to(device), self.values.to(device), self.counts.to(device), self.d_sae, rows)

    def _padded(self, width: int) -> "SparseCodes":
        missing = width - self.k_max
        if not missing:
            return self
        pad = torch.nn.functional.pad
        return SparseCodes(pad(self.indices, (0, missing)), pad(self.values, (0, missing)), self.counts, self.d_sae, self.rows)
