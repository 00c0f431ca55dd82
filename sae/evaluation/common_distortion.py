"""Description lengths of several dictionaries at one distortion, which is the only way to compare them.

    D = 1.05 max_i FVU_i            which all of them reach, so that every one has a length; the codes of the better ones are rounded more coarsely

Lengths are those of `sae.evaluation.description_length`, on the same tokens for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.evaluation.batteries.inputs import verified
from sae.evaluation.description_length import choose
from sae.evaluation.suite.sample import sample
from sae.fingerprint import from_json, to_json
from sae.storage import Key, read_json, write_json

SLACK = 1.05
"""Distortion over that of the worst dictionary."""


@dataclass(frozen=True)
class CommonLength:
    """What a token costs through one dictionary at the common distortion."""

    name: str
    """The dictionary."""
    bits: float
    """Bits per token."""
    index_bits: float
    """Of these, for saying which latents are active."""
    value_bits: float
    """And for saying how strongly."""


@dataclass(frozen=True)
class CommonLengths:
    """Dictionaries at one distortion."""

    fvu: float
    """The distortion: FVU of the rounded codes."""
    n_tokens: int
    """Tokens that were coded."""
    lengths: tuple[CommonLength, ...]
    """Of every dictionary, in the order given."""
    pca_bits: float
    """Bits per token of principal components, rounded to the same distortion."""
    gaussian_bits: float
    """The least that any code can use for a Gaussian of the same covariance."""

    @property
    def shortest(self) -> str:
        """The dictionary with the shortest description."""
        return min(self.lengths, key=lambda length: length.bits).name


def common_lengths(inputs: Mapping[str, Inputs], fvus: Mapping[str, float], *, n_tokens: int = 10_000) -> CommonLengths:
    """The description lengths at 1.05 times the largest of the `fvus`, kept in the result cache of the inputs.

    Raises ConfigError for dictionaries that do not read one site of one store, and for transcoders.
    """
    chosen = {name: sample(each, n_tokens) for name, each in inputs.items()}
    first, (some, *others) = next(iter(inputs.values())), chosen.values()
    if any(each.target != each.site for each in chosen.values()):
        raise ConfigError("dictionaries must reconstruct what they read, got a transcoder (common_lengths)")
    stores = {each.stored.digest for each in inputs.values()}
    if len(stores) > 1 or any(each.site != some.site or not torch.equal(each.index, some.index) for each in others):
        raise ConfigError("dictionaries must read one site of one store to be compared (common_lengths)")
    target = SLACK * max(fvus.values())
    digests = {name: each.chosen("dictionary").digest for name, each in inputs.items()}
    settings = {"site": some.site, "seed": first.seed, "n_tokens": n_tokens, "fvu": target, "names": list(inputs)}

    def fill(folder: Path) -> None:
        acts = first.stored.gather(some.site, some.index, dtype=torch.float32)
        dictionaries = [(name, each.chosen("dictionary")) for name, each in inputs.items()]
        found = choose(dictionaries, acts, target_fvu=target)
        if any(each.length is None for each in found.candidates):  # on these tokens it misses more than on those of `fvus`
            found = choose(dictionaries, acts, target_fvu=SLACK * max(each.fvu for each in found.candidates))
        lengths = [
            CommonLength(str(each.name), each.length.bits, each.length.index_bits, each.length.value_bits)
            for each in found.candidates
            if each.length is not None
        ]
        made = CommonLengths(found.target_fvu, len(acts), tuple(lengths), found.baselines.pca_bits, found.baselines.gaussian_bits)
        write_json(folder / "lengths.json", to_json(made))

    path = verified(first.cache, Key("evaluation.common_lengths", 1, settings, digests | {"store": first.stored.digest}), fill)
    return from_json(CommonLengths, read_json(path / "lengths.json"), where=str(path))
