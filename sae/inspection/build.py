"""Building an index: one pass over the store, encode once, everything kept sparse.

    <folder>/manifest.json          key (store, site, dictionary, model, texts, settings), source, precision, every file; written last
             tokens.safetensors     token ids, document ids, mask, where each document lies
             vocabulary.json  documents.json
             summary.safetensors    one row per latent: all that a card shows (`sae.inspection.summary`)
             by_token/  by_latent/  every non-zero value, twice (`sae.inspection.entries`); only queries read them

The folder appears whole or not at all; how, and what is kept of a build that was interrupted, is in `sae.inspection.building`. The same
store, site, dictionary, model, texts and settings find it again; a store that has grown since takes its place, and its segments; anything
else in its place is refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import xxhash
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.dictionaries.pursuit import MatchingPursuit
from sae.errors import ConfigError
from sae.fingerprint import digest, tensor_bytes, to_json
from sae.inspection.building import IndexProgress, Job, run
from sae.inspection.contexts import TokenTable
from sae.inspection.effects import CONVENTION, LogitModel, top_effects
from sae.inspection.map import atom_map, require_method
from sae.inspection.neighbours import neighbours
from sae.inspection.packing import CodesInTurn
from sae.inspection.records import FeatureSource
from sae.inspection.segments import SegmentPlan
from sae.inspection.settings import SEGMENT_TOKENS, IndexConfig
from sae.inspection.vocabulary import token_texts
from sae.models.sites import ModelShape

__all__ = ["IndexProgress", "TextModel", "TokenStore", "build_index", "build_index_from_codes"]


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
    segment_tokens: int = SEGMENT_TOKENS,
    map_method: str = "pca",
) -> Iterator[IndexProgress]:
    """Build the index of `dictionary` over the unmasked tokens of `store` at `site`; it is in `folder` when the iterator is exhausted.

    `name` is what cards call the dictionary (default: its class). `model` gives token texts and logit effects (none where the site does
    not have the width of the residual stream); `vocabulary` gives texts without a model, and with neither a token is shown as its id.
    `labels` are those of each document. Closing the iterator, an error or a crash leaves what was encoded beside `folder`: the next build
    goes on from there. Raises ConfigError for a bad argument, FormatError when `folder` holds something else.

        for progress in build_index(store, site, dictionary, "index", model=model):
            print(progress.stage, progress.done, progress.total)
        index = FeatureIndex.open("index")
    """
    _require_positive("batch_tokens", batch_tokens, "build_index")
    _require_positive("segment_tokens", segment_tokens, "build_index")
    require_method(map_method)
    if site not in store.site_names:
        raise ConfigError(f"site must be one of {', '.join(store.site_names)}, got {site!r} (build_index)")
    pursuit = isinstance(dictionary, MatchingPursuit)
    parts = _Parts(
        tokens=store.tokens(),
        documents=store.document_ids(),
        used=store.mask(site),
        config=config or IndexConfig(),
        segment_tokens=segment_tokens,
        source=_source(name or type(dictionary).__name__, "coefficient" if pursuit else "activation", dictionary.d_sae, site),
        digests={"store": store.digest, "dictionary": dictionary.digest},
        segment_key={"dictionary": dictionary.digest, "site": site},
        directions=_Directions(dictionary, model, map_method, config or IndexConfig()),
    )
    job = parts.job(vocabulary, model, labels)
    return run(job, _Encoding(store, site, dictionary, batch_tokens), Path(folder))


def build_index_from_codes(
    codes: Iterable[SparseCodes],
    tokens: Int[Tensor, "n_rows context"],
    documents: Int[Tensor, "n_rows context"],
    folder: str | Path,
    *,
    d_sae: int,
    codes_digest: str,
    used: Bool[Tensor, "n_tokens"] | None = None,
    kind: Literal["activation", "coefficient"] = "activation",
    dictionary: Dictionary | None = None,
    config: IndexConfig | None = None,
    name: str = "codes",
    site: str = "",
    model: TextModel | None = None,
    vocabulary: Sequence[str] | None = None,
    labels: Mapping[int, Mapping[str, str | int]] | None = None,
    segment_tokens: int = SEGMENT_TOKENS,
    map_method: str = "pca",
) -> Iterator[IndexProgress]:
    """The same from codes that are there already: batches of any size, one row for every used token in ascending order.

    `codes_digest` names them: the same digest, tokens and settings are the same index. With `kind="coefficient"` the order within a row is
    that of selection, and a latent named twice is one entry with the sum of its values. `dictionary` gives neighbours by direction, the map
    and logit effects; without it there are none. Raises ConfigError for a bad argument, also for too few or too many rows.
    """
    _require_positive("segment_tokens", segment_tokens, "build_index_from_codes")
    _require_positive("d_sae", d_sae, "build_index_from_codes")
    require_method(map_method)
    if tokens.shape != documents.shape or tokens.ndim != 2:
        raise ConfigError(
            f"tokens and documents must be tables of one shape [n_rows, context], got {list(tokens.shape)} and {list(documents.shape)} "
            "(build_index_from_codes)"
        )
    used = torch.ones(tokens.numel(), dtype=torch.bool) if used is None else used
    if used.shape != (tokens.numel(),):
        raise ConfigError(f"used must say so of each of the {tokens.numel()} tokens, got shape {list(used.shape)} (build_index_from_codes)")
    if dictionary is not None and dictionary.d_sae != d_sae:
        raise ConfigError(f"dictionary must have d_sae={d_sae} latents, got {dictionary.d_sae} (build_index_from_codes)")
    parts = _Parts(
        tokens=tokens,
        documents=documents,
        used=used,
        config=config or IndexConfig(),
        segment_tokens=segment_tokens,
        source=_source(name, kind, d_sae, site),
        digests={
            "codes": codes_digest,
            "store": _table_digest(tokens, documents, used),
            "dictionary": dictionary.digest if dictionary else "",
        },
        segment_key={"d_sae": d_sae, "codes": codes_digest},
        directions=_Directions(dictionary, model, map_method, config or IndexConfig()),
    )
    return run(parts.job(vocabulary, model, labels), _Given(codes, d_sae, codes_digest), Path(folder))


def _require_positive(name: str, value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r} ({where})")


def _source(name: str, kind: Literal["activation", "coefficient"], d_sae: int, site: str) -> FeatureSource:
    return FeatureSource(
        dictionary=name,
        kind=kind,
        d_sae=d_sae,
        site=site,
        dictionary_digest="",
        store_digest="",
        n_tokens=0,
        n_documents=0,
        effects_convention="",
    )


def _table_digest(tokens: Tensor, documents: Tensor, used: Tensor) -> str:
    state = xxhash.xxh3_128()
    for each in (tokens, documents, used):
        state.update(tensor_bytes(each))
    return digest(["tokens", list(tokens.shape), state.hexdigest()])


@dataclass(frozen=True)
class _Directions:
    """What follows from a dictionary's directions."""

    dictionary: Dictionary | None
    model: TextModel | None
    map_method: str
    config: IndexConfig

    @property
    def effects(self) -> bool:
        """Whether logit effects exist: the dictionary must write into the residual stream of a model."""
        return self.model is not None and self.dictionary is not None and self.dictionary.W_dec.shape[1] == self.model.shape.d_model

    def __call__(self, d_sae: int) -> tuple[dict[str, np.ndarray], str]:
        """(arrays of the summary, how the map was made in words)."""
        if self.dictionary is None:
            return {"map": np.zeros((d_sae, 2), np.float32)}, ""
        atoms, arrays = self.dictionary.W_dec.detach().float().cpu(), {}
        encoder = getattr(self.dictionary, "W_enc", None)
        for name, directions in (
            ("decoder", atoms),
            ("encoder", None if encoder is None else encoder.detach().float().cpu().T.contiguous()),
        ):
            if directions is not None:
                near = neighbours(directions, n_neighbours=self.config.n_neighbours)
                arrays |= {f"{name}_cosine_ids": near.ids, f"{name}_cosine_values": near.cosines}
        if self.effects:
            arrays |= {f"effect_{name}": each for name, each in top_effects(self.model, atoms, k=self.config.n_effects)._asdict().items()}
        arrays["map"], method = atom_map(atoms.numpy(), method=self.map_method, seed=self.config.seed)
        return arrays, method


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What both ways of building are given."""

    tokens: Tensor
    documents: Tensor
    used: Tensor
    config: IndexConfig
    segment_tokens: int
    source: FeatureSource
    digests: dict[str, str]
    segment_key: dict[str, Any]
    directions: _Directions

    def job(self, vocabulary: Sequence[str] | None, model: TextModel | None, labels: Mapping[int, Mapping[str, str | int]] | None) -> Job:
        """What `run` needs."""
        ids, documents = self.tokens.cpu().numpy().astype(np.int32), self.documents.cpu().numpy()
        narrow = np.int32 if documents.size == 0 or np.abs(documents).max() < 2**31 else np.int64
        table, present = TokenTable(ids, documents.astype(narrow)), set(np.unique(documents).tolist())
        if ids.size and int(ids.min()) < 0:
            raise ConfigError(f"tokens must be ids of at least 0, got {int(ids.min())} (build_index)")
        texts = token_texts(vocabulary, model, n_least=int(ids.max(initial=-1)) + 1)
        kept = {int(document): dict(values) for document, values in (labels or {}).items() if document in present}
        pursuit, effects = self.source.kind == "coefficient", self.directions.effects
        rows = max(1, self.segment_tokens // max(table.context, 1))
        plan = SegmentPlan(
            table=table,
            used=self.used.cpu().numpy().astype(bool),
            rows_per_segment=rows,
            d_sae=self.source.d_sae,
            value_dtype=self.config.value_dtype,
            pursuit=pursuit,
            key=digest({**self.segment_key, "value_dtype": self.config.value_dtype, "pursuit": pursuit}),
        )
        key = {
            **self.digests,
            "site": self.source.site,
            "model": self.directions.model.digest if effects and self.directions.model is not None else "",
            "name": self.source.dictionary,
            "kind": self.source.kind,
            "texts": digest(texts),
            "labels": digest({str(document): values for document, values in kept.items()}),
            "config": to_json(self.config),
            "layout": {"rows_per_segment": rows, "map": self.directions.map_method},
        }
        known = {"dictionary_digest": self.digests["dictionary"], "store_digest": self.digests["store"]}
        source = replace(self.source, **known, effects_convention=CONVENTION if effects else "")
        return Job(plan=plan, config=self.config, key=key, source=source, texts=texts, labels=kept, directions=self.directions)


class _Encoding:
    """Codes by encoding the activations of a store."""

    def __init__(self, store: TokenStore, site: str, dictionary: Dictionary, batch_tokens: int) -> None:
        self.store, self.site, self.dictionary, self.batch_tokens = store, site, dictionary, batch_tokens
        self.state = xxhash.xxh3_128()

    def _acts(self, tokens: np.ndarray) -> Iterator[Tensor]:
        """The activations batch by batch, their bytes taken note of."""
        self.state = xxhash.xxh3_128()
        for begin in range(0, len(tokens), self.batch_tokens):
            acts = self.store.gather(self.site, torch.from_numpy(tokens[begin : begin + self.batch_tokens]))
            self.state.update(tensor_bytes(acts))
            yield acts

    def encode(self, tokens: np.ndarray) -> Iterator[SparseCodes]:
        """Codes of the activations; the steps of a pursuit one by one."""
        device, dictionary = self.dictionary.W_dec.device, self.dictionary
        for acts in self._acts(tokens):
            x = acts.to(device=device, dtype=torch.float32)
            with torch.no_grad():
                yield dictionary.pursue(x).steps if isinstance(dictionary, MatchingPursuit) else dictionary.encode(x)

    def skip(self, tokens: np.ndarray) -> None:
        """Activations are asked for by index: nothing to pass over."""

    def finish(self) -> None:
        """Nothing can be left over."""

    def encoded_digest(self) -> str:
        """Of the activations that were encoded last."""
        return self.state.hexdigest()

    def digest_of(self, tokens: np.ndarray) -> str:
        """Of the activations of these tokens."""
        for _ in self._acts(tokens):
            pass
        return self.state.hexdigest()


class _Given:
    """Codes that were computed elsewhere."""

    def __init__(self, batches: Iterable[SparseCodes], d_sae: int, codes_digest: str) -> None:
        self.codes, self.codes_digest = CodesInTurn(batches, d_sae), codes_digest

    def encode(self, tokens: np.ndarray) -> Iterator[SparseCodes]:
        """The next rows."""
        return self.codes.take(len(tokens))

    def skip(self, tokens: np.ndarray) -> None:
        """Pass over rows."""
        for _ in self.codes.take(len(tokens)):
            pass

    def finish(self) -> None:
        """Raises ConfigError when rows are left over."""
        self.codes.finish()

    def encoded_digest(self) -> str:
        """The name of the codes."""
        return self.codes_digest

    def digest_of(self, tokens: np.ndarray) -> str:
        """The name of the codes."""
        return self.codes_digest
