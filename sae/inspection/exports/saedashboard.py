"""The batch files of SAEDashboard (https://github.com/jbloomAus/SAEDashboard), which Neuronpedia converts and its own parser reads.

    <folder>/batch-0.json ...       {model_id, layer, sae_set, sae_id_suffix, features: [...]}: the latents that fire, some a file
             skipped_indexes.json   the dead ones
             manifest.json          ours; a reader of batch files does not look at it

`sae_dashboard.neuronpedia.neuronpedia_dashboard.NeuronpediaDashboardBatch(**json)` parses a file. Groups of passages are those of
`sae.inspection.exports.peers`; values are whole floats instead of three decimals, and `frac_nonzero` is the exact density.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.inspection.exports.folder import Export, chosen, export_folder, json_line
from sae.inspection.exports.peers import (
    DROPPED,
    HALF_OPEN,
    NO_LOGIT_HISTOGRAM,
    NO_NEURONS,
    PeerIds,
    batches,
    checked_atoms,
    feature_arrays,
    groups,
    peer_ids,
    peer_text,
    shorts,
    signed_note,
)
from sae.inspection.exports.provenance import Provenance, provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.records import FeatureRecord

FORMAT = "saedashboard"


def write_saedashboard(
    index: FeatureIndex,
    folder: str | Path,
    *,
    latents: Iterable[int] | None = None,
    model_id: str | None = None,
    source_set: str | None = None,
    layer: int | None = None,
    atoms: Float[np.ndarray, "d_sae d_in"] | None = None,
    batch_size: int = 128,
    provenance: Provenance | None = None,
) -> Path:
    """Write the chosen latents (None: all) as batch files; returns the folder.

    The format holds the strongest passages, the intervals and, for signed codes, the most negative passages with their signs. It cannot
    hold selection steps, random or near-miss passages, quantiles, bits or driving tokens; alignment with neurons and the histogram of all
    logit effects, which an index does not have, are empty. `atoms` fills `vector`. Identifiers default to the names that are known.
    Raises ConfigError for a bad latent, identifier or batch size, FormatError when the folder holds something else.
    """
    selected, texts = chosen(index, latents), provenance or provenance_of(index)
    ids = peer_ids(index.manifest.source, texts, model_id=model_id, source_set=source_set, layer=layer)
    checked_atoms(atoms, index.d_sae)
    active = index.statistics.n_active
    alive = [latent for latent in selected if active[latent] > 0]
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=texts) as export:
        for number, batch in enumerate(batches(alive, batch_size)):
            _write_batch(export.file(f"batch-{number}.json"), index, batch, ids, atoms, texts.dataset)
        dead = [latent for latent in selected if active[latent] == 0]
        _write_skipped(export, ids, dead, index.n_tokens)
        export.notes += [HALF_OPEN, *signed_note(index), DROPPED, NO_LOGIT_HISTOGRAM, NO_NEURONS]
    return Path(folder)


def _write_batch(
    path: Path,
    index: FeatureIndex,
    batch: Sequence[int],
    ids: PeerIds,
    atoms: Float[np.ndarray, "d_sae d_in"] | None,
    dataset: str,
) -> None:
    head = {"model_id": ids.model_id, "layer": ids.layer, "sae_set": ids.source_set, "sae_id_suffix": None}
    prompts = {"n_prompts_total": index.table.ids.shape[0], "n_tokens_in_prompt": index.table.context, "dataset": peer_text(dataset)}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json_line(head)[:-1] + ',"features":[\n')
        for place, latent in enumerate(batch):
            feature = _feature(index.record(latent), prompts, None if atoms is None else atoms[latent])
            file.write(("" if place == 0 else ",\n") + json_line(feature))
        file.write("\n]}\n")


def _feature(record: FeatureRecord, prompts: dict[str, Any], atom: Float[np.ndarray, "d_in"] | None) -> dict[str, Any]:
    activations = [
        {
            "bin_min": group.low,
            "bin_max": group.high,
            "bin_contains": group.share,
            "tokens": [peer_text(token) for token in example.tokens],
            "values": shorts(example.values),
            "qualifying_token_index": example.peak,
        }
        for group in groups(record)
        for example in group.examples
    ]
    return {"feature_index": record.index, **feature_arrays(record, atom), **prompts, "activations": activations}


def _write_skipped(export: Export, ids: PeerIds, dead: list[int], n_tokens: int) -> None:
    """The latents left out; `log_sparsity` is the log10 density below which that is, here that of a single firing."""
    threshold = -math.log10(max(n_tokens, 1))
    skipped = {"model_id": ids.model_id, "layer": str(ids.layer), "sae_set": ids.source_set}
    skipped |= {"log_sparsity": threshold, "skipped_indexes": dead}
    export.file("skipped_indexes.json").write_text(json_line(skipped) + "\n", encoding="utf-8")
