"""What every test gets: one thread, no network, and a cache folder of its own unless the test is about the real model."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import jaxtyping
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # `from tiny import tiny_language_model`

torch.set_num_threads(int(os.environ.get("SAE_TEST_THREADS", "1")))


@pytest.fixture
def unchecked():
    """Array types are not checked inside the test: for trainings of hundreds of steps, of which shorter tests check every call."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _own_cache_folder(request, tmp_path, monkeypatch):
    if "slow" not in request.keywords and "real_model" not in request.keywords:
        monkeypatch.setenv("SAE_WORKBENCH_HOME", str(tmp_path / "sae-workbench-home"))
