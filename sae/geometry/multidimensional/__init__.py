"""Features of more than one dimension: clusters of atoms, whether they are irreducible, and whether ordered classes lie on a circle.

Engels et al. 2024, "Not All Language Model Features Are One-Dimensionally Linear" (arXiv 2405.14860), from definitions: the mixture index by an
exact sweep instead of gradient ascent, separability without a constant inside the logarithm, every score with its null.
"""

from sae.geometry.multidimensional.classes import CircleOfClasses, circle_of_classes, class_means, strongest
from sae.geometry.multidimensional.clusters import AtomClusters, clusters_of_labels, graph_clusters, graph_sweep
from sae.geometry.multidimensional.intervention import (
    CircleProbe,
    Explanation,
    circle_of_labels,
    circle_points,
    explain_by_regression,
    fit_circle_probe,
    logit_difference,
    off_circle_sweep,
    one_hot,
    patch_in_subspace,
    patch_on_circle,
)
from sae.geometry.multidimensional.mixture import Mixture, MixtureConfig, compare_mixture, gaussian_mixture_draws, mixture_index
from sae.geometry.multidimensional.population import (
    circle_mixture_index,
    gaussian_mixture_index,
    regular_polygon,
    square_axis_mixture_index,
)
from sae.geometry.multidimensional.ranking import PlaneScores, Ranking, RankingConfig, plane_scores, rank_clusters
from sae.geometry.multidimensional.reconstruction import (
    ClusterCloud,
    Components,
    cluster_cloud,
    cluster_components,
    code_columns,
    components,
)
from sae.geometry.multidimensional.separability import Separability, SeparabilityConfig, compare_separability, separability
from sae.geometry.multidimensional.spectral import dense_spectral_clusters, spectral_clusters
from sae.geometry.multidimensional.stability import best_jaccard, compare_best_jaccard, stability
from sae.geometry.multidimensional.views import ClusterView, cluster_view, plane

__all__ = [
    "AtomClusters", "CircleOfClasses", "CircleProbe", "ClusterCloud", "ClusterView", "Components", "Explanation", "Mixture", "MixtureConfig",
    "PlaneScores", "Ranking", "RankingConfig", "Separability", "SeparabilityConfig", "best_jaccard", "circle_mixture_index",
    "circle_of_classes", "circle_of_labels", "circle_points", "class_means", "cluster_cloud", "cluster_components", "cluster_view",
    "clusters_of_labels", "code_columns", "compare_best_jaccard", "compare_mixture", "compare_separability", "components",
    "dense_spectral_clusters", "explain_by_regression", "fit_circle_probe", "gaussian_mixture_draws", "gaussian_mixture_index",
    "graph_clusters", "graph_sweep", "logit_difference", "mixture_index", "off_circle_sweep", "one_hot", "patch_in_subspace",
    "patch_on_circle", "plane", "plane_scores", "rank_clusters", "regular_polygon", "separability", "spectral_clusters",
    "square_axis_mixture_index", "stability", "strongest",
]  # fmt: skip
