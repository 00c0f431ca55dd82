"""What bad input gets: every row of the table, each with its status, the field that is wrong, and nothing done."""

import json
import socket

import httpx
import pytest

from sae.inspection.server.context import LIMITS
from tests.sae.inspection.server.served import LIMIT, client, context_of, planted_indexes

FEATURE = "/api/v1/sources/topk/features"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return planted_indexes(tmp_path_factory.mktemp("indexes"))


@pytest.fixture(scope="module")
def api(indexes, tmp_path_factory):
    with client(context_of(indexes, notes=tmp_path_factory.mktemp("state") / "notes.sqlite")) as found:
        yield found


def refused(answer, status, *, field=None):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status and problem["title"] and problem["detail"]
    assert "Traceback" not in answer.text and "/tests/" not in answer.text and "site-packages" not in answer.text
    if field is not None:
        assert problem["field"] == field
    return problem


@pytest.mark.parametrize("index", ["-1", "1e3", "NaN", "Infinity", "+3", "007", "0x10", "3.0", "٣", "%20", "3%00", "null", "9" * 31])
def test_an_index_that_is_no_plain_decimal_is_422(api, index):
    refused(api.get(f"{FEATURE}/{index}"), 422, field="index")


@pytest.mark.parametrize("index", ["20", "21", "65536", "9" * 18, "9" * 30])
def test_a_numeric_index_out_of_range_is_404(api, index):
    refused(api.get(f"{FEATURE}/{index}"), 404, field="index")


@pytest.mark.parametrize("part", ["examples", "histogram", "tokens", "logits", "neighbours", "explanations", "note", "html"])
def test_the_parts_of_a_feature_check_its_index_alike(api, part):
    refused(api.get(f"{FEATURE}/20/{part}"), 404, field="index")
    refused(api.get(f"{FEATURE}/1e3/{part}"), 422, field="index")


@pytest.mark.parametrize("name", ["absent", "..%2f..%2fetc%2fpasswd", "%2e%2e", "<script>", "a" * 500])
def test_an_unknown_source_is_404_and_lists_nothing_but_its_name(api, name):
    problem = refused(api.get(f"/api/v1/sources/{name}/features"), 404)
    assert "topk" not in json.dumps(problem) and "'mp'" not in json.dumps(problem)


def test_an_unknown_source_is_echoed_escaped_on_a_page(api):
    page = api.get("/s/<script>alert(1)<%2fscript>", headers={"accept": "text/html"})
    assert page.status_code == 404 and "<script>alert" not in page.text


def test_a_dead_feature_is_no_failure(api):
    for path in ("", "/examples", "/histogram", "/tokens", "/logits", "/neighbours"):
        assert api.get(f"{FEATURE}/1{path}").status_code == 200
    assert api.get(f"{FEATURE}/1").json()["alive"] is False


TEXTS = {"empty": "", "spaces": "   ", "lines": "\n\t\n", "nul": "a\x00b"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("path", ["encode", "contrast", "tokenize"])
def test_a_text_that_is_none_is_422_before_it_is_tokenised(api, path, text):
    bodies = {"encode": {"texts": [text]}, "contrast": {"a": ["a"], "b": [text]}, "tokenize": {"text": text}}
    where = "/api/v1/tokenize" if path == "tokenize" else f"/api/v1/sources/topk/{path}"
    refused(api.post(where, json=bodies[path]), 422)


@pytest.mark.parametrize("text", [b"\\ud800", b"a\\udfffb"])
def test_half_a_surrogate_pair_is_422(api, text):
    body = b'{"texts": ["' + text + b'"]}'
    refused(api.post("/api/v1/sources/topk/encode", content=body, headers={"content-type": "application/json"}), 422)


def test_ten_megabytes_are_413_before_they_are_parsed(api):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a" * 10_000_000]}), 413)


def test_a_long_text_within_the_body_limit_is_422(api):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a" * (LIMITS.text_characters + 1)]}), 422, field="texts.0")


def test_a_text_longer_than_the_context_says_how_long_it_is_and_the_limit(api):
    problem = refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["w " * 40]}), 422)
    assert problem["n_tokens"] == 41 and problem["limit"] == LIMIT


@pytest.mark.parametrize("value", [True, 1.0, "3", -1, None, [1]])
def test_a_feature_id_of_a_body_that_is_no_integer_is_422(api, value):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a"], "features": [value]}), 422)


def test_a_feature_id_of_a_body_beyond_the_dictionary_is_404(api):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a"], "features": [20]}), 404, field="features")


@pytest.mark.parametrize("top_k", [0, -1, 10**9, True, 2.0, "5"])
def test_top_k_outside_its_range_is_422(api, top_k):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a"], "top_k": top_k}), 422, field="top_k")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", "NaN"),
        ("strength", "Infinity"),
        ("strength", "1e300"),
        ("temperature", "-0.1"),
        ("temperature", "NaN"),
        ("n_tokens", "0"),
    ],
)
def test_numbers_that_are_not_finite_or_out_of_bounds_are_422(api, field, value):
    feature, body = {"source": '"topk"', "index": "3", "strength": "1"}, {"prompt": '"a"'}
    (feature if field == "strength" else body)[field] = value
    shown = ", ".join(f'"{name}": {text}' for name, text in feature.items())
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in body.items()) + f', "features": [{{{shown}}}]}}'
    answer = api.post("/api/v1/steer", content=text, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


@pytest.mark.parametrize("query", ["min_density=NaN", "max_density=inf", "min_max_act=1e999", "min_density=2"])
def test_numbers_of_an_address_are_finite_and_bounded(api, query):
    refused(api.get(f"{FEATURE}?{query}"), 422)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_another_content_type_is_415(api, kind):
    headers = {"content-type": kind} if kind else {}
    refused(api.post("/api/v1/sources/topk/encode", content=b'{"texts": ["a"]}', headers=headers), 415)


BROKEN = {"nothing": b"{", "words": b"texts", "deep": b'{"texts": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "bytes": b"\xff\xfe{}"}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_body_that_is_no_json_is_400(api, body):
    answer = api.post("/api/v1/sources/topk/encode", content=body, headers={"content-type": "application/json"})
    refused(answer, 422 if body is BROKEN["deep"] and answer.status_code == 422 else 400)


def test_of_duplicate_keys_the_last_counts(api):
    body = b'{"texts": ["first"], "texts": ["second"]}'
    answer = api.post("/api/v1/sources/topk/encode", content=body, headers={"content-type": "application/json"})
    assert answer.json()["items"][0]["tokens"] == ["<bos>", "second"]
    assert "duplicate keys" in api.get("/api/v1/openapi.json").json()["info"]["description"]


def test_an_unknown_field_is_422_and_ignored_by_the_compatible_routes(api):
    refused(api.post("/api/v1/sources/topk/encode", json={"texts": ["a"], "texst": 1}), 422, field="texst")
    model = api.get("/api/v1/sources/topk").json()["model_id"]
    body = {"modelId": model, "source": "1-topk", "customText": "a", "extra": 1}
    assert api.post("/api/activation/source", json=body).status_code == 200


@pytest.mark.parametrize("path", ["/sources", "/sources/topk", "/sources/topk/features/3", "/sources/topk/map", "/lists", "/capabilities"])
def test_an_unknown_parameter_of_an_address_is_422(api, path):
    refused(api.get(f"/api/v1{path}?limt=5"), 422, field="limt")


@pytest.mark.parametrize("cursor", ["x", "AAAA", "%00", "a" * 65, "AAAAAAAAAAAAAAAAAAAAAAAA", "../../etc", "é"])
def test_a_cursor_that_was_not_given_is_422(api, cursor):
    refused(api.get(f"{FEATURE}?cursor={cursor}"), 422, field="cursor")


def test_a_cursor_of_another_query_or_feature_is_422(api):
    cursor = api.get(f"{FEATURE}?limit=3&sort=max").json()["next_cursor"]
    assert api.get(f"{FEATURE}?limit=5&sort=max&cursor={cursor}").json()["items"][0]["index"] is not None
    refused(api.get(f"{FEATURE}?limit=3&sort=min&cursor={cursor}"), 422, field="cursor")
    refused(api.get(f"/api/v1/sources/mp/features?limit=3&sort=max&cursor={cursor}"), 422, field="cursor")
    passages = api.get(f"{FEATURE}/4/examples?limit=2").json()["next_cursor"]
    refused(api.get(f"{FEATURE}/5/examples?limit=2&cursor={passages}"), 422, field="cursor")


@pytest.mark.parametrize(
    "address",
    [
        "features?limit=201",
        "features?limit=0",
        "features?limit=1e2",
        "features/4/examples?limit=101",
        "features/4/examples?context=513",
        "features/4/tokens?limit=201",
        "features/4/neighbours?limit=257",
        "search?q=a&limit=201",
        "coactivation?features=" + ",".join(map(str, range(65))),
        "documents/5?limit=2049",
    ],
)
def test_more_than_the_limit_is_422_and_not_clamped(api, address):
    refused(api.get(f"/api/v1/sources/topk/{address}"), 422)


@pytest.mark.parametrize("body", [{"texts": ["a"] * 17}, {"texts": []}, {"texts": "a"}, {"texts": [1]}, {}])
def test_too_many_texts_or_none_are_422(api, body):
    refused(api.post("/api/v1/sources/topk/encode", json=body), 422)


@pytest.mark.parametrize("features", ["", "a", "1,,2", "-1", "1.5", "1e3"])
def test_a_list_of_features_holds_plain_integers(api, features):
    refused(api.get(f"/api/v1/sources/topk/coactivation?features={features}"), 422)


@pytest.mark.parametrize("document", ["999999", "9" * 25])
def test_a_document_that_is_not_there_is_404(api, document):
    refused(api.get(f"/api/v1/sources/topk/documents/{document}"), 404, field="document")


def test_another_method_is_405_and_another_address_404(api):
    refused(api.post("/api/v1/sources"), 405)
    refused(api.get("/api/v1/nothing"), 404)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a" * 129, "ü"])
def test_a_list_is_called_by_a_plain_name(api, name):
    answer = api.put(f"/api/v1/lists/{name}", json={"title": "x"})
    assert answer.status_code in (404, 405, 422)


def test_the_compatible_routes_fail_in_their_own_way(api):
    answer = api.get("/api/feature/absent/1-topk/3")
    assert answer.status_code == 404 and set(answer.json()) == {"error", "message"}
    answer = api.post("/api/activation/source", json={"modelId": "model"})
    assert answer.status_code == 422 and "source" in answer.json()["message"]
    assert api.get("/api/feature/model/1-topk/1e3").status_code == 422
    assert api.get("/api/feature/model/1-topk/20").status_code == 404


def test_a_full_queue_is_503_with_the_time_to_wait(indexes):
    import concurrent.futures

    with client(context_of(indexes, live_options={"seconds": 0.4}, queue=1)) as slow, concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: slow.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}), range(6)))
        busy = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503} and len(busy) == 4
        assert all(int(answer.headers["retry-after"]) > 0 for answer in busy)
        assert slow.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}).status_code == 200


def test_memory_that_ran_out_is_503_and_the_next_request_is_answered(indexes):
    context = context_of(indexes, live_options={"error": MemoryError()})
    with client(context) as short:
        refused(short.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}), 503)
        context.registry.get("topk").live.error = None
        assert short.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}).status_code == 200


def test_too_long_a_computation_is_504_and_its_place_is_free_again(indexes):
    context = context_of(indexes, live_options={"seconds": 0.5}, compute_seconds=0.1)
    with client(context) as slow:
        refused(slow.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}), 504)
        context.registry.get("topk").live.seconds = 0.0
        for _ in range(40):
            if slow.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}).status_code == 200:
                break
        else:
            pytest.fail("the place was not free again")


def test_a_client_that_leaves_gives_its_place_up(indexes):
    context = context_of(indexes, live_options={"seconds": 0.6}, queue=4)
    live = context.registry.get("topk").live
    with client(context) as slow:
        url = httpx.URL(str(slow.base_url))
        body = b'{"texts": ["a"]}'
        head = f"POST /api/v1/sources/topk/encode HTTP/1.1\r\nHost: {url.netloc.decode()}\r\nContent-Type: application/json\r\n"
        for _ in range(3):  # the first runs, two wait; all leave
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert slow.post("/api/v1/sources/topk/encode", json={"texts": ["a"]}).status_code == 200
        assert live.n_calls <= 2
