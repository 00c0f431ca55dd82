"""Running the model over tokens that are on disk, and keeping its activations beside them.

    tokens of a shard --capture--> acts --narrow--> <site>.safetensors

A shard's missing sites are captured in one pass over it; forward passes never cross a shard's border, so what a shard holds does not depend
on who ran it or on what was there. Shards are written by a thread of their own while the model works on the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sae.activations.claims import FIRST_SHARD, Claims
from sae.activations.formats import is_exact, narrow_, widen
from sae.activations.manifest import DTYPES, Manifest, StorageError
from sae.activations.progress import CaptureProgress
from sae.activations.shards import (
    TOKENS_FILE,
    Runs,
    SiteBuffers,
    expanded,
    shard_folder,
    site_file,
    sound_files,
    write_sites,
)
from sae.activations.statistics import check_finite, eligible_positions
from sae.dictionaries.kernels.cpu.memory import recycled
from sae.models.language_model import LanguageModel
from sae.models.sites import Site
from sae.storage import map_tensors


def fill(model: LanguageModel, path: Path, manifest: Manifest, claims: Claims) -> Iterator[CaptureProgress]:
    """Capture whatever site of whatever shard is missing; when the iterator ends, all are there, whichever process made them.

    Raises FormatError for NaN or infinite activations and CacheError for a full disk; shards that are finished stay.
    """
    context, rows = manifest.capture.context, manifest.shard_rows
    total, n_done, n_run = sum(rows) * context, 0, 0
    open_shards = list(range(len(rows)))
    with _Writer(path, claims) as writer:
        while open_shards:
            elsewhere = []
            for index in open_shards:
                folder = shard_folder(path, manifest, index)
                if _missing(folder, manifest) and not claims.try_shard(index):
                    elsewhere.append(index)
                    continue
                missing = _missing(folder, manifest)  # again: it may have been finished by who held the claim
                if missing:
                    shard = _Shard(manifest, index, missing, folder)
                    for n_tokens in shard.run(model):
                        n_run += n_tokens
                        yield CaptureProgress("capture", n_done + shard.n_tokens_done, total, n_run)
                    writer.submit(index, folder, shard.buffers())
                else:
                    claims.release_shard(index)
                    yield CaptureProgress("capture", n_done + rows[index] * context, total, n_run)
                n_done += rows[index] * context
            writer.wait()
            open_shards = elsewhere
            if open_shards:
                with claims.holding(FIRST_SHARD + open_shards[0]):  # until whoever works on it has finished, or is gone
                    pass


def _missing(folder: Path, manifest: Manifest) -> list[Site]:
    sound = sound_files(folder)
    return [site for site in manifest.sites if site_file(site.name) not in sound]


class _Shard:
    """One shard in memory while the model runs over it."""

    def __init__(self, manifest: Manifest, index: int, sites: Sequence[Site], folder: Path):
        self.manifest, self.sites = manifest, sites
        self.first_row = sum(manifest.shard_rows[:index])
        stored = map_tensors(folder / TOKENS_FILE)
        self.tokens = stored["tokens"].long()
        n_tokens = self.tokens.numel()
        self.document_ids = expanded(Runs(stored["document_starts"], stored["document_ids"]), n_tokens).view_as(self.tokens)
        self.acts = {site.name: recycled(n_tokens, site.width, dtype=DTYPES[manifest.capture.dtype]) for site in sites}
        self.norms = {site.name: torch.empty(n_tokens, dtype=torch.float32) for site in sites}
        self.errors: dict[str, Tensor] = {}
        self.n_tokens_done = 0

    def run(self, model: LanguageModel) -> Iterator[int]:
        """Fills the buffers; yields the tokens of each forward pass."""
        config = self.manifest.capture
        for first in range(0, len(self.tokens), config.rows_per_batch):
            batch = self.tokens[first : first + config.rows_per_batch]
            options = {"document_ids": self.document_ids[first : first + len(batch)]} if config.isolated else {}
            captured = model.capture(batch, self.sites, **options)
            for site in self.sites:
                self._keep(site, captured[site].reshape(-1, site.width), first * config.context)
            self.n_tokens_done += batch.numel()
            yield batch.numel()

    def _keep(self, site: Site, acts: Tensor, first: int) -> None:
        place = slice(first, first + len(acts))
        stored, norms = self.acts[site.name][place], self.norms[site.name][place]
        acts = acts.to("cpu")
        narrow_(acts, stored, norms, where=f"activations of {site.name}")
        context = self.manifest.capture.context
        check_finite(norms, site=site.name, first_token=self.first_row * context + first, context=context)
        if not is_exact(acts.dtype, stored.dtype):
            errors = self.errors.setdefault(site.name, torch.zeros(self.tokens.numel()))
            errors[place] = (acts.float() - widen(stored, norms)).square().sum(dim=1)

    def buffers(self) -> dict[str, SiteBuffers]:
        """What there is to write."""
        rule = self.manifest.mask
        eligible = eligible_positions(
            self.document_ids, skipped_positions=rule.skipped_positions, isolated=self.manifest.capture.isolated
        ).flatten()
        return {
            site.name: SiteBuffers(
                self.acts[site.name],
                self.norms[site.name],
                storage_error(self.norms[site.name], self.errors.get(site.name), eligible, rule.norm_ratio),
            )
            for site in self.sites
        }


def storage_error(norms: Tensor, errors: Tensor | None, eligible: Tensor, norm_ratio: float) -> StorageError:
    """What storing lost over the tokens of a shard that are no outliers in it; `errors` None stands for nothing lost at any token."""
    if not bool(eligible.any()):
        return StorageError(n=0, squared=0.0)
    keep = eligible & (norms <= norm_ratio * norms[eligible].median())
    squared = 0.0 if errors is None else float(errors[keep].double().numpy().sum())
    return StorageError(n=int(keep.sum()), squared=squared)


class _Writer:
    """Writes one shard while the model works on the next; a claim is held until its shard is on disk."""

    def __init__(self, path: Path, claims: Claims):
        self.path, self.claims = path, claims
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def submit(self, index: int, folder: Path, sites: Mapping[str, SiteBuffers]) -> None:
        """Have the shard written, once the one before it is."""
        self.wait()
        self._pending = self._thread.submit(self._write, index, folder, sites)

    def _write(self, index: int, folder: Path, sites: Mapping[str, SiteBuffers]) -> None:
        write_sites(self.path, folder, sites)
        self.claims.release_shard(index)

    def wait(self) -> None:
        """Until everything is on disk. Raises what went wrong in writing."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
