"""What every answer of the API is: a record that becomes JSON, or a problem."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response


class Record(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(use_attribute_docstrings=True, arbitrary_types_allowed=False)

    def answer(self, *, status: int = 200, keep: bool = True) -> Response:
        """It as JSON; `keep=False` says that another request gets another answer."""
        headers = {} if keep else {"Cache-Control": "no-store"}
        return Response(self.model_dump_json().encode(), status, headers=headers, media_type="application/json")


class Problem(Record):
    """What went wrong (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    """`about:blank`: the status says the kind."""
    title: str
    """The kind of failure."""
    status: int
    """HTTP status."""
    detail: str
    """What is wrong, in a sentence."""
    field: str | None = None
    """Where it lies in the request."""


PROBLEM: dict[str, Any] = {
    "description": "Problem",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The failures of a route, for the schema."""
    return dict.fromkeys((400, 401, 403, 413, 415, 422, *statuses), PROBLEM)
