# ruff: noqa: F401  the names are for type checkers; each is imported when it is asked for
"""Looking at what a dictionary has found: an index of its codes over a store, cards of features, and reports.

Each name is imported when it is first asked for: reading an index needs no torch, building one does.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "METRICS": "metrics",
    "TELLING_DEFINITION": "query",
    "Axis": "report_data",
    "Column": "report_data",
    "Fact": "report_data",
    "FeatureCard": "display",
    "FeatureIndex": "index",
    "FeatureList": "report_data",
    "FeatureRecord": "records",
    "Figure": "report_data",
    "Framing": "encoded",
    "IndexConfig": "settings",
    "IndexProgress": "build",
    "Live": "live",
    "ReportData": "report_data",
    "Row": "report_data",
    "Rule": "report_data",
    "Section": "report_data",
    "Series": "report_data",
    "Table": "report_data",
    "build_index": "build",
    "build_index_from_codes": "build",
    "coactive": "query",
    "framing_of": "live",
    "metric_table": "metrics",
    "telling_features": "query",
    "text_widget": "widget",
    "top_examples": "query",
    "write_report": "report",
}

if TYPE_CHECKING:
    from sae.inspection.build import IndexProgress, build_index, build_index_from_codes
    from sae.inspection.display import FeatureCard
    from sae.inspection.encoded import Framing
    from sae.inspection.index import FeatureIndex
    from sae.inspection.live import Live, framing_of
    from sae.inspection.metrics import METRICS, metric_table
    from sae.inspection.query import TELLING_DEFINITION, coactive, telling_features, top_examples
    from sae.inspection.records import FeatureRecord
    from sae.inspection.report import write_report
    from sae.inspection.report_data import Axis, Column, Fact, FeatureList, Figure, ReportData, Row, Rule, Section, Series, Table
    from sae.inspection.settings import IndexConfig
    from sae.inspection.widget import text_widget

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sae.inspection' has no attribute {name!r}; its names: {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(f"sae.inspection.{_HOME[name]}"), name)
