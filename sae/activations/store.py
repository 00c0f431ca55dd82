"""ActivationStore: the activations of a corpus on disk, memory-mapped; reading needs no language model.

    token index t = row * context + position,        0 <= t < n_tokens = n_rows * context

Every row of `context` tokens is one window that the model saw. Position 0 and tokens whose norm is above six times the median are stored
but masked (Sun et al., "Massive activations in large language models", arXiv 2402.17762); batches and statistics leave them out.
"""

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.batches import Split, mixing, shuffled_indices, split_by_document
from sae.activations.manifest import DTYPES, Manifest, SiteStatistics, read_manifest
from sae.activations.shards import TOKENS_FILE, check_sizes, shard_folder, site_file, verify_shard
from sae.activations.statistics import check_finite, scatter, usable
from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest
from sae.models.sites import Site
from sae.storage import map_tensors

BATCHES_PER_READ = 8


class ActivationStore:
    """A complete store of activations. Made by `ActivationStore.open`; nothing is read from a shard until it is asked for."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._mapped: dict[tuple[int, str], dict[str, Tensor]] = {}

    @staticmethod
    def open(path: str | Path, *, model_digest: str | None = None) -> "ActivationStore":
        """The store at `path`. Every file is checked to be there with its recorded size; `verify` checks the bytes.

        Raises FormatError naming the file that is missing, truncated or damaged, when the capture is not complete, and when `model_digest`
        is given and the store was captured from another model.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if not manifest.complete:
            found, wanted = len(list(path.glob("shards/[0-9]*"))), -(-manifest.capture.n_rows // manifest.capture.rows_per_shard)
            raise FormatError(f"{path} is not complete: {found} of {wanted} shards are there; run the same capture again to finish it")
        if model_digest is not None and model_digest != manifest.model.digest:
            raise FormatError(
                f"{path} was captured from {manifest.model.name} with digest {manifest.model.digest}, not from {model_digest}"
            )
        for index, record in enumerate(manifest.shards):
            check_sizes(shard_folder(path, index), record)
        return ActivationStore(path, manifest)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} ({site.width})" for site in self.manifest.sites)
        origin = f"{self.manifest.corpus.name} through {self.manifest.model.name}"
        return f"ActivationStore({self.path}: {self.n_tokens:,} tokens of {origin}; {sites})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of every file."""
        return digest(self.manifest)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the captured sites."""
        return tuple(site.name for site in self.manifest.sites)

    @property
    def context(self) -> int:
        """Length of a row, in tokens."""
        return self.manifest.capture.context

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.manifest.n_rows

    @property
    def n_tokens(self) -> int:
        """Number of tokens, masked ones included."""
        return self.n_rows * self.context

    @property
    def dtype(self) -> torch.dtype:
        """Storage dtype of the activations."""
        return DTYPES[self.manifest.capture.dtype]

    def site(self, site: str | Site) -> Site:
        """The captured site of this name. Raises ConfigError naming the captured ones."""
        name = site.name if isinstance(site, Site) else site
        for captured in self.manifest.sites:
            if captured.name == name:
                return captured
        raise ConfigError(f"site must be one of {', '.join(self.site_names)}, got {name!r} ({self.path})")

    def tokens(self) -> Int[Tensor, "n_rows context"]:
        """Token ids, int32."""
        return torch.cat([self._map(i, TOKENS_FILE)["tokens"].to(torch.int32) for i in range(len(self.manifest.shards))])

    def document_ids(self) -> Int[Tensor, "n_rows context"]:
        """The document of every token, int32; a separator belongs to the document it opens."""
        return torch.cat([self._map(i, TOKENS_FILE)["document_ids"] for i in range(len(self.manifest.shards))])

    def norms(self, site: str | Site) -> Float[Tensor, "n_tokens"]:
        """|a| of every token, masked ones included, float32."""
        file = site_file(self.site(site).name)
        return torch.cat([self._map(i, file)["norms"] for i in range(len(self.manifest.shards))])

    def mask(self, site: str | Site) -> Bool[Tensor, "n_tokens"]:
        """True where a token is used: not at position 0 of its row, and of norm at most six times the median."""
        rule = self.manifest.mask
        threshold = self.statistics(site).threshold
        return usable(self.norms(site), context=self.context, skipped_positions=rule.skipped_positions, threshold=threshold)

    def statistics(self, site: str | Site) -> SiteStatistics:
        """Mean, norms, outlier threshold and total variance over the tokens that the mask keeps, as computed after the capture."""
        return SiteStatistics.parse(self.manifest.statistics[self.site(site).name])

    def covariance(self, site: str | Site) -> Float[Tensor, "width width"]:
        """(1/n) sum (a - mu)(a - mu)^T over the tokens that the mask keeps, float64; its trace is `total_variance`. Reads all."""
        keep, measured = self.mask(site), self.statistics(site)
        total = torch.zeros(len(measured.mean), len(measured.mean), dtype=torch.float64)
        for acts, part in zip(self.shards(site), keep.split(self._tokens_per_shard()), strict=True):
            total += torch.from_numpy(scatter(acts[part], measured.mean.numpy()))
        return total / measured.n

    def shards(self, site: str | Site) -> Iterator[Float[Tensor, "n width"]]:
        """The site's activations shard after shard, in the order of the tokens, memory-mapped, in the storage dtype."""
        file = site_file(self.site(site).name)
        for index in range(len(self.manifest.shards)):
            yield self._map(index, file)["acts"]

    def gather(self, site: str | Site, token_index: Int[Tensor, "n"]) -> Float[Tensor, "n width"]:
        """The activations of the given tokens, in the given order, in the storage dtype; indices may repeat.

        Raises ConfigError when an index is out of range.
        """
        site = self.site(site)
        out = torch.empty(len(token_index), site.width, dtype=self.dtype)
        if len(token_index) == 0:
            return out
        ascending, order = token_index.long().sort()
        if ascending[0] < 0 or ascending[-1] >= self.n_tokens:
            bad = int(ascending[0] if ascending[0] < 0 else ascending[-1])
            raise ConfigError(f"token_index must be in 0..n_tokens-1={self.n_tokens - 1}, got {bad} (gather)")
        per_shard = self.manifest.capture.rows_per_shard * self.context
        found, counts = torch.unique_consecutive(ascending // per_shard, return_counts=True)
        first = 0
        for index, count in zip(found.tolist(), counts.tolist(), strict=True):
            rows = ascending[first : first + count] - index * per_shard
            out[order[first : first + count]] = self._map(index, site_file(site.name))["acts"].index_select(0, rows)
            first += count
        return out

    def split(self, held_out: float = 0.1, seed: int = 0) -> Split:
        """All tokens, masked ones included, separated by document; the same documents are held out in every store of one corpus.

        In a packed row the first tokens of a document see the end of the one before it, whichever side that is on.
        """
        return split_by_document(self.document_ids().reshape(-1), held_out=held_out, seed=seed)

    def usable_tokens(
        self, site: str | Site, *, held_out: float = 0.1, split: Literal["train", "held_out"] = "train", split_seed: int = 0
    ) -> Int[Tensor, "n"]:
        """Ascending indices of the tokens that the site's mask keeps on one side of the split; held_out=0 puts all on the side of train."""
        if split not in ("train", "held_out"):
            raise ConfigError(f"split must be 'train' or 'held_out', got {split!r} ({self.path})")
        if held_out == 0 and split == "train":
            return self.mask(site).nonzero().squeeze(1)
        side = self.split(held_out, split_seed).train if split == "train" else self.split(held_out, split_seed).held_out
        return side[self.mask(site)[side]]

    def batch_indices(
        self,
        site: str | Site,
        *,
        batch_size: int,
        seed: int,
        held_out: float = 0.1,
        split: Literal["train", "held_out"] = "train",
        split_seed: int = 0,
        skip: int = 0,
        n_batches: int | None = None,
    ) -> Iterator[Int[Tensor, "batch"]]:
        """The token indices of the batches that `batches` yields."""
        tokens = self.usable_tokens(site, held_out=held_out, split=split, split_seed=split_seed)
        epochs = None if split == "train" else 1
        return shuffled_indices(tokens, batch_size=batch_size, seed=seed, epochs=epochs, skip=skip, n_batches=n_batches)

    def batches(
        self,
        site: str | Site,
        *,
        batch_size: int,
        seed: int,
        held_out: float = 0.1,
        split: Literal["train", "held_out"] = "train",
        split_seed: int = 0,
        skip: int = 0,
        n_batches: int | None = None,
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled activations in float32, without masked tokens: every batch is a uniform sample of its side of the split.

        `split="train"` goes on for ever, each token once per epoch, all batches full; `"held_out"` is one pass, whose last batch may be
        smaller. `skip` starts at a later batch without reading the earlier ones. `seed` shuffles; which documents are held out depends on
        `split_seed` alone. Raises ConfigError when a side has no usable token, or fewer than `batch_size` to train on.
        """
        indices = self.batch_indices(
            site, batch_size=batch_size, seed=seed, held_out=held_out, split=split, split_seed=split_seed, skip=skip, n_batches=n_batches
        )
        return self._read(self.site(site), indices)

    def mixing(self, site: str | Site, *, batch_size: int, seed: int, held_out: float = 0.1, n_batches: int = 8) -> float:
        """How well training batches are mixed over documents: the mean of `batches.mixing` over the first `n_batches`; 1.0 is perfect."""
        document_ids = self.document_ids().reshape(-1)
        population = document_ids[self.usable_tokens(site, held_out=held_out)]
        indices = self.batch_indices(site, batch_size=batch_size, seed=seed, held_out=held_out, n_batches=n_batches)
        return sum(mixing(document_ids[batch], population) for batch in indices) / n_batches

    def verify(self) -> None:
        """Reads everything: sizes, checksums, headers, shapes, ids in range, and no NaN or infinite activation.

        Raises FormatError naming the first file (or site, row and position) that is not as it was written.
        """
        first_token = 0
        for index in range(len(self.manifest.shards)):
            files = verify_shard(self.path, index, self.manifest)
            tokens = files[TOKENS_FILE]["tokens"].to(torch.int32)
            if int(tokens.min()) < 0 or int(tokens.max()) >= self.manifest.model.d_vocab:
                raise FormatError(
                    f"{shard_folder(self.path, index) / TOKENS_FILE} has token ids outside 0..{self.manifest.model.d_vocab - 1}"
                )
            for site in self.manifest.sites:
                check_finite(files[site_file(site.name)]["acts"], site=site.name, first_token=first_token, context=self.context)
            first_token += tokens.numel()
        if first_token != self.n_tokens:
            raise FormatError(f"{self.path} has {first_token} tokens in its shards, its manifest says {self.n_tokens}")

    def _read(self, site: Site, indices: Iterator[Tensor]) -> Iterator[Tensor]:
        while several := list(islice(indices, BATCHES_PER_READ)):  # one visit to each shard for several batches
            acts = self.gather(site, torch.cat(several))
            for batch in acts.split([len(each) for each in several]):
                yield batch.float()

    def _tokens_per_shard(self) -> list[int]:
        return [shard.n_rows * self.context for shard in self.manifest.shards]

    def _map(self, index: int, file: str) -> dict[str, Tensor]:
        if (index, file) not in self._mapped:
            self._mapped[index, file] = map_tensors(shard_folder(self.path, index) / file)
        return self._mapped[index, file]
