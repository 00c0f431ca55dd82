"""ETag and gzip for everything that is read.

    ETag = SHA-256 of the content;  If-None-Match with it -> 304 without a body;  Accept-Encoding: gzip -> compressed from 1 kB on

An answer that is sent in pieces, or says `no-store`, or brings an ETag of its own, passes unchanged. The last answers about indexes are
kept and sent again without being made again.
"""

import gzip
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae.inspection.server.security import Application, Headers, Message, Receive, Scope, Send

COMPRESSED_FROM = 1024
"""Bytes."""
LEVEL = 1
"""The fastest: the reader is on the same machine, or near."""
ABOUT_INDEXES = ("/s/", "/api/v1/sources", "/api/feature/")
"""Addresses whose answers depend on indexes and on what is written about their features, and on nothing else."""
KEPT_BYTES, LONGEST_QUERY = 16 * 2**20, 500
"""Answers that are kept to be sent again, and the longest query of one (bytes)."""
COMPRESSED = ("application/json", "application/problem+json", "text/", "image/svg+xml")


@dataclass(frozen=True)
class Kept:
    """An answer that may be sent again."""

    stamp: str
    """What was written when it was made."""
    head: Message
    """Status and headers of the whole answer."""
    body: bytes
    """Its body, compressed where it was asked so."""
    digest: str
    """Hash of its content."""


class Shelf:
    """The last answers about indexes, up to `KEPT_BYTES`: an index does not change, so an answer holds as long as nobody writes a label,
    a note or a list. `stamp` changes when somebody does."""

    def __init__(self, stamp: Callable[[], str]) -> None:
        self.stamp, self.n_bytes = stamp, 0
        self.answers: OrderedDict[tuple[Any, ...], Kept] = OrderedDict()

    def find(self, key: tuple[Any, ...], stamp: str) -> Kept | None:
        """The answer, if it still holds."""
        kept = self.answers.get(key)
        if kept is None or kept.stamp != stamp:
            return None
        self.answers.move_to_end(key)
        return kept

    def keep(self, key: tuple[Any, ...], kept: Kept) -> None:
        """Put an answer there, and the oldest away."""
        if len(kept.body) > KEPT_BYTES // 16:
            return
        if old := self.answers.pop(key, None):
            self.n_bytes -= len(old.body)
        self.answers[key] = kept
        self.n_bytes += len(kept.body)
        while self.n_bytes > KEPT_BYTES:
            self.n_bytes -= len(self.answers.popitem(last=False)[1].body)


class Representation:
    """Compresses, names and keeps the answers of `app`."""

    def __init__(self, app: Application, stamp: Callable[[], str]) -> None:
        self.app, self.shelf = app, Shelf(stamp)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope)
        answer = Answer(send, wanted=headers.one("if-none-match"), encodings=headers.one("accept-encoding").lower())
        foreign, long = headers.one("sec-fetch-site") == "cross-site", len(scope["query_string"]) > LONGEST_QUERY
        if foreign or long or not scope["path"].startswith(ABOUT_INDEXES):
            await self.app(scope, receive, answer)
            return
        stamp = self.shelf.stamp()
        key = (headers.one("host"), scope["path"], scope["query_string"], headers.one("accept"), answer.packs)
        kept = self.shelf.find(key, stamp)
        if kept is not None:
            await answer.again(kept)
            return
        await self.app(scope, receive, answer)
        if answer.made is not None:
            self.shelf.keep(key, Kept(stamp, *answer.made))


class Answer:
    """Holds the head of an answer back until its body is known to be whole."""

    def __init__(self, send: Send, *, wanted: str, encodings: str) -> None:
        self.send, self.wanted = send, wanted
        self.packs = "gzip" in encodings and "gzip;q=0" not in encodings
        self.head: Message | None = None
        self.made: tuple[Message, bytes, str] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head = message
            return
        if self.head is None:
            await self.send(message)
            return
        head, self.head = self.head, None
        names = {name.lower(): value for name, value in head["headers"]}
        if message.get("more_body") or head["status"] != 200 or b"etag" in names or b"no-store" in names.get(b"cache-control", b""):
            await self.send(head)
            await self.send(message)
            return
        await self._named(head, names, message.get("body", b""))

    async def _named(self, head: Message, names: dict[bytes, bytes], body: bytes) -> None:
        kind = names.get(b"content-type", b"").decode("latin-1")
        packed = len(body) >= COMPRESSED_FROM and kind.startswith(COMPRESSED) and self.packs
        digest = hashlib.sha256(body).hexdigest()[:32]
        etag = f'"{digest}-gzip"' if packed else f'"{digest}"'
        headers = [(name, value) for name, value in head["headers"] if name.lower() != b"content-length"]
        headers += [(b"etag", etag.encode()), (b"vary", b"Accept-Encoding")]
        if b"cache-control" not in names:
            headers.append((b"cache-control", b"private, no-cache"))
        if packed:
            body = gzip.compress(body, LEVEL, mtime=0)
            headers.append((b"content-encoding", b"gzip"))
        self.made = ({**head, "headers": headers}, body, digest)
        await self._sent(*self.made)

    async def again(self, kept: Kept) -> None:
        """Send an answer that was kept."""
        await self._sent(kept.head, kept.body, kept.digest)

    async def _sent(self, head: Message, body: bytes, digest: str) -> None:
        headers, status = list(head["headers"]), head["status"]
        if digest in self.wanted or self.wanted.strip() == "*":
            headers = [(name, value) for name, value in headers if name.lower() not in (b"content-type", b"content-encoding")]
            status, body = 304, b""
        else:
            headers.append((b"content-length", b"%d" % len(body)))
        await self.send({**head, "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
