"""Tasks straight from a language model, without a store: one pass over the texts for all sites and dictionaries.

    texts  --tokens, right padding-->  capture(sites)  --tokens that count, pooled-->  matrices, codes kept sparse

A separator opens every text; it is not read, nor is padding, nor a token whose norm is above `max_norm_ratio` medians of its text, at any of
the sites (the massive activations of Sun et al., arXiv 2402.17762), so that all matrices are of the same tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from probes.features.arrays import ArraySource
from probes.features.location import Located, ProbeData, RowConfig, TokenRows, locate, pool_rows
from probes.features.stored import CSR_PARTS, encode_rows
from probes.problem import Features
from probes.tasks.lexical import TokenTask
from probes.tasks.task import Task
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.models.sites import Site
from sae.storage import Key, ResultCache, map_tensors
from sae.storage.tensors import write_tensors

FEATURES_FILE = "features.safetensors"
PADDING = 16
"""Batches are as long as a multiple of this (tokens): what is prepared for a shape of matrix is kept, and there would be as many as lengths."""


@runtime_checkable
class ProbedModel(Protocol):
    """What is needed of a language model; `LanguageModel` has it."""

    tokenizer: Any
    digest: str

    @property
    def separator_id(self) -> int:
        """Token that opens a document."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        ...

    def sites(self, patterns: Sequence[str]) -> tuple[Site, ...]:
        """The sites that the patterns name."""
        ...

    def capture(self, tokens: Tensor, sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        """Activations [batch, context, width] at each site."""
        ...


def from_model(
    model: ProbedModel,
    tasks: Sequence[Task | TokenTask],
    sites: Sequence[str],
    *,
    dictionaries: Mapping[str, Dictionary] | None = None,
    dictionary_sites: Mapping[str, str] | None = None,
    cache: ResultCache | None = None,
    config: RowConfig | None = None,
    context: int = 256,
    batch_rows: int = 16,
    max_norm_ratio: float = 6.0,
) -> ProbeData:
    """Problems of `tasks` with a source that has a matrix for each of `sites` (names or patterns) and of `dictionaries`, in memory.

    Texts longer than `context` tokens (separator included) are cut at the end; spans beyond it are missing, and texts are pooled over what
    is left. A dictionary belongs to the site that its provenance or `dictionary_sites` names. With `cache` the model runs once, and the
    matrices are memory-mapped from disk. Memory goes with rows * width, summed over matrices; for many tokens and sites make a store.

    Raises ConfigError for an unknown site, a dictionary of another width, activations that are not finite, spans beyond the context (unless
    `config.missing` is "drop"), and a class of which too few rows can be read, saying how many.
    """
    config, dictionaries = config or RowConfig(), dict(dictionaries or {})
    if context < 2 or batch_rows < 1 or not max_norm_ratio >= 1:
        given = f"context={context}, batch_rows={batch_rows}, max_norm_ratio={max_norm_ratio}"
        raise ConfigError(f"context must be at least 2, batch_rows and max_norm_ratio at least 1, got {given} (from_model)")
    places = {name: _site_of(model, name, each, dictionary_sites or {}) for name, each in dictionaries.items()}
    read = model.sites(sites)
    located = locate(tasks, model.tokenizer, config)
    present = located.offsets() < context - 1
    where = f"a context of {context} tokens"
    located.problems(present, present, cut=True, where=where)  # what is missing is known before the model is run
    options = {
        "sites": [site.name for site in read],
        "context": context,
        "max_norm_ratio": max_norm_ratio if np.isfinite(max_norm_ratio) else None,
        "dtype": str(model.dtype),
        "dictionaries": {name: [places[name].name, each.digest] for name, each in dictionaries.items()},
    }
    key = Key("probes.features", 1, options, {"model": model.digest, "rows": located.digest})
    run = _Pass(model, located, read, {name: (places[name], each) for name, each in dictionaries.items()}, context, max_norm_ratio)
    matrices, counted = run.compute(present, batch_rows) if cache is None else _cached(cache, key, lambda: run.compute(present, batch_rows))
    problems, lost = located.problems(present, counted, cut=True, where=where)
    return ProbeData(ArraySource(matrices, key.digest), problems, lost)


def _site_of(model: ProbedModel, name: str, dictionary: Dictionary, sites: Mapping[str, str]) -> Site:
    named = sites.get(name, dictionary.provenance.get("site"))
    if not isinstance(named, str):
        raise ConfigError(f"the site of dictionaries[{name!r}] is not in its provenance: name it in dictionary_sites (from_model)")
    site = model.sites([named])[0]
    if dictionary.d_in != site.width:
        raise ConfigError(
            f"dictionaries[{name!r}] must have d_in={site.width}, the width of {site.name}, got {dictionary.d_in} (from_model)"
        )
    trained_on = dictionary.provenance.get("model_digest")
    if trained_on and trained_on != model.digest:
        raise ConfigError(
            f"dictionaries[{name!r}] was trained on a model of digest {trained_on}, this one's is {model.digest} (from_model)"
        )
    return site


class _Pass:
    """One pass of the model over all texts."""

    def __init__(
        self,
        model: ProbedModel,
        located: Located,
        sites: tuple[Site, ...],
        dictionaries: Mapping[str, tuple[Site, Dictionary]],
        context: int,
        max_norm_ratio: float,
    ):
        self.model, self.located, self.sites, self.dictionaries = model, located, sites, dictionaries
        self.context, self.max_norm_ratio = context, max_norm_ratio
        self.captured_sites = tuple(dict.fromkeys([*sites, *(site for site, _ in dictionaries.values())]))

    def compute(self, present: Bool[np.ndarray, "_"], batch_rows: int) -> tuple[dict[str, Features], Bool[np.ndarray, "_"]]:
        """(matrix by name, which tokens count)."""
        located, n_rows = self.located, len(self.located.first)
        counted = present & (located.offsets() >= located.config.skip_first)
        dense = {site.name: np.zeros((n_rows, site.width), dtype=np.float32) for site in self.sites}
        codes: dict[str, list[Features]] = {name: [] for name in self.dictionaries}
        order, done = np.argsort(np.diff(located.starts), kind="stable"), []
        for start in range(0, len(order), batch_rows):
            batch = np.sort(order[start : start + batch_rows])
            acts, tokens = self._capture(batch)
            for site in self.captured_sites:
                counted[tokens] &= self._moderate(acts[site], tokens, site)
            rows, mine = self._rows(batch, counted)
            local = np.searchsorted(tokens, rows.tokens)
            for site in self.sites:
                dense[site.name][mine] = pool_rows(acts[site][torch.from_numpy(local)].float().cpu().numpy(), rows.starts, rows.reduce)
            for name, (site, dictionary) in self.dictionaries.items():
                x = acts[site]
                gather = lambda places, x=x: x[torch.from_numpy(places)].float().cpu().numpy()  # noqa: E731
                codes[name].append(encode_rows(dictionary, gather, local, rows.starts, rows.reduce))
            done.append(mine)
        back = np.argsort(np.concatenate(done))
        found = {name: sparse.csr_matrix(sparse.vstack(parts, format="csr"))[back] for name, parts in codes.items()}
        return {**dense, **found}, counted

    def _capture(self, batch: Int[np.ndarray, "_"]) -> tuple[dict[Site, Tensor], Int[np.ndarray, "_"]]:
        """(activations [n, width] by site, numbers) of the tokens of the texts in `batch` that are in the context, in their order."""
        rows = [[self.model.separator_id, *self.located.tokens[i].ids][: self.context] for i in batch]
        longest = -(-max(len(row) for row in rows) // PADDING) * PADDING
        captured = self.model.capture(torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows]), self.captured_sites)
        where = torch.tensor([(i, place) for i, row in enumerate(rows) for place in range(1, len(row))], dtype=torch.long).reshape(-1, 2)
        numbers = [np.arange(len(row) - 1) + self.located.starts[i] for i, row in zip(batch, rows, strict=True)]
        return {site: acts[where[:, 0], where[:, 1]] for site, acts in captured.items()}, np.concatenate(numbers)

    def _moderate(self, acts: Float[Tensor, "n width"], tokens: Int[np.ndarray, " n"], site: Site) -> Bool[np.ndarray, " n"]:
        """Which tokens have a norm of at most `max_norm_ratio` medians of their text."""
        norms = acts.float().norm(dim=1).cpu().numpy()
        texts = np.searchsorted(self.located.starts, tokens, side="right") - 1
        if not np.isfinite(norms).all():
            text = self.located.texts[texts[np.flatnonzero(~np.isfinite(norms))[0]]]
            raise ConfigError(f"activations at {site.name} must be finite, the text {text[:60]!r} gives NaN or Inf (from_model)")
        moderate = np.ones(len(norms), dtype=bool)
        for text in np.unique(texts):
            own = texts == text
            moderate[own] = norms[own] <= self.max_norm_ratio * np.median(norms[own])
        return moderate

    def _rows(self, batch: Int[np.ndarray, "_"], counted: Bool[np.ndarray, "_"]) -> tuple[TokenRows, Int[np.ndarray, "_"]]:
        """(tokens that count, numbers) of the rows of the texts in `batch`."""
        bounds = np.searchsorted(self.located.first, self.located.starts)
        mine = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in batch])
        return self.located.token_rows(counted, mine), mine


def _cached(cache: ResultCache, key: Key, compute: Any) -> tuple[dict[str, Features], Bool[np.ndarray, "_"]]:
    """The matrices and the mask from the cache, computed if they are not there."""

    def fill(folder: Path) -> None:
        matrices, counted = compute()
        tensors: dict[str, Tensor] = {"counted": torch.from_numpy(counted)}
        for name, X in matrices.items():
            parts = {f"{part}/{name}": getattr(X, part) for part in CSR_PARTS} if sparse.issparse(X) else {f"dense/{name}": X}
            tensors |= {part: torch.from_numpy(np.ascontiguousarray(array)) for part, array in parts.items()}
        shapes = {f"columns/{name}": str(X.shape[1]) for name, X in matrices.items()}
        write_tensors(folder / FEATURES_FILE, tensors, shapes)

    path = cache.build(key, fill) / FEATURES_FILE
    stored = {name: tensor.numpy() for name, tensor in map_tensors(path).items()}
    matrices: dict[str, Features] = {name.removeprefix("dense/"): array for name, array in stored.items() if name.startswith("dense/")}
    order = key.config["sites"]
    matrices = {name: matrices[name] for name in order}
    for name in key.config["dictionaries"]:
        parts = tuple(stored[f"{part}/{name}"] for part in CSR_PARTS)
        matrices[name] = sparse.csr_matrix(parts, shape=(len(parts[2]) - 1, _columns(path, name)))
    return matrices, stored["counted"].astype(bool)


def _columns(path: Path, name: str) -> int:
    from sae.storage.tensors import read_header

    return int(read_header(path)[1][f"columns/{name}"])


def needed_tokens(
    model: ProbedModel, located: Located, site: Site, *, context: int = 256, batch_rows: int = 16, max_norm_ratio: float = 6.0
) -> tuple[Float[Tensor, "n_needed width"], Int[np.ndarray, " n_needed"], Bool[np.ndarray, " n_tokens"]]:
    """(activations, their token numbers, which tokens count): the tokens that some row of `located` is read from, in the model's dtype.

    For codes of dictionaries that are not known yet: the model runs once, and each dictionary encodes what is kept. Options and errors are those of
    `from_model`; texts longer than the context are cut.
    """
    run = _Pass(model, located, (site,), {}, context, max_norm_ratio)
    counted = (located.offsets() < context - 1) & (located.offsets() >= located.config.skip_first)
    read = np.zeros(len(counted), dtype=bool)
    read[located.token_rows(counted).tokens] = True
    order, acts, numbers = np.argsort(np.diff(located.starts), kind="stable"), [], []
    for start in range(0, len(order), batch_rows):
        captured, tokens = run._capture(np.sort(order[start : start + batch_rows]))
        counted[tokens] &= run._moderate(captured[site], tokens, site)
        kept = counted[tokens] & read[tokens]
        acts.append(captured[site][torch.from_numpy(kept)].cpu())
        numbers.append(tokens[kept])
    found = np.concatenate(numbers)
    back = np.argsort(found)
    return torch.cat(acts)[torch.from_numpy(back)], found[back], counted
