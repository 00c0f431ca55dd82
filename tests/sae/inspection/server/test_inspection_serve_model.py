"""A server with a language model: it is found for each index by the digest of its dictionary, and what it encodes is what the index holds."""

import shutil

import numpy as np
import pytest
import torch

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts
from sae.activations.store import ActivationStore
from sae.cli import live as loading
from sae.cli.serve import live_sources, open_indexes
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import ConfigError, FormatError
from sae.inspection import IndexConfig, build_index
from sae.inspection.encoded import FRAMING, Framing, record_framing
from sae.inspection.server.context import Registry, ServerContext
from tests.sae.inspection.planted_store import random_autoencoder, random_pursuit
from tests.sae.inspection.server.served import client
from tests.tiny import TEXT, tiny_language_model

SITE, WIDTH, N = "blocks.1.hook_resid_post", 32, 12


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=4)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Folders of a store, of two dictionaries and of their indexes; and the texts, each a row of the store."""
    folder = tmp_path_factory.mktemp("made")
    pieces = [model.tokenizer.decode(ids) for ids in torch.tensor(model.tokenize([TEXT])[0][: 6 * N]).reshape(6, N).tolist()]
    texts = [text for text, ids in zip(pieces, model.tokenize(pieces), strict=True) if len(ids) == N]
    config = CaptureConfig(sites=(SITE,), n_tokens=(N + 1) * len(texts), context=N + 1, rows_per_batch=1, dtype="float32")
    for _ in collect(model, from_texts(texts), folder / "store", config):
        pass
    store = ActivationStore.open(folder / "store")
    exact = IndexConfig(value_dtype="float32")
    for name, dictionary in (("topk", random_autoencoder(d_in=WIDTH)), ("mp", random_pursuit(d_in=WIDTH))):
        save_dictionary(dictionary, folder / name)
        for _ in build_index(store, SITE, dictionary.eval(), folder / f"{name}-index", model=model, config=exact):
            pass
    return folder, texts


@pytest.fixture
def loaded(model, monkeypatch):
    """The language model stands for the one that would be loaded."""
    monkeypatch.setattr(loading, "load_model", lambda source, **options: model)


@pytest.mark.parametrize("name", ["topk", "mp"])
def test_what_the_server_encodes_is_what_the_index_holds(made, loaded, name):
    folder, texts = made
    indexes, _ = open_indexes([f"{name}={folder}/{name}-index"])
    sources = live_sources(indexes, "default", [folder / name], [folder / "store"])
    index = indexes[name]
    with client(ServerContext(Registry(sources))) as api:
        items = api.post(f"/api/v1/sources/{name}/encode", json={"texts": texts[:4]}).json()["items"]
        assert api.get("/api/v1/capabilities").json()["encode"] == [name]
    rows = {tuple(row.tolist()): i for i, row in enumerate(index.table.ids)}
    for item in items:
        first = rows[tuple(item["token_ids"])] * index.table.context
        found = np.zeros((len(item["tokens"]), index.d_sae))
        for latent, pairs in item["active"].items():
            for place, value in pairs:
                found[place, int(latent)] = value
        expected = np.zeros_like(found)
        for place in range(len(found)):
            entries = index.at_token(first + place)
            expected[place, entries.ids] = entries.values
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
        assert np.abs(expected).sum() > 0 and item["is_special"][0]


def test_dictionaries_and_models_of_other_indexes_are_refused(made, loaded, monkeypatch):
    folder, _ = made
    indexes, _ = open_indexes([f"topk={folder}/topk-index"])
    with pytest.raises(ConfigError, match="belongs to none of the indexes"):
        live_sources(indexes, "default", [folder / "mp"], [])
    with pytest.raises(ConfigError, match="--dictionary must name"):
        live_sources(indexes, "default", [], [])
    with pytest.raises(ConfigError, match="is none"):
        live_sources(indexes, "default", [folder], [])
    monkeypatch.setattr(loading, "load_model", lambda source, **options: tiny_language_model(seed=5))
    with pytest.raises(ConfigError, match="its weights are others"):
        live_sources(indexes, "other", [folder / "topk"], [])


def test_indexes_without_their_dictionary_are_served_without_encoding(made, loaded):
    folder, _ = made
    indexes, _ = open_indexes([f"topk={folder}/topk-index", f"mp={folder}/mp-index"])
    assert set(live_sources(indexes, "default", [folder / "mp"], [])) == {"mp"}


def test_without_the_store_texts_are_framed_as_was_recorded_beside_the_index(made, loaded, tmp_path):
    folder, texts = made
    shutil.copytree(folder / "topk-index", tmp_path / "index")
    asked = {}
    for framing in (None, Framing(separator_id=3, largest_norm=1e-3, dtype="bfloat16")):
        if framing is not None:
            record_framing(tmp_path / "index", framing)
        indexes, _ = open_indexes([f"topk={tmp_path}/index"])
        source = live_sources(indexes, "default", [folder / "topk"], [])["topk"]
        asked[framing is None] = source.live.encode(texts[:1], masked=True)[0]
    assert asked[False].token_ids[0] == 3 != asked[True].token_ids[0]
    assert all(asked[False].is_special) and not all(asked[True].is_special)  # everything is longer than the recorded norm
    (tmp_path / "index" / FRAMING).write_text('{"dtype": "int3"}')
    with pytest.raises(FormatError, match=FRAMING):
        live_sources(indexes, "default", [folder / "topk"], [])
