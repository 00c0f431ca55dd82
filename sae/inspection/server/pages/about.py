"""About: where everything comes from, versions and licences, definitions, keys; and the API's own description."""

import platform
from importlib import metadata
from typing import Any

from fastapi.responses import Response

from sae.fingerprint import to_json
from sae.inspection.query import TELLING_DEFINITION
from sae.inspection.server.pages.shell import Page

PACKAGES = ("sae-workbench", "fastapi", "starlette", "uvicorn", "jinja2", "numpy", "numba", "safetensors", "torch", "transformer-lens")
METHODS = ("get", "put", "post", "patch", "delete")


def about_page(page: Page) -> Response:
    """`/about`."""
    sources = [
        {"name": s.name, "manifest": s.index.manifest, "digest": s.index.digest, "key": to_json(dict(s.index.manifest.key))}
        for s in page.context.registry
    ]
    return page.render("about.html", packages=packages(), python=platform.python_version(), described=sources, telling=TELLING_DEFINITION)


def docs_page(page: Page) -> Response:
    """`/docs`: the OpenAPI description of this server, by our own template."""
    described = page.request.app.openapi()
    tags: dict[str, list[dict[str, Any]]] = {}
    for path, operations in described["paths"].items():
        for method in METHODS:
            if method in operations:
                operation = operations[method]
                shown = {"method": method, "path": path, **{k: operation.get(k) for k in ("summary", "description")}}
                shown["parameters"] = [_parameter(each, described) for each in operation.get("parameters", ())]
                shown["body"] = _schema(operation.get("requestBody"), described)
                shown["answers"] = [
                    (code, answer.get("description", ""), _schema(answer, described)) for code, answer in operation["responses"].items()
                ]
                tags.setdefault((operation.get("tags") or ["other"])[0], []).append(shown)
    return page.render("docs.html", info=described["info"], tags=tags)


def _parameter(stated: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """A parameter of a route: its name, place, meaning and allowed values."""
    schema = stated.get("schema", {})
    values = [str(value) for value in schema.get("enum", ())]
    kind = f"one of {', '.join(values)}" if values else str(_resolved(schema, described, 0))
    ends = [f"{word} {schema[key]}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in schema]
    usual = [f"usually {schema['default']}"] if schema.get("default") not in (None, "") else []
    found = {
        "name": stated["name"],
        "in": stated["in"],
        "required": stated.get("required", False),
        "description": stated.get("description", ""),
    }
    return found | {"kind": ", ".join([kind, *ends, *usual])}


def packages() -> list[tuple[str, str, str]]:
    """(Name, version, licence) of what the server stands on, as the installed packages state them."""
    found = []
    for name in PACKAGES:
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        licence = (
            about.get("License-Expression") or _classified(about.get_all("Classifier") or []) or (about.get("License") or "").split("\n")[0]
        )
        found.append((name, about["Version"], licence[:60]))
    return found


def _classified(classifiers: list[str]) -> str:
    return next((c.rsplit(" :: ", 1)[1] for c in classifiers if c.startswith("License :: OSI Approved ::")), "")


def _schema(part: Any, described: dict[str, Any], depth: int = 0) -> Any:
    """The schema of a body or an answer, references put in place down to a few levels."""
    if part is None:
        return None
    content = next(iter(part.get("content", {}).values()), {})
    return _resolved(content.get("schema"), described, 0)


def _resolved(schema: Any, described: dict[str, Any], depth: int) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            return name if depth > 3 else _resolved(described["components"]["schemas"].get(name), described, depth + 1)
        if "properties" in schema:
            return {name: _resolved(value, described, depth + 1) for name, value in schema["properties"].items()}
        if "items" in schema:
            return [_resolved(schema["items"], described, depth + 1)]
        for kind in ("anyOf", "oneOf", "allOf"):
            if kind in schema:
                options = [_resolved(each, described, depth + 1) for each in schema[kind]]
                return options[0] if len(options) == 1 else {"one of": options}
        return " ".join(str(schema[key]) for key in ("type", "format", "const") if key in schema) or "any"
    return schema
