"""The addresses of the pages. Every handler only finds the source and hands over to the module of its page."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sae.inspection.server.context import ServerContext
from sae.inspection.server.pages import about, compare, document, feature, lists, map, overview, results, text
from sae.inspection.server.pages.shell import Page, page_route


def pages_router(context: ServerContext) -> APIRouter:
    """Every page, as routes that the OpenAPI description leaves out."""
    router = APIRouter(route_class=page_route(context), include_in_schema=False)
    _of_server(router, context)
    _of_source(router, context)
    return router


def _of_server(router: APIRouter, context: ServerContext) -> None:
    @router.get("/")
    async def sources(request: Request) -> Response:
        return overview.sources_page(Page(context, request))

    @router.get("/probes")
    def probes(request: Request) -> Response:
        return results.results_page(Page(context, request), "probes")

    @router.get("/geometry")
    def geometry(request: Request) -> Response:
        return results.results_page(Page(context, request), "geometry")

    @router.get("/results/{function}/{key}")
    def result(function: str, key: str, request: Request) -> Response:
        return results.result_page(Page(context, request), function, key)

    @router.get("/lists")
    def all_lists(request: Request) -> Response:
        return lists.lists_page(Page(context, request))

    @router.get("/lists/{name}")
    def one_list(name: str, request: Request) -> Response:
        return lists.list_page(Page(context, request), name)

    @router.get("/about")
    def about_page(request: Request) -> Response:
        return about.about_page(Page(context, request))

    @router.get("/docs")
    def docs(request: Request) -> Response:
        return about.docs_page(Page(context, request))


def _of_source(router: APIRouter, context: ServerContext) -> None:
    @router.get("/s/{source}")
    async def table(source: str, request: Request) -> Response:
        return overview.overview_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/random")
    async def random(source: str, request: Request) -> Response:
        return overview.random_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/f/{index}")
    async def one_feature(source: str, index: str, request: Request) -> Response:
        return await feature.feature_page(Page(context, request), context.registry.get(source), index)

    @router.get("/s/{source}/f/{index}/json")
    async def raw_feature(source: str, index: str, request: Request) -> Response:
        return feature.raw_page(Page(context, request), context.registry.get(source), index)

    @router.get("/s/{source}/text")
    async def typed(source: str, request: Request) -> Response:
        return await text.text_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/compare")
    def beside(source: str, request: Request) -> Response:
        return compare.compare_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/map")
    def plane(source: str, request: Request) -> Response:
        return map.map_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/map.json")
    def points(source: str, request: Request) -> Response:
        return map.map_points(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/doc")
    def documents(source: str, request: Request) -> Response:
        return document.documents_page(Page(context, request), context.registry.get(source))

    @router.get("/s/{source}/doc/{number}")
    def one_document(source: str, number: str, request: Request) -> Response:
        return document.document_page(Page(context, request), context.registry.get(source), number)
