"""What a request can be refused with. Each failure knows its HTTP status and what to tell the client; `errors` turns it into JSON."""

from collections.abc import Mapping

from sae.errors import SaeError


class Refused(SaeError):
    """A request that is not answered as asked: an HTTP status, a short title, what is wrong in a sentence, and the field it lies in."""

    status = 422
    """HTTP status."""
    title = "The request cannot be processed"
    """What kind of failure it is, the same for every request that meets it."""

    def __init__(self, detail: str, *, field: str | None = None, extra: Mapping[str, object] | None = None, retry_after: int | None = None):
        super().__init__(detail)
        self.detail, self.field, self.extra, self.retry_after = detail, field, dict(extra or {}), retry_after


class BadRequest(Refused):
    """The body is no JSON."""

    status, title = 400, "The request is malformed"


class Unauthorised(Refused):
    """No token, or a wrong one."""

    status, title = 401, "A token is needed"


class Forbidden(Refused):
    """A request from another site."""

    status, title = 403, "The request comes from another site"


class NotFound(Refused):
    """No such source, feature, document, list or result."""

    status, title = 404, "Not found"


class NotLoaded(Refused):
    """The answer needs the language model, or a store of notes, which the server was started without."""

    status, title = 409, "The server was started without what this needs"


class TooLarge(Refused):
    """The body is longer than allowed."""

    status, title = 413, "The request is too large"


class WrongType(Refused):
    """The body has another content type than JSON."""

    status, title = 415, "The body must be JSON"


class Misdirected(Refused):
    """The request is for a host that this server does not answer for."""

    status, title = 400, "Unknown host"


class Left(Refused):
    """Nobody waits for the answer any more; nothing is sent."""

    status, title = 499, "The client is gone"


class NotBuilt(Refused):
    """A route that this version does not answer."""

    status, title = 501, "Not available in this version"


class Busy(Refused):
    """The language model is at work for others and the queue is full, or memory ran out."""

    status, title = 503, "The server is busy"


class TooSlow(Refused):
    """The computation took longer than allowed."""

    status, title = 504, "The computation took too long"
