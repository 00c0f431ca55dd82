"""ETag and gzip for everything that is read.

    ETag = SHA-256 of the content;  If-None-Match with it -> 304 without a body;  Accept-Encoding: gzip -> compressed from 1 kB on

An answer that is sent in pieces, or says `no-store`, or brings an ETag of its own, passes unchanged.
"""

import gzip
import hashlib
from typing import Any

from sae.inspection.server.security import Application, Headers, Message, Receive, Scope, Send

COMPRESSED_FROM = 1024
"""Bytes."""
LEVEL = 1
"""The fastest: the reader is on the same machine, or near."""
COMPRESSED = ("application/json", "application/problem+json", "text/", "image/svg+xml")


class Representation:
    """Compresses and names the answers of `app`."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope)
        answer = Answer(send, wanted=headers.one("if-none-match"), encodings=headers.one("accept-encoding").lower())
        await self.app(scope, receive, answer)


class Answer:
    """Holds the head of an answer back until its body is known to be whole."""

    def __init__(self, send: Send, *, wanted: str, encodings: str) -> None:
        self.send, self.wanted, self.encodings = send, wanted, encodings
        self.head: Message | None = None

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
        packed = (
            len(body) >= COMPRESSED_FROM and kind.startswith(COMPRESSED) and "gzip" in self.encodings and "gzip;q=0" not in self.encodings
        )
        digest = hashlib.sha256(body).hexdigest()[:32]
        etag = f'"{digest}-gzip"' if packed else f'"{digest}"'
        headers = [(name, value) for name, value in head["headers"] if name.lower() != b"content-length"]
        headers += [(b"etag", etag.encode()), (b"vary", b"Accept-Encoding")]
        if b"cache-control" not in names:
            headers.append((b"cache-control", b"private, no-cache"))
        if digest in self.wanted or self.wanted.strip() == "*":
            kept = [(name, value) for name, value in headers if name.lower() != b"content-type"]
            await self._sent({**head, "status": 304, "headers": kept}, b"")
            return
        if packed:
            body = gzip.compress(body, LEVEL, mtime=0)
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", b"%d" % len(body)))
        await self._sent({**head, "headers": headers}, body)

    async def _sent(self, head: dict[str, Any], body: bytes) -> None:
        await self.send(head)
        await self.send({"type": "http.response.body", "body": body})
