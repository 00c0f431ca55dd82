"""Looking at what a dictionary has found: an index of its codes over a store, cards of features, and reports."""

from sae.inspection.build import IndexProgress, build_index
from sae.inspection.display import FeatureCard
from sae.inspection.index import FeatureIndex
from sae.inspection.metrics import METRICS, metric_table
from sae.inspection.query import TELLING_DEFINITION, coactive, telling_features, top_examples
from sae.inspection.records import FeatureRecord
from sae.inspection.report import write_report
from sae.inspection.report_data import Axis, Column, Fact, FeatureList, Figure, ReportData, Row, Rule, Section, Series, Table
from sae.inspection.settings import IndexConfig

__all__ = [
    "METRICS",
    "TELLING_DEFINITION",
    "Axis",
    "Column",
    "Fact",
    "FeatureCard",
    "FeatureIndex",
    "FeatureList",
    "FeatureRecord",
    "Figure",
    "IndexConfig",
    "IndexProgress",
    "ReportData",
    "Row",
    "Rule",
    "Section",
    "Series",
    "Table",
    "build_index",
    "coactive",
    "metric_table",
    "telling_features",
    "top_examples",
    "write_report",
]
