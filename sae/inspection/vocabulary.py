"""The text of every token id, with the bytes of incomplete characters named.

A byte-level tokenizer cuts characters: alone such a piece has no text, and decoding it gives U+FFFD, the same for all of them. Here its
bytes are written out, as in `⟨E2⟩`, so two different pieces look different.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from sae.errors import ConfigError

REPLACEMENT = "\ufffd"
BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def token_texts(vocabulary: Sequence[str] | None, model: Any, *, n_least: int) -> list[str]:
    """The text of each token id: from `vocabulary`, or from the model (`vocabulary()` and the tokenizer's raw pieces), or the ids
    themselves (`#17`).

    Raises ConfigError when there are fewer than `n_least` texts, the number of ids the corpus uses.
    """
    if vocabulary is None and model is None:
        return [f"#{i}" for i in range(n_least)]
    texts = list(vocabulary if vocabulary is not None else model.vocabulary())
    if len(texts) < n_least:
        raise ConfigError(f"vocabulary must have a text for each of the {n_least} token ids of the corpus, got {len(texts)} (build_index)")
    tokenizer = getattr(model, "tokenizer", None)
    broken = [i for i, text in enumerate(texts) if REPLACEMENT in text]
    if broken and hasattr(tokenizer, "convert_ids_to_tokens"):
        for i, piece in zip(broken, tokenizer.convert_ids_to_tokens(broken), strict=True):
            texts[i] = piece_text(piece) if piece is not None else texts[i]
    return [text.encode("utf-8", "backslashreplace").decode("utf-8") for text in texts]


def piece_text(piece: str) -> str:
    """The text of a raw tokenizer piece: `<0xE2>` (SentencePiece) or a word in the byte alphabet of GPT-2, with undecodable bytes as
    `⟨E2⟩`."""
    if match := BYTE_PIECE.match(piece):
        return f"⟨{match[1].upper()}⟩"
    alphabet = _byte_alphabet()
    if not all(character in alphabet for character in piece):
        return piece
    return bytes_text(bytes(alphabet[character] for character in piece))


def bytes_text(data: bytes) -> str:
    """UTF-8 text, with every byte that is no part of a whole character as `⟨E2⟩`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        broken = "".join(f"⟨{byte:02X}⟩" for byte in data[error.start : error.end])
        return data[: error.start].decode("utf-8") + broken + bytes_text(data[error.end :])


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE vocabularies (A. Radford et al., GPT-2, 2019): printable
    Latin-1 for themselves, the other bytes for U+0100 onwards in order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
