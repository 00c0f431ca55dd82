"""Taking features out: one function per format, and `export`, which finds it by name.

    html           a folder of pages that needs nothing else, for a person
    saedashboard   the batch files of SAEDashboard
    neuronpedia    the bulk layout that Neuronpedia imports
    upload         the requests of Neuronpedia's public upload
    json           every card as a JSON line, and back
    parquet        the whole index as tables, for DuckDB, Spark or Trino

Every export is a folder that appears whole or not at all, with a manifest that names the index, its texts' data set and licence, what the
format does not hold, and the size and SHA-256 of each file. Records are read one by one, so memory does not grow with the dictionary.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae.errors import ConfigError
from sae.inspection.exports.provenance import Provenance, provenance_of, record_provenance
from sae.inspection.index import FeatureIndex

FORMATS = {
    "html": ("static_site", "write_html"),
    "saedashboard": ("saedashboard", "write_saedashboard"),
    "neuronpedia": ("neuronpedia", "write_neuronpedia"),
    "upload": ("neuronpedia_upload", "write_upload"),
    "json": ("json_records", "write_json"),
    "parquet": ("parquet", "write_parquet"),
}
"""Name of a format -> module and function that write it."""

__all__ = ["FORMATS", "Provenance", "export", "provenance_of", "record_provenance"]


def export(index: FeatureIndex, format: str, folder: str | Path, *, latents: Iterable[int] | None = None, **options: Any) -> Path:
    """Write the chosen latents (None: all) in one of `FORMATS`; returns the folder. `options` are those of the format's function.

    Raises ConfigError for an unknown format or a bad latent, FormatError when the folder holds something else.

        export(index, "html", "site", latents=[3, 17])
    """
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r} (export)")
    module, function = FORMATS[format]
    return getattr(importlib.import_module(f"sae.inspection.exports.{module}"), function)(index, folder, latents=latents, **options)
