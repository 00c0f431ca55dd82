"""Optimisers whose step keeps atoms on the unit sphere.

    g_i <- g_i - (g_i . d_i) d_i                              for every unit atom d_i, so that a step moves it along the sphere
    g <- g min(1, clip_norm / |g|)                            over all parameters together
    adam        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,    p <- p - rate m^ / (sqrt(v^) + eps)      Kingma & Ba 2015 (1412.6980)
    adam_rows   v_i <- b2 v_i + (1 - b2) mean_j g_ij^2, one for a latent's whole row, otherwise the same        after Zhang et al. 2024 (2406.16793)
    d_i <- d_i / |d_i|

m^ and v^ are m and v divided by 1 - b^step. One step size per latent needs a third less optimiser memory than Adam and treats all directions
of the space alike.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.autograd.graph import increment_version

from sae.dictionaries.base import Dictionary
from sae.dictionaries.kernels.dispatch import kernels_for
from sae.errors import ConfigError, SaeError
from sae.training.sharded import total_squares
from sae.training.world import World


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How gradients become steps."""

    kind: Literal["adam", "adam_rows"] = "adam"
    """Which optimiser."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    epsilon: float = 1e-8
    """Offset of the denominator."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all parameters together."""

    def __post_init__(self) -> None:
        allowed = {
            "kind": (self.kind in ("adam", "adam_rows"), "'adam' or 'adam_rows'"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "in [0, 1)"),
            "epsilon": (self.epsilon > 0, "positive"),
            "clip_norm": (self.clip_norm > 0, "positive"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise ConfigError(f"{name} must be {text}, got {getattr(self, name)} (OptimiserConfig)")


class Optimiser:
    """The moments of a dictionary's parameters, and the step."""

    def __init__(self, dictionary: Dictionary, config: OptimiserConfig):
        self.config = config
        self.n_steps = 0
        self.moments: dict[str, dict[str, Tensor]] = {
            name: {"exp_avg": _zeros_like(parameter), "exp_avg_sq": self._second_moment(parameter)}
            for name, parameter in dictionary.named_parameters()
        }

    @torch.no_grad()
    def step_(self, dictionary: Dictionary, rate: float, world: World | None = None) -> float:
        """Move the parameters of `dictionary` along their gradients, in place; returns the gradient's norm before clipping.

        Raises SaeError if the gradient is not finite; nothing is changed then.
        """
        squares = {name: self._prepare(dictionary, name, parameter) for name, parameter in _trained(dictionary)}
        norm = (world or World()).agreed(math.sqrt(total_squares(dictionary, squares)))
        if not math.isfinite(norm):
            raise SaeError(f"the gradient is not finite at step {self.n_steps} (Optimiser)")
        scale = min(1.0, self.config.clip_norm / (norm + 1e-6))
        self.n_steps += 1
        for name, parameter in _trained(dictionary):
            unit_rows = name == "W_dec" and dictionary.unit_atoms
            self._update_(name, parameter, rate * dictionary.rate_factor(name), scale, unit_rows)
            increment_version(parameter)  # compiled loops write where torch does not see it
        return norm

    @torch.no_grad()
    def forget_(self, latents: Int[Tensor, "m"], dictionary: Dictionary) -> None:
        """Clear the moments of the given latents, in place."""
        for name, parameter in dictionary.named_parameters():
            for moment in self.moments[name].values():
                rows = moment.T if parameter.ndim == 2 and moment.ndim == 2 and not parameter.is_contiguous() else moment
                if name not in ("b_dec", "W_skip"):
                    rows[latents] = 0

    def _prepare(self, dictionary: Dictionary, name: str, parameter: Tensor) -> float:
        if parameter.is_contiguous():
            parameter.grad = parameter.grad.contiguous()  # what is changed in place below must be the gradient itself
        kernels, grad = kernels_for(parameter), _rowwise(parameter.grad, parameter)
        if name == "W_dec" and dictionary.unit_atoms:
            return kernels.project_(grad, parameter)
        return kernels.sum_squares(grad)

    def _update_(self, name: str, parameter: Tensor, rate: float, scale: float, unit_rows: bool) -> None:
        moments = {key: _rowwise(moment, parameter) for key, moment in self.moments[name].items()}
        grad, rows = _rowwise(parameter.grad, parameter), _rowwise(parameter.detach(), parameter)
        if self._by_rows(parameter):
            self._update_rows_(rows, grad * scale, moments["exp_avg"], self.moments[name]["exp_avg_sq"], rate, unit_rows)
            return
        kernels_for(parameter).adam_(
            rows, grad, moments["exp_avg"], moments["exp_avg_sq"], rate=rate, betas=self.config.betas, epsilon=self.config.epsilon,
            step=self.n_steps, scale=scale, unit_rows=unit_rows,
        )  # fmt: skip

    def _update_rows_(self, rows: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rate: float, unit_rows: bool) -> None:
        (b1, b2), step = self.config.betas, self.n_steps
        exp_avg.lerp_(grad, 1 - b1)
        exp_avg_sq.lerp_(grad.square().mean(1), 1 - b2)
        spread = (exp_avg_sq / (1 - b2**step)).sqrt_().add_(self.config.epsilon)
        rows.addcdiv_(exp_avg, spread[:, None], value=-rate / (1 - b1**step))
        if unit_rows:
            rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny))

    def _by_rows(self, parameter: Tensor) -> bool:
        return self.config.kind == "adam_rows" and parameter.ndim == 2

    def _second_moment(self, parameter: Tensor) -> Tensor:
        if not self._by_rows(parameter):
            return _zeros_like(parameter)
        return parameter.detach().new_zeros(len(_rowwise(parameter.detach(), parameter)))


def _trained(dictionary: Dictionary) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in dictionary.named_parameters() if parameter.grad is not None)


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()


def _rowwise(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with one latent's entries in one row, as `like` is stored (W_enc is stored by columns)."""
    if tensor.ndim == 2 and not like.is_contiguous():
        tensor = tensor.T
    return tensor if tensor.is_contiguous() else tensor.contiguous()
