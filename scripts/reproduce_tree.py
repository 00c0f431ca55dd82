"""The tree of concepts of MP-SAE (Costa et al. 2025, 2506.03093): which architectures find it, and which absorb.

Trains every architecture on samples of the two-level tree of `sae.synthetic.hierarchy` (20 features, 20 latents), for several seeds and
several cosines within the levels, and prints medians with the smallest and largest value over seeds:

    best cos   mean over features of the best cosine with an atom
    MCC        mean |cosine| after one-to-one matching
    F1         firing F1 of the latent matched on activation overlap
    flat       mean squared error of the learned Gram matrix within levels;   tree: across levels, where the truth is 0
    absorb     mean cosine of a child's latent with the true parent; 0 in the truth, 0.707 for a latent that is child plus parent
    found      of the 9 children, those whose latent fires on them
    L0, FVU    active latents per sample and unexplained variance at inference

beside the truth's own values and those of random atoms, both under pursuit. What is to be seen: shallow autoencoders reach a small error with
atoms that are child plus parent, and fire the parent's own latent only without its children; pursuit explains the parent first and its child
from what is left, and needs neither. `--experiment amplitudes` is the paper's table 1, `--experiment constant` takes the variance of the
amplitudes away, so that a sum of parent and child is one concept as good as any and every method learns some. `--quick` is a short version,
`--json FILE` writes every run, `--html FILE` draws the learned matrices next to the true ones.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices of 200 x 20: a second thread only costs; runs are spread over processes instead

import torch
from reproduce_tree_page import Panel, page
from torch import Tensor

from sae.dictionaries.activations import Activation, BatchTopK, ReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.evaluation.absorption import tree_absorption
from sae.evaluation.recovery import best_cosines, gram_error, recovery
from sae.synthetic.hierarchy import (
    CHILDREN,
    CONSTANT,
    COSINES,
    LEVELS,
    MEAN_L0,
    N_FEATURES,
    STANDARD,
    UNIT_PARENT,
    Amplitude,
    tree_batches,
    tree_codes,
    tree_features,
)
from sae.training.loop import TrainConfig, train
from sae.training.objectives import MatryoshkaObjective, Objective, ReconstructionObjective
from sae.training.optimisers import OptimiserConfig
from sae.training.schedules import KAnnealing

TOLERANCE = 1 / 30
"""Relative residual at which a pursuit stops at inference: 0.05 in the paper's absolute terms, for samples of norm 1.5."""
PURSUIT_STEPS = 3
"""Selections per sample in training: one more than the truth ever has."""
TABLE_1 = {0.1: (1 / 400, 1 / 40), 0.5: (1 / 400, 1 / 40, 1 / 8), 1.0: (1 / 400, 1 / 40, 1 / 8, 1 / 4)}
"""Deviations of the children's amplitudes for each mean, in the paper's table 1."""
PUBLISHED = "vanilla 0.45-0.47, BatchTopK 0.42-0.48, Matryoshka 0.15-0.22, MP 0.001"
"""Absorption scores in the paper's table 1, column 1."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One dictionary to train."""

    architecture: str
    """Its name in `ARCHITECTURES`."""
    cosine: float
    """Cosine within the levels."""
    seed: int
    """Of the tree, its samples and the initial weights, each by another generator."""
    n_steps: int
    """Batches of 200 samples."""
    parent: Amplitude = STANDARD
    """Amplitude of active parents."""
    child: Amplitude = STANDARD
    """Amplitude of active children."""

    @property
    def label(self) -> str:
        """The data it is trained on, in words."""
        if (self.parent, self.child) == (STANDARD, STANDARD):
            return f"cosine {self.cosine:g} within levels"
        (mean, deviation), (child_mean, child_deviation) = self.parent, self.child
        return f"cosine {self.cosine:g}, parents N({mean:g}, {deviation:g}²), children N({child_mean:g}, {child_deviation:g}²)"

    def features(self) -> Tensor:
        """The true features."""
        return tree_features(torch.Generator().manual_seed(10_000 + self.seed), parent_cosine=self.cosine, child_cosine=self.cosine)

    def batches(self) -> Iterator[Tensor]:
        """The training samples."""
        return tree_batches(self.features(), torch.Generator().manual_seed(20_000 + self.seed), parent=self.parent, child=self.child)

    def config(self, annealing: KAnnealing | None = None) -> TrainConfig:
        """The paper's optimiser and schedule."""
        optimiser = OptimiserConfig(betas=(0.5, 0.9375), clip_norm=1.0)
        return TrainConfig(
            n_steps=self.n_steps, learning_rate=3e-2, warmup_steps=100, decay_share=0.2, final_share=0.1, optimiser=optimiser,
            annealing=annealing,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run gave; the module's text explains the columns."""

    run: Run
    """What was trained."""
    start_cosine: float
    """Best cosine of the untrained atoms."""
    best_cosine: float
    mcc: float
    firing_f1: float
    flat_error: float
    tree_error: float
    absorption: float
    n_found: int
    l0: float
    fvu: float
    seconds: float
    chance: dict[str, float]
    """Best cosine, MCC and F1 that chance gives."""
    gram: list[list[float]]
    """Learned cosines, latents in the order of the features they are matched to."""
    against_truth: list[list[float]]
    """Cosine of those latents (rows) with the true features."""


def fit(dictionary: Dictionary, run: Run, objective: Objective, annealing: KAnnealing | None = None) -> Dictionary:
    """Train `dictionary` to the end of the run."""
    for _ in train(dictionary, run.batches(), objective, run.config(annealing)):
        pass
    return dictionary


def autoencoder(activation: Activation, run: Run, objective: Objective, annealing: KAnnealing | None = None) -> Dictionary:
    """A one-layer autoencoder with this activation, trained."""
    config = AutoencoderConfig(d_in=N_FEATURES, d_sae=N_FEATURES, activation=activation)
    return fit(Autoencoder(config, seed=run.seed), run, objective, annealing)


def pursuit(run: Run, k: int = PURSUIT_STEPS, annealing: KAnnealing | None = None) -> Dictionary:
    """Matching pursuit with a fixed number of selections in training and, as in the paper's experiment, no decoder bias."""
    made = MatchingPursuit(PursuitConfig(d_in=N_FEATURES, d_sae=N_FEATURES, k=k), seed=run.seed)
    made.b_dec.requires_grad_(False)
    return fit(made, run, ReconstructionObjective(), annealing)


def annealed_pursuit(run: Run) -> Dictionary:
    """Matching pursuit from 4 selections down to the 2 that the truth needs, over the first 60% of the run."""
    return pursuit(run, 2, KAnnealing(start=4.0, share=0.6))


def top_k(run: Run) -> Dictionary:
    """TopK with k = 2: the smallest integer that can hold a parent with its child."""
    return autoencoder(TopK(2), run, ReconstructionObjective())


def batch_top_k(run: Run, objective: Objective | None = None) -> Dictionary:
    """BatchTopK with k = 3 for 1000 steps, then the truth's 1.36."""
    annealing = KAnnealing(start=3.0, share=min(1.0, 1000 / run.n_steps), shape="step")
    return autoencoder(BatchTopK(MEAN_L0), run, objective or ReconstructionObjective(), annealing)


def vanilla(run: Run) -> Dictionary:
    """ReLU with an L1 penalty whose weight is steered until L0 is the truth's."""
    return autoencoder(ReLU(), run, L1)


def matryoshka(run: Run) -> Dictionary:
    """BatchTopK whose first 11 latents, as many as there are parents, must reconstruct on their own."""
    return batch_top_k(run, MatryoshkaObjective(shares=(11 / N_FEATURES, 1.0)))


def matryoshka_l1(run: Run) -> Dictionary:
    """The paper's form: ReLU and L1, five prefixes drawn anew for each step."""
    return autoencoder(ReLU(), run, MatryoshkaObjective(n_sampled=5, terms=L1))


def untrained(run: Run) -> Dictionary:
    """Random atoms under pursuit: what chance gives."""
    return MatchingPursuit(PursuitConfig(d_in=N_FEATURES, d_sae=N_FEATURES, k=PURSUIT_STEPS), seed=run.seed)


def truth(run: Run) -> Dictionary:
    """The true features under pursuit: what a perfect dictionary gives."""
    made = MatchingPursuit(PursuitConfig(d_in=N_FEATURES, d_sae=N_FEATURES, k=PURSUIT_STEPS))
    with torch.no_grad():
        made.W_dec.copy_(run.features())
    return made


L1 = ReconstructionObjective(sparsity_coefficient=0.1, target_l0=MEAN_L0)
"""Reconstruction with an L1 penalty steered to the true L0."""
ARCHITECTURES: dict[str, Callable[[Run], Dictionary]] = {
    "truth": truth,
    "random": untrained,
    "vanilla": vanilla,
    "TopK": top_k,
    "BatchTopK": batch_top_k,
    "Matryoshka": matryoshka,
    "Matryoshka L1": matryoshka_l1,
    "MP": pursuit,
    "MP annealed": annealed_pursuit,
}
"""Everything that is compared: a name, and how a run makes the dictionary."""


@torch.no_grad()
def encode(dictionary: Dictionary, x: Tensor) -> SparseCodes:
    """Codes at inference; a pursuit stops at the tolerance, at most after as many selections as there are latents."""
    dictionary.eval()
    return dictionary.encode(x, k=N_FEATURES, tol=TOLERANCE) if isinstance(dictionary, MatchingPursuit) else dictionary.encode(x)


def measure(run: Run, n_samples: int = 5000) -> Result:
    """Train and score one dictionary."""
    torch.set_num_threads(1)
    features, draw = run.features(), torch.Generator().manual_seed(30_000 + run.seed)
    start = MatchingPursuit(PursuitConfig(d_in=N_FEATURES, d_sae=N_FEATURES, k=PURSUIT_STEPS), seed=run.seed)
    started = time.perf_counter()
    dictionary = ARCHITECTURES[run.architecture](run)
    seconds = time.perf_counter() - started
    codes = tree_codes(n_samples, draw, parent=run.parent, child=run.child)
    x, atoms = codes @ features, dictionary.W_dec.detach()
    z = encode(dictionary, x)
    found = recovery(features, atoms, codes, z, generator=draw, n_null=19)
    matched = torch.nn.functional.normalize(atoms[found.match.latents], dim=1)
    error, absorbed = gram_error(features, matched, LEVELS), tree_absorption(features, atoms, found.match, CHILDREN)
    residual = x - dictionary.decode(z).detach()
    return Result(
        run=run,
        start_cosine=float(best_cosines(features, start.W_dec).mean()),
        best_cosine=found.best_cosine.value,
        mcc=found.mcc.value,
        firing_f1=found.firing_f1.value,
        flat_error=error.flat,
        tree_error=error.hierarchical,
        absorption=absorbed.score,
        n_found=absorbed.n_found,
        l0=z.mean_l0(),
        fvu=float(residual.square().sum() / (x - x.mean(0)).square().sum()),
        seconds=seconds,
        chance={"best_cosine": found.best_cosine.null_mean, "mcc": found.mcc.null_mean, "firing_f1": found.firing_f1.null_mean},
        gram=(matched @ matched.T).tolist(),
        against_truth=(matched @ features.T).tolist(),
    )


COLUMNS = {
    "best_cosine": ("best cos", "{:.3f}"), "mcc": ("MCC", "{:.3f}"), "firing_f1": ("F1", "{:.3f}"), "flat_error": ("flat", "{:.1e}"),
    "tree_error": ("tree", "{:.1e}"), "absorption": ("absorb", "{:.3f}"), "n_found": ("found", "{:g}"), "l0": ("L0", "{:.2f}"),
    "fvu": ("FVU", "{:.1e}"), "seconds": ("s", "{:.0f}"),
}  # fmt: skip


def shown(value: float, form: str) -> str:
    """The value as text, a rounded -0 without its sign."""
    text = form.format(value)
    return text.removeprefix("-") if float(text) == 0 else text


def summary(results: list[Result], column: str) -> str:
    """median [smallest, largest] over seeds; nan where no child was found."""
    _, form = COLUMNS[column]
    values = sorted(v for r in results if (v := getattr(r, column)) == v)
    if not values:
        return "nan"
    median = shown(statistics.median(values), form)
    alone = column in ("seconds", "l0", "n_found") or len(values) == 1
    return median if alone else f"{median} [{shown(values[0], form)}, {shown(values[-1], form)}]"


def by_architecture(results: list[Result], label: str) -> dict[str, list[Result]]:
    """The results on one kind of data, in the order of `ARCHITECTURES`."""
    chosen = {name: [r for r in results if r.run.label == label and r.run.architecture == name] for name in ARCHITECTURES}
    return {name: own for name, own in chosen.items() if own}


def print_table(results: list[Result], label: str) -> None:
    """One row for every architecture."""
    groups = by_architecture(results, label)
    cells = [["", *(title for title, _ in COLUMNS.values())]]
    cells += [[name, *(summary(own, column) for column in COLUMNS)] for name, own in groups.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    print(f"\n{label}: median [smallest, largest] of {max(map(len, groups.values()))} seeds")
    for row in cells:
        print("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))))
    every = [r for own in groups.values() for r in own]
    chance = {key: statistics.mean(r.chance[key] for r in every) for key in every[0].chance}
    start = statistics.mean(r.start_cosine for r in every)
    print(
        f"chance: best cos {chance['best_cosine']:.3f} (before training {start:.3f}), MCC {chance['mcc']:.3f}, F1 {chance['firing_f1']:.3f}"
    )


def measure_all(runs: list[Run], jobs: int) -> Iterator[Result]:
    """The results as they come, from `jobs` processes."""
    if jobs == 1:
        yield from map(measure, runs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from (future.result() for future in as_completed([pool.submit(measure, run) for run in runs]))


def panels(results: list[Result], label: str) -> list[Panel]:
    """For every architecture the seed with the median error across levels."""
    median = (sorted(own, key=lambda r: r.tree_error)[len(own) // 2] for own in by_architecture(results, label).values())
    return [
        Panel(r.run.architecture, shown(r.tree_error, "{:.1e}"), shown(r.absorption, "{:.3f}"), r.gram, r.against_truth) for r in median
    ]


def grid(options: argparse.Namespace) -> list[Run]:
    """Every run of the experiment that was asked for."""
    data: list[dict[str, Any]] = [{"cosine": cosine} for cosine in options.correlations]
    if options.experiment == "amplitudes":
        # Means whose deviation would often make a child's value negative are left out, as in the paper.
        data = [{"cosine": 0.0, "parent": UNIT_PARENT, "child": Amplitude(mean, d)} for mean, ds in TABLE_1.items() for d in ds]
    elif options.experiment == "constant":
        data = [{"cosine": 0.0, "parent": CONSTANT, "child": CONSTANT}]
    return [
        Run(architecture=name, seed=seed, n_steps=options.steps, **each)
        for each in data
        for seed in range(options.seeds)
        for name in options.architectures
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=("cosines", "amplitudes", "constant"), default="cosines")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--correlations", nargs="+", type=float, default=[0.0, 0.3, 0.6], metavar="COSINE", help=f"the paper's: {COSINES}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15_000, help="batches of 200 samples")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--quick", action="store_true", help="3 seeds, cosine 0, 2,500 steps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--html", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.correlations = 3, 2500, [0.0]
    runs, results = grid(options), []
    open_labels = list(dict.fromkeys(run.label for run in runs))
    for result in measure_all(runs, options.jobs):
        results.append(result)
        print(f"\r{len(results)} of {len(runs)} runs", end="", file=sys.stderr, flush=True)
        while open_labels and sum(r.run.label == open_labels[0] for r in results) == sum(run.label == open_labels[0] for run in runs):
            print_table(results, open_labels.pop(0))
    results.sort(key=lambda result: runs.index(result.run))
    if options.experiment != "constant":
        print(f"\nPublished absorption (table 1, children N(1, 0.0025²) to N(1, 0.25²), 15,000 steps): {PUBLISHED}")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results]) + "\n")
    if options.html:
        options.html.write_text(page({label: panels(results, label) for label in dict.fromkeys(run.label for run in runs)}))


if __name__ == "__main__":
    main()
