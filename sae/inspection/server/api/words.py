"""What people and explainers say: explanations with scores, notes, lists. The only routes that write, and only to the file of notes."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from sae.inspection.server.answers import ExplanationsAnswer, ItemAnswer, ListAnswer, ListsAnswer, NoteAnswer, problems
from sae.inspection.server.context import NAME, ServerContext
from sae.inspection.server.failures import NotFound
from sae.inspection.server.lookup import Lookup
from sae.inspection.server.notes import Collection, Explanation, ListItem, Score
from sae.inspection.server.schemas import Count, ExplanationBody, Latent, ListBody, NoQuery, NoteBody, ScoreBody, SourceName

PATH = "/sources/{source}/features/{index}"
Number = Annotated[Count, Path(ge=0, description="Number of an explanation.")]
ListName = Annotated[str, Path(pattern=f"^{NAME.pattern}$", max_length=128, description="Name of a list.")]
GONE = {"status_code": 204, "response_class": Response}


def words_router(context: ServerContext) -> APIRouter:
    """Explanations, notes and lists."""
    router, lookup = APIRouter(tags=["notes"]), Lookup(context)
    _explanations(router, lookup)
    _notes(router, lookup)
    _lists(router, lookup)
    return router


def _explanations(router: APIRouter, lookup: Lookup) -> None:
    @router.get(f"{PATH}/explanations", response_model=ExplanationsAnswer, responses=problems(404), operation_id="explanations")
    async def explanations(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """What is said about a feature, newest first."""
        found, latent = lookup.feature(source, index)
        notes = lookup.context.notes
        items = notes.explanations(found.dictionary, latent) if notes else ()
        return ExplanationsAnswer(items=list(items)).answer()

    @router.post(f"{PATH}/explanations", response_model=Explanation, status_code=201, responses=problems(404, 409), operation_id="explain")
    async def explain(source: SourceName, index: Latent, body: ExplanationBody, _: Annotated[NoQuery, Query()]) -> Explanation:
        """Say what a feature means. Its newest explanation by a person, else its newest, is its label."""
        found, latent = lookup.feature(source, index)
        return lookup.notes().add_explanation(found.dictionary, latent, body.text, method=body.method, author=body.author)

    @router.delete("/explanations/{number}", responses=problems(404, 409), operation_id="remove_explanation", **GONE)
    async def remove(number: Number, _: Annotated[NoQuery, Query()]) -> Response:
        """Remove an explanation and its scores."""
        if number >= 2**63 or not lookup.notes().remove_explanation(number):
            raise NotFound(f"there is no explanation {str(number)[:30]}", field="number")
        return Response(status_code=204)

    @router.post("/explanations/{number}/scores", response_model=Score, status_code=201, responses=problems(404, 409), operation_id="score")
    async def score(number: Number, body: ScoreBody, _: Annotated[NoQuery, Query()]) -> Score:
        """Say how an explanation did in a test."""
        notes = lookup.notes()
        if number >= 2**63 or notes.explanation(number) is None:
            raise NotFound(f"there is no explanation {str(number)[:30]}", field="number")
        return notes.add_score(number, body.method, float(body.value), body.details)


def _notes(router: APIRouter, lookup: Lookup) -> None:
    @router.get(f"{PATH}/note", response_model=NoteAnswer, responses=problems(404), operation_id="note")
    async def note(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """The note on a feature."""
        found, latent = lookup.feature(source, index)
        notes = lookup.context.notes
        written = notes.note(found.dictionary, latent) if notes else None
        if written is None:
            raise NotFound(f"there is no note on feature {latent} of {found.name}", field="index")
        return NoteAnswer(text=written[0], changed=written[1]).answer()

    @router.put(f"{PATH}/note", responses=problems(404, 409), operation_id="write_note", **GONE)
    async def write(source: SourceName, index: Latent, body: NoteBody, _: Annotated[NoQuery, Query()]) -> Response:
        """Write the note on a feature, over an earlier one."""
        found, latent = lookup.feature(source, index)
        lookup.notes().set_note(found.dictionary, latent, body.text)
        return Response(status_code=204)

    @router.delete(f"{PATH}/note", responses=problems(404, 409), operation_id="remove_note", **GONE)
    async def remove(source: SourceName, index: Latent, _: Annotated[NoQuery, Query()]) -> Response:
        """Remove the note on a feature."""
        found, latent = lookup.feature(source, index)
        if not lookup.notes().remove_note(found.dictionary, latent):
            raise NotFound(f"there is no note on feature {latent} of {found.name}", field="index")
        return Response(status_code=204)


def _lists(router: APIRouter, lookup: Lookup) -> None:
    @router.get("/lists", response_model=ListsAnswer, responses=problems(), operation_id="lists")
    async def lists(_: Annotated[NoQuery, Query()]) -> Response:
        """Every list."""
        notes = lookup.context.notes
        return ListsAnswer(items=[_list(lookup, found) for found in (notes.lists() if notes else ())]).answer()

    @router.get("/lists/{name}", response_model=ListAnswer, responses=problems(404), operation_id="list")
    async def one(name: ListName, _: Annotated[NoQuery, Query()]) -> Response:
        """One list."""
        notes = lookup.context.notes
        found = notes.collection(name) if notes else None
        if found is None:
            raise NotFound(f"there is no list {name!r}", field="name")
        return _list(lookup, found).answer()

    @router.put("/lists/{name}", responses=problems(404, 409), operation_id="write_list", **GONE)
    async def write(name: ListName, body: ListBody, _: Annotated[NoQuery, Query()]) -> Response:
        """Write a list, over an earlier one of this name."""
        notes, items = lookup.notes(), []
        for item in body.items:
            found, latent = lookup.feature(item.source, item.index)
            items.append(ListItem(found.dictionary, latent, item.comment))
        notes.set_list(name, title=body.title, description=body.description, items=items)
        return Response(status_code=204)

    @router.delete("/lists/{name}", responses=problems(404, 409), operation_id="remove_list", **GONE)
    async def remove(name: ListName, _: Annotated[NoQuery, Query()]) -> Response:
        """Remove a list."""
        if not lookup.notes().remove_list(name):
            raise NotFound(f"there is no list {name!r}", field="name")
        return Response(status_code=204)


def _list(lookup: Lookup, found: Collection) -> ListAnswer:
    named = lookup.dictionary_name()
    items = [
        ItemAnswer(source=named(item.dictionary), dictionary=item.dictionary, index=item.index, comment=item.comment)
        for item in found.items
    ]
    return ListAnswer(name=found.name, title=found.title, description=found.description, changed=found.changed, items=items)
