"""Topology of clouds of points: RDMs that keep who is near whom, geodesics, convexity of classes, persistent homology.

Lin & Kriegeskorte 2023 (arXiv 2309.11028: geo-topological and geodesic RDMs, identification of regions), Tetkova et al. 2023 (arXiv 2305.17154:
convexity of class regions), Bauer 2021 (arXiv 1908.02518: Vietoris-Rips persistence).
"""

from sae.geometry.topology.circles import (
    Cone,
    compare_axis_share,
    compare_order,
    cone_of,
    order_resultant,
    polygon_loop,
)
from sae.geometry.topology.convexity import Convexity, compare_convexity, convexity
from sae.geometry.topology.geodesics import Geodesics, cloud_geodesics, geodesic_distances, geodesic_rdm, neighbour_graph
from sae.geometry.topology.identification import (
    Identification,
    bootstrap_identification,
    compare_identification,
    identification_accuracy,
    summarised,
)
from sae.geometry.topology.loop_statistics import (
    LoopComparison,
    LoopStatistics,
    Subsample,
    compare_loops,
    farthest_points,
    loop_statistics,
)
from sae.geometry.topology.persistence import Persistence, persistence, persistence_of_distances
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
    "Cone",
    "Convexity",
    "Geodesics",
    "Identification",
    "LoopComparison",
    "LoopStatistics",
    "Persistence",
    "RdmSummaryConfig",
    "Subsample",
    "TopologicalRsa",
    "bootstrap_identification",
    "cloud_geodesics",
    "compare_axis_share",
    "compare_convexity",
    "compare_identification",
    "compare_loops",
    "compare_order",
    "cone_of",
    "convexity",
    "farthest_points",
    "geodesic_distances",
    "geodesic_rdm",
    "geotopological_transform",
    "identification_accuracy",
    "loop_statistics",
    "neighbour_graph",
    "order_resultant",
    "persistence",
    "persistence_of_distances",
    "polygon_loop",
    "rank_transform",
    "sigmoid_transform",
    "summarised",
    "summary_family",
    "summary_grid",
    "trsa_similarity",
]
