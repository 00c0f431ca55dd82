"""Dense embeddings of texts as a store: one row per text, so that dictionaries train on them as on activations.

    corpus --unit--> texts --encoder--> vectors [n, width] --> shards --> statistics --> manifest

A row is one text and its context is 1: there are no token ids, and no position is skipped. Its document is the one that the text is from,
so that a held-out split never has sentences of one document on both sides.
"""

import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from sae.activations.corpus import Corpus, Document
from sae.activations.manifest import DTYPES, CaptureConfig, CorpusRecord, Manifest, MaskRule, ModelRecord, folder_name
from sae.activations.progress import CaptureProgress
from sae.activations.shards import site_file, sound_files
from sae.activations.writing import RowPiece, write_store
from sae.errors import ConfigError
from sae.fingerprint import digest
from sae.models.sites import Site
from sae.models.text_encoder import TextEncoder

logger = logging.getLogger(__name__)

Unit = Literal["document", "paragraph", "line", "sentence"]
RULES = 1
"""Number of the rules by which documents are cut into texts; another number is another corpus."""
SENTENCE_END = re.compile(r"[.!?][\"')\]”’]*(\s+)(?=[\"'(\[“‘]*[A-Z0-9])|(\s*\n\s*\n\s*)")
ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Gen|Col|Capt|Lt|Gov|Sen|Rep|Hon|No|Nos|vs|Jr|Sr))\.$")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What to embed, and how it is stored. The same encoder, corpus and config give the same store, byte for byte."""

    unit: Unit = "document"
    """What one text is: a document, or each of its paragraphs (between blank lines), lines or sentences; blank ones are left out."""
    n_texts: int | None = None
    """How many texts to embed at most, from the first on (texts); None is all of them."""
    site: str = "embedding"
    """The name of the vectors in the store."""
    dtype: Literal["bfloat16", "float16", "float32", "int8"] = "float32"
    """Storage dtype of the vectors."""
    texts_per_shard: int = 512
    """Texts in one shard, the unit that is written, resumed and reported (texts)."""
    batch: int = 32
    """Texts in one pass of the encoder (texts)."""

    def __post_init__(self) -> None:
        for name in ("texts_per_shard", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)} (EmbeddingConfig)")
        if self.n_texts is not None and self.n_texts < 1:
            raise ConfigError(f"n_texts must be at least 1, or None for all, got {self.n_texts} (EmbeddingConfig)")
        if self.unit not in get_args(Unit):
            raise ConfigError(f"unit must be one of {', '.join(get_args(Unit))}, got {self.unit!r} (EmbeddingConfig)")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r} (EmbeddingConfig)")


def collect_embeddings(
    encoder: TextEncoder, corpus: Corpus, path: str | Path, config: EmbeddingConfig | None = None
) -> Iterator[CaptureProgress]:
    """Fill the store at `path` with the vectors of the corpus's texts, yielding progress after every shard; `n_tokens` counts texts.

    Killed at any moment, the next call continues: shards that are there are not encoded again, and the finished folder is byte for byte that
    of an uninterrupted run. With a larger `n_texts` a complete store is added to. Texts that the encoder had to cut are counted in the log.

    Raises ConfigError when the folder holds something else or the corpus has no text, FormatError for a vector that is not finite, CacheError
    for a full disk or a place that cannot be written.

    >>> encoder = TextEncoder.load(default_encoder())
    >>> for progress in collect_embeddings(encoder, state_of_the_union(), "store", EmbeddingConfig(unit="sentence")):
    ...     bar.update(progress.n_tokens)
    """
    return _collect(encoder, corpus, Path(path), config or EmbeddingConfig())


def passages(corpus: Corpus, unit: Unit = "document") -> Iterator[Document]:
    """The texts of a corpus in the order of the store's rows: row t is the t-th. The id and the labels are those of the text's document.

    A sentence ends with . ! or ? (closing quotes and brackets included) before white space and a capital or a digit, but not after an initial
    or an abbreviation such as Mr.; and with a paragraph.
    """
    for document in corpus.documents():
        for text in _cut(document.text, unit):
            if text.strip():
                yield Document(document.id, text.strip(), document.labels)


def _cut(text: str, unit: Unit) -> list[str]:
    if unit == "document":
        return [text]
    if unit == "line":
        return text.splitlines()
    if unit == "paragraph":
        return re.split(r"\n\s*\n", text)
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        group = 1 if end[1] is not None else 2
        if group == 1 and ABBREVIATION.search(text, max(start, end.start() - 8), end.start() + 1):
            continue
        found.append(text[start : end.start(group)])
        start = end.end(group)
    return [" ".join(sentence.split()) for sentence in [*found, text[start:]]]


def _collect(encoder: TextEncoder, corpus: Corpus, path: Path, config: EmbeddingConfig) -> Iterator[CaptureProgress]:
    n_texts = sum(1 for _ in _texts(corpus, config))
    manifest = _describe(encoder, corpus, config, n_texts)
    encoded = _Encoded(encoder, corpus, path, config)
    yield from write_store(path, manifest, encoded.pieces())
    if encoded.n_cut:
        what = "%d of the %d texts encoded have more than max_length=%d tokens and were cut"
        logger.warning(what, encoded.n_cut, encoded.n_encoded, encoder.config.max_length)


def _texts(corpus: Corpus, config: EmbeddingConfig) -> Iterator[Document]:
    return itertools.islice(passages(corpus, config.unit), config.n_texts)


class _Encoded:
    """The shards to be, encoded when they are asked for, unless they are there already."""

    def __init__(self, encoder: TextEncoder, corpus: Corpus, path: Path, config: EmbeddingConfig) -> None:
        self.encoder, self.corpus, self.path, self.config = encoder, corpus, path, config
        self.n_encoded = self.n_cut = 0

    def pieces(self) -> Iterator[RowPiece]:
        """One piece per shard, in order."""
        texts, size = _texts(self.corpus, self.config), self.config.texts_per_shard
        for index in itertools.count():
            chunk = list(itertools.islice(texts, size))
            if not chunk:
                return
            folder = self.path / "shards" / folder_name(index, len(chunk), size)
            if site_file(self.config.site) in sound_files(folder):
                vectors = torch.full((1, 1), float("nan")).expand(len(chunk), self.encoder.width)  # never written: it would be refused
            else:
                encoded = self.encoder.encode_counted([document.text for document in chunk], batch=self.config.batch)
                vectors = encoded.vectors
                self.n_encoded += len(chunk)
                self.n_cut += encoded.n_cut
            yield RowPiece(torch.tensor([[document.id] for document in chunk]), None, {self.config.site: vectors})


def _describe(encoder: TextEncoder, corpus: Corpus, config: EmbeddingConfig, n_texts: int) -> Manifest:
    identity = digest({"corpus": corpus.digest, "unit": config.unit, "rules": RULES})
    site = Site.of(config.site, encoder.width)
    return Manifest(
        model=ModelRecord(
            name=encoder.name,
            digest=encoder.digest,
            dtype=str(encoder.dtype).removeprefix("torch."),
            d_vocab=len(encoder.tokenizer),
            vocabulary=digest(encoder.tokenizer.get_vocab()),
            separator_id=None,
        ),
        corpus=CorpusRecord(name=corpus.name, digest=identity, licence=corpus.licence),
        capture=CaptureConfig(
            sites=(site.name,),
            n_tokens=n_texts,
            context=1,
            dtype=config.dtype,
            rows_per_shard=config.texts_per_shard,
            rows_per_batch=config.batch,
            separator=False,
        ),
        sites=(site,),
        mask=MaskRule(skipped_positions=()),
        token_dtype=None,
    )
