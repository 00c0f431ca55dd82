"""How good the representation of each layer is, without a task: entropies, curvature, what two views share, isotropy, over the layers.

    prompts ─ one pass, all layers ─▶ per prompt:  entropy, curvature          ─▶ mean per layer, beside the null of the first prompts
                                      per prompt:  mean and last vector        ─▶ dataset entropy, uniformity, spectrum per layer
    views   ─ one pass per view   ─▶ mean vector of each view                  ─▶ InfoNCE, LiDAR, DiME, alignment per layer

After Skean et al. 2025, "Layer by Layer" (arXiv 2502.02013), by the definitions: the activations themselves are pooled, and centred afterwards.
`METRICS` says of each number what it means and what it is compared with; the nulls are those of `sae.geometry.layerwise` and
`sae.geometry.spectrum`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.kernels.cpu import team
from sae.errors import ConfigError
from sae.evaluation.layer_curves import METRICS, PROMPT_METRICS, VIEW_METRICS, pooled_statistics, prompt_statistics
from sae.evaluation.layer_passes import PromptBatch, prompt_batches, prompt_tokens
from sae.evaluation.text_views import ViewKind, text_views
from sae.geometry.layerwise import curvature, pooled_tokens, prompt_entropies
from sae.geometry.nulls import NullCurve, NullStatistic
from sae.models.language_model import LanguageModel
from sae.models.sites import Site

__all__ = ["METRICS", "LayerQuality", "LayerQualityConfig", "QualityCurve", "layer_quality"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, the steps done and the steps in all."""


@dataclass(frozen=True, kw_only=True)
class LayerQualityConfig:
    """What is measured, and on how much."""

    metrics: tuple[str, ...] = tuple(METRICS)
    """Names of curves, of `METRICS`. Those of two views cost a pass per view; "lidar" needs more prompts than dimensions."""
    max_tokens: int = 64
    """Longest prompt, tokens; the rest of a text is cut off."""
    skip_first: int = 1
    """Places left out at the beginning of each row, the separator's among them."""
    batch_prompts: int = 32
    """Prompts of one pass."""
    view: ViewKind = "characters"
    """How views are made."""
    n_views: int = 2
    """Views of each prompt; LiDAR takes all of them, the others the first two."""
    view_rate: float = 0.1
    """Share of letters or words that a view changes."""
    n_null: int = 19
    """Draws of each null."""
    null_prompts: int = 64
    """How many of the first prompts the nulls of prompt entropy and curvature are computed on."""
    seed: int = 0
    """Of views and nulls."""


@dataclass(frozen=True, eq=False)
class QualityCurve:
    """One number per layer."""

    name: str
    """A name of `METRICS`."""
    values: Float[Tensor, " layers"]
    """The number at each layer; nan where a layer has none."""
    null: NullCurve
    """Values and their null. Where the null is of fewer prompts (prompt entropy, curvature), its `values` are those of these prompts."""

    @property
    def meaning(self) -> str:
        """What the number says, its unit, and what it is compared with."""
        return METRICS[self.name]


@dataclass(frozen=True, eq=False)
class LayerQuality:
    """All curves of one model, and the vectors they were made of."""

    sites: tuple[Site, ...]
    """The layers, in the order of all curves."""
    curves: tuple[QualityCurve, ...]
    """One per metric."""
    pooled: Float[Tensor, "layers prompts d"]
    """Mean activation of the tokens of each prompt, float32."""
    last: Float[Tensor, "layers prompts d"]
    """Activation of the last token of each prompt, float32."""
    n_tokens: int
    """Tokens measured, without the places left out."""

    def curve(self, name: str) -> QualityCurve:
        """The curve of that name. Raises ConfigError when it was not measured."""
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise ConfigError(f"name must be one of {', '.join(c.name for c in self.curves)}, got {name!r} (LayerQuality)")

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per metric and layer: site, layer, metric, value over all prompts, and the null with its own value."""
        found = []
        for curve in self.curves:
            null = {"null_value": curve.null.values, **{k: getattr(curve.null, k) for k in ("null_mean", "null_sd", "p_greater", "p_less")}}
            for i, site in enumerate(self.sites):
                numbers = {name: float(column[i]) for name, column in {"value": curve.values, **null}.items()}
                found.append({"metric": curve.name, "layer": site.layer, "site": site.name, **numbers, "n_null": curve.null.n_null})
        return found


def layer_quality(
    model: LanguageModel,
    texts: Sequence[str],
    config: LayerQualityConfig | None = None,
    *,
    sites: Sequence[Site] | None = None,
    progress: Progress | None = None,
) -> LayerQuality:
    """The curves of `config.metrics` over `sites` (None: resid_post of every layer) for the prompts `texts`, and the vectors of each prompt.

    Deterministic: the same model, texts, configuration and number of threads give the same bits. Layers are compared with their nulls side by
    side, one on each torch thread. Memory: the vectors, 4 (2 + n_views) n d bytes per layer, and the activations of one batch and of
    `null_prompts` at every layer. Raises ConfigError for unknown metrics, sites of different widths,
    too few prompts for LiDAR, fewer than 3 prompts, n_null < 2, and texts that `prompt_tokens` or `text_views` refuses.
    """
    config = config or LayerQualityConfig()
    sites = tuple(sites if sites is not None else model.sites(["blocks.*.hook_resid_post"]))
    _require(config, texts, sites)
    notify = progress or (lambda stage, done, total: None)
    rows = prompt_tokens(model, texts, max_tokens=config.max_tokens, skip_first=config.skip_first)
    per_prompt, pooled, last = _measured(model, rows, sites, config, notify)
    views = None
    if set(config.metrics) & VIEW_METRICS:
        views = _views(model, texts, sites, config, notify)
    statistics = _compared(tuple(_null_batches(model, rows, sites, config)), pooled, views, config, notify)
    curves = []
    for name in config.metrics:
        null = _curve_of([layer[name] for layer in statistics])
        values = per_prompt[name].nanmean(dim=1) if name in PROMPT_METRICS else null.values
        curves.append(QualityCurve(name=name, values=values, null=null))
    n_tokens = sum(len(row) - config.skip_first for row in rows)
    return LayerQuality(sites=sites, curves=tuple(curves), pooled=pooled, last=last, n_tokens=n_tokens)


def _require(config: LayerQualityConfig, texts: Sequence[str], sites: Sequence[Site]) -> None:
    unknown = [name for name in config.metrics if name not in METRICS]
    if unknown or not config.metrics or len(set(config.metrics)) < len(config.metrics):
        raise ConfigError(f"metrics must be different names among {', '.join(METRICS)}, got {config.metrics} (layer_quality)")
    if len(texts) < 3 or config.null_prompts < 3:
        raise ConfigError(f"texts and null_prompts must be at least 3 prompts, got {len(texts)} and {config.null_prompts} (layer_quality)")
    widths = {site.width for site in sites}
    if len(widths) != 1:
        raise ConfigError(f"sites must share one width, got {sorted(widths)} of {len(sites)} sites (layer_quality)")
    d = widths.pop()
    if "lidar" in config.metrics and len(texts) <= d:
        raise ConfigError(f"texts must be more than d={d} prompts for lidar, got {len(texts)}; take more, or leave it out (layer_quality)")
    if set(config.metrics) & VIEW_METRICS and config.n_views < 2:
        raise ConfigError(
            f"n_views must be at least 2 for {sorted(set(config.metrics) & VIEW_METRICS)}, got {config.n_views} (layer_quality)"
        )
    if config.n_null < 2:
        raise ConfigError(f"n_null must be at least 2, got {config.n_null} (layer_quality)")


def _measured(
    model: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[Site], config: LayerQualityConfig, notify: Progress
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Prompt metrics [layers, prompts], mean and last vectors [layers, prompts, d]."""
    place = {site: i for i, site in enumerate(sites)}
    shape = (len(sites), len(rows), sites[0].width)
    pooled, last = torch.empty(shape), torch.empty(shape)
    per_prompt = {name: torch.empty(shape[:2], dtype=torch.float64) for name in config.metrics if name in PROMPT_METRICS}
    done = 0
    for batch in prompt_batches(model, rows, sites, batch_prompts=config.batch_prompts, skip_first=config.skip_first):
        i, ids = place[batch.site], batch.prompt_ids
        pooled[i, ids] = pooled_tokens(batch.tokens, batch.lengths).float().cpu()
        last[i, ids] = batch.tokens[batch.lengths.cumsum(0) - 1].float().cpu()
        if "prompt_entropy" in per_prompt:
            per_prompt["prompt_entropy"][i, ids] = prompt_entropies(batch.tokens, batch.lengths).cpu()
        if "prompt_entropy_centred" in per_prompt:
            entropies = prompt_entropies(batch.tokens, batch.lengths, rows="centred-unit", normalisation="max")
            per_prompt["prompt_entropy_centred"][i, ids] = entropies.cpu()
        if "curvature" in per_prompt:
            per_prompt["curvature"][i, ids] = curvature(batch.tokens, batch.lengths).cpu()
        if i == len(sites) - 1:
            done += len(ids)
            notify("prompts", done, len(rows))
    return per_prompt, pooled, last


def _views(
    model: LanguageModel, texts: Sequence[str], sites: Sequence[Site], config: LayerQualityConfig, notify: Progress
) -> Float[Tensor, "layers prompts n_views d"]:
    """Mean vectors of the views of all texts."""
    made = text_views(texts, kind=config.view, n_views=config.n_views, rate=config.view_rate, seed=config.seed)
    place = {site: i for i, site in enumerate(sites)}
    found = torch.empty(len(sites), len(texts), config.n_views, sites[0].width)
    for v in range(config.n_views):
        rows = prompt_tokens(model, [view[v] for view in made], max_tokens=config.max_tokens, skip_first=config.skip_first)
        done = 0
        for batch in prompt_batches(model, rows, sites, batch_prompts=config.batch_prompts, skip_first=config.skip_first):
            found[place[batch.site], batch.prompt_ids, v] = pooled_tokens(batch.tokens, batch.lengths).float().cpu()
            if place[batch.site] == len(sites) - 1:
                done += len(batch.prompt_ids)
                notify(f"view {v + 1} of {config.n_views}", done, len(texts))
    return found


def _null_batches(
    model: LanguageModel, rows: Sequence[Sequence[int]], sites: Sequence[Site], config: LayerQualityConfig
) -> Iterator[PromptBatch]:
    """The first `null_prompts` prompts, a layer at a time."""
    if not set(config.metrics) & PROMPT_METRICS:
        return
    first = rows[: config.null_prompts]
    parts: dict[Site, list[PromptBatch]] = {site: [] for site in sites}
    for batch in prompt_batches(model, first, sites, batch_prompts=config.batch_prompts, skip_first=config.skip_first):
        parts[batch.site].append(batch)
    for site in sites:
        batches = parts.pop(site)
        joined = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("prompt_ids", "tokens", "lengths")}
        yield PromptBatch(site=site, **joined)


def _compared(
    batches: Sequence[PromptBatch],
    pooled: Float[Tensor, "layers prompts d"],
    views: Float[Tensor, "layers prompts n_views d"] | None,
    config: LayerQualityConfig,
    notify: Progress,
) -> list[dict[str, NullStatistic]]:
    """For every layer its numbers with their nulls, layers side by side on as many threads as torch has."""
    of_prompts = [name for name in config.metrics if name in PROMPT_METRICS]
    of_layers = [name for name in config.metrics if name not in PROMPT_METRICS]
    found: list[dict[str, NullStatistic]] = [{} for _ in pooled]
    lock = threading.Lock()

    def compare_layer(i: int) -> None:
        own = prompt_statistics(batches[i], of_prompts, config.n_null, config.seed) if of_prompts else {}
        layer_views = None if views is None else views[i]
        own |= pooled_statistics(pooled[i], layer_views, of_layers, config.n_null, config.seed)
        with lock:
            found[i] = own
            notify("nulls of layers", sum(map(bool, found)), len(found))

    team.each(compare_layer, len(found))
    return found


def _curve_of(statistics: Sequence[NullStatistic]) -> NullCurve:
    columns = {name: torch.tensor([asdict(s)[name] for s in statistics], dtype=torch.float64) for name in asdict(statistics[0])}
    return NullCurve(
        values=columns["value"],
        null_mean=columns["null_mean"],
        null_sd=columns["null_sd"],
        n_null=statistics[0].n_null,
        p_greater=columns["p_greater"],
        p_less=columns["p_less"],
    )
