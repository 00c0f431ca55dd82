"""Language models whose MLPs keep some of their neurons on each token: which, by four rules, and what it does to the perplexity.

    mlp_out_t = sum_i m_ti x_ti w_i         x = what enters the last matrix of the MLP (in a gated MLP act(gate) * up),  w_i = its row i
    contribution    m_ti = [ |x_ti| |w_i| > eps_l ]        eps_l: the threshold of layer l at which CETT is the same in all layers
    fixed           m_ti = [ |x_ti| > eps ]                one eps for all layers (FAT-eps)
    top_k           m_ti = [ |x_ti| is among the k largest of token t ]        one k for all layers
    random          k neurons of each token and layer, at random: what any rule must beat

Luo et al. 2024, "Sparsing Law" (arXiv 2411.02335), compare the first with the next two. Their program goes by the gate and takes the largest of all
tokens of a pass together; here both baselines go by x, which is what multiplies w_i, and k is of each token, so that the neurons of a token do
not depend on its batch. The w_i are read off the model: what it writes when x is a row of the identity. That needs no name of a weight, and
shows whether the output is linear in the neurons at all, without which a contribution has no length.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae.errors import ConfigError
from sae.geometry.sparsity import TailErrors, common_cett, tail_errors, threshold_for
from sae.models.language_model import Edit, LanguageModel
from sae.models.sites import Site

Rule = Literal["contribution", "fixed", "top_k", "random"]
RULES: tuple[Rule, ...] = ("contribution", "fixed", "top_k", "random")
Keep = Callable[[Tensor], Tensor]
"""From the activations of some tokens [..., d_mlp] to which of them are kept, of the same shape."""
PROBE_CONTEXT = 64
"""Tokens of the rows with which the w_i are read off."""
LINEARITY = 1e-3
"""How far the output for random neurons may be from the sum of its parts, relative to its length (2% in half precision)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Neurons of every layer on some tokens, with no layer thinned, and what the rules need of them."""

    sites: tuple[Site, ...]
    """The layers' mlp_post, in the order of all numbers per layer."""
    acts: Mapping[Site, Float[Tensor, "n_tokens d_mlp"]]
    """x, in the model's dtype, on the CPU."""
    writers: Mapping[Site, Float[Tensor, "d_mlp d_model"]]
    """w_i as rows, float32."""
    curves: Mapping[Site, TailErrors]
    """CETT of every layer."""
    magnitudes: Float[Tensor, " points"]
    """|x| of all layers together, ascending, equally spaced in rank with the largest at the end."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the calibration."""
        return len(self.acts[self.sites[0]])

    def lengths(self, site: Site) -> Float[Tensor, " d_mlp"]:
        """|w_i|."""
        return self.writers[site].double().norm(dim=1).float()


def calibrate(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    *,
    max_points: int = 65_536,
    batch_rows: int = 8,
) -> Calibration:
    """The neurons of the tokens where the mask is true. One pass over them, and one over d_mlp + 2 tokens to read the w_i off.

    Memory: the neurons in the model's dtype, and `max_points` thresholds a layer. Raises ConfigError for a mask of another shape or
    without anything to count, and as `mlp_writers` and `tail_errors`.
    """
    require_mask(tokens, mask, "calibration_mask")
    sites = tuple(model.site(f"blocks.{layer}.mlp.hook_post") for layer in range(model.shape.n_layers))
    written = mlp_writers(model)
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for start in range(0, len(tokens), batch_rows):
        rows, use = tokens[start : start + batch_rows], mask[start : start + batch_rows].to(model.device)
        for site, acts in model.capture(rows, sites).items():
            parts[site].append(acts[use].cpu())
    found = {site: torch.cat(parts.pop(site)) for site in sites}
    curves = {site: tail_errors(found[site].float(), written[site.layer], max_points=max_points) for site in sites}
    pool = torch.cat([found[site].flatten() for site in sites]).float().abs().sort().values
    places = torch.linspace(0, len(pool) - 1, min(max_points, len(pool)), dtype=torch.float64).round().long()
    return Calibration(sites, found, {site: written[site.layer] for site in sites}, curves, pool[places])


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


def keep_contributions(calibration: Calibration, thresholds: Mapping[Site, float]) -> dict[Site, Keep]:
    """Neurons with |x_i| |w_i| above the threshold of their layer."""

    def keep(lengths: Tensor, threshold: float) -> Keep:
        return lambda acts: acts.float().abs() * lengths.to(acts.device) > threshold

    return {site: keep(calibration.lengths(site), threshold) for site, threshold in thresholds.items()}


def keep_rule(rule: Rule, calibration: Calibration, ratio: float, *, seed: int = 0) -> dict[Site, Keep]:
    """The rule, set so that about the share `ratio` of neurons is kept: on average over the layers and the calibration's tokens by
    "contribution" and "fixed", on every token of every layer by "top_k" and "random". `seed` is that of "random".

    Raises ConfigError for another rule and a ratio outside 0..1.
    """
    if rule not in RULES or not 0 <= ratio <= 1:
        raise ConfigError(f"rule must be one of {', '.join(RULES)} and ratio in 0..1, got {rule!r} and {ratio} (keep_rule)")
    if rule == "contribution":
        cett = common_cett(list(calibration.curves.values()), ratio)
        return keep_contributions(calibration, {site: threshold_for(curve, cett) for site, curve in calibration.curves.items()})
    if rule == "fixed":
        place = math.ceil((1 - ratio) * len(calibration.magnitudes)) - 1
        threshold = calibration.magnitudes[place].item() if place >= 0 else 0.0
        return dict.fromkeys(calibration.sites, lambda acts: acts.float().abs() > threshold)
    if rule == "top_k":
        return dict.fromkeys(calibration.sites, lambda acts: _largest(acts.float().abs(), ratio))
    generator = torch.Generator().manual_seed(seed)
    return dict.fromkeys(calibration.sites, lambda acts: _largest(torch.rand(acts.shape, generator=generator), ratio).to(acts.device))


def keep_random(ratios: Mapping[Site, float], *, seed: int) -> dict[Site, Keep]:
    """The given share of the neurons of each layer, drawn anew on every token."""
    generator = torch.Generator().manual_seed(seed)

    def keep(ratio: float) -> Keep:
        return lambda acts: _largest(torch.rand(acts.shape, generator=generator), ratio).to(acts.device)

    return {site: keep(ratio) for site, ratio in ratios.items()}


def _largest(scores: Tensor, ratio: float) -> Tensor:
    places = scores.topk(round(ratio * scores.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places, True)


def prediction_losses(
    model: LanguageModel,
    tokens: Int[Tensor, "n_rows context"],
    mask: Bool[Tensor, "n_rows context"],
    *,
    keep: Mapping[Site, Keep] | None = None,
    batch_rows: int = 8,
    kept: dict[Site, int] | None = None,
) -> Float[Tensor, " n_predictions"]:
    """Cross-entropy in nats of each prediction made where the mask is true, in the order of the text (float64), with the neurons that are not
    kept at zero there.

    Without `keep` the model is untouched. `kept` gets the number of neurons kept added, per site. Raises ConfigError for a mask of another shape
    or without anything to count.
    """
    require_mask(tokens, mask, "mask")
    found = []
    for start in range(0, len(tokens), batch_rows):
        use = mask[start : start + batch_rows]
        if not bool(use.any()):
            continue
        end = min(tokens.shape[1], int(use.any(dim=0).nonzero().max()) + 2)  # nothing after the last prediction is looked at
        rows, use = tokens[start : start + batch_rows, :end], use[:, :end].to(model.device)
        edits = [Edit.replace(site, _thinned(choose, use, site, kept)) for site, choose in (keep or {}).items()]
        with torch.no_grad():
            logits = model.run(rows, edits)[:, :-1]
        counted = use[:, :-1]
        targets = rows[:, 1:].to(logits.device)[counted].long()
        found.append(cross_entropy(logits[counted], targets, reduction="none").double().cpu())
    return torch.cat(found)


def perplexity(losses: Float[Tensor, " n_predictions"]) -> float:
    """exp of the mean."""
    return math.exp(losses.mean().item())


def _thinned(choose: Keep, use: Tensor, site: Site, kept: dict[Site, int] | None) -> Callable[[Tensor], Tensor]:
    def thinned(acts: Tensor) -> Tensor:
        large = choose(acts)
        if kept is not None:
            kept[site] += int((large & use[..., None]).sum())
        return acts * (large | ~use[..., None])

    return thinned


def require_mask(tokens: Tensor, mask: Tensor, argument: str) -> None:
    """Raises ConfigError unless the mask has the shape of its tokens and allows a position before the last."""
    if tokens.shape != mask.shape or not bool(mask[:, :-1].any()):
        counted = int(mask[:, :-1].sum())
        raise ConfigError(
            f"{argument} must have the shape of its tokens {tuple(tokens.shape)} and allow a position before the last, got {counted}"
        )


def mean_ratio(kept: Mapping[Site, int], sites: Sequence[Site], n_tokens: int) -> Float[Tensor, " layers"]:
    """Share of neurons kept per layer, from the counts that `prediction_losses` fills."""
    return torch.tensor([kept[site] / (n_tokens * site.width) for site in sites], dtype=torch.float64)
