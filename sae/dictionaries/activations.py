"""Sparse activations: what an autoencoder keeps of its pre-activations pi = (x - b_dec) W_enc + b_enc.

    ReLU         z = ReLU(pi)
    TopK         z = ReLU(the k largest of pi per row)                        Makhzani & Frey 2013 (1312.5663); Gao et al. 2024 (2406.04093) 2.3
    AbsTopK      z = the k largest of pi per row in size, sign kept
    BatchTopK    trained: ReLU(the k n largest of pi in the batch);  encoding: pi H(pi - threshold)        Bussmann et al. 2024 (2412.06410)
    JumpReLU     z = pi H(pi - theta_j), theta_j = exp(log_threshold_j)       Rajamanoharan et al. 2024 (2407.14435)
    Gated        z = H(pi) ReLU(exp(r_mag) (x - b_dec) W_enc + b_mag)         Rajamanoharan et al. 2024 (2404.16014)

An activation is a frozen value: it names its own parameters, states the rule by which slots are kept, and turns their pre-activations into
values. Architectures of the one-layer family differ in nothing else. A new one is a class here and a name in `Activation`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.dictionaries.kernels import Above, Rule, Top, TopOfBatch
from sae.errors import ConfigError

THRESHOLD_DECAY = 0.95
"""Decay per step of BatchTopK's running threshold: an average over about the last twenty batches."""
THRESHOLD_RATE = 10.0
"""How many times the learning rate log_threshold is trained with: at the others' pace L0 runs away from its target faster than thresholds
follow.
"""


@dataclass(frozen=True, eq=False)
class Active:
    """The values that an activation gives to the slots of a batch, and what a sparsity penalty charges for them."""

    values: Float[Tensor, "n k"]
    """Value of each slot."""
    penalty: Float[Tensor, ""]
    """Mean per row of the L1 norm (ReLU, Gated) or of the number of active latents (JumpReLU); 0 where k already fixes it."""
    gates: Float[Tensor, "n k"] | None = None
    """Gated: ReLU(pi), whose own reconstruction error is part of the loss."""


@dataclass(frozen=True)
class _Activation:
    """What every activation can do; the defaults are those of one without parameters."""

    selects: ClassVar[bool] = False
    """Whether the values are the kept pre-activations themselves and k alone decides how many: one kernel then does the whole step."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError where the options do not suit d_sae latents."""

    def parameters(self, d_sae: int) -> dict[str, Tensor]:
        """Trained parameters of its own, by name, as they start."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Numbers that training keeps up to date without a gradient; saved with the dictionary."""
        return {}

    def rule(self, weights: Mapping[str, Tensor], *, training: bool) -> Rule:
        """Which slots are kept. Outside training a row's slots depend on that row only."""
        return Above(torch.zeros_like(weights["b_enc"]))

    def activate(self, pre_acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], weights: Mapping[str, Tensor]) -> Active:
        """The values of the kept slots, differentiable; unused slots have pre-activation 0 and get value 0."""
        return Active(pre_acts, pre_acts.new_zeros(()))

    def settle_(self, values: Float[Tensor, "n k"], weights: Mapping[str, Tensor]) -> None:
        """Bring `state` up to date with the values of a training batch, in place."""

    def with_k(self, k: float) -> "Activation":
        """The same activation with another k. Raises ConfigError where there is none."""
        raise ConfigError(f"k must be absent for an activation without one, got {k} ({type(self).__name__})")

    def folded(self, weights: Mapping[str, Tensor], scale: float) -> "tuple[Activation, dict[str, Tensor]]":
        """The activation, parameters and state that give z / scale for pi / scale."""
        return self, {}  # type: ignore[return-value]


@dataclass(frozen=True)
class ReLU(_Activation):
    """max(pi, 0); its penalty is the L1 norm."""

    kind: Literal["relu"] = "relu"
    """Names the activation in a saved configuration."""

    def activate(self, pre_acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], weights: Mapping[str, Tensor]) -> Active:
        """The kept pre-activations themselves."""
        return Active(pre_acts, pre_acts.sum() / max(len(pre_acts), 1))


@dataclass(frozen=True)
class TopK(_Activation):
    """The k largest pre-activations of each row, rectified. Homogeneous: TopK(c * a) = c * TopK(a) for c > 0."""

    selects: ClassVar[bool] = True
    k: int = 32
    """Active latents per row."""
    kind: Literal["top_k"] = "top_k"
    """Names the activation in a saved configuration."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError unless 1 <= k <= d_sae."""
        if not 1 <= self.k <= d_sae:
            raise ConfigError(f"k must be in 1..d_sae={d_sae}, got {self.k} ({type(self).__name__})")

    def rule(self, weights: Mapping[str, Tensor], *, training: bool) -> Rule:
        """The k largest of each row."""
        return Top(self.k)

    def with_k(self, k: float) -> "TopK":
        """TopK with another k."""
        return replace(self, k=round(k))


@dataclass(frozen=True)
class AbsTopK(_Activation):
    """The k pre-activations of each row that are largest in size, with their signs: a latent then stands for two opposite directions."""

    selects: ClassVar[bool] = True
    k: int = 32
    """Active latents per row."""
    kind: Literal["abs_top_k"] = "abs_top_k"
    """Names the activation in a saved configuration."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError unless 1 <= k <= d_sae."""
        TopK.check(self, d_sae)  # type: ignore[arg-type]

    def rule(self, weights: Mapping[str, Tensor], *, training: bool) -> Rule:
        """The k largest of each row in size."""
        return Top(self.k, signed=True)

    def with_k(self, k: float) -> "AbsTopK":
        """AbsTopK with another k."""
        return replace(self, k=round(k))


@dataclass(frozen=True)
class BatchTopK(_Activation):
    """k active latents per row on average: trained on the k n largest of each batch, encoding with the threshold that this implied.

    The threshold is the running mean, over training batches, of the smallest value kept. It is saved with the dictionary, so that a row's
    codes do not depend on its batch; before any training it is 0. A row may have no active latent.
    """

    selects: ClassVar[bool] = True
    k: float = 32.0
    """Active latents per row, on average."""
    kind: Literal["batch_top_k"] = "batch_top_k"
    """Names the activation in a saved configuration."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError unless 0 < k <= d_sae."""
        if not 0 < self.k <= d_sae:
            raise ConfigError(f"k must be in (0, d_sae={d_sae}], got {self.k} (BatchTopK)")

    def state(self) -> dict[str, Tensor]:
        """The threshold."""
        return {"threshold": torch.zeros(())}

    def rule(self, weights: Mapping[str, Tensor], *, training: bool) -> Rule:
        """The k n largest of a training batch; what exceeds the threshold otherwise."""
        return TopOfBatch(self.k) if training else Above(weights["threshold"].expand_as(weights["b_enc"]))

    def settle_(self, values: Float[Tensor, "n k"], weights: Mapping[str, Tensor]) -> None:
        """threshold <- decay * threshold + (1 - decay) * the smallest positive value of the batch."""
        positive = values[values > 0]
        if len(positive):
            threshold, least = weights["threshold"], positive.min()
            threshold.copy_(torch.where(threshold == 0, least, torch.lerp(least, threshold, THRESHOLD_DECAY)))

    def with_k(self, k: float) -> "BatchTopK":
        """BatchTopK with another k; the threshold still belongs to the old one."""
        return replace(self, k=float(k))

    def folded(self, weights: Mapping[str, Tensor], scale: float) -> "tuple[BatchTopK, dict[str, Tensor]]":
        """threshold / scale."""
        return self, {"threshold": weights["threshold"] / scale}


@dataclass(frozen=True)
class JumpReLU(_Activation):
    """pi where pi exceeds its latent's threshold, else 0; its penalty is L0, the number of active latents.

    The thresholds are trained through straight-through estimates with a rectangle kernel K of width `bandwidth` = eps, on pre-activations:

        d z / d theta = -(theta / eps) K((pi - theta) / eps),     d H(pi - theta) / d theta = -(1 / eps) K((pi - theta) / eps)

    H passes no gradient to pi.
    """

    threshold: float = 1.0
    """Threshold of every latent at the start, in units of x (norm sqrt(d_in))."""
    bandwidth: float = 2.0
    """Width eps of the kernel, in the same unit."""
    kind: Literal["jump_relu"] = "jump_relu"
    """Names the activation in a saved configuration."""

    def check(self, d_sae: int) -> None:
        """Raises ConfigError unless threshold and bandwidth are positive."""
        for name in ("threshold", "bandwidth"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)} (JumpReLU)")

    def parameters(self, d_sae: int) -> dict[str, Tensor]:
        """log_threshold, the logarithm of theta."""
        return {"log_threshold": torch.full((d_sae,), math.log(self.threshold))}

    def rule(self, weights: Mapping[str, Tensor], *, training: bool) -> Rule:
        """What exceeds the threshold; in training also what is less than half the bandwidth below it, for its gradient."""
        return Above(weights["log_threshold"].detach().exp() - (self.bandwidth / 2 if training else 0.0))

    def activate(self, pre_acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], weights: Mapping[str, Tensor]) -> Active:
        """pi H(pi - theta), and L0, both with gradients in theta."""
        theta = weights["log_threshold"].exp()[indices]
        values = Jump.apply(pre_acts, theta, self.bandwidth)
        return Active(values, Step.apply(pre_acts, theta, self.bandwidth).sum() / max(len(pre_acts), 1))

    def folded(self, weights: Mapping[str, Tensor], scale: float) -> "tuple[JumpReLU, dict[str, Tensor]]":
        """theta / scale and bandwidth / scale."""
        return replace(self, bandwidth=self.bandwidth / scale), {"log_threshold": weights["log_threshold"] - math.log(scale)}


@dataclass(frozen=True)
class Gated(_Activation):
    """Which latents are active is decided by pi > 0, how much by a second, rescaled copy of the same projection.

    z = H(pi) ReLU(exp(r_mag) (pi - b_enc) + b_mag). The penalty is the L1 norm of ReLU(pi), which shrinks the gate and not the values; ReLU(pi)
    is trained by a reconstruction of its own through the decoder held fixed.
    """

    kind: Literal["gated"] = "gated"
    """Names the activation in a saved configuration."""

    def parameters(self, d_sae: int) -> dict[str, Tensor]:
        """r_mag, the logarithm of the rescaling, and b_mag."""
        return {"r_mag": torch.zeros(d_sae), "b_mag": torch.zeros(d_sae)}

    def activate(self, pre_acts: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], weights: Mapping[str, Tensor]) -> Active:
        """The magnitudes of the open gates; `gates` holds ReLU(pi)."""
        projection = pre_acts - weights["b_enc"][indices]
        magnitude = weights["r_mag"].exp()[indices] * projection + weights["b_mag"][indices]
        return Active(magnitude.relu() * (pre_acts > 0), pre_acts.sum() / max(len(pre_acts), 1), pre_acts)

    def folded(self, weights: Mapping[str, Tensor], scale: float) -> "tuple[Gated, dict[str, Tensor]]":
        """b_mag / scale."""
        return self, {"r_mag": weights["r_mag"], "b_mag": weights["b_mag"] / scale}


Activation = TopK | AbsTopK | BatchTopK | ReLU | JumpReLU | Gated


def rectangle(u: Tensor) -> Tensor:
    """K(u) = 1 on (-1/2, 1/2), else 0."""
    return (u.abs() < 0.5).to(u.dtype)


class Jump(torch.autograd.Function):
    """pi H(pi - theta); d/d pi = H(pi - theta), d/d theta = -(theta / eps) K((pi - theta) / eps). Slots with pi = 0 are unused."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, theta)
        ctx.bandwidth = bandwidth
        return pre_acts * (pre_acts > theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre_acts, theta = ctx.saved_tensors
        near = rectangle((pre_acts - theta) / ctx.bandwidth) * (pre_acts != 0)
        return grad * (pre_acts > theta), -(theta / ctx.bandwidth) * near * grad, None


class Step(torch.autograd.Function):
    """H(pi - theta); d/d theta = -(1 / eps) K((pi - theta) / eps), nothing to pi. Slots with pi = 0 are unused."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_acts, theta)
        ctx.bandwidth = bandwidth
        return ((pre_acts > theta) & (pre_acts != 0)).to(pre_acts.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pre_acts, theta = ctx.saved_tensors
        near = rectangle((pre_acts - theta) / ctx.bandwidth) * (pre_acts != 0)
        return None, -near * grad / ctx.bandwidth, None
