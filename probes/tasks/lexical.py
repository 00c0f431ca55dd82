"""Questions about a token's own string: is it a number, capitalised, does it begin with a space. Only a tokenizer can cut the tokens.

    label(t) = property(string of t)        t: a token of a text (TokenTask), or of the vocabulary (vocabulary_problem)

The properties are those of Gurnee et al., "Finding Neurons in a Haystack", 2023, arXiv 2305.01610, data set "text features", with the ends of
words beside them. A token that is part of a character (some bytes of it) has no string, and is left out.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from probes.problem import Problem
from probes.tasks.offsets import Tokenizer, token_offsets, token_strings
from probes.tasks.task import MIN_PER_CLASS, Task, check_counts
from sae.errors import ConfigError
from sae.fingerprint import canonical

WORD = re.compile(r" ?[^\W\d_]+")


class Property(NamedTuple):
    """A question about a string, and its answer."""

    question: str
    """What is asked."""
    holds: Callable[[str], bool]
    """The answer for a token's string, which is never empty."""


PROPERTIES = {
    "contains_digit": Property("has a digit in it", lambda s: any(c.isdigit() for c in s)),
    "all_digits": Property("consists of digits, apart from spaces around", lambda s: s.strip().isdigit()),
    "contains_capital": Property("has a capital letter in it", lambda s: any(c.isupper() for c in s)),
    "leading_capital": Property("begins with a capital letter, after a space or not", lambda s: s.lstrip()[:1].isupper()),
    "all_capitals": Property("has two letters or more, all capitals", lambda s: s.strip().isalpha() and s.isupper() and len(s.strip()) > 1),
    "contains_whitespace": Property("has white space in it", lambda s: any(c.isspace() for c in s)),
    "has_leading_space": Property("begins with a space", lambda s: s.startswith(" ")),
    "lower_without_space": Property("is lower-case letters without a space: goes on with a word", lambda s: s.isalpha() and s.islower()),
    "all_whitespace": Property("is white space only", lambda s: s.isspace()),
    "punctuation": Property(
        "has neither letter nor digit nor white space but around", lambda s: bool(re.fullmatch(r"[^\w\s]+", s.strip()))
    ),
    "not_alphanumeric": Property("has no letter or digit in it", lambda s: not any(c.isalnum() for c in s)),
    "not_ascii": Property("has a character that is not ASCII", lambda s: not s.isascii()),
    "ends_ing": Property("is letters that end in -ing", lambda s: bool(WORD.fullmatch(s)) and s.lower().endswith("ing")),
    "ends_s": Property(
        "is letters that end in -s but not -ss", lambda s: bool(WORD.fullmatch(s)) and bool(re.search("(?<!s)s$", s.lower()))
    ),
}
"""What can be asked of a token's string, by name."""


@dataclass(frozen=True, eq=False)
class TokenTask:
    """A question about every token of some texts, which `labelled` makes a Task for one tokenizer. Raises ConfigError for a property there is not."""

    name: str
    """What to call it in a table or a file name."""
    property: str
    """One of PROPERTIES."""
    texts: tuple[str, ...]
    """The texts."""
    groups: Int[np.ndarray, " n_texts"]
    """Document of each text; splits keep these together."""
    source: str
    """Where the texts are from."""
    licence: str
    """Licence of the texts, in words."""
    n_rows: int = 5000
    """How many tokens the labelled task has at most."""
    positive_share: float | None = 0.5
    """Share of them that has the property; None: as it comes."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        _holds(self.property)
        if len(self.texts) != len(self.groups):
            raise ConfigError(
                f"groups must have one entry per text, got {len(self.groups)} for {len(self.texts)} texts (task {self.name!r})"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields."""
        options = [self.name, self.property, self.source, self.licence, self.n_rows, self.positive_share, self.seed]
        state = hashlib.sha256(canonical([options, self.groups.tolist()]).encode("ascii"))
        for text in self.texts:
            state.update(canonical([text]).encode("ascii"))
        return state.hexdigest()

    def labelled(self, tokenizer: Tokenizer) -> Task:
        """The task of kind "token" whose rows are tokens that `tokenizer` cuts: its classes are "no" and "yes".

        At most `n_rows`, drawn by `seed`. Raises ConfigError, saying how many there are, when too few tokens have the property, or lack it.
        """
        holds, strings = _holds(self.property), token_strings(tokenizer)
        answers: dict[int, bool | None] = {}
        spans, y, groups = [], [], []
        for number, tokens in enumerate(token_offsets(tokenizer, self.texts)):
            for token, (begin, end) in zip(tokens.ids, tokens.offsets, strict=True):
                if token not in answers:
                    answers[token] = None if "\ufffd" in strings[token] or not strings[token] else holds(strings[token])
                if answers[token] is not None and end > begin:
                    spans.append((number, begin, end))
                    y.append(int(answers[token] or False))
                    groups.append(int(self.groups[number]))
        labels = np.array(y, dtype=np.int64)
        check_counts(_counts(labels), MIN_PER_CLASS, "tokens", f"task {self.name!r}, {self.property}", "give more texts")
        places = np.array(spans, dtype=np.int64)
        whole = Task(self.name, "token", self.texts, labels, np.array(groups), ("no", "yes"), self.source, self.licence, spans=places)
        if self.positive_share is None:
            return whole.sample(min(self.n_rows, len(whole)), seed=self.seed)
        counts = np.bincount(labels, minlength=2)
        most = int(min(counts[1] / self.positive_share, counts[0] / (1 - self.positive_share)))
        return whole.balanced(self.positive_share, min(self.n_rows, most), seed=self.seed)


def _holds(name: str) -> Callable[[str], bool]:
    if name not in PROPERTIES:
        raise ConfigError(f"property must be one of {', '.join(PROPERTIES)}, got {name!r}")
    return PROPERTIES[name].holds


def _counts(labels: np.ndarray) -> dict[str, int]:
    return dict(zip(("no", "yes"), np.bincount(labels, minlength=2).tolist(), strict=True))


def token_task(name: str, texts: Sequence[str] | None = None, groups: Any = None, **options: Any) -> TokenTask:
    """The question `name` (one of PROPERTIES) about the tokens of `texts`; None: 64-word passages of State of the Union addresses.

    `groups` are the texts' documents (None: every text by itself). `options` are n_rows, positive_share, seed, source and licence of TokenTask.
    """
    if texts is None:
        from probes.tasks.speeches import passages
        from sae.activations.corpus import state_of_the_union

        corpus = state_of_the_union()
        texts, groups = passages(corpus, n_per_document=4)
        options = {"source": f"corpus {corpus.name}", "licence": corpus.licence, **options}
    numbers = np.arange(len(texts)) if groups is None else np.asarray(groups, dtype=np.int64)
    return TokenTask(
        name, name, tuple(texts), numbers, options.pop("source", "texts given"), options.pop("licence", "not stated"), **options
    )


def vocabulary_problem(strings: Sequence[str], name: str, *, tokens: Int[np.ndarray, "_"] | None = None) -> Problem:
    """Which tokens of a vocabulary have the property `name`: row i of a source is token i, as in an embedding or an unembedding.

    `strings` are the texts of the tokens (`LanguageModel.vocabulary`), `tokens` those that are asked about (None: all); tokens that are
    part of a character, or not used, are left out. Raises ConfigError, saying how many there are, when fewer than 20 have the property, or
    lack it: one digit a token, as many tokenizers have it, leaves ten numbers in the whole vocabulary.
    """
    holds = _holds(name)
    chosen = np.arange(len(strings)) if tokens is None else tokens
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(strings)):
        raise ConfigError(f"tokens must be in 0..{len(strings) - 1}, got {chosen.min()}..{chosen.max()} (vocabulary_problem)")
    rows = np.array([i for i in chosen.tolist() if strings[i] and "\ufffd" not in strings[i] and not strings[i].startswith("<unused ")])
    y = np.array([int(holds(strings[i])) for i in rows.tolist()], dtype=np.int64)
    check_counts(
        _counts(y),
        MIN_PER_CLASS,
        "tokens",
        f"{name} over {len(rows):,} tokens of a vocabulary",
        "ask about more tokens, or another property",
    )
    return Problem(name, rows.astype(np.int64), y, np.arange(len(rows)), ("no", "yes"))
