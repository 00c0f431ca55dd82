"""What a claim about latents is compared with: probes of several kinds on the same rows, each tuned by validation alone.

Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda, "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing", 2025,
arXiv 2502.16681, section 3. `baselines()` are the probes on activations, `latent_probe(k)` is the one on latents; all are
`ValidatedProbe`s, which choose their own setting on folds of their training rows.
"""

from probes.baselines.choice import ValidatedProbe, validation_folds
from probes.baselines.columns import LeadingColumns, RandomColumns
from probes.baselines.methods import (
    baselines,
    boosted_trees,
    latent_probe,
    logistic_regression,
    nearest_neighbours,
    partial_probe,
    perceptron,
    principal_components,
)

__all__ = [
    "LeadingColumns",
    "RandomColumns",
    "ValidatedProbe",
    "baselines",
    "boosted_trees",
    "latent_probe",
    "logistic_regression",
    "nearest_neighbours",
    "partial_probe",
    "perceptron",
    "principal_components",
    "validation_folds",
]
