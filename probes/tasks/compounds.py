"""Two words that belong together: is this the compound, or one of its words in other company?

    positive   "... social security"       negative   half "... national security" (the second word after another),
                                                       half "... social progress"  (the first word followed by another)

Negatives of the first half have the compound's last word and those of the second its first word, so that neither word alone decides: a
probe must combine them (Gurnee et al., arXiv 2305.01610, data set "compound words"). The row is the last word; nothing after it is in the text.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from probes.tasks.task import MIN_PER_CLASS, Task, check_counts
from sae.errors import ConfigError

if TYPE_CHECKING:
    from sae.activations.corpus import Corpus

WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def compound(
    first: str = "social",
    second: str = "security",
    corpus: "Corpus | None" = None,
    *,
    positive_share: float = 0.2,
    n_words: int = 24,
    n_rows: int | None = None,
    seed: int = 0,
) -> Task:
    """Whether `first second` ends a text of `n_words` words, against hard negatives; see the module's text.

    Upper and lower case count as the same; `corpus` None is the State of the Union. Of all occurrences as many are drawn as `positive_share`
    allows, at most `n_rows`, with as many negatives of one half as of the other (to one row). Words must stand next to each other, with
    white space alone between them. Groups are documents.
    Raises ConfigError for words that are none, and, with the counts, when one of the three sorts occurs fewer than 20 times.
    """
    for name, word in (("first", first), ("second", second)):
        if not WORDS.fullmatch(word):
            raise ConfigError(f"{name} must be one word of letters, got {word!r} (compound)")
    if not 0 < positive_share < 1 or n_words < 2:
        raise ConfigError(f"positive_share must be between 0 and 1 and n_words at least 2, got {positive_share} and {n_words} (compound)")
    if corpus is None:
        from sae.activations.corpus import state_of_the_union

        corpus = state_of_the_union()
    found = list(_occurrences(corpus, first.lower(), second.lower(), n_words))
    sorts = (f"{first} {second}", f"{second} without {first}", f"{first} followed by something else")
    counts = {name: sum(sort == i for sort, *_ in found) for i, name in enumerate(sorts)}
    check_counts(
        counts, MIN_PER_CLASS, "occurrences", f"compound {first} {second} in {corpus.name}", "choose other words or a larger corpus"
    )
    chosen = _chosen([sort for sort, *_ in found], list(counts.values()), positive_share, n_rows, seed)
    rows = [found[i] for i in chosen]
    return Task(
        f"compound_{first}_{second}",
        "token",
        tuple(text for _, text, _, _ in rows),
        np.array([int(sort == 0) for sort, *_ in rows], dtype=np.int64),
        np.array([document for *_, document in rows], dtype=np.int64),
        (f"only one word of {first} {second}", f"{first} {second}"),
        f"corpus {corpus.name}",
        corpus.licence,
        spans=np.array([(i, begin, len(text)) for i, (_, text, begin, _) in enumerate(rows)], dtype=np.int64),
    )


def _occurrences(corpus: "Corpus", first: str, second: str, n_words: int) -> Iterator[tuple[int, str, int, int]]:
    """(sort, text, first character of its last word, document) of every place with one of the two words."""
    for document in corpus.documents():
        words = list(WORDS.finditer(document.text))
        lower = [word.group().lower() for word in words]
        for i in range(1, len(words)):
            after_first = lower[i - 1] == first and document.text[words[i - 1].end() : words[i].start()].isspace()
            if not after_first and lower[i] != second:
                continue
            sort = 1 if not after_first else 0 if lower[i] == second else 2
            begin = words[max(0, i - n_words + 1)].start()
            text = document.text[begin : words[i].end()]
            yield sort, text, words[i].start() - begin, document.id


def _chosen(sorts: list[int], counts: list[int], positive_share: float, n_rows: int | None, seed: int) -> list[int]:
    """Numbers of the drawn occurrences, ascending: the positives, and equally many of both sorts of negatives."""
    most = int(min(counts[0] / positive_share, 2 * min(counts[1:]) / (1 - positive_share)) + 1e-9)
    total = most if n_rows is None else min(most, n_rows)
    n_positive = round(total * positive_share)
    n_each = [n_positive, (total - n_positive) // 2, (total - n_positive) // 2]
    generator = np.random.default_rng(seed)
    of_sort = [np.flatnonzero(np.array(sorts) == sort) for sort in range(3)]
    return sorted(int(i) for rows, n in zip(of_sort, n_each, strict=True) for i in generator.choice(rows, n, replace=False))
