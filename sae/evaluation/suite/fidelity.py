"""Measures of fidelity: how well a dictionary reconstructs activations, how sparsely, and how often its latents fire."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.findings import Number, Quantity
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.bootstrap import DocumentSums
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.evaluation.reconstruction import captured_energy, dimension_fvu, fvu, per_token, principal_components, reconstruction_bias
from sae.evaluation.suite.sample import Sample, batches, sums
from sae.evaluation.suite.scores import Scorer
from sae.evaluation.token_sums import TokenSums, Totals
from sae.geometry.densities import row_sparseness

OFTEN, ALWAYS = 0.1, 0.9
"""Shares of tokens above which a latent fires often, and nearly always."""
L0_QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Settings of `reconstruction` and `densities`, which share a pass over the tokens where they have the same number of them."""

    n_tokens: int = 100_000
    """Tokens, whole rows of the store drawn at random."""


def reconstruction_scores(inputs: Inputs, config: FidelityConfig) -> Outcome:
    """What the reconstruction misses and how many latents it takes, beside the mean and principal components."""
    found, chosen = sums(inputs, config.n_tokens)
    scorer = Scorer(found.table(), seed=inputs.seed)
    every = Totals(found.table().sum(0, keepdim=True))
    worst = int(dimension_fvu(every)[0].nan_to_num(nan=-1.0).argmax())
    n_still = int(dimension_fvu(every).isnan().sum())
    still = f"{n_still} dimensions that do not vary are left out" if n_still else ""
    numbers = [
        scorer.number("FVU", _of(fvu), note=chosen.note),
        scorer.number("explained variance", lambda table: 1 - fvu(Totals(table))),
        Number("FVU of the mean", scorer.value(_mean_fvu), note="the mean of all usable tokens of the store"),
        _pca_number(inputs, found, chosen),
        scorer.number("mean FVU of dimensions", lambda table: dimension_fvu(Totals(table)).nanmean(1), note=still),
        scorer.number("median FVU of dimensions", lambda table: dimension_fvu(Totals(table)).nanmedian(1).values),
        scorer.number("worst FVU of a dimension", lambda table: dimension_fvu(Totals(table))[:, worst], note=f"dimension {worst}"),
        scorer.number("dimensions above 1", _above_one),
        scorer.number("relative error", _of(partial(per_token, name="relative_errors"))),
        scorer.number("cosine", _of(partial(per_token, name="cosines"))),
        scorer.number("norm ratio", _of(partial(per_token, name="norm_ratios"))),
        scorer.number("reconstruction bias", _of(reconstruction_bias)),
        scorer.number("L0", _of(partial(per_token, name="active"))),
        *_l0_quantiles(found),
        _dead_share(found),
    ]
    return Outcome(tuple(numbers), (_l0_figure(found),), _notes(inputs, chosen))


def _of(statistic):
    return lambda table: statistic(Totals(table))


def _mean_fvu(table: Float[Tensor, "draws n_terms"]) -> Float[Tensor, " draws"]:
    """FVU of the centre that squares are taken about, which is the mean over the store."""
    totals = Totals(table)
    return totals.about_centre().sum(1) / totals.variance().sum(1)


def _above_one(table: Float[Tensor, "draws n_terms"]) -> Float[Tensor, " draws"]:
    each = dimension_fvu(Totals(table))
    return (each > 1).double().sum(1) / (~each.isnan()).double().sum(1)


def _pca_number(inputs: Inputs, found: TokenSums, chosen: Sample) -> Number:
    """FVU of as many principal components of the store as the codes have latents, on the same tokens."""
    store = inputs.stored
    k = min(round(float(found.scalars[:, -1].sum()) / found.n_tokens), found.errors.shape[1])
    components, mean = principal_components(store.covariance(chosen.target), k), store.statistics(chosen.target).mean
    captured = DocumentSums(found.n_units, 1)
    for batch in batches(inputs, chosen):
        captured.add_(batch.unit, captured_energy(batch.target, mean, components)[:, None])
    scorer = Scorer(torch.cat([found.table(), captured.sums], dim=1), seed=inputs.seed)

    def statistic(table: Float[Tensor, "draws n_terms"]) -> Float[Tensor, " draws"]:
        totals = Totals(table[:, :-1])
        return (totals.about_centre().sum(1) - table[:, -1]) / totals.variance().sum(1)

    return scorer.number(
        "FVU of PCA", statistic, subject=f"{k} coefficients", note="fitted on all usable tokens of the store, these among them"
    )


def _l0_quantiles(found: TokenSums) -> list[Number]:
    share = found.l0_counts.double().cumsum(0) / found.n_tokens
    values = [int((share < q - 1e-12).sum()) for q in L0_QUANTILES]
    return [Number("L0 quantile", float(value), f"{q:.0%}".replace("%", " %")) for q, value in zip(L0_QUANTILES, values, strict=True)]


def _dead_share(found: TokenSums) -> Number:
    dead = (found.firings == 0).double().mean().item()
    return Number("dead share", dead, note=f"one of them fires on fewer than {3 / found.n_tokens:.2g} of tokens (95 %, rule of three)")


def _notes(inputs: Inputs, chosen: Sample) -> tuple[str, ...]:
    notes = [f"{chosen.note}; 95 % intervals by resampling documents"]
    if inputs.chosen("dictionary").provenance.get("store_digest") == inputs.stored.digest:
        notes.append("the dictionary was trained on this store: most of these tokens it has seen")
    if chosen.target != chosen.site:
        notes.append(f"a transcoder: read at {chosen.site}, and held against {chosen.target}")
    return tuple(notes)


def _l0_figure(found: TokenSums) -> Figure:
    counts = found.l0_counts
    width = max(1, -(-len(counts) // 60))
    shares = torch.nn.functional.pad(counts, (0, -len(counts) % width)).view(-1, width).sum(1).double() / found.n_tokens
    edges = [width * i - 0.5 for i in range(len(shares) + 1)]
    bars = Series("tokens", tuple(edges), tuple(shares.tolist()), mark="bars")
    return Figure("Active latents of a token", Axis("L0"), Axis("share of tokens"), (bars,))


def density_scores(inputs: Inputs, config: FidelityConfig) -> Outcome:
    """How often latents fire, and how unequally."""
    found, chosen = sums(inputs, config.n_tokens)
    n, density = found.n_tokens, found.firings.double() / found.n_tokens
    alive = density[density > 0]
    scorer = Scorer(torch.cat([found.scalars[:, :1], found.frequent_firings], dim=1), seed=inputs.seed)

    def above(threshold: float):
        return lambda table: (table[:, 1:] / table[:, :1] > threshold).double().sum(1) / len(density)

    numbers = (
        Number("dead share", float((density == 0).double().mean()), note=chosen.note),
        Number("bound on a dead latent", min(1.0, 3 / n)),
        Number("median density", alive.median().item() if len(alive) else None),
        scorer.number("share above 10 %", above(OFTEN)),
        scorer.number("share always on", above(ALWAYS)),
        Number("Gini of densities", row_sparseness(density[None]).gini.item() if len(alive) and len(density) > 1 else None),
    )
    return Outcome(numbers, (_density_figure(alive, n),) if len(alive) else (), (chosen.note,))


def _density_figure(alive: Float[Tensor, " n_alive"], n: int) -> Figure:
    edges = torch.linspace(torch.tensor(0.7 / n).log10().item(), 0.0, 49, dtype=torch.float64)
    counts = torch.histogram(alive.log10().clamp(max=-1e-12), edges).hist
    return Figure(
        "Densities of latents",
        Axis("log10 of the share of tokens on which a latent fires"),
        Axis("latents"),
        (Series("living latents", tuple(edges.tolist()), tuple(counts.tolist()), mark="bars"),),
        (Rule("x", -1.0, "10 %"),),
        "Latents on the far left were seen a few times only; those right of 10 % are rarely one concept.",
    )


CLASSIC = "explained variance of the regression literature"
DIMENSIONS = "column-wise r^2, as scikit-learn's r2_score and torchmetrics average it by default"
GAMMA = "Rajamanoharan et al. 2024, arXiv 2404.16014, section 4"
QUANTITIES = (
    Quantity(
        "FVU",
        "Fraction of the activations' variance that the reconstruction misses: 0 for a perfect one, 1 for the mean alone; it may be above 1.",
        "the project's one definition; sums over tokens and dimensions before dividing, so it does not depend on batches",
        formula="FVU = sum_t |x_t - x_hat_t|^2 / sum_t |x_t - x_bar|^2",
    ),
    Quantity("explained variance", "What is left of 1: high is good.", CLASSIC, formula="explained variance = 1 - FVU"),
    Quantity(
        "FVU of the mean",
        "What predicting the store's mean for every token gives: 1, but for the difference between its mean and the sample's.",
        "baseline",
        formula="sum_t |x_t - mu|^2 / sum_t |x_t - x_bar|^2, mu: mean over the store",
    ),
    Quantity(
        "FVU of PCA",
        "What a linear code with as many real coefficients as there are active latents misses; a sparse code should miss less.",
        "baseline",
        formula="sum_t (|x_t - mu|^2 - |(x_t - mu) V_k|^2) / sum_t |x_t - x_bar|^2, V_k: the k leading eigenvectors, k = L0 rounded",
    ),
    Quantity(
        "mean FVU of dimensions",
        "Another number than FVU: every dimension counts alike, however little it varies, so a few still ones can decide it.",
        DIMENSIONS,
        formula="mean_j FVU_j, FVU_j = sum_t (x_tj - x_hat_tj)^2 / sum_t (x_tj - x_bar_j)^2",
    ),
    Quantity("median FVU of dimensions", "FVU of the middle dimension.", DIMENSIONS, formula="median_j FVU_j"),
    Quantity(
        "worst FVU of a dimension",
        "FVU of the dimension that is reconstructed worst; the interval is that dimension's.",
        DIMENSIONS,
        formula="max_j FVU_j",
    ),
    Quantity(
        "dimensions above 1", "Share of dimensions that their mean would predict better.", DIMENSIONS, formula="share of j: FVU_j > 1"
    ),
    Quantity(
        "relative error",
        "Squared error relative to each token's own squared length, averaged over tokens; some call it normalised MSE. Not FVU: a large mean makes it small.",
        "per-token ratio",
        formula="mean_t |x_t - x_hat_t|^2 / |x_t|^2",
    ),
    Quantity(
        "cosine",
        "Cosine between activation and reconstruction: 1 for the same direction. A large mean makes it high.",
        "SAEBench core metrics",
        formula="mean_t x_t . x_hat_t / (|x_t| |x_hat_t|)",
    ),
    Quantity("norm ratio", "Length of the reconstruction: below 1 is shrunk.", "SAEBench core metrics", formula="mean_t |x_hat_t| / |x_t|"),
    Quantity(
        "reconstruction bias",
        "1 for an unbiased reconstruction, below 1 for one that an L1 penalty has shrunk: multiplied by 1 over it the error would be least.",
        GAMMA,
        formula="E|x_hat|^2 / E[x . x_hat]",
    ),
    Quantity("L0", "Active latents of a token.", "count", "latents", formula="mean_t #{i: z_ti != 0}"),
    Quantity(
        "L0 quantile", "That share of tokens has at most so many active latents.", "count", "latents", formula="quantile_t #{i: z_ti != 0}"
    ),
    Quantity("dead share", "Latents that fire on none of the tokens.", "count", formula="share of i: z_ti = 0 for all t"),
)
RECONSTRUCTION = Measure(
    name="reconstruction",
    title="Reconstruction",
    text=(
        "How much of the activations the dictionary gives back, and with how many latents. Every number is computed from sums over all tokens; "
        "libraries print other numbers under some of these names, so the formula stands with each."
    ),
    needs=("dictionary", "store"),
    quantities=QUANTITIES,
    compute=reconstruction_scores,
    config=FidelityConfig(),
    quick=FidelityConfig(n_tokens=20_000),
)
DENSITIES = Measure(
    name="densities",
    title="Densities",
    text="How often latents fire, and how unequally. A latent that did not fire on so many tokens may still fire on others.",
    needs=("dictionary", "store"),
    quantities=(
        Quantity("dead share", "Latents that fire on none of the tokens.", "count", formula="share of i: z_ti = 0 for all t"),
        Quantity(
            "bound on a dead latent",
            "How often a latent that was not seen to fire may still fire: what dead means on so many tokens.",
            "rule of three; Hanley & Lippman-Hand 1983, JAMA 249",
            formula="3 / N (95 %)",
        ),
        Quantity("median density", "Share of tokens on which the middle living latent fires.", "count", formula="median_i f_i, f_i > 0"),
        Quantity(
            "share above 10 %",
            "Latents that fire on more than 10 % of tokens: rarely one concept.",
            "count",
            formula="share of i: f_i > 0.1, f_i = #{t: z_ti != 0} / N",
        ),
        Quantity(
            "share always on",
            "Latents that fire on more than 90 % of tokens: they do a bias's work.",
            "count",
            formula="share of i: f_i > 0.9",
        ),
        Quantity(
            "Gini of densities",
            "How unequally firings are spread over latents: 0 where all fire equally often, near 1 where few do all the work. Dead ones count.",
            "Gini index; Hurley & Rickard 2009",
            formula="2 sum_r r f_(r) / (n sum f) - (n + 1) / n, ranks r ascending",
        ),
    ),
    compute=density_scores,
    config=FidelityConfig(),
    quick=FidelityConfig(n_tokens=20_000),
)
