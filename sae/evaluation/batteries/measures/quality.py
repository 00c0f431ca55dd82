"""The quality of every layer of a language model, without a task: `sae.evaluation.layer_quality` as a measure."""

from dataclasses import dataclass

from sae.errors import ConfigError
from sae.evaluation.batteries.findings import Alternative, Number, Quantity
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.layer_quality import METRICS, LayerQualityConfig, QualityCurve, layer_quality


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Settings of `layer_quality`."""

    n_prompts: int = 640
    """Prompts at most."""
    max_tokens: int = 48
    """Tokens of a prompt at most."""
    n_null: int = 49
    """Draws of each null."""


def quality(inputs: Inputs, config: QualityConfig) -> Outcome:
    """Every metric at every layer."""
    texts = inputs.prompts[: config.n_prompts]
    if len(texts) < 3:
        raise ConfigError(f"prompts must be at least 3, got {len(texts)}: give more lines with --prompts")
    model = inputs.language_model
    width = model.sites(["blocks.*.hook_resid_post"])[0].width
    able = tuple(name for name in METRICS if name != "lidar" or len(texts) > width)
    settings = LayerQualityConfig(metrics=able, max_tokens=config.max_tokens, n_null=config.n_null, seed=inputs.seed)
    found = layer_quality(model, texts, settings)
    notes = [f"{len(texts):,} prompts, {found.n_tokens:,} tokens."]
    if "lidar" not in able:
        notes.append(f"LiDAR is left out: it needs more than {width} prompts.")
    numbers = [number for curve in found.curves for number in _numbers(curve, [site.name for site in found.sites])]
    return Outcome(tuple(numbers), notes=tuple(notes))


def _numbers(curve: QualityCurve, sites: list[str]) -> list[Number]:
    """One number a layer; where the null is of fewer prompts the value is, too, and the note says that of all."""
    null, numbers = curve.null, []
    quantity = QUANTITY[_title(curve.name)]
    for i, site in enumerate(sites):
        value, whole = null.values[i].item(), curve.values[i].item()
        if value != value:  # nan: the layer has none
            numbers.append(Number(quantity.name, None, site))
            continue
        low, high = null.p_less[i].item(), null.p_greater[i].item()
        p = {"less": low, "greater": high, "two-sided": min(1.0, 2 * min(low, high))}[quantity.alternative]
        note = f"first prompts; {whole:.4g} over all" if abs(whole - value) > 1e-12 * abs(value) else ""
        numbers.append(Number(quantity.name, value, site, null.null_mean[i].item(), null.null_sd[i].item(), null.n_null, p, note))
    return numbers


def _title(name: str) -> str:
    special = {
        "info_nce": "InfoNCE loss",
        "info_nce_centred": "InfoNCE loss, centred",
        "lidar": "LiDAR",
        "dime": "DiME",
        "isoscore": "IsoScore",
        "von_neumann_entropy": "von Neumann entropy",
    }
    return special.get(name, name.replace("_", " ").replace("wasserstein", "Wasserstein"))


ALTERNATIVES: dict[str, Alternative] = {
    "prompt_entropy": "less",
    "prompt_entropy_centred": "less",
    "curvature": "less",
    "info_nce": "less",
    "info_nce_centred": "less",
    "lidar": "less",
    "dime": "greater",
    "alignment": "less",
    "uniformity": "greater",
    "wasserstein_uniformity": "less",
    "average_cosine": "greater",
    "participation_ratio": "less",
    "effective_rank": "less",
    "stable_rank": "less",
    "isoscore": "less",
}
"""Which side is an effect; both for the others."""
SKEAN = "Skean et al. 2025, arXiv 2502.02013"
SOURCES = {
    "von_neumann_entropy": "Kim et al. 2023, arXiv 2304.01434",
    "lidar": "Thilak et al. 2023, arXiv 2312.04000",
    "alignment": "Wang & Isola 2020, arXiv 2005.10242",
    "uniformity": "Wang & Isola 2020, arXiv 2005.10242",
    "wasserstein_uniformity": "Fang et al. 2024, arXiv 2403.00642",
    "average_cosine": "Ethayarajh 2019, arXiv 1909.00512",
    "participation_ratio": "(sum l)^2 / sum l^2",
    "effective_rank": "Roy & Vetterli 2007",
    "stable_rank": "sum l / largest l",
    "isoscore": "Rudman et al. 2022, arXiv 2108.07344",
}
"""Where the definition is from; for the others it is that of Skean et al."""


def _quantity(name: str, about: str) -> Quantity:
    meaning, _, null = about.partition("; null: ")
    sentence = f"{meaning[0].upper()}{meaning[1:]}."
    return Quantity(_title(name), sentence, SOURCES.get(name, SKEAN), alternative=ALTERNATIVES.get(name, "two-sided"), null=null)


QUANTITIES = tuple(_quantity(name, about) for name, about in METRICS.items())
QUANTITY = {quantity.name: quantity for quantity in QUANTITIES}
LAYER_QUALITY = Measure(
    name="layer_quality",
    title="Quality of layers",
    text=(
        "What the representation of each layer is like, without a task: how many directions tokens and prompts use, how straight the path from token "
        "to token is, and how much of a prompt survives small changes of its text."
    ),
    needs=("model",),
    quantities=QUANTITIES,
    compute=quality,
    config=QualityConfig(),
    quick=QualityConfig(n_prompts=120, max_tokens=32, n_null=39),
    curves=tuple(quantity.name for quantity in QUANTITIES),
)
