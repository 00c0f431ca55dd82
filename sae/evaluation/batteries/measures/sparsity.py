"""How few neurons of a language model's MLPs do the work: `sae.evaluation.activation_sparsity` as a measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.evaluation.activation_sparsity import (
    ActivationSparsity,
    ActivationSparsityConfig,
    SparsityCurve,
    SparsityCurveConfig,
    calibrated_sparsity,
    sparsity_curve,
)
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.batteries.sites import short_sites
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.evaluation.layer_passes import prompt_tokens
from sae.evaluation.thinning import RULES, Calibration, calibrate, keep_contributions, keep_random, keep_rule, perplexity, prediction_losses
from sae.geometry.nulls import compare
from sae.geometry.sparsity import activation_ratio_for, gaussian_like, tail_errors
from sae.models.language_model import LanguageModel

FEWEST = 4
"""Prompts below which there is nothing to calibrate on and to evaluate."""
CALIBRATION_SHARE = 0.25
"""Share of the prompts that go to the calibration where there are fewer than asked for."""
NAMES = {"contribution": "CETT thresholds", "fixed": "fixed threshold", "top_k": "largest of each token", "random": "random neurons"}


@dataclass(frozen=True, kw_only=True)
class ActivationSparsityMeasureConfig:
    """Settings of `activation_sparsity`."""

    increase: float = 0.01
    """p/100 of PPL-p%: the allowed rise of the perplexity, relative."""
    n_prompts: int = 128
    """Prompts whose perplexity is measured, at most."""
    n_calibration: int = 48
    """Prompts that the thresholds come from, at most; others than those."""
    max_tokens: int = 48
    """Tokens of a prompt at most."""
    ratios: tuple[float, ...] = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1)
    """Shares of neurons kept, of the curves."""
    tolerance: float = 0.01
    """Width of the share at which the search for the rise ends; of CETT a tenth of it."""
    null_tokens: int = 128
    """First calibration tokens, which the null of activation ratios is of."""
    n_null: int = 19
    """Draws of Gaussian activations."""
    n_random: int = 19
    """Draws of random neurons; a pass over the prompts each."""
    n_flips: int = 999
    """Draws of signs."""


@dataclass(frozen=True, eq=False)
class _Text:
    """Prompts as rows of tokens, shortest first, and where predictions are counted."""

    tokens: Int[Tensor, "n_rows context"]
    mask: Bool[Tensor, "n_rows context"]


def activation_sparsity_of_model(inputs: Inputs, config: ActivationSparsityMeasureConfig) -> Outcome:
    """PPL-p% by CETT, its activation ratios by layer, and the other rules beside it."""
    model = inputs.language_model
    order = torch.randperm(len(inputs.prompts), generator=inputs.generator("prompts of activation sparsity")).tolist()
    if len(order) < FEWEST:
        raise ConfigError(f"prompts must be at least {FEWEST}, got {len(order)}: give more lines with --prompts")
    n_calibration = min(config.n_calibration, max(1, int(CALIBRATION_SHARE * len(order))))
    calibration_text = _text(model, [inputs.prompts[i] for i in order[:n_calibration]], config.max_tokens)
    text = _text(model, [inputs.prompts[i] for i in order[n_calibration : n_calibration + config.n_prompts]], config.max_tokens)
    losses = prediction_losses(model, text.tokens, text.mask)
    dense = perplexity(losses)
    calibration = calibrate(model, calibration_text.tokens, calibration_text.mask)
    settings = ActivationSparsityConfig(increase=config.increase, tolerance=config.tolerance / 10)
    found = calibrated_sparsity(model, text.tokens, text.mask, calibration, dense=dense, config=settings)
    curve_settings = SparsityCurveConfig(
        ratios=config.ratios, increase=config.increase, tolerance=config.tolerance, seed=_seed(inputs, "curve")
    )
    curves = [sparsity_curve(model, text.tokens, text.mask, calibration, rule, dense=dense, config=curve_settings) for rule in RULES]
    numbers = (
        Number("CETT at PPL-p %", found.cett, note=f"p = {100 * config.increase:g}; the smallest step is {config.tolerance / 10:g}"),
        _rise(inputs, model, text, found, config),
        *_crossings(curves, config),
        *_excess(inputs, model, text, calibration, found, config),
        *_ratios(inputs, calibration, found, config),
    )
    note = (
        f"Perplexity {dense:.2f} of the untouched model, {found.perplexity_sparse:.2f} with CETT thresholds: {len(text.tokens):,} prompts, "
        f"{found.n_tokens:,} predictions. Thresholds from {calibration.n_tokens:,} tokens of {len(calibration_text.tokens):,} other prompts. "
        "The separator at the start of each prompt keeps its neurons."
    )
    return Outcome(numbers, (_curves_figure(curves, dense), _layers_figure(curves, [site.name for site in found.sites])), (note,))


def _text(model: LanguageModel, prompts: Sequence[str], max_tokens: int) -> _Text:
    """Rows padded on the right; a prediction counts where it is made after the separator and of a token of the prompt."""
    rows = sorted(prompt_tokens(model, prompts, max_tokens=max_tokens, skip_first=1), key=len)
    context = len(rows[-1])
    lengths = torch.tensor([len(row) for row in rows])
    places = torch.arange(context)
    tokens = torch.tensor([[*row, *[row[-1]] * (context - len(row))] for row in rows])
    return _Text(tokens, (places >= 1) & (places < lengths[:, None] - 1))


def _seed(inputs: Inputs, purpose: str) -> int:
    return int(torch.randint(2**31, (), generator=inputs.generator(f"activation sparsity, {purpose}")))


def _rise(inputs: Inputs, model: LanguageModel, text: _Text, found: ActivationSparsity, config: ActivationSparsityMeasureConfig) -> Number:
    """The rise of the perplexity, beside that with as many neurons of every layer drawn at random."""
    ratios = dict(zip(found.sites, found.activation_ratio.tolist(), strict=True))
    draws = []
    for i in range(config.n_random):
        losses = prediction_losses(model, text.tokens, text.mask, keep=keep_random(ratios, seed=_seed(inputs, f"random {i}")))
        draws.append(perplexity(losses) / found.perplexity_dense - 1)
    value = found.perplexity_sparse / found.perplexity_dense - 1
    return of_null(QUANTITY["rise of the perplexity"], compare(value, draws), note=f"{found.n_tokens:,} predictions")


def _crossings(curves: Sequence[SparsityCurve], config: ActivationSparsityMeasureConfig) -> list[Number]:
    found = {curve.rule: curve.crossing_ratio for curve in curves}
    chance = found["random"].mean().item()
    numbers = []
    for rule, ratios in found.items():
        note = f"p = {100 * config.increase:g}; layers {ratios.min().item():.3f} to {ratios.max().item():.3f}"
        beside = {} if rule == "random" else {"null_mean": chance, "n_null": 1}
        numbers.append(Number("activation ratio at PPL-p %", ratios.mean().item(), NAMES[rule], note=note, **beside))
    return numbers


def _excess(
    inputs: Inputs,
    model: LanguageModel,
    text: _Text,
    calibration: Calibration,
    found: ActivationSparsity,
    config: ActivationSparsityMeasureConfig,
) -> list[Number]:
    """Loss of the two baselines beyond that of CETT thresholds, prompt by prompt, at the same share of neurons."""
    keep = keep_contributions(calibration, dict(zip(found.sites, found.thresholds.tolist(), strict=True)))
    best = prediction_losses(model, text.tokens, text.mask, keep=keep)
    share = found.activation_ratio.mean().item()
    prompt = text.mask[:, :-1].nonzero()[:, 0]
    generator, numbers = inputs.generator("activation sparsity, signs"), []
    signs = torch.randint(0, 2, (config.n_flips, len(text.tokens)), generator=generator).double() * 2 - 1
    for rule in ("fixed", "top_k"):
        kept = dict.fromkeys(calibration.sites, 0)
        losses = prediction_losses(model, text.tokens, text.mask, keep=keep_rule(rule, calibration, share), kept=kept)
        of_prompt = torch.zeros(len(text.tokens), dtype=torch.float64).index_add_(0, prompt, losses - best) / len(best)
        n_neurons = int(text.mask.sum()) * sum(site.width for site in calibration.sites)
        note = f"{sum(kept.values()) / n_neurons:.3f} of neurons kept, {share:.3f} by CETT"
        numbers.append(
            of_null(QUANTITY["loss beyond CETT"], compare(of_prompt.sum().item(), signs @ of_prompt), subject=NAMES[rule], note=note)
        )
    return numbers


def _ratios(inputs: Inputs, calibration: Calibration, found: ActivationSparsity, config: ActivationSparsityMeasureConfig) -> list[Number]:
    """Activation ratio of every layer at the common CETT, beside Gaussian activations; and the mean of the layers."""
    values, draws = [], []
    n = min(config.null_tokens, calibration.n_tokens)
    for site in calibration.sites:
        acts, weights = calibration.acts[site].float(), calibration.writers[site]
        values.append(activation_ratio_for(tail_errors(acts[:n], weights), found.cett))
        generator = inputs.generator(f"Gaussian neurons of {site.name}")
        clouds = (gaussian_like(acts, n, generator=generator) for _ in range(config.n_null))
        draws.append([activation_ratio_for(tail_errors(cloud, weights), found.cett) for cloud in clouds])
    value, drawn = torch.tensor(values, dtype=torch.float64), torch.tensor(draws, dtype=torch.float64)
    numbers = [of_null(QUANTITY["mean activation ratio"], compare(value.mean().item(), drawn.mean(dim=0)), note=_evaluated(found, None, n))]
    for i, site in enumerate(calibration.sites):
        note = _evaluated(found, i, n)
        numbers.append(of_null(QUANTITY["activation ratio"], compare(values[i], draws[i]), subject=site.name, note=note))
    return numbers


def _evaluated(found: ActivationSparsity, layer: int | None, n: int) -> str:
    ratio = found.activation_ratio.mean() if layer is None else found.activation_ratio[layer]
    return f"first {n:,} calibration tokens; {ratio.item():.3f} on those of the perplexity"


def _curves_figure(curves: Sequence[SparsityCurve], dense: float) -> Figure:
    series = []
    for curve in sorted(curves, key=lambda each: each.rule != "random"):
        x, y = (1.0, *curve.mean_ratio.tolist()), (dense, *curve.perplexity.tolist())
        order = sorted(range(len(x)), key=lambda i: -x[i])
        role = "null" if curve.rule == "random" else "result"
        series.append(Series(NAMES[curve.rule], tuple(x[i] for i in order), tuple(y[i] for i in order), role=role))
    return Figure(
        "Perplexity against the share of neurons kept",
        Axis("share of neurons kept, mean over layers"),
        Axis("perplexity", scale="log"),
        tuple(series),
        (Rule("y", dense, "untouched"),),
        "The lower a curve at a given share, the better its rule chooses. Shares are those on the tokens whose perplexity is measured.",
    )


def _layers_figure(curves: Sequence[SparsityCurve], sites: Sequence[str]) -> Figure:
    places = tuple(range(len(sites)))
    chosen = sorted(curves, key=lambda each: each.rule != "random")
    return Figure(
        "Neurons kept by layer where the perplexity rises by p %",
        Axis("layer", names=tuple(short_sites(sites))),
        Axis("share of neurons kept"),
        tuple(
            Series(NAMES[curve.rule], places, tuple(curve.crossing_ratio.tolist()), role="null" if curve.rule == "random" else "result")
            for curve in chosen
        ),
        caption="A fixed threshold takes most where activations are small; CETT takes as much of every layer's output; the others as many neurons.",
    )


SOURCE = "Luo et al. 2024, arXiv 2411.02335"
QUANTITIES = (
    Quantity(
        "CETT at PPL-p %",
        "Share of every MLP's output, in length, that can be left out by dropping small contributions before the perplexity rises by p %: high "
        "where the rest of the model makes little of it. 0 is what a model gives of which nothing can be left out.",
        SOURCE,
    ),
    Quantity(
        "mean activation ratio",
        "Share of neurons that are needed at that CETT, mean over the layers: low where few neurons of each token do the work.",
        SOURCE,
        alternative="less",
        null="Gaussian activations of the same mean and covariance, in every layer",
    ),
    Quantity(
        "activation ratio",
        "The same of one layer. Below the null, the neurons of a token are fewer than their means and correlations alone ask for.",
        SOURCE,
        alternative="less",
        null="Gaussian activations of the same mean and covariance",
    ),
    Quantity(
        "rise of the perplexity",
        "Relative rise with the CETT thresholds. Far below the null, it matters which neurons are kept and not only how many.",
        SOURCE,
        alternative="less",
        null="as many neurons of every token and layer kept at random",
    ),
    Quantity(
        "activation ratio at PPL-p %",
        "Share of neurons that each rule must keep for the perplexity to rise by no more than p %: the lower, the better the rule.",
        SOURCE,
        alternative="less",
        null="random neurons, one draw",
    ),
    Quantity(
        "loss beyond CETT",
        "Mean loss of another rule less that of CETT thresholds at the same share of neurons: positive where CETT chooses better.",
        SOURCE,
        "nats",
        null="zero: the sign of each prompt's difference drawn at random",
    ),
)
QUANTITY: Mapping[str, Quantity] = {quantity.name: quantity for quantity in QUANTITIES}
ACTIVATION_SPARSITY = Measure(
    name="activation_sparsity",
    title="Sparsity of MLP neurons",
    text=(
        "How many neurons of the MLPs are needed on a token. Neurons whose contribution |x| |w| is small are zeroed, by a threshold in each layer at "
        "which the relative error of the layer's output (CETT) is the same, until the perplexity has risen by p %. Beside it are one threshold on "
        "|x| for all layers, the largest |x| of each token, and neurons at random."
    ),
    needs=("model",),
    quantities=QUANTITIES,
    compute=activation_sparsity_of_model,
    config=ActivationSparsityMeasureConfig(),
    quick=ActivationSparsityMeasureConfig(
        n_prompts=12, n_calibration=8, max_tokens=24, ratios=(0.6, 0.3), tolerance=0.1, null_tokens=16, n_random=9
    ),
    curves=("activation ratio",),
)
