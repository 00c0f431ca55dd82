"""Taking features out: an export of the library, as a zip that is sent while it is packed."""

import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from sae.inspection.exports import export
from sae.inspection.exports.peers import Explanation
from sae.inspection.server.answers import problems
from sae.inspection.server.compute import Compute
from sae.inspection.server.context import LIMITS, ServerContext, Source
from sae.inspection.server.failures import Refused
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.notes import HUMAN, Notes
from sae.inspection.server.schemas import ExportQuery, SourceName
from sae.inspection.server.security import check_page

SECONDS, QUEUE = 300.0, 2
PIECE = 2**18
"""Bytes read at once."""
ZIP = {200: {"description": "A zip", "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}}


def export_router(context: ServerContext) -> APIRouter:
    """`/sources/{source}/export`."""
    router, lookup = APIRouter(tags=["sources"]), Lookup(context)
    packing = Compute(seconds=SECONDS, queue=QUEUE)

    @router.get(
        "/sources/{source}/export",
        response_class=StreamingResponse,
        responses=problems(404, 503, 504) | ZIP,
        operation_id="export",
    )
    async def take_out(source: SourceName, query: Annotated[ExportQuery, Query()], request: Request) -> Response:
        """Features as a zip. `sae export` writes the same files without a limit."""
        check_page(request.scope, context.settings)
        found = lookup.source(source)
        lookup.latents(found, query.features, field="features")
        latents = list(dict.fromkeys(query.features)) or None
        if latents is None and found.index.d_sae > LIMITS.export_features:
            raise Refused(
                f"features must name at most {LIMITS.export_features} of the {found.index.d_sae} features; `sae export` writes them all",
                field="features",
            )
        folder = tempfile.TemporaryDirectory(prefix="sae-export-")
        written = await packing.run(_write, found, query.format, Path(folder.name) / found.name, latents, context.notes)
        headers = {"Content-Disposition": f'attachment; filename="{found.name}-{query.format}.zip"', "Cache-Control": "no-store"}
        return StreamingResponse(zipped(written), media_type="application/zip", headers=headers, background=BackgroundTask(folder.cleanup))

    return router


def _write(source: Source, format: str, folder: Path, latents: list[int] | None, notes: Notes | None) -> Path:
    options: dict[str, Any] = {}
    if format == "neuronpedia" and notes is not None:
        named = [i for i in notes.labels(source.dictionary) if i < source.index.d_sae and (latents is None or i in latents)]
        options["explanations"] = {
            i: [_explanation(e.text, e.method, e.author) for e in notes.explanations(source.dictionary, i)] for i in named
        }
    return export(source.index, format, folder, latents=latents, **options)


def _explanation(text: str, method: str, author: str) -> Explanation:
    return Explanation(text=text, method="", model="") if method == HUMAN else Explanation(text=text, method=method, model=author)


class _Pipe:
    """What `zipfile` writes to, and a stream reads from."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep a piece until it is taken."""
        self.pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def taken(self) -> bytes:
        """What was written since the last time."""
        found = b"".join(self.pieces)
        self.pieces.clear()
        return found


def zipped(folder: Path) -> Iterator[bytes]:
    """A zip of a folder's files, piece by piece; memory does not grow with their size."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:  # type: ignore[call-overload]
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as packed, open(path, "rb") as file:
                while piece := file.read(PIECE):
                    packed.write(piece)
                    yield pipe.taken()
            yield pipe.taken()
    yield pipe.taken()
