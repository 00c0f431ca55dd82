"""Toy models of superposition (Elhage et al. 2022, 2209.10652): train them, and hold what they learn against what is known.

Prints, each beside its expected value,

    polytopes    dimensionalities of exact vertices, and their closed forms
    geometry     small models, best of ten starts: dimensionalities, arrangement, loss, and how many starts end there
    pentagon     lengths and biases of five features in the plane
    phase        two features in one dimension: the loss over the density, the closed forms, and what is learned
    linear       the model without the relu: it keeps the most important features, at the loss of the closed form

and the sweep of 400 equal features in 30 dimensions over the density. `--html FILE` draws all this on one page that needs nothing else,
`--json FILE` writes the tables, `--quick` is a short version (the whole one takes minutes). Ends with status 1 when an expected value is
missed.

Expected values are closed forms where there is one; the others were found by another implementation (AdamW, best of 8 to 10 starts).
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices, and the same bits every time

import torch
from reproduce_superposition_page import Page, Table, write_page
from torch import Tensor

from sae.synthetic.polytopes import arrangement, bipyramid, cross_polytope, cube, describe, polygon, simplex, square_antiprism
from sae.synthetic.superposition import (
    ToyConfig,
    ToyModels,
    antipodal_boundary,
    antipodal_loss,
    antipodality,
    dedicated_loss,
    dimensions_per_feature,
    feature_dimensionality,
    feature_norms,
    represented,
    superposition,
    sweep,
    train_toy_models,
)

POLYTOPES = [
    ("digon", simplex(1), {1 / 2: 2}),
    ("triangle", simplex(2), {2 / 3: 3}),
    ("square", polygon(4), {1 / 2: 4}),
    ("pentagon", polygon(5), {2 / 5: 5}),
    ("hexagon", polygon(6), {1 / 3: 6}),
    ("tetrahedron", simplex(3), {3 / 4: 4}),
    ("octahedron", cross_polytope(3), {1 / 2: 6}),
    ("cube", cube(), {3 / 8: 8}),
    ("triangular bipyramid", bipyramid(3), {2 / 3: 3, 1 / 2: 2}),
    ("square antiprism, tight (h² = 1/3)", square_antiprism(), {3 / 8: 8}),
    ("square antiprism, equal edges (h² = 0.2612)", square_antiprism(0.2612), {0.3664: 8}),
    ("5-cell", simplex(4), {4 / 5: 5}),
]
GEOMETRY = [
    (3, 2, 0.9, [0.5, 0.5, 1.0], 0.01),
    (4, 2, 0.9, [0.5] * 4, 0.01),
    (5, 2, 0.7, [0.0] + [0.5] * 4, 0.01),
    (5, 2, 0.9, [0.4] * 5, 0.01),
    (5, 2, 0.97, [0.4] * 5, 0.01),
    (5, 2, 0.99, [0.4] * 5, 0.01),
    (6, 2, 0.8, [0.0] + [0.4] * 5, 0.01),
    (6, 2, 0.9, [0.0] + [0.4] * 5, 0.04),
    (6, 2, 0.99, [1 / 3] * 6, 0.01),
    (4, 3, 0.9, [0.5, 0.5, 1.0, 1.0], 0.01),
    (4, 3, 0.97, [0.5, 0.5, 1.0, 1.0], 0.01),
    (5, 3, 0.9, [0.5] * 4 + [1.0], 0.01),
    (6, 3, 0.9, [0.5] * 6, 0.01),
    (7, 3, 0.97, [0.4225] * 7, 0.0325),
    (8, 3, 0.97, [0.37] * 8, 0.01),
    (9, 4, 0.97, [0.435] * 9, 0.035),
]
"""Features, hidden dimensions, S, the dimensionalities that are known in rising order, and how far off one may be."""
PENTAGON = {0.9: (1.10, -0.21), 0.97: (1.15, -0.26), 0.99: (1.16, -0.28)}
"""S: (length of every feature, bias)."""
GALLERY = ((3, 2), (5, 2), (6, 2), (4, 3), (8, 3))
SPARSITIES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.97, 0.99)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained."""

    n_starts: int
    """Starts per small model."""
    n_features: int
    """Features of the large sweep."""
    d_hidden: int
    """Hidden dimensions of it."""
    n_densities: int
    """Densities of it."""
    n_cells: int
    """Densities of the phase diagram."""
    n_phase_starts: int
    """Starts per cell of it."""


FULL = Size(n_starts=10, n_features=400, d_hidden=30, n_densities=32, n_cells=20, n_phase_starts=12)
QUICK = Size(n_starts=8, n_features=80, d_hidden=8, n_densities=16, n_cells=10, n_phase_starts=8)


def counted(values: Sequence[float], digits: int = 3) -> str:
    """ "0.500 x2, 1.000": equal numbers once."""
    groups = Counter(f"{abs(value):.{digits}f}" for value in sorted(values))
    return ", ".join(text if count == 1 else f"{text} ×{count}" for text, count in groups.items())


def verdict(met: bool) -> str:
    return "yes" if met else "NO"


def polytope_table() -> Table:
    rows = []
    for name, vertices, exact in POLYTOPES:
        found = sorted(feature_dimensionality(vertices.T).tolist())
        expected = sorted(value for value, count in exact.items() for _ in range(count))
        met = max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 5e-5
        rows.append((name, counted(expected, 4), counted(found, 4), f"{sum(found):.4f} of {vertices.shape[1]}", verdict(met)))
    return Table(
        "polytopes",
        "Dimensionalities of exact polytopes",
        "The sum over features is the dimension of the space exactly where the vertices are a tight frame of each orthogonal part.",
        ("polytope", "expected D", "D", "sum of D", "met"),
        tuple(rows),
    )


def train_small(size: Size, seed: int) -> dict[tuple[int, int], ToyModels]:
    """Every start of every small model, by features and dimensions, over all the sparsities that tables and gallery use."""
    models = {}
    for n, m in sorted({(n, m) for n, m, *_ in GEOMETRY} | set(GALLERY)):
        wanted = {s for n_, m_, s, *_ in GEOMETRY if (n_, m_) == (n, m)} | (set(SPARSITIES) if (n, m) in GALLERY else set())
        configs = [ToyConfig(n_features=n, d_hidden=m, density=round(1 - s, 6)) for s in sorted(wanted)]
        models[n, m] = train_toy_models([config for config in configs for _ in range(size.n_starts)], seed=seed)
        print(f"trained {n} features in {m} dimensions: {len(models[n, m].configs)} instances", flush=True)
    return models


def at(models: ToyModels, sparsity: float) -> list[int]:
    """Rows of the instances of a sparsity, by rising loss."""
    rows = [i for i, config in enumerate(models.configs) if abs(config.sparsity - sparsity) < 1e-9]
    return sorted(rows, key=lambda i: float(models.loss[i]))


def geometry_table(small: dict[tuple[int, int], ToyModels]) -> Table:
    rows = []
    for n, m, sparsity, expected, tolerance in GEOMETRY:
        models = small[n, m]
        order = at(models, sparsity)
        best = order[0]
        D = feature_dimensionality(models.W[best])
        names = [describe(arrangement(models.W[i])) for i in order]
        met = max(abs(a - b) for a, b in zip(sorted(D.tolist()), expected, strict=True)) <= tolerance
        loss = f"{float(models.loss[best]):.5f} ± {float(models.loss_se[best]):.5f}"
        total, count = float(D[represented(models.W[best])].sum()), f"{names.count(names[0])} of {len(order)}"
        cells = (f"{n} in {m}", f"{sparsity:g}", f"{counted(expected)} ± {tolerance:g}", counted(D.tolist()), f"{total:.3f}")
        rows.append((*cells, names[0], loss, count, verdict(met)))
    return Table(
        "geometry",
        "Arrangements of small models",
        "The best of several starts. Features of length below 0.2 are dropped from the sum and from the arrangement. With four features in three "
        "dimensions the best is a digon and two dedicated dimensions, not a tetrahedron.",
        ("features", "S", "expected D", "D", "sum of D", "arrangement", "loss", "starts that end there", "met"),
        tuple(rows),
    )


def pentagon_table(models: ToyModels) -> Table:
    rows = []
    for sparsity, (length, bias) in PENTAGON.items():
        best = at(models, sparsity)[0]
        lengths, biases = feature_norms(models.W[best]), models.b[best]
        met = max(float((lengths - length).abs().max()), float((biases - bias).abs().max())) < 0.015
        found = f"{float(lengths.min()):.3f} to {float(lengths.max()):.3f}", f"{float(biases.min()):.3f} to {float(biases.max()):.3f}"
        rows.append((f"{sparsity:g}", f"{length:.2f}", found[0], f"{bias:.2f}", found[1], verdict(met)))
    return Table(
        "pentagon",
        "The pentagon's lengths and biases",
        "Five equal features in the plane. The sparser they are, the longer they get and the more interference the bias cuts off.",
        ("S", "expected length", "length", "expected bias", "bias", "met"),
        tuple(rows),
    )


def phase_table(size: Size, seed: int) -> tuple[Table, ToyModels]:
    densities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.57, 0.65, 0.7, 0.8, 0.95, 1.0]
    best = sweep(ToyConfig(n_features=2, d_hidden=1, density=1.0), densities=densities, n_seeds=size.n_starts, seed=seed)
    rows = []
    for p, W, b, loss, error, pairing in zip(densities, best.W, best.b, best.loss, best.loss_se, antipodality(best.W), strict=True):
        pair, dedicated = antipodal_loss(p, 1.0), dedicated_loss(p, 1.0)
        expected = "equal pair" if p <= 0.3 else "no equal pair" if p >= 0.95 else ""
        met = float(loss) < min(pair, dedicated) + 3 * float(error)
        share = float(W.abs().min() / W.abs().max())
        met = met and (p > 0.3 or (share > 0.95 and float(pairing) > 0)) and (p < 0.95 or share < 0.7)
        weights, biases = (", ".join(f"{value:.2f}" for value in row) for row in (W[0].tolist(), b.tolist()))
        text = f"{float(loss):.4f} ± {float(error):.4f}"
        rows.append((f"{p:g}", expected, f"{float(pairing):.2f}", weights, biases, text, f"{pair:.4f}", f"{dedicated:.4f}", verdict(met)))
    return Table(
        "phase",
        "Two equal features in one dimension",
        f"Closed forms: p²/3 for W = [1, −1] without bias, p/3 − p²/4 for W = [1, 0]; they cross at p = 4/7 = {antipodal_boundary(1.0):.3f}. A "
        "trained model tunes its lengths and biases, so its loss lies below both and the equal pair lasts to about p = 0.7. Beyond, one feature gets "
        "most of the dimension; the sign of the other hardly matters (the two losses differ by 0.00001 at p = 0.95, by quadrature).",
        ("density p", "expected", "antipodality", "W", "b", "loss", "loss of [1, −1]", "loss of [1, 0]", "met"),
        tuple(rows),
    ), best


def linear_table(size: Size, seed: int) -> Table:
    config = ToyConfig(n_features=20, d_hidden=5, density=1.0, importance_decay=0.7, activation="linear")
    best = sweep(config, densities=[1.0, 0.3, 0.03], n_seeds=size.n_starts, seed=seed)
    kept, rows = torch.diag((torch.arange(20) < 5).float()), []
    for one, W, loss, error in zip(best.configs, best.W, best.loss, best.loss_se, strict=True):
        p = one.density
        least = (p / 3 - p**2 / 4) * float(one.importance()[5:].sum())
        away, others = float((W.T @ W - kept).abs().max()), float(superposition(W)[represented(W)].max())
        met = away < 0.05 and abs(float(loss) - least) < 0.02 * least + 4 * float(error)
        rows.append((f"{p:g}", f"{least:.5f}", f"{float(loss):.5f} ± {float(error):.5f}", f"{away:.3f}", f"{others:.4f}", verdict(met)))
    return Table(
        "linear",
        "Without the relu: the five most important of twenty features",
        "Importances 0.7^i. The loss cannot fall below (p/3 − p²/4) times the importance of the features left out, and W^T W is the projection on the "
        "others, at any density: a linear model does not superpose.",
        ("density p", "least loss", "loss", "largest |W^T W − projection|", "largest superposition", "met"),
        tuple(rows),
    )


def large_sweep(size: Size, seed: int) -> ToyModels:
    """Equal features over densities from 1 to 1/30, evenly spaced in log(1 / p)."""
    densities = [30 ** (-i / (size.n_densities - 1)) for i in range(size.n_densities)]
    return sweep(ToyConfig(n_features=size.n_features, d_hidden=size.d_hidden, density=1.0), densities=densities, n_seeds=1, seed=seed)


def phase_diagram(size: Size, seed: int) -> tuple[list[float], list[float], Tensor]:
    """Densities, importances of the second feature, and antipodality [density, importance]."""
    densities = [(i + 1) / size.n_cells for i in range(size.n_cells)]
    importances = [10 ** (-1 + 2 * i / (size.n_cells - size.n_cells % 2)) for i in range(size.n_cells + 1 - size.n_cells % 2)]
    config = ToyConfig(n_features=2, d_hidden=1, density=1.0, n_steps=1000, batch_size=256)
    options = {
        "n_seeds": size.n_phase_starts,
        "n_evaluation": 2**15,
    }  # of half the starts the two features point the same way and stay there
    best = sweep(config, densities=densities, importance_decays=importances, seed=seed, **options)
    return densities, importances, best.W.reshape(len(densities), len(importances), 2)


def print_table(table: Table) -> None:
    cells = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
    print(f"\n{table.title}")
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def sweep_rows(models: ToyModels) -> Table:
    kept, D = represented(models.W), feature_dimensionality(models.W)
    rows = []
    for config, W, keep, d, per in zip(models.configs, models.W, kept, D, dimensions_per_feature(models.W).tolist(), strict=True):
        span = f"{float(d[keep].min()):.2f} to {float(d[keep].max()):.2f}"
        pieces = Counter(polytope.name for polytope in arrangement(W))
        rows.append(
            (f"{1 / config.density:.2f}", f"{per:.3f}", str(int(keep.sum())), f"{float(d[keep].sum()):.2f}", span, str(pieces["digon"]))
        )
    n, m = models.W.shape[2], models.W.shape[1]
    return Table(
        "sweep",
        f"{n} equal features in {m} dimensions",
        "One start per density. The dimensions per feature rest at 1 while the features are dense and at 1/2 where all represented ones are "
        "antipodal pairs; beyond that the represented ones share the space ever more finely.",
        ("1/(1 − S)", "m / |W|²", "represented", "sum of D", "range of D", "digons"),
        tuple(rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="8 starts, 80 features in 8 dimensions, a coarse phase diagram")
    parser.add_argument("--html", type=Path, help="draw the page here")
    parser.add_argument("--json", type=Path, help="write the tables here")
    options = parser.parse_args()
    size, started = QUICK if options.quick else FULL, time.perf_counter()
    print(f"seed {options.seed}; " + ", ".join(f"{name} {value}" for name, value in asdict(size).items()))
    small = train_small(size, options.seed)
    phase, pairs = phase_table(size, options.seed)
    checked = [polytope_table(), geometry_table(small), pentagon_table(small[5, 2]), phase, linear_table(size, options.seed)]
    for table in checked:
        print_table(table)
    large = large_sweep(size, options.seed)
    print_table(sweep_rows(large))
    tables = [*checked, sweep_rows(large)]
    if options.html:
        page = Page(
            facts=f"Seed {options.seed}, best of {size.n_starts} starts for small models, {time.perf_counter() - started:.0f} s",
            tables=tuple(tables),
            large=large,
            pairs=pairs,
            phase=phase_diagram(size, options.seed),
            gallery=tuple((n, m, [small[n, m].W[at(small[n, m], s)[0]] for s in SPARSITIES]) for n, m in GALLERY),
            sparsities=SPARSITIES,
            importance=sweep(
                ToyConfig(n_features=20, d_hidden=5, density=1.0, importance_decay=0.7),
                densities=[1.0, 0.3, 0.1, 0.03, 0.01, 0.003],
                n_seeds=size.n_starts,
                seed=options.seed,
            ),
        )
        write_page(page, options.html)
        print(f"\npage {options.html}")
    if options.json:
        options.json.write_text(
            json.dumps({table.name: [dict(zip(table.header, row, strict=True)) for row in table.rows] for table in tables}) + "\n"
        )
    missed = sum(row[-1] == "NO" for table in checked for row in table.rows)
    n_checked = sum(len(table.rows) for table in checked)
    print(f"\n{n_checked - missed} of {n_checked} expected values met, {time.perf_counter() - started:.0f} s")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
