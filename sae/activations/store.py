"""ActivationStore: the activations of a corpus on disk, memory-mapped; reading needs no language model.

    token index t = row * context + position,        0 <= t < n_tokens = n_rows * context

Every row of `context` tokens is one window that the model saw. Position 0 and tokens whose norm is above six times the median are stored
but masked (Sun et al., "Massive activations in large language models", arXiv 2402.17762); batches and statistics leave them out.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae.activations.batches import NeighbourMixing, Split, mixing, neighbour_mixing, shuffled_indices, split_runs
from sae.activations.completion import read_statistics, site_pieces
from sae.activations.gather import Rows
from sae.activations.manifest import DTYPES, MANIFEST, UNFINISHED, Manifest, SiteStatistics, read_manifest
from sae.activations.prefetch import prefetched
from sae.activations.shards import TOKENS_FILE, Runs, check_file, check_record, check_sizes, expanded, shard_folder, site_file, sound_files
from sae.activations.statistics import check_finite, kept
from sae.activations.views import TokenTable, TokenView
from sae.errors import ConfigError, FormatError
from sae.fingerprint import digest
from sae.models.sites import Site
from sae.storage import map_tensors


class ActivationStore:
    """A complete store of activations. Made by `ActivationStore.open`; nothing is read from a shard until it is asked for."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._rows: dict[str, Rows] = {}
        self._statistics: dict[str, tuple[SiteStatistics, Tensor]] = {}

    @staticmethod
    def open(path: str | Path, *, model_digest: str | None = None) -> "ActivationStore":
        """The store at `path`. Every file is checked to be there with its recorded size; `verify` checks the bytes.

        Raises FormatError naming the file that is missing, truncated or damaged, when the capture is not complete, and when `model_digest`
        is given and the store was captured from another model.
        """
        path = Path(path)
        if not (path / MANIFEST).exists() and (path / UNFINISHED).exists():
            raise FormatError(f"{path} is not complete: {_how_far(path)}; run the same capture again to finish it")
        manifest = read_manifest(path)
        found = None if manifest.model is None else manifest.model.digest
        if model_digest is not None and model_digest != found:
            name = "a model that is not known" if manifest.model is None else manifest.model.name
            raise FormatError(
                f"{path} was captured from {name} with digest {found}, not from {model_digest}: the model's weights are others, though it may "
                "have the same name; load the one the store was made with, or capture again"
            )
        for index, record in enumerate(manifest.shards):
            check_sizes(shard_folder(path, manifest, index), record)
        return ActivationStore(path, manifest)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} ({site.width})" for site in self.manifest.sites)
        through = "" if self.manifest.model is None else f" through {self.manifest.model.name}"
        return f"ActivationStore({self.path}: {self.n_tokens:,} tokens of {self.manifest.corpus.name}{through}; {sites})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds the checksum of every file."""
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

    @property
    def has_tokens(self) -> bool:
        """Whether the rows are tokens of a language model with their ids; imported activations and embeddings of texts may have none."""
        return self.manifest.token_dtype is not None

    def tokens(self) -> Int[Tensor, "n_rows context"]:
        """Token ids, int32. Raises ConfigError when the store has none."""
        if not self.has_tokens:
            raise ConfigError(f"{self.path} has no token ids: its rows are not tokens ({self.manifest.corpus.name})")
        return torch.cat([stored["tokens"].to(torch.int32) for stored in self._token_files()])

    def document_ids(self) -> Int[Tensor, "n_rows context"]:
        """The document of every token, int32; a separator belongs to the document it opens."""
        sizes = self._tokens_per_shard()
        runs = [Runs(stored["document_starts"], stored["document_ids"]) for stored in self._token_files()]
        return torch.cat([expanded(each, size) for each, size in zip(runs, sizes, strict=True)]).view(-1, self.context)

    def norms(self, site: str | Site) -> Float[Tensor, "n_tokens"]:
        """|a| of every token, masked ones included, float32."""
        return torch.cat([piece.norms for piece in site_pieces(self.path, self.manifest, self.site(site))])

    def mask(self, site: str | Site) -> Bool[Tensor, "n_tokens"]:
        """True where a token is used: not at position 0 of its row (or document, where they are isolated), its norm at most six medians."""
        site = self.site(site)
        threshold = self.manifest.statistics[site.name].threshold
        return torch.cat([kept(piece, threshold) for piece in site_pieces(self.path, self.manifest, site)])

    def statistics(self, site: str | Site) -> SiteStatistics:
        """Mean, norms, outlier threshold and total variance over the tokens that the mask keeps, as measured at the end of the capture.

        Raises FormatError when their file is missing or damaged.
        """
        return self._measured(self.site(site))[0]

    def covariance(self, site: str | Site) -> Float[Tensor, "width width"]:
        """(1/n) sum (a - mu)(a - mu)^T over the tokens that the mask keeps, float64, as measured at the end of the capture.

        Its trace is `total_variance`. Raises FormatError when its file is missing or damaged.
        """
        return self._measured(self.site(site))[1].clone()

    def shards(self, site: str | Site) -> Iterator[Shaped[Tensor, "n width"]]:
        """The site's activations shard after shard, in the order of the tokens, memory-mapped, as stored: for int8 see `formats.widen`."""
        for piece in site_pieces(self.path, self.manifest, self.site(site)):
            yield piece.acts

    def gather(self, site: str | Site, token_index: Int[Tensor, "n"], *, dtype: torch.dtype | None = None) -> Float[Tensor, "n width"]:
        """The activations of the given tokens, in the given order; indices may repeat. `dtype` None: as stored, float32 for int8.

        Raises ConfigError when an index is out of range.
        """
        site = self.site(site)
        if site.name not in self._rows:
            pieces = list(site_pieces(self.path, self.manifest, site))
            self._rows[site.name] = Rows([piece.acts for piece in pieces], [piece.norms for piece in pieces])
        if dtype is None:
            dtype = torch.float32 if self.dtype == torch.int8 else self.dtype
        return self._rows[site.name].gather(token_index, dtype)

    def split(self, held_out: float = 0.1, seed: int = 0) -> Split:
        """All tokens, masked ones included, separated by document; the same documents are held out in every store of one corpus.

        In a packed row the first tokens of a document see the end of the one before it, whichever side that is on.
        """
        runs, n_tokens = [], 0
        for stored, size in zip(self._token_files(), self._tokens_per_shard(), strict=True):
            runs.append((stored["document_starts"].long() + n_tokens, stored["document_ids"]))
            n_tokens += size
        starts, ids = (torch.cat(parts) for parts in zip(*runs, strict=True))
        return split_runs(starts, ids, n_tokens, held_out=held_out, seed=seed)

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
        prefetch: int = 0,
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled activations in float32, without masked tokens: every batch is a uniform sample of its side of the split.

        `split="train"` goes on for ever, each token once per epoch, all batches full; `"held_out"` is one pass, whose last batch may be
        smaller. `skip` starts at a later batch without reading the earlier ones. `seed` shuffles; which documents are held out depends on
        `split_seed` alone. `prefetch` batches are read ahead by a thread, which pays where a disk is waited for. Raises ConfigError when a side
        has no usable token, or fewer than `batch_size` to train on.
        """
        indices = self.batch_indices(
            site, batch_size=batch_size, seed=seed, held_out=held_out, split=split, split_seed=split_seed, skip=skip, n_batches=n_batches
        )
        return prefetched(self._read(self.site(site), indices), prefetch)

    def mixing(self, site: str | Site, *, batch_size: int, seed: int, held_out: float = 0.1, n_batches: int = 8) -> float:
        """How well training batches are mixed over documents: the mean of `batches.mixing` over the first `n_batches`; 1.0 is perfect."""
        document_ids = self.document_ids().reshape(-1)
        population = document_ids[self.usable_tokens(site, held_out=held_out)]
        indices = self.batch_indices(site, batch_size=batch_size, seed=seed, held_out=held_out, n_batches=n_batches)
        return sum(mixing(document_ids[batch], population) for batch in indices) / n_batches

    def neighbour_mixing(
        self, site: str | Site, *, batch_size: int, seed: int, held_out: float = 0.1, n_batches: int = 8
    ) -> NeighbourMixing:
        """How alike neighbouring rows of the first `n_batches` training batches are, beside a fresh permutation's and the tokens' order."""
        return neighbour_mixing(
            lambda tokens: self.gather(site, tokens, dtype=torch.float32),
            self.batch_indices(site, batch_size=batch_size, seed=seed, held_out=held_out, n_batches=n_batches),
            self.usable_tokens(site, held_out=held_out),
            mean=self.statistics(site).mean.float(),
            seed=seed + 1,
        )

    def token_view(self, token_index: Int[Tensor, "n"]) -> TokenView:
        """Token ids, documents and places of the given tokens, and their neighbours: for probes and inspection."""
        return self._token_table.at(token_index)

    @cached_property
    def _token_table(self) -> TokenTable:
        return TokenTable.of(self)

    def verify(self) -> None:
        """Reads everything: sizes, checksums, headers, shapes, ids in range, and no NaN or infinite activation.

        Raises FormatError naming the first file (or site, row and position) that is not as it was written.
        """
        first_token = 0
        for index, shard in enumerate(self.manifest.shards):
            self._verify_shard(index, first_token)
            first_token += shard.n_rows * self.context
        for site in self.manifest.sites:
            self._statistics.pop(site.name, None)
            self._measured(site)

    def _verify_shard(self, index: int, first_token: int) -> None:
        folder, shard = shard_folder(self.path, self.manifest, index), self.manifest.shards[index]
        wanted = {TOKENS_FILE, *(site_file(site.name) for site in self.manifest.sites)}
        if set(shard.files) != wanted:
            raise FormatError(f"{folder} must hold {', '.join(sorted(wanted))}, the manifest names {', '.join(sorted(shard.files))}")
        check_record(folder, shard)
        for name in sorted(shard.files):
            check_file(self.path, self.manifest, index, name)
        if self.has_tokens and self.manifest.model is not None:
            low, high = (int(bound) for bound in map_tensors(folder / TOKENS_FILE)["tokens"].to(torch.int32).aminmax())
            if low < 0 or high >= self.manifest.model.d_vocab:
                raise FormatError(f"{folder / TOKENS_FILE} has token ids outside 0..{self.manifest.model.d_vocab - 1}")
        for site in self.manifest.sites:
            stored = map_tensors(folder / site_file(site.name))
            if stored["acts"].dtype != torch.int8:
                finite = torch.isfinite(stored["acts"]).all(dim=1)
                check_finite(torch.where(finite, 0.0, torch.nan), site=site.name, first_token=first_token, context=self.context)
            check_finite(stored["norms"], site=site.name, first_token=first_token, context=self.context)

    def _measured(self, site: Site) -> tuple[SiteStatistics, Float[Tensor, "width width"]]:
        if site.name not in self._statistics:
            self._statistics[site.name] = read_statistics(self.path, site, self.manifest.statistics[site.name])
        return self._statistics[site.name]

    def _read(self, site: Site, indices: Iterator[Int[Tensor, "batch"]]) -> Iterator[Float[Tensor, "batch width"]]:
        """The activations at `indices`, batch after batch."""
        for index in indices:
            yield self.gather(site, index, dtype=torch.float32)

    def _tokens_per_shard(self) -> list[int]:
        return [shard.n_rows * self.context for shard in self.manifest.shards]

    def _token_files(self) -> Iterator[dict[str, Tensor]]:
        for index in range(len(self.manifest.shards)):
            yield map_tensors(shard_folder(self.path, self.manifest, index) / TOKENS_FILE)


def _how_far(path: Path) -> str:
    wanted = read_manifest(path, UNFINISHED)
    if not wanted.n_rows:
        return "not all of its tokens are written"
    needed = {TOKENS_FILE, *(site_file(site.name) for site in wanted.sites)}
    folders = [shard_folder(path, wanted, index) for index in range(len(wanted.shard_rows))]
    return f"{sum(needed <= sound_files(folder) for folder in folders)} of {len(folders)} shards are there"
