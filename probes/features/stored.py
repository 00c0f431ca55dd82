"""Tasks from an activation store: matrices of its sites, and of dictionaries' codes there, without the language model.

    store + tasks + tokenizer  --locate-->  rows of tokens  --gather, pool-->  one matrix per site  --encode-->  codes, kept sparse, on disk

A text is found in the store by its tokens, wherever it stands: subsets of a task, and several tasks over one store, need nothing
said. A token counts where it counts at every site that is read, so that all matrices are of the same tokens. What is in memory at a time is
one matrix and a block of tokens.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy import sparse

from probes.features.location import Located, ProbeData, RowConfig, TokenRows, locate, pool_codes, pool_rows
from probes.problem import Features
from probes.tasks.lexical import TokenTask
from probes.tasks.offsets import Tokenizer
from probes.tasks.task import Task
from sae.activations.corpus import Corpus, from_texts
from sae.activations.store import ActivationStore
from sae.activations.views import TokenTable
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.fingerprint import digest
from sae.storage import Key, ResultCache, map_tensors
from sae.storage.tensors import write_tensors

if TYPE_CHECKING:
    from sae.models.sites import Site

TOKENS_PER_BLOCK = 16_384
CODES_FILE = "codes.safetensors"
CSR_PARTS = ("data", "indices", "indptr")


def task_corpus(*tasks: Task | TokenTask, context: int = 128) -> Corpus:
    """The texts of tasks as a corpus to capture: each different text is a document, and a filler of `context` words is the last one.

    A store holds whole rows only, so of a corpus the last incomplete row is lost: here it is the filler's. Raises ConfigError for no task.

    >>> corpus = task_corpus(task)
    >>> for _ in collect(model, corpus, "store", CaptureConfig(sites=("blocks.*.hook_resid_post",), n_tokens=10**9, if_short="accept")): ...
    >>> data = from_store(ActivationStore.open("store"), [task], model.tokenizer)
    """
    if not tasks:
        raise ConfigError("tasks must be at least one task, got none (task_corpus)")
    texts = list(dict.fromkeys(text for task in tasks for text in task.texts))
    licence = "; ".join(dict.fromkeys(task.licence for task in tasks))
    return from_texts([*texts, "end " * context], name="+".join(task.name for task in tasks), licence=licence)


def from_store(
    store: ActivationStore,
    tasks: Sequence[Task | TokenTask],
    tokenizer: Tokenizer,
    *,
    sites: Sequence[str] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    dictionary_sites: Mapping[str, str] | None = None,
    cache: ResultCache | None = None,
    config: RowConfig | None = None,
) -> ProbeData:
    """Problems of `tasks` with a source that has a matrix for each of `sites` (None: all of the store) and of `dictionaries`.

    `tokenizer` is that of the model (`model.tokenizer`). A dictionary is read at the site that its provenance or `dictionary_sites` names;
    its codes are CSR, and with `cache` they are encoded once and kept on disk. Masked tokens of the store are never read.

    Raises ConfigError for a site that is not there, a tokenizer or dictionary of another model, texts that are not in the store (unless
    `config.missing` is "drop"), and a class of which too few rows can be read, saying how many.
    """
    config, dictionaries = config or RowConfig(), dict(dictionaries or {})
    read = tuple(store.site(name) for name in (sites or store.site_names))
    places = {name: _dictionary_site(store, name, each, dictionary_sites or {}) for name, each in dictionaries.items()}
    clash = [name for name in dictionaries if name in {site.name for site in read}]
    if clash:
        raise ConfigError(f"dictionaries must have names of their own, {clash[0]!r} is a site (from_store)")
    _check_tokenizer(store, tokenizer)
    located = locate(tasks, tokenizer, config)
    place = _places(store, located)
    counted = place >= 0
    usable = _usable(store, {site.name for site in (*read, *places.values())})
    counted[counted] = usable[place[counted]]
    counted &= located.offsets() >= config.skip_first
    problems, lost = located.problems(place >= 0, counted, cut=False, where=f"the store {store.path.name}")
    rows = located.token_rows(counted)
    rows = TokenRows(place[rows.tokens], rows.starts, rows.reduce)
    return ProbeData(StoreSource(store, rows, tuple(site.name for site in read), dictionaries, places, cache), problems, lost)


class StoreSource:
    """Matrices of a store's sites and of codes there, read when they are asked for. Made by `from_store`.

    It travels to other processes by the store's path.
    """

    def __init__(
        self,
        store: ActivationStore,
        rows: TokenRows,
        sites: tuple[str, ...],
        dictionaries: Mapping[str, Dictionary],
        places: "Mapping[str, Site]",
        cache: ResultCache | None,
    ):
        self.rows, self.sites, self.dictionaries, self.places, self.cache = rows, sites, dict(dictionaries), dict(places), cache
        self._path = store.path
        self._store: ActivationStore | None = store
        self._rows_digest = rows.digest
        self._digest = digest(
            {
                "store": store.digest,
                "rows": self._rows_digest,
                "sites": list(sites),
                "dictionaries": {name: [self.places[name].name, each.digest] for name, each in self.dictionaries.items()},
            }
        )

    def __repr__(self) -> str:
        matrices = f"{len(self.sites)} sites, {len(self.dictionaries)} dictionaries"
        return f"StoreSource({self._path}: {self.n_rows:,} rows of {len(self.rows.tokens):,} tokens; {matrices})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    @property
    def store(self) -> ActivationStore:
        """The store, opened again in another process."""
        if self._store is None:
            self._store = ActivationStore.open(self._path)
        return self._store

    @property
    def names(self) -> tuple[str, ...]:
        """Sites, then dictionaries."""
        return (*self.sites, *self.dictionaries)

    @property
    def n_rows(self) -> int:
        """Rows of every matrix."""
        return len(self.rows)

    @property
    def digest(self) -> str:
        """SHA-256 of store, rows, sites and dictionaries."""
        return self._digest

    def read(self, name: str) -> Features:
        """The matrix [n_rows, width] of a site (float32), or [n_rows, d_sae] of a dictionary (CSR, float32). Rows of no token are 0."""
        if name in self.dictionaries:
            return self._codes(name)
        if name not in self.sites:
            raise ConfigError(f"name must be one of {', '.join(self.names)}, got {name!r} (StoreSource)")
        if len(self.rows.tokens) == self.n_rows and (np.diff(self.rows.starts) == 1).all():
            return self._gather(name, self.rows.tokens)
        out = np.empty((self.n_rows, self.store.site(name).width), dtype=np.float32)
        for begin, end in _blocks(self.rows.starts):
            starts = self.rows.starts[begin : end + 1]
            x = self._gather(name, self.rows.tokens[starts[0] : starts[-1]])
            out[begin:end] = pool_rows(x, starts - starts[0], self.rows.reduce)
        return out

    def _gather(self, site: str, tokens: Int[np.ndarray, "_"]) -> np.ndarray:
        return self.store.gather(site, torch.from_numpy(tokens), dtype=torch.float32).numpy()

    def _codes(self, name: str) -> sparse.csr_matrix:
        if self.cache is None:
            return self._encoded(name)
        inputs = {"store": self.store.digest, "rows": self._rows_digest, "dictionary": self.dictionaries[name].digest}
        key = Key("probes.codes", 1, {"site": self.places[name].name}, inputs)

        def fill(folder: Path) -> None:
            z = self._encoded(name)
            parts = {part: torch.from_numpy(np.ascontiguousarray(getattr(z, part))) for part in CSR_PARTS}
            write_tensors(folder / CODES_FILE, parts, {"d_sae": str(z.shape[1])})

        stored = map_tensors(self.cache.build(key, fill) / CODES_FILE)
        shape = (self.n_rows, self.dictionaries[name].d_sae)
        return sparse.csr_matrix(tuple(stored[part].numpy() for part in CSR_PARTS), shape=shape)

    def _encoded(self, name: str) -> sparse.csr_matrix:
        """Codes of every row, encoded block by block."""
        parts = []
        for begin, end in _blocks(self.rows.starts):
            starts = self.rows.starts[begin : end + 1]
            tokens = self.rows.tokens[starts[0] : starts[-1]]
            parts.append(
                encode_rows(self.dictionaries[name], lambda t: self._gather(self.places[name].name, t), tokens, starts, self.rows.reduce)
            )
        return sparse.csr_matrix(sparse.vstack(parts, format="csr"))


def encode_rows(
    dictionary: Dictionary, gather: Any, tokens: Int[np.ndarray, " n_flat"], starts: Int[np.ndarray, " n_rows_and_one"], reduce: str
) -> Features:
    """Pooled codes of rows of tokens; `gather` gives the activations of token numbers. Each different token is encoded once."""
    unique, place = np.unique(tokens, return_inverse=True)
    if not len(unique):
        return sparse.csr_matrix((len(starts) - 1, dictionary.d_sae), dtype=np.float32)
    with torch.no_grad():
        z = dictionary.encode(torch.from_numpy(gather(unique)).to(dictionary.W_dec.device)).csr()
    return pool_codes(z, place.reshape(-1), starts - starts[0], reduce)


def _blocks(starts: Int[np.ndarray, "_"]) -> list[tuple[int, int]]:
    """Consecutive ranges of rows, each of at most TOKENS_PER_BLOCK tokens, or one row."""
    blocks, begin, n_rows = [], 0, len(starts) - 1
    while begin < n_rows:
        end = max(begin + 1, int(np.searchsorted(starts, starts[begin] + TOKENS_PER_BLOCK, side="right")) - 1)
        blocks.append((begin, min(end, n_rows)))
        begin = blocks[-1][1]
    return blocks


def _check_tokenizer(store: ActivationStore, tokenizer: Any) -> None:
    if not store.has_tokens:
        raise ConfigError(f"{store.path} has no token ids, so texts cannot be found in it: capture it from a language model (from_store)")
    model = store.manifest.model
    if model is not None and hasattr(tokenizer, "get_vocab") and digest(tokenizer.get_vocab()) != model.vocabulary:
        raise ConfigError(
            f"tokenizer must be that of {model.name}, from which {store.path} was captured; it has another vocabulary (from_store)"
        )


def _dictionary_site(store: ActivationStore, name: str, dictionary: Dictionary, sites: Mapping[str, str]) -> "Site":
    """The store's site that a dictionary belongs to. Raises ConfigError when it is not known, not there, or of another width or model."""
    named = sites.get(name, dictionary.provenance.get("site"))
    if not isinstance(named, str):
        raise ConfigError(f"the site of dictionaries[{name!r}] is not in its provenance: name it in dictionary_sites (from_store)")
    site = store.site(named)
    if dictionary.d_in != site.width:
        raise ConfigError(
            f"dictionaries[{name!r}] must have d_in={site.width}, the width of {site.name}, got {dictionary.d_in} (from_store)"
        )
    trained_on, captured_from = dictionary.provenance.get("model_digest"), store.manifest.model and store.manifest.model.digest
    if trained_on and captured_from and trained_on != captured_from:
        raise ConfigError(
            f"dictionaries[{name!r}] was trained on a model of digest {trained_on}, {store.path} is of {captured_from} (from_store)"
        )
    return site


def _usable(store: ActivationStore, sites: set[str]) -> Bool[np.ndarray, "_"]:
    """Which tokens of the store count at every one of `sites`."""
    usable = np.ones(store.n_tokens, dtype=bool)
    for site in sorted(sites):
        usable &= store.mask(site).numpy()
    return usable


def _places(store: ActivationStore, located: Located) -> Int[np.ndarray, "_"]:
    """Number in the store of every located token, -1 where it is not there; a text is found by its tokens, at its first occurrence."""
    table = TokenTable.of(store)
    flat, runs = table.tokens.reshape(-1).numpy().astype(np.int32), table.starts.numpy()
    content = np.ones(len(flat), dtype=bool)
    if store.manifest.capture.bos_id is not None:
        content[:: store.context] = False
    separator = None if store.manifest.model is None else store.manifest.model.separator_id
    if separator is not None:
        opening = np.array([begin + int(not content[begin]) for begin in runs])  # a BOS may stand before the separator
        opening = opening[opening < len(flat)]
        content[opening[flat[opening] == separator]] = False
    numbers = np.flatnonzero(content)
    bounds = np.searchsorted(numbers, [*runs, len(flat)])
    stored = flat[numbers]
    documents: dict[bytes, int] = {}
    for begin, end in itertools.pairwise(bounds):
        documents.setdefault(stored[begin:end].tobytes(), int(begin))
    last = int(bounds[-2])  # the last document may be cut
    place = np.full(located.starts[-1], -1, dtype=np.int64)
    for i, tokens in enumerate(located.tokens):
        ids = np.array(tokens.ids, dtype=np.int32)
        begin, n = documents.get(ids.tobytes(), -1), len(ids)
        if begin < 0 and 0 < len(stored) - last < n and np.array_equal(ids[: len(stored) - last], stored[last:]):
            begin, n = last, len(stored) - last
        if begin >= 0:
            place[located.starts[i] : located.starts[i] + n] = numbers[begin : begin + n]
    return place
