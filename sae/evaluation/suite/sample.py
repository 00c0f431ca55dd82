"""The tokens that measures of evaluation are taken on, and the pass over them that they share.

Tokens are those of whole rows of the store drawn at random, without masked ones: the first positions of rows, and outliers in norm. The sums of a
dictionary over them are kept in the result cache under the dictionary, the store, the sites and the sample, so that only the first measure
encodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sae.dictionaries.autoencoder import Autoencoder
from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.evaluation.batteries.inputs import Inputs, verified
from sae.evaluation.bootstrap import MOST_UNITS, resampling_units, why_none
from sae.evaluation.token_sums import Batch, TokenSums, token_sums
from sae.storage import Key, load_tensors, save_tensors

ROWS_PER_BATCH = 2048
FILE = "sums.safetensors"


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens of a store at the site that a dictionary reads and the one that it explains."""

    index: Int[Tensor, " n"]
    """Number of each token in the store, ascending."""
    unit: Int[Tensor, " n"]
    """Document of each token, or group of whole documents where there are more than 512; numbered from 0."""
    n_documents: int
    """Number of documents."""
    site: str
    """What the dictionary reads."""
    target: str
    """What it explains: the same, but for a transcoder."""

    @property
    def n_units(self) -> int:
        """Number of documents or groups."""
        return int(self.unit.max()) + 1

    @property
    def note(self) -> str:
        """Size of the sample, and why there are no intervals where there are none."""
        grouped = f", resampled in {MOST_UNITS} groups" if self.n_documents > MOST_UNITS else ""
        said = f"{len(self.index):,} tokens of {self.n_documents:,} documents{grouped}"
        return "; ".join(filter(None, (said, why_none(self.n_documents))))


def explained_site(dictionary: Dictionary, inputs: Inputs) -> str:
    """The site whose activations the dictionary explains: its own, and for a transcoder the `target_site` of its provenance.

    Raises ConfigError for a transcoder that does not state one, whose target the store does not hold, or holds in another width.
    """
    if not (isinstance(dictionary, Autoencoder) and dictionary.is_transcoder):
        return inputs.site
    training = dictionary.provenance.get("training")
    feed = training.get("feed") if isinstance(training, dict) else None
    target = dictionary.provenance.get("target_site") or (feed.get("target_site") if isinstance(feed, dict) else None)
    store = inputs.stored
    if not isinstance(target, str):
        raise ConfigError("the dictionary is a transcoder that does not say which site it explains: give its provenance a `target_site`")
    if target not in store.site_names:
        raise ConfigError(
            f"the dictionary is a transcoder of {target}, which the store does not hold ({', '.join(store.site_names)}): capture both sites"
        )
    width = store.site(target).width
    if width != dictionary.W_dec.shape[1]:
        raise ConfigError(f"the transcoder explains activations of width {dictionary.W_dec.shape[1]}, {target} has {width} ({store.path})")
    return target


def sample(inputs: Inputs, n_tokens: int) -> Sample:
    """About `n_tokens` tokens for the inputs' dictionary. Raises ConfigError as `explained_site`, and without usable tokens."""
    dictionary, store = inputs.chosen("dictionary"), inputs.stored
    target = explained_site(dictionary, inputs)
    index = inputs.row_tokens(n_tokens)
    if target != inputs.site:
        index = index[store.mask(target)[index]]
        if not len(index):
            raise ConfigError(f"{inputs.site} and {target} must share tokens that neither masks, got none ({store.path})")
    documents = store.document_ids().view(-1)[index]
    return Sample(index, resampling_units(documents), len(documents.unique()), inputs.site, target)


def batches(inputs: Inputs, chosen: Sample) -> Iterator[Batch]:
    """The sample's activations, batch by batch, in float32."""
    units = chosen.unit.split(ROWS_PER_BATCH)
    for index, unit in zip(chosen.index.split(ROWS_PER_BATCH), units, strict=True):
        acts = inputs.stored.gather(chosen.site, index, dtype=torch.float32)
        same = chosen.target == chosen.site
        yield Batch(acts, acts if same else inputs.stored.gather(chosen.target, index, dtype=torch.float32), unit)


def sums(inputs: Inputs, n_tokens: int) -> tuple[TokenSums, Sample]:
    """The sums of the inputs' dictionary over about `n_tokens` tokens; read from the result cache where they are there."""
    dictionary, chosen = inputs.chosen("dictionary"), sample(inputs, n_tokens)
    config = {"site": chosen.site, "target": chosen.target, "seed": inputs.seed, "n_tokens": n_tokens}
    key = Key("evaluation.token_sums", 1, config, {"dictionary": dictionary.digest, "store": inputs.stored.digest})
    centre = inputs.stored.statistics(chosen.target).mean

    def fill(folder: Path) -> None:
        found = token_sums(dictionary, batches(inputs, chosen), n_units=chosen.n_units, centre=centre)
        save_tensors(folder / FILE, found.tensors())

    path = verified(inputs.cache, key, fill)
    return TokenSums.of_tensors(load_tensors(path / FILE), where=str(path / FILE)), chosen
