"""The table of a source: which latents, in which order. The same question decides what the overview lists and what a feature's page turns to.

TableQuery(sort="density", order="asc", min_density=0.001, token="nation")  -->  latent ids, in order
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Shaped

from sae.inspection.index import FeatureIndex
from sae.inspection.query import MAX_DENSITY, MIN_ACTIVE
from sae.inspection.server.pages.parameters import Parameters

SORTS = ("telling", "index", "density", "max", "mean", "token_bits", "next_bits", "bits", "documents", "label")
"""What a table can be sorted by; `telling` is by bits, with latents that fire too rarely or too often for their bits to mean much last."""
ASCENDING = ("index", "label")
"""Sorts whose usual order is ascending."""
ALIVE = ("alive", "dead", "all")
LONGEST = 200


@dataclass(frozen=True)
class TableQuery:
    """Which latents a table lists, and how."""

    sort: str = "telling"
    """One of SORTS."""
    order: str = "desc"
    """`asc` or `desc`."""
    alive: str = "alive"
    """One of ALIVE."""
    token: str = ""
    """Part of a driving token, whatever its case."""
    label: str = ""
    """Part of the label, whatever its case."""
    min_density: float | None = None
    """Smallest density, or None."""
    max_density: float | None = None
    """Largest density."""
    min_max: float | None = None
    """Smallest largest value."""
    max_max: float | None = None
    """Largest largest value."""

    @staticmethod
    def read(parameters: Parameters) -> "TableQuery":
        """The query that an address states. Raises Refused for a wrong value."""
        sort = parameters.choice("sort", SORTS, "telling")
        numbers = {name: parameters.number(name) for name in ("min_density", "max_density", "min_max", "max_max")}
        return TableQuery(
            sort=sort,
            order=parameters.choice("order", ("asc", "desc"), "asc" if sort in ASCENDING else "desc"),
            alive=parameters.choice("alive", ALIVE, "alive"),
            token=parameters.text("token", LONGEST),
            label=parameters.text("label", LONGEST),
            **numbers,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """What an address says to state this query: only what differs from the usual."""
        usual = TableQuery(sort=self.sort, order="asc" if self.sort in ASCENDING else "desc")
        found = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)}
        found = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in found.items()}
        return ({"sort": self.sort} if self.sort != "telling" else {}) | found

    @property
    def filters(self) -> dict[str, Any]:
        """The parameters that leave latents out."""
        return {name: value for name, value in self.parameters.items() if name not in ("sort", "order")}


class SourceTable:
    """The columns of an index, and the texts that filters look in."""

    def __init__(self, index: FeatureIndex) -> None:
        self.index = index
        s = index.statistics
        bits = s.token_bits + s.next_bits
        rare = (s.n_active < MIN_ACTIVE) | (s.density > MAX_DENSITY)
        self.columns: dict[str, Shaped[np.ndarray, d_sae]] = {
            "index": np.arange(index.d_sae),
            "density": s.density,
            "max": s.max,
            "mean": s.mean,
            "token_bits": s.token_bits,
            "next_bits": s.next_bits,
            "bits": bits,
            "telling": np.where(rare, bits - 1e6, bits),
            "documents": s.n_documents,
        }
        self.alive = s.n_active > 0
        self._texts: list[str] | None = None

    def rank(self, latent: int, column: str) -> int:
        """Place of a latent among those that fire, the largest first."""
        values = self.columns[column]
        return int((values[self.alive] > values[latent]).sum()) + 1

    def select(self, query: TableQuery, labels: Mapping[int, str]) -> Int[np.ndarray, "n"]:
        """The latents of the table, in its order; equals by latent id."""
        chosen = np.flatnonzero(self._allowed(query, labels))
        if query.sort == "label":
            named = sorted((i for i in chosen.tolist() if i in labels), key=lambda i: labels[i].casefold())
            rest = [i for i in chosen.tolist() if i not in labels]
            return np.array((named if query.order == "asc" else named[::-1]) + rest, np.int64)
        values = self.columns[query.sort][chosen].astype(np.float64)
        return chosen[np.argsort(values if query.order == "asc" else -values, kind="stable")]

    def _allowed(self, query: TableQuery, labels: Mapping[int, str]) -> Bool[np.ndarray, "d_sae"]:
        allowed = np.ones(self.index.d_sae, bool)
        if query.alive != "all":
            allowed &= self.alive == (query.alive == "alive")
        for name, low, high in (("density", query.min_density, query.max_density), ("max", query.min_max, query.max_max)):
            allowed &= True if low is None else self.columns[name] >= low * (1 - 1e-6)
            allowed &= True if high is None else self.columns[name] <= high * (1 + 1e-6)
        if query.token:
            part = query.token.casefold()
            allowed &= np.fromiter((part in text for text in self.texts), bool, self.index.d_sae)
        if query.label:
            part = query.label.casefold()
            allowed &= np.isin(np.arange(self.index.d_sae), [i for i, label in labels.items() if part in label.casefold()])
        return allowed

    @property
    def texts(self) -> list[str]:
        """For each latent its driving tokens in lower case, parted by a character that no filter holds."""
        if self._texts is None:
            lower = [text.casefold() for text in self.index.texts]
            rows = self.index.reader.arrays["driving_ids"].tolist()
            self._texts = ["\x00".join(lower[i] for i in row if i >= 0) for row in rows]
        return self._texts


@lru_cache(maxsize=32)
def source_table(index: FeatureIndex) -> SourceTable:
    """The table of an index, made once."""
    return SourceTable(index)


@lru_cache(maxsize=256)
def _selected(index: FeatureIndex, query: TableQuery) -> Int[np.ndarray, "n"]:
    return source_table(index).select(query, {})


def selected(index: FeatureIndex, query: TableQuery, labels: Mapping[int, str]) -> Int[np.ndarray, "n"]:
    """The latents of a table, in order; kept for the next page unless it depends on labels, which people change."""
    if query.label or query.sort == "label":
        return source_table(index).select(query, labels)
    return _selected(index, query)
