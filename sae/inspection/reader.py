"""From the summary bundle to records."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sae.inspection.contexts import TokenTable
from sae.inspection.manifest import IndexManifest
from sae.inspection.records import DrivingToken, Example, FeatureRecord, Histogram, Interval, Neighbour, TokenEffect
from sae.inspection.settings import QUANTILES


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


class RecordReader:
    """Reads records out of the arrays of a summary bundle."""

    def __init__(
        self,
        manifest: IndexManifest,
        arrays: Mapping[str, np.ndarray],
        table: TokenTable,
        texts: list[str],
        labels: Mapping[str, Mapping[str, str | int]],
    ) -> None:
        self.manifest, self.arrays, self.table, self.texts, self.labels = manifest, arrays, table, texts, labels

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
        )

    def record(self, latent: int) -> FeatureRecord:
        """All that is shown about one latent."""
        row = {
            name: array[latent]
            for name, array in self.arrays.items()
            if len(array) == self.manifest.source.d_sae and not name.startswith("window_")
        }
        alive = int(row["n_active"]) > 0
        tops, bottoms, samples = (row[name].reshape(-1) for name in ("top", "bottom", "interval_tokens"))
        slots = latent * (len(tops) + len(bottoms) + len(samples)) + np.arange(len(tops) + len(bottoms) + len(samples))
        examples = [self._example(int(t), int(s)) if t >= 0 else None for t, s in zip(np.r_[tops, bottoms, samples], slots, strict=True)]
        low, high = len(tops), len(tops) + len(bottoms)
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
            examples=tuple(e for e in examples[:low] if e),
            negative_examples=tuple(e for e in examples[low:high] if e),
            intervals=self._intervals(row, examples[high:]),
            driving_tokens=self._driving(row),
            promoted=self._effects(row, "top"),
            suppressed=self._effects(row, "bottom"),
            neighbours=tuple(
                Neighbour(int(i), float(c)) for i, c in zip(row["neighbour_ids"], row["neighbour_cosines"], strict=True) if i >= 0
            ),
            steps=tuple(row["steps"].tolist()),
        )

    def _example(self, token: int, slot: int) -> Example:
        config, starts = self.manifest.config, self.arrays["window_start"]
        part = slice(int(starts[slot]), int(starts[slot + 1]))
        return self.example(token, self.arrays["window_offsets"][part], self.arrays["window_values"][part], config.before, config.after)

    def example(self, token: int, offsets: Int[np.ndarray, "m"], values: Float[np.ndarray, "m"], before: int, after: int) -> Example:
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
        n_samples = row["interval_tokens"].shape[1]
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
