"""Intrinsic dimension of a cloud of points: nonlinear from its neighbours, linear from its spectrum, and each beside the other.

    two_nn                  Facco, d'Errico, Rodriguez & Laio 2017 (arXiv 1803.06992)
    gride                   Denti, Doimo, Laio & Mira 2022 (arXiv 2104.13832), dimension as a function of scale
    maximum_likelihood      Levina & Bickel 2005, MacKay & Ghahramani 2005; `local_dimension` point by point
    correlation_dimension   Grassberger & Procaccia 1983
    local_pca, linear_dimension   Fukunaga & Olsen 1971; shares of variance; participation ratio
    battery                 all of them from one exact search for neighbours
    compare_nonlinear       against Gaussian clouds of the same covariance, after Cheng et al. 2024 (arXiv 2410.01444)

An estimate above about 10 is a lower bound at any number of points one can afford: state N and the scale with it.
"""

from sae.geometry.dimension.battery import Decimated, DimensionBattery, DimensionConfig, battery, battery_of
from sae.geometry.dimension.correlation import CorrelationDimension, correlation_dimension
from sae.geometry.dimension.gride import GrideCurve, Plateau, gride, gride_orders
from sae.geometry.dimension.intervals import Estimate, LogDistances, log_distances
from sae.geometry.dimension.likelihood import LocalDimension, local_dimension, log_sums, maximum_likelihood, unbiased_mean
from sae.geometry.dimension.linear import LinearDimension, LocalPca, fukunaga_olsen, linear_dimension, local_pca, pca_dimension
from sae.geometry.dimension.neighbours import NearestNeighbours, distinct_rows, nearest_neighbours
from sae.geometry.dimension.nonlinear import NonlinearComparison, compare_nonlinear
from sae.geometry.dimension.two_nn import (
    FEWEST_POINTS,
    HIGHEST_DIMENSION,
    KEPT_NEIGHBOURS,
    LOWER_BOUND_ABOVE,
    IntrinsicDimension,
    two_nn,
    two_nn_estimates,
)

__all__ = [
    "FEWEST_POINTS", "HIGHEST_DIMENSION", "KEPT_NEIGHBOURS", "LOWER_BOUND_ABOVE", "CorrelationDimension", "Decimated", "DimensionBattery",
    "DimensionConfig", "Estimate", "GrideCurve", "IntrinsicDimension", "LinearDimension", "LocalDimension", "LocalPca", "LogDistances",
    "NearestNeighbours", "NonlinearComparison", "Plateau", "battery", "battery_of", "compare_nonlinear", "correlation_dimension",
    "distinct_rows", "fukunaga_olsen", "gride", "gride_orders", "linear_dimension", "local_dimension", "local_pca", "log_distances",
    "log_sums", "maximum_likelihood", "nearest_neighbours", "pca_dimension", "two_nn", "two_nn_estimates", "unbiased_mean",
]  # fmt: skip
