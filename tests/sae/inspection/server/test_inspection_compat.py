"""The official client of Neuronpedia, unmodified, reads features and activations from our server."""

import json
import warnings

import httpx
import pytest

from tests.sae.inspection.server.served import TOKEN, client, context_of, planted_indexes, serving

neuronpedia = pytest.importorskip("neuronpedia")

with warnings.catch_warnings():  # its models use arguments that pydantic calls deprecated
    warnings.simplefilter("ignore")
    from neuronpedia.np_feature import Feature
    from neuronpedia.requests.activation_request import ActivationRequest
    from neuronpedia.requests.base_request import NPRequest, NPUnauthorizedError
    from neuronpedia.requests.feature_request import FeatureRequest
    from neuronpedia.requests.sae_feature_request import SAEFeatureRequest
    from neuronpedia.requests.source_activation_request import SourceActivationRequest
    from neuronpedia.requests.topk_by_token_request import TopKByTokenRequest

MODEL = "model"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return planted_indexes(tmp_path_factory.mktemp("indexes"))


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "notes.sqlite"


@pytest.fixture(scope="module")
def context(indexes, notes):
    return context_of(indexes, notes=notes, token=TOKEN)


@pytest.fixture(scope="module")
def served(context):
    with serving(context) as url:
        yield url


@pytest.fixture
def official(served, monkeypatch):
    """The client of the package, pointed at our server with a key."""
    monkeypatch.setattr(NPRequest, "BASE_URL", f"{served}/api")
    monkeypatch.setenv("NEURONPEDIA_API_KEY", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def api(served):
    with httpx.Client(base_url=served, headers={"x-api-key": TOKEN}, trust_env=False) as found:
        yield found


@pytest.mark.parametrize(("source", "latent"), [("1-topk", 4), ("1-mp", 5), ("1-topk", 1)])
def test_the_official_client_reads_a_feature(official, indexes, context, source, latent):
    record = indexes[source[2:]].record(latent)
    context.notes.add_explanation(record.source.dictionary_digest, latent, "what it means", method="lexical", author="ours")
    feature = Feature.get(MODEL, source, latent)
    assert (feature.modelId, feature.source, int(feature.index)) == (MODEL, source, latent)
    assert feature.density == pytest.approx(record.density)
    assert feature.explanations[0].text == "what it means" and feature.explanations[0].method == "lexical"
    assert feature.explanations[0].explainer_model == "ours"
    passages = [*record.examples, *(e for i in record.intervals for e in i.examples), *(record.negative_examples if record.signed else ())]
    assert len(feature.activations) == len(passages)
    for found, example in zip(feature.activations, passages, strict=True):
        assert tuple(found.tokens) == example.tokens and found.values == pytest.approx(list(example.values))
    if record.alive:
        assert feature.activations[0].quantileMin == -1 and feature.activations[0].quantileMax == pytest.approx(record.max)
    raw = json.loads(SAEFeatureRequest().get(MODEL, source, str(latent)).jsonData)
    assert raw["pos_str"] == [e.token for e in record.promoted] and raw["freq_hist_data_bar_heights"] == (
        [float(n) for n in record.histogram.counts] if record.alive else []
    )


def test_the_official_client_computes_one_feature_on_texts(official, context):
    live = context.registry.get("topk").live
    row = live.encode(["one two"], masked=True)[0]
    latent = row.latents[1][0]
    one = ActivationRequest().compute_activation_for_text(MODEL, "1-topk", str(latent), "one two")
    dense = [dict(zip(row.latents[i], row.values[i], strict=True)).get(latent, 0.0) for i in range(3)]
    assert one.tokens == list(row.tokens) and one.values == pytest.approx(dense) and max(one.values) > 0
    many = ActivationRequest().compute_activation_for_texts(MODEL, "1-topk", latent, ["one two", "three"])
    assert many[0] == one or (many[0].tokens, many[0].values) == (one.tokens, one.values)
    assert many[1].tokens == ["<bos>", "three"]


def test_the_official_client_computes_all_features_on_texts(official, context):
    results = ActivationRequest().compute_all_source_activations_for_text(MODEL, "1-mp", ["one two", "three"])
    row = context.registry.get("mp").live.encode(["one two"])[0]
    expected = {(latent, place): value for place in range(3) for latent, value in zip(row.latents[place], row.values[place], strict=True)}
    found = {(int(i), place): value for i, pairs in results[0]["activeFeatures"].items() for place, value in pairs}
    assert found == pytest.approx(expected) and results[1]["tokens"] == ["<bos>", "three"]


def test_the_official_client_finds_the_strongest_features_of_texts(official, context):
    found = SourceActivationRequest().compute_top_features_for_text(MODEL, "1-topk", "one two", num_results=3)
    strengths = [max(map(abs, a.values)) for a in found]
    assert len(found) == 3 and strengths == sorted(strengths, reverse=True)
    assert all(a.tokens == ["<bos>", "one", "two"] and len(a.values) == 3 and a.source == "1-topk" for a in found)
    at_token = SourceActivationRequest().compute_top_features_for_text(
        MODEL, "1-topk", "one two", sort_results_by_activations_at_token_indexes=[2], num_results=1
    )
    row = context.registry.get("topk").live.encode(["one two"])[0]
    assert int(at_token[0].index) == max(zip(row.values[2], row.latents[2], strict=True), key=lambda pair: abs(pair[0]))[1]
    several = SourceActivationRequest().compute_top_features_for_texts(MODEL, "1-topk", ["one", "two three"], num_results=2)
    assert [len(text) for text in several] == [2, 2] and several[1][0].tokens == ["<bos>", "two", "three"]


def test_the_official_client_finds_the_strongest_features_of_each_token(official):
    found = TopKByTokenRequest().compute_top_features_by_token_for_text(MODEL, "1-topk", "one two", num_results=2)
    assert [(row.position, row.token) for row in found] == [(1, "one"), (2, "two")]
    assert all(len(row.topFeatures) <= 2 for row in found)
    values = [f.activationValue for f in found[0].topFeatures]
    assert values == sorted(values, key=abs, reverse=True)
    texts = TopKByTokenRequest().compute_top_features_by_token_for_texts(MODEL, "1-topk", ["one", "two"], ignore_bos=False)
    assert [row.token for row in texts[1]] == ["<bos>", "two"]


def test_density_thresholds_leave_dense_features_out(api, indexes, context):
    density = indexes["topk"].statistics.density
    body = {"modelId": MODEL, "sourceSet": "topk", "selectedLayers": ["1-topk"], "text": "one two three four", "densityThreshold": 0.2}
    found = api.post("/api/search-all/", json=body).json()["result"]
    assert all(density[int(row["index"])] <= 0.2 for row in found)
    unbounded = api.post("/api/search-all", json=body | {"densityThreshold": -1}).json()["result"]
    assert {row["index"] for row in found} == {row["index"] for row in unbounded if density[int(row["index"])] <= 0.2}
    whole = api.post("/api/search-all", json=body | {"selectedLayers": [], "densityThreshold": -1}).json()["result"]
    assert whole == unbounded


def test_a_wrong_key_is_the_clients_own_failure(served, monkeypatch):
    monkeypatch.setattr(NPRequest, "BASE_URL", f"{served}/api")
    with pytest.raises(NPUnauthorizedError):
        FeatureRequest(api_key="another-key").get(MODEL, "1-topk", 3)


def test_stored_activations_nearest_features_tokens_and_explanations(api, indexes, context):
    record = indexes["topk"].record(4)
    rows = api.post("/api/activation/get", json={"modelId": MODEL, "source": "1-topk", "index": "4"}).json()
    assert rows[0]["values"] == pytest.approx(list(record.examples[0].values))
    assert [row["maxValue"] for row in rows] == sorted((row["maxValue"] for row in rows), reverse=True)
    same = {"modelId": MODEL, "source": "1-topk", "index": 4, "targetModelId": MODEL, "targetSourceId": "1-topk"}
    nearest = api.post("/api/cossim", json=same).json()["topkDecoderCossimFeatures"]
    assert [(n["feature"]["index"], n["cosineSimilarity"]) for n in nearest] == [
        (n.index, pytest.approx(n.value)) for n in record.neighbours[:10]
    ]
    assert api.post("/api/cossim", json=same | {"targetSourceId": "1-mp"}).status_code == 404
    tokens = api.post("/api/tokenize", json={"modelId": MODEL, "prompt": "a b"}).json()
    assert tokens["tokenStrings"] == ["<bos>", "a", "b"] and tokens["prependBos"] is True
    bare = api.post("/api/tokenize", json={"modelId": MODEL, "prompt": "a b", "prependBos": False}).json()
    assert bare["tokenStrings"] == ["a", "b"] and bare["tokens"] == tokens["tokens"][1:]
    for i in range(25):
        context.notes.add_explanation(record.source.dictionary_digest, i % 20, f"Walrus {i}")
    body = {"modelId": MODEL, "layers": ["1-topk"], "query": "walrus"}
    first = api.post("/api/explanation/search", json=body).json()
    assert first["resultsCount"] == 20 and first["hasMore"] and first["nextOffset"] == 20
    rest = api.post("/api/explanation/search", json=body | {"offset": 20}).json()
    texts = [row["description"] for row in first["results"] + rest["results"]]
    assert sorted(texts) == sorted(f"Walrus {i}" for i in range(25)) and not rest["hasMore"]
    assert first["results"][0]["neuron"]["index"] == first["results"][0]["index"]


def test_compatible_routes_without_a_model_say_how_to_load_it(indexes):
    with client(context_of(indexes, live=False)) as plain:
        for path, body in {
            "/api/activation/new": {"feature": {"modelId": MODEL, "source": "1-topk", "index": "4"}, "customText": "a"},
            "/api/activation/source": {"modelId": MODEL, "source": "1-topk", "customText": "a"},
            "/api/search-all": {"modelId": MODEL, "sourceSet": "topk", "text": "a"},
            "/api/search-topk-by-token": {"modelId": MODEL, "source": "1-topk", "text": "a"},
            "/api/tokenize": {"modelId": MODEL, "prompt": "a"},
            "/api/steer": {"modelId": MODEL, "prompt": "a", "features": [{"modelId": MODEL, "layer": "1-topk", "index": 4, "strength": 2}]},
        }.items():
            answer = plain.post(path, json=body)
            assert answer.status_code == 409 and "--model" in answer.json()["message"], path
        assert plain.get(f"/api/feature/{MODEL}/1-topk/4").status_code == 200


def test_steering_answers_501_when_a_model_is_loaded(api):
    body = {"modelId": MODEL, "prompt": "a", "features": [{"modelId": MODEL, "layer": "1-topk", "index": 4, "strength": 2}]}
    answer = api.post("/api/steer", json=body)
    assert answer.status_code == 501 and "steer" in answer.json()["message"]
