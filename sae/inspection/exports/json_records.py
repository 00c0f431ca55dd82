"""Features as JSON Lines: all that a card shows, one `FeatureRecord` a line, and back.

    <folder>/features.jsonl   one record a line, in the order asked for
             manifest.json

Nothing is lost: numbers are written so that the same float is read, negative coefficients and the histogram of selection steps included.
The non-zero values of every token are not part of a record; the Parquet export has those.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json
from sae.inspection.exports.folder import chosen, export_folder, json_line, read_export
from sae.inspection.exports.provenance import Provenance
from sae.inspection.index import FeatureIndex
from sae.inspection.records import FeatureRecord

FORMAT, FEATURES = "json", "features.jsonl"


def write_json(
    index: FeatureIndex, folder: str | Path, *, latents: Iterable[int] | None = None, provenance: Provenance | None = None
) -> Path:
    """Write the records of the chosen latents (None: all) as JSON Lines; returns the folder.

    Raises ConfigError for a bad latent, FormatError when the folder holds something else.
    """
    selected = chosen(index, latents)
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=provenance) as export:
        with open(export.file(FEATURES), "w", encoding="utf-8") as file:
            for latent in selected:
                file.write(json_line(index.record(latent)) + "\n")
        export.notes.append("The values at every token are not in the records; the Parquet export has them.")
    return Path(folder)


def read_json_records(folder: str | Path) -> Iterator[FeatureRecord]:
    """The records of an export, one by one. Raises FormatError naming the file and line when it is damaged."""
    read_export(folder, FORMAT)
    file = Path(folder) / FEATURES
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield from_json(FeatureRecord, json.loads(line))
            except (json.JSONDecodeError, ConfigError) as error:
                raise FormatError(f"{file}, line {number}, is damaged: {error}") from error
