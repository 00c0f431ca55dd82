"""The map of the atoms against a singular value decomposition."""

import sys

import numpy as np
import pytest

from sae.errors import ConfigError
from sae.inspection import FeatureIndex
from sae.inspection.map import atom_map
from tests.sae.inspection.planted_store import built, random_autoencoder, random_store


def atoms(seed=0, n=40, d_in=7):
    return np.random.default_rng(seed).standard_normal((n, d_in)) * np.arange(1, d_in + 1)


def test_the_map_is_the_projection_on_the_two_leading_components_of_the_unit_atoms():
    W = atoms()
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign([row[np.abs(row).argmax()] for row in vt[:2]])
    places, method = atom_map(W)
    np.testing.assert_allclose(places, u[:, :2] * s[:2] * signs, atol=1e-5)
    assert f"{(s[:2] ** 2).sum() / (s**2).sum():.1%}" in method


def test_the_map_does_not_depend_on_the_lengths_of_the_atoms_or_on_dead_ones():
    W = atoms()
    scaled = W * np.random.default_rng(1).uniform(0.1, 9, (len(W), 1))
    np.testing.assert_allclose(atom_map(W)[0], atom_map(scaled)[0], atol=1e-5)
    places, _ = atom_map(np.vstack([W, np.zeros((2, 7))]))
    np.testing.assert_allclose(places[:-2], atom_map(W)[0], atol=1e-6)
    assert (places[-2:] == 0).all()


def test_too_few_atoms_have_no_map_and_an_unknown_method_is_refused_before_any_work(monkeypatch, tmp_path):
    assert atom_map(np.ones((1, 4)))[1] == "too few atoms for a map"
    with pytest.raises(ConfigError, match="map_method must be 'pca' or 'umap', got 'tsne'"):
        built(tmp_path / "index", random_store(), random_autoencoder(), map_method="tsne")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match="needs umap-learn"):
        atom_map(atoms(), method="umap")


def test_an_index_has_the_map_of_its_atoms(tmp_path):
    dictionary = random_autoencoder()
    index = built(tmp_path / "index", random_store(), dictionary)
    places, method = atom_map(dictionary.W_dec.detach().numpy())
    assert isinstance(index, FeatureIndex)
    assert index.map.ids.tolist() == list(range(20))
    np.testing.assert_array_equal(index.map.x, places[:, 0])
    np.testing.assert_array_equal(index.statistics.map_y, places[:, 1])
    assert index.map.method == method


def test_encoder_neighbours_are_those_of_the_encoder(tmp_path):
    dictionary = random_autoencoder()
    index = built(tmp_path / "index", random_store(), dictionary)
    W = dictionary.W_enc.detach().numpy().T.astype(np.float64)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    for i in range(20):
        found = index.record(i).related["encoder_cosine"]
        assert [n.index for n in found] == np.argsort(-cosines[i], kind="stable")[:16].tolist()
        np.testing.assert_allclose([n.value for n in found], np.sort(cosines[i])[::-1][:16], atol=1e-6)
        assert all(n.n_together is None for n in found)


@pytest.mark.slow  # umap compiles for minutes
@pytest.mark.filterwarnings("ignore")
def test_umap_repeats_with_its_seed():
    pytest.importorskip("umap")
    one, method = atom_map(atoms(), method="umap", seed=3)
    assert (one == atom_map(atoms(), method="umap", seed=3)[0]).all()
    assert (one != atom_map(atoms(), method="umap", seed=4)[0]).any()
    assert "seed 3" in method
