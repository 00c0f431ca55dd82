"""The requests of Neuronpedia's public upload, `POST /api/feature/upload-batch`, one a file.

    <folder>/request-00000.json ...   {modelId, source, features: [at most 128]}
             manifest.json            ours

    field                        allowed
    features                     1..128, of different indices
    index                        0..10,000,000
    density                      0..1
    topLogits, bottomLogits      at most 20
    explanations                 text of 1..512 characters
    activations                  at least 1: a latent that never fires cannot be uploaded
    tokens, values               at most 1024, as many of either
    modelId, source              lower case

`check_upload` holds a request to all of it, ours and anybody's.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae.errors import ConfigError
from sae.inspection.exports.folder import chosen, export_folder, json_line
from sae.inspection.exports.peers import (
    DROPPED,
    HALF_OPEN,
    Explanations,
    batches,
    groups,
    logit_arrays,
    peer_ids,
    peer_text,
    shorts,
    signed_note,
)
from sae.inspection.exports.provenance import Provenance, provenance_of
from sae.inspection.index import FeatureIndex
from sae.inspection.records import Example, FeatureRecord

FORMAT = "upload"
MAX_FEATURES, MAX_INDEX, MAX_LOGITS, MAX_TEXT, MAX_TOKENS = 128, 10_000_000, 20, 512, 1024


def write_upload(
    index: FeatureIndex,
    folder: str | Path,
    *,
    latents: Iterable[int] | None = None,
    model_id: str | None = None,
    source_set: str | None = None,
    layer: int | None = None,
    explanations: Explanations | None = None,
    batch_size: int = MAX_FEATURES,
    provenance: Provenance | None = None,
) -> Path:
    """Write the chosen latents (None: all) as upload requests; returns the folder.

    Kept: density, logit effects, passages with signs, labels. The format has no histogram, neighbours, selection steps or statistics.
    Latents that never fire are left out, effects beyond 20 and tokens beyond 1024 around the peak are cut; the manifest counts them. Raises
    ConfigError for a bad latent, identifier or batch size and for a label that is empty or too long, FormatError when the folder holds
    something else.
    """
    selected, texts = chosen(index, latents), provenance or provenance_of(index)
    if batch_size > MAX_FEATURES:
        raise ConfigError(f"batch_size must be in 1..{MAX_FEATURES}, got {batch_size} (write_upload)")
    ids = peer_ids(index.manifest.source, texts, model_id=model_id, source_set=source_set, layer=layer)
    active = index.statistics.n_active
    alive = [latent for latent in selected if active[latent] > 0]
    with export_folder(index, folder, format=FORMAT, latents=selected, provenance=texts) as export:
        n_without = 0
        for number, batch in enumerate(batches(alive, batch_size)):
            made = [_feature(index.record(latent), explanations or {}) for latent in batch]
            features = [feature for feature in made if feature["activations"]]
            n_without += len(made) - len(features)
            if features:
                request = {"modelId": ids.model_id, "source": ids.source, "features": features}
                check_upload(request)
                export.file(f"request-{number:05}.json").write_text(json_line(request) + "\n", encoding="utf-8")
        left_out = len(selected) - len(alive) + n_without
        export.notes += [HALF_OPEN, *signed_note(index), DROPPED, "Histograms and neighbours have no place in this format."]
        export.notes.append(f"Latents without any passage, which cannot be uploaded: {left_out}.")
        export.facts |= {"modelId": ids.model_id, "source": ids.source, "n_left_out": left_out}
    return Path(folder)


def _feature(record: FeatureRecord, explanations: Explanations) -> dict[str, Any]:
    logits = logit_arrays(record)
    return {
        "index": record.index,
        "density": record.density,
        "topLogits": _logits(logits["pos_str"], logits["pos_values"]),
        "bottomLogits": _logits(logits["neg_str"], logits["neg_values"]),
        "explanations": [
            {"text": peer_text(label.text), "methodName": peer_text(label.method) or None, "modelName": peer_text(label.model) or None}
            for label in explanations.get(record.index, ())
        ],
        "activations": [
            {
                **_passage(example),
                "quantileMin": None if group.share < 0 else group.low,
                "quantileMax": None if group.share < 0 else group.high,
                "quantileFraction": None if group.share < 0 else group.share,
            }
            for group in groups(record)
            for example in group.examples
        ],
    }


def _logits(tokens: list[str], values: list[float]) -> list[dict[str, Any]]:
    return [{"token": token, "value": value} for token, value in zip(tokens, values, strict=True)][:MAX_LOGITS]


def _passage(example: Example) -> dict[str, Any]:
    """Tokens and values, cut to the limit with the peak in the middle."""
    start = max(0, min(example.peak - MAX_TOKENS // 2, len(example.tokens) - MAX_TOKENS))
    part = slice(start, start + MAX_TOKENS)
    return {"tokens": [peer_text(token) for token in example.tokens[part]], "values": shorts(example.values[part])}


def check_upload(request: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first field of an upload request that is not allowed."""
    for name in ("modelId", "source"):
        if not isinstance(request.get(name), str) or not request[name] or request[name] != request[name].lower():
            raise _refused(name, "a text in lower case", request.get(name))
    features = request.get("features")
    if not isinstance(features, list) or not 1 <= len(features) <= MAX_FEATURES:
        raise _refused("features", f"a list of 1..{MAX_FEATURES}", len(features) if isinstance(features, list) else features)
    seen = set()
    for place, feature in enumerate(features):
        where = f"features[{place}]"
        number = feature.get("index")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_INDEX:
            raise _refused(f"{where}.index", f"an integer in 0..{MAX_INDEX}", number)
        if number in seen:
            raise _refused(f"{where}.index", "different from the others", number)
        seen.add(number)
        if not _is_number(feature.get("density")) or not 0 <= feature["density"] <= 1:
            raise _refused(f"{where}.density", "a number in 0..1", feature.get("density"))
        _check_parts(feature, where)


def _check_parts(feature: Mapping[str, Any], where: str) -> None:
    for name in ("topLogits", "bottomLogits"):
        logits = feature.get(name) or []
        if len(logits) > MAX_LOGITS or not all(isinstance(one["token"], str) and _is_number(one["value"]) for one in logits):
            raise _refused(f"{where}.{name}", f"at most {MAX_LOGITS} tokens with finite numbers", len(logits))
    for place, label in enumerate(feature.get("explanations") or []):
        if not isinstance(label.get("text"), str) or not 1 <= len(label["text"]) <= MAX_TEXT:
            raise _refused(f"{where}.explanations[{place}].text", f"of 1..{MAX_TEXT} characters", label.get("text"))
    activations = feature.get("activations")
    if not activations:
        raise _refused(f"{where}.activations", "a list of at least 1", activations)
    for place, one in enumerate(activations):
        at, tokens, values = f"{where}.activations[{place}]", one["tokens"], one["values"]
        if not 1 <= len(tokens) <= MAX_TOKENS or len(tokens) != len(values):
            raise _refused(f"{at}.tokens", f"1..{MAX_TOKENS} and as many values", f"{len(tokens)} and {len(values)}")
        if not all(isinstance(token, str) for token in tokens) or not all(map(_is_number, values)):
            raise _refused(f"{at}.values", "finite numbers, and tokens texts", "others")
        share = one.get("quantileFraction")
        if share is not None and (not _is_number(share) or not 0 <= share <= 1):
            raise _refused(f"{at}.quantileFraction", "a number in 0..1", share)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refused(field: str, allowed: str, found: Any) -> ConfigError:
    return ConfigError(f"{field} must be {allowed}, got {found!r} (upload request)")
