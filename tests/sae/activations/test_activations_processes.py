"""Several processes at one store: they share its shards, take over from those that die, and end with the bytes that one alone writes."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_store import MLP, RESID, PlantedModel, files, letters

from sae.activations.collect import collect, extend
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.errors import ConfigError

ROOT = Path(__file__).parents[3]
CONFIG = CaptureConfig(sites=(RESID, MLP), n_tokens=90 * 32, context=32, rows_per_shard=6, rows_per_batch=3)
CORPUS = from_texts(letters(n=60))


class SlowModel(PlantedModel):
    """Takes a hundredth of a second for a pass, as a model would."""

    def capture(self, tokens, sites, **options):
        time.sleep(0.01)
        return super().capture(tokens, sites, **options)


def there(pattern):
    """Files of the pattern, in a folder where another process makes and renames folders: those that vanish meanwhile are passed over."""
    return glob.glob(str(pattern), include_hidden=True)


def in_child(function):
    """Runs the function in a forked child; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def capture(path, report=None, config=CONFIG, kill_after=None):
    """The whole of `collect`; writes how many tokens it ran, or the error; kills itself after so many steps in the model."""
    n_run, n_steps = 0, 0
    try:
        for step in collect(SlowModel(), CORPUS, path, config):
            n_run, n_steps = max(n_run, step.n_tokens_run), n_steps + (step.stage == "capture")
            if kill_after is not None and n_steps >= kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
    except ConfigError as error:
        n_run = str(error)
    if report is not None:
        report.write_text(json.dumps(n_run))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process writes."""
    path = tmp_path_factory.mktemp("alone") / "s"
    list(collect(PlantedModel(), CORPUS, path, CONFIG))
    return files(path)


@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_the_shards_of_one_store_and_write_what_one_would(tmp_path, alone, n):
    children = [in_child(lambda i=i: capture(tmp_path / "s", tmp_path / f"{i}.json")) for i in range(n)]
    assert [code_of(child) for child in children] == [0] * n
    assert files(tmp_path / "s") == alone
    ran = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(n)]
    assert sum(ran) == 90 * 32  # no row twice
    assert min(ran) > 0


def test_the_work_of_one_that_is_killed_is_taken_over_by_the_others(tmp_path, alone):
    dying = in_child(lambda: capture(tmp_path / "s", kill_after=5))
    others = [in_child(lambda: capture(tmp_path / "s")) for _ in range(2)]
    assert code_of(dying) == -signal.SIGKILL
    assert [code_of(child) for child in others] == [0, 0]
    assert files(tmp_path / "s") == alone


def test_when_all_are_killed_a_later_run_finishes_what_is_missing(tmp_path, alone):
    children = [in_child(lambda: capture(tmp_path / "s", kill_after=7)) for _ in range(3)]
    assert [code_of(child) for child in children] == [-signal.SIGKILL] * 3
    records = [json.loads(file.read_text()) for file in (tmp_path / "s").glob("shards/[0-9]*/shard.json")]
    n_there = sum(record["n_rows"] for record in records if len(record["files"]) == 3)
    assert n_there >= 6
    model = PlantedModel()
    list(collect(model, CORPUS, tmp_path / "s", CONFIG))
    assert model.n_rows_run == 90 - n_there
    assert files(tmp_path / "s") == alone


def test_one_that_starts_late_or_often_finds_the_store_in_one_state_or_another(tmp_path, alone):
    """Many processes that start at any moment of the short life of a capture: none fails."""
    children = []
    for _ in range(24):
        children.append(in_child(lambda: list(collect(PlantedModel(), CORPUS, tmp_path / "s", CONFIG))))
        time.sleep(0.01)
    assert {code_of(child) for child in children} == {0}
    assert files(tmp_path / "s") == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_tokens": 60 * 32}, r"is being filled by another process, with something else: wait for its end: capture.n_tokens is 2880"),
        ({"sites": (RESID,)}, r"was begun with something else, choose another path .*: capture.sites is"),
        (
            {"dtype": "float32"},
            r"was begun with something else, choose another path .*: capture.dtype is bfloat16 in the store, float32 now",
        ),
    ],
)
def test_two_that_want_different_things_are_told_apart_and_nothing_is_damaged(tmp_path, alone, change, message):
    import dataclasses

    child = in_child(lambda: capture(tmp_path / "s"))
    while not there(tmp_path / "s/shards/*/*post.safetensors"):
        time.sleep(0.005)
    with pytest.raises(ConfigError, match=message):
        list(collect(PlantedModel(), CORPUS, tmp_path / "s", dataclasses.replace(CONFIG, **change)))
    assert code_of(child) == 0
    assert files(tmp_path / "s") == alone


def test_two_that_extend_with_different_sites_are_told_apart(tmp_path, alone):
    import dataclasses

    list(collect(PlantedModel(), CORPUS, tmp_path / "s", dataclasses.replace(CONFIG, sites=(RESID,))))
    child = in_child(lambda: list(extend(SlowModel(), tmp_path / "s", (MLP,))))
    while not there(tmp_path / f"s/shards/*/{MLP}.safetensors"):
        time.sleep(0.005)
    with pytest.raises(ConfigError, match=r"is being added to by another capture that has not ended; finish that one first: capture.sites"):
        list(extend(PlantedModel(), tmp_path / "s", ("blocks.0.hook_resid_pre",)))
    list(extend(PlantedModel(), tmp_path / "s", (MLP,)))  # the same: shared
    assert code_of(child) == 0
    assert files(tmp_path / "s") == alone


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import torch
torch.set_num_threads(1)
from tiny import tiny_language_model
from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
sites = ("blocks.0.hook_resid_post", "blocks.1.mlp.hook_post")
config = CaptureConfig(sites=sites, n_tokens=60 * 16, context=16, rows_per_shard=5, rows_per_batch=5)
corpus = from_texts(["The nation and the people. " * 60, "A dog is an animal; " * 40, "birds can fly " * 60, "law and peace " * 70])
for step in collect(tiny_language_model(n_layers=2), corpus, sys.argv[1], config):
    pass
"""


def program(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT)))
    return file


@pytest.mark.slow
def test_processes_of_a_real_model_started_by_torchrun_or_by_hand_write_the_same(tmp_path):
    file, environment = program(tmp_path), {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, file, tmp_path / "one"], env=environment, check=True)
    by_hand = [subprocess.Popen([sys.executable, file, tmp_path / "hand"], env=environment) for _ in range(2)]
    assert [process.wait() for process in by_hand] == [0, 0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", file, tmp_path / "torchrun"]
    subprocess.run(torchrun, env=environment, check=True, capture_output=True)
    ActivationStore.open(tmp_path / "one").verify()
    assert files(tmp_path / "hand") == files(tmp_path / "torchrun") == files(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_half_way_leaves_the_others_to_finish(tmp_path, victim):
    file, environment = program(tmp_path), {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, file, tmp_path / "one"], env=environment, check=True)
    processes = [subprocess.Popen([sys.executable, file, tmp_path / "s"], env=environment) for _ in range(3)]
    while not there(tmp_path / "s/shards/*/blocks*"):
        time.sleep(0.002)
    processes[victim].kill()
    assert sorted(process.wait() for process in processes) in ([-signal.SIGKILL, 0, 0], [0, 0, 0])
    assert files(tmp_path / "s") == files(tmp_path / "one")
    shutil.rmtree(tmp_path / "s")
