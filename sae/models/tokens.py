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
    """Rows of `context` tokens from (document id, token ids) pairs, in their order.

    `separator_id` opens every document and `bos_id` every row; None leaves either out. A document continues in the next row; documents
    without tokens give nothing, and the last incomplete row is dropped. Holds one document at a time. Raises ConfigError when a row has
    no room for a token of a document.
    """
    room = context - (bos_id is not None)
    if room < 1:
        raise ConfigError(f"context must be at least {1 + (bos_id is not None)}, got {context} (pack)")
    return _rows(documents, room, separator_id, bos_id)


def _rows(documents: Iterable[tuple[int, Sequence[int]]], room: int, separator_id: int | None, bos_id: int | None) -> Iterator[TokenRow]:
    pending = np.empty((2, 0), dtype=np.int64)  # tokens over document ids
    for document_id, token_ids in documents:
        if len(token_ids) == 0:
            continue
        opening = [] if separator_id is None else [separator_id]
        tokens = np.concatenate([np.asarray(opening, dtype=np.int64), np.asarray(token_ids, dtype=np.int64)])
        pending = np.concatenate([pending, np.stack([tokens, np.full_like(tokens, document_id)])], axis=1)
        n_rows = pending.shape[1] // room
        for i in range(n_rows):
            yield _row(pending[:, i * room : (i + 1) * room], bos_id)
        pending = pending[:, n_rows * room :].copy()


def _row(part: np.ndarray, bos_id: int | None) -> TokenRow:
    if bos_id is not None:
        part = np.concatenate([[[bos_id], [part[1, 0]]], part], axis=1)
    return TokenRow(torch.from_numpy(part[0].copy()), torch.from_numpy(part[1].copy()))


def offsets_in_document(document_ids: Int[Tensor, "rows context"]) -> Int[Tensor, "rows context"]:
    """How far each token is from the first token of its document within its row: 0 at position 0 and wherever the document changes."""
    positions = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(document_ids)
    changed = torch.ones_like(document_ids, dtype=torch.bool)
    changed[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return positions - torch.where(changed, positions, 0).cummax(dim=1).values
