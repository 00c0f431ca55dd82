"""The tasks that need no data of one's own: what each asks, of what, and how it is made."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from probes.problem import Target
from probes.tasks import answers, compounds, lexical, python_code, reviews, speeches, wordnet
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

_NOUNS = ("nouns of WordNet 3.0, shipped with the workbench", wordnet.LICENCE)


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
    "token_kinds": TaskSource(
        f"which kind of Python token: {', '.join(python_code.TOKEN_KINDS)}",
        "sources of the installed Python's standard library, by tokenize",
        python_code.LIBRARY_LICENCE,
        "token",
        "classes",
        "nothing",
        python_code.token_kinds,
    ),
    "prose_or_code": TaskSource(
        "Python statements, not a paragraph of a docstring",
        "sources of the installed Python's standard library",
        python_code.LIBRARY_LICENCE,
        "text",
        "binary",
        "nothing",
        python_code.prose_or_code,
    ),
    "docstring_package": TaskSource(
        "which package a docstring is from: numpy, scipy, sklearn, torch",
        "docstrings of installed packages",
        "those of the packages (BSD-3-Clause)",
        "text",
        "classes",
        "nothing",
        python_code.docstring_package,
    ),
    "compound": TaskSource(
        "social security, not one of the two words in other company", *_SPEECHES, "token", "binary", "nothing", compounds.compound
    ),
    "noun_class": TaskSource(
        "what a noun in a sentence names: an animal, a plant, a food, a vehicle, a piece of clothing",
        *_NOUNS,
        "token",
        "classes",
        "nothing",
        wordnet.noun_class,
    ),
    "is_animal": TaskSource("a noun in a sentence names an animal", *_NOUNS, "token", "binary", "nothing", wordnet.is_a),
    "arithmetic_answers": TaskSource(
        "the model's answer to a small sum is wrong",
        "sums of two numbers up to 20, answered by the model",
        "the workbench's own questions",
        "token",
        "binary",
        "model",
        answers.arithmetic_answers,
    ),
    "noun_answers": TaskSource(
        "the model is wrong about what a noun names a kind of", *_NOUNS, "token", "binary", "model", answers.noun_answers
    ),
    **{
        name: TaskSource(f"a token {found.question}", *_SPEECHES, "token", "binary", "nothing", partial(lexical.token_task, name))
        for name, found in lexical.PROPERTIES.items()
    },
}
"""The tasks that need no data of one's own. `CATALOGUE[name].make()` is the task: a Task, or a TokenTask, whose rows a tokenizer has to cut."""
