"""Measures of a dictionary's codes on a store: how often latents fire, how unequally, how many are needed, and how near atoms are that fire together."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries.drawing import null_band
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.geometry.coherence import compare_coactivated_babel
from sae.geometry.densities import sparseness
from sae.geometry.nulls import compare
from sae.geometry.sparsity import needed_latents


@dataclass(frozen=True, kw_only=True)
class TogetherConfig:
    """Settings of `together`."""

    n_tokens: int = 10_000
    """Tokens, whole rows of the store drawn at random."""
    max_order: int = 8
    """Largest number of other atoms of a token's code."""
    n_null: int = 199
    """Null draws."""


def together(inputs: Inputs, config: TogetherConfig) -> Outcome:
    """The Babel function over the atoms of one token's code, beside atoms dealt to the latents at random."""
    sample = inputs.codes(config.n_tokens)
    codes = sample.codes
    atoms = inputs.chosen("dictionary").W_dec.detach().float()
    most = int(codes.counts.max())
    if most < 3:
        raise ConfigError(f"codes must have a token with at least 3 active latents, got at most {most}")
    alive = torch.bincount(codes.indices[codes.active()].long(), minlength=codes.d_sae) > 0
    index, counts, rows = _compact(codes, alive, atoms)
    order = min(config.max_order, most - 1)
    curve = compare_coactivated_babel(
        rows, index, counts, max_order=order, null="permutation", n_null=config.n_null, generator=inputs.generator("together")
    )
    two_sided = 2 * torch.minimum(curve.p_greater, curve.p_less)
    numbers = tuple(
        Number(
            "co-activated Babel function",
            curve.values[r - 1].item(),
            f"{r} other atom{'s' if r > 1 else ''}",
            curve.null_mean[r - 1].item(),
            curve.null_sd[r - 1].item(),
            curve.n_null,
            min(1.0, two_sided[r - 1].item()),
            f"{len(codes):,} tokens",
        )
        for r in dict.fromkeys((1, order))
    )
    return Outcome(numbers, (_figure(curve),))


def _compact(codes: SparseCodes, alive: Tensor, atoms: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Float[Tensor, "m d"]]:
    """Codes and atoms of the latents that fire: the null deals the atoms of these, since others lie elsewhere."""
    number = torch.cumsum(alive.long(), dim=0) - 1
    return number[codes.indices.long()] * codes.active(), codes.counts, atoms[alive]


def _figure(curve) -> Figure:
    orders = tuple(range(1, len(curve.values) + 1))
    mean, spread = curve.null_mean, 2 * curve.null_sd
    return Figure(
        "Atoms that fire together",
        Axis("other atoms of the token, r"),
        Axis("largest sum of r |cosines|, mean over tokens"),
        (
            Series(
                "atoms dealt at random",
                orders,
                tuple(mean.tolist()),
                tuple((mean - spread).tolist()),
                tuple((mean + spread).tolist()),
                role="null",
            ),
            Series("atoms", orders, tuple(curve.values.tolist())),
        ),
        caption="Above the grey curve, atoms of one code lie closer to each other than atoms of this dictionary in general; below, further apart.",
    )


TOGETHER = Measure(
    name="together",
    title="Atoms that fire together",
    text=(
        "Whether atoms that are active on one token are nearer to each other than the dictionary's atoms are in general. Near ones share the work, "
        "and interfere."
    ),
    needs=("dictionary", "store"),
    quantities=(
        Quantity(
            "co-activated Babel function",
            "Largest sum of absolute cosines of one active atom with that many other active ones, averaged over tokens.",
            "Costa et al. 2025, arXiv 2506.03093",
            null="the dictionary's atoms dealt to the latents at random",
        ),
    ),
    compute=together,
    config=TogetherConfig(),
    quick=TogetherConfig(n_tokens=2000),
)


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Settings of `density`."""

    n_tokens: int = 100_000
    """Tokens, whole rows of the store drawn at random."""
    often: float = 0.1
    """Share of tokens from which on a latent fires often."""


def density(inputs: Inputs, config: DensityConfig) -> Outcome:
    """How often latents fire and how many of them a token has."""
    codes = inputs.codes(config.n_tokens).codes
    n = len(codes)
    firing = torch.bincount(codes.indices[codes.active()].long(), minlength=codes.d_sae).double()
    dead = firing == 0
    l0 = codes.counts.double()
    alive = firing[~dead] / n
    if not len(alive):
        raise ConfigError(f"dictionary must have a latent that fires on {n:,} tokens, got none")
    quantiles = l0.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    note = f"{n:,} tokens"
    numbers = (
        Number("active latents per token", l0.mean().item(), note=f"{note}; 90 % of tokens: {quantiles[0]:.0f} to {quantiles[1]:.0f}"),
        Number("dead share", dead.double().mean().item(), note=f"{note}; a dead latent fires on at most {3 / n:.2g} of tokens (95 %)"),
        Number("median density", alive.median().item(), note=f"{note}; living latents"),
        Number(
            "share that fires often", (firing / n > config.often).double().mean().item(), note=f"on more than {config.often:.0%} of tokens"
        ),
        Number("evenness of firing", _effective(firing), note=note),
    )
    return Outcome(numbers, (_density_figure(alive, n),))


def _effective(firing: Float[Tensor, " n"]) -> float:
    """exp of the entropy of the firings over the latents, over their number."""
    share = firing / firing.sum()
    return (torch.special.entr(share).sum().exp() / len(share)).item()


def _density_figure(alive: Float[Tensor, " n"], n: int) -> Figure:
    edges = torch.logspace(torch.log10(torch.tensor(0.7 / n)).item(), 0.0, 49, dtype=torch.float64)
    counts = torch.histogram(alive, edges).hist
    return Figure(
        "Densities of latents",
        Axis("share of tokens on which a latent fires", scale="log"),
        Axis("latents"),
        (Series("living latents", tuple(edges.tolist()), tuple(counts.tolist()), mark="bars"),),
        (Rule("x", 0.1, "10 %"),),
        "Latents on the far left were seen a few times only; those right of 10 % are rarely one concept.",
    )


DENSITY = Measure(
    name="density",
    title="Densities",
    text="How often latents fire. These numbers have no null: they describe the dictionary, and say how far the others can be trusted.",
    needs=("dictionary", "store"),
    quantities=(
        Quantity("active latents per token", "L0: how many latents say what one token is.", "count", "latents"),
        Quantity("dead share", "Latents that never fire on the sample.", "count; rule of three for the bound"),
        Quantity("median density", "Share of tokens on which the middle latent fires.", "count"),
        Quantity("share that fires often", "Latents that fire on many tokens: biases and positions rather than concepts.", "count"),
        Quantity(
            "evenness of firing",
            "Effective number of latents over their number: 1 where all fire equally often, near 0 where few do all the work.",
            "exp of the entropy of firings",
        ),
    ),
    compute=density,
    config=DensityConfig(),
    quick=DensityConfig(n_tokens=20_000),
)


@dataclass(frozen=True, kw_only=True)
class CodeSparsenessConfig:
    """Settings of `code_sparseness`."""

    n_tokens: int = 10_000
    """Tokens, whole rows of the store drawn at random."""
    n_null: int = 39
    """Null draws."""


def code_sparseness(inputs: Inputs, config: CodeSparsenessConfig) -> Outcome:
    """How unequal the values of a token's latents are, and those of a latent over its tokens, beside the same values dealt anew."""
    codes = inputs.codes(config.n_tokens).codes
    active = codes.active()
    if int(codes.counts.max()) < 2:
        raise ConfigError(f"codes must have a token with at least 2 active latents, got at most {int(codes.counts.max())}")
    found = _unequal(codes, codes.values)
    generator = inputs.generator("values of codes")
    draws = []
    for _ in range(config.n_null):
        dealt = codes.values.clone()
        dealt[active] = codes.values[active][torch.randperm(int(active.sum()), generator=generator)]
        draws.append(_unequal(codes, dealt))
    note = f"{len(codes):,} tokens, {int(active.sum()):,} values"
    return Outcome(tuple(of_null(q, compare(found[q.name], [d[q.name] for d in draws]), note=note) for q in CODE_SPARSENESS_QUANTITIES))


def _unequal(codes: SparseCodes, values: Float[Tensor, "n k"]) -> dict[str, float]:
    """The statistics of values in the slots of the codes; tokens and latents without any are left out."""
    of_token = sparseness(codes.indices, values, codes.counts, n_latents=codes.d_sae, over="latents")
    of_latent = sparseness(codes.indices, values, codes.counts, n_latents=codes.d_sae, over="tokens")
    return {
        "Gini of a token's code": of_token.gini.nanmean().item(),
        "effective latents of a token": of_token.participation_ratio.nanmean().item(),
        "Gini of a latent": of_latent.gini.nanmedian().item(),
    }


DEALT = "the values of all active latents dealt anew to the places that are active"
CODE_SPARSENESS_QUANTITIES = (
    Quantity(
        "Gini of a token's code",
        "How unequal the latents of a token are, those at zero among them: 1 - 1 / n where one of n has it all.",
        "Gini 1912; Hurley & Rickard 2009, arXiv 0811.4706",
        null=DEALT,
    ),
    Quantity(
        "effective latents of a token",
        "How many latents carry a token, counting each by its share of the squares: the number of active ones where their values are equal.",
        "(sum z^2)^2 / sum z^4",
        "latents",
        null=DEALT,
    ),
    Quantity(
        "Gini of a latent",
        "How unequal the values of a latent are over the tokens, those at zero among them, in the middle of the living latents.",
        "Gini 1912; Hurley & Rickard 2009, arXiv 0811.4706",
        null=DEALT,
    ),
)
CODE_SPARSENESS = Measure(
    name="code_sparseness",
    title="Sparseness of codes",
    text=(
        "How unequal the active latents of a token are, and the values of a latent. Which latents are active is the same in the null, so that it is "
        "their values alone that are compared: below it a token's latents are more alike in size than any of the sample."
    ),
    needs=("dictionary", "store"),
    quantities=CODE_SPARSENESS_QUANTITIES,
    compute=code_sparseness,
    config=CodeSparsenessConfig(n_null=99),
    quick=CodeSparsenessConfig(n_tokens=2000),
)


@dataclass(frozen=True, kw_only=True)
class NeededConfig:
    """Settings of `needed_latents`."""

    n_tokens: int = 2000
    """Tokens, whole rows of the store drawn at random."""
    errors: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    """Relative errors, ascending."""
    n_null: int = 99
    """Null draws."""


def needed(inputs: Inputs, config: NeededConfig) -> Outcome:
    """How many latents a token keeps for a relative error, beside atoms dealt to the latents at random."""
    codes = inputs.codes(config.n_tokens).codes
    atoms = inputs.chosen("dictionary").W_dec.detach().float()
    alive = torch.bincount(codes.indices[codes.active()].long(), minlength=codes.d_sae) > 0
    if not bool(alive.any()):
        raise ConfigError(f"dictionary must have a latent that fires on {len(codes):,} tokens, got none")
    index, counts, rows = _compact(codes, alive, atoms)

    def mean_needed(dealt: Float[Tensor, "m d"]) -> Float[Tensor, " errors"]:
        return needed_latents(index, codes.values, counts, dealt, errors=config.errors).double().mean(dim=1)

    generator = inputs.generator("needed latents")
    found = mean_needed(rows)
    draws = torch.stack([mean_needed(rows[torch.randperm(len(rows), generator=generator)]) for _ in range(config.n_null)])
    note = f"{len(codes):,} tokens with {codes.counts.double().mean().item():.1f} active latents"
    numbers = tuple(
        of_null(NEEDED_QUANTITY, compare(found[i].item(), draws[:, i]), subject=f"relative error {error:g}", note=note)
        for i, error in enumerate(config.errors)
    )
    figure = Figure(
        "Latents needed for an error",
        Axis("relative error", scale="log"),
        Axis("latents, mean over tokens"),
        (null_band("atoms dealt at random", config.errors, draws), Series("codes", config.errors, tuple(found.tolist()))),
        (Rule("y", codes.counts.double().mean().item(), "active"),),
        "The error is that of the sum of a token's atoms without its smallest contributions, relative to its length.",
    )
    return Outcome(numbers, (figure,))


NEEDED_QUANTITY = Quantity(
    "latents needed",
    "How many latents a token keeps when its smallest contributions are left out for as long as the relative error stays within the given one: few "
    "where few latents do the work.",
    "Luo et al. 2024, arXiv 2411.02335 (CETT), over latents",
    "latents",
    null="the dictionary's atoms dealt to the latents at random",
)
NEEDED = Measure(
    name="needed_latents",
    title="Latents needed for an error",
    text=(
        "How many of a token's active latents are needed for its reconstruction. With the atoms dealt to other latents the values are the same and only "
        "the angles change: atoms of one token that add up need fewer, and those that cancel need more."
    ),
    needs=("dictionary", "store"),
    quantities=(NEEDED_QUANTITY,),
    compute=needed,
    config=NeededConfig(),
    quick=NeededConfig(n_tokens=500),
)
