"""What all pages share: addresses, the frame around the content, and pages that say what went wrong."""

from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any
from urllib.parse import urlencode

import jinja2
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from markupsafe import Markup

from sae.errors import ConfigError
from sae.inspection.display import Look, environment
from sae.inspection.server.context import ServerContext, Source
from sae.inspection.server.failures import Refused
from sae.inspection.server.pages.parameters import Parameters
from sae.inspection.server.pages.static import asset_url
from sae.inspection.server.pages.strips import share_bar
from sae.inspection.svg import tick_label

THEMES = ("light", "dark")
STICKY = ("theme", "embed")
"""Parameters that links keep."""


class Links:
    """Writes addresses: sorted out of empty parameters, with theme and embedding kept where the page's own address has them."""

    def __init__(self, request: Request) -> None:
        self.path = request.url.path
        self.query = [(key, value) for key, value in request.query_params.multi_items() if value]
        self.sticky = {key: value for key, value in self.query if key in STICKY}

    def __call__(self, path: str, *, keep: bool = True, anchor: str = "", **parameters: Any) -> str:
        """`path` with parameters; those that are None or empty are left out. `keep=False` drops theme and embedding."""
        values = {key: value for key, value in parameters.items() if value not in (None, "", ())}
        values = (self.sticky | values) if keep else values
        plain = all(type(value) is int for value in values.values())
        query = "&".join([f"{key}={value}" for key, value in values.items()]) if plain else urlencode(values, doseq=True)
        return path + (f"?{query}" if query else "") + (f"#{anchor}" if anchor else "")

    def here(self, anchor: str = "", **changes: Any) -> str:
        """The page's own address with some parameters changed; None removes one."""
        kept = [(key, value) for key, value in self.query if key not in changes]
        query = urlencode(kept + [(key, value) for key, value in changes.items() if value not in (None, "")])
        return self.path + (f"?{query}" if query else "") + (f"#{anchor}" if anchor else "")


@cache
def page_environment() -> jinja2.Environment:
    """The templates of pages: those of cards and reports with what only pages use; compiled once."""
    made = environment().overlay(cache_size=200, auto_reload=False)
    made.filters |= {"tick": tick_label}
    made.globals |= {"asset_url": asset_url, "look": Look("page"), "share_bar": share_bar}
    return made


class Page:
    """One request for a page: its parameters, links and frame."""

    def __init__(self, context: ServerContext, request: Request) -> None:
        self.context, self.request = context, request
        self.parameters, self.links = Parameters(request.query_params), Links(request)

    @property
    def embedded(self) -> bool:
        """Whether the page stands inside another one: no menu, no footer."""
        return self.parameters.choice("embed", ("0", "1"), "0") == "1"

    @property
    def may_compute(self) -> bool:
        """Whether the language model may work for this request: not when another site's page sent the reader here."""
        return self.request.headers.get("sec-fetch-site", "none") != "cross-site"

    def render(self, template: str, *, source: Source | None = None, status: int = 200, **values: Any) -> HTMLResponse:
        """The page as a response."""
        theme = self.request.query_params.get("theme", "")
        html = (
            page_environment()
            .get_template(f"server/{template}")
            .render(
                link=self.links,
                here=self.links.here,
                sources=self.context.registry.sources,
                source=source,
                base=f"/s/{source.name}" if source else "",
                theme=theme if theme in THEMES else "",
                embed=self.request.query_params.get("embed") == "1",
                template=template.removesuffix(".html"),
                here_path=self.request.url.path,
                **values,
            )
        )
        response = HTMLResponse(html, status_code=status)
        if not self.may_compute and self.request.query_params.get("text"):
            response.headers["Cache-Control"] = "no-store"  # the reader's own request for this address is answered in full
        return response

    def label(self, source: Source, latent: int) -> str | None:
        """What people or programs call a feature."""
        notes = self.context.notes
        return notes.label(source.index.manifest.source.dictionary_digest, latent) if notes else None

    def labels(self, source: Source) -> dict[int, str]:
        """The labels of all features that have one."""
        notes = self.context.notes
        return notes.labels(source.index.manifest.source.dictionary_digest) if notes else {}

    def feature_link(self, source: Source, latent: int, **parameters: Any) -> str:
        """The address of a feature's page."""
        return self.links(f"/s/{source.name}/f/{latent}", **parameters)


def failure_page(context: ServerContext, request: Request, refused: Refused) -> HTMLResponse:
    """The page that says why a request is not answered."""
    response = Page(context, request).render("failure.html", status=refused.status, refused=refused)
    if refused.retry_after:
        response.headers["Retry-After"] = str(refused.retry_after)
    return response


def page_route(context: ServerContext) -> type[APIRoute]:
    """A class of routes that answer a refusal, and an argument that the library does not take, with a page."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answered(request: Request) -> Response:
                try:
                    return await handler(request)
                except Refused as refused:
                    return failure_page(context, request, refused)
                except ConfigError as error:
                    return failure_page(context, request, Refused(str(error)))

            return answered

    return PageRoute


def html(parts: list[str]) -> Markup:
    """Strings that are already escaped, as one."""
    return Markup("".join(parts))
