"""From the summary bundle to records."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer

from sae.errors import FormatError
from sae.inspection.contexts import TokenTable
from sae.inspection.entries import checked_arrays
from sae.inspection.manifest import IndexManifest
from sae.inspection.records import (
    NEAR_MISS_DEFINITION,
    RELATIONS,
    DrivingToken,
    Example,
    FeatureRecord,
    Histogram,
    Interval,
    Neighbour,
    TokenEffect,
)
from sae.inspection.settings import HISTOGRAM_BINS, N_NEAR_MISS, N_RANDOM, QUANTILES, IndexConfig
from sae.storage import map_arrays, read_json


@dataclass(frozen=True)
class FeatureStatistics:
    """One number per latent, for tables and filters."""

    n_active: Int[np.ndarray, "d_sae"]
    """Tokens on which it fires."""
    density: Float[np.ndarray, "d_sae"]
    """n_active / tokens looked at."""
    n_documents: Int[np.ndarray, "d_sae"]
    """Documents in which it fires."""
    max: Float[np.ndarray, "d_sae"]
    """Largest value; 0 when dead."""
    min: Float[np.ndarray, "d_sae"]
    """Smallest non-zero value."""
    mean: Float[np.ndarray, "d_sae"]
    """Mean over firings."""
    token_bits: Float[np.ndarray, "d_sae"]
    """Held-out bits of a firing about its token."""
    next_bits: Float[np.ndarray, "d_sae"]
    """Held-out bits of a firing about the next token."""
    leading_token: Int[np.ndarray, "d_sae"]
    """Id of the token with most of its mass; -1 when dead."""
    mean_square: Float[np.ndarray, "d_sae"]
    """Mean of the squared values over firings."""
    quantile_50: Float[np.ndarray, "d_sae"]
    """Median over firings; 0 when dead."""
    map_x: Float[np.ndarray, "d_sae"]
    """First coordinate on the map of the atoms; 0 where there is no map."""
    map_y: Float[np.ndarray, "d_sae"]
    """Second coordinate."""


@dataclass(frozen=True)
class FeatureMap:
    """The atoms in the plane."""

    ids: Int[np.ndarray, "n"]
    """Latent ids, ascending: all of them."""
    x: Float[np.ndarray, "n"]
    """First coordinate."""
    y: Float[np.ndarray, "n"]
    """Second coordinate."""
    method: str
    """How it was made, in words; empty where there is no map."""


@dataclass(frozen=True)
class DocumentView:
    """A document of the store with all that fires in it."""

    document: int
    """Document id."""
    labels: Mapping[str, str | int]
    """Its labels."""
    token_index: Int[np.ndarray, "n"]
    """Flat indices of its tokens, ascending."""
    texts: tuple[str, ...]
    """Their texts."""
    start: Int[np.ndarray, "n_and_1"]
    """Entries of token i are start[i] .. start[i + 1]."""
    latents: Int[np.ndarray, "nnz"]
    """Latents, token after token, each token's in the order of encoding."""
    values: Float[np.ndarray, "nnz"]
    """Their values, float32."""
    steps: Int[np.ndarray, "nnz"] | None
    """Steps of first selection, for a matching pursuit."""


def slots(config: IndexConfig) -> dict[str, slice]:
    """Which places of a latent's row of passages belong to which group."""
    sizes = {
        "top": config.n_examples,
        "bottom": config.n_examples,
        "intervals": config.n_intervals * config.n_interval_samples,
        "random": N_RANDOM,
        "near_miss": N_NEAR_MISS,
    }
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def summary_shapes(manifest: IndexManifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape that every array of the summary bundle has, but for neighbours, effects and windows."""
    n, config = manifest.source.d_sae, manifest.config
    plain = {"n_active": "i8", "n_documents": "i8", "max": "f4", "min": "f4", "mean": "f8", "mean_square": "f8"}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {name: (dtype, (n,)) for name, dtype in plain.items()}
    shapes |= dict.fromkeys(("token_bits", "next_bits"), ("f8", (n,)))
    shapes |= dict.fromkeys(("density_interval", "histogram_range"), ("f8", (n, 2)))
    shapes |= {"quantiles": ("f8", (n, len(QUANTILES))), "histogram": ("i8", (n, HISTOGRAM_BINS)), "steps": ("i8", (n, manifest.n_steps))}
    shapes |= {"interval_range": ("f8", (n, config.n_intervals, 2)), "interval_active": ("i8", (n, config.n_intervals))}
    shapes |= {f"driving_{name}": ("i8", (n, config.n_driving)) for name in ("ids", "active")}
    shapes |= {f"driving_{name}": ("f8", (n, config.n_driving)) for name in ("mass", "share")}
    n_slots = slots(config)["near_miss"].stop
    return shapes | {"slots": ("i8", (n, n_slots)), "window_start": ("i8", (n * n_slots + 1,)), "map": ("f4", (n, 2))}


class RecordReader:
    """Reads records out of a summary bundle."""

    def __init__(self, folder: Path, manifest: IndexManifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.arrays = checked_arrays(folder / "summary.safetensors", summary_shapes(manifest))
        _check_groups(folder / "summary.safetensors", manifest, self.arrays)
        self._tokens = map_arrays(folder / "tokens.safetensors")
        self.table = _table(folder / "tokens.safetensors", self._tokens)

    @cached_property
    def texts(self) -> list[str]:
        """The text of every token id."""
        texts, path = read_json(self.folder / "vocabulary.json"), self.folder / "vocabulary.json"
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise FormatError(f"{path} must be a list of texts; the index is damaged, build it again")
        if len(texts) != len(self.arrays["occurrences"]):
            raise FormatError(f"{path} must have {len(self.arrays['occurrences'])} texts, got {len(texts)}; build the index again")
        return texts

    @cached_property
    def labels(self) -> Mapping[str, Mapping[str, str | int]]:
        """Labels by document id, as text."""
        labels = read_json(self.folder / "documents.json")
        kept = list(labels.values()) if isinstance(labels, dict) else [None]
        if not all(isinstance(own, dict) and all(isinstance(value, (str, int)) for value in own.values()) for own in kept):
            what = "an object of each document's labels, texts or whole numbers"
            raise FormatError(f"{self.folder / 'documents.json'} must be {what}; the index is damaged, build it again")
        return labels

    @property
    def used(self) -> np.ndarray:
        """Which tokens were looked at, by flat index."""
        return self._tokens["used"]

    @cached_property
    def document_ids(self) -> Int[np.ndarray, "n_documents"]:
        """Ids of all documents of the corpus, ascending."""
        return np.unique(self._tokens["run_document"]).astype(np.int64)

    def document_tokens(self, document: int) -> Int[np.ndarray, "n"]:
        """Flat indices of a document's tokens, ascending; none for an unknown one."""
        owner, start, length = (self._tokens[f"run_{name}"] for name in ("document", "start", "length"))
        low, high = np.searchsorted(owner, [document, document + 1])
        parts = [np.arange(int(start[i]), int(start[i]) + int(length[i])) for i in range(int(low), int(high))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def map(self) -> FeatureMap:
        """The map of the atoms."""
        places = self.arrays["map"]
        return FeatureMap(np.arange(len(places)), places[:, 0], places[:, 1], self.manifest.map_method)

    def statistics(self) -> FeatureStatistics:
        """The table of all latents."""
        a = self.arrays
        return FeatureStatistics(
            n_active=a["n_active"],
            density=a["n_active"] / max(self.manifest.source.n_tokens, 1),
            n_documents=a["n_documents"],
            max=a["max"],
            min=a["min"],
            mean=a["mean"],
            token_bits=a["token_bits"],
            next_bits=a["next_bits"],
            leading_token=a["driving_ids"][:, 0],
            mean_square=a["mean_square"],
            quantile_50=a["quantiles"][:, QUANTILES.index(0.5)],
            map_x=a["map"][:, 0],
            map_y=a["map"][:, 1],
        )

    def record(self, latent: int, *, passages: Mapping[str, int] | None = None) -> FeatureRecord:
        """All that is shown about one latent; with `passages`, only so many passages of the groups it names, for those who show few."""
        row = {name: array[latent] for name, array in self.arrays.items() if not name.startswith(("window_", "occurrences"))}
        alive = int(row["n_active"]) > 0
        first = latent * len(row["slots"])
        wanted = self._wanted(passages)
        examples = [self._example(int(t), first + i) if t >= 0 and wanted[i] else None for i, t in enumerate(row["slots"])]
        group = {name: tuple(e for e in examples[part] if e) for name, part in slots(self.manifest.config).items()}
        related = {name: self._neighbours(row, name) for name in RELATIONS if f"{name}_ids" in row}
        edges = np.linspace(*row["histogram_range"].tolist(), len(row["histogram"]) + 1)
        return FeatureRecord(
            index=latent,
            source=self.manifest.source,
            n_active=int(row["n_active"]),
            n_documents=int(row["n_documents"]),
            density=int(row["n_active"]) / max(self.manifest.source.n_tokens, 1),
            density_low=float(row["density_interval"][0]),
            density_high=float(row["density_interval"][1]),
            max=float(row["max"]),
            min=float(row["min"]),
            mean=float(row["mean"]),
            quantiles={str(p): float(q) for p, q in zip(QUANTILES, row["quantiles"], strict=True)} if alive else {},
            token_bits=float(row["token_bits"]),
            next_bits=float(row["next_bits"]),
            histogram=Histogram(tuple(edges.tolist()), tuple(row["histogram"].tolist())),
            examples=group["top"],
            negative_examples=group["bottom"],
            intervals=self._intervals(row, examples[slots(self.manifest.config)["intervals"]]),
            driving_tokens=self._driving(row),
            promoted=self._effects(row, "top"),
            suppressed=self._effects(row, "bottom"),
            neighbours=related.get("decoder_cosine", ()),
            steps=tuple(row["steps"].tolist()),
            mean_square=float(row["mean_square"]),
            random_examples=group["random"],
            near_miss_examples=group["near_miss"],
            near_miss_definition=NEAR_MISS_DEFINITION,
            related=related,
        )

    def n_passages(self, latent: int) -> dict[str, int]:
        """How many passages of each group are stored for a latent."""
        row = self.arrays["slots"][latent]
        return {name: int((row[part] >= 0).sum()) for name, part in slots(self.manifest.config).items()}

    def _wanted(self, passages: Mapping[str, int] | None) -> np.ndarray:
        """Which places of a latent's row of passages are read."""
        parts = slots(self.manifest.config)
        wanted = np.full(parts["near_miss"].stop, passages is None)
        for name, most in (passages or {}).items():
            wanted[parts[name].start : min(parts[name].start + most, parts[name].stop)] = True
        return wanted

    def examples(self, latent: int, group: str) -> tuple[Example, ...]:
        """The stored passages of one group: `top`, `bottom`, `intervals`, `random` or `near_miss`."""
        row, first = self.arrays["slots"][latent], latent * self.arrays["slots"].shape[1]
        part = slots(self.manifest.config)[group]
        return tuple(self._example(int(row[i]), first + i) for i in range(part.start, part.stop) if row[i] >= 0)

    def _example(self, token: int, slot: int) -> Example:
        config, starts = self.manifest.config, self.arrays["window_start"]
        part = slice(int(starts[slot]), int(starts[slot + 1]))
        return self.example(token, self.arrays["window_offsets"][part], self.arrays["window_values"][part], config.before, config.after)

    def example(self, token: int, offsets: Integer[np.ndarray, "m"], values: Float[np.ndarray, "m"], before: int, after: int) -> Example:
        """The passage around a token; `offsets` (from the start of the window) and `values` are the latent's entries in it."""
        start, stop = self.table.window(token, before, after)
        row, position = divmod(token, self.table.context)
        inside = np.zeros(stop - start, np.float32)
        inside[offsets] = values
        document = int(self.table.documents[row, position])
        return Example(
            document=document,
            row=row,
            position=position,
            tokens=tuple(self.texts[i] for i in self.table.ids.reshape(-1)[start:stop].tolist()),
            values=tuple(inside.tolist()),
            peak=token - start,
            labels=self.labels.get(str(document), {}),
        )

    def _intervals(self, row: Mapping[str, np.ndarray], examples: list[Example | None]) -> tuple[Interval, ...]:
        n_samples = self.manifest.config.n_interval_samples
        found = []
        for j, (low, high) in enumerate(row["interval_range"].tolist()):
            if high > low:
                samples = examples[j * n_samples : (j + 1) * n_samples]
                found.append(Interval(low, high, int(row["interval_active"][j]), tuple(e for e in samples if e)))
        return tuple(found)

    def _driving(self, row: Mapping[str, np.ndarray]) -> tuple[DrivingToken, ...]:
        columns = (row[f"driving_{name}"].tolist() for name in ("ids", "active", "mass", "share"))
        occurrences = self.arrays["occurrences"]
        return tuple(
            DrivingToken(self.texts[i], i, active, int(occurrences[i]), mass, share)
            for i, active, mass, share in zip(*columns, strict=True)
            if i >= 0
        )

    def _effects(self, row: Mapping[str, np.ndarray], end: str) -> tuple[TokenEffect, ...]:
        if f"effect_{end}" not in row:
            return ()
        pairs = zip(row[f"effect_{end}_ids"].tolist(), row[f"effect_{end}"].tolist(), strict=True)
        return tuple(TokenEffect(self.texts[i], i, effect) for i, effect in pairs)

    def _neighbours(self, row: Mapping[str, np.ndarray], relation: str) -> tuple[Neighbour, ...]:
        ids, values = row[f"{relation}_ids"].tolist(), row[f"{relation}_values"].tolist()
        counts = row[f"{relation}_counts"].tolist() if f"{relation}_counts" in row else [None] * len(ids)
        return tuple(Neighbour(i, value, n) for i, value, n in zip(ids, values, counts, strict=True) if i >= 0)


def _check_groups(path: Path, manifest: IndexManifest, arrays: Mapping[str, np.ndarray]) -> None:
    """What may be there or not, and is as long as it says."""
    n, start = manifest.source.d_sae, arrays["window_start"]
    for name, dtypes in (("window_offsets", "u2"), ("window_values", "f4"), ("occurrences", "i8")):
        found = arrays.get(name)
        if found is None or found.ndim != 1 or found.dtype.str.lstrip("<") not in dtypes.split("|"):
            raise FormatError(f"{path}: {name!r} must be a list of {dtypes}; the index is damaged, build it again")
    if len(arrays["window_offsets"]) != int(start[-1]) or len(arrays["window_values"]) != int(start[-1]):
        raise FormatError(f"{path}: the windows must hold {int(start[-1])} values; the index is damaged, build it again")
    known = {f"{name}_{part}" for name in RELATIONS for part in ("ids", "values", "counts")}
    known |= {f"effect_{name}" for name in ("top", "top_ids", "bottom", "bottom_ids")}
    for name in known & arrays.keys():
        if arrays[name].ndim != 2 or len(arrays[name]) != n:
            raise FormatError(f"{path}: {name!r} must have {n} rows, got shape {list(arrays[name].shape)}; build the index again")
    unknown = arrays.keys() - known - summary_shapes(manifest).keys() - {"window_offsets", "window_values", "occurrences"}
    if unknown:
        raise FormatError(f"{path} has the unknown array {min(unknown)!r}; the index is damaged, build it again")


def _table(path: Path, arrays: Mapping[str, np.ndarray]) -> TokenTable:
    shapes = {name: array.shape for name, array in arrays.items()}
    for name in ("ids", "documents"):
        if len(shapes.get(name, ())) != 2 or shapes[name] != shapes["ids"] or arrays[name].dtype.kind not in "iu":
            raise FormatError(f"{path}: {name!r} must be a table of integers; the index is damaged, build it again")
    if arrays.get("used", np.zeros(0)).dtype != bool or shapes["used"] != (arrays["ids"].size,):
        raise FormatError(f"{path}: 'used' must say of each token whether it was looked at; the index is damaged, build it again")
    runs = [arrays.get(f"run_{name}", np.zeros((0, 0))) for name in ("document", "start", "length")]
    if any(run.ndim != 1 or len(run) != len(runs[0]) or run.dtype.kind not in "iu" for run in runs):
        raise FormatError(f"{path}: the runs of documents must be three lists of integers; the index is damaged, build it again")
    if len(runs[0]) and (int(runs[1].min()) < 0 or int((runs[1] + runs[2]).max()) > arrays["ids"].size):
        raise FormatError(f"{path}: a run of a document ends behind the last token; the index is damaged, build it again")
    return TokenTable(arrays["ids"], arrays["documents"])
