"""The doctor names what was done to a dictionary that was in order."""

from dataclasses import replace

import pytest
import torch

from sae.dictionaries.activations import JumpReLU, TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import random_atoms
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError
from sae.evaluation.doctor import examine

D_IN, D_SAE, K = 96, 128, 4
OFFSET = 2.0 * random_atoms(1, D_IN, 9)[0] * D_IN**0.5
FACTOR = 0.11
"""The scale that the dictionary works at: activations have about 9 times the usual norm."""


def planted(n: int = 500, seed: int = 0, offset: torch.Tensor = OFFSET) -> torch.Tensor:
    """Activations of K features each, in units of the language model."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, D_SAE, generator=draw).topk(K, dim=1).indices
    z = torch.zeros(n, D_SAE).scatter_(1, chosen, 3 + 2 * torch.rand(n, K, generator=draw))
    return (z @ random_atoms(D_SAE, D_IN, 1) + offset) / FACTOR


def sound(**options) -> Autoencoder:
    """The oracle: the planted atoms, tied, with what belongs to the activations given to it."""
    dictionary = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(K)), Scaling(torch.zeros(D_IN), FACTOR), **options)
    with torch.no_grad():
        dictionary.W_dec.copy_(random_atoms(D_SAE, D_IN, 1))
        dictionary.W_enc.copy_(dictionary.W_dec.T)
        dictionary.b_enc.copy_(0.05 * torch.randn(D_SAE, generator=torch.Generator().manual_seed(6)))
        dictionary.b_dec.copy_(OFFSET)
    return dictionary.eval()


def rebuilt(dictionary: Autoencoder, scaling: Scaling | None = None, **changes) -> Autoencoder:
    other = Autoencoder(replace(dictionary.config, **changes), scaling or dictionary.scaling)
    state = dictionary.state_dict() | {"scaling_mean": (scaling or dictionary.scaling).mean}
    other.load_state_dict(state, strict=False)
    return other.eval()


def names(dictionary, acts=None, **more) -> list[str]:
    return [complaint.name for complaint in examine(dictionary, planted() if acts is None else acts, **more).complaints]


def test_nothing_is_wrong_with_a_dictionary_in_order():
    found = examine(sound(), planted(), elsewhere={"elsewhere": planted(seed=5).roll(7, dims=1)}, l0=K)
    assert found.is_sound
    assert found.scores.fvu < 0.4
    assert len(found.tried) > 40


def test_nothing_is_wrong_with_a_pursuit_in_order():
    dictionary = MatchingPursuit(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=K), Scaling(torch.zeros(D_IN), FACTOR))
    with torch.no_grad():
        dictionary.W_dec.copy_(random_atoms(D_SAE, D_IN, 1))
        dictionary.b_dec.copy_(OFFSET)
    assert names(dictionary.eval()) == []


def test_a_missing_scaling_is_named_with_its_factor():
    found = examine(rebuilt(sound(), Scaling.identity(D_IN)), planted())
    first = found.complaints[0]
    assert first.name == "scaling"
    factor = float(first.text.split("multiplied by ")[1].split()[0])
    assert 0.08 < factor < 0.15
    assert first.fvu < 0.6 * found.fvu_tried


def test_a_bias_that_is_not_subtracted_is_named():
    assert names(rebuilt(sound(), apply_b_dec_to_input=False))[0] == "b_dec"


def test_a_lost_bias_is_named_as_a_missing_centring():
    dictionary = sound()
    with torch.no_grad():
        dictionary.b_dec.zero_()
    acts = planted()
    assert "centring" in names(dictionary, acts)


def test_a_dictionary_of_normalised_rows_is_named_by_its_normalisation():
    acts = planted()
    usual = float(acts.norm(dim=1).mean()) * FACTOR / D_IN**0.5
    acts = acts * torch.rand(len(acts), 1, generator=torch.Generator().manual_seed(3)).mul(40).add(1)
    dictionary = rebuilt(sound(), Scaling.identity(D_IN))
    with torch.no_grad():
        dictionary.b_dec.div_(usual)
        dictionary.b_enc.div_(usual)
    assert names(dictionary, acts)[0] in ("constant norm", "layer norm")
    assert names(rebuilt(dictionary, normalisation="constant_norm"), acts) == []


def test_decoder_norms_that_were_not_folded_in_are_named():
    dictionary = sound()
    with torch.no_grad():
        norms = torch.empty(D_SAE).uniform_(0.2, 5.0, generator=torch.Generator().manual_seed(4))
        dictionary.W_dec.mul_(norms[:, None])
        dictionary.W_enc.div_(norms)
        dictionary.b_enc.div_(norms)
    assert names(dictionary)[0] == "decoder norms"
    assert names(rebuilt_folded(dictionary, norms)) == []


def rebuilt_folded(dictionary: Autoencoder, norms: torch.Tensor) -> Autoencoder:
    other = rebuilt(dictionary)
    with torch.no_grad():
        other.W_enc.mul_(norms)
        other.b_enc.mul_(norms)
        other.W_dec.div_(norms[:, None])
    return other


def test_another_site_where_it_does_better_is_named():
    here = planted().roll(11, dims=1)
    found = examine(sound(), here, elsewhere={"blocks.3": planted(seed=2), "blocks.4": planted(seed=2).roll(5, dims=1)}, site="blocks.2")
    complaint = next(c for c in found.complaints if c.name == "site")
    assert "blocks.3" in complaint.text
    assert "blocks.2" in complaint.text


def test_latents_in_another_order_are_noticed():
    dictionary = sound()
    with torch.no_grad():
        dictionary.W_enc.copy_(dictionary.W_enc.roll(1, dims=1))
    assert "alignment" in names(dictionary)


def test_a_sparsity_unlike_the_stated_one_and_dead_or_silent_latents_are_noticed():
    assert "sparsity" in names(sound(), l0=40.0)
    silent = rebuilt(sound(), activation=JumpReLU(threshold=1e6))
    assert {"silent", "dead", "FVU"} <= set(names(silent))


def test_a_transcoder_is_referred_to_its_own_score():
    transcoder = Autoencoder(AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=TopK(K), d_out=D_IN))
    with pytest.raises(ConfigError, match="transcod"):
        examine(transcoder, planted())
