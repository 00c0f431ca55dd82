"""How many neurons of a language model's MLPs can be zeroed before it notices: CETT thresholds and PPL-p%.

    mlp_out = sum_i x_i w_i,   x = what enters the last matrix of the MLP (in a gated MLP act(gate) * up),  w_i = its row i
    per layer: the threshold on |x_i| |w_i| at which CETT, the relative error of mlp_out, has a given value, the same for all layers
    PPL-p%:    the largest such value at which the perplexity rises by p%, by bisection; its thresholds, and the share of neurons still active

Luo et al. 2024, "Sparsing Law" (arXiv 2411.02335). The definitions are in `sae.geometry.sparsity`. The thresholds come from calibration tokens and the
perplexity from others. The w_i are read off the model: what it writes when x is a row of the identity. That needs no name of a weight, and shows
whether the output is linear in the neurons at all, without which a contribution has no length.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.errors import ConfigError
from sae.geometry.sparsity import TailErrors, activation_ratio_for, cett_for_increase, tail_errors, threshold_for
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import Site

PROBE_CONTEXT = 64
"""Tokens of the rows with which the w_i are read off."""
LINEARITY = 1e-3
"""How far the output for random neurons may be from the sum of its parts, relative to its length (2% in half precision)."""


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
    _require(tokens, mask, "mask")
    _require(calibration, calibration_mask, "calibration_mask")
    sites = tuple(model.site(f"blocks.{layer}.mlp.hook_post") for layer in range(model.shape.n_layers))
    weights = mlp_writers(model)
    norms = {site: weights[site.layer].double().norm(dim=1).float() for site in sites}
    curves = _curves(model, sites, weights, calibration, calibration_mask, config)
    dense = perplexity(model, tokens, mask, batch_rows=config.batch_rows)
    steps: list[tuple[float, float]] = []

    def increase_at(cett: float) -> float:
        thresholds = {site: threshold_for(curves[site], cett) for site in sites}
        sparse = perplexity(model, tokens, mask, norms=norms, thresholds=thresholds, batch_rows=config.batch_rows)
        steps.append((cett, sparse / dense - 1))
        if progress is not None:
            progress(*steps[-1])
        return steps[-1][1]

    cett = cett_for_increase(increase_at, config.increase, high=config.highest_cett, tolerance=config.tolerance)
    thresholds = {site: threshold_for(curves[site], cett) for site in sites}
    kept = dict.fromkeys(sites, 0)
    sparse = perplexity(model, tokens, mask, norms=norms, thresholds=thresholds, batch_rows=config.batch_rows, kept=kept)
    n_used = int(mask.sum())
    return ActivationSparsity(
        sites=sites,
        cett=cett,
        thresholds=torch.tensor([thresholds[site] for site in sites], dtype=torch.float64),
        calibration_ratio=torch.tensor([activation_ratio_for(curves[site], cett) for site in sites], dtype=torch.float64),
        activation_ratio=torch.tensor([kept[site] / (n_used * site.width) for site in sites], dtype=torch.float64),
        perplexity_dense=dense,
        perplexity_sparse=sparse,
        steps=torch.tensor(steps, dtype=torch.float64),
        n_tokens=int(mask[:, :-1].sum()),
    )


def mlp_writers(model: LanguageModel) -> dict[int, Float[Tensor, "d_mlp d_model"]]:
    """Row i of the result for a layer is what its neuron i, at 1, adds to mlp_out (float32, CPU), without the bias.

    All layers are read in passes over d_mlp + 2 tokens altogether. Raises ConfigError for a model without mlp_post or mlp_out, and where the
    output for random neurons is not the sum of their parts.
    """
    layers = range(model.shape.n_layers)
    inner = [model.site(f"blocks.{layer}.mlp.hook_post") for layer in layers]
    outer = [model.site(f"blocks.{layer}.hook_mlp_out") for layer in layers]
    widths = {site.width for site in inner}
    if len(widths) != 1:
        raise ConfigError(f"the MLPs of {model.name} must have one width, got {sorted(widths)} (mlp_writers)")
    width, context = widths.pop(), min(PROBE_CONTEXT, model.shape.n_ctx)
    random = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    probes = torch.cat([torch.zeros(1, width), random, torch.eye(width)])
    n_rows = -(-len(probes) // context)
    probes = torch.cat([probes, torch.zeros(n_rows * context - len(probes), width)]).unflatten(0, (n_rows, context))
    tokens = torch.zeros(n_rows, context, dtype=torch.long)
    found = model.capture(tokens, outer, edits=[Edit.replace(site, probes) for site in inner])
    written: dict[int, Tensor] = {}
    for site in outer:
        flat = found[site].flatten(0, 1).float().cpu()
        bias, mixed, rows = flat[0], flat[1], flat[2 : 2 + width] - flat[0]
        expected = (random.double() @ rows.double())[0] + bias.double()
        allowed = LINEARITY if model.dtype == torch.float32 else 20 * LINEARITY
        if (mixed - expected).norm() > allowed * mixed.norm():
            raise ConfigError(
                f"mlp_out of layer {site.layer} of {model.name} is not linear in its neurons (a norm after the MLP?): no contributions"
            )
        written[site.layer] = rows
    return written


def perplexity(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    *,
    norms: Mapping[Site, Tensor] | None = None,
    thresholds: Mapping[Site, float] | None = None,
    batch_rows: int = 8,
    kept: dict[Site, int] | None = None,
) -> float:
    """exp of the mean cross-entropy of the predictions made where the mask is true, with |x_i| * norms[i] up to the site's threshold zeroed there.

    Without `thresholds` the model is untouched. `kept` gets the number of neurons above the threshold added, per site.
    Raises ConfigError as `activation_sparsity` does for the mask.
    """
    _require(tokens, mask, "mask")
    total, count = 0.0, 0
    for start in range(0, len(tokens), batch_rows):
        rows, use = tokens[start : start + batch_rows], mask[start : start + batch_rows].to(model.device)
        edits = [
            Edit.replace(site, functools.partial(_thinned, use=use, norms=(norms or {})[site], threshold=threshold, kept=kept, site=site))
            for site, threshold in (thresholds or {}).items()
        ]
        with torch.no_grad():
            logits = model.run(rows, edits)[:, :-1]
        losses = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten().to(logits.device).long(), reduction="none")
        counted = use[:, :-1].flatten()
        total += float(losses.double()[counted].sum())
        count += int(counted.sum())
    return math.exp(total / count)


def _thinned(acts: Tensor, *, use: Tensor, norms: Tensor, threshold: float, kept: dict[Site, int] | None, site: Site) -> Tensor:
    large = acts.abs() * norms.to(acts) > threshold
    if kept is not None:
        kept[site] += int((large & use[..., None]).sum())
    return acts * (large | ~use[..., None])


def _curves(
    model: LanguageModel,
    sites: Sequence[Site],
    weights: Mapping[int, Tensor],
    calibration: Tensor,
    mask: Tensor,
    config: ActivationSparsityConfig,
) -> dict[Site, TailErrors]:
    """CETT of every layer on the calibration tokens, each layer with the layers before it untouched."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(calibration), config.batch_rows):
        rows, use = calibration[start : start + config.batch_rows], mask[start : start + config.batch_rows].to(model.device)
        for site, acts in model.capture(rows, sites).items():
            parts[site].append(acts[use].float().cpu())
    return {site: tail_errors(torch.cat(parts.pop(site)), weights[site.layer], max_points=config.max_points) for site in sites}


def _require(tokens: Tensor, mask: Tensor, argument: str) -> None:
    if tokens.shape != mask.shape or not bool(mask[:, :-1].any()):
        counted = int(mask[:, :-1].sum())
        raise ConfigError(
            f"{argument} must have the shape of its tokens {tuple(tokens.shape)} and allow a position before the last, got {counted}"
        )
