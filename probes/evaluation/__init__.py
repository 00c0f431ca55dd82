"""Labelled evaluations of dictionaries: first letters, sparse probing, and what taking latents away does to probes.

`BATTERIES` is what `sae evaluate` finds under the entry point `sae.evaluations`.
"""

from probes.evaluation.letters import ABSORPTION, SPLITTING
from sae.evaluation.batteries import Battery

BATTERIES: tuple[Battery, ...] = (
    Battery(
        "absorption", "Absorption", "whether latents for letters have holes that others fill", (ABSORPTION, SPLITTING), family="evaluation"
    ),
)
"""Batteries of measures that need labels."""

__all__ = ["ABSORPTION", "BATTERIES", "SPLITTING"]
