"""The Gram matrix of a dictionary that encodes many batches, computed once."""

import torch
from jaxtyping import Shaped
from torch import Tensor

from sae.dictionaries.kernels import reference
from sae.dictionaries.kernels.dispatch import kernels_for


class GramMemo:
    """Keeps G = D D^T (in the form the running kernels want) for as long as D is unchanged and no gradient is recorded.

    G is built when the pursuits asked for so far would have paid for it: d_sae / 2 rows and steps. It changes no result, only where pursuit
    looks first. A change of D in place is noticed by torch's version counter.
    """

    def __init__(self) -> None:
        self._of: tuple[int, int, str] | None = None
        self._gram: Tensor | None = None
        self._row_steps = 0

    def __deepcopy__(self, _: dict) -> "GramMemo":
        return GramMemo()

    def gram_of(self, atoms: Tensor, n: int, k: int) -> Shaped[Tensor, "d_sae d_sae"] | None:
        """G for a pursuit of n rows over k steps, or None where it does not pay yet, does not fit, or D is being trained."""
        kernels, d_sae = kernels_for(atoms), len(atoms)
        fits = getattr(kernels, "gram_fits", reference.gram_fits)(d_sae)
        if (torch.is_grad_enabled() and atoms.requires_grad) or not fits:
            return None
        key = (atoms.data_ptr(), atoms._version, kernels.__name__)
        if key != self._of:
            self._of, self._gram, self._row_steps = key, None, 0
        self._row_steps += n * (k - 1)
        if self._gram is None and 2 * self._row_steps >= d_sae:
            self._gram = getattr(kernels, "gram", reference.gram)(atoms.detach())
        return self._gram
