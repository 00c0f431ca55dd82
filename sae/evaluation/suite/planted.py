"""Recovery: whether a dictionary found the features that synthetic activations were made of."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.stats import norm
from torch import Tensor

from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.absorption import tree_absorption
from sae.evaluation.batteries.findings import Number, Quantity, of_null
from sae.evaluation.batteries.inputs import ENCODED_ROWS, Inputs, Truth
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.recovery import Recovery, cosines, match, recovery
from sae.geometry.nulls import compare, random_directions

FOUND = 0.9
"""|cosine| from which on a feature counts as found."""
LEAST_SAMPLES = 20
"""Samples of a feature below which nothing is concluded about its parents."""
CHANCE = 1e-6
"""Largest probability of a coincidence that is taken for a parent."""


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """Settings of `recovered`."""

    n_null: int = 39
    """Random dictionaries and random orders of the samples, each matched anew."""


def recovered(inputs: Inputs, config: RecoveryConfig) -> Outcome:
    """Scores of a dictionary against what was planted."""
    truth, dictionary = inputs.planted, inputs.chosen("dictionary")
    if dictionary.d_in != truth.features.shape[1] or dictionary.W_dec.shape[1] != dictionary.d_in:
        raise ConfigError(
            f"dictionary must read and write activations of width {truth.features.shape[1]} like the planted features, got "
            f"d_in={dictionary.d_in} and atoms of width {dictionary.W_dec.shape[1]}"
        )
    with torch.no_grad():
        codes = SparseCodes.concatenate(
            [dictionary.encode(rows.to(dictionary.W_dec)).merged().to("cpu") for rows in truth.acts.split(ENCODED_ROWS)]
        )
    atoms = dictionary.W_dec.detach().float().cpu()
    there = atoms.norm(dim=1) > 0
    active = (truth.codes != 0).any(dim=0)
    planted = Truth(truth.features[active].float().cpu(), truth.codes[:, active].cpu(), truth.acts)
    note = f"{len(planted.features):,} features, {int(there.sum()):,} atoms, {len(codes):,} samples"
    if not bool(there.any()):
        return Outcome(tuple(Number(quantity.name, 0.0, note=note) for quantity in SCORES), notes=("All atoms are zero.",))
    atoms, codes = atoms[there], only(codes, there)
    found = recovery(planted.features, atoms, planted.codes, codes, generator=inputs.generator("recovery"), n_null=config.n_null)
    matched = [_share_found(planted.features, atoms)]
    generator = inputs.generator("recovery of random atoms")
    matched += [_share_found(planted.features, random_directions(len(atoms), atoms, generator=generator)) for _ in range(config.n_null)]
    mcc, share, best, f1 = SCORES
    numbers = (
        of_null(mcc, found.mcc, note=note),
        of_null(share, compare(matched[0], matched[1:]), note=note),
        of_null(best, found.best_cosine, note=note),
        of_null(f1, found.firing_f1, note=note),
        *_absorbed(planted, atoms, found),
    )
    notes = () if bool(active.all()) else (f"{int((~active).sum())} features are in no sample and are left out.",)
    return Outcome(numbers, notes=notes)


def _share_found(features: Float[Tensor, "n d"], atoms: Float[Tensor, "m d"]) -> float:
    return float((match(cosines(features, atoms).abs()).similarities > FOUND).double().mean())


def only(codes: SparseCodes, there: Bool[Tensor, " d_sae"]) -> SparseCodes:
    """The codes over the chosen latents alone, renumbered."""
    number = there.long().cumsum(0) - 1
    kept = there[codes.indices.long()] & codes.active()
    return SparseCodes.of_slots(number.clamp(min=0)[codes.indices.long()] * kept, codes.values * kept, int(there.sum()))


def implied_parents(codes: Float[Tensor, "n n_features"]) -> dict[int, list[int]]:
    """Children by parent: p is a parent of c if it is active wherever c is, in more samples, and not by chance; of several the rarest.

    By chance: a share f of the samples to the power of the samples of c, above 1e-6. Features in fewer than 20 samples have no parent.
    """
    active = (codes != 0).double()
    counts, together = active.sum(dim=0), active.T @ active
    children: dict[int, list[int]] = {}
    for child in range(len(counts)):
        n_child = float(counts[child])
        if n_child < LEAST_SAMPLES:
            continue
        implied = (together[child] == n_child) & (counts > n_child) & ((counts / len(codes)) ** n_child < CHANCE)
        if bool(implied.any()):
            parent = int(torch.where(implied, counts, torch.inf).argmin())
            children.setdefault(parent, []).append(child)
    return children


def _absorbed(truth: Truth, atoms: Float[Tensor, "n d"], found: Recovery) -> tuple[Number, ...]:
    """The absorption of parents by children, where the truth has any."""
    children = implied_parents(truth.codes)
    if not children:
        return ()
    tree = tree_absorption(truth.features, atoms, found.match, children)
    if not tree.n_found:
        return (Number(ABSORBED.name, None, note="no child's latent fires on it"),)
    spread = (truth.features.shape[1] * tree.n_found) ** -0.5
    parents = torch.tensor([parent for parent, group in children.items() for _ in group])
    own = cosines(truth.features, truth.features)[tree.children, parents][~tree.cosines.isnan()].mean()
    note = f"{tree.n_found} of {len(tree.children)} children found; true value {float(own):.3g}"
    return (Number(ABSORBED.name, tree.score, "", 0.0, spread, None, float(norm.sf(tree.score / spread)), note),)


ORACLE = "1 for the planted features in any order and scale"
RANDOM = "as many random unit atoms, matched anew"
SCORES = (
    Quantity(
        "MCC",
        f"Mean |cosine| of every feature with the atom matched to it, no atom twice: {ORACLE}.",
        "Hungarian method, Kuhn 1955; used for dictionaries by SynthSAEBench and others",
        alternative="greater",
        null=RANDOM,
        formula="mean_i |cos(f_i, d_m(i))|, m one-to-one with the largest sum of |cos|",
    ),
    Quantity(
        "features found",
        f"Share of the features whose matched atom has |cosine| above {FOUND:g}: {ORACLE}.",
        "Sharkey, Braun & Millidge 2022",
        alternative="greater",
        null=RANDOM,
        formula=f"#{{i: |cos(f_i, d_m(i))| > {FOUND:g}}} / n",
    ),
    Quantity(
        "mean best cosine",
        f"How near the nearest atom is to a feature, on average; an atom may serve several: {ORACLE}.",
        "Sharkey, Braun & Millidge 2022; Huben et al., arXiv 2309.08600",
        alternative="greater",
        null=RANDOM,
        formula="mean_i max_j cos(f_i, d_j)",
    ),
    Quantity(
        "firing F1",
        "Whether the latent matched to a feature fires where the feature is: 1 where exactly there. Matched by the overlap of activations.",
        "Costa et al., arXiv 2506.03093, appendix B (the matching)",
        alternative="greater",
        null="the samples' codes in random order, matched anew",
        formula="mean_i 2 TP_i / (2 TP_i + FP_i + FN_i)",
    ),
)
ABSORBED = Quantity(
    "absorption in the tree",
    "How much of its parent's direction the latent of a child feature contains; 0.71 for a latent of child and parent in equal parts. Beside it the "
    "true cosine of children with their parents. Parents are features that are active wherever the child is.",
    "Costa et al., arXiv 2506.03093, table 1",
    alternative="greater",
    null="random directions, whose cosines have mean 0 and deviation 1 / sqrt(d_in children)",
    formula="mean_c cos(d_c, f_parent(c))",
)
RECOVERY = Measure(
    name="recovery",
    title="Recovery of planted features",
    text=(
        "Synthetic activations are sums of known features; a dictionary that reconstructs them well need not have found these. Features in no "
        "sample are left out, and so are atoms that are zero."
    ),
    needs=("dictionary", "truth"),
    quantities=(*SCORES, ABSORBED),
    compute=recovered,
    config=RecoveryConfig(),
    quick=RecoveryConfig(n_null=19),
)
