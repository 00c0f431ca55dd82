"""Convergent learning of two dictionaries: one latent for one, few for one, or many for many? On their codes of the same tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.atoms import JointBlocks, SparsePrediction, convergence, joint_blocks, shifted_tokens, sparse_prediction
from sae.geometry.nulls import compare


@dataclass(frozen=True, kw_only=True)
class ConvergentConfig:
    """Settings of `convergent`."""

    n_tokens: int = 12_000
    """Tokens, whole rows of the store drawn at random."""
    n_latents: int = 256
    """Latents of each dictionary, those that fire most often."""
    n_targets: int = 24
    """Latents of the first dictionary that are predicted, drawn at random among these."""
    n_blocks: int = 32
    """Blocks that the latents of both are parted into; at most a quarter of their number."""
    held_out: float = 0.25
    """Share of the tokens that predictions are scored on, whole documents."""
    n_null: int = 39
    """Shifts of the tokens, everything computed anew."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Codes of the chosen latents, and which tokens are held out."""

    x: Float[Tensor, "n p"]
    y: Float[Tensor, "n q"]
    documents: Int[Tensor, " n"]
    held_out: Bool[Tensor, " n"]
    targets: Int[Tensor, " t"]


@dataclass(frozen=True, eq=False)
class _Found:
    """All that is asked of one alignment of the tokens."""

    paired: float
    best: float
    gap: float
    prediction: SparsePrediction
    blocks: JointBlocks

    @property
    def explained(self) -> Float[Tensor, " t"]:
        """Largest R^2 of every target, 0 where none is positive; targets that do not fire in the documents held out have none."""
        largest = self.prediction.r_squared.max(dim=1).values
        return largest[largest.isfinite()].clamp(min=0)

    @property
    def shared(self) -> float:
        """sum_c min(p_c / p, q_c / q) over the blocks c."""
        return float((self.blocks.sizes.double() / self.blocks.sizes.sum(dim=0)).min(dim=1).values.sum())


def convergent(inputs: Inputs, config: ConvergentConfig) -> Outcome:
    """Matching, sparse prediction and joint blocks of the most active latents, beside the same with the tokens shifted."""
    sample = _sample(inputs, config)
    generator = inputs.generator("convergent shifts")
    found = _found(sample, sample.y, config, inputs.seed)
    draws = []
    for _ in range(config.n_null):
        order = shifted_tokens(sample.documents, "within", generator=generator)
        draws.append(_found(sample, sample.y[order], config, inputs.seed))
    names = (inputs.name("dictionary"), inputs.name("other"))
    p, q, n = sample.x.shape[1], sample.y.shape[1], len(sample.x)
    quantity = {each.name: each for each in QUANTITIES}
    note = f"{p:,} and {q:,} latents, {n:,} tokens"
    scored = found.explained
    numbers = (
        of_null(quantity["one-to-one correlation"], compare(found.paired, [each.paired for each in draws]), note=note),
        of_null(quantity["best-partner correlation"], compare(found.best, [each.best for each in draws]), note=note),
        of_null(quantity["loss of one-to-one"], compare(found.gap, [each.gap for each in draws]), note=note),
        of_null(
            quantity["variance predicted"],
            compare(float(scored.mean()), [float(each.explained.mean()) for each in draws]),
            subject=f"{names[0]} from {names[1]}",
            note=f"{len(scored)} latents from {q:,}, {int(sample.held_out.sum()):,} tokens of held-out documents",
        ),
        _needed(found.prediction, f"{names[0]} from {names[1]}"),
        of_null(
            quantity["overlap of blocks"],
            compare(found.shared, [each.shared for each in draws]),
            note=f"{len(found.blocks.sizes)} blocks; {int((found.blocks.sizes.min(dim=1).values > 0).sum())} hold latents of both",
        ),
    )
    notes = (f"The {p:,} and {q:,} latents that fire most often, {len(scored)} of them predicted; rarer latents are not looked at.",)
    return Outcome(numbers, (_prediction_figure(found, draws, names), _blocks_figure(found, draws[0], names)), notes)


def _sample(inputs: Inputs, config: ConvergentConfig) -> _Sample:
    one, two = inputs.codes(config.n_tokens, "dictionary"), inputs.codes(config.n_tokens, "other")
    documents = inputs.stored.document_ids().flatten()[one.token_index]
    generator = inputs.generator("convergent")
    held_out = _held_out(documents, config.held_out, generator)
    x, y = (_columns(each.codes, config.n_latents, which) for each, which in ((one, "dictionary"), (two, "other")))
    able = ((x[~held_out] != x[~held_out][:1]).any(dim=0) & (x[held_out] != x[held_out][:1]).any(dim=0)).nonzero().flatten()
    if not len(able):
        raise ConfigError("dictionary must have a latent that fires both in documents that are fitted on and in those held out, got none")
    targets = able[torch.randperm(len(able), generator=generator)[: config.n_targets]].sort().values
    return _Sample(x, y, documents, held_out, targets)


def _held_out(documents: Int[Tensor, " n"], share: float, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Tokens of documents drawn at random, about that share; at least one document on either side."""
    ids, own, sizes = torch.unique(documents, return_inverse=True, return_counts=True)
    if len(ids) < 2:
        raise ConfigError(f"store must hold tokens of at least 2 documents for one to be held out, got {len(ids)}")
    order = torch.randperm(len(ids), generator=generator)
    n = int((sizes[order].cumsum(dim=0) <= share * len(documents)).sum())
    chosen = torch.zeros(len(ids), dtype=torch.bool)
    chosen[order[: min(max(n, 1), len(ids) - 1)]] = True
    return chosen[own]


def _columns(codes: SparseCodes, n_latents: int, which: str) -> Float[Tensor, "n p"]:
    """Dense codes of the latents that fire most often, float64."""
    active = codes.active()
    firing = torch.bincount(codes.indices[active].long(), minlength=codes.d_sae)
    chosen = firing.argsort(descending=True, stable=True)[: min(n_latents, int((firing > 0).sum()))].sort().values
    if len(chosen) < 2:
        raise ConfigError(f"{which} must have at least 2 latents that fire, got {len(chosen)}")
    place = torch.full((codes.d_sae,), -1)
    place[chosen] = torch.arange(len(chosen))
    slots = place[codes.indices.long()]
    kept = active & (slots >= 0)
    dense = torch.zeros(len(codes), len(chosen), dtype=torch.float64)
    dense[kept.nonzero()[:, 0], slots[kept]] = codes.values[kept].double()
    return dense


def _found(sample: _Sample, y: Float[Tensor, "n q"], config: ConvergentConfig, seed: int) -> _Found:
    matched = convergence(sample.x, y)
    prediction = sparse_prediction(y, sample.x[:, sample.targets], held_out=sample.held_out)
    n_blocks = min(config.n_blocks, max(2, (sample.x.shape[1] + y.shape[1]) // 4))
    blocks = joint_blocks(sample.x, y, n_clusters=n_blocks, seed=seed)
    return _Found(matched.pairs.mean, float(matched.best.nanmean()), matched.gap, prediction, blocks)


def _needed(prediction: SparsePrediction, subject: str) -> Number:
    """Median over the latents that can be predicted at all."""
    needed = prediction.n_needed(0.9)
    able = needed[needed > 0].double()
    note = f"{len(able)} of {len(needed)} latents can be predicted"
    return Number("latents needed", float(able.quantile(0.5)) if len(able) else None, subject, note=note)


def _prediction_figure(found: _Found, draws: list[_Found], names: tuple[str, str]) -> Figure:
    series = [
        _sweep("shifted tokens", [each.prediction for each in draws], null=True),
        _sweep("latents", [found.prediction], null=False),
    ]
    return Figure(
        "Predicting a latent from few",
        Axis(f"latents of {names[1]} used, mean", scale="log"),
        Axis("R² on documents held out, mean"),
        tuple(series),
        caption=f"Lasso of latents of {names[0]} over falling penalties. A curve that is flat from 1 on: one latent stands for one.",
    )


def _sweep(name: str, predictions: list[SparsePrediction], *, null: bool) -> Series:
    """Mean R^2, not below 0, against the mean number of latents used, over the penalties."""
    used = torch.stack([each.n_used.double().mean(dim=0) for each in predictions]).mean(dim=0).clamp(min=0.5)
    score = torch.stack([each.r_squared.clamp(min=0).nanmean(dim=0) for each in predictions]).mean(dim=0)
    return Series(name, tuple(used.tolist()), tuple(score.tolist()), role="null" if null else "result")


def _blocks_figure(found: _Found, draw: _Found, names: tuple[str, str]) -> Figure:
    series = []
    for name, each, role in (("shifted tokens", draw, "null"), ("latents", found, "result")):
        x, y = each.blocks.sizes.T.tolist()
        series.append(Series(name, tuple(x), tuple(y), mark="points", role=role))
    return Figure(
        "Blocks of latents",
        Axis(f"latents of {names[0]}"),
        Axis(f"latents of {names[1]}"),
        tuple(series),
        caption="A point is a block. On an axis it is one dictionary's own, on the diagonal both have as many latents in it.",
        equal=True,
    )


SHIFTED = "tokens of the second dictionary shifted within their documents"
LI = "Li et al. 2016, arXiv 1511.07543"
QUANTITIES = (
    Quantity(
        "one-to-one correlation",
        "Mean correlation of the most active latents with a partner of their own: 1 where each latent is there again.",
        LI,
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "best-partner correlation",
        "The same where a latent may be the partner of several.",
        LI,
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "loss of one-to-one",
        "Best-partner minus one-to-one correlation. Near 0, latents correspond one to one; above the null, one latent of one dictionary is several of "
        "the other.",
        LI,
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "variance predicted",
        "How much of a latent a sparse sum of the other dictionary's latents predicts, on documents held out. 1: the other dictionary says the same, "
        "perhaps with other latents; near the null: it does not know it.",
        LI,
        alternative="greater",
        null=SHIFTED,
    ),
    Quantity(
        "latents needed",
        "Latents of the other dictionary that reach 90 % of that, median over the latents that can be predicted: 1 is the same latent, 2 or 3 one that "
        "has split, many a direction that is spread over the other dictionary.",
        LI,
        "latents",
    ),
    Quantity(
        "overlap of blocks",
        "Whether groups of latents correspond where single ones do not: latents of both are parted into blocks by correlation, and this is the share "
        "that is in the same blocks. 1: every block has as large a part of either; 0: each block is one dictionary's own.",
        f"{LI}; 1 - total variation distance of the two over the blocks",
        alternative="greater",
        null=SHIFTED,
    ),
)
CONVERGENT = Measure(
    name="convergent",
    title="One for one, few for one, many for many",
    text=(
        "How the two dictionaries correspond where they do: latent by latent, one latent as a sum of a few, or only group by group. The null shifts "
        "tokens within their documents, so that being about the same document does not count."
    ),
    needs=("dictionary", "other", "store"),
    quantities=QUANTITIES,
    compute=convergent,
    config=ConvergentConfig(),
    quick=ConvergentConfig(n_tokens=8000, n_latents=96, n_targets=12, n_blocks=12),
)
