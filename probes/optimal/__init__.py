"""Exact k-sparse probing: the best support by cutting planes, how close to proven it is, and probes that read it."""

from probes.optimal.estimators import OptimalSparseProbe, OptimalSparseRegressor, best_subset, best_subset_number
from probes.optimal.search import BestSubset, SearchConfig

__all__ = ["BestSubset", "OptimalSparseProbe", "OptimalSparseRegressor", "SearchConfig", "best_subset", "best_subset_number"]
