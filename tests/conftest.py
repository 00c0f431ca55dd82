"""What every test gets: one thread, no network, no screen of a given width, and a cache folder of its own unless the test is about the real model."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import jaxtyping
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # `from tiny import tiny_language_model`

for name in ("COLUMNS", "LINES", "FORCE_COLOR"):  # a console keeps what it finds when it is made: a test about widths sets its own
    os.environ.pop(name, None)
torch.set_num_threads(int(os.environ.get("SAE_TEST_THREADS", "1")))


LONGEST = ("test_notebooks.py", "test_quickstart.py")
"""Files of minutes: begun first, so that no process waits for another's at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


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


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(n_bytes) is a folder on a disk of its own, of that size and empty; the test is skipped where none can be mounted."""
    mounted = []

    def make(n_bytes):
        folder = tmp_path / f"small disk {len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
