"""The processes that train together, as the objective and the loop see them; here there is only one."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class World:
    """One process: its batch is the whole batch, its gradients are the gradients."""

    @property
    def size(self) -> int:
        """Number of processes."""
        return 1

    def total(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The sum of `value` over the processes; without a gradient."""
        return value

    def mean(self, value: float) -> float:
        """The mean of `value` over the processes."""
        return value

    def variance(self, y: Float[Tensor, "n width"]) -> Float[Tensor, ""]:
        """sum |y - mean y|^2 over the rows of all processes; without a gradient."""
        y = y.detach()
        n = self.total(torch.tensor(float(len(y)), dtype=torch.float64, device=y.device))
        mean = self.total(y.sum(0)) / n.to(y.dtype)
        return self.total(torch.linalg.vector_norm(y - mean).square())

    def reduce_gradients_(self, parameters: list[torch.nn.Parameter]) -> None:
        """Put the sum of the gradients over the processes into `grad`, in place."""

    def reduce_since_fired(self, since: Int[Tensor, "d_sae"]) -> Int[Tensor, "d_sae"]:
        """Tokens since each latent fired in any process."""
        return since
