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
import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

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
LEAK, LEAK_ROUNDING = 1e-3, 4.0
"""What the tokens of one document may do to the activations of another: this fraction of what they do without isolation, or so many machine
epsilons. In a dense model it is nothing at all; experts that are sent other tokens may round otherwise."""
ALONE, ALONE_ROUNDING = 1e-2, 16.0
"""How far the activations may be from those of the document alone, likewise: other shapes are summed in another order, block after block."""


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
    """The ways to try. Attention in chunks counted from the beginning of the row, and what is not attention, never goes by positions: in
    a probe shorter than a chunk it would seem to.
    """
    config: Any = model.model.config.get_text_config()
    windows_only = set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
    chunked = getattr(config, "attention_chunk_size", None) is not None
    takes_positions = "position_ids" in inspect.signature(model.model.forward).parameters
    return ["positions", "rows"] if takes_positions and windows_only and not chunked else ["rows"]


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
    flat: dict[Key, Tensor] = {}
    for rows in _own_rows(document_ids):
        for key, values in forward(rows.of(tokens), None).items():
            if key not in flat:
                flat[key] = values.new_empty(tokens.numel(), values.shape[-1])
            flat[key][rows.index[rows.real]] = values[rows.real]
    return {key: values.unflatten(0, tokens.shape) for key, values in flat.items()}


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


def _distance(model: HookedModel, way: Way) -> float:
    """How far the activations after any block are from isolated ones, in units of what is allowed: at most 1 when documents are apart.

    Two things are measured. Other tokens in every second document must not move the documents between them: nothing leaks. And each
    document must have the activations that it has alone, both at the beginning of a row and after others: its positions are its own.
    """
    lengths = [length for length in PROBE_LENGTHS if length <= model.shape.n_ctx]
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ids = ids[-min(len(ids), model.shape.n_ctx) :]
    tokens, others = torch.randint(0, model.shape.d_vocab, (2, len(ids)), generator=torch.Generator().manual_seed(0))
    tokens, others, ids = (torch.stack([t, t.flip(0)]).to(model.model.device) for t in (tokens, others, ids))
    sites = [site for site in model.sites.values() if site.kind == "resid_post"]
    forward = functools.partial(_captured, model, sites, [])
    packed, mixed = _run(forward, tokens, ids, way), forward(tokens, None)
    moved = {site: torch.empty_like(acts) for site, acts in mixed.items()}
    alone = {site: torch.empty_like(acts) for site, acts in mixed.items()}
    for kept in (ids % 2 == 0, ids % 2 == 1):
        for site, acts in _run(forward, torch.where(kept, tokens, others), ids, way).items():
            moved[site][kept] = acts[kept]
    for row in range(len(ids)):
        for document in ids[row].unique():
            places = ids[row] == document
            for site, acts in forward(tokens[row : row + 1, places], None).items():
                alone[site][row, places] = acts[0]
    eps = torch.finfo(model.model.dtype).eps
    distances: list[float] = []
    for site in sites:
        context = _relative(mixed[site], alone[site])  # what the other documents do to the activations when nothing is done about it
        distances.append(_relative(moved[site], packed[site]) / max(LEAK * context, LEAK_ROUNDING * eps))
        distances.append(_relative(packed[site], alone[site]) / max(ALONE * context, ALONE_ROUNDING * eps))
    return max(distances)


def _relative(acts: Tensor, expected: Tensor) -> float:
    """Root mean square over tokens of |acts - expected| / |expected|."""
    error = (acts - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    return float(error.square().mean().sqrt())
