"""What a local server owes the machine it runs on: one ASGI layer around everything else.

    Host            only names of this machine (DNS rebinding), checked before anything is routed
    Origin          a request that writes or computes comes from this server's own pages, or from no page at all
    token           cookie, `Authorization: Bearer`, `X-Api-Key` or `X-SECRET-KEY`; compared in constant time
    content type    JSON for the API, so that no form of another site can speak to it
    body            counted while it arrives, whatever Content-Length says
    headers         a strict Content-Security-Policy and its companions on every answer

A browser tells where a request comes from by `Sec-Fetch-Site`, which a page cannot forge, and by `Origin`. Programs send neither, and
are let through: what they can do is decided by the token.
"""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import anyio

from sae.inspection.server.compute import CLIENT_LEFT
from sae.inspection.server.context import LIMITS, ServerSettings
from sae.inspection.server.failures import Forbidden, Misdirected, Refused, TooLarge, Unauthorised, WrongType

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'self'"
)
"""Nothing inline, nothing from elsewhere."""
WRITES = ("POST", "PUT", "PATCH", "DELETE")
OPEN_PATHS = ("/healthz",)
"""Answered without a token."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(\d{1,5}))?")


def protection(settings: ServerSettings) -> dict[str, str]:
    """The protecting headers of every answer. On a loopback address browsers say by `Sec-Fetch-Site` where a form comes from; elsewhere,
    over plain HTTP, only `Origin` does, which a browser keeps to itself under `no-referrer`."""
    return {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer" if settings.host in LOOPBACK else "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
    }


class Gate:
    """Checks every request, bounds its body, and puts the protecting headers on every answer. `refuse` sends a failure in the form that
    suits the path."""

    def __init__(self, app: Application, settings: ServerSettings, refuse: Callable[[Scope, Refused], Application]) -> None:
        self.app, self.settings, self.refuse = app, settings, refuse
        self.cookie = cookie_name(settings.token) if settings.token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope)
        guarded = self._guarded(send, headers)
        try:
            self._check(scope, headers)
            if headers.preflight(scope) and headers.one("origin") in self.settings.origins:
                return await _plain(204, b"", [(b"access-control-max-age", b"600")])(scope, receive, guarded)
            if self.settings.token and self._token_in_query(scope):
                return await self._enter(scope, receive, guarded)
            body = Body(receive, LIMITS.body_bytes, headers.one("content-length"))
            CLIENT_LEFT.set(body.left)
            await self.app(scope, body, body.unless_exceeded(guarded))
            body.check()
        except Refused as failure:
            return await self.refuse(scope, failure)(scope, receive, guarded)

    def _check(self, scope: Scope, headers: "Headers") -> None:
        check_host(headers.all("host"), self.settings.hosts)
        if scope["method"] in WRITES:
            check_origin(headers, self.settings)
            if scope["path"].startswith("/api/") and (headers.one("content-length") not in ("", "0") or headers.one("transfer-encoding")):
                check_json(headers.one("content-type"))
        preflight = headers.preflight(scope) and headers.one("origin") in self.settings.origins
        if scope["path"] in OPEN_PATHS or preflight or self.settings.token is None or self._token_in_query(scope):
            return
        if not any(_same(shown, self.settings.token) for shown in self._shown(headers)):
            raise Unauthorised("open the address that the server printed when it started, or send the token as `Authorization: Bearer`")

    def _shown(self, headers: "Headers") -> Iterable[str]:
        scheme, _, bearer = headers.one("authorization").partition(" ")
        if scheme.lower() == "bearer":
            yield bearer.strip()
        yield from (headers.one("x-api-key"), headers.one("x-secret-key"))
        try:
            cookie = SimpleCookie(headers.one("cookie")).get(self.cookie)
        except CookieError:
            return
        if cookie is not None:
            yield cookie.value

    def _token_in_query(self, scope: Scope) -> bool:
        if scope["method"] != "GET" or scope["path"].startswith("/api/") or b"token=" not in scope["query_string"]:
            return False
        shown = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=64)).get("token", "")
        return _same(shown, self.settings.token or "")

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The token of the printed address becomes a cookie, and leaves the address."""
        rest = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        place = quote("/" + scope["path"].lstrip("/\\")) + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self.cookie}={self.settings.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", place.encode()), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await _plain(303, b"", headers)(scope, receive, send)

    def _guarded(self, send: Send, headers: "Headers") -> Send:
        """`send` with the protecting headers."""
        added = [(name.encode(), value.encode()) for name, value in protection(self.settings).items()]
        origin = headers.one("origin")
        if self.settings.origins:
            added.append((b"vary", b"Origin"))
        if origin and origin in self.settings.origins:
            added += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
                (b"access-control-allow-headers", b"Authorization, Content-Type, X-Api-Key, X-SECRET-KEY"),
            ]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        return guarded


class Headers:
    """The headers of a request, by lower-case name."""

    def __init__(self, scope: Scope) -> None:
        self.pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for found, value in self.pairs if found == name]

    def one(self, name: str) -> str:
        """The first value of a header, or an empty text."""
        return next(iter(self.all(name)), "")

    def preflight(self, scope: Scope) -> bool:
        """Whether a browser asks if it may send the real request."""
        return scope["method"] == "OPTIONS" and bool(self.one("access-control-request-method"))


class Body:
    """A request's body, counted while it arrives. Past the limit the application reads no further, and its answer, whatever it makes of
    that, is not sent: `check` raises TooLarge instead."""

    def __init__(self, receive: Receive, limit: int, declared: str) -> None:
        self.receive, self.limit, self.n_bytes = receive, limit, 0
        self.whole, self.gone = False, False
        if declared.isdigit() and int(declared[:20]) > limit:
            self.n_bytes = int(declared[:20])
            self.check()

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.n_bytes += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            self.check()
        else:
            self.gone = True
        return message

    async def left(self) -> bool:
        """Whether the client has closed the connection; looks, and does not wait."""
        if self.whole and not self.gone:
            with anyio.CancelScope() as scope:
                scope.cancel()
                self.gone = (await self.receive())["type"] == "http.disconnect"
        return self.gone

    def check(self) -> None:
        """Raises TooLarge when more arrived than is allowed."""
        if self.n_bytes > self.limit:
            raise TooLarge(f"the body is longer than {self.limit} bytes", extra={"limit": self.limit})

    def unless_exceeded(self, send: Send) -> Send:
        """`send` that drops what is said about a body that was cut off."""

        async def sent(message: Message) -> None:
            if self.n_bytes <= self.limit:
                await send(message)

        return sent


def cookie_name(token: str) -> str:
    """Name of the cookie that holds the token; servers on other ports of this machine share its cookies, so the name tells them apart."""
    return f"sae-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def check_host(found: list[str], allowed: Iterable[str]) -> None:
    """Raises Misdirected unless there is one Host header and it names this machine, with any port."""
    match = HOST.fullmatch(found[0].lower()) if len(found) == 1 else None
    if match is None or match[1] not in {name.lower() for name in allowed}:
        shown = found[0][:80] if found else ""
        raise Misdirected(f"this server does not answer for the host {shown!r}; allowed: {', '.join(allowed)} (--allow-host adds one)")


def check_origin(headers: Headers, settings: ServerSettings) -> None:
    """Raises Forbidden when a page of another site sends the request."""
    origin, site = headers.one("origin"), headers.one("sec-fetch-site")
    if origin in settings.origins and origin:
        return
    if site:
        if site not in ("same-origin", "none"):
            raise Forbidden("a page of another site may not send this request (Sec-Fetch-Site); --allow-origin allows one")
        return
    if origin and urlsplit(origin).netloc.lower() != headers.one("host").lower():
        raise Forbidden(f"a page of {origin[:80]!r} may not send this request; --allow-origin allows it")


def check_page(scope: Scope, settings: ServerSettings) -> None:
    """`check_origin` for a GET that computes."""
    check_origin(Headers(scope), settings)


def check_json(content_type: str) -> None:
    """Raises WrongType unless the content type is JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise WrongType(f"the body must be application/json, got {kind[:80]!r}")


def _same(shown: str, token: str) -> bool:
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode())


def _plain(status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> Application:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    return answer
