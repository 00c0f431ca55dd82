"""Feature families: general features and the special ones that fire with them, beside codes without coincidences."""

from dataclasses import dataclass

from sae.dictionaries.codes import SparseCodes
from sae.evaluation.batteries.dealing import dealt_anew
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Series
from sae.geometry.atoms import CoFirings, Families, block_ratio, co_firings, families
from sae.geometry.nulls import compare

ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class FamiliesConfig:
    """Settings of `families`."""

    n_tokens: int = 30_000
    """Tokens, whole rows of the store drawn at random."""
    n_null: int = 39
    """Null codes."""
    n_largest: int = 5
    """Families that are named."""


def feature_families(inputs: Inputs, config: FamiliesConfig) -> Outcome:
    """How many latents belong to families, and how much children need their parent."""
    codes = inputs.codes(config.n_tokens).codes
    firings = _firings(codes)
    found = families(firings)
    generator = inputs.generator("families")
    draws = [families(_firings(dealt_anew(codes, generator))) for _ in range(config.n_null)]
    alive = max(1, int((firings.counts > 0).sum()))
    q = {quantity.name: quantity for quantity in QUANTITIES}
    note = f"{len(codes):,} tokens, {alive:,} living latents"
    numbers = [
        of_null(q["families"], compare(float(len(found.families)), [float(len(d.families)) for d in draws]), note=note),
        of_null(q["share of latents in families"], compare(_share(found, alive), [_share(d, alive) for d in draws]), note=note),
    ]
    numbers += [
        Number("block ratio", block_ratio(firings, family), f"parent {family.parent}", note=f"{len(family.children)} children")
        for family in found.families[: config.n_largest]
    ]
    return Outcome(tuple(numbers), _figure(found))


def _firings(codes: SparseCodes) -> CoFirings:
    return co_firings(codes[start : start + ROWS] for start in range(0, len(codes), ROWS))


def _share(found: Families, alive: int) -> float:
    members = {i for family in found.families for i in (family.parent, *family.children)}
    return len(members) / alive


def _figure(found: Families) -> tuple[Figure, ...]:
    sizes = sorted((len(family.children) for family in found.families), reverse=True)
    if len(sizes) < 2:
        return ()
    return (
        Figure(
            "Sizes of families",
            Axis("rank of the family", scale="log"),
            Axis("children", scale="log"),
            (Series("families", tuple(range(1, len(sizes) + 1)), tuple(sizes)),),
            caption="A family is a latent and those that fire with it, rarer ones below more frequent ones.",
        ),
    )


DEALT = "the firings dealt anew over the tokens"
QUANTITIES = (
    Quantity(
        "families",
        "Groups of a general latent and the special ones that fire with it.",
        "O'Neill et al., arXiv 2408.00657, with association beyond chance in place of a cut",
        "families",
        "greater",
        DEALT,
    ),
    Quantity("share of latents in families", "Living latents that belong to a family.", "as above", "", "greater", DEALT),
    Quantity(
        "block ratio",
        "How much more children fire with their parent than with each other: well above 1 for a general feature with its special cases.",
        "O'Neill et al., arXiv 2408.00657",
    ),
)
FAMILIES = Measure(
    name="families",
    title="Families",
    text="Which latents are special cases of others, from which fire together.",
    needs=("dictionary", "store"),
    quantities=QUANTITIES,
    compute=feature_families,
    config=FamiliesConfig(),
    quick=FamiliesConfig(n_tokens=10_000),
)
