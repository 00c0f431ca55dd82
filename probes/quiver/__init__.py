"""What latents add to probes on activations: the quiver of arrows.

    quiver(B)       of the baselines, the one with the highest validation AUC; its test AUC is what counts
    quiver(B + L)   the same with probes on latents among them
    what latents add = quiver(B + L) - quiver(B), per data set, beside what as many arrows of noise add

Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda, "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing", 2025,
arXiv 2502.16681, section 3. This measures added value, not how well latents do alone. More arrows and few validation rows make a worse choice by
chance alone, so the difference has a null: as many arrows of shuffled latents, and as many that repeat what a baseline reads.

    scores = fit_quiver("party", acts, {"TopK": codes}, task.y, scarce_splits(task.y, task.groups), groups=task.groups)
    print(compare_quivers(scores).statement())
"""

from probes.quiver.arrows import ArrowScore, QuiverConfig, choose, fit_quiver
from probes.quiver.comparison import Difference, QuiverComparison, QuiverRow, compare_quivers

__all__ = ["ArrowScore", "Difference", "QuiverComparison", "QuiverConfig", "QuiverRow", "choose", "compare_quivers", "fit_quiver"]
