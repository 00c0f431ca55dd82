"""How many neurons of a language model's MLPs can be zeroed before it notices: PPL-p% by CETT thresholds, and the curves of other rules beside it.

    per layer: the threshold on |x_i| |w_i| at which CETT, the relative error of mlp_out, has a given value, the same for all layers
    PPL-p%:    the largest such value at which the perplexity rises by p%, by bisection; its thresholds, and the share of neurons still active
    curves:    perplexity against the share of neurons kept, for CETT thresholds, a fixed threshold, the largest k of each token, and at random

Luo et al. 2024, "Sparsing Law" (arXiv 2411.02335). The definitions are in `sae.geometry.sparsity`, the rules in `sae.evaluation.thinning`. The
thresholds come from calibration tokens and the perplexity from others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.thinning import (
    Calibration,
    Rule,
    calibrate,
    keep_contributions,
    keep_rule,
    mean_ratio,
    perplexity,
    prediction_losses,
)
from sae.geometry.sparsity import activation_ratio_for, cett_for_increase, threshold_for
from sae.models.language_model import LanguageModel
from sae.models.sites import Site


@dataclass(frozen=True, kw_only=True)
class ActivationSparsityConfig:
    """What rise is allowed, and how finely it is looked for."""

    increase: float = 0.01
    """p/100 of PPL-p%: the allowed rise of the perplexity, relative."""
    highest_cett: float = 1.0
    """CETT from which the bisection starts; the perplexity must rise by more than `increase` there."""
    tolerance: float = 1e-4
    """Width of CETT at which the bisection ends."""
    max_points: int = 65_536
    """Thresholds kept per layer."""
    batch_rows: int = 8
    """Rows of one pass."""


@dataclass(frozen=True, eq=False)
class ActivationSparsity:
    """The thresholds of one model, and what they do to it."""

    sites: tuple[Site, ...]
    """The layers' mlp_post, in the order of all numbers per layer."""
    cett: float
    """The common relative error of the MLPs' outputs, on the calibration tokens."""
    thresholds: Float[Tensor, " layers"]
    """Contributions |x_i| |w_i| up to this are zeroed."""
    calibration_ratio: Float[Tensor, " layers"]
    """Share of neurons above the threshold on the calibration tokens, 0..1."""
    activation_ratio: Float[Tensor, " layers"]
    """The same on the evaluation tokens, with the layers before it thinned too."""
    perplexity_dense: float
    """Of the untouched model."""
    perplexity_sparse: float
    """With the thresholds."""
    steps: Float[Tensor, "steps 2"]
    """CETT and relative rise of the perplexity of each evaluation, in order."""
    n_tokens: int
    """Predictions counted."""

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per layer."""
        columns = zip(self.sites, self.thresholds.tolist(), self.activation_ratio.tolist(), self.calibration_ratio.tolist(), strict=True)
        return [
            {"layer": site.layer, "site": site.name, "threshold": t, "activation_ratio": ratio, "calibration_ratio": calibration}
            for site, t, ratio, calibration in columns
        ]


def activation_sparsity(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    *,
    calibration: Int[Tensor, "c_rows c_context"],
    calibration_mask: Bool[Tensor, "c_rows c_context"],
    config: ActivationSparsityConfig | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> ActivationSparsity:
    """PPL-p% thresholds of all layers: found on `calibration`, judged by the perplexity on `tokens`.

    Neurons are zeroed, and predictions counted, where a mask is true; the first position of a row, which carries activations many times
    as long as all others, is best left out. `progress` gets CETT and rise of each evaluation. One pass over `tokens` per evaluation.
    Raises ConfigError for masks of another shape or without anything to count, a rise that is not crossed, a model without mlp_post or
    mlp_out, and one whose MLP output is not linear in its neurons.
    """
    config = config or ActivationSparsityConfig()
    dense = perplexity(prediction_losses(model, tokens, mask, batch_rows=config.batch_rows))
    found = calibrate(model, calibration, calibration_mask, max_points=config.max_points, batch_rows=config.batch_rows)
    return calibrated_sparsity(model, tokens, mask, found, dense=dense, config=config, progress=progress)


def calibrated_sparsity(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    calibration: Calibration,
    *,
    dense: float,
    config: ActivationSparsityConfig,
    progress: Callable[[float, float], None] | None = None,
) -> ActivationSparsity:
    """`activation_sparsity` with a calibration, and the perplexity of the untouched model, that are there already."""
    sites, curves = calibration.sites, calibration.curves
    steps: list[tuple[float, float]] = []

    def sparse_at(cett: float, kept: dict[Site, int] | None = None) -> float:
        keep = keep_contributions(calibration, {site: threshold_for(curves[site], cett) for site in sites})
        return perplexity(prediction_losses(model, tokens, mask, keep=keep, batch_rows=config.batch_rows, kept=kept))

    def increase_at(cett: float) -> float:
        steps.append((cett, sparse_at(cett) / dense - 1))
        if progress is not None:
            progress(*steps[-1])
        return steps[-1][1]

    cett = cett_for_increase(increase_at, config.increase, high=config.highest_cett, tolerance=config.tolerance)
    kept = dict.fromkeys(sites, 0)
    sparse = sparse_at(cett, kept)
    return ActivationSparsity(
        sites=sites,
        cett=cett,
        thresholds=torch.tensor([threshold_for(curves[site], cett) for site in sites], dtype=torch.float64),
        calibration_ratio=torch.tensor([activation_ratio_for(curves[site], cett) for site in sites], dtype=torch.float64),
        activation_ratio=mean_ratio(kept, sites, int(mask.sum())),
        perplexity_dense=dense,
        perplexity_sparse=sparse,
        steps=torch.tensor(steps, dtype=torch.float64),
        n_tokens=int(mask[:, :-1].sum()),
    )


@dataclass(frozen=True, kw_only=True)
class SparsityCurveConfig:
    """Where a curve is computed, and the rise whose share of neurons is looked for."""

    ratios: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    """Shares of neurons kept, descending, inside 0..1."""
    increase: float = 0.01
    """p/100 of PPL-p%: the allowed rise of the perplexity, relative."""
    tolerance: float = 0.01
    """Width of the share at which the bisection for that rise ends."""
    batch_rows: int = 8
    """Rows of one pass."""
    seed: int = 0
    """Of the neurons kept at random."""

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip((1.0, *self.ratios), (*self.ratios, 0.0), strict=True))
        if not self.ratios or not falls or not self.tolerance > 0:
            raise ConfigError(
                f"ratios must descend inside 0..1 and tolerance be positive, got {self.ratios} and {self.tolerance} (SparsityCurveConfig)"
            )


@dataclass(frozen=True, eq=False)
class SparsityCurve:
    """Perplexity against the share of neurons that a rule keeps."""

    rule: Rule
    """The rule."""
    asked: Float[Tensor, " points"]
    """Share of neurons for which the rule was set, descending, 0..1."""
    activation_ratio: Float[Tensor, "points layers"]
    """Share of neurons kept on the evaluation tokens, 0..1."""
    perplexity: Float[Tensor, " points"]
    """With the neurons that are kept."""
    crossing: float
    """Smallest share that was asked for before the perplexity first rises by more than `increase`, coming down from 1, to `tolerance`."""

    @property
    def mean_ratio(self) -> Float[Tensor, " points"]:
        """Share of neurons kept on the evaluation tokens, mean over layers."""
        return self.activation_ratio.mean(dim=1)

    @property
    def crossing_ratio(self) -> Float[Tensor, " layers"]:
        """Share of neurons kept on the evaluation tokens at the crossing; 1 where nothing could be left out."""
        at = (self.asked == self.crossing).nonzero().flatten()
        return self.activation_ratio[at[0]] if len(at) else torch.ones_like(self.activation_ratio[0])


def sparsity_curve(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    calibration: Calibration,
    rule: Rule,
    *,
    dense: float,
    config: SparsityCurveConfig | None = None,
) -> SparsityCurve:
    """The curve of one rule, at `config.ratios` and where the bisection goes, and the share of neurons at which the perplexity rises by p%.

    `dense` is the perplexity of the untouched model on the same tokens. One pass over `tokens` per point: the ratios and about
    log2(their distance / tolerance). Raises ConfigError as `prediction_losses` and `keep_rule`.
    """
    config = config or SparsityCurveConfig()
    points: dict[float, tuple[float, Tensor]] = {}
    n_used = int(mask.sum())

    def allowed(ratio: float) -> bool:
        if ratio not in points:
            kept = dict.fromkeys(calibration.sites, 0)
            keep = keep_rule(rule, calibration, ratio, seed=config.seed)
            losses = prediction_losses(model, tokens, mask, keep=keep, batch_rows=config.batch_rows, kept=kept)
            points[ratio] = perplexity(losses), mean_ratio(kept, calibration.sites, n_used)
        return points[ratio][0] <= (1 + config.increase) * dense

    verdicts = [allowed(ratio) for ratio in config.ratios]
    refused = verdicts.index(False) if False in verdicts else len(verdicts)
    high, low = (1.0, *config.ratios)[refused], (*config.ratios, 0.0)[refused]
    if low > 0 or not allowed(low):
        while high - low > config.tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if allowed(middle) else (middle, high)
    else:
        high = low
    asked = sorted(points, reverse=True)
    return SparsityCurve(
        rule=rule,
        asked=torch.tensor(asked, dtype=torch.float64),
        activation_ratio=torch.stack([points[ratio][1] for ratio in asked]),
        perplexity=torch.tensor([points[ratio][0] for ratio in asked], dtype=torch.float64),
        crossing=high,
    )
