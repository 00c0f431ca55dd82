"""Documents to token ids, a few at a time, with memory that does not grow with a document.

    documents --chunks of 50,000 characters--> tokenizer --> (document id, token ids), in order

A document of more than 100,000 characters is tokenised in pieces, and comes as several pairs of one id. It is cut where the tokenizer
splits text anyway, so that the pieces' tokens, end to end, are those of the whole: a byte-level BPE (GPT-2, Llama 3, SmolLM2) never
merges across the place before a space that follows a non-space and precedes a letter. Every cut is tried before it is made: the text around
it must have the same tokens when it is tokenised in two. Where no place in reach passes (three million letters without a space) the piece
ends at its full length, and the tokens next to that cut may differ from those of the whole.
"""

import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from sae.activations.corpus import Document
from sae.errors import ConfigError

logger = logging.getLogger(__name__)

CHUNK_CHARACTERS = 50_000  # enough for a tokenizer to be efficient, little to have done in vain
PIECE_CHARACTERS = 100_000  # allocations of a size that the C library uses again: pieces of a million took 100 MB each and kept them
REACH = 10_000  # characters before the full length of a piece in which a place to cut is looked for
WINDOW = 500  # characters on each side of a cut that are tokenised to try it
TRIED = 8  # places of each kind that are tried, the last ones in reach
PLACES = (
    re.compile(r"(?<=\S) (?=[^\W\d_])"),  # before a word
    re.compile(r"(?<=\n)(?=\S)"),  # at the start of a line
    re.compile(r"(?<=[^\W\d_])(?=[\W\d_])|(?<=[\W\d_])(?=[^\W\d_])"),  # between a letter and something else
    re.compile(r"(?s)(?=.)"),  # anywhere
)


@runtime_checkable
class Tokenize(Protocol):
    """Token ids of each text, as `LanguageModel.tokenize` gives them."""

    def __call__(self, texts: list[str], *, special_tokens: bool = False) -> Sequence[Sequence[int]]:
        """`special_tokens`: text that spells a special token is that token."""
        ...


def token_lists(
    documents: Iterable[Document],
    tokenize: Tokenize,
    *,
    chunk_characters: int = CHUNK_CHARACTERS,
    piece_characters: int = PIECE_CHARACTERS,
) -> Iterator[tuple[int, Sequence[int]]]:
    """(document id, token ids) of every document, in order; consecutive pairs of one id are the pieces of one document.

    `tokenize` is `LanguageModel.tokenize` or another `Tokenize`; it is called with texts of about `chunk_characters` in all, one piece of at
    most `piece_characters` of a longer document at a time, and with `special_tokens=True` for documents that ask for it. Raises ConfigError
    when two documents that follow each other have one id, for they could not be told apart.
    """
    if chunk_characters < 1 or piece_characters < 2:
        raise ConfigError(f"chunk_characters must be at least 1 and piece_characters 2, got {chunk_characters} and {piece_characters}")
    return _token_lists(_distinct(documents), tokenize, chunk_characters, piece_characters)


def _token_lists(
    documents: Iterable[Document], tokenize: Tokenize, chunk_characters: int, piece_characters: int
) -> Iterator[tuple[int, Sequence[int]]]:
    for chunk in _chunks(documents, chunk_characters, piece_characters):
        special = {"special_tokens": True} if chunk[0].special_tokens else {}
        if len(chunk) == 1 and len(chunk[0].text) > piece_characters:
            for text in pieces(chunk[0].text, lambda texts, options=special: tokenize(texts, **options), piece_characters):
                yield chunk[0].id, tokenize([text], **special)[0]
        else:
            lists = tokenize([document.text for document in chunk], **special)
            yield from zip((document.id for document in chunk), lists, strict=True)


def _distinct(documents: Iterable[Document]) -> Iterator[Document]:
    previous = None
    for document in documents:
        if document.id == previous:
            raise ConfigError(f"documents must have ids of their own, two that follow each other have {document.id}; number them anew")
        previous = document.id
        yield document


def _chunks(documents: Iterable[Document], n_characters: int, alone: int) -> Iterator[list[Document]]:
    """Consecutive documents of one kind, in lists that end with the one that brings them to `n_characters`; those longer than `alone` alone."""
    chunk: list[Document] = []
    length = 0
    for document in documents:
        if chunk and (len(document.text) > alone or document.special_tokens != chunk[0].special_tokens):
            yield chunk
            chunk, length = [], 0
        chunk.append(document)
        length += len(document.text)
        if length >= n_characters:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def pieces(text: str, tokenize: Callable[[list[str]], Sequence[Sequence[int]]], n_characters: int) -> Iterator[str]:
    """`text` in pieces of at most `n_characters`, cut so that their token ids, end to end, are those of the whole where that can be had.

    A tokenizer that puts a space before every text it is given (SentencePiece) is left the space at which the text is cut, so the pieces may
    lack one character between them.
    """
    start = 0
    while len(text) - start > n_characters:
        end, resume = _cut(text, start, start + n_characters, tokenize)
        yield text[start:end]
        start = resume
    yield text[start:]


def _cut(text: str, start: int, full: int, tokenize: Callable[[list[str]], Sequence[Sequence[int]]]) -> tuple[int, int]:
    """Where the piece that begins at `start` ends, at `full` at the latest, and where the next one begins: there, or after a space."""
    first = max(start + 1, full - min(REACH, (full - start) // 2))
    for place in PLACES:
        found = [match.start() for match in place.finditer(text, first, full + 1)]
        for end, skipped in itertools.product(reversed(found[-TRIED:]), (0, 1)):
            if not skipped or text[end : end + 1] == " ":
                before, after = text[max(start, end - WINDOW) : end], text[end + skipped : end + skipped + WINDOW]
                whole, left, right = tokenize([text[max(start, end - WINDOW) : end + skipped + WINDOW], before, after])
                if [*whole] == [*left, *right]:
                    return end, end + skipped
    logger.info("no place to cut in the %d characters before character %d: the tokens next to it may be others", full - first, full)
    return full, full
