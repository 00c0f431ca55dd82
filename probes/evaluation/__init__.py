"""Labelled evaluations of dictionaries: first letters, sparse probing, and what taking latents away does to probes.

`BATTERIES` is what `sae evaluate` finds under the entry point `sae.evaluations`.
"""

from probes.evaluation.ablations import SCR, TPP
from probes.evaluation.letters import ABSORPTION, SPLITTING
from probes.evaluation.sparse_probing import SPARSE_PROBING
from sae.evaluation.batteries import Battery

BATTERIES: tuple[Battery, ...] = (
    Battery(
        "absorption", "Absorption", "whether latents of letters have holes that others fill", (ABSORPTION, SPLITTING), family="evaluation"
    ),
    Battery("probing", "Sparse probing", "how well labels can be read from few latents", (SPARSE_PROBING,), family="evaluation"),
    Battery("ablation", "Ablation", "what taking latents away does to probes", (SCR, TPP), family="evaluation"),
)
"""Batteries of measures that need labels."""

__all__ = ["ABSORPTION", "BATTERIES", "SCR", "SPARSE_PROBING", "SPLITTING", "TPP"]
