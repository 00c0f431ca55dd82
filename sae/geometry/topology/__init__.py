"""Topology of clouds of points: RDMs that keep who is near whom, geodesics, convexity of classes, persistent homology.

Lin & Kriegeskorte 2023 (arXiv 2309.11028: geo-topological and geodesic RDMs, identification of regions), Tetkova et al. 2023 (arXiv 2305.17154:
convexity of class regions).
"""

from sae.geometry.topology.convexity import Convexity, compare_convexity, convexity
from sae.geometry.topology.geodesics import Geodesics, cloud_geodesics, geodesic_distances, geodesic_rdm, neighbour_graph
from sae.geometry.topology.identification import (
    Identification,
    bootstrap_identification,
    compare_identification,
    identification_accuracy,
    summarised,
)
from sae.geometry.topology.transforms import (
    RdmSummaryConfig,
    TopologicalRsa,
    geotopological_transform,
    rank_transform,
    sigmoid_transform,
    summary_family,
    summary_grid,
    trsa_similarity,
)

__all__ = [
    "Convexity",
    "Geodesics",
    "Identification",
    "RdmSummaryConfig",
    "TopologicalRsa",
    "bootstrap_identification",
    "cloud_geodesics",
    "compare_convexity",
    "compare_identification",
    "convexity",
    "geodesic_distances",
    "geodesic_rdm",
    "geotopological_transform",
    "identification_accuracy",
    "neighbour_graph",
    "rank_transform",
    "sigmoid_transform",
    "summarised",
    "summary_family",
    "summary_grid",
    "trsa_similarity",
]
