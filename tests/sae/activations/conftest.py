"""A model with planted activations: cheap, exactly known, with outliers where a test wants them."""

import pytest
from tiny_store import MLP, RESID, PlantedModel, letters

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Nothing is flushed: no test cuts the power. Tests that kill processes count their own flushes."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def planted():
    return PlantedModel


@pytest.fixture
def corpus():
    return from_texts(letters(), [{"parity": i % 2} for i in range(30)], name="letters", licence="none")


@pytest.fixture
def config():
    """16 + 16 + 16 + 7 rows of 32 tokens, at two sites."""
    return CaptureConfig(sites=(RESID, MLP), n_tokens=55 * 32, context=32, rows_per_shard=16, rows_per_batch=5)


@pytest.fixture(scope="session", params=["bfloat16", "float16", "float32", "int8"])
def store(request, tmp_path_factory):
    """A finished store, in each storage dtype; not to be changed."""
    path = tmp_path_factory.mktemp("store") / request.param
    config = CaptureConfig(sites=(RESID, MLP), n_tokens=55 * 32, context=32, rows_per_shard=16, rows_per_batch=5, dtype=request.param)
    for _ in collect(PlantedModel(), from_texts(letters(), name="letters"), path, config):
        pass
    return ActivationStore.open(path)
