"""Sweeps: every problem on every matrix (layers, models, dictionaries), with controls, resumable and in parallel.

    result = sweep(problems, source, SweepConfig(ks=(1, 4, 16)), cache=ResultCache("results"), n_jobs=2)
    result.table()                                    a row per layer: k = 1, 4, 16, dense, shuffled labels, random coordinates
    compare_sweeps([neurons, latents]).table()        several side by side

Documents are split in two: probes are fitted to the training documents and scored on the test documents. Whatever is chosen (a layer, a k)
is chosen by scores on folds of the training documents. After Gurnee et al., "Finding Neurons in a Haystack", 2023, arXiv 2305.01610,
sections 3 and 4, who split tokens in two and choose on the test side.
"""

from probes.sweep.compare import SweepComparison, compare_sweeps, sparsity
from probes.sweep.config import DENSE, RANDOM, SweepCell, SweepConfig
from probes.sweep.result import SweepResult
from probes.sweep.run import SweepStep, sweep, sweep_steps

__all__ = [
    "DENSE",
    "RANDOM",
    "SweepCell",
    "SweepComparison",
    "SweepConfig",
    "SweepResult",
    "SweepStep",
    "compare_sweeps",
    "sparsity",
    "sweep",
    "sweep_steps",
]
