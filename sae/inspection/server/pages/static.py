"""The files that pages load: a fixed list, read once at the start. A request names an entry of the list, never a path."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response

from sae.inspection.server.failures import NotFound

ASSETS = {
    "report.css": "text/css",
    "viewer.css": "text/css",
    "theme.js": "text/javascript",
    "viewer.js": "text/javascript",
    "keys.js": "text/javascript",
    "swap.js": "text/javascript",
    "hover.js": "text/javascript",
    "numbers.js": "text/javascript",
    "notes.js": "text/javascript",
    "map.js": "text/javascript",
    "text.js": "text/javascript",
}
"""Name -> media type."""
A_YEAR = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    """Its bytes."""
    media_type: str
    """Its type."""
    digest: str
    """The first 16 hexadecimal digits of its SHA-256."""

    @property
    def etag(self) -> str:
        """The digest as an entity tag."""
        return f'"{self.digest}"'


@cache
def assets() -> dict[str, Asset]:
    """Every file of the list, by name."""
    folder = resources.files("sae.inspection") / "assets"
    found = {}
    for name, media_type in ASSETS.items():
        content = (folder / name).read_bytes()
        found[name] = Asset(content, media_type, hashlib.sha256(content).hexdigest()[:16])
    return found


@cache
def asset_url(name: str) -> str:
    """The address of a file; it changes with the contents, so that browsers may keep the file."""
    return f"/assets/{name}?v={assets()[name].digest}"


def static_router() -> APIRouter:
    """`GET /assets/{name}`."""
    router = APIRouter()

    @router.api_route("/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        found = assets().get(name)
        if found is None:
            raise NotFound("there is no such file")
        headers = {"ETag": found.etag, "Cache-Control": A_YEAR if request.query_params.get("v") == found.digest else "no-cache"}
        if found.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.media_type, headers=headers)

    return router
