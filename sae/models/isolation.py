"""Documents packed into one row, each computed as if it were alone.

    row:        a a a b b c c c c          positions:  0 1 2 0 1 0 1 2 3          b attends to b, never to a

A document is a run of equal ids in a row; a run that begins in the middle of a row begins at position 0. There are two ways:

    positions   one pass over the rows as they are, with positions that restart. The Hugging Face library takes a restart for the border
                of a packed sequence and masks attention across it, sliding windows included.
    rows        every document in a row of its own, padded at the end, where a causal model does not see it. For what takes no positions
                (ALiBi, recurrent layers) or does not mask by them. Costs the padding.

Which way an architecture goes is not looked up but tried, once a model, and what isolates in neither way is refused.
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from sae.errors import ConfigError
from sae.models.hooked import Hook, HookedModel
from sae.models.sites import Site
from sae.models.tokens import offsets_in_document

Way = Literal["positions", "rows"]
Key = TypeVar("Key", bound=Hashable)

PROBE_LENGTHS = (5, 1, 7, 3)
"""Tokens of the documents that the ways are tried with."""
SIGNIFICANT = 0.01
"""A way isolates when the activations are at most this fraction as far from the documents' own as they are without isolation."""
ROUNDING = 4.0
"""... or at most so many machine epsilons away: nearer than the model's arithmetic can tell."""


class IsolatingModel:
    """A model that sees each packed document by itself."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model

    def capture(
        self, tokens: Tensor, sites: Sequence[Site], hooks: Sequence[tuple[Site, Hook]], document_ids: Tensor
    ) -> dict[Site, Tensor]:
        """`HookedModel.capture` for documents by themselves. Raises ConfigError when this cannot be had from the model."""
        return _run(functools.partial(_captured, self._model, sites, hooks), tokens, document_ids, self._way(hooks))

    def logits(self, tokens: Tensor, hooks: Sequence[tuple[Site, Hook]], document_ids: Tensor) -> Tensor:
        """`HookedModel.logits` for documents by themselves. Raises ConfigError when this cannot be had from the model."""
        return _run(functools.partial(_logits, self._model, hooks), tokens, document_ids, self._way(hooks))["logits"]

    def _way(self, hooks: Sequence[tuple[Site, Hook]]) -> Way:
        if self.way == "rows" and hooks:
            raise ConfigError(
                f"{self._model.name} isolates packed documents only by running them in rows of their own, where edits of "
                "[batch, context, width] have no place; run the documents one by one to edit them"
            )
        return self.way

    @functools.cached_property
    def way(self) -> Way:
        """The first way that isolates. Raises ConfigError, naming the architecture, when none does."""
        distances: dict[str, float] = {}
        for way in _ways(self._model):
            distances[way] = distance = _distance(self._model, way)
            if distance <= 1.0:
                return way
        tried = ", ".join(f"{way}: {distance:.2g} times what is allowed" for way, distance in distances.items())
        raise ConfigError(
            f"{self._model.name} does not keep packed documents apart ({tried}); capture without document_ids, or one document in a row"
        )


def _ways(model: HookedModel) -> list[Way]:
    import inspect

    takes_positions = "position_ids" in inspect.signature(model.model.forward).parameters
    return ["positions", "rows"] if takes_positions else ["rows"]


def _captured(
    model: HookedModel, sites: Sequence[Site], hooks: Sequence[tuple[Site, Hook]], tokens: Tensor, positions: Tensor | None
) -> dict[Site, Tensor]:
    return model.capture(tokens, sites, hooks, positions=positions)


def _logits(model: HookedModel, hooks: Sequence[tuple[Site, Hook]], tokens: Tensor, positions: Tensor | None) -> dict[str, Tensor]:
    return {"logits": model.logits(tokens, hooks, positions=positions)}


def _run(
    forward: Callable[[Tensor, Tensor | None], dict[Key, Tensor]], tokens: Tensor, document_ids: Tensor, way: Way
) -> dict[Key, Tensor]:
    """What `forward(tokens, positions)` gives, each [batch, context, ...], with the documents apart."""
    if way == "positions":
        return forward(tokens, offsets_in_document(document_ids))
    parts: list[tuple[_Rows, dict[Key, Tensor]]] = [(rows, forward(rows.of(tokens), None)) for rows in _own_rows(document_ids)]
    return {key: _gathered(tokens.shape, [(rows, values[key]) for rows, values in parts]) for key in parts[0][1]}


class _Rows(NamedTuple):
    """Documents in rows of their own."""

    index: Tensor
    """[documents, longest] flat index of each token in the packed rows; padding repeats the document's last token."""
    real: Tensor
    """[documents, longest] whether it is a token and not padding."""

    def of(self, tokens: Tensor) -> Tensor:
        return tokens.flatten()[self.index]


def _own_rows(document_ids: Tensor) -> Iterator[_Rows]:
    """The documents, longest first, in batches that with their padding are no larger than the packed rows."""
    starts = (offsets_in_document(document_ids) == 0).flatten().nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([document_ids.numel()])])
    lengths, order = (ends - starts).sort(descending=True, stable=True)
    starts, first = starts[order], 0
    while first < len(lengths):
        longest = int(lengths[first])
        last = min(len(lengths), first + document_ids.numel() // longest)
        steps = torch.arange(longest, device=document_ids.device)
        index = starts[first:last, None] + torch.minimum(steps, lengths[first:last, None] - 1)
        yield _Rows(index, steps < lengths[first:last, None])
        first = last


def _gathered(shape: torch.Size, parts: Sequence[tuple[_Rows, Tensor]]) -> Tensor:
    sample = parts[0][1]
    flat = sample.new_empty(shape.numel(), sample.shape[-1])
    for rows, values in parts:
        flat[rows.index[rows.real]] = values[rows.real]
    return flat.reshape(*shape, -1)


def _distance(model: HookedModel, way: Way) -> float:
    """How far the activations of packed documents are from those of each alone, after every block, in units of what is allowed.

    Each document is tried at the beginning of a row and after others, so neither what a token sees nor where it thinks it is can hide.
    """
    lengths = [length for length in PROBE_LENGTHS if length <= model.shape.n_ctx]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = ids[-min(len(ids), model.shape.n_ctx) :]
    tokens = torch.randint(0, model.shape.d_vocab, ids.shape, generator=torch.Generator().manual_seed(0))
    device = model.model.device
    tokens, ids = (torch.stack([t, t.flip(0)]).to(device) for t in (tokens, ids))
    sites = [site for site in model.sites.values() if site.kind == "resid_post"]
    packed = _run(functools.partial(_captured, model, sites, []), tokens, ids, way)
    mixed = model.capture(tokens, sites, [])
    alone = {site: torch.empty_like(acts) for site, acts in mixed.items()}
    for row in range(len(ids)):
        for document in ids[row].unique():
            places = ids[row] == document
            for site, acts in model.capture(tokens[row : row + 1, places], sites, []).items():
                alone[site][row, places] = acts[0]
    eps = torch.finfo(model.model.dtype).eps
    return max(
        _relative(packed[site], alone[site]) / max(ROUNDING * eps, SIGNIFICANT * _relative(mixed[site], alone[site])) for site in sites
    )


def _relative(acts: Tensor, expected: Tensor) -> float:
    """Root mean square over tokens of |acts - expected| / |expected|."""
    error = (acts - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(error.square().mean().sqrt())
