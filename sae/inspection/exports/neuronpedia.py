"""The bulk layout that Neuronpedia imports (https://github.com/hijohnnylin/neuronpedia).

    <folder>/{model}/{source}/release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl     one row each
                              features/batch-0.jsonl.gz ...      a row for each latent, dead ones included
                              activations/batch-0.jsonl.gz ...   a row for each passage of the same latents
                              explanations/batch-0.jsonl.gz ...  a row for each label, where there are any
             manifest.json    ours

Rows are those of its data base tables. Their ids are made from what the row says, and `createdAt` is an argument, so the same index gives
the same bytes. Groups of passages are those of `sae.inspection.exports.peers`.
"""

import gzip
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.errors import ConfigError
from sae.inspection.exports.folder import chosen, export_folder, json_line
from sae.inspection.exports.peers import (
    DROPPED,
    HALF_OPEN,
    NO_LOGIT_HISTOGRAM,
    NO_NEURONS,
    Explanations,
    PeerIds,
    batches,
    checked_atoms,
    feature_arrays,
    groups,
    peer_ids,
    peer_text,
    short,
    shorts,
    signed_note,
)
from sae.inspection.exports.provenance import Provenance, provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.records import FeatureRecord

FORMAT = "neuronpedia"
NO_MAP = "The umap columns are left to the importer: the map of an index is not a UMAP unless it was made as one."

NO_SIZES = "Layers and neurons of the model are 0: an index does not know them."


@dataclass(frozen=True, kw_only=True)
class Creator:
    """Who publishes, as the rows say."""

    id: str = "local"
    """Id of the account."""
    name: str = "local"
    """Name shown."""
    url: str = ""
    """Address of the release; empty for none."""
    created_at: str = "1970-01-01T00:00:00.000Z"
    """Time of every row (ISO 8601); fixed, so that equal indexes give equal bytes."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    index: FeatureIndex
    ids: PeerIds
    creator: Creator
    texts: Provenance

    def row(self, record: FeatureRecord) -> dict[str, Any]:
        """What every row about a feature begins with."""
        own = {"modelId": self.ids.model_id, "layer": self.ids.source, "index": str(record.index)}
        return own | {"creatorId": self.creator.id, "createdAt": self.creator.created_at}

    def key(self, *parts: object) -> str:
        """An id of 25 characters that depends on nothing but what it names."""
        named = "\0".join(map(str, (self.index.digest, self.ids.model_id, self.ids.source, *parts)))
        return "c" + hashlib.sha256(named.encode("utf-8", "backslashreplace")).hexdigest()[:24]


def write_neuronpedia(
    index: FeatureIndex,
    folder: str | Path,
    *,
    latents: Iterable[int] | None = None,
    model_id: str | None = None,
    source_set: str | None = None,
    layer: int | None = None,
    atoms: Float[np.ndarray, "d_sae d_in"] | None = None,
    explanations: Explanations | None = None,
    creator: Creator | None = None,
    batch_size: int = 1024,
    provenance: Provenance | None = None,
) -> Path:
    """Write the chosen latents (None: all) in the bulk layout; returns the folder.

    The format keeps signs, but has no place for selection steps, random or near-miss passages, quantiles, bits or driving tokens; dataset,
    licence and revision stand in the source's notes. `atoms` fills `vector`. Raises ConfigError for a bad latent, identifier, label or
    batch size, FormatError when the folder holds something else.
    """
    selected, texts = chosen(index, latents), provenance or provenance_of(index)
    checked_atoms(atoms, index.d_sae)
    unknown = sorted(set(explanations or {}) - set(range(index.d_sae)))
    if unknown:
        raise ConfigError(f"explanations must be of latents in 0..d_sae-1={index.d_sae - 1}, got {unknown[0]!r} (export)")
    ids = peer_ids(index.manifest.source, texts, model_id=model_id, source_set=source_set, layer=layer)
    job = _Job(index=index, ids=ids, creator=creator or Creator(), texts=texts)
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=texts) as export:
        root = f"{job.ids.model_id}/{job.ids.source}"
        for name, row in _head_rows(job).items():
            export.file(f"{root}/{name}.jsonl").write_text(json_line(row) + "\n", encoding="utf-8")
        for number, batch in enumerate(batches(selected, batch_size)):
            places = {kind: export.file(f"{root}/{kind}/batch-{number}.jsonl.gz") for kind in ("features", "activations")}
            with _gzipped(places["features"]) as features, _gzipped(places["activations"]) as activations:
                for latent in batch:
                    record = index.record(latent)
                    features.write(json_line(_feature_row(job, record, None if atoms is None else atoms[latent])) + "\n")
                    activations.writelines(json_line(row) + "\n" for row in _activation_rows(job, record))
            rows = [row for latent in batch for row in _explanation_rows(job, latent, explanations or {})]
            if rows:
                with _gzipped(export.file(f"{root}/explanations/batch-{number}.jsonl.gz")) as file:
                    file.writelines(json_line(row) + "\n" for row in rows)
        export.notes += [HALF_OPEN, *signed_note(index), DROPPED, NO_LOGIT_HISTOGRAM, NO_NEURONS, NO_MAP, NO_SIZES]
    return Path(folder)


@contextmanager
def _gzipped(path: Path) -> Iterator[io.TextIOWrapper]:
    """A gzip file to write text to, without name or time in its header: equal texts give equal bytes."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as file:
        yield file


def _head_rows(job: _Job) -> dict[str, dict[str, Any]]:
    """The rows of release, model, set and source."""
    ids, creator, source = job.ids, job.creator, job.index.manifest.source
    own = {"creatorId": creator.id, "createdAt": creator.created_at}
    urls, shown = [creator.url] if creator.url else [], {"visibility": "PUBLIC"}
    title = peer_text(f"{source.dictionary} at {source.site}")
    table = job.index.table
    notes = peer_text("; ".join([*job.texts.lines(), f"dictionary {source.dictionary_digest}", f"store {source.store_digest}"]))
    model = {"id": ids.model_id, "instruct": ids.model_id.endswith(("-it", "-instruct")), "displayNameShort": ids.model_id}
    model |= {"displayName": peer_text(job.texts.model or ids.model_id), "defaultSourceSetName": ids.source_set, "inferenceEnabled": False}
    model |= {"layers": 0, "neuronsPerLayer": 0, "owner": ""}
    names = {"creatorName": peer_text(creator.name)}
    sourceset = {"modelId": ids.model_id, "name": ids.source_set, "hasDashboards": True, "description": title, "type": "", "urls": urls}
    own_source = {"id": ids.source, "modelId": ids.model_id, "setName": ids.source_set, "hasDashboards": True, "inferenceEnabled": False}
    own_source |= {"num_prompts": table.ids.shape[0], "num_tokens_in_prompt": table.context}
    return {
        "release": {"name": ids.source_set, "description": title, "descriptionShort": title, "urls": urls, **names, **shown, **own},
        "model": {**model, "updatedAt": creator.created_at, **shown, **own},
        "sourceset": {**sourceset, "releaseName": ids.source_set, **names, **shown, **own},
        "source": {**own_source, "dataset": peer_text(job.texts.dataset), "notes": notes, **shown, **own},
    }


def _feature_row(job: _Job, record: FeatureRecord, atom: Float[np.ndarray, "d_in"] | None) -> dict[str, Any]:
    arrays = feature_arrays(record, atom)
    peak = short(record.max)
    return {
        **job.row(record),
        "sourceSetName": job.ids.source_set,
        "maxActApprox": peak,
        "hasVector": atom is not None,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": peak if atom is not None else None,
        "hookName": record.source.site,
        "topkCosSimIndices": [other.index for other in record.neighbours],
        "topkCosSimValues": [short(other.cosine) for other in record.neighbours],
        **arrays,
    }


def _activation_rows(job: _Job, record: FeatureRecord) -> Iterator[dict[str, Any]]:
    for place, group in enumerate(groups(record)):
        for rank, example in enumerate(group.examples):
            values = shorts(example.values)
            largest = max(values)
            yield {
                "id": job.key(record.index, place, rank),
                **job.row(record),
                "tokens": [peer_text(token) for token in example.tokens],
                "values": values,
                "maxValue": largest,
                "maxValueTokenIndex": values.index(largest),
                "minValue": min(values),
                "dataIndex": f"{example.document}:{example.row}:{example.position}",
                "dataSource": peer_text(job.texts.dataset) or None,
                "dfaValues": [],
                "dfaTargetIndex": None,
                "dfaMaxValue": None,
                "lossValues": [],
                "logitContributions": None,
                "binMin": group.low,
                "binMax": group.high,
                "binContains": group.share,
                "qualifyingTokenIndex": example.peak,
            }


def _explanation_rows(job: _Job, latent: int, explanations: Explanations) -> Sequence[dict[str, Any]]:
    own = {"modelId": job.ids.model_id, "layer": job.ids.source, "index": str(latent)}
    return [
        {
            "id": job.key(latent, "explanation", place),
            **own,
            "description": peer_text(explanation.text),
            "authorId": job.creator.id,
            "typeName": peer_text(explanation.method) or None,
            "explanationModelName": peer_text(explanation.model) or None,
            "notes": None,
            "createdAt": job.creator.created_at,
        }
        for place, explanation in enumerate(explanations.get(latent, ()))
    ]
