"""What training minimises. Every term is a share of the batch's variance, so its weight does not depend on the units of the activations.

    variance = sum |y - mean y|^2 over the batch,     y = what is explained: x itself, or another site's activations (transcoding)
    FVU      = sum |y - y_hat|^2 / variance
    AuxK     = sum |e - e_hat|^2 / sum |e - mean e|^2,      e = y - y_hat held fixed, e_hat from the k_aux strongest answers of dead latents
    sparsity = mean L1 norm (ReLU, Gated) or mean L0 (JumpReLU), over sqrt(d_in)

    reconstruction   FVU + aux_coefficient AuxK + pressure sparsity_coefficient sparsity (+ the gates' own FVU for Gated)
    Matryoshka       the same, with the mean FVU of nested prefixes of the latents                Bussmann et al. 2025 (2503.17547)
    Multi-TopK       the same, plus coefficient * FVU with factor k active latents                Gao et al. 2024 (2406.04093) section 2.2, A.4

AuxK is that of Gao et al. sections 2.4 and A.2: e is held fixed and e_hat has no bias, so it moves dead latents only, encoder and decoder
alike. With `target_l0` the weight of an L1 penalty, its pressure, is adjusted until so many latents are active; an L0 penalty, which has
gradients towards the target from both sides, becomes target_coefficient (L0 / target_l0 - 1)^2 instead.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.explained import Ask, Explained
from sae.errors import ConfigError, SaeError
from sae.training.world import World


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """Where a run stands when it asks for a loss."""

    dead: Bool[Tensor, "d_sae"]
    """Which latents are dead."""
    step: int = 0
    """Number of the step, from 0."""
    k: float | None = None
    """Active latents per row where annealing prescribes another number than the dictionary's."""
    pressure: float = 1.0
    """Factor on the sparsity penalty."""
    world: World = field(default_factory=World)
    """The processes that share the batch."""


class Losses(NamedTuple):
    """An objective's value on one batch."""

    total: Float[Tensor, ""]
    """What is differentiated."""
    fvu: Float[Tensor, ""]
    """Fraction of variance unexplained, detached."""
    codes: SparseCodes
    """The batch's codes, detached."""
    residual: Float[Tensor, "n d_out"]
    """What the codes leave unexplained, detached."""
    l0: float
    """Mean number of active latents per row."""
    pressure: float
    """The factor on the sparsity penalty for the next step."""


@runtime_checkable
class Objective(Protocol):
    """A frozen value that computes the loss of a dictionary on one batch."""

    def __call__(
        self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None, moment: Moment
    ) -> Losses:
        """The loss on scaled activations x, and for a transcoder the scaled activations that they are to explain."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReconstructionObjective:
    """FVU + aux_coefficient AuxK + pressure sparsity_coefficient sparsity; see the module's text."""

    aux_coefficient: float = 1 / 32
    """Weight of AuxK; 0 leaves dead latents dead."""
    aux_share: float = 0.5
    """k_aux as a share of d_in, rounded to the nearest power of two."""
    sparsity_coefficient: float = 0.02
    """Weight of the sparsity penalty; without effect on activations that fix k."""
    target_l0: float | None = None
    """Active latents per row that are aimed at; absent, the penalty keeps its weight."""
    target_coefficient: float = 2.0
    """Weight of (L0 / target_l0 - 1)^2, for activations whose penalty is L0 itself."""
    control_rate: float = 0.02
    """Largest relative change of the pressure per step; the change is proportional to ln(l0 / target_l0)."""

    def __post_init__(self) -> None:
        allowed = {
            "aux_coefficient": (self.aux_coefficient >= 0, "at least 0"),
            "aux_share": (0 < self.aux_share <= 1, "in (0, 1]"),
            "sparsity_coefficient": (self.sparsity_coefficient >= 0, "at least 0"),
            "target_l0": (self.target_l0 is None or self.target_l0 > 0, "positive"),
            "target_coefficient": (self.target_coefficient > 0, "positive"),
            "control_rate": (0 < self.control_rate < 1, "in (0, 1)"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise ConfigError(f"{name} must be {text}, got {getattr(self, name)} (ReconstructionObjective)")

    def __call__(
        self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None, moment: Moment
    ) -> Losses:
        """The loss. Raises SaeError if all rows to be explained are equal: FVU is not defined."""
        variance = _variance(x if target is None else target, moment.world)
        explained = moment.world.explain(dictionary, x, self.ask(dictionary, target, moment))
        return self.losses(dictionary, explained, explained.error / variance, variance, moment)

    def ask(self, dictionary: Dictionary, target: Float[Tensor, "n d_out"] | None, moment: Moment, prefixes: tuple[int, ...] = ()) -> Ask:
        """What this objective wants to know."""
        latents = moment.dead.nonzero().view(-1)
        if not (self.aux_coefficient and len(latents)):
            return Ask(target=target, k=moment.k, prefixes=prefixes)
        return Ask(target=target, k=moment.k, latents=latents, k_aux=self.k_aux(dictionary.d_in), prefixes=prefixes)

    def losses(
        self, dictionary: Dictionary, explained: Explained, fit: Float[Tensor, ""], variance: Float[Tensor, ""], moment: Moment
    ) -> Losses:
        """The whole loss, for the measure of fit that takes the place of FVU."""
        world, total = moment.world, fit + explained.gate_error / variance
        if self.aux_coefficient and bool(moment.dead.any()):
            left = world.variance(explained.residual)
            if bool(explained.revival > 0) and bool(left > 0):
                total = total + self.aux_coefficient * explained.revival / left
        own = [float(explained.error.detach() / variance), world.share * explained.l0]
        fvu, l0 = world.total(torch.tensor(own, dtype=torch.float64, device=total.device)).unbind()
        if self.target_l0 is not None and explained.penalty_is_l0:
            # Its derivative through each rank's own share of L0, and the value that the whole has.
            excess = float(l0) / self.target_l0 - 1
            moved = 2 * excess / self.target_l0 * (explained.penalty - explained.penalty.detach())
            total = total + world.share * self.target_coefficient * (excess**2 + moved)
            return Losses(total, fvu, explained.codes, explained.residual, float(l0), moment.pressure)
        sparsity = world.share * explained.penalty / math.sqrt(dictionary.d_in)
        total = total + moment.pressure * self.sparsity_coefficient * sparsity
        pressure = self._next_pressure(moment.pressure, float(l0))
        return Losses(total, fvu, explained.codes, explained.residual, float(l0), pressure)

    def k_aux(self, d_in: int) -> int:
        """Dead latents asked per row: aux_share * d_in rounded to a power of two (in the logarithm)."""
        return 1 << max(0, round(math.log2(self.aux_share * d_in)))

    def _next_pressure(self, pressure: float, l0: float) -> float:
        if self.target_l0 is None:
            return pressure
        excess = math.log(max(l0, 1e-3) / self.target_l0)
        return pressure * math.exp(self.control_rate * min(1.0, max(-1.0, excess)))


@dataclass(frozen=True, kw_only=True)
class MatryoshkaObjective:
    """The mean FVU of nested prefixes of the latents takes the place of FVU: each prefix must reconstruct on its own.

    Latents beyond a prefix are left out of its reconstruction; which latents are active is decided once, over all of them.
    """

    shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """The prefixes as shares of d_sae, rising."""
    n_sampled: int = 0
    """If not 0, that many prefixes are drawn anew for each step, the whole width among them, with density falling as 1 / size^1.5."""
    terms: ReconstructionObjective = field(default_factory=ReconstructionObjective)
    """The other terms."""

    def __post_init__(self) -> None:
        if not self.shares or not all(a < b for a, b in zip((0.0, *self.shares), self.shares, strict=False)) or self.shares[-1] > 1:
            raise ConfigError(f"shares must rise within (0, 1], got {self.shares} (MatryoshkaObjective)")
        if self.n_sampled < 0:
            raise ConfigError(f"n_sampled must be at least 0, got {self.n_sampled} (MatryoshkaObjective)")

    def __call__(
        self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None, moment: Moment
    ) -> Losses:
        """The loss. Raises SaeError if all rows to be explained are equal: FVU is not defined."""
        variance = _variance(x if target is None else target, moment.world)
        prefixes = self.prefixes(dictionary.d_sae, moment.step)
        explained = moment.world.explain(dictionary, x, self.terms.ask(dictionary, target, moment, prefixes))
        return self.terms.losses(dictionary, explained, explained.prefix_errors.mean() / variance, variance, moment)

    def prefixes(self, d_sae: int, step: int) -> tuple[int, ...]:
        """The prefixes of a step, rising; sampled ones depend on the step alone, so a resumed run draws the same."""
        if not self.n_sampled:
            return tuple(sorted({max(1, round(share * d_sae)) for share in self.shares}))
        uniform = torch.rand(self.n_sampled - 1, generator=torch.Generator().manual_seed(step)).double()
        # Inverse of the distribution function of a Pareto law of power 1/2, cut off at [1, d_sae].
        sizes = (1 - uniform * (1 - d_sae**-0.5)) ** -2
        return tuple(sorted({*(int(size) for size in sizes), d_sae}))


@dataclass(frozen=True, kw_only=True)
class MultiTopKObjective:
    """FVU with k active latents plus `coefficient` times FVU with `factor` k: codes then stay useful when more latents are read."""

    factor: float = 4.0
    """How many times k the second reconstruction uses."""
    coefficient: float = 1 / 8
    """Weight of the second reconstruction."""
    terms: ReconstructionObjective = field(default_factory=ReconstructionObjective)
    """The other terms."""

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ConfigError(f"factor must be more than 1, got {self.factor} (MultiTopKObjective)")
        if not self.coefficient > 0:
            raise ConfigError(f"coefficient must be positive, got {self.coefficient} (MultiTopKObjective)")

    def __call__(
        self, dictionary: Dictionary, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None, moment: Moment
    ) -> Losses:
        """The loss. Raises ConfigError for a dictionary without k, SaeError if all rows to be explained are equal."""
        k = moment.k or dictionary.k
        if k is None:
            raise ConfigError("dictionary must have a fixed k, got an activation without one (MultiTopKObjective)")
        losses = self.terms(dictionary, x, target, moment)
        variance = _variance(x if target is None else target, moment.world)
        wider = moment.world.explain(dictionary, x, Ask(target=target, k=min(self.factor * k, dictionary.d_sae)))
        return losses._replace(total=losses.total + self.coefficient * wider.error / variance)


def _variance(y: Tensor, world: World) -> Tensor:
    variance = world.variance(y)
    if not bool(variance > 0):
        raise SaeError(f"x must vary within the batch, got {len(y)} equal rows (objective)")
    return variance
