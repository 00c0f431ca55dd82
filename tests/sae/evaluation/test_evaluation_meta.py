"""Meta-dictionaries: atoms that are made of parts, and atoms that are not."""

import pytest
import torch

from sae.errors import ConfigError
from sae.evaluation.meta_dictionary import MetaConfig, meta_dictionary, pursued_shares, train_meta_dictionary
from sae.evaluation.reconstruction import reconstruction
from sae.geometry.nulls import random_directions

CONFIG = MetaConfig(d_meta=20, k=3.0, n_steps=150, batch_size=128, learning_rate=1e-2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def compound_atoms(n=200, n_parts=20, d=40, k=3, seed=0):
    """Unit atoms, each the sum of k of the same parts, and the parts."""
    generator = seeded(seed)
    parts = random_directions(n_parts, torch.zeros(1, d), generator=generator)
    chosen = torch.stack([torch.randperm(n_parts, generator=generator)[:k] for _ in range(n)])
    atoms = parts[chosen].sum(dim=1)
    return atoms / atoms.norm(dim=1, keepdim=True), parts


def test_compound_atoms_are_explained_far_beyond_atoms_of_their_covariance(unchecked):
    atoms, parts = compound_atoms()
    found = meta_dictionary(atoms, CONFIG, n_null=2, generator=seeded())
    assert found.explained.value > 0.85
    assert found.explained.value > found.explained.null_mean + 0.15
    assert found.explained.p_greater == pytest.approx(1 / 3)
    assert found.rotated < found.explained.value - 0.3
    assert found.l0 == pytest.approx(3, abs=1.5)
    # The meta-atoms are the parts, and an atom's codes name its own.
    cosines = found.dictionary.W_dec.detach() @ parts.T
    assert (cosines.max(dim=0).values > 0.9).double().mean() > 0.8
    assert len(found.codes) == 200
    assert found.explained.value == pytest.approx(reconstruction(found.dictionary, [atoms]).scores.explained_variance)


def test_atoms_without_parts_do_not_stand_out(unchecked):
    atoms = random_directions(200, torch.zeros(1, 40), generator=seeded(1))
    found = meta_dictionary(atoms, CONFIG, null="random", n_null=2, generator=seeded())
    assert found.explained.value == pytest.approx(found.explained.null_mean, abs=0.05)


def test_training_is_repeatable_and_does_not_care_about_the_atoms_norms():
    atoms, _ = compound_atoms(n=80)
    config = MetaConfig(d_meta=8, k=2.0, n_steps=20, batch_size=32)
    first, again, scaled = (train_meta_dictionary(each, config) for each in (atoms, atoms, atoms * 4))
    assert torch.equal(first.W_dec, again.W_dec)
    torch.testing.assert_close(first.W_dec, scaled.W_dec, atol=1e-4, rtol=1e-3)


def test_pursued_shares_are_those_of_projections_on_the_best_directions():
    atoms, parts = compound_atoms(n=60, n_parts=10, d=16, k=2, seed=2)
    other = random_directions(10, atoms, generator=seeded(3))
    shares = pursued_shares(atoms, parts, other, k=1)
    for value, directions in ((shares.meta, parts), (shares.plain, other)):
        centred = (atoms - atoms.mean(0)).double()
        best = (centred @ directions.double().T).square().max(dim=1).values
        assert value == pytest.approx(float(best.sum() / centred.square().sum()), abs=1e-4)
    full = pursued_shares(atoms, torch.eye(16), torch.eye(16).flip(0), k=16)
    assert full.meta == full.plain == pytest.approx(1, abs=1e-5)


def test_bad_input_of_meta_dictionaries_is_refused():
    atoms, parts = compound_atoms(n=30, n_parts=6)
    with pytest.raises(ConfigError, match="below the number of atoms 30"):
        train_meta_dictionary(atoms, MetaConfig(d_meta=30))
    with pytest.raises(ConfigError, match="undoes every rotation"):
        meta_dictionary(atoms, MetaConfig(d_meta=8), null="rotated", generator=seeded())
    with pytest.raises(ConfigError, match="no zero row"):
        train_meta_dictionary(atoms * 0, MetaConfig(d_meta=8))
    with pytest.raises(ConfigError, match="must have the shape of meta_atoms"):
        pursued_shares(atoms, parts, parts[:3])
    for options in ({"d_meta": 0}, {"d_meta": 4, "k": 5.0}, {"d_meta": 4, "batch_size": 0}):
        with pytest.raises(ConfigError, match="d_meta, k, batch_size"):
            MetaConfig(**options)
