"""What a corpus is, and what can be made of corpora: Document, Corpus, strings as a corpus, mixtures, shuffles and beginnings.

    Corpus = (name, digest, licence, documents()),     Document = (id, text, labels, special_tokens)

Text is Unicode that UTF-8 can write: a lone half of a surrogate pair (what a wrong decoder leaves behind) is refused, or replaced where
`encoding_errors="replace"` asks for it. NUL, byte order marks inside a string and line ends of any kind are characters like others.
"""

import hashlib
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sae.errors import ConfigError
from sae.fingerprint import canonical, digest

logger = logging.getLogger(__name__)

Labels = Mapping[str, str | int]
EncodingErrors = Literal["strict", "replace"]
MAX_DOCUMENT_ID = 2**31 - 1
SHUFFLED_DOCUMENTS, SHUFFLED_CHARACTERS = 10_000, 50_000_000  # a shuffle holds at most as many at a time
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One text with what is known about it."""

    id: int
    """Number of the document in its corpus, 0 .. 2^31 - 1; unique within the corpus."""
    text: str
    """The text, as it is tokenised."""
    labels: Labels
    """What is known about the text: column name to string or whole number."""
    special_tokens: bool = False
    """Whether text that spells a special token is that token (the tags of a chat template are), and not the characters it is spelled with."""

    def __post_init__(self) -> None:
        if not 0 <= self.id <= MAX_DOCUMENT_ID:
            raise ConfigError(f"id must be in 0..{MAX_DOCUMENT_ID}, got {self.id} (Document)")
        for name, value in (("text", self.text), *self.labels.items()):
            if isinstance(value, str) and (at := lone_surrogate(value)) is not None:
                what = f"the lone surrogate {value[at]!r} at character {at}"
                raise ConfigError(
                    f"{name} must be Unicode that UTF-8 can write, that of document {self.id} has {what}; {REMEDY} (Document)"
                )


REMEDY = "replace it by U+FFFD (encoding_errors='replace' does that where the corpus is made), or decode the text anew from its bytes"


@dataclass(frozen=True)
class Corpus:
    """A named, re-iterable stream of documents."""

    name: str
    """What to call it in a manifest or a table."""
    digest: str
    """SHA-256 that covers the documents (or the files they are read from) and every option that selects or orders them."""
    licence: str
    """Licence of the texts, in words."""
    source: Callable[[], Iterator[Document]] = field(repr=False, compare=False)
    """Starts a new pass over the documents."""
    special_tokens: bool = False
    """Whether there are documents whose text spells special tokens that are to be tokens; each document says it of itself."""

    def documents(self) -> Iterator[Document]:
        """A new pass over all documents, always in the same order. Raises ConfigError when there is none."""
        empty = True
        for document in self.source():
            empty = False
            yield document
        if empty:
            raise ConfigError(f"corpus {self.name!r} is empty: it yields no document with any text in it")


def lone_surrogate(text: str) -> int | None:
    """Where the first half of a surrogate pair without its other half is in `text`; None when UTF-8 can write the whole."""
    if text.isascii():
        return None
    found = SURROGATE.search(text)
    return found.start() if found else None


def without_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined into their character and each lone half replaced by U+FFFD."""
    if lone_surrogate(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_encoding_errors(value: str) -> None:
    """Raises ConfigError unless `value` is "strict" or "replace"."""
    if value not in ("strict", "replace"):
        raise ConfigError(f"encoding_errors must be 'strict' or 'replace', got {value!r}")


def without_blanks(documents: Iterable[tuple[int, str | None, Labels]], name: str, *, special_tokens: bool = False) -> Iterator[Document]:
    """The documents of (id, text, labels) that have any text in them; how many have none is logged when the pass is over."""
    n_blank = 0
    for number, text, labels in documents:
        if text is None or not text.strip():
            n_blank += 1
        else:
            yield Document(number, text, labels, special_tokens)
    if n_blank:
        logger.info("%s: left out %d documents without text", name, n_blank)


def from_texts(
    texts: Sequence[str],
    labels: Sequence[Labels] | None = None,
    *,
    name: str = "texts",
    licence: str = "not stated",
    encoding_errors: EncodingErrors = "strict",
) -> Corpus:
    """The corpus of the given strings, in their order; `labels[i]` belongs to `texts[i]`, and i is the document's id. Blank ones are left out.

    `encoding_errors` says what happens to a lone surrogate: an error, or U+FFFD in its place. Raises ConfigError when there is no text, when
    the two lengths differ, or for a text or label that is none.
    """
    check_encoding_errors(encoding_errors)
    if isinstance(texts, str):
        raise ConfigError(f"texts must be a sequence of strings, got one string {texts[:40]!r} (from_texts)")
    if labels is not None and len(labels) != len(texts):
        raise ConfigError(f"labels must have one entry per text, got {len(labels)} labels for {len(texts)} texts (from_texts)")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"texts must be a sequence of strings, texts[{i}] is a {type(text).__name__} (from_texts)")
    if not any(text.strip() for text in texts):
        raise ConfigError(f"texts must hold at least one text that is not blank, got {len(texts)} texts (from_texts)")
    mend = without_surrogates if encoding_errors == "replace" else str
    rows = [(i, mend(text), checked_labels(labels[i] if labels else {}, f"labels[{i}]")) for i, text in enumerate(texts)]
    state = hashlib.sha256(b"texts")
    for _, text, known in rows:
        state.update(canonical([text, known]).encode("ascii"))
    for row in rows:
        Document(*row)  # faults are found here, not in the middle of a pass
    return Corpus(name, state.hexdigest(), licence, lambda: without_blanks(rows, name))


def checked_labels(labels: Mapping[str, Any], where: str) -> dict[str, str | int]:
    """A copy of `labels`. Raises ConfigError for one that is neither a string nor a whole number."""
    for column, value in labels.items():
        if not isinstance(value, (str, int)):
            raise ConfigError(f"labels must be strings or integers, {column!r} of {where} is {value!r}")
    return dict(labels)


def mixture(corpora: Sequence[Corpus], *, seed: int = 0) -> Corpus:
    """The corpora interleaved document by document: each next one comes from a corpus drawn uniformly among those not yet exhausted.

    Ids are renumbered 0, 1, 2 ... in the new order, and each document gains the label `corpus`, the name of the one it came from.
    Nothing is held in memory but one open pass per corpus.
    """
    if not corpora:
        raise ConfigError("corpora must hold at least one corpus, got none (mixture)")

    def documents() -> Iterator[Document]:
        generator = random.Random(seed)
        passes = [(corpus.name, corpus.documents()) for corpus in corpora]
        number = 0
        while passes:
            name, stream = passes[(choice := generator.randrange(len(passes)))]
            document = next(stream, None)
            if document is None:
                del passes[choice]
                continue
            yield replace(document, id=number, labels={**document.labels, "corpus": name})
            number += 1

    name = "+".join(corpus.name for corpus in corpora)
    licence = "; ".join(dict.fromkeys(corpus.licence for corpus in corpora))
    identity = {"mixture": [[corpus.name, corpus.digest] for corpus in corpora], "seed": seed}
    return Corpus(name, digest(identity), licence, documents, any(corpus.special_tokens for corpus in corpora))


def shuffled(corpus: Corpus, *, seed: int) -> Corpus:
    """The documents of `corpus` in a seeded order; each keeps its id.

    They pass through a buffer of at most 10,000 documents and 50 million characters (or one document that is longer), which they leave at
    random: a smaller corpus comes in a uniformly random order, and of a larger one memory holds no more than that. Shuffle the files of
    a large corpus that is sorted, or load it and shuffle it whole, before it becomes a corpus.
    """

    def documents() -> Iterator[Document]:
        generator = random.Random(seed)
        buffer: list[Document] = []
        n_characters = 0
        for document in corpus.documents():
            buffer.append(document)
            n_characters += len(document.text)
            while len(buffer) > SHUFFLED_DOCUMENTS or (n_characters > SHUFFLED_CHARACTERS and len(buffer) > 1):
                choice = generator.randrange(len(buffer))
                buffer[choice], buffer[-1] = buffer[-1], buffer[choice]
                leaving = buffer.pop()
                n_characters -= len(leaving.text)
                yield leaving
        generator.shuffle(buffer)
        while buffer:
            yield buffer.pop()

    identity = {"shuffled": corpus.digest, "seed": seed, "documents": SHUFFLED_DOCUMENTS, "characters": SHUFFLED_CHARACTERS}
    return replace(corpus, digest=digest(identity), source=documents)


def beginning(corpus: Corpus, n_documents: int) -> Corpus:
    """The first `n_documents` documents of `corpus`, or all it has. Raises ConfigError unless `n_documents` is at least 1."""
    if n_documents < 1:
        raise ConfigError(f"n_documents must be at least 1, got {n_documents} (beginning)")
    identity = {"beginning": corpus.digest, "documents": n_documents}
    return replace(corpus, digest=digest(identity), source=lambda: itertools.islice(corpus.documents(), n_documents))
