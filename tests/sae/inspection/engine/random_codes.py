"""Random sparse codes with everything that can happen to them, and indexes made from them."""

from dataclasses import dataclass

import numpy as np
import torch

from sae.dictionaries.codes import SparseCodes
from sae.inspection import FeatureIndex, IndexConfig, build_index_from_codes

EXACT = IndexConfig(value_dtype="float32", n_examples=5, n_interval_samples=2, n_driving=4, n_neighbours=6)


@dataclass(frozen=True)
class RandomCodes:
    """Codes of the used tokens of a random corpus."""

    tokens: torch.Tensor
    documents: torch.Tensor
    used: torch.Tensor
    codes: SparseCodes
    pursuit: bool

    @property
    def dense(self):
        """[n_tokens, d_sae] in float64, zero where masked."""
        z = np.zeros((self.tokens.numel(), self.codes.d_sae))
        rows = np.flatnonzero(self.used.numpy())
        for r, row in enumerate(rows):
            for s in range(int(self.codes.counts[r])):
                z[row, int(self.codes.indices[r, s])] += float(self.codes.values[r, s])
        return z.astype(np.float32).astype(np.float64)

    def build(self, folder, batch=7, **options):
        """The index, from batches of a few rows."""
        batches = (self.codes[begin : begin + batch] for begin in range(0, len(self.codes), batch))
        defaults = {
            "used": self.used, "d_sae": self.codes.d_sae, "codes_digest": "random", "config": EXACT, "segment_tokens": 20,
            "kind": "coefficient" if self.pursuit else "activation",
        }  # fmt: skip
        for _ in build_index_from_codes(batches, self.tokens, self.documents, folder, **defaults | options):
            pass
        return FeatureIndex.open(folder)


def random_codes(seed, *, n_rows=6, context=9, d_sae=8, k=4, n_vocabulary=6, signed=True, pursuit=True, masked=0.1):
    """Ragged rows, negative values, latents named twice in a row (in a pursuit), values that cancel, empty rows, ties."""
    rng = np.random.default_rng(seed)
    n = n_rows * context
    tokens = torch.from_numpy(rng.integers(0, n_vocabulary, (n_rows, context)).astype(np.int32))
    documents = torch.from_numpy((rng.random(n) < 0.2).cumsum().reshape(n_rows, context).astype(np.int32) + 3)
    used = torch.from_numpy(rng.random(n) >= masked)
    m = int(used.sum())
    if pursuit:
        indices = rng.integers(0, max(d_sae - 1, 1), (m, k))  # the last latent is dead
    else:
        indices = np.stack([rng.permutation(d_sae)[:k] for _ in range(m)]) if m else np.zeros((0, k), np.int64)
    values = rng.choice([0.25, 0.5, 1.0, 2.0, 3.5], (m, k)) * rng.choice([1.0, 1.0, 1.1], (m, k))
    if signed:
        values *= rng.choice([1.0, -1.0], (m, k))
    counts = rng.integers(0, k + 1, m)
    place = np.arange(k) < counts[:, None]
    codes = SparseCodes(
        torch.from_numpy(indices * place), torch.from_numpy((values * place).astype(np.float32)), torch.from_numpy(counts), d_sae
    )
    return RandomCodes(tokens, documents, used, codes, pursuit)
