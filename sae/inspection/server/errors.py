"""Failures as answers: problem JSON (RFC 9457) in /api/v1, `{error, message}` where Neuronpedia's clients ask, and a small page elsewhere.

    {"type": "about:blank", "title": "Not found", "status": 404, "detail": "there is no source 'x'", "field": "source"}

Texts of a request are echoed as JSON strings, or escaped, and never longer than a line. No answer holds a stack trace or a path.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jinja2
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from sae.errors import ConfigError, SaeError
from sae.inspection.server.context import ServerContext
from sae.inspection.server.failures import NotFound, Refused, Unauthorised
from sae.inspection.server.security import protection

logger = logging.getLogger(__name__)
PAGE = jinja2.Environment(autoescape=True).from_string(
    "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    "<title>{{ status }} {{ title }}</title><link rel=icon href='data:,'>"
    "<link rel=stylesheet href=/assets/report.css><link rel=stylesheet href=/assets/viewer.css>"
    "<main class=problem><h1>{{ title }}</h1><p>{{ detail }}</p><p><a href=/>All sources</a></p></main></html>"
)
TITLES = {400: "The request is malformed", 404: "Not found", 405: "Method not allowed", 422: Refused.title, 500: "The server failed"}


def is_compatible(path: str) -> bool:
    """Whether a path belongs to the routes that Neuronpedia's clients use."""
    return path.startswith("/api/") and not path.startswith("/api/v1")


def problem(path: str, accept: str, failure: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a failed request: `failure` has status, title and detail, and may have more."""
    status = int(failure["status"])
    if is_compatible(path):
        body = {"error": failure["title"], "message": failure["detail"]} | {k: v for k, v in failure.items() if k in ("command", "limit")}
        return Response(_json(body), status, headers=headers, media_type="application/json")
    if path.startswith("/api/") or "text/html" not in accept:
        return Response(_json({"type": "about:blank", **failure}), status, headers=headers, media_type="application/problem+json")
    return HTMLResponse(PAGE.render(failure), status, headers=headers)


def refusal(path: str, accept: str, failure: Refused) -> Response:
    """The answer to a refused request."""
    headers = {"Retry-After": str(failure.retry_after)} if failure.retry_after else {}
    if isinstance(failure, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    body = {"title": failure.title, "status": failure.status, "detail": failure.detail}
    return problem(path, accept, body | ({"field": failure.field} if failure.field else {}) | failure.extra, headers)


def invalid(errors: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The problem that a request's validation found: 400 where the body is no JSON, else 422 with the first field and all of them."""
    found = [{"field": _field(error["loc"]), "problem": _sentence(error)} for error in errors[:20]]
    malformed = any(error["type"] == "json_invalid" for error in errors)
    status = 400 if malformed else 422
    detail = "the body is no valid JSON" if malformed else f"{found[0]['field']}: {found[0]['problem']}"
    return {"title": TITLES[status], "status": status, "detail": detail, "field": found[0]["field"], "errors": found}


def install(app: FastAPI, context: ServerContext) -> None:
    """Make `app` answer failures so."""
    headers = protection(context.settings)

    def of(request: Request) -> tuple[str, str]:
        return request.url.path, request.headers.get("accept", "")

    @app.exception_handler(Refused)
    async def refused(request: Request, failure: Refused) -> Response:
        return refusal(*of(request), failure)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        return problem(*of(request), invalid(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return refusal(*of(request), NotFound("there is nothing at this address"))
        detail = "the body is no valid JSON" if error.status_code == 400 else str(error.detail)
        title = TITLES.get(error.status_code, str(error.detail))
        return problem(*of(request), {"title": title, "status": error.status_code, "detail": detail}, error.headers)

    @app.exception_handler(ConfigError)
    async def unusable(request: Request, error: ConfigError) -> Response:
        known = {name: value for name in ("n_tokens", "limit") if isinstance(value := getattr(error, name, None), int)}
        return problem(*of(request), {"title": Refused.title, "status": 422, "detail": str(error), **known})

    @app.exception_handler(SaeError)
    async def damaged(request: Request, error: SaeError) -> Response:
        logger.error("%s", error)
        return problem(*of(request), {"title": TITLES[500], "status": 500, "detail": "something on disk is damaged; the log says what"})

    @app.exception_handler(500)
    async def broken(request: Request, error: Exception) -> Response:
        return problem(*of(request), {"title": TITLES[500], "status": 500, "detail": "this is a defect; the log says more"}, headers)


def _field(location: tuple[Any, ...]) -> str:
    parts = [str(part)[:80] for part in location if part not in ("body", "query", "path")]
    return ".".join(parts) or str(location[0] if location else "body")


def _sentence(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    shown = f", got {str(given)[:60]!r}" if isinstance(given, (str, int, float)) and error["type"] != "missing" else ""
    return message[:1].lower() + message[1:] + shown


def _json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
