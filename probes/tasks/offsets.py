"""Where in a text each token stands: the tokenizer's offsets, and the tokens of a span of characters.

    token j of a text covers the characters begin_j .. end_j - 1        a span takes every token that shares a character with it

A byte-level tokenizer cuts a character of several bytes into tokens that all cover that character; the last of them is the span's last token.
A token's leading space belongs to it, so the span of a word takes the token that begins with the space before the word.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sae.errors import ConfigError

CHUNK = 512  # texts that are tokenised at a time


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a tokenizer; the fast ones of Hugging Face have it, as `LanguageModel.tokenizer`."""

    def __call__(self, text: Any, **options: Any) -> Any:
        """Ids and offsets of texts."""
        ...


class TextTokens(NamedTuple):
    """The tokens of one text."""

    ids: list[int]
    """Token ids, without special tokens."""
    offsets: list[tuple[int, int]]
    """First character of each token and the one after its last; ascending."""


def token_offsets(tokenizer: Tokenizer, texts: Sequence[str]) -> list[TextTokens]:
    """Ids and offsets of each text, tokenised as `LanguageModel.tokenize` does: no special token is added, none is read from the text.

    Raises ConfigError for a tokenizer that gives no offsets.
    """
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False, "split_special_tokens": True}
    found = []
    for start in range(0, len(texts), CHUNK):
        try:
            encoded = tokenizer(list(texts[start : start + CHUNK]), return_offsets_mapping=True, **options)
        except (NotImplementedError, TypeError) as error:
            what = "give offsets of tokens in the text, as the fast ones of Hugging Face do"
            raise ConfigError(f"tokenizer must {what}, got a {type(tokenizer).__name__}: load it with use_fast=True") from error
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            found.append(TextTokens(list(ids), [tuple(pair) for pair in offsets]))
    return found


def token_strings(tokenizer: Any) -> list[str]:
    """The text of each token id: leading spaces kept, U+FFFD for bytes that are no character by themselves."""
    n = len(tokenizer)
    raw: list[str] = tokenizer.convert_ids_to_tokens(list(range(n)))
    texts: list[str] = tokenizer.batch_decode([[i] for i in range(n)], clean_up_tokenization_spaces=False)
    # SentencePiece marks a space by U+2581 and drops it at the start of a text.
    return [f" {text}" if token.startswith("\u2581") and not text.startswith(" ") else text for token, text in zip(raw, texts, strict=True)]
