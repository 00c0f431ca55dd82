"""The formats of SAEDashboard and Neuronpedia, read by their own parsers where there are any."""

import gzip
import json

import numpy as np
import pytest

from sae.errors import ConfigError
from sae.inspection.exports.neuronpedia import Creator, write_neuronpedia
from sae.inspection.exports.neuronpedia_upload import check_upload, write_upload
from sae.inspection.exports.peers import Explanation, PeerIds, peer_ids
from sae.inspection.exports.provenance import Provenance
from sae.inspection.exports.saedashboard import write_saedashboard
from tests.sae.inspection.exports.exported import KINDS, TEXTS, active, content, hostile_index, make_index, small_index


def same(found, expected):
    """Whether numbers are the same float32."""
    return np.array_equal(np.float32(found), np.float32(expected))


def groups_of(record):
    """The groups of passages that a feature should have, written another way than the program's."""
    found = [((-1.0, record.max, -1.0), e) for e in record.examples]
    for interval in record.intervals:
        found += [((interval.low, interval.high, interval.n_active / record.n_active), e) for e in interval.examples]
    return found


def check_groups(rows, record, index, names):
    """Every passage of a feature with its group; the negative tail after the others."""
    values = index.entries(record.index).values
    below = (record.min, 0.0, (values < 0).mean()) if len(values) else None
    expected = groups_of(record) + [(below, e) for e in record.negative_examples]
    assert len(rows) == len(expected)
    for row, (group, example) in zip(rows, expected, strict=True):
        assert same([row[name] for name in names], group)
        assert row["tokens"] == list(example.tokens)
        assert same(row["values"], example.values)


# --- SAEDashboard ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_their_own_parser_reads_the_batches_and_finds_what_the_index_has(kind, tmp_path):
    theirs = pytest.importorskip("sae_dashboard.neuronpedia.neuronpedia_dashboard")
    index = small_index(kind)
    folder = write_saedashboard(index, tmp_path / "out", batch_size=6, provenance=TEXTS)
    files = sorted(folder.glob("batch-*.json"))
    alive = active(index)
    assert len(files) == -(-len(alive) // 6)
    parsed = [theirs.NeuronpediaDashboardBatch(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    assert {(batch.model_id, batch.layer, batch.sae_set) for batch in parsed} == {("model-1", 1, "small-dictionary")}
    features = [feature for batch in parsed for feature in batch.features]
    assert [feature.feature_index for feature in features] == alive
    for feature in features:
        record, edges = index.record(feature.feature_index), np.array(index.record(feature.feature_index).histogram.edges)
        check_groups([vars(activation) for activation in feature.activations], record, index, ("bin_min", "bin_max", "bin_contains"))
        peaks = [activation.values[activation.qualifying_token_index] for activation in feature.activations if activation.bin_min == -1]
        assert peaks == sorted(peaks, reverse=True)
        assert feature.frac_nonzero == record.density
        assert feature.freq_hist_data_bar_heights == list(record.histogram.counts)
        assert same(feature.freq_hist_data_bar_values, (edges[1:] + edges[:-1]) / 2)
        assert (feature.pos_str, feature.neg_str) == ([e.token for e in record.promoted], [e.token for e in record.suppressed])
        assert same(feature.pos_values, [e.effect for e in record.promoted])
        assert same(feature.neg_values, [e.effect for e in record.suppressed])
        near = record.related.get("correlation", ())
        assert feature.correlated_features_indices == [other.index for other in near]
        assert same(feature.correlated_features_pearson, [other.value for other in near])
        assert (feature.n_prompts_total, feature.n_tokens_in_prompt, feature.dataset) == (14, 16, "speeches")


def test_intervals_are_half_open_and_shares_of_all_groups_add_up_to_one(tmp_path):
    index = small_index("pursuit")
    for latent in active(index):
        folder = write_saedashboard(index, tmp_path / "out", latents=[latent])
        (feature,) = json.loads((folder / "batch-0.json").read_text())["features"]
        shares = {(a["bin_min"], a["bin_max"]): a["bin_contains"] for a in feature["activations"] if a["bin_contains"] >= 0}
        values = index.entries(latent).values
        for (low, high), share in shares.items():
            inside = (values >= low) & (values < 0) if high == 0 else (values > np.float32(low)) & (values <= np.float32(high))
            assert share == pytest.approx(inside.mean(), abs=1e-12)
        assert sum(shares.values()) == pytest.approx(1.0)
        for a in feature["activations"]:
            peak = a["values"][a["qualifying_token_index"]]
            assert a["bin_min"] < peak <= a["bin_max"] or (a["bin_max"] == 0 and a["bin_min"] <= peak < 0)


def test_dead_latents_are_listed_as_skipped_and_in_no_batch(tmp_path):
    index = small_index("autoencoder")
    folder = write_saedashboard(index, tmp_path / "out", latents=[2, 4, 0, 5])
    skipped = json.loads((folder / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == [2, 0]
    assert skipped["log_sparsity"] == pytest.approx(-np.log10(index.n_tokens))
    assert (skipped["model_id"], skipped["layer"], skipped["sae_set"]) == ("model", "1", "small-dictionary")
    assert [f["feature_index"] for f in json.loads((folder / "batch-0.json").read_text())["features"]] == [4, 5]
    only_dead = write_saedashboard(index, tmp_path / "dead", latents=[0, 1])
    assert sorted(file.name for file in only_dead.iterdir()) == ["manifest.json", "skipped_indexes.json"]


def test_atoms_fill_the_vector(tmp_path):
    index, atoms = small_index("pursuit"), np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    folder = write_saedashboard(index, tmp_path / "out", latents=[4, 5], atoms=atoms)
    for feature in json.loads((folder / "batch-0.json").read_text())["features"]:
        assert same(feature["vector"], atoms[feature["feature_index"]])
    with pytest.raises(ConfigError, match="a row for each of the 20 latents, got 19"):
        write_saedashboard(index, tmp_path / "other", atoms=atoms[:19])


def test_manifests_say_what_a_format_drops_and_speak_of_signs_only_where_there_are_any(tmp_path):
    for kind in KINDS:
        notes = json.loads((write_saedashboard(small_index(kind), tmp_path / kind) / "manifest.json").read_text())["notes"]
        assert any("Selection steps" in note for note in notes)
        assert any("half-open" in note for note in notes)
        assert any("Negative coefficients" in note for note in notes) == (kind == "pursuit")


# --- identifiers -------------------------------------------------------------------------------------------------------------------------


def test_identifiers_are_lower_cased_and_default_to_the_names_that_are_known():
    source = small_index("autoencoder").manifest.source
    given = peer_ids(source, Provenance(), model_id="GPT2-Small", source_set="Res-JB", layer=6)
    assert (given.model_id, given.source) == ("gpt2-small", "6-res-jb")
    known = peer_ids(source, Provenance(model="Org/Some Model"), model_id=None, source_set=None, layer=None)
    assert (known.model_id, known.source) == ("some-model", "1-small-dictionary")


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-x", "é", "x" * 129, "a\n"])
def test_identifiers_that_could_be_paths_or_markup_are_refused(name, tmp_path):
    for write in (write_saedashboard, write_neuronpedia, write_upload):
        with pytest.raises(ConfigError, match="source_set must be"):
            write(small_index("autoencoder"), tmp_path / "out", source_set=name)
        with pytest.raises(ConfigError, match="model_id must be"):
            write(small_index("autoencoder"), tmp_path / "out", model_id=name)
    with pytest.raises(ConfigError, match="layer must be"):
        PeerIds(model_id="m", source_set="s", layer=-1)


@pytest.mark.parametrize("size", [0, -1, True])
def test_a_batch_holds_at_least_one_feature(size, tmp_path):
    for write in (write_saedashboard, write_neuronpedia, write_upload):
        with pytest.raises(ConfigError, match="batch_size must be"):
            write(small_index("autoencoder"), tmp_path / "out", batch_size=size)


# --- Neuronpedia's bulk layout -----------------------------------------------------------------------------------------------------------


def rows_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("kind", KINDS)
def test_bulk_rows_hold_what_the_index_has_dead_latents_included(kind, tmp_path):
    index = small_index(kind)
    folder = write_neuronpedia(index, tmp_path / "out", batch_size=7, provenance=TEXTS) / "model-1" / "1-small-dictionary"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    heads = {f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")}
    assert names == heads | {f"{kind}/batch-{n}.jsonl.gz" for kind in ("features", "activations") for n in range(3)}
    features = [row for n in range(3) for row in rows_of(folder / f"features/batch-{n}.jsonl.gz")]
    assert [row["index"] for row in features] == [str(latent) for latent in range(index.d_sae)]
    for n in range(3):
        passages = rows_of(folder / f"activations/batch-{n}.jsonl.gz")
        for latent in range(7 * n, min(7 * n + 7, index.d_sae)):
            record, own = index.record(latent), [row for row in passages if row["index"] == str(latent)]
            check_groups(own, record, index, ("binMin", "binMax", "binContains"))
            for row in own:
                assert (row["maxValue"], row["minValue"]) == (max(row["values"]), min(row["values"]))
                assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
                assert (row["modelId"], row["layer"], row["dataSource"]) == ("model-1", "1-small-dictionary", "speeches")
            feature = features[latent]
            assert (feature["frac_nonzero"], feature["hookName"]) == (record.density, "blocks.1.hook_resid_post")
            assert same(feature["maxActApprox"], record.max)
            assert feature["topkCosSimIndices"] == [near.index for near in record.neighbours]
            assert same(feature["topkCosSimValues"], [near.cosine for near in record.neighbours])
            assert (feature["hasVector"], feature["vector"], feature["sourceSetName"]) == (False, [], "small-dictionary")
    ids = [row["id"] for n in range(3) for row in rows_of(folder / f"activations/batch-{n}.jsonl.gz")]
    assert len(set(ids)) == len(ids) > 100
    assert {len(name) for name in ids} == {25}


def test_bulk_head_rows_belong_together_and_state_licence_and_revision(tmp_path):
    creator = Creator(id="me", name="Somebody", url="https://example.org/x", created_at="2030-01-02T03:04:05Z")
    index = small_index("pursuit")
    folder = write_neuronpedia(index, tmp_path / "out", creator=creator, provenance=TEXTS) / "model-1" / "1-small-dictionary"
    heads = {name: json.loads((folder / f"{name}.jsonl").read_text()) for name in ("release", "model", "sourceset", "source")}
    assert heads["model"]["id"] == heads["sourceset"]["modelId"] == heads["source"]["modelId"] == "model-1"
    assert heads["source"]["setName"] == heads["sourceset"]["name"] == "small-dictionary"
    assert (heads["source"]["id"], heads["sourceset"]["releaseName"]) == ("1-small-dictionary", heads["release"]["name"])
    assert (heads["source"]["num_prompts"], heads["source"]["num_tokens_in_prompt"]) == (14, 16)
    assert "licence: public domain" in heads["source"]["notes"]
    assert "revision: abc123" in heads["source"]["notes"]
    assert {row["creatorId"] for row in heads.values()} == {"me"}
    assert {row["createdAt"] for row in heads.values()} == {"2030-01-02T03:04:05Z"}
    assert heads["release"]["urls"] == ["https://example.org/x"]


def test_labels_become_explanation_rows(tmp_path):
    labels = {4: [Explanation(text="a\x00b", method="oai_token-act-pair", model="m"), Explanation(text="mine")], 9: [Explanation(text="x")]}
    index = small_index("autoencoder")
    folder = write_neuronpedia(index, tmp_path / "out", explanations=labels, latents=[4, 5]) / "model" / "1-small-dictionary"
    rows = rows_of(folder / "explanations/batch-0.jsonl.gz")
    assert [(row["index"], row["description"], row["typeName"], row["explanationModelName"]) for row in rows] == [
        ("4", "a␀b", "oai_token-act-pair", "m"),
        ("4", "mine", None, None),
    ]
    with pytest.raises(ConfigError, match="explanations must be of latents"):
        write_neuronpedia(index, tmp_path / "other", explanations={20: [Explanation(text="x")]})


def test_no_text_of_the_peers_formats_holds_nul_or_half_a_surrogate(tmp_path):
    index = hostile_index("pursuit")
    evil = Provenance(dataset="\x00\ud800", licence="\x00")
    for name, write in (("dashboard", write_saedashboard), ("bulk", write_neuronpedia), ("upload", write_upload)):
        folder = write(index, tmp_path / name, provenance=evil)
        for file, data in content(folder).items():
            text = (gzip.decompress(data) if file.endswith(".gz") else data).decode("utf-8")
            if file != "manifest.json":
                assert "\\u0000" not in text
                assert "\\ud800" not in text.replace("\\\\ud800", "")


# --- Neuronpedia's public upload ---------------------------------------------------------------------------------------------------------


def requests_of(folder):
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("request-*.json"))]


@pytest.mark.parametrize("kind", KINDS)
def test_upload_requests_hold_what_the_index_has_and_leave_dead_latents_out(kind, tmp_path):
    index = small_index(kind)
    folder = write_upload(index, tmp_path / "out", batch_size=6, model_id="Mine", provenance=TEXTS)
    requests = requests_of(folder)
    assert {(request["modelId"], request["source"]) for request in requests} == {("mine", "1-small-dictionary")}
    features = [feature for request in requests for feature in request["features"]]
    assert [feature["index"] for feature in features] == active(index)
    assert max(len(request["features"]) for request in requests) == 6
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["facts"]["n_left_out"] == index.d_sae - len(active(index))
    for feature in features:
        record = index.record(feature["index"])
        assert feature["density"] == record.density
        assert [one["token"] for one in feature["topLogits"]] == [e.token for e in record.promoted]
        assert same([one["value"] for one in feature["bottomLogits"]], [e.effect for e in record.suppressed])
        top = [a for a in feature["activations"] if a["quantileFraction"] is None]
        assert [a["tokens"] for a in top] == [list(e.tokens) for e in record.examples]
        if record.signed:
            assert min(min(a["values"]) for a in feature["activations"]) == pytest.approx(record.min, rel=1e-6)


def test_the_official_client_would_send_the_same_request(tmp_path, monkeypatch):
    pytest.importorskip("neuronpedia")
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_explanation import Explanation as TheirExplanation
    from neuronpedia.np_feature import Feature, Logit
    from neuronpedia.requests.feature_request import FeatureRequest

    labels = {4: [Explanation(text="a label", method="oai_token-act-pair", model="m")]}
    (ours,) = requests_of(write_upload(small_index("pursuit"), tmp_path / "out", latents=[4, 5, 6], explanations=labels))
    sent = []
    monkeypatch.setattr(FeatureRequest, "__init__", lambda self: None)
    monkeypatch.setattr(FeatureRequest, "send_request", lambda self, **request: sent.append(request))
    own = {"modelId": ours["modelId"], "source": ours["source"]}
    features = []
    for feature in ours["features"]:
        mine = {**own, "index": feature["index"]}
        features.append(
            Feature(
                **mine,
                density=feature["density"],
                top_logits=[Logit(**logit) for logit in feature["topLogits"]],
                bottom_logits=[Logit(**logit) for logit in feature["bottomLogits"]],
                explanations=[
                    TheirExplanation(**mine, text=one["text"], method=one["methodName"], explainer_model=one["modelName"])
                    for one in feature["explanations"]
                ],
                activations=[Activation(**mine, **activation) for activation in feature["activations"]],
            )
        )
    FeatureRequest().upload_batch(ours["modelId"], ours["source"], features)
    assert sent == [{"method": "POST", "uri": "upload-batch", "json": ours}]


def good():
    passage = {"tokens": ["a", "b"], "values": [0.0, 1.5], "quantileMin": None, "quantileMax": None, "quantileFraction": None}
    feature = {"index": 3, "density": 0.25, "topLogits": [{"token": "a", "value": 1.0}], "bottomLogits": [], "explanations": []}
    return {"modelId": "gpt2-small", "source": "6-res", "features": [feature | {"activations": [passage]}]}


BAD = {
    "modelId": lambda r: r.update(modelId="GPT2"),
    "source": lambda r: r.update(source=""),
    "features must": lambda r: r.update(features=[]),
    r"features must be a list of 1\.\.128, got 129": lambda r: r.update(features=[r["features"][0] | {"index": i} for i in range(129)]),
    r"features\[1\]\.index must be different": lambda r: r.update(features=r["features"] * 2),
    r"features\[0\]\.index must be an integer in 0\.\.10000000, got 10000001": lambda r: r["features"][0].update(index=10_000_001),
    r"features\[0\]\.index": lambda r: r["features"][0].update(index=True),
    r"density must be a number in 0\.\.1, got 1\.5": lambda r: r["features"][0].update(density=1.5),
    "density": lambda r: r["features"][0].update(density=float("nan")),
    "topLogits": lambda r: r["features"][0].update(topLogits=[{"token": "a", "value": 1.0}] * 21),
    "bottomLogits": lambda r: r["features"][0].update(bottomLogits=[{"token": "a", "value": float("inf")}]),
    r"explanations\[0\]\.text must be of 1\.\.512": lambda r: r["features"][0].update(explanations=[{"text": "x" * 513}]),
    r"explanations\[0\]\.text": lambda r: r["features"][0].update(explanations=[{"text": ""}]),
    "activations must be a list of at least 1": lambda r: r["features"][0].update(activations=[]),
    r"tokens must be 1\.\.1024 and as many values, got '1025 and 1025'": lambda r: r["features"][0]["activations"][0].update(
        tokens=["a"] * 1025, values=[0] * 1025
    ),
    r"activations\[0\]\.tokens": lambda r: r["features"][0]["activations"][0].update(values=[1.0]),
    r"activations\[0\]\.values": lambda r: r["features"][0]["activations"][0].update(values=[1.0, float("nan")]),
    "quantileFraction": lambda r: r["features"][0]["activations"][0].update(quantileFraction=1.01),
}


@pytest.mark.parametrize("message", BAD)
def test_each_limit_of_an_upload_is_held(message):
    request = good()
    check_upload(request)
    BAD[message](request)
    with pytest.raises(ConfigError, match=message):
        check_upload(request)


def test_an_upload_holds_at_most_128_features_and_labels_that_are_too_long_are_refused(tmp_path):
    index = small_index("autoencoder")
    with pytest.raises(ConfigError, match=r"batch_size must be in 1\.\.128, got 129"):
        write_upload(index, tmp_path / "out", batch_size=129)
    with pytest.raises(ConfigError, match=r"text must be of 1\.\.512 characters"):
        write_upload(index, tmp_path / "out", latents=[4], explanations={4: [Explanation(text="x" * 513)]})
    assert list(tmp_path.iterdir()) == []


def test_logits_beyond_twenty_and_tokens_beyond_1024_are_cut_around_the_peak(tmp_path):
    from dataclasses import replace

    from sae.inspection.exports import neuronpedia_upload

    index = make_index(tmp_path / "index", "autoencoder")
    record = index.record(4)
    example = record.examples[0]
    for peak, start in ((0, 0), (1300, 1300 - 512), (2999, 3000 - 1024)):
        values = tuple(float(i) for i in range(3000))
        long = replace(example, tokens=tuple(map(str, range(3000))), values=values, peak=peak)
        found = neuronpedia_upload._passage(long)
        assert found["tokens"] == [str(i) for i in range(start, start + 1024)]
        assert found["values"] == list(values[start : start + 1024])
        assert start <= peak < start + 1024
    many = replace(record, promoted=record.promoted[:1] * 25)
    assert len(neuronpedia_upload._feature(many, {})["topLogits"]) == 20
