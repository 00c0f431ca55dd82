"""What training and its measurements read from a store: activations of one site, or pairs of two sites at the same tokens.

    autoencoders   batch = acts [n, d_in]                                       tokens that the site's mask keeps
    transcoders    batch = (acts [n, d_in], acts_out [n, d_out])                tokens that both masks keep

Documents are held out by a hash of their number, so that all runs on one store, and all their measurements, agree on which.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sae.activations.batches import shuffled_indices
from sae.activations.store import ActivationStore
from sae.errors import ConfigError
from sae.training.loop import Batch


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Which activations a run reads, and in what order."""

    site: str
    """TransformerLens name of the site that is encoded."""
    target_site: str | None = None
    """Site that a transcoder explains; absent for an autoencoder, which explains its input."""
    batch_size: int = 1024
    """Tokens per step (tokens)."""
    held_out: float = 0.1
    """Share of the documents that is kept apart for measurements."""
    seed: int = 0
    """Seed of the order of the batches, of the sample that dictionaries start from, and of their atoms."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size} (FeedConfig)")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must be at least 0 and below 1, got {self.held_out} (FeedConfig)")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed} (FeedConfig)")
        if self.target_site == self.site:
            raise ConfigError(f"target_site must be another site than site={self.site!r} (FeedConfig)")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are read."""
        return (self.site,) if self.target_site is None else (self.site, self.target_site)


def usable_tokens(store: ActivationStore, config: FeedConfig, split: Literal["train", "held_out"] = "train") -> Int[Tensor, "n"]:
    """Ascending indices of the tokens on one side of the split that the masks of all sites keep."""
    tokens = store.usable_tokens(config.site, held_out=config.held_out, split=split)
    for site in config.sites[1:]:
        tokens = tokens[store.mask(site)[tokens]]
    return tokens


def sample(store: ActivationStore, config: FeedConfig, n: int) -> Batch:
    """A batch of up to `n` tokens to train on, drawn without replacement."""
    tokens = usable_tokens(store, config)
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(config.seed + 1))[:n]
    return _read(store, config, tokens[chosen])


def train_batches(store: ActivationStore, config: FeedConfig, *, skip: int = 0) -> Iterator[Batch]:
    """Batches without end, each token once per epoch; `skip` starts at a later one without reading the earlier ones.

    Raises ConfigError when there are fewer usable tokens than a batch holds.
    """
    tokens = usable_tokens(store, config)
    return _batches(store, config, shuffled_indices(tokens, batch_size=config.batch_size, seed=config.seed, epochs=None, skip=skip))


def held_out_batches(store: ActivationStore, config: FeedConfig, *, batch_size: int = 2048) -> Iterator[Batch]:
    """One pass over the usable tokens of the documents kept apart. Raises ConfigError when there are none."""
    if not config.held_out:
        raise ConfigError("held_out must be above 0 for there to be documents kept apart, got 0 (held_out_batches)")
    tokens = usable_tokens(store, config, "held_out")
    return _batches(store, config, shuffled_indices(tokens, batch_size=batch_size, seed=0, epochs=1))


def _batches(store: ActivationStore, config: FeedConfig, indices: Iterator[Int[Tensor, "n"]]) -> Iterator[Batch]:
    for index in indices:
        yield _read(store, config, index)


def _read(store: ActivationStore, config: FeedConfig, tokens: Int[Tensor, "n"]) -> Batch:
    acts = store.gather(config.site, tokens, dtype=torch.float32)
    return acts if config.target_site is None else (acts, store.gather(config.target_site, tokens, dtype=torch.float32))
