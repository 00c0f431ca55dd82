"""How few neurons, or latents, carry an output.

    out_t = sum_i x_ti w_i,       n_ti = |x_ti| |w_i|                       what neuron i contributes to token t, and how long that is
    e_t(eps) = |sum_{n_ti <= eps} x_ti w_i| / |out_t|                       what is lost without the contributions up to eps
    CETT(eps) = mean_t e_t(eps)                                             cumulative errors of tail truncation

Luo et al. 2024, "Sparsing Law" (arXiv 2411.02335); Zhang et al. 2024, "ReLU^2 Wins" (arXiv 2402.03804). CETT changes at the n_ti and nowhere else, so it is
evaluated there, all of them, instead of on a grid. It need not rise everywhere, since contributions may cancel: the threshold for a target is
the largest below which CETT stays within the target all the way. PPL-p% is the largest common CETT of all layers at which the perplexity
rises by p%: `cett_for_increase` finds it by bisection over a function that runs the language model.

The same sums over the latents of a dictionary give the number that a relative error needs: `needed_latents`. Statistics of the codes
themselves are in `sae.geometry.densities`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.geometry.rows import require_points, row_blocks

BLOCK_ELEMENTS = 2**22
"""Values of one block of tokens."""


@dataclass(frozen=True, eq=False)
class TailErrors:
    """CETT of one layer as a step function of the threshold."""

    thresholds: Float[Tensor, " points"]
    """The different contributions n_ti in ascending order (or some of them), float64: what is at most this long is left out."""
    errors: Float[Tensor, " points"]
    """CETT at each threshold, a relative error: 0 nothing is lost, 1 as much as the output is long."""
    kept: Float[Tensor, " points"]
    """Activation ratio at each threshold: the share of contributions that are longer, 0..1."""
    n_tokens: int
    """Tokens averaged over."""
    n_silent: int
    """Tokens whose output is zero, which have no relative error and are left out."""


def tail_errors(
    acts: Float[Tensor, "n_tokens n_neurons"], weights: Float[Tensor, "n_neurons d"], *, max_points: int | None = None
) -> TailErrors:
    """CETT and activation ratio at every different n_ti; row i of `weights` is w_i.

    With `max_points` the thresholds are that many of them, equally spaced in rank with both ends (the values there are still exact).
    Time T m (d + ln(T m)), T m being tokens times neurons; memory 40 bytes times T m.
    Raises ConfigError for no tokens or neurons, NaN or Inf, widths that differ, max_points < 2, and tokens that are all silent.
    """
    where = "tail_errors"
    values, rows = _checked(acts, weights, where=where)
    if max_points is not None and max_points < 2:
        raise ConfigError(f"max_points must be at least 2 or None, got {max_points} ({where})")
    lengths, errors, speaking = _error_steps(values, rows)
    if not speaking.any():
        raise ConfigError(f"acts must have an output that is not zero, got {len(values)} silent tokens ({where})")
    lengths, errors = lengths[speaking], errors[speaking]
    n = len(lengths)
    steps = errors.diff(dim=1, prepend=errors.new_zeros(n, 1))
    thresholds, order = lengths.flatten().sort()
    total = (steps.flatten()[order].cumsum(0) / n).clamp(min=0)
    last_of_value = torch.ones_like(thresholds, dtype=torch.bool)
    last_of_value[:-1] = thresholds[1:] != thresholds[:-1]
    places = last_of_value.nonzero().flatten()
    if max_points is not None and len(places) > max_points:
        places = places[torch.linspace(0, len(places) - 1, max_points, dtype=torch.float64).round().long().unique().to(places.device)]
    kept = 1 - (places + 1).double() / len(thresholds)
    return TailErrors(thresholds=thresholds[places], errors=total[places], kept=kept, n_tokens=n, n_silent=len(values) - n)


def tail_error(acts: Float[Tensor, "n_tokens n_neurons"], weights: Float[Tensor, "n_neurons d"], threshold: float) -> float:
    """CETT at one threshold, directly: two products. Tokens without output are left out. Errors as `tail_errors`; also a negative threshold."""
    values, rows = _checked(acts, weights, where="tail_error")
    if not threshold >= 0:
        raise ConfigError(f"threshold must be at least 0, got {threshold} (tail_error)")
    small = values.abs() * rows.norm(dim=1) <= threshold
    lost, out = (values * small @ rows).norm(dim=1), (values @ rows).norm(dim=1)
    if not (out > 0).any():
        raise ConfigError(f"acts must have an output that is not zero, got {len(values)} silent tokens (tail_error)")
    return (lost[out > 0] / out[out > 0]).mean().item()


def threshold_for(curve: TailErrors, cett: float) -> float:
    """The largest threshold of the curve up to which CETT never exceeds `cett`; 0 where its first step does already.

    Raises ConfigError for a negative or NaN `cett`.
    """
    place = _place(curve, cett)
    return curve.thresholds[place].item() if place >= 0 else 0.0


def activation_ratio_for(curve: TailErrors, cett: float) -> float:
    """The share of contributions above `threshold_for(curve, cett)`; 1 where nothing may be left out. Errors as `threshold_for`."""
    place = _place(curve, cett)
    return curve.kept[place].item() if place >= 0 else 1.0


def common_cett(curves: Sequence[TailErrors], ratio: float) -> float:
    """The smallest CETT, the same for all layers, at which on average over the layers at most the share `ratio` of contributions is kept.

    Found by bisection to rounding. Raises ConfigError for no curves and a ratio outside 0..1.
    """
    if len(curves) == 0 or not 0 <= ratio <= 1:
        raise ConfigError(f"curves must be one or more and ratio in 0..1, got {len(curves)} and {ratio} (common_cett)")
    highest = [curve.errors.cummax(dim=0).values for curve in curves]

    def kept(cett: float) -> float:
        places = [int(torch.searchsorted(errors, cett, right=True)) - 1 for errors in highest]
        return sum(curve.kept[place].item() if place >= 0 else 1.0 for curve, place in zip(curves, places, strict=True)) / len(curves)

    low, high = 0.0, max(errors[-1].item() for errors in highest)
    if kept(low) <= ratio:
        return low
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return high
        low, high = (low, middle) if kept(middle) <= ratio else (middle, high)


def _place(curve: TailErrors, cett: float) -> int:
    if not cett >= 0:
        raise ConfigError(f"cett must be at least 0, got {cett} (threshold_for)")
    return int(torch.searchsorted(curve.errors.cummax(dim=0).values, cett, right=True)) - 1


def cett_for_increase(increase_at: Callable[[float], float], increase: float, *, high: float = 1.0, tolerance: float = 1e-6) -> float:
    """A CETT in 0..`high` where `increase_at(cett)` crosses `increase`, within `tolerance`, from below: the increase there is at most that.

    `increase_at` gives perplexity / dense perplexity - 1 with every layer at its threshold for that CETT. It is called about
    log2(high / tolerance) times. Where it is not monotone this is one of the crossings.
    Raises ConfigError unless the increase is allowed at 0 and exceeded at `high`, and for a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be positive, got {tolerance} (cett_for_increase)")
    low_value, high_value = increase_at(0.0), increase_at(high)
    if not low_value <= increase < high_value:
        raise ConfigError(
            f"increase must be crossed between CETT 0 and {high}, where the perplexity rises by {low_value:.4g} and {high_value:.4g}, "
            f"got {increase} (cett_for_increase)"
        )
    low = 0.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if increase_at(middle) <= increase:
            low = middle
        else:
            high = middle
    return low


def gaussian_like(points: Float[Tensor, "n_points d"], n: int, *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """`n` Gaussian rows with the mean and the covariance of `points`: what activations would be with nothing beyond second moments.

        y = mean + sum_t g_t (x_t - mean) / sqrt(n_points - 1),       g_t independent standard normal numbers

    Raises ConfigError for fewer than 2 points, NaN or Inf, and n < 1.
    """
    require_points(points, minimum=2, argument="points", where="gaussian_like")
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n} (gaussian_like)")
    wide = points.detach().float() if points.dtype != torch.float64 else points.detach()
    mean = wide.mean(dim=0)
    mixing = torch.randn(n, len(wide), generator=generator, dtype=wide.dtype, device=generator.device).to(wide.device)
    return mean + mixing @ (wide - mean) / (len(wide) - 1) ** 0.5


def needed_latents(
    indices: Int[Tensor, "n k_max"],
    values: Float[Tensor, "n k_max"],
    counts: Int[Tensor, " n"],
    atoms: Float[Tensor, "n_atoms d"],
    *,
    errors: Sequence[float],
) -> Int[Tensor, "errors n"]:
    """CETT-L0: how many latents a row keeps when its smallest contributions |z_i| |w_i| are left out for as long as the error stays within each
    of `errors`, relative to the length of sum z_i w_i (without b_dec).

    Row t uses the slots `:counts[t]`. A row whose sum is zero, or without latents, needs 0. Time n k_max d.
    Raises ConfigError for indices or counts out of range, NaN or Inf, and errors that are negative or none.
    """
    where = "needed_latents"
    require_slots(indices, values, counts, len(atoms), where=where)
    require_points(atoms, minimum=1, argument="atoms", where=where)
    if len(errors) == 0 or not all(error >= 0 for error in errors):
        raise ConfigError(f"errors must hold numbers of at least 0, got {list(errors)} ({where})")
    active = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
    found = torch.zeros(len(errors), len(indices), dtype=torch.int64, device=indices.device)
    wide = atoms.detach().double()
    lengths = wide.norm(dim=1)
    for block in row_blocks(len(indices), max(1, indices.shape[1] * atoms.shape[1]), BLOCK_ELEMENTS, where=where):
        used, picked = active[block], indices[block].long() * active[block]
        amounts = values[block].detach().double() * used
        order = torch.where(used, amounts.abs() * lengths[picked], -1.0).argsort(dim=1, stable=True)  # unused slots first: they add nothing
        terms = (amounts[..., None] * wide[picked]).gather(1, order[..., None].expand(-1, -1, atoms.shape[1]))
        tails = terms.cumsum(dim=1).norm(dim=2)
        for e, error in enumerate(errors):
            exceeded = (tails > error * tails[:, -1:]).long().cumsum(dim=1) > 0
            found[e, block] = torch.minimum(exceeded.sum(dim=1), counts[block].to(found.device)) * (tails[:, -1] > 0)
    return found


def require_slots(indices: Tensor, values: Tensor, counts: Tensor, n_latents: int, *, where: str) -> None:
    """Raises ConfigError unless the active slots name latents in range and hold finite values."""
    n, k_max = indices.shape
    if n == 0 or k_max == 0 or int(counts.min()) < 0 or int(counts.max()) > k_max:
        raise ConfigError(f"counts must hold at least one row, each in 0..k_max={k_max}, got {counts.tolist()[:8]} ({where})")
    active = torch.arange(k_max, device=indices.device) < counts[:, None]
    outside = active & ((indices < 0) | (indices >= n_latents))
    if outside.any():
        raise ConfigError(f"indices must be in 0..{n_latents - 1}, got {int(indices[outside][0])} ({where})")
    if not values[active].isfinite().all():
        raise ConfigError(f"values must be finite, got NaN or Inf ({where})")


def _checked(acts: Tensor, weights: Tensor, *, where: str) -> tuple[Tensor, Tensor]:
    require_points(acts, minimum=1, argument="acts", where=where)
    require_points(weights, minimum=1, argument="weights", where=where)
    if acts.shape[1] != len(weights):
        raise ConfigError(f"acts must have a column per row of weights, got {acts.shape[1]} and {len(weights)} ({where})")
    return acts.detach().double(), weights.detach().double()


def _error_steps(values: Tensor, rows: Tensor) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"], Tensor]:
    """Contributions of each token in ascending order, the relative error after leaving out that many, and which tokens have an output."""
    lengths, order = (values.abs() * rows.norm(dim=1)).sort(dim=1, stable=True)
    norms = _tail_norms(values, order, rows)
    out = norms[:, -1:]
    speaking = out.flatten() > 0
    return lengths, norms / out.where(out > 0, 1), speaking


def _tail_norms(values: Tensor, order: Tensor, rows: Tensor) -> Float[Tensor, "n m"]:
    norms = torch.empty_like(values)
    if values.device.type == "cpu":
        try:
            from sae.geometry.tail_loops import tail_norms
        except ImportError:  # no numba: the same in torch
            pass
        else:
            tail_norms(values.contiguous().numpy(), order.numpy(), rows.contiguous().numpy(), norms.numpy())
            return norms
    for block in row_blocks(len(values), values.shape[1] * rows.shape[1], BLOCK_ELEMENTS, where="tail_errors"):
        terms = values[block].gather(1, order[block])[..., None] * rows[order[block]]
        norms[block] = terms.cumsum(dim=1).norm(dim=2)
    return norms
