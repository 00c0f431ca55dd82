"""The API against the index and dense oracles: every route answers what brute force finds."""

import gzip
import io
import json
import zipfile

import httpx
import numpy as np
import pytest

from sae.fingerprint import to_json
from sae.inspection.exports.json_records import read_json_records
from sae.inspection.server.notes import Notes
from sae.inspection.server.representation import KEPT_BYTES, Kept, Shelf
from sae.storage import Key, ResultCache, write_json
from tests.sae.inspection.server.served import client, context_of, dense, planted_indexes


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return planted_indexes(tmp_path_factory.mktemp("indexes"))


@pytest.fixture(scope="module")
def api(indexes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    results = ResultCache(folder / "results")
    results.build(Key("geometry.atoms", 2, {"k": 3}, {"dictionary": "ab"}), lambda f: write_json(f / "value.json", {"rank": 4.5}))
    results.build(Key("probes.sweep", 1, {"c": 1.0}, {}), lambda f: write_json(f / "scores.json", [0.5, 0.75]))
    results.build(Key("evaluation.fvu", 1, {}, {}), lambda f: write_json(f / "value.json", 1))
    with client(context_of(indexes, notes=folder / "notes.sqlite", results=results)) as found:
        yield found


def get(api, path, status=200, **query):
    answer = api.get(f"/api/v1{path}", params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_health_and_capabilities_say_what_there_is(api):
    assert api.get("/healthz").json() == {"status": "ok"}
    can = get(api, "/capabilities")
    assert can["encode"] == ["topk", "mp"] and can["model_loaded"] and not can["steer"]
    assert can["notes"] and can["results"]
    assert can["limits"]["page"] == 200 and can["failures"] == {"broken": "manifest.json is missing"}


def test_a_source_says_what_it_is_made_of(api, indexes):
    found = get(api, "/sources")["items"]
    assert [source["name"] for source in found] == ["topk", "mp"]
    about = indexes["mp"].manifest.source
    mp = get(api, "/sources/mp")
    assert mp == found[1]
    assert mp["kind"] == "coefficient" and mp["n_steps"] == 5 and mp["digests"]["dictionary"] == about.dictionary_digest
    assert mp["n_alive"] == int((indexes["mp"].statistics.n_active > 0).sum())
    assert mp["mean_active"] == pytest.approx((dense(indexes["mp"]) != 0).sum() / about.n_tokens)
    assert mp["source_id"] == "1-mp"


def test_a_card_is_the_record(api, indexes):
    for name, index in indexes.items():
        for latent in (0, 5, 19):
            card, record = get(api, f"/sources/{name}/features/{latent}"), index.record(latent)
            assert {key: card[key] for key in to_json(record)} == json.loads(json.dumps(to_json(record)))
            assert card["alive"] == record.alive and card["source_name"] == name and card["label"] is None


def test_a_dead_feature_is_answered_as_dead(api):
    card = get(api, "/sources/topk/features/1")
    assert card["alive"] is False and card["n_active"] == 0 and card["examples"] == []


def test_the_card_is_a_fragment_for_those_who_accept_html_only(api, indexes):
    page = api.get("/api/v1/sources/mp/features/5", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html") and "Accept" in page.headers["vary"]
    assert page.text == indexes["mp"][5].html() == api.get("/api/v1/sources/mp/features/5/html").text
    assert "<script" not in page.text and "&lt;script&gt;" in page.text


@pytest.mark.parametrize(
    "sort", ["index", "density", "n_active", "n_documents", "max", "min", "mean", "token_bits", "next_bits", "telling"]
)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_the_table_is_sorted_over_all_pages(api, indexes, sort, order):
    rows, cursor = [], {}
    while True:
        page = get(api, "/sources/topk/features", sort=sort, order=order, limit=7, **cursor)
        rows += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(rows) == page["total"] == 20
    value = (lambda row: row["token_bits"] + row["next_bits"]) if sort == "telling" else (lambda row: row[sort])
    keys = [((value(row) if order == "asc" else -value(row)), row["index"]) for row in rows]
    assert keys == sorted(keys)
    statistics = indexes["topk"].statistics
    assert all(row["density"] == pytest.approx(float(statistics.density[row["index"]])) for row in rows)


def test_the_table_is_filtered_by_numbers_tokens_and_labels(api, indexes):
    s, texts = indexes["topk"].statistics, indexes["topk"].texts

    def ids(**query):
        return [row["index"] for row in get(api, "/sources/topk/features", limit=200, **query)["items"]]

    assert ids(alive="false") == np.flatnonzero(s.n_active == 0).tolist()
    assert ids(min_density=0.1, max_density=0.5) == np.flatnonzero((s.density >= 0.1) & (s.density <= 0.5)).tolist()
    middle = float(np.median(s.max))
    assert ids(min_max_act=middle) == np.flatnonzero(s.max >= middle).tolist()
    assert ids(max_max_act=middle) == np.flatnonzero(s.max <= middle).tolist()
    assert ids(max_max_act=1e300) == ids(min_max_act=-1e300) == list(range(20)) and ids(min_max_act=1e300) == []
    assert ids(token=" W1") == [i for i, t in enumerate(s.leading_token.tolist()) if t >= 0 and " w1" in texts[t]]
    api.post("/api/v1/sources/topk/features/7/explanations", json={"text": "Months of the Year"}).raise_for_status()
    assert ids(label="months") == [7] and ids(label="absent") == []
    page = get(api, "/sources/topk/features", label="months")
    assert page["items"][0]["label"] == "Months of the Year"
    number = get(api, "/sources/topk/features/7/explanations")["items"][0]["id"]
    assert api.delete(f"/api/v1/explanations/{number}").status_code == 204


@pytest.mark.parametrize("name", ["topk", "mp"])
@pytest.mark.parametrize("group", ["top", "bottom"])
def test_examples_without_dedup_are_all_values_of_that_sign_in_order(api, indexes, name, group):
    index, latent = indexes[name], 5
    values = dense(index)[latent]
    expected = np.sort(values[values > 0])[::-1] if group == "top" else np.sort(values[values < 0])
    found, cursor = [], {}
    while True:
        page = get(api, f"/sources/{name}/features/{latent}/examples", group=group, dedup="false", context=2, limit=13, **cursor)
        found += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert page["total"] == len(expected) == len(found)
    peaks = [item["example"]["values"][item["example"]["peak"]] for item in found]
    assert peaks == pytest.approx(expected.tolist())
    for item in found[:20]:
        e = item["example"]
        token = e["row"] * index.table.context + e["position"]
        start, stop = index.table.window(token, 2, 2)
        assert e["values"] == pytest.approx(values[start:stop].tolist())
        assert e["tokens"] == [index.texts[i] for i in index.table.ids.reshape(-1)[start:stop]]


def test_examples_with_dedup_go_on_past_the_card_one_a_document(api, indexes):
    first = get(api, "/sources/topk/features/4/examples", limit=5)
    rest = get(api, "/sources/topk/features/4/examples", limit=5, cursor=first["next_cursor"])
    documents = [item["example"]["document"] for item in first["items"] + rest["items"]]
    assert len(set(documents)) == len(documents) == 10
    record = indexes["topk"].record(4)
    assert [e["document"] for e in (item["example"] for item in first["items"])] == [e.document for e in record.examples[:5]]
    assert first["total"] is None


@pytest.mark.parametrize("group", ["interval", "random", "near_miss"])
def test_stored_groups_are_those_of_the_record_and_can_be_widened(api, indexes, group):
    record = indexes["topk"].record(4)
    stored = {
        "interval": [(e, i.low, i.high) for i in record.intervals for e in i.examples],
        "random": [(e, None, None) for e in record.random_examples],
        "near_miss": [(e, None, None) for e in record.near_miss_examples],
    }[group]
    page = get(api, "/sources/topk/features/4/examples", group=group, limit=100)
    assert [(i["example"], i["low"], i["high"]) for i in page["items"]] == [
        (json.loads(json.dumps(to_json(e))), a, b) for e, a, b in stored
    ]
    assert page["total"] == len(stored) and page["definition"]
    narrow = get(api, "/sources/topk/features/4/examples", group=group, context=0, limit=100)["items"]
    assert all(len(item["example"]["tokens"]) == 1 for item in narrow)
    assert [i["example"]["values"] for i in narrow] == [[pytest.approx(e.value)] for e, _, _ in stored]


def test_histogram_and_logits_are_those_of_the_record(api, indexes):
    record = indexes["mp"].record(5)
    histogram = get(api, "/sources/mp/features/5/histogram")
    assert histogram["edges"] == list(record.histogram.edges) and histogram["steps"] == list(record.steps)
    assert histogram["quantiles"] == dict(record.quantiles) and sum(histogram["counts"]) == record.n_active
    logits = get(api, "/sources/topk/features/5/logits")
    assert [e["token"] for e in logits["promoted"]] == [e.token for e in indexes["topk"].record(5).promoted] != []
    assert logits["convention"] == indexes["topk"].manifest.source.effects_convention


@pytest.mark.parametrize("by", ["mass", "max", "precision"])
def test_driving_tokens_are_ranked_over_all_firings(api, indexes, by):
    index, values = indexes["mp"], dense(indexes["mp"])[5]
    ids, used = index.table.ids.reshape(-1), np.concatenate([index.entries(i).ids for i in range(index.d_sae)])
    found = get(api, "/sources/mp/features/5/tokens", by=by, limit=200)
    assert found["complete"]
    oracle = {}
    for token in np.unique(ids[values != 0]).tolist():
        own = values[(ids == token) & (values != 0)]
        oracle[token] = {"mass": float(np.abs(own).sum()), "n_active": len(own), "max": float(own[np.argmax(np.abs(own))])}
    assert {row["token_id"] for row in found["items"]} == set(oracle)
    for row in found["items"]:
        for key, expected in oracle[row["token_id"]].items():
            assert row[key] == pytest.approx(expected, rel=1e-5), key
        assert row["precision"] == row["n_active"] / row["n_occurrences"]
        assert row["n_active"] <= row["n_occurrences"] and row["token_id"] in ids[used]
    ranks = [abs(row[by]) for row in found["items"]]
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("by", ["decoder_cosine", "encoder_cosine", "coactivation", "correlation"])
def test_neighbours_are_those_of_the_record(api, indexes, by):
    record = indexes["topk"].record(4)
    found = get(api, "/sources/topk/features/4/neighbours", by=by, limit=3)
    expected = record.neighbours if by == "decoder_cosine" else record.related.get(by, ())
    assert [row["index"] for row in found["items"]] == [n.index for n in expected[:3]]
    assert found["stored"] == len(expected) > 0 and found["definition"]


def test_a_seed_decides_the_random_feature_and_it_is_always_alive(api, indexes):
    drawn = {get(api, "/sources/topk/random", seed=seed)["index"] for seed in range(40)}
    alive = set(np.flatnonzero(indexes["topk"].statistics.n_active).tolist())
    assert drawn <= alive and len(drawn) > 5
    assert get(api, "/sources/topk/random", seed=3) == get(api, "/sources/topk/random", seed=3)
    assert api.get("/api/v1/sources/topk/random").headers["cache-control"] == "no-store"


def test_coactivation_counts_joint_firings(api, indexes):
    fires = dense(indexes["topk"]) != 0
    found = get(api, "/sources/topk/coactivation", features="3,4,5,1", columns=["4", "6"])
    assert found["n_together"] == [[int((fires[a] & fires[b]).sum()) for b in (4, 6)] for a in (3, 4, 5, 1)]
    used = np.flatnonzero(dense(indexes["topk"]).any(0))
    n = indexes["topk"].n_tokens
    a, b = fires[3], fires[4]
    phi = (n * (a & b).sum() - a.sum() * b.sum()) / np.sqrt(float(a.sum()) * (n - a.sum()) * b.sum() * (n - b.sum()))
    assert found["phi"][0][0] == pytest.approx(float(phi)) and found["phi"][3] == [None, None]
    assert found["n_active"]["4"] == int(fires[4].sum()) and len(used) <= n
    assert get(api, "/sources/topk/coactivation", features="3,4")["columns"] == [3, 4]


def test_the_map_has_a_place_for_features_with_their_density(api, indexes):
    found, index = get(api, "/sources/topk/map"), indexes["topk"]
    assert found["ids"] == np.asarray(index.map.ids).tolist() and len(found["x"]) == len(found["y"]) == len(found["ids"])
    assert found["density"] == pytest.approx(index.statistics.density[np.asarray(index.map.ids)].tolist())
    assert found["method"]


@pytest.mark.parametrize("name", ["topk", "mp"])
def test_a_document_is_its_tokens_with_all_that_fires(api, indexes, name):
    index, values = indexes[name], dense(indexes[name])
    for document in np.asarray(index.document_ids).tolist()[:6]:
        places = np.flatnonzero(index.table.documents.reshape(-1) == document)
        found = get(api, f"/sources/{name}/documents/{document}")
        assert found["tokens"] == [index.texts[i] for i in index.table.ids.reshape(-1)[places]] and found["n_tokens"] == len(places)
        rebuilt = np.zeros((index.d_sae, len(places)), np.float32)
        for latent, pairs in found["active"].items():
            for place, value in pairs:
                rebuilt[int(latent), place] = value
        np.testing.assert_allclose(rebuilt, values[:, places])
        assert (found["steps"] is None) == (name == "topk")
        part = get(api, f"/sources/{name}/documents/{document}", start=1, limit=2)
        assert part["tokens"] == found["tokens"][1:3]
        assert part["active"] == {i: kept for i, pairs in found["active"].items() if (kept := [[p - 1, v] for p, v in pairs if 1 <= p < 3])}


def test_search_finds_tokens_labels_and_notes(api):
    by_token = get(api, "/sources/topk/search", q="w3")
    assert by_token["items"] and any(m["kind"] in ("driving", "promoted") for m in by_token["items"][0]["matches"])
    made = api.post("/api/v1/sources/topk/features/9/explanations", json={"text": "zebra crossings"}).json()
    api.put("/api/v1/sources/topk/features/8/note", json={"text": "not a zebra"}).raise_for_status()
    found = get(api, "/sources/topk/search", q="zebra")
    assert [row["index"] for row in found["items"]] == [9, 8] and found["n_found"] == 2
    assert found["items"][0]["label"] == "zebra crossings" and found["items"][1]["matches"][0]["kind"] == "note"
    assert get(api, "/sources/topk/search", q="#4")["items"][0]["index"] == 4
    assert get(api, "/sources/mp/search", q="zebra")["items"] == []
    api.delete(f"/api/v1/explanations/{made['id']}")
    api.delete("/api/v1/sources/topk/features/8/note")


def test_encode_is_sparse_and_says_what_fires_where(api):
    answer = api.post("/api/v1/sources/mp/encode", json={"texts": ["one two", "three"], "per_token": True}).json()
    first = answer["items"][0]
    assert first["tokens"] == ["<bos>", "one", "two"] and first["is_special"] == [True, False, False]
    expected = {}
    for place, i in enumerate(first["token_ids"][1:], start=1):
        for latent, value in ((i % 20, 1.5 + i / 100), ((i + 7) % 20, 0.5), ((i + 11) % 20, -0.25)):
            expected.setdefault(str(latent), []).append([place, value])
    assert first["active"] == expected and first["steps"].keys() == expected.keys()
    assert first["per_token"][0] == [] and first["per_token"][1][0][1] > first["per_token"][1][1][1]
    strengths = [max(abs(v) for _, v in pairs) for pairs in first["active"].values()]
    assert strengths == sorted(strengths, reverse=True)
    masked = api.post("/api/v1/sources/mp/encode", json={"texts": ["one"], "ignore_special": False, "top_k": 1}).json()["items"][0]
    assert sum(len(pairs) for pairs in masked["active"].values()) == 2
    only = api.post("/api/v1/sources/mp/encode", json={"texts": ["one two"], "features": [3]}).json()["items"][0]
    assert set(only["active"]) <= {"3"} and only["per_token"] is None


def test_contrast_and_tokenize_answer_with_a_model(api):
    answer = api.post("/api/v1/sources/topk/contrast", json={"a": ["x y"], "b": ["z"], "n": 2}).json()
    assert [row["index"] for row in answer["items"]] == [0, 1] and answer["items"][0]["auc"] == 1.0
    tokens = api.post("/api/v1/tokenize", json={"text": "a b"}).json()
    assert tokens["tokens"] == ["<bos>", "a", "b"] and tokens["bos"] == "<bos>" and tokens["n_opening"] == 1 and tokens["limit"] == 16


def test_without_a_model_the_answer_is_409_with_the_command(indexes):
    with client(context_of(indexes, live=False)) as plain:
        bodies = {
            "/api/v1/sources/topk/encode": {"texts": ["a"]},
            "/api/v1/sources/topk/contrast": {"a": ["a"], "b": ["b"]},
            "/api/v1/tokenize": {"text": "a"},
            "/api/v1/steer": {"prompt": "a", "features": [{"source": "topk", "index": 3, "strength": 1}]},
        }
        for path, body in bodies.items():
            answer = plain.post(path, json=body)
            assert answer.status_code == 409 and answer.json()["command"].startswith("sae serve INDEX --model")
        assert plain.get("/api/v1/capabilities").json()["model_loaded"] is False


def test_steering_is_not_there_and_says_so(api):
    answer = api.post("/api/v1/steer", json={"prompt": "a", "features": [{"source": "topk", "index": 3, "strength": 1}]})
    assert answer.status_code == 501 and "does not steer" in answer.json()["detail"]


def test_explanations_scores_and_the_label_they_give(api):
    path = "/api/v1/sources/mp/features/3"
    machine = api.post(f"{path}/explanations", json={"text": "by a program", "method": "lexical", "author": "index"})
    assert machine.status_code == 201
    assert api.get(path).json()["label"] == "by a program"
    person = api.post(f"{path}/explanations", json={"text": "by a person"}).json()
    api.post(f"{path}/explanations", json={"text": "by a program again", "method": "lexical"})
    assert api.get(path).json()["label"] == "by a person"
    scored = api.post(f"/api/v1/explanations/{person['id']}/scores", json={"method": "detection", "value": 0.75, "details": {"n": 40}})
    assert scored.status_code == 201
    found = api.get(f"{path}/explanations").json()["items"]
    assert [e["text"] for e in found] == ["by a program again", "by a person", "by a program"]
    assert found[1]["scores"][0]["value"] == 0.75 and found[1]["scores"][0]["details"] == {"n": 40}
    for explanation in found:
        assert api.delete(f"/api/v1/explanations/{explanation['id']}").status_code == 204
    assert api.delete(f"/api/v1/explanations/{person['id']}").status_code == 404
    assert api.get(path).json()["label"] is None


def test_notes_and_lists_are_written_read_and_removed(api):
    path = "/api/v1/sources/mp/features/3/note"
    assert api.get(path).status_code == 404
    assert api.put(path, json={"text": "look again"}).status_code == 204
    assert api.get(path).json()["text"] == "look again"
    assert api.delete(path).status_code == 204 and api.delete(path).status_code == 404
    items = [{"source": "mp", "index": 3, "comment": "odd"}, {"source": "topk", "index": 4}]
    assert api.put("/api/v1/lists/mine", json={"title": "Mine", "items": items}).status_code == 204
    found = api.get("/api/v1/lists/mine").json()
    assert [(i["source"], i["index"], i["comment"]) for i in found["items"]] == [("mp", 3, "odd"), ("topk", 4, "")]
    assert [found] == api.get("/api/v1/lists").json()["items"]
    assert api.delete("/api/v1/lists/mine").status_code == 204 and api.get("/api/v1/lists/mine").status_code == 404


def test_without_a_file_of_notes_nothing_can_be_written_and_reading_is_empty(indexes):
    with client(context_of(indexes)) as plain:
        assert plain.get("/api/v1/lists").json() == {"items": []}
        assert plain.get("/api/v1/sources/mp/features/3/explanations").json() == {"items": []}
        for answer in (
            plain.post("/api/v1/sources/mp/features/3/explanations", json={"text": "x"}),
            plain.put("/api/v1/sources/mp/features/3/note", json={"text": "x"}),
            plain.put("/api/v1/lists/mine", json={"title": "x"}),
        ):
            assert answer.status_code == 409 and "--notes" in answer.json()["detail"]


@pytest.mark.parametrize("format", ["json", "html", "neuronpedia", "saedashboard"])
def test_an_export_is_the_zip_of_what_the_library_writes(api, format, tmp_path):
    answer = api.get("/api/v1/sources/topk/export", params={"format": format, "features": "4,7"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert "topk/manifest.json" in names
    if format == "json":
        assert [record.index for record in read_json_records(tmp_path / "topk")] == [4, 7]


def test_results_of_probes_and_geometry_are_listed_newest_first_and_described(api):
    page = get(api, "/runs")
    assert {row["function"] for row in page["items"]} == {"geometry.atoms", "probes.sweep"} and page["total"] == 2
    assert [row["function"] for row in get(api, "/runs", kind="probes")["items"]] == ["probes.sweep"]
    number = next(row["id"] for row in page["items"] if row["function"] == "geometry.atoms")
    run = get(api, f"/runs/{number}")
    assert run["config"] == {"k": 3} and run["inputs"] == {"dictionary": "ab"} and run["version"] == 2
    assert run["files"][0]["name"] == "value.json" and run["files"][0]["value"] == {"rank": 4.5}
    assert api.get("/api/v1/runs/" + "0" * 24).status_code == 404


READS = [
    "/api/v1/sources",
    "/api/v1/sources/topk/features",
    "/api/v1/sources/topk/features/4",
    "/api/v1/sources/topk/map",
    "/api/v1/runs",
    "/",
]


@pytest.mark.parametrize("path", READS)
def test_a_read_has_the_hash_of_its_content_as_etag_and_is_not_sent_twice(api, path):
    plain = api.get(path, headers={"accept-encoding": "identity"})
    packed = api.get(path, headers={"accept-encoding": "gzip"})
    assert plain.status_code == 200 and plain.headers["etag"].strip('"') in packed.headers["etag"]
    assert plain.content == packed.content
    for first in (plain, packed):
        again = api.get(path, headers={"if-none-match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b"" and "etag" in again.headers
    assert api.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_long_reads_are_compressed(api):
    with (
        httpx.Client(base_url=api.base_url, trust_env=False) as raw,
        raw.stream("GET", "/api/v1/sources/topk/features/4", headers={"accept-encoding": "gzip"}) as answer,
    ):
        body = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip" and int(answer.headers["content-length"]) == len(body)
        assert "Accept-Encoding" in answer.headers["vary"]
    assert json.loads(gzip.decompress(body))["index"] == 4


def test_a_label_changes_the_etag_of_what_shows_it(api):
    path = "/api/v1/sources/topk/features/6"
    before = api.get(path).headers["etag"]
    made = api.post(f"{path}/explanations", json={"text": "new"}).json()
    assert api.get(path).headers["etag"] != before
    api.delete(f"/api/v1/explanations/{made['id']}")
    assert api.get(path).headers["etag"] == before


def test_an_answer_is_made_once_until_something_is_written(indexes, tmp_path, monkeypatch):
    made = []
    index = indexes["topk"]
    monkeypatch.setattr(type(index.reader), "record", counted(type(index.reader).record, made))
    context = context_of(indexes, notes=tmp_path / "n.sqlite")
    with client(context) as api:
        path = "/api/v1/sources/topk/features/6"
        first = api.get(path)
        again = api.get(path)
        assert again.content == first.content and {**again.headers, "date": ""} == {**first.headers, "date": ""}
        assert len(made) == 1
        assert api.get(path, headers={"accept": "text/html"}).headers["content-type"].startswith("text/html") and len(made) == 2
        assert api.get(path, headers={"accept-encoding": "identity"}).content == first.content and len(made) == 3
        Notes.open(tmp_path / "n.sqlite").add_explanation(context.registry.get("topk").dictionary, 6, "by another process")
        assert api.get(path).json()["label"] == "by another process" and len(made) == 4
        assert (
            api.get("/api/v1/sources/topk/random").json() and api.get("/api/v1/sources/topk/random").headers["cache-control"] == "no-store"
        )


def counted(function, made):
    def record(*arguments, **options):
        made.append(1)
        return function(*arguments, **options)

    return record


def test_kept_answers_take_no_more_than_their_share():
    shelf = Shelf(str)
    for number in range(400):
        shelf.keep((number % 350,), Kept("", {}, bytes(100_000), "x"))
        assert shelf.n_bytes == sum(len(kept.body) for kept in shelf.answers.values()) <= KEPT_BYTES
    assert shelf.find((49,), "") is not None and shelf.find((49,), "other") is None and shelf.find((200,), "") is None
    shelf.keep(("large",), Kept("", {}, bytes(KEPT_BYTES // 8), "x"))
    assert shelf.find(("large",), "") is None
