"""Measures of a dictionary's atoms as a frame and as a cloud: eigenvalues, the dimensions they fill, the share of a dimension that each has.

One null dictionary of uniform directions serves all of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.batteries.drawing import histogram, null_band, shared_edges
from sae.evaluation.batteries.findings import Quantity, of_null
from sae.evaluation.batteries.inputs import Inputs
from sae.evaluation.batteries.measure import Measure, Outcome
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.geometry.galaxy import eigenvalue_slope
from sae.geometry.nulls import compare, random_directions
from sae.geometry.rows import unit_rows
from sae.geometry.spectrum import covariance_eigenvalues, effective_rank, participation_ratio

SHOWN = 400
"""Points of a spectrum that are drawn."""


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """Settings of `frame`."""

    n_null: int = 199
    """Null dictionaries."""
    first_rank: int = 11
    """First rank of the eigenvalues that the slope is fitted on."""
    last_rank: int = 150
    """Last rank."""


@dataclass(frozen=True, eq=False)
class _Shape:
    """What is measured of one dictionary."""

    eigenvalues: Float[Tensor, " d"]
    dimensionality: Float[Tensor, " n_atoms"]
    scalars: dict[str, float]


def frame(inputs: Inputs, config: FrameConfig) -> Outcome:
    """Spectrum and feature dimensionality beside dictionaries of random directions."""
    rows = unit_rows(inputs.atoms(), minimum=3, argument="atoms", where="frame")
    generator = inputs.generator("frame")
    found = _shape(rows, config)
    draws = [_shape(random_directions(len(rows), rows, generator=generator), config) for _ in range(config.n_null)]
    note = f"{len(rows):,} atoms of width {rows.shape[1]}"
    numbers = tuple(
        of_null(q, compare(found.scalars[q.name], [draw.scalars[q.name] for draw in draws]), note=note)
        for q in QUANTITIES
        if q.name in found.scalars
    )
    return Outcome(numbers, (_spectrum_figure(found, draws), _dimensionality_figure(found, draws[0], rows.shape[1])))


def _shape(rows: Float[Tensor, "n d"], config: FrameConfig) -> _Shape:
    """Dimensionality D_i = 1 / sum_j cos_ij^2 comes from the d x d moment: sum_j cos_ij^2 = w_i^T (W^T W) w_i, never an n x n matrix."""
    eigenvalues = covariance_eigenvalues(rows)
    moment = rows.T @ rows
    dimensionality = 1 / ((rows @ moment) * rows).sum(dim=1).double()
    scalars = {
        "participation ratio": participation_ratio(eigenvalues),
        "effective rank": effective_rank(eigenvalues, of="eigenvalues"),
        "largest eigenvalue": (eigenvalues[0] / eigenvalues.sum()).item(),
        "mean feature dimensionality": dimensionality.mean().item(),
        "frame potential": (moment.double().square().sum() * rows.shape[1] / len(rows) ** 2).item(),
    }
    positive = int((eigenvalues > 0).sum())
    if positive >= config.first_rank + 2:
        scalars["spectrum slope"] = eigenvalue_slope(eigenvalues, first=config.first_rank, last=min(config.last_rank, positive))
    return _Shape(eigenvalues, dimensionality, scalars)


def _spectrum_figure(found: _Shape, draws: list[_Shape]) -> Figure:
    values = found.eigenvalues / found.eigenvalues.sum()
    n = int((values > 0).sum())
    ranks = torch.unique(torch.logspace(0, torch.log10(torch.tensor(float(n))).item(), SHOWN).round().long().clamp(1, n))
    null = torch.stack([draw.eigenvalues / draw.eigenvalues.sum() for draw in draws])[:, ranks - 1]
    kept = (null > 0).all(dim=0)
    ranks, null = ranks[kept], null[:, kept]
    series = (
        null_band("random directions (Wishart)", ranks.tolist(), null),
        Series("atoms", tuple(ranks.tolist()), tuple(values[ranks - 1].tolist())),
    )
    return Figure(
        "Eigenvalues of the atoms' covariance",
        Axis("rank", scale="log"),
        Axis("share of the variance", scale="log"),
        series,
        caption="Above the grey curve on the left, below it on the right: atoms share some directions and neglect others.",
    )


def _dimensionality_figure(found: _Shape, draw: _Shape, d: int) -> Figure:
    edges = shared_edges(found.dimensionality, draw.dimensionality)
    low, high = float(edges[0]), float(edges[-1])
    even = d / len(found.dimensionality)
    return Figure(
        "Feature dimensionality",
        Axis("share of a dimension that an atom has, 1 / sum of squared cosines"),
        Axis("share of atoms"),
        (
            histogram("atoms", found.dimensionality, edges),
            histogram("random directions", draw.dimensionality, edges, null=True),
        ),
        (Rule("x", even, f"d / n = {even:.3g}"),) if low <= even <= high else (),
        "1 is an atom with a dimension of its own, 1/2 one of an antipodal pair, 2/5 one of a pentagon.",
    )


NULL = "as many independent uniform directions"
QUANTITIES = (
    Quantity(
        "participation ratio",
        "How many dimensions the cloud of atoms fills, counting each by its variance; low where atoms crowd in few directions.",
        "(sum l)^2 / sum l^2",
        unit="dimensions",
        null=NULL,
    ),
    Quantity(
        "effective rank",
        "The same by entropy, which minds small eigenvalues more.",
        "Roy & Vetterli 2007, on eigenvalues",
        unit="dimensions",
        null=NULL,
    ),
    Quantity("largest eigenvalue", "Share of the atoms' variance along their main direction.", "PCA", null=NULL),
    Quantity(
        "spectrum slope",
        "How steeply the eigenvalues fall as a power of their rank (11 to 150): 0 is flat, 1 is a strong power law. Compare only dictionaries "
        "of one sparsity.",
        "Li et al. 2024, arXiv 2410.19750",
        null=f"{NULL} (Wishart)",
    ),
    Quantity(
        "mean feature dimensionality",
        "The share of a dimension that an atom has to itself on average; d / n for a tight frame.",
        "Elhage et al. 2022, arXiv 2209.10652",
        null=NULL,
    ),
    Quantity(
        "frame potential",
        "Sum of squared cosines of all pairs over its smallest possible value n^2 / d: 1 for a tight frame, more where directions are shared.",
        "Benedetto & Fickus 2003",
        null=NULL,
    ),
)
FRAME = Measure(
    name="frame",
    title="Spectrum and frame",
    text="How evenly the atoms use their space, from the eigenvalues of their covariance and from the squared cosines. Atoms are scaled to length 1.",
    needs=("dictionary",),
    quantities=QUANTITIES,
    compute=frame,
    config=FrameConfig(),
    quick=FrameConfig(n_null=99),
)
