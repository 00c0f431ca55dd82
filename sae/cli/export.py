"""`sae export`: features of an index as files for others.

sae export index --format html --out site --features 3,17,40-49        pages that need no server
sae export index --format saedashboard --out batches                   for SAEDashboard and Neuronpedia's converter
sae export index --format neuronpedia --out bulk --model-id gpt2-small --source-set res-x
sae export index --format upload --out requests                        for Neuronpedia's public upload
sae export index --format json --out cards
sae export index --format parquet --out tables                         for DuckDB, Spark, Trino
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.filesize import decimal

from sae.cli.terminal import console, stoppable
from sae.errors import ConfigError, FormatError
from sae.inspection.exports import Provenance, export, provenance_of
from sae.inspection.exports.folder import MANIFEST, refuse_foreign
from sae.inspection.exports.peers import Explanation
from sae.inspection.index import FeatureIndex
from sae.storage import read_json

Format = Literal["html", "saedashboard", "neuronpedia", "upload", "json", "parquet"]
PEERS = ("saedashboard", "neuronpedia", "upload")
SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def export_command(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")],
    *,
    format: Annotated[Format, typer.Option(help="What to write.")],
    out: Annotated[Path, typer.Option(help="Folder to write; an older export of the same format in it is replaced.")],
    features: Annotated[str | None, typer.Option(help="Latents, such as 3,17,40-49 (default: all).")] = None,
    top: Annotated[int | None, typer.Option(help="Only the so many most telling features.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the pages (html).")] = None,
    model_id: Annotated[str | None, typer.Option(help="Id of the model there (saedashboard, neuronpedia, upload).")] = None,
    source_set: Annotated[str | None, typer.Option(help="Id of the set of dictionaries there (the same).")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer there (the same; default: that of the site).")] = None,
    dictionary: Annotated[
        Path | None, typer.Option(help="The dictionary's folder, to export atoms too (saedashboard, neuronpedia).")
    ] = None,
    explanations: Annotated[
        Path | None,
        typer.Option(help="Labels as JSON lines with index, description, typeName, explanationModelName (neuronpedia, upload)."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set of the texts, where the index does not record it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Its revision.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence.")] = None,
) -> None:
    """Write features of an index as files: pages, the formats of SAEDashboard and Neuronpedia, JSON lines, or Parquet tables.

    Every export records the index, the data set and licence of its texts, what the format cannot hold, and a checksum of each file.
    """
    refuse_foreign(out, format)
    opened = FeatureIndex.open(index)
    latents = _latents(opened, features, top)
    texts = _provenance(opened, {"dataset": dataset, "revision": revision, "licence": licence})
    options: dict[str, Any] = {"title": title, "model_id": model_id, "source_set": source_set, "layer": layer}
    options |= {"dictionary": dictionary, "explanations": explanations}
    options = _fitting(format, {name: value for name, value in options.items() if value is not None})
    if "dictionary" in options:
        options["atoms"] = _atoms(options.pop("dictionary"), opened)
    if "explanations" in options:
        options["explanations"] = _explanations(options["explanations"])
    n = opened.d_sae if latents is None else len(latents)
    with stoppable("nothing was written"), console.status(f"writing {n:,} features as {format}"):
        export(opened, format, out, latents=latents, provenance=texts, **options)
    _print_result(out, n, format)


def _latents(index: FeatureIndex, features: str | None, top: int | None) -> list[int] | None:
    if features is not None and top is not None:
        raise ConfigError("--features and --top must not be given together")
    if top is not None:
        telling = index.top(n=top)
        if not len(telling):
            raise ConfigError(f"--top finds no feature: {telling.definition}")
        return telling.ids.tolist()
    if features is None:
        return None
    found: list[int] = []
    for part in features.split(","):
        match = SPAN.fullmatch(part.strip())
        if not match:
            raise ConfigError(f"--features must be numbers and ranges such as 3,17,40-49, got {part.strip()!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= index.d_sae or first > last:
            raise ConfigError(f"--features must be in 0..d_sae-1={index.d_sae - 1}, from the smaller to the larger, got {part.strip()!r}")
        found.extend(range(first, last + 1))
    return found


def _provenance(index: FeatureIndex, given: dict[str, str | None]) -> Provenance:
    return replace(provenance_of(index), **{name: value for name, value in given.items() if value is not None})


def _fitting(format: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options. Raises ConfigError for one that the format does not have."""
    allowed = {"title": ("html",), "dictionary": PEERS[:2], "explanations": PEERS[1:]}
    for name in options:
        formats = allowed.get(name, PEERS)
        if format not in formats:
            raise ConfigError(f"--{name.replace('_', '-')} belongs to --format {', '.join(formats)}, not to {format}")
    return options


def _atoms(folder: Path, index: FeatureIndex) -> np.ndarray:
    """The decoder of the index's dictionary. Raises FormatError when the folder holds another."""
    from safetensors import SafetensorError, safe_open

    folder = folder / "dictionary" if (folder / "dictionary" / "config.json").is_file() else folder
    head = read_json(folder / "config.json")
    found = head.get("digest") if isinstance(head, dict) else None
    if found != index.manifest.source.dictionary_digest:
        raise FormatError(
            f"--dictionary {folder} is not that of the index: its digest is {found}, not {index.manifest.source.dictionary_digest}"
        )
    try:
        with safe_open(folder / "weights.safetensors", framework="numpy") as file:
            return file.get_tensor("W_dec").astype(np.float32)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{folder / 'weights.safetensors'} cannot be read: {error}") from error


def _explanations(file: Path) -> dict[int, list[Explanation]]:
    """The labels of a file. Raises FormatError naming the line that is not one."""
    found: dict[int, list[Explanation]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"--explanations {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            label = Explanation(
                text=str(row["description"]), method=str(row.get("typeName") or ""), model=str(row.get("explanationModelName") or "")
            )
            found.setdefault(int(row["index"]), []).append(label)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{file}, line {number}, must be a JSON object with index and description: {line[:80]!r}") from error
    return found


def _print_result(out: Path, n: int, format: str) -> None:
    facts = read_json(out / MANIFEST)
    n_bytes = sum(file["n_bytes"] for file in facts["files"].values())
    rows = [("export", f"{out}: {n:,} features as {format}, {len(facts['files']):,} files, {decimal(n_bytes)}")]
    rows += [("texts", "; ".join(f"{name}: {value or 'not recorded'}" for name, value in facts["provenance"].items()))]
    rows += [("note", note) for note in facts["notes"]]
    if format == "html":
        rows.append(("look", str(out / "index.html")))
    for label, text in rows:
        console.print(f"{label:<10} {text}", highlight=False, soft_wrap=True, markup=False)
