"""Building an index: one pass over the store, encode once, everything kept sparse.

    <folder>/manifest.json          key (store, site, dictionary, model, texts, settings), source, size of every file; written last
             tokens.safetensors     token ids, document ids, mask
             vocabulary.json  documents.json
             summary.safetensors    one row per latent: all that a card shows (`sae.inspection.summary`)
             by_token/  by_latent/  every non-zero value, twice (`sae.inspection.entries`); only queries read them

The folder appears whole or not at all. The same store, site, dictionary, model, texts and settings find it again; anything else in its
place is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest, to_json
from sae.inspection.contexts import TokenTable
from sae.inspection.effects import CONVENTION, LogitModel, top_effects
from sae.inspection.entries import EntryView, TokenMajorWriter, flatten, scatter_by_latent
from sae.inspection.manifest import read_manifest, write_manifest
from sae.inspection.neighbours import neighbours
from sae.inspection.records import FeatureSource
from sae.inspection.settings import IndexConfig
from sae.inspection.summary import CorpusFacts, SummaryBuilder
from sae.inspection.vocabulary import token_texts
from sae.models.sites import ModelShape
from sae.storage import atomic_folder, save_tensors, write_json

REPORT_EVERY = 64
"""Latents between two reports of progress."""


@runtime_checkable
class TokenStore(Protocol):
    """What is asked of a store; `sae.activations.store.ActivationStore` has it. Flat token index: row * context + position."""

    @property
    def digest(self) -> str:
        """SHA-256 of its contents."""
        ...

    @property
    def site_names(self) -> tuple[str, ...]:
        """Captured sites."""
        ...

    def tokens(self) -> Int[Tensor, "n_rows context"]:
        """Token ids."""
        ...

    def document_ids(self) -> Int[Tensor, "n_rows context"]:
        """Document of each token."""
        ...

    def mask(self, site: str) -> Bool[Tensor, "n_tokens"]:
        """True where a token is used."""
        ...

    def gather(self, site: str, token_index: Int[Tensor, "n"]) -> Float[Tensor, "n width"]:
        """Activations of the given tokens."""
        ...


@runtime_checkable
class TextModel(LogitModel, Protocol):
    """What is asked of a language model; `sae.models.LanguageModel` has it."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights."""
        ...

    @property
    def shape(self) -> ModelShape:
        """Its widths."""
        ...

    def vocabulary(self) -> list[str]:
        """The text of each token id."""
        ...


class IndexProgress(NamedTuple):
    """How far a build has come."""

    stage: str
    """`encode` (units are tokens), `summarise` (latents), or `found` when the index was there already."""
    done: int
    """Units done."""
    total: int
    """Units of this stage."""


def build_index(
    store: TokenStore,
    site: str,
    dictionary: Dictionary,
    folder: str | Path,
    *,
    batch_tokens: int = 8192,
    config: IndexConfig | None = None,
    name: str | None = None,
    model: TextModel | None = None,
    vocabulary: Sequence[str] | None = None,
    labels: Mapping[int, Mapping[str, str | int]] | None = None,
) -> Iterator[IndexProgress]:
    """Build the index of `dictionary` over the unmasked tokens of `store` at `site`; it is in `folder` when the iterator is exhausted.

    `name` is what cards call the dictionary (default: its class). `model` gives token texts and logit effects (none where the site does
    not have the width of the residual stream); `vocabulary` gives texts without a model, and with neither a token is shown as its id.
    `labels` are those of each document. Closing the iterator, or an error, leaves nothing behind. Raises ConfigError for a bad argument,
    FormatError when `folder` holds something else.

        for progress in build_index(store, site, dictionary, "index", model=model):
            print(progress.stage, progress.done, progress.total)
        index = FeatureIndex.open("index")
    """
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be a positive integer, got {batch_tokens!r} (build_index)")
    if site not in store.site_names:
        raise ConfigError(f"site must be one of {', '.join(store.site_names)}, got {site!r} (build_index)")
    ids, present = store.tokens().cpu().numpy(), set(store.document_ids().flatten().tolist())
    job = _Job(
        store=store,
        site=site,
        dictionary=dictionary,
        config=config or IndexConfig(),
        name=name or type(dictionary).__name__,
        model=model,
        texts=token_texts(vocabulary, model, n_least=int(ids.max(initial=-1)) + 1),
        labels={int(document): dict(values) for document, values in (labels or {}).items() if document in present},
    )
    return _build(job, Path(folder), batch_tokens)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What an index is made from."""

    store: TokenStore
    site: str
    dictionary: Dictionary
    config: IndexConfig
    name: str
    model: TextModel | None
    texts: list[str]
    labels: dict[int, dict[str, str | int]]

    @property
    def pursuit(self) -> bool:
        """Whether codes come in the order of selection, and a latent may be selected twice."""
        return isinstance(self.dictionary, MatchingPursuit)

    @property
    def effects(self) -> bool:
        """Whether logit effects exist: the dictionary must write into the residual stream of a model."""
        return self.model is not None and self.dictionary.W_dec.shape[1] == self.model.shape.d_model

    def key(self) -> dict[str, Any]:
        """Names the contents."""
        return {
            "store": self.store.digest,
            "site": self.site,
            "dictionary": self.dictionary.digest,
            "model": self.model.digest if self.effects else "",
            "name": self.name,
            "texts": digest(self.texts),
            "labels": digest({str(document): values for document, values in self.labels.items()}),
            "config": to_json(self.config),
        }


def _build(job: _Job, folder: Path, batch_tokens: int) -> Iterator[IndexProgress]:
    key = job.key()
    if folder.exists():
        if read_manifest(folder).key != key:
            raise FormatError(f"{folder} holds the index of something else; choose another folder, or remove it")
        yield IndexProgress("found", 1, 1)
        return
    used = job.store.mask(job.site).cpu().numpy().astype(bool)
    table = TokenTable(job.store.tokens().cpu().numpy().astype(np.int32), job.store.document_ids().cpu().numpy().astype(np.int64))
    with atomic_folder(folder) as temporary:
        shape = {"d_sae": job.dictionary.d_sae, "n_tokens": table.n_tokens}
        with TokenMajorWriter(temporary / "by_token", value_dtype=job.config.value_dtype, pursuit=job.pursuit, **shape) as writer:
            n_steps = yield from _encode(job, np.flatnonzero(used), batch_tokens, writer)
        scatter_by_latent(temporary / "by_token", temporary / "by_latent", writer.per_latent)
        facts = CorpusFacts.of(table, used, len(job.texts))
        yield from _summarise(job, temporary, facts, n_steps)
        ids, documents = torch.from_numpy(table.ids), torch.from_numpy(table.documents)
        save_tensors(temporary / "tokens.safetensors", {"ids": ids, "documents": documents, "used": torch.from_numpy(used)})
        write_json(temporary / "vocabulary.json", job.texts)
        write_json(temporary / "documents.json", {str(document): values for document, values in job.labels.items()})
        source = FeatureSource(
            dictionary=job.name,
            kind="coefficient" if job.pursuit else "activation",
            d_sae=job.dictionary.d_sae,
            site=job.site,
            dictionary_digest=job.dictionary.digest,
            store_digest=job.store.digest,
            n_tokens=int(used.sum()),
            n_documents=len(facts.sizes),
            effects_convention=CONVENTION if job.effects else "",
        )
        write_manifest(temporary, key=key, config=job.config, source=source, n_entries=int(writer.per_latent.sum()), n_steps=n_steps)


def _encode(job: _Job, tokens: np.ndarray, batch_tokens: int, writer: TokenMajorWriter) -> Iterator[IndexProgress]:
    """Encode and write all tokens; returns the number of pursuit steps (0 without)."""
    n_steps, device = 0, job.dictionary.W_dec.device
    for begin in range(0, len(tokens), batch_tokens):
        batch = tokens[begin : begin + batch_tokens]
        acts = job.store.gather(job.site, torch.from_numpy(batch)).to(device=device, dtype=torch.float32)
        with torch.no_grad():
            codes = job.dictionary.pursue(acts).steps if job.pursuit else job.dictionary.encode(acts)
        flat = flatten(codes, repeated=job.pursuit)
        writer.append(batch, flat)
        n_steps = max(n_steps, int(flat.steps.max(initial=-1)) + 1)
        yield IndexProgress("encode", begin + len(batch), len(tokens))
    return n_steps if job.pursuit else 0


def _summarise(job: _Job, folder: Path, facts: CorpusFacts, n_steps: int) -> Iterator[IndexProgress]:
    d_sae, view = job.dictionary.d_sae, EntryView(folder / "by_latent", "token")
    builder = SummaryBuilder(facts, job.config, d_sae=d_sae, n_steps=n_steps)
    for latent in range(d_sae):
        builder.add(latent, view[latent])
        if (latent + 1) % REPORT_EVERY == 0 or latent + 1 == d_sae:
            yield IndexProgress("summarise", latent + 1, d_sae)
    arrays = builder.finish()
    atoms = job.dictionary.W_dec.detach().float().cpu()
    near = neighbours(atoms, n_neighbours=job.config.n_neighbours)
    arrays |= {"neighbour_ids": near.ids, "neighbour_cosines": near.cosines}
    if job.effects:
        arrays |= {f"effect_{name}": array for name, array in top_effects(job.model, atoms, k=job.config.n_effects)._asdict().items()}
    save_tensors(folder / "summary.safetensors", {name: _tensor(array) for name, array in arrays.items()})


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
