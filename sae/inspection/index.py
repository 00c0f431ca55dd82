"""FeatureIndex: the reader of an index on disk.

index = FeatureIndex.open("index", dictionary_digest=dictionary.digest)
index[123]                    # a card; shows itself in a notebook
index[123].record             # what it shows, as a record
index.statistics.density      # one number per latent
index.entries(123)            # every non-zero value of the latent
index.search("war")  index.top(by="density")  index.compare(12, 34)      # tables that show themselves
index.attach(live).on("A text.")                                         # needs the language model
"""

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from sae.errors import ConfigError, FormatError
from sae.inspection.compare import Comparison, compare
from sae.inspection.contexts import TokenTable
from sae.inspection.contrast import ContrastTable
from sae.inspection.display import FeatureCard
from sae.inspection.encoded import LiveEncoder
from sae.inspection.entries import Entries, LatentView, TokenEntries, TokenView
from sae.inspection.manifest import IndexManifest, read_manifest
from sae.inspection.reader import DocumentView, FeatureMap, FeatureStatistics, RecordReader, slots
from sae.inspection.records import Example, FeatureRecord, FeatureSource
from sae.inspection.search import SearchResults, SearchTable, search
from sae.inspection.tables import TELLING, FeatureTable, top
from sae.inspection.text_features import Order, TextFeatures, on_texts
from sae.storage import checksum


class FeatureIndex:
    """An index, read by memory mapping. Cards and statistics need the summary bundle only; `entries` and `at_token` read the entries."""

    live: LiveEncoder | None = None
    """Encodes new texts; see `attach`."""

    def __init__(self, folder: Path, manifest: IndexManifest, reader: RecordReader) -> None:
        self.folder, self.manifest, self.reader = folder, manifest, reader

    @staticmethod
    def open(folder: str | Path, *, store_digest: str | None = None, dictionary_digest: str | None = None) -> "FeatureIndex":
        """The index in `folder`. Raises FormatError when it is missing, damaged, or, where a digest is given, made from another store or
        dictionary."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        for name, asked, found in (
            ("store", store_digest, manifest.source.store_digest),
            ("dictionary", dictionary_digest, manifest.source.dictionary_digest),
        ):
            if asked is not None and asked != found:
                raise FormatError(
                    f"{folder} is the index of another {name}: its digest is {found[:12]}, {name}_digest asks for {asked[:12]}"
                )
        return FeatureIndex(folder, manifest, RecordReader(folder, manifest))

    @property
    def source(self) -> FeatureSource:
        """What its features belong to."""
        return self.manifest.source

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.manifest.source.d_sae

    @property
    def n_tokens(self) -> int:
        """Tokens looked at: those that are not masked."""
        return self.manifest.source.n_tokens

    @property
    def digest(self) -> str:
        """SHA-256 that names the contents by what they were made from."""
        return self.manifest.digest

    @property
    def table(self) -> TokenTable:
        """Token ids and documents of the corpus."""
        return self.reader.table

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """One number per latent: firings, density, max, mean, bits."""
        return self.reader.statistics()

    @property
    def texts(self) -> list[str]:
        """The text of every token id: the vocabulary."""
        return self.reader.texts

    @property
    def document_ids(self) -> Integer[np.ndarray, "n_documents"]:
        """Ids of all documents of the corpus, ascending."""
        return self.reader.document_ids

    @cached_property
    def map(self) -> FeatureMap:
        """The atoms in the plane."""
        return self.reader.map()

    def __len__(self) -> int:
        return self.d_sae

    def __getitem__(self, latent: Any) -> FeatureCard:
        return FeatureCard(self.record(latent))

    def __iter__(self) -> Iterator[FeatureCard]:
        return (self[latent] for latent in range(self.d_sae))

    def record(self, latent: Any, *, passages: Mapping[str, int] | None = None) -> FeatureRecord:
        """All that is shown about a latent. `passages`, such as `{"top": 1}`, reads only so many passages of the groups named (those of
        `examples`), which is quicker; None reads all. Raises ConfigError unless the latent is an integer in 0..d_sae-1."""
        return self.reader.record(self._checked(latent), passages=passages)

    def examples(self, latent: Any, group: str = "top") -> tuple[Example, ...]:
        """The stored passages of a latent, a part of its record. `group` is `top`, `bottom` (most negative), `intervals` (highest first),
        `random` or `near_miss`. Raises ConfigError for another."""
        if group not in slots(self.manifest.config):
            raise ConfigError(f"group must be one of {', '.join(slots(self.manifest.config))}, got {group!r} (FeatureIndex {self.folder})")
        return self.reader.examples(self._checked(latent), group)

    def entries(self, latent: Any) -> Entries:
        """Every non-zero value of a latent: flat token indices (row * context + position) ascending, values, steps."""
        return self._by_latent[self._checked(latent)]

    def at_token(self, token: Any) -> Entries:
        """What fires at the token with flat index `token`: latents in the order of encoding, values, steps. Nothing at a masked token."""
        if isinstance(token, bool) or not 0 <= operator.index(token) < self.table.n_tokens:
            raise ConfigError(f"token must be in 0..{self.table.n_tokens - 1}, got {token!r} (FeatureIndex {self.folder})")
        found = self._by_token.at(np.array([operator.index(token)]))
        return Entries(found.latents, found.values, found.steps)

    def at_tokens(self, tokens: Integer[np.ndarray, "n"]) -> Integer[np.ndarray, "nnz"]:
        """The latents of all entries at the tokens with these flat indices, one after the other."""
        return self.token_entries(tokens).latents

    def token_entries(self, tokens: Integer[np.ndarray, "n"]) -> TokenEntries:
        """All entries at the tokens with these flat indices. Raises ConfigError for one that the corpus does not have."""
        tokens = np.asarray(tokens)
        if len(tokens) and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.table.n_tokens):
            raise ConfigError(
                f"tokens must be in 0..{self.table.n_tokens - 1}, got {int(tokens.min())}..{int(tokens.max())} (FeatureIndex {self.folder})"
            )
        return self._by_token.at(tokens)

    def document(self, document: Any) -> DocumentView:
        """A document with all that fires in it. Raises ConfigError for an id that the corpus does not have."""
        known = not isinstance(document, (bool, np.bool_)) and hasattr(document, "__index__")
        tokens = self.reader.document_tokens(operator.index(document)) if known else np.zeros(0, np.int64)
        if not len(tokens):
            raise ConfigError(
                f"document must be one of the {len(self.document_ids)} document_ids, got {document!r} (FeatureIndex {self.folder})"
            )
        found, texts = self._by_token.at(tokens), self.texts
        return DocumentView(
            document=operator.index(document),
            labels=self.reader.labels.get(str(operator.index(document)), {}),
            token_index=tokens,
            texts=tuple(texts[i] for i in self.table.ids.reshape(-1)[tokens].tolist()),
            start=found.start,
            latents=found.latents,
            values=found.values,
            steps=found.steps,
        )

    def verify(self) -> None:
        """Reads every file and compares its checksum. Raises FormatError naming the first whose bytes are not the ones that were written."""
        for name, expected in self.manifest.checksums.items():
            if (self.folder / name).is_file() and checksum(self.folder / name) != expected:
                raise FormatError(f"{self.folder / name} is damaged: its bytes are not the ones that were written; build the index again")

    def search(self, text: str, *, limit: int = 50, labels: Mapping[int, str] | None = None) -> SearchResults:
        """The features that a query finds: by driving tokens, promoted tokens and the `labels` given; `#123` is that latent. The ranking is
        stated with the results (`sae.inspection.search`). Raises ConfigError for an empty query or a limit below 1."""
        return search(self, self._search_table, text, limit=limit, labels=labels)

    def top(
        self,
        *,
        by: str = TELLING,
        n: int = 20,
        ascending: bool = False,
        alive: bool = True,
        min_density: float = 0.0,
        max_density: float = 1.0,
    ) -> FeatureTable:
        """The first features in an order: "telling", or a field of `statistics`. See `sae.inspection.tables.top`, which also says what it
        raises."""
        return top(self, by=by, n=n, ascending=ascending, alive=alive, min_density=min_density, max_density=max_density)

    def compare(self, *latents: Any) -> Comparison:
        """Features side by side, with exact co-firing counts, phi, Jaccard and correlation of every two; see `sae.inspection.compare`.
        Raises ConfigError unless they are 2 to 8 different latents."""
        atoms = None if self.live is None else self.live.atoms([self._checked(latent) for latent in latents])
        return compare(self, latents, atoms=atoms)

    def attach(self, live: LiveEncoder) -> "FeatureIndex":
        """This index with the means to encode new texts. Raises FormatError when `live` has another site or dictionary than the index."""
        source = self.manifest.source
        for name, mine, other in (
            ("site", source.site, live.site_name),
            ("dictionary digest", source.dictionary_digest[:12], live.dictionary_digest[:12]),
        ):
            if mine != other:
                raise FormatError(f"the live encoder does not belong to {self.folder}: the index has {name} {mine}, the encoder {other}")
        attached = copy.copy(self)
        attached.live = live
        return attached

    def on(self, texts: str | Sequence[str], *, n: int = 20, by: Order = "value", max_density: float = 1.0) -> TextFeatures:
        """What fires in a text, or in several: the `n` strongest features with evidence, and every token's. Needs `attach`; see
        `sae.inspection.text_features.on_texts`, which also says what it raises."""
        return on_texts(self, self.live, texts, n=n, by=by, max_density=max_density)

    def contrast(self, texts_a: Sequence[str], texts_b: Sequence[str], *, n: int = 20) -> ContrastTable:
        """The `n` features that tell two sets of texts apart best, with what chance gives; see `sae.inspection.contrast`. Needs `attach`.
        Raises ConfigError without a live encoder and for texts that cannot be encoded."""
        if self.live is None:
            raise ConfigError("this index has no live encoder, which encoding texts needs: see FeatureIndex.attach (FeatureIndex.contrast)")
        return ContrastTable(tuple(self.live.contrast(texts_a, texts_b, n=n)), (len(texts_a), len(texts_b)), self)

    @cached_property
    def _search_table(self) -> SearchTable:
        return SearchTable(self.reader.arrays, self.reader.texts)

    def _checked(self, latent: Any) -> int:
        allowed = f"0..d_sae-1={self.d_sae - 1}"
        if isinstance(latent, (bool, np.bool_)) or not hasattr(latent, "__index__"):
            raise ConfigError(f"latent must be an integer in {allowed}, got {latent!r} (FeatureIndex {self.folder})")
        number = operator.index(latent)
        if not 0 <= number < self.d_sae:
            raise ConfigError(f"latent must be in {allowed}, got {number} (FeatureIndex {self.folder})")
        return number

    @cached_property
    def _by_latent(self) -> LatentView:
        return LatentView(self._with("by_latent"), self.manifest)

    @cached_property
    def _by_token(self) -> TokenView:
        return TokenView(self._with("by_token"), self.manifest)

    def _with(self, name: str) -> Path:
        if not (self.folder / name).is_dir():
            raise FormatError(
                f"{self.folder} is a summary bundle without {name}/: cards and statistics work, questions to the entries do not"
            )
        return self.folder
