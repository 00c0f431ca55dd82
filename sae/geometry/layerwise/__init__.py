"""How good a layer's representation is, without a task: entropies, curvature, what two views share, uniformity.

Skean et al. 2025, "Layer by Layer" (arXiv 2502.02013); Giraldo, Rao & Principe 2015 (arXiv 1211.2459); Kim et al. 2023, VNE (arXiv 2304.01434);
Hosseini & Fedorenko 2023 (arXiv 2311.04930); van den Oord, Li & Vinyals 2018 (arXiv 1807.03748); Thilak et al. 2023, LiDAR (arXiv 2312.04000);
Skean et al. 2023, DiME (arXiv 2301.08164); Wang & Isola 2020 (arXiv 2005.10242); Fang et al. 2024 (arXiv 2403.00642).
"""

from sae.geometry.layerwise.contrast import InfoNCE, compare_info_nce, compare_lidar, info_nce, lidar
from sae.geometry.layerwise.curvature import Variant, compare_curvature, curvature
from sae.geometry.layerwise.dime import compare_dime, dime
from sae.geometry.layerwise.entropy import (
    Normalisation,
    compare_matrix_entropy,
    compare_prompt_entropy,
    matrix_entropy,
    prompt_entropies,
    renyi_entropy,
    von_neumann_entropy,
)
from sae.geometry.layerwise.preparation import MatchedGaussian, Preparation, pooled_tokens
from sae.geometry.layerwise.uniformity import (
    alignment,
    compare_alignment,
    compare_uniformity,
    compare_wasserstein_uniformity,
    sampled_uniformity,
    sphere_uniformity,
    uniformity,
    wasserstein_uniformity,
)

__all__ = [
    "InfoNCE", "MatchedGaussian", "Normalisation", "Preparation", "Variant", "alignment", "compare_alignment", "compare_curvature", "compare_dime",
    "compare_info_nce", "compare_lidar", "compare_matrix_entropy", "compare_prompt_entropy", "compare_uniformity",
    "compare_wasserstein_uniformity", "curvature", "dime", "info_nce", "lidar", "matrix_entropy", "pooled_tokens",
    "prompt_entropies", "renyi_entropy", "sampled_uniformity", "sphere_uniformity", "uniformity", "von_neumann_entropy",
    "wasserstein_uniformity",
]  # fmt: skip
