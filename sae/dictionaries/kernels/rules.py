"""Which pre-activations an encoder keeps. A rule is a value; the kernels find what it keeps without holding all pre-activations.

Top(k)           the k largest of each row, or with `signed` the k largest in size
TopOfBatch(k)    the k n largest of the whole batch of n rows: k a row on average        Bussmann et al. 2024 (2412.06410) section 3
Above(floor)     every one above the floor of its latent
"""

import math
from dataclasses import dataclass
from types import ModuleType

from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.reference import Slots, above


@dataclass(frozen=True)
class Top:
    """The k largest of each row."""

    k: int
    """Entries kept per row."""
    signed: bool = False
    """Whether they are ranked by size, with their sign kept; otherwise negative ones become 0."""

    def select(self, kernels: ModuleType, x: Tensor, rows: Tensor, bias: Tensor) -> Slots:
        """The slots of x rows^T + bias, by falling value (by falling size if signed)."""
        return kernels.top(x, rows, bias, self.k, self.signed)


@dataclass(frozen=True)
class TopOfBatch:
    """The round(k n) largest of all n rows together; negative ones become 0."""

    k: float
    """Entries kept per row, on average."""

    def select(self, kernels: ModuleType, x: Tensor, rows: Tensor, bias: Tensor) -> Slots:
        """The slots of x rows^T + bias, by falling value in each row, in as many slots as the fullest row needs.

        Exact: the largest of each row are ranked together, and where the last of them is among those kept, more of each row are taken.
        """
        n_kept, d_sae = round(self.k * len(x)), len(rows)
        width = min(d_sae, 4 * math.ceil(self.k) + 8)
        while True:
            values, indices = kernels.top(x, rows, bias, width, False)
            flat = values.reshape(-1)
            kept = flat.new_zeros(flat.shape, dtype=bool)
            kept[flat.topk(min(n_kept, len(flat))).indices] = True
            kept = kept.view_as(values) & (values > 0)
            if width == d_sae or not bool(kept[:, -1].any()):
                break
            width = min(d_sae, 2 * width)
        used = max(1, int(kept.sum(1).max())) if len(x) else 1
        return Slots((values * kept)[:, :used].contiguous(), (indices * kept)[:, :used].contiguous())


@dataclass(frozen=True, eq=False)
class Above:
    """Every entry above the floor of its latent."""

    floor: Float[Tensor, "d_sae"]
    """The floors."""

    def select(self, kernels: ModuleType, x: Tensor, rows: Tensor, bias: Tensor) -> Slots:
        """The slots of x rows^T + bias, by rising latent."""
        return above(x, rows, bias, self.floor)


Rule = Top | TopOfBatch | Above
