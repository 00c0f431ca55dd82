"""Other versions of a text that say the same, or its other half: strings in, strings out.

    halves        the first and the second half of the words
    characters    each letter, with probability `rate`: replaced, left out, doubled, or changed with its neighbour
    words         each word, with probability `rate`: left out

A view depends on the text's words, its number in the list, the number of the view and the seed, and on nothing else: no global generator is read,
and the views of the first ten texts are the same with or without the others. After nlpaug's character and word augmenters (Ma 2019), as
used by Skean et al. 2025 (arXiv 2502.02013).
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from sae.errors import ConfigError

ViewKind = Literal["halves", "characters", "words"]
"""How a view is made."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SENTENCE_END = re.compile(r"[.!?][\"')\]]* (?=[\"'(\[]*[A-Z])")


def text_views(texts: Sequence[str], *, kind: ViewKind, n_views: int, rate: float = 0.1, seed: int = 0) -> list[tuple[str, ...]]:
    """`n_views` views of every text; "halves" has exactly 2 and no `rate`.

    Raises ConfigError for another kind, n_views < 1, a rate outside [0, 1), and a text of too few words: none, or one for "halves".
    """
    if kind not in get_args(ViewKind):
        raise ConfigError(f"kind must be one of {', '.join(map(repr, get_args(ViewKind)))}, got {kind!r} (text_views)")
    if n_views < 1 or (kind == "halves" and n_views != 2):
        raise ConfigError(f"n_views must be at least 1, and 2 for halves, got {n_views} of {kind} (text_views)")
    if kind == "halves":
        return [halves(text) for text in texts]
    change = with_character_noise if kind == "characters" else with_dropped_words
    return [tuple(change(text, rate=rate, seed=f"{seed}/{i}/{v}") for v in range(n_views)) for i, text in enumerate(texts)]


def halves(text: str) -> tuple[str, str]:
    """The text up to and from its middle word; with an odd number of words the first half is the shorter one.

    Raises ConfigError for fewer than 2 words.
    """
    words = _words(text, minimum=2)
    middle = len(words) // 2
    return "".join(words[:middle]).strip(), "".join(words[middle:]).strip()


def with_character_noise(text: str, *, rate: float, seed: int | str) -> str:
    """The text with about `rate` of its letters disturbed; blanks, digits and signs stay. A word never loses its last letter.

    Raises ConfigError for a rate outside [0, 1) and a text without words.
    """
    source, words = _source(rate, seed), _words(text, minimum=1)
    return "".join(_noisy(word, rate, source) for word in words)


def with_dropped_words(text: str, *, rate: float, seed: int | str) -> str:
    """The text without about `rate` of its words; at least one is kept. Errors as `with_character_noise`."""
    source, words = _source(rate, seed), _words(text, minimum=1)
    kept = [word for word in words if source.random() >= rate]
    return "".join(kept or [source.choice(words)]).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text, by its full stops, question and exclamation marks before a capital letter; blanks are single."""
    single = " ".join(text.split())
    ends = [match.end() for match in SENTENCE_END.finditer(single)]
    return [single[start:end].strip() for start, end in zip([0, *ends], [*ends, len(single)], strict=True) if start < end]


def sampled_sentences(texts: Iterable[str], n: int, *, seed: int = 0, shortest: int = 6) -> list[str]:
    """`n` different sentences of at least `shortest` words, drawn at random without replacement from all those of `texts`.

    Raises ConfigError when there are fewer, or n < 1.
    """
    found = dict.fromkeys(s for text in texts for s in sentences(text) if len(s.split()) >= shortest)
    if not 1 <= n <= len(found):
        raise ConfigError(f"n must be in 1..{len(found)}, the sentences of at least {shortest} words, got {n} (sampled_sentences)")
    return random.Random(f"sentences/{seed}").sample(list(found), n)


def _source(rate: float, seed: int | str) -> random.Random:
    if not 0 <= rate < 1:
        raise ConfigError(f"rate must be in [0, 1), got {rate} (text views)")
    return random.Random(f"views/{seed}")


def _words(text: str, *, minimum: int) -> list[str]:
    """Words with the blanks that follow them; the first also with those before it."""
    words = re.findall(r"^\s*\S+\s*|\S+\s*", text)
    if len(words) < minimum:
        raise ConfigError(f"a text must have at least {minimum} word{'s' * (minimum > 1)}, got {text!r} (text views)")
    return words


def _noisy(word: str, rate: float, source: random.Random) -> str:
    letters: list[str] = []
    pending = list(word)
    n_left = sum(character.isalpha() for character in pending)
    while pending:
        character = pending.pop(0)
        if not character.isalpha() or source.random() >= rate:
            letters.append(character)
            continue
        change = source.randrange(4)
        if change == 0:
            letters.append(source.choice(LETTERS))
        elif change == 1 and n_left > 1:
            n_left -= 1
        elif change == 2:
            letters += [character, character]
        elif pending and pending[0].isalpha():
            letters += [pending.pop(0), character]
        else:
            letters.append(character)
    return "".join(letters)
