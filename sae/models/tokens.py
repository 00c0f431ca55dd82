"""Packing: documents of tokens, end to end, cut into rows of a fixed length. No padding, no token lost but the last incomplete row.

stream = sep d_0 d_0 d_0 sep d_1 d_1 ...        row i = [bos] stream[i * n : (i + 1) * n]        n = context - (1 if bos else 0)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.errors import ConfigError


class TokenRow(NamedTuple):
    """One row of packed tokens."""

    tokens: Int[Tensor, " context"]
    """Token ids."""
    document_ids: Int[Tensor, " context"]
    """The document each token comes from; a separator carries that of the document it opens, a BOS that of the token after it."""


def pack(
    documents: Iterable[tuple[int, Sequence[int]]], *, context: int, separator_id: int | None, bos_id: int | None
) -> Iterator[TokenRow]:
    """Rows of `context` tokens from (document id, token ids) pairs, in their order; consecutive pairs of one id are parts of one document.

    `separator_id` opens every document and `bos_id` every row; None leaves either out. A document continues in the next row; documents
    without tokens give nothing, and the last incomplete row is dropped. Holds one row beside the document being cut. Raises
    ConfigError when a row has no room for a token of a document.
    """
    room = context - (bos_id is not None)
    if room < 1:
        raise ConfigError(f"context must be at least {1 + (bos_id is not None)}, got {context} (pack)")
    return _rows(documents, room, separator_id, bos_id)


def _rows(documents: Iterable[tuple[int, Sequence[int]]], room: int, separator_id: int | None, bos_id: int | None) -> Iterator[TokenRow]:
    row = np.empty((2, room), dtype=np.int64)  # tokens over document ids
    filled, opened = 0, None
    for document_id, token_ids in documents:
        if len(token_ids) == 0:
            continue
        opens = separator_id is not None and document_id != opened
        parts: list[Sequence[int]] = [[separator_id], token_ids] if opens else [token_ids]
        opened = document_id
        for part in parts:
            taken = 0
            while taken < len(part):
                n = min(room - filled, len(part) - taken)
                row[0, filled : filled + n] = part[taken : taken + n]
                row[1, filled : filled + n] = document_id
                filled, taken = filled + n, taken + n
                if filled == room:
                    yield _row(row, bos_id)
                    filled = 0


def _row(row: np.ndarray, bos_id: int | None) -> TokenRow:
    whole = row.copy() if bos_id is None else np.concatenate([[[bos_id], [row[1, 0]]], row], axis=1)
    return TokenRow(torch.from_numpy(whole[0]), torch.from_numpy(whole[1]))


def offsets_in_document(document_ids: Int[Tensor, "rows context"]) -> Int[Tensor, "rows context"]:
    """How far each token is from the first token of its document within its row: 0 at position 0 and wherever the document changes."""
    positions = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    changed = torch.ones_like(document_ids, dtype=torch.bool)
    changed[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return positions - torch.where(changed, positions, 0).cummax(dim=1).values
