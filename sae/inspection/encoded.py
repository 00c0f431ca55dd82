"""Texts as features: the records of live encoding, how a text is framed, and which texts are refused. Free of any language model.

    row = [bos] [separator] t_0 t_1 ... t_n-1          position 0 is masked, as in a store

A text is encoded as a document that begins a row of its own: what the tokens of a store saw that stand at the beginning of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sae.errors import ConfigError, FormatError
from sae.fingerprint import from_json, to_json
from sae.storage import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How a text becomes a row of tokens, and which of them are masked. That of an index is the one of its store."""

    bos_id: int | None = None
    """Token that opens the row, or None."""
    separator_id: int | None = None
    """Token that opens the document, after `bos_id`, or None."""
    largest_norm: float | None = None
    """Tokens whose activation is longer are masked, like the outliers of a store; None masks none for its length."""
    dtype: str = "float32"
    """Activations are rounded to this before they are encoded, as storing them does: float32, float16 or bfloat16."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ConfigError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r} (Framing)")
        if self.largest_norm is not None and not self.largest_norm > 0:
            raise ConfigError(f"largest_norm must be positive or None, got {self.largest_norm} (Framing)")

    @property
    def opening(self) -> tuple[int, ...]:
        """The token ids before the text."""
        return tuple(i for i in (self.bos_id, self.separator_id) if i is not None)


FRAMING = "framing.json"
"""Beside an index: how its store framed texts, so that serving it needs no store."""


def recorded_framing(folder: str | Path) -> Framing | None:
    """The framing beside the index in `folder`; None where none is recorded. Raises FormatError for a damaged record."""
    file = Path(folder) / FRAMING
    if not file.is_file():
        return None
    try:
        return from_json(Framing, read_json(file))
    except ConfigError as error:
        raise FormatError(f"{file} is damaged: {error}") from error


def record_framing(folder: str | Path, framing: Framing) -> None:
    """Write `framing.json` into the folder of an index, over an older one."""
    write_json(Path(folder) / FRAMING, to_json(framing))


@dataclass(frozen=True)
class TokenisedText:
    """A text and the row of tokens that the model sees."""

    text: str
    """The text."""
    tokens: tuple[str, ...]
    """Text of each token of the row."""
    token_ids: tuple[int, ...]
    """Id of each."""
    n_opening: int
    """How many of them stand before the text: BOS and separator."""


@dataclass(frozen=True)
class EncodedText:
    """What fires at each token of a text."""

    text: str
    """The text."""
    tokens: tuple[str, ...]
    """Text of each token of the row, BOS and separator included."""
    token_ids: tuple[int, ...]
    """Id of each."""
    is_special: tuple[bool, ...]
    """Whether the token is masked: the first position of the row, and outliers of norm. An index has no entries there."""
    latents: tuple[tuple[int, ...], ...]
    """Latents that fire at each token, in the order of encoding: largest first, or by step of a pursuit."""
    values: tuple[tuple[float, ...], ...]
    """Their values; negative where a pursuit subtracts the atom."""
    steps: tuple[tuple[int, ...], ...] | None
    """Step of first selection (from 0) of each, for a matching pursuit; None otherwise."""


@dataclass(frozen=True)
class Contrast:
    """How one latent tells two sets of texts apart. A text's score is its value of largest magnitude, or its mean value."""

    index: int
    """Latent id."""
    auc: float
    """Probability that a text of the first set scores above one of the second, ties counted half: 0.5 is chance, 1 all above."""
    mean_a: float
    """Mean score of the first set's texts."""
    mean_b: float
    """Mean score of the second set's."""
    share_a: float
    """Share of the first set's texts in which it fires."""
    share_b: float
    """Share of the second set's."""
    p_value: float | None
    """Share of random divisions of the texts in which any latent is as far from 0.5 (family-wise); None for too few texts."""


class TextTooLongError(ConfigError):
    """A text has more tokens than the model's context. `n_tokens` and `limit` say how many; `n_tokens` is None when it was not tokenised."""

    def __init__(self, message: str, *, n_tokens: int | None, limit: int) -> None:
        super().__init__(message)
        self.n_tokens, self.limit = n_tokens, limit


@runtime_checkable
class LiveEncoder(Protocol):
    """What an index asks of a live encoder; `sae.inspection.live.Live` has it, and needs the language model."""

    @property
    def site_name(self) -> str:
        """Site of the activations that are encoded."""
        ...

    @property
    def dictionary_digest(self) -> str:
        """SHA-256 of the dictionary."""
        ...

    @property
    def limit(self) -> int:
        """Most tokens of a row, BOS and separator included."""
        ...

    def atoms(self, latents: Sequence[int]) -> Float[np.ndarray, "n d_in"]:
        """Decoder directions of latents."""
        ...

    def tokenise(self, texts: Sequence[str]) -> list[TokenisedText]:
        """The rows of the texts."""
        ...

    def encode(self, texts: Sequence[str], *, top_k: int | None = None, masked: bool = False) -> list[EncodedText]:
        """What fires at each token of each text."""
        ...

    def contrast(self, texts_a: Sequence[str], texts_b: Sequence[str], *, n: int = 50) -> list[Contrast]:
        """The latents that tell two sets of texts apart best."""
        ...


def check_texts(texts: Any, *, name: str = "texts") -> None:
    """Raises ConfigError, naming the text, for one that is not a string, empty, only whitespace, or has a NUL or a lone surrogate."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        raise ConfigError(f"{name} must be a sequence of strings, got {_short(texts)}; write [text] for one text")
    if not texts:
        raise ConfigError(f"{name} must hold at least one text, got none")
    for i, text in enumerate(texts):
        where = f"{name}[{i}]"
        if not isinstance(text, str):
            raise ConfigError(f"{where} must be a string, got {_short(text)}")
        if not text.strip():
            raise ConfigError(f"{where} must have a character that is not whitespace, got {_short(text)}")
        if "\x00" in text:
            raise ConfigError(f"{where} must not have the character NUL, got one at {text.index(chr(0))}")
        surrogate = next((j for j, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        if surrogate is not None:
            raise ConfigError(
                f"{where} must be text: character {surrogate} is the lone surrogate {text[surrogate]!a}, which reading bytes that are "
                'not UTF-8 leaves; decode with errors="replace"'
            )


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
