"""The committed schema is the one that the server has, and answers hold to it under generated requests."""

import json

import pytest

from sae.inspection.server.openapi import FILE, schema_text
from tests.sae.inspection.server.served import context_of, planted_indexes, serving

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402

load_all_checks()
HELD = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
SCHEMA = schemathesis.openapi.from_dict(json.loads(FILE.read_text()))
MISSES = {"source": ("topk", "mp"), "modelId": ("model",)}
"""Names that exist: random ones would all be answered 404."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with serving(context_of(planted_indexes(folder / "indexes"), notes=folder / "notes.sqlite")) as url:
        yield url


def test_the_committed_schema_is_that_of_the_server():
    assert FILE.read_text() == schema_text(), "run: python -m sae.inspection.server.openapi"


def test_the_schema_is_openapi_3_1_and_says_what_every_field_is():
    schema = json.loads(FILE.read_text())
    assert schema["openapi"].startswith("3.1") and not [path for path in schema["paths"] if not path.startswith(("/api/", "/healthz"))]
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names) and all(operation["description"] for operation in operations)
    refers = [schema["components"]["schemas"][ref.split("/")[-1]] for ref in _references(schema)]
    assert refers and all(refers)
    for name in ("EncodeBody", "EncodeAnswer", "FeatureRow", "SourceInfo", "ListBody"):
        model = schema["components"]["schemas"][name]
        assert all("description" in field for field in model["properties"].values()), name


def _references(value):
    if isinstance(value, dict):
        return [value["$ref"]] if "$ref" in value else [ref for item in value.values() for ref in _references(item)]
    return [ref for item in value for ref in _references(item)] if isinstance(value, list) else []


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate]
)
def test_generated_requests_get_answers_of_the_schema(case, server):
    for name, known in MISSES.items():
        if isinstance(case.path_parameters.get(name), str):
            case.path_parameters[name] = known[len(case.path_parameters[name]) % len(known)]
        if isinstance(case.body, dict) and isinstance(case.body.get(name), str):
            case.body[name] = known[0]
    response = case.call(base_url=server, timeout=20)
    case.validate_response(response, checks=[CHECKS.get_one(name) for name in HELD if name in CHECKS.get_all_names()])
