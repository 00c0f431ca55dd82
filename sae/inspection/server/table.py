"""Rows of the table of features, chosen and ordered by numbers that the index has for every latent."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.inspection.server.answers import FeatureRow
from sae.inspection.server.context import Source
from sae.inspection.server.notes import Notes
from sae.inspection.server.schemas import TableQuery


@dataclass(frozen=True)
class Labels:
    """What the features of a source are called."""

    by_index: dict[int, str]
    """Label of each feature that has one."""

    @staticmethod
    def of(source: Source, notes: Notes | None) -> "Labels":
        """The labels in the file of notes."""
        return Labels(notes.labels(source.dictionary) if notes else {})


def column(source: Source, name: str) -> Float[np.ndarray, "d_sae"]:
    """A column of the table, by the name that `sort` has for it."""
    statistics = source.index.statistics
    if name == "index":
        return np.arange(source.index.d_sae, dtype=np.float64)
    if name == "telling":
        return np.asarray(statistics.token_bits, np.float64) + np.asarray(statistics.next_bits, np.float64)
    return np.asarray(getattr(statistics, name), np.float64)


def chosen(source: Source, query: TableQuery, labels: Labels) -> Int[np.ndarray, "n"]:
    """Latent ids of all rows that the query asks for, in its order; ties by id."""
    keep = _kept(source, query)
    if query.label is not None:
        wanted = query.label.casefold()
        keep &= _mask(source, [i for i, label in labels.by_index.items() if wanted in label.casefold()])
    if query.token is not None:
        keep &= _leading(source, query.token.casefold())
    ids = np.flatnonzero(keep)
    values = column(source, query.sort)[ids]
    return ids[np.argsort(values if query.order == "asc" else -values, kind="stable")]


def rows(source: Source, ids: Int[np.ndarray, "n"], labels: Labels) -> list[FeatureRow]:
    """The rows of these latents."""
    s, texts = source.index.statistics, source.index.texts
    found = []
    for i in ids.tolist():
        leading = int(s.leading_token[i])
        numbers = {name: float(getattr(s, name)[i]) for name in ("density", "max", "min", "mean", "token_bits", "next_bits")}
        counts = {name: int(getattr(s, name)[i]) for name in ("n_active", "n_documents")}
        token = texts[leading] if leading >= 0 else None
        label = labels.by_index.get(i)
        found.append(FeatureRow(index=i, alive=counts["n_active"] > 0, **numbers, **counts, leading_token=token, label=label))
    return found


def _kept(source: Source, query: TableQuery) -> Bool[np.ndarray, "d_sae"]:
    s = source.index.statistics
    keep = (s.density >= query.min_density) & (s.density <= query.max_density)
    if query.min_max_act is not None:
        keep &= column(source, "max") >= query.min_max_act
    if query.max_max_act is not None:
        keep &= column(source, "max") <= query.max_max_act
    if query.alive is not None:
        keep &= (s.n_active > 0) == query.alive
    return np.asarray(keep)


def _leading(source: Source, wanted: str) -> Bool[np.ndarray, "d_sae"]:
    leading, texts = source.index.statistics.leading_token, source.index.texts
    tokens = [token for token in np.unique(leading).tolist() if token >= 0 and wanted in texts[token].casefold()]
    return np.isin(leading, tokens)


def _mask(source: Source, ids: list[int]) -> Bool[np.ndarray, "d_sae"]:
    mask = np.zeros(source.index.d_sae, bool)
    mask[[i for i in ids if i < len(mask)]] = True
    return mask
