"""Results of probes and geometry from the cache, read only. An id of a request is compared with ids that were listed; it is never a path."""

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sae.errors import FormatError
from sae.inspection.server.answers import RunAnswer, RunFile, RunPage, RunRow, problems
from sae.inspection.server.context import ServerContext
from sae.inspection.server.cursors import cursor_at, offset_of
from sae.inspection.server.failures import NotFound
from sae.inspection.server.schemas import RunsQuery
from sae.storage.arrays import read_header
from sae.storage.atomic import read_json
from sae.storage.cache import ResultCache

KINDS = ("probes", "geometry")
"""Beginnings of the functions whose results are shown."""
VALUE_BYTES = 2**20
"""Largest JSON file that is sent."""
RunId = Annotated[str, PathParameter(pattern="^[0-9a-f]{24}$", description="Id of a result.")]


def runs_router(context: ServerContext) -> APIRouter:
    """`/runs` and `/runs/{id}`."""
    router = APIRouter(tags=["results"])

    @router.get("/runs", response_model=RunPage, responses=problems(), operation_id="runs")
    async def runs(query: Annotated[RunsQuery, Query()]) -> Response:
        """Cached results, newest first."""
        found, damaged = await run_in_threadpool(listed, context.results, (query.kind,) if query.kind else KINDS)
        scope = f"runs {query.kind}"
        offset = offset_of(query.cursor, scope)
        stop = offset + query.limit
        following = cursor_at(stop, scope) if stop < len(found) else None
        return RunPage(items=found[offset:stop], total=len(found), damaged=damaged, next_cursor=following).answer()

    @router.get("/runs/{id}", response_model=RunAnswer, responses=problems(404), operation_id="run")
    async def run(id: RunId) -> Response:
        """One cached result: what produced it, and its files."""
        path = next((path for path in folders(context.results, KINDS) if path.name == id), None)
        if path is None:
            raise NotFound(f"there is no result {id!r}", field="id")
        return (await run_in_threadpool(described, path)).answer()

    return router


def folders(results: ResultCache | None, kinds: tuple[str, ...]) -> list[Path]:
    """The folders of results of these kinds."""
    if results is None:
        return []
    return [path for path in results.folders() if path.parent.name.split(".")[0] in kinds]


def listed(results: ResultCache | None, kinds: tuple[str, ...]) -> tuple[list[RunRow], int]:
    """(results newest first, number of entries that cannot be read)."""
    found, damaged = [], 0
    for path in folders(results, kinds):
        try:
            about = read_json(path / "provenance.json")
            n_bytes = sum(record["n_bytes"] for record in about["files"].values())
            row = RunRow(id=path.name, function=path.parent.name, created=about["created"], seconds=about["seconds"], n_bytes=n_bytes)
        except (FormatError, KeyError, TypeError):
            damaged += 1
            continue
        found.append(row)
    return sorted(found, key=lambda row: (row.created, row.id), reverse=True), damaged


def described(path: Path) -> RunAnswer:
    """What lies in the folder of a result. Raises NotFound when the entry is damaged."""
    try:
        key, about = read_json(path / "key.json"), read_json(path / "provenance.json")
        files = [_file(path, name, record) for name, record in sorted(about["files"].items())]
        return RunAnswer(
            id=path.name,
            function=key["function"],
            version=key["version"],
            config=key["config"],
            inputs=key["inputs"],
            created=about["created"],
            seconds=about["seconds"],
            versions=about["versions"],
            files=files,
        )
    except (FormatError, KeyError, TypeError) as error:
        raise NotFound(f"the result {path.name} is damaged; `sae cache verify` says how", field="id") from error


def _file(folder: Path, name: str, record: dict[str, Any]) -> RunFile:
    path, value, tensors = folder / name, None, None
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FormatError(f"{folder} names a file outside of it")
    if path.suffix == ".json" and record["n_bytes"] <= VALUE_BYTES:
        value = _finite(read_json(path))
    elif path.suffix == ".safetensors":
        tensors = {key: {"dtype": entry["dtype"], "shape": entry["shape"]} for key, entry in read_header(path)[0].items()}
    return RunFile(name=name, n_bytes=record["n_bytes"], sha256=record["sha256"], value=value, tensors=tensors)


def _finite(value: Any) -> Any:
    """The value without NaN and infinities, which strict JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
