"""What a battery is run on: dictionaries, a store with its sites, a language model; and the samples of them that measures share.

Samples are drawn from their own generators, so that a measure gives the same whatever ran before it. Codes are encoded once and kept in the
result cache under the dictionary, the store, the site and the sample.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.store import ActivationStore
from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import SparseCodes
from sae.errors import CacheError, ConfigError
from sae.fingerprint import digest, digest_tensors
from sae.models.language_model import LanguageModel
from sae.storage import Key, ResultCache, load_tensors, save_tensors

Need = Literal["dictionary", "other", "store", "sites", "model", "truth"]
"""`sites`: a store with two or more chosen sites; `truth`: planted features that the dictionary is held against."""
ENCODED_ROWS = 2048


@dataclass(frozen=True, eq=False)
class CodeSample:
    """Codes of a sample of tokens, in the order of the text."""

    codes: SparseCodes
    """Codes, a latent at most once in a row."""
    token_index: Int[Tensor, " n"]
    """Number of each token in the store, ascending."""
    row_id: Int[Tensor, " n"]
    """Row of the store (a window of the text) that each token is from; rows are sampled whole, but for masked tokens."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Synthetic activations with the features that they were made of."""

    features: Float[Tensor, "n_features d_in"]
    """Directions of the features."""
    codes: Float[Tensor, "n n_features"]
    """How strongly each feature is in each row; 0 where it is absent."""
    acts: Float[Tensor, "n d_in"]
    """The activations."""

    @property
    def digest(self) -> str:
        """SHA-256 of all three, bit for bit."""
        return digest_tensors({"features": self.features, "codes": self.codes, "acts": self.acts})


@dataclass(frozen=True, eq=False)
class Inputs:
    """What there is to measure."""

    cache: ResultCache
    """Where results are kept."""
    seed: int = 0
    """Seed of every sample and of every null."""
    dictionary: Dictionary | None = None
    """The dictionary."""
    other: Dictionary | None = None
    """The one it is compared with."""
    store: ActivationStore | None = None
    """Activations."""
    sites: tuple[str, ...] = ()
    """Sites of the store that are looked at."""
    site: str = ""
    """The site of the dictionaries, or the one being looked at."""
    model: LanguageModel | None = None
    """A language model."""
    prompts: tuple[str, ...] = ()
    """Texts for it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What to call the inputs, by field; for figures and tables."""
    truth: Truth | None = None
    """What was planted, for synthetic activations."""

    def __post_init__(self) -> None:
        for name, dictionary in (("dictionary", self.dictionary), ("other", self.other)):
            if dictionary is None or self.store is None or not self.site:
                continue
            width = self.store.site(self.site).width
            if dictionary.d_in != width:
                raise ConfigError(
                    f"{name} must take activations of width {width} like {self.site}, got d_in={dictionary.d_in}: choose its site with --site, "
                    f"or a store that has it ({self.store.path})"
                )

    @property
    def there(self) -> frozenset[Need]:
        """What can be asked for."""
        present: dict[Need, bool] = {
            "dictionary": self.dictionary is not None,
            "other": self.other is not None,
            "store": self.store is not None,
            "sites": self.store is not None and len(self.sites) > 1,
            "model": self.model is not None,
            "truth": self.truth is not None,
        }
        return frozenset(name for name, is_there in present.items() if is_there)

    def at(self, site: str) -> "Inputs":
        """The same, looking at another site."""
        return replace(self, site=site)

    def name(self, which: str) -> str:
        """What to call an input."""
        return self.names.get(which, which)

    def digests(self, needs: Iterable[Need]) -> dict[str, str]:
        """Digest of every input that is needed, by name."""
        found = {}
        for need in needs:
            if need in ("dictionary", "other"):
                found[need] = self.chosen(need).digest
            elif need in ("store", "sites"):
                found["store"] = self.stored.digest
            elif need == "truth":
                found["truth"] = self.planted.digest
            else:
                found |= {"model": self.language_model.digest, "prompts": digest(list(self.prompts))}
        return found

    def generator(self, purpose: str) -> torch.Generator:
        """Its own generator for every purpose."""
        return torch.Generator().manual_seed(int(digest([self.seed, purpose])[:15], 16))

    @property
    def stored(self) -> ActivationStore:
        """The store. Raises ConfigError when there is none."""
        if self.store is None:
            raise ConfigError("store must be given (Inputs)")
        return self.store

    @property
    def language_model(self) -> LanguageModel:
        """The model. Raises ConfigError when there is none."""
        if self.model is None:
            raise ConfigError("model must be given (Inputs)")
        return self.model

    @property
    def planted(self) -> Truth:
        """What was planted. Raises ConfigError when there is nothing."""
        if self.truth is None:
            raise ConfigError("truth must be given (Inputs)")
        return self.truth

    def atoms(self, which: Literal["dictionary", "other"] = "dictionary") -> Float[Tensor, "n_atoms d"]:
        """Rows of W_dec that are not zero, in float32."""
        rows = self.chosen(which).W_dec.detach().float()
        return rows[rows.norm(dim=1) > 0]

    def points(self, site: str, n: int) -> Float[Tensor, "n width"]:
        """Activations of `n` tokens of the site drawn without replacement (all of them where there are fewer), float32."""
        return self.stored.gather(site, self._tokens(site, n), dtype=torch.float32)

    def aligned_points(self, sites: Iterable[str], n: int) -> dict[str, Float[Tensor, "n width"]]:
        """Activations of the same `n` tokens at every site; tokens that any of the sites masks are left out."""
        sites = tuple(sites)
        kept = torch.stack([self.stored.mask(site) for site in sites]).all(dim=0).nonzero().squeeze(1)
        if not len(kept):
            raise ConfigError(f"sites must share tokens that none of them masks, got none ({self.stored.path})")
        order = torch.randperm(len(kept), generator=self.generator("tokens"))[:n]
        chosen = kept[order].sort().values
        return {site: self.stored.gather(site, chosen, dtype=torch.float32) for site in sites}

    def codes(self, n_tokens: int, which: Literal["dictionary", "other"] = "dictionary") -> CodeSample:
        """Codes of about `n_tokens` tokens of the site, whole rows of the store drawn at random. Raises ConfigError without usable tokens."""
        index = self.row_tokens(n_tokens)
        dictionary = self.chosen(which)
        config = {"site": self.site, "seed": self.seed, "n_tokens": n_tokens}
        key = Key("geometry.codes", 1, config, {"dictionary": dictionary.digest, "store": self.stored.digest})
        path = verified(self.cache, key, lambda folder: save_tensors(folder / "codes.safetensors", self._encoded(dictionary, index)))
        kept = load_tensors(path / "codes.safetensors")
        codes = SparseCodes(kept["indices"].long(), kept["values"], kept["counts"].long(), dictionary.d_sae)
        return CodeSample(codes, index, index // self.stored.context)

    def _encoded(self, dictionary: Dictionary, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        parts = []
        with torch.no_grad():
            for start in range(0, len(index), ENCODED_ROWS):
                acts = self.stored.gather(self.site, index[start : start + ENCODED_ROWS], dtype=torch.float32)
                parts.append(dictionary.encode(acts.to(dictionary.W_dec.device)).merged().to("cpu"))
        codes = SparseCodes.concatenate(parts)
        return {"indices": codes.indices.int(), "values": codes.values.float(), "counts": codes.counts.int()}

    def _tokens(self, site: str, n: int) -> Int[Tensor, " n"]:
        usable = self.stored.mask(site).nonzero().squeeze(1)
        if not len(usable):
            raise ConfigError(f"site must have tokens that are not masked, got none in {site} ({self.stored.path})")
        return usable[torch.randperm(len(usable), generator=self.generator(f"tokens of {site}"))[:n]].sort().values

    def row_tokens(self, n_tokens: int) -> Int[Tensor, " n"]:
        """Usable tokens of whole rows of the store, drawn at random until there are `n_tokens` of them (or all); ascending.

        A larger number's tokens hold those of a smaller one. Raises ConfigError without usable tokens.
        """
        kept = self._mask_by_row
        order = torch.randperm(len(kept), generator=self.generator("rows"))
        enough = int((kept.sum(dim=1)[order].cumsum(dim=0) < n_tokens).sum()) + 1
        chosen = torch.zeros(len(kept), dtype=torch.bool)
        chosen[order[:enough]] = True
        found = (kept & chosen[:, None]).flatten().nonzero().squeeze(1)
        if not len(found):
            raise ConfigError(f"site must have tokens that are not masked, got none in {self.site} ({self.stored.path})")
        return found

    @cached_property
    def _mask_by_row(self) -> Tensor:
        return self.stored.mask(self.site).view(-1, self.stored.context)

    def chosen(self, which: str) -> Dictionary:
        """The dictionary, or the other one. Raises ConfigError when it is not there."""
        dictionary = self.dictionary if which == "dictionary" else self.other
        if dictionary is None:
            raise ConfigError(f"{which} must be given (Inputs)")
        return dictionary.eval()


def verified(cache: ResultCache, key: Key, fill: Callable[[Path], None]) -> Path:
    """The folder of a result, made by `fill(folder)` if it is not there, with every file checked against its recorded SHA-256.

    Raises CacheError naming the entry when it is damaged.
    """
    path = cache.build(key, fill)
    problems = cache.verify(path)
    if problems:
        raise CacheError(f"the cached result {path} is damaged ({problems[0]}); remove it with `sae cache prune` and run again")
    return path
