"""What the larger of two dictionaries adds to the smaller one, latent by latent: `sae.evaluation.stitching` as a measure."""

from dataclasses import dataclass

import torch

from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.evaluation.stitching import Stitching, compare_insertions, stitching

ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class StitchingConfig:
    """Settings of `stitching`."""

    n_tokens: int = 8192
    """Tokens of documents that are held out by default, drawn at random."""
    tau: float = 0.7
    """Cosine from which on two atoms are one feature."""
    n_points: int = 11
    """Dictionaries between the two that are measured."""
    n_null: int = 59
    """Random choices of as many latents."""


def stitches(inputs: Inputs, config: StitchingConfig) -> Outcome:
    """Whether novel latents help and repeated ones hurt, and the error on the way from one dictionary to the other."""
    one, two = inputs.chosen("dictionary"), inputs.chosen("other")
    names = (inputs.name("dictionary"), inputs.name("other"))
    if one.d_sae > two.d_sae:
        one, two, names = two, one, names[::-1]
    usable = inputs.stored.usable_tokens(inputs.site, split="held_out")
    chosen = usable[torch.randperm(len(usable), generator=inputs.generator("held out"))[: config.n_tokens]].sort().values
    batches = [inputs.stored.gather(inputs.site, part, dtype=torch.float32) for part in chosen.split(ROWS)]
    with torch.no_grad():
        found = compare_insertions(one, two, batches, tau=config.tau, n_null=config.n_null, generator=inputs.generator("stitching"))
        way = stitching(one, two, batches, tau=config.tau, n_points=config.n_points)
    q = {quantity.name: quantity for quantity in QUANTITIES}
    note = f"{len(chosen):,} held-out tokens; FVU of {names[0]} alone: {found.fvu:.4f}"
    numbers = (
        of_null(q["novel latents added"], found.novel, note=f"{found.n_novel:,} latents; {note}"),
        of_null(q["repeated latents added"], found.reconstruction, note=f"{found.n_reconstruction:,} latents; {note}"),
        Number("share of novel latents", found.n_novel / two.d_sae, note=f"of {names[1]}; cosine below {config.tau:g}"),
        Number("groups that are swapped", float(way.n_swaps)),
    )
    return Outcome(numbers, (_figure(way, names),))


def _figure(way: Stitching, names: tuple[str, str]) -> Figure:
    steps = way.curve.steps.double() / max(int(way.curve.steps[-1]), 1)
    return Figure(
        "From the small dictionary to the large one",
        Axis("share of the steps done"),
        Axis("FVU"),
        (Series("FVU", tuple(steps.tolist()), tuple(way.fvu.tolist())),),
        caption=f"From {names[0]} to {names[1]}: insertions of novel latents first, then swaps of groups that resemble each other, then removals.",
    )


AS_MANY = "as many latents of the larger dictionary drawn at random"
QUANTITIES = (
    Quantity(
        "novel latents added",
        "Change of the smaller dictionary's unexplained variance when the larger one's novel latents join it: below zero, they carry what it lacked.",
        "Leask et al., arXiv 2502.04878",
        alternative="less",
        null=AS_MANY,
    ),
    Quantity(
        "repeated latents added",
        "The same with latents that it has already: above zero, they do its work twice.",
        "Leask et al., arXiv 2502.04878",
        alternative="greater",
        null=AS_MANY,
    ),
    Quantity(
        "share of novel latents",
        "Latents of the larger dictionary that resemble none of the smaller one.",
        "Leask et al., arXiv 2502.04878",
    ),
    Quantity("groups that are swapped", "Groups of latents of both that resemble each other.", "Leask et al., arXiv 2502.04878", "groups"),
)
STITCHING = Measure(
    name="stitching",
    title="Stitching",
    text="Latents of the larger dictionary are put into the smaller one: those that it lacks should help, those that it has should hurt.",
    needs=("dictionary", "other", "store"),
    quantities=QUANTITIES,
    compute=stitches,
    config=StitchingConfig(),
    quick=StitchingConfig(n_tokens=2048, n_points=7, n_null=39),
)
