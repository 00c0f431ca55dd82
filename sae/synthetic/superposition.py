"""Toy models of superposition: more sparse features than hidden dimensions, in one linear layer and back.

    x_i = 0 with probability S, else uniform on [0, 1];     h = W x,     x' = relu(W^T h + b),     W [d_hidden, n_features]
    L   = E sum_i I_i (x_i - x'_i)^2,     I_i = importance_decay^i

N. Elhage et al. 2022, "Toy Models of Superposition" (2209.10652). Column i of W is the direction W_i of feature i. What a trained W does:

    D_i = |W_i|^2 / sum_j (w_i . W_j)^2      dimensionality: the share of a hidden dimension feature i has, w_i = W_i / |W_i|
    sum_{j != i} (w_i . W_j)^2               superposition: how much of the others lies on its direction
    d_hidden / |W|_F^2                       dimensions per feature

With F = W W^T, D_i = |W_i|^4 / (W_i^T F W_i) is at most the leverage score W_i^T F^+ W_i (Cauchy-Schwarz), so sum_i D_i <= rank W, with
equality exactly when every W_i is an eigenvector of F: unions of tight frames in orthogonal subspaces. `sae.synthetic.polytopes` names
them.

    config = ToyConfig(n_features=5, d_hidden=2, density=0.1)           # density p = 1 - S
    models = sweep(config, densities=[0.3, 0.1, 0.01], n_seeds=8, seed=0)
    feature_dimensionality(models.W[1])                                 # 0.4 five times: a pentagon
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.errors import ConfigError, SaeError

REPRESENTED_NORM = 0.2
"""Norm below which a feature is not represented; its dimensionality is then near 0 / 0 and says nothing."""
BLOCK_ELEMENTS = 2**19
"""Inputs worked on at once, all instances and samples together: 2 MB, so that intermediate results stay in a core's cache."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """One toy model and how it is trained."""

    n_features: int
    """Inputs and outputs."""
    d_hidden: int
    """Hidden dimensions."""
    density: float
    """Probability p = 1 - S that a feature is active."""
    importance_decay: float = 1.0
    """Feature i weighs importance_decay^i in the loss; 1 for equal importance."""
    activation: Literal["relu", "linear"] = "relu"
    """Of the output; "linear" is the model without superposition, which learns the `d_hidden` most important features."""
    n_steps: int = 3000
    """Length of the run, in steps."""
    batch_size: int = 512
    """Samples per step, every one with at least one active feature."""
    learning_rate: float = 1e-2
    """Adam's first rate; it falls to 0 along a half cosine."""

    def __post_init__(self) -> None:
        allowed = {
            "n_features": (self.n_features >= 1, "at least 1"),
            "d_hidden": (self.d_hidden >= 1, "at least 1"),
            "density": (0 < self.density <= 1, "in (0, 1]"),
            "importance_decay": (math.isfinite(self.importance_decay) and self.importance_decay > 0, "positive"),
            "activation": (self.activation in ("relu", "linear"), '"relu" or "linear"'),
            "n_steps": (self.n_steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (math.isfinite(self.learning_rate) and self.learning_rate > 0, "positive"),
        }
        for name, (good, text) in allowed.items():
            if not good:
                raise ConfigError(f"{name} must be {text}, got {getattr(self, name)!r} (ToyConfig)")

    @property
    def sparsity(self) -> float:
        """S = 1 - p, the probability that a feature is 0."""
        return 1 - self.density

    def importance(self) -> Float[Tensor, " n_features"]:
        """I_i = importance_decay^i."""
        return torch.tensor([self.importance_decay**i for i in range(self.n_features)])


@dataclass(frozen=True)
class ToyModels:
    """Trained instances, one a row of every tensor."""

    configs: tuple[ToyConfig, ...]
    """What each instance is; equal ones differ only in their first weights."""
    W: Float[Tensor, "instance d_hidden n_features"]
    """Weights; column i of an instance is feature i's direction."""
    b: Float[Tensor, "instance n_features"]
    """Biases of the outputs."""
    loss: Float[Tensor, " instance"]
    """L, estimated on samples that training did not see, the same for all instances."""
    loss_se: Float[Tensor, " instance"]
    """Its standard error."""

    def best(self) -> "ToyModels":
        """The instance of lowest loss of every distinct config, in the order in which the configs first appear."""
        chosen: dict[ToyConfig, int] = {}
        losses = self.loss.tolist()
        for i, config in enumerate(self.configs):
            if config not in chosen or losses[i] < losses[chosen[config]]:
                chosen[config] = i
        rows = list(chosen.values())
        return ToyModels(tuple(chosen), self.W[rows], self.b[rows], self.loss[rows], self.loss_se[rows])


def feature_norms(W: Float[Tensor, "*batch d_hidden n_features"]) -> Float[Tensor, "*batch n_features"]:
    """|W_i|, the length of every column: 0 for a feature that is ignored, near 1 for one that is represented."""
    return torch.linalg.vector_norm(W, dim=-2)


def represented(W: Float[Tensor, "*batch d_hidden n_features"]) -> Bool[Tensor, "*batch n_features"]:
    """Whether |W_i| >= 0.2. Drop the dimensionality of the others: in the limit it is 0 / 0."""
    return feature_norms(W) >= REPRESENTED_NORM


def superposition(W: Float[Tensor, "*batch d_hidden n_features"]) -> Float[Tensor, "*batch n_features"]:
    """sum_{j != i} (w_i . W_j)^2: how strongly the other features show on the direction of feature i; 0 where |W_i| = 0.

    Elhage et al. 2022 (2209.10652), "Demonstrating superposition". Above 1 the others together outweigh a feature of norm 1.
    """
    overlap = _overlaps(W)
    return (overlap - torch.diag_embed(overlap.diagonal(dim1=-2, dim2=-1))).sum(-1)


def feature_dimensionality(W: Float[Tensor, "*batch d_hidden n_features"]) -> Float[Tensor, "*batch n_features"]:
    """D_i = |W_i|^2 / sum_j (w_i . W_j)^2, in [0, 1]; 0 where |W_i| = 0 (0 / 0).

    Elhage et al. 2022 (2209.10652), "The geometry of superposition". 1: a dimension of its own; 1/2: shared by an antipodal pair. The sum
    over features is at most rank W.
    """
    overlap = _overlaps(W)
    total = overlap.sum(-1)
    return torch.where(total > 0, overlap.diagonal(dim1=-2, dim2=-1) / total.where(total > 0, torch.ones_like(total)), total)


def dimensions_per_feature(W: Float[Tensor, "*batch d_hidden n_features"]) -> Float[Tensor, "*batch"]:
    """d_hidden / |W|_F^2, where |W|_F^2 counts the features that are represented. 1: one each; 1/2: antipodal pairs. Inf for W = 0."""
    return W.shape[-2] / W.square().sum(dim=(-2, -1))


def antipodality(W: Float[Tensor, "*batch 1 2"]) -> Float[Tensor, "*batch"]:
    """-2 W_1 W_2 / (W_1^2 + W_2^2) of two features in one dimension: 1 for an antipodal pair, 0 when one of them has the dimension to itself,
    -1 when both point the same way; 0 where W = 0."""
    squares = W.square().sum((-2, -1))
    return -2 * W.prod(-1).squeeze(-1) / squares.where(squares > 0, torch.ones_like(squares))


def _overlaps(W: Float[Tensor, "*batch d_hidden n_features"]) -> Float[Tensor, "*batch n_features n_features"]:
    """(w_i . W_j)^2 at [i, j]; rows of zero columns are 0."""
    norms = feature_norms(W).unsqueeze(-2)
    unit = W / norms.where(norms > 0, torch.ones_like(norms))
    return (unit.transpose(-2, -1) @ W).square()


def dedicated_loss(density: float, importance: float) -> float:
    """Least loss of n = 2 features in 1 dimension when only the more important one is represented, W = [1, 0]; importances 1 and r.

    L = min(1, r) (p/3 - p^2/4): the other feature is answered by its mean p/2, which leaves its variance.
    """
    return min(1.0, importance) * (density / 3 - density**2 / 4)


def antipodal_loss(density: float, importance: float) -> float:
    """Loss of n = 2 features in 1 dimension as an antipodal pair, W = [1, -1], b = 0; importances 1 and r.

    L = (1 + r) p^2 / 6: only when both are active is anything lost, and then min(x_1, x_2)^2 of each; E min^2 = 1/6.
    """
    return (1 + importance) * density**2 / 6


def antipodal_boundary(importance: float) -> float:
    """Density below which W = [1, -1], b = 0 beats the best dedicated solution: p < 4 s / (2 (1 + r) + 3 s), s = min(1, r).

    At r = 1 it is 4/7. A sufficient bound for superposition: a trained pair also tunes its norms and biases, and stays the best, with equal
    norms, up to about p = 0.7. Beyond, one feature gets most of the dimension, and the sign of the other hardly matters: at p = 1 both are equal.
    """
    least = min(1.0, importance)
    return 4 * least / (2 * (1 + importance) + 3 * least)


def sample_features(n: int, n_features: int, density: float, generator: torch.Generator) -> Float[Tensor, "n n_features"]:
    """Independent inputs: each feature is 0 with probability 1 - density, else uniform on [0, 1]."""
    active = torch.rand(n, n_features, generator=generator) < density
    return torch.rand(n, n_features, generator=generator) * active


def reconstruct(
    x: Float[Tensor, "*batch n n_features"],
    W: Float[Tensor, "*batch d_hidden n_features"],
    b: Float[Tensor, "*batch n_features"],
    *,
    activation: Literal["relu", "linear"] = "relu",
) -> Float[Tensor, "*batch n n_features"]:
    """x' = relu(W^T W x + b), or without the relu."""
    pre_acts = x @ W.transpose(-2, -1) @ W + b.unsqueeze(-2)
    return torch.relu(pre_acts) if activation == "relu" else pre_acts


def train_toy_models(configs: Sequence[ToyConfig], *, seed: int, n_evaluation: int = 2**17) -> ToyModels:
    """Train one model per config, all at once; float32 on the CPU, and the same seed gives the same bits on the same machine.

    The configs may differ in `density` and `importance_decay` only; repeat one to train it from several starts (many end in local minima:
    take the `best()` of eight or more). First weights are N(0, 2 / (n_features + d_hidden)), biases 0. Adam (0.9, 0.999) without weight
    decay.

    Departures from the paper that leave the expected loss as it is: samples in which no feature is active are not drawn. They have the
    known loss sum_i I_i f(b_i)^2 and the known probability 1 - q = (1 - p)^n, so with E over the others L = (1 - q) sum_i I_i f(b_i)^2 +
    q E, with far less noise where S is near 1. And all instances see the same random numbers, so that their losses compare.

    Raises ConfigError for no config or configs that cannot be trained together, SaeError for a run that diverges.
    """
    configs = tuple(configs)
    if not configs:
        raise ConfigError("configs must be one or more, got none (train_toy_models)")
    shared = configs[0]
    for config in configs:
        if replace(config, density=shared.density, importance_decay=shared.importance_decay) != shared:
            raise ConfigError(f"configs must differ in density and importance_decay only, got {shared} and {config} (train_toy_models)")
    if n_evaluation < 2:
        raise ConfigError(f"n_evaluation must be at least 2, got {n_evaluation} (train_toy_models)")
    generator = torch.Generator().manual_seed(seed)
    problem = _Problem(
        torch.tensor([config.density for config in configs]),
        torch.stack([config.importance() for config in configs]),
        shared.activation == "linear",
    )
    n_instances, n_features, d_hidden = len(configs), shared.n_features, shared.d_hidden
    W = torch.randn(n_instances, d_hidden, n_features, generator=generator) * math.sqrt(2 / (n_features + d_hidden))
    b = torch.zeros(n_instances, n_features)
    W.grad, b.grad = torch.zeros_like(W), torch.zeros_like(b)
    optimiser = torch.optim.Adam([W, b], lr=shared.learning_rate, fused=True)
    for step in range(shared.n_steps):
        draws = torch.rand(2, shared.batch_size, n_features, generator=generator)
        problem.gradients_(draws, torch.rand(shared.batch_size, generator=generator), W, b)
        optimiser.param_groups[0]["lr"] = shared.learning_rate * (1 + math.cos(math.pi * step / shared.n_steps)) / 2
        optimiser.step()
    W.grad, b.grad = None, None
    loss, loss_se = problem.losses(n_evaluation, W, b, generator)
    if not loss.isfinite().all():
        bad = int((~loss.isfinite()).nonzero()[0])
        raise SaeError(
            f"training diverged: loss {float(loss[bad])} of instance {bad}; lower learning_rate={shared.learning_rate} (train_toy_models)"
        )
    return ToyModels(configs, W, b, loss, loss_se)


def sweep(
    config: ToyConfig,
    *,
    densities: Sequence[float],
    importance_decays: Sequence[float] | None = None,
    n_seeds: int = 8,
    seed: int,
    n_evaluation: int = 2**17,
) -> ToyModels:
    """The best of `n_seeds` starts at every density and, for each, every importance decay (by default that of `config`), in this order.

    Two features in one dimension over both are the phase diagram: `antipodality(models.W).reshape(len(densities), -1)`.
    Raises ConfigError as `train_toy_models` does, and for a value that is given twice or none.
    """
    decays = (config.importance_decay,) if importance_decays is None else tuple(importance_decays)
    for name, values in (("densities", tuple(densities)), ("importance_decays", decays)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} must be one or more different numbers, got {values} (sweep)")
    if n_seeds < 1:
        raise ConfigError(f"n_seeds must be at least 1, got {n_seeds} (sweep)")
    configs = [replace(config, density=density, importance_decay=decay) for density, decay in product(densities, decays)]
    return train_toy_models([one for one in configs for _ in range(n_seeds)], seed=seed, n_evaluation=n_evaluation).best()


@dataclass(frozen=True)
class _Problem:
    """What the instances are to reconstruct: the loss, its gradient and its estimate."""

    density: Float[Tensor, " instance"]
    importance: Float[Tensor, "instance n_features"]
    linear: bool

    def gradients_(
        self,
        draws: Float[Tensor, "2 n n_features"],
        first: Float[Tensor, " n"],
        W: Float[Tensor, "instance d_hidden n_features"],
        b: Float[Tensor, "instance n_features"],
    ) -> None:
        """Set W.grad and b.grad:  g = 2 q/n I (x' - x) f'(y),  dL/dW = (W g^T) x + h^T g,  dL/db = sum g + 2 (1 - q) I f(b) f'(b)."""
        assert W.grad is not None, "the caller allocates W.grad"
        assert b.grad is not None, "the caller allocates b.grad"
        for block in self._blocks(draws[0].numel()):
            x = self._inputs(draws, first, block)
            hidden = x @ W[block].transpose(1, 2)
            error = torch.baddbmm(b[block, None], hidden, W[block])
            off = None if self.linear else error <= 0
            error = (error if self.linear else error.relu_()).sub_(x)
            error *= (2 / len(first)) * (self._some_active(block)[:, None] * self.importance[block]).unsqueeze(1)
            if off is not None:
                error.masked_fill_(off, 0.0)
            torch.bmm(hidden.transpose(1, 2), error, out=W.grad[block])
            W.grad[block].baddbmm_((error @ W[block].transpose(1, 2)).transpose(1, 2), x)
            torch.sum(error, 1, out=b.grad[block])
        b.grad += 2 * (1 - self._some_active(slice(None)))[:, None] * self.importance * self._at_rest(b)

    def losses(
        self,
        n: int,
        W: Float[Tensor, "instance d_hidden n_features"],
        b: Float[Tensor, "instance n_features"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, " instance"], Float[Tensor, " instance"]]:
        """L of every instance on `n` new samples, and its standard error."""
        n_features = W.shape[2]
        sums = torch.zeros(2, len(W), dtype=torch.float64)
        step = max(1, BLOCK_ELEMENTS // n_features)
        for start in range(0, n, step):
            count = min(step, n - start)
            draws, first = torch.rand(2, count, n_features, generator=generator), torch.rand(count, generator=generator)
            for block in self._blocks(draws[0].numel()):
                x = self._inputs(draws, first, block)
                error = reconstruct(x, W[block], b[block], activation="linear" if self.linear else "relu") - x
                losses = torch.einsum("ibn,in->ib", error.square(), self.importance[block]).double()
                sums[0, block] += losses.sum(1)
                sums[1, block] += losses.square().sum(1)
        mean, square = sums / n
        some = self._some_active(slice(None)).double()
        rest = (self.importance * self._at_rest(b).square()).sum(1).double()
        return ((1 - some) * rest + some * mean).float(), (some * ((square - mean**2).clamp_min(0) / (n - 1)).sqrt()).float()

    def _blocks(self, elements: int) -> list[slice]:
        size = max(1, BLOCK_ELEMENTS // elements)
        return [slice(i, i + size) for i in range(0, len(self.density), size)]

    def _some_active(self, block: slice) -> Float[Tensor, " block"]:
        """q = 1 - (1 - p)^n."""
        return -torch.expm1(self.importance.shape[1] * torch.log1p(-self.density[block]))

    def _at_rest(self, b: Float[Tensor, "instance n_features"]) -> Float[Tensor, "instance n_features"]:
        """x' for x = 0."""
        return b if self.linear else b.relu()

    def _inputs(
        self, draws: Float[Tensor, "2 n n_features"], first: Float[Tensor, " n"], block: slice
    ) -> Float[Tensor, "block n n_features"]:
        """Inputs given that some feature is active: the first active one is i with probability p (1 - p)^i / q, later ones are active with
        probability p."""
        amplitudes, chances = draws
        density = self.density[block, None]
        places = torch.arange(draws.shape[2])
        index = (torch.log1p(-first * self._some_active(block)[:, None]) / torch.log1p(-density)).floor_().clamp_(0, draws.shape[2] - 1)
        index = index.long().unsqueeze(2)
        active = (chances < density.unsqueeze(2)) & (places > index) | (places == index)
        return amplitudes * active
