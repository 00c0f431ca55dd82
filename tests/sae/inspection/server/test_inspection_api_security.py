"""What a local server owes its machine: every row of the table as a test."""

import ast
import gzip
import json
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sae.errors import ConfigError
from sae.inspection.server.context import ServerSettings
from sae.inspection.server.security import check_host, cookie_name
from tests.sae.inspection.planted_store import HOSTILE
from tests.sae.inspection.server.served import TOKEN, client, context_of, planted_indexes

ENCODE, BODY = "/api/v1/sources/topk/encode", {"texts": ["a"]}
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return planted_indexes(tmp_path_factory.mktemp("indexes"))


@pytest.fixture(scope="module")
def api(indexes, tmp_path_factory):
    with client(context_of(indexes, notes=tmp_path_factory.mktemp("state") / "notes.sqlite")) as found:
        yield found


@pytest.fixture(scope="module")
def locked(indexes):
    with client(context_of(indexes, token=TOKEN)) as found:
        yield found


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host):
    with pytest.raises(ConfigError, match="needs a token"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, token=TOKEN).token == TOKEN
    assert ServerSettings().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8400", "[::1]", "[::1]:9", "127.0.0.1:65535"])
def test_names_of_this_machine_are_answered(api, host):
    assert api.get("/api/v1/sources", headers={"host": host}).status_code == 200


FOREIGN = ["evil.com", "127.0.0.1.evil.com", "evil.com:8400", "", "127.0.0.1@evil.com", "localhost.", "[::2]", "0.0.0.0", "127.1", "a b"]


@pytest.mark.parametrize("host", FOREIGN)
@pytest.mark.parametrize("path", ["/", "/api/v1/sources", "/healthz", "/assets/report.css", "/nothing"])
def test_any_other_host_is_refused_before_anything_is_routed(api, host, path):
    answer = api.get(path, headers={"host": host})
    assert answer.status_code == 400 and "topk" not in answer.text


def test_two_hosts_or_none_are_refused():
    for found in ([], ["127.0.0.1", "evil.com"], ["localhost", "localhost"]):
        with pytest.raises(ValueError, match="does not answer for the host"):
            check_host(found, ["127.0.0.1", "localhost"])


CROSS = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "null"},
    {"origin": "http://evil.com"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "https://localhost.evil.com"},
]


@pytest.mark.parametrize("headers", CROSS, ids=[" ".join(h.values()) for h in CROSS])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_page_of_another_site_can_neither_compute_nor_write(api, headers, method):
    path = {"POST": ENCODE, "PUT": "/api/v1/lists/x", "DELETE": "/api/v1/lists/x"}[method]
    answer = api.request(method, path, json=BODY if method == "POST" else {"title": "x"}, headers=headers)
    assert answer.status_code == 403


@pytest.mark.parametrize("headers", CROSS[:3], ids=[" ".join(h.values()) for h in CROSS[:3]])
def test_a_get_that_computes_is_checked_alike(api, headers):
    assert api.get("/api/v1/sources/topk/export?format=json&features=4", headers=headers).status_code == 403


def test_the_servers_own_pages_and_programs_are_let_through(api):
    own = str(api.base_url).rstrip("/")
    for headers in ({"sec-fetch-site": "same-origin", "origin": "null"}, {"sec-fetch-site": "none"}, {"origin": own}, {}):
        assert api.post(ENCODE, json=BODY, headers=headers).status_code == 200


def test_a_form_of_another_site_cannot_speak_json(api):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert api.post(ENCODE, content=json.dumps(BODY), headers={"content-type": kind}).status_code == 415


def test_no_site_may_read_unless_it_is_allowed(api, indexes):
    answer = api.get("/api/v1/sources", headers={"origin": "http://evil.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"origin": "http://evil.com", "access-control-request-method": "POST"}
    assert api.request("OPTIONS", ENCODE, headers=preflight).status_code in (403, 405)
    with client(context_of(indexes, token=TOKEN, origins=("https://lab.example",))) as open_:
        allowed = preflight | {"origin": "https://lab.example"}
        answer = open_.request("OPTIONS", ENCODE, headers=allowed)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == "https://lab.example"
        bearer = {"origin": "https://lab.example", "sec-fetch-site": "cross-site", "authorization": f"Bearer {TOKEN}"}
        assert open_.post(ENCODE, json=BODY, headers=bearer).status_code == 200
        assert open_.post(ENCODE, json=BODY, headers={"origin": "https://lab.example"}).status_code == 401
        assert open_.post(ENCODE, json=BODY, headers=bearer | {"origin": "https://other.example"}).status_code == 403


SHOWN = [{"authorization": f"Bearer {TOKEN}"}, {"x-api-key": TOKEN}, {"x-secret-key": TOKEN}, {"cookie": f"{cookie_name(TOKEN)}={TOKEN}"}]


@pytest.mark.parametrize("headers", SHOWN, ids=["bearer", "x-api-key", "x-secret-key", "cookie"])
@pytest.mark.parametrize("path", ["/api/v1/sources", "/", "/api/feature/model/1-topk/4", "/api/v1/openapi.json"])
def test_the_token_is_asked_for_everywhere_and_taken_in_four_ways(locked, headers, path):
    assert locked.get(path).status_code == 401
    assert locked.get(path, headers=headers).status_code == 200
    assert locked.get("/healthz").status_code == 200


@pytest.mark.parametrize("wrong", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 8])
def test_a_wrong_token_is_401(locked, wrong):
    for headers in (
        {"authorization": (b"Bearer " + wrong.encode()).strip()},
        {"x-api-key": wrong.encode()},
        {"authorization": (b"Basic " + TOKEN.encode())},
    ):
        answer = locked.get("/api/v1/sources", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text


def test_the_printed_address_becomes_a_cookie_that_scripts_cannot_read(locked):
    answer = locked.get(f"/s/topk?sort=max&token={TOKEN}")
    assert answer.status_code == 303 and answer.headers["location"] == "/s/topk?sort=max"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and cookie.startswith(cookie_name(TOKEN))
    locked.cookies.clear()
    assert locked.get("/s/topk?token=wrong-token").status_code == 401
    away = locked.get(f"//evil.com/?token={TOKEN}")
    locked.cookies.clear()
    assert not away.headers.get("location", "/").startswith("//")


def test_the_token_of_an_address_is_no_way_into_the_api(locked):
    assert locked.get(f"/api/v1/sources?token={TOKEN}", follow_redirects=False).status_code == 401


TRAVERSAL = ["..%2f..%2fetc%2fpasswd", "%2e%2e%2f", "....//", "%5c..%5c", "/etc/passwd", "a%00", "C:%5c"]


@pytest.mark.parametrize("name", TRAVERSAL)
@pytest.mark.parametrize(
    "template", ["/api/v1/sources/{}", "/api/v1/runs/{}", "/api/v1/lists/{}", "/assets/{}", "/s/{}", "/api/feature/{}/x/3"]
)
def test_no_path_of_a_request_reaches_the_file_system(api, template, name):
    answer = api.get(template.format(name))
    assert answer.status_code in (404, 422) and "root:" not in answer.text


def test_static_files_come_from_a_fixed_list(api):
    assert api.get("/assets/report.css").status_code == 200
    for path in ("/assets/", "/assets", "/assets/../report.py", "/assets/report.css/", "/static/"):
        assert api.get(path).status_code == 404


def test_no_module_of_the_server_imports_what_reads_pickles():
    for path in (ROOT / "sae/inspection/server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            assert not {name.split(".")[0] for name in names} & {"pickle", "torch", "joblib", "shelve", "marshal"}, path


PATHS = ["/", "/s/mp", "/s/mp/f/5", "/api/v1/sources/mp/features/5", "/api/v1/nothing", "/nothing", "/healthz", "/assets/report.css"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_protecting_headers(api, path):
    headers = api.get(path, headers={"accept": "text/html"}).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';")
    assert "unsafe" not in policy and "frame-ancestors 'self'" in policy and "base-uri 'none'" in policy and "form-action 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


def test_a_defect_is_500_without_a_trace_and_with_the_headers(indexes, monkeypatch, caplog):
    context = context_of(indexes, live_options={"error": RuntimeError("secret detail in /home/someone")})
    with client(context) as broken:
        answer = broken.post(ENCODE, json=BODY)
        assert answer.status_code == 500 and answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text and "Traceback" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff" and "content-security-policy" in answer.headers
        assert httpx.get(f"{broken.base_url}/healthz", trust_env=False).status_code == 200
    caplog.clear()


def test_hostile_token_texts_are_escaped_wherever_they_are_shown(api):
    for path in ("/api/v1/sources/mp/features/5/html", "/s/mp/f/5", "/s/mp"):
        page = api.get(path, headers={"accept": "text/html"})
        assert page.status_code == 200 and HOSTILE not in page.text and "<img src=x" not in page.text, path
        assert "style=" not in page.text and "onclick" not in page.text and "<script>" not in page.text, path
    assert api.get("/api/v1/sources/mp/features/5").headers["content-type"] == "application/json"


def test_hostile_words_of_people_are_escaped_too(api):
    api.post("/api/v1/sources/mp/features/5/explanations", json={"text": HOSTILE}).raise_for_status()
    for path in ("/s/mp/f/5", "/s/mp"):
        assert HOSTILE not in api.get(path, headers={"accept": "text/html"}).text


def test_the_body_is_counted_while_it_arrives_whatever_its_length_says(api):
    def pieces():
        for _ in range(200):
            yield b" " * 10_000

    chunked = api.post(ENCODE, content=pieces(), headers={"content-type": "application/json"})
    assert chunked.status_code == 413 and chunked.json()["limit"] == 2**20
    bomb = gzip.compress(b'{"texts": ["' + b"a" * 50_000_000 + b'"]}')
    packed = api.post(ENCODE, content=bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert packed.status_code in (400, 413, 415)
    assert api.post(ENCODE, json=BODY).status_code == 200


def test_a_body_below_the_limit_is_read_whole(api):
    texts = ["a" * 60_000 for _ in range(16)]
    assert api.post(ENCODE, json={"texts": texts}).status_code == 200


def test_headers_and_addresses_are_bounded(api):
    url = httpx.URL(str(api.base_url))
    for answer in (
        _raw(url, f"GET /?q={'a' * 200_000} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        _raw(url, f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {'a' * 200_000}\r\n\r\n"),
    ):
        assert b" 400 " in answer.split(b"\r\n")[0] or answer == b""


def _raw(url, text):
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        try:
            connection.sendall(text.encode())
            return connection.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            return b""


def test_the_token_is_in_no_log_and_no_repr(locked, caplog, capsys):
    locked.get("/api/v1/sources", headers={"authorization": f"Bearer {TOKEN}"})
    locked.get("/s/topk", params={"token": TOKEN})
    locked.cookies.clear()
    assert TOKEN not in caplog.text and TOKEN not in capsys.readouterr().out
    assert TOKEN not in repr(ServerSettings(token=TOKEN))


def test_the_read_path_imports_neither_torch_nor_transformers():
    program = (
        "import sys, sae.cli.serve, sae.inspection.server.app;"
        "print([m for m in ('torch', 'transformer_lens', 'transformers', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_was_computed_for_a_page_is_not_sent_to_another_site(indexes):
    with client(context_of(indexes)) as api:
        path = "/s/topk/f/4?text=one+two"
        own = api.get(path, headers={"accept": "text/html", "sec-fetch-site": "same-origin"})
        other = api.get(path, headers={"accept": "text/html", "sec-fetch-site": "cross-site"})
        assert own.status_code == 200 and own.text != other.text
