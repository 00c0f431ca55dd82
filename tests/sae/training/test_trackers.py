"""Trackers: imported when asked for, told what they need, and never in the way when they are not there."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from sae.errors import ConfigError
from sae.training.trackers import open_tracker

ROOT = Path(__file__).parents[3]
ARGUMENTS = {"project": "p", "name": "runs/a", "run_id": "0123456789abcdef" * 4, "config": {"k": 4}}


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, metrics, step=None):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished = True


@pytest.fixture
def fake(monkeypatch):
    """A module of either name that remembers how it was called."""

    def install(name):
        module = types.ModuleType(name)
        module.calls, module.runs = [], []

        def init(**options):
            module.calls.append(options)
            module.runs.append(FakeRun())
            return module.runs[-1]

        module.init = init
        monkeypatch.setitem(sys.modules, name, module)
        return module

    for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    return install


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_the_numbers_of_every_step_and_is_finished(fake, tmp_path, kind):
    module = fake(kind)
    tracker = open_tracker(kind, **ARGUMENTS, folder=tmp_path)
    tracker.log({"fvu": 0.5}, 3)
    tracker.log({"fvu": 0.4}, 4)
    tracker.finish()
    (run,) = module.runs
    assert run.logged == [(3, {"fvu": 0.5}), (4, {"fvu": 0.4})]
    assert run.finished
    (call,) = module.calls
    assert call["project"] == "p" and call["config"] == {"k": 4}
    assert call["resume"] == "allow"


def test_wandb_goes_on_with_the_same_id_and_keeps_runs_of_a_sweep_apart(fake, tmp_path):
    module = fake("wandb")
    for _ in range(2):
        open_tracker("wandb", **ARGUMENTS, folder=tmp_path)
    assert [call["id"] for call in module.calls] == ["0123456789abcdef"] * 2
    assert {call["reinit"] for call in module.calls} == {"create_new"}
    assert {call["mode"] for call in module.calls} == {None}


def test_offline_wandb_writes_below_the_folder_and_does_not_ask_for_an_earlier_run(fake, tmp_path):
    module = fake("wandb")
    open_tracker("wandb", **ARGUMENTS, folder=tmp_path, offline=True)
    assert (module.calls[0]["mode"], module.calls[0]["dir"], module.calls[0]["resume"]) == ("offline", str(tmp_path), None)


def test_trackio_names_the_run_by_its_id(fake, tmp_path):
    module = fake("trackio")
    open_tracker("trackio", **ARGUMENTS, folder=tmp_path, offline=True)
    assert module.calls[0]["name"] == "runs/a-01234567"


@pytest.mark.parametrize("variable", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_trackio_is_not_opened_offline_where_the_environment_sends_it_elsewhere(fake, tmp_path, monkeypatch, variable):
    module = fake("trackio")
    monkeypatch.setenv(variable, "somewhere")
    with pytest.raises(ConfigError, match=f"{variable} must not be set when trackio is to stay offline, got 'somewhere'"):
        open_tracker("trackio", **ARGUMENTS, folder=tmp_path, offline=True)
    assert module.calls == []
    open_tracker("trackio", **ARGUMENTS, folder=tmp_path)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, tmp_path, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ConfigError, match=rf"tracker '{kind}' needs the package {kind}: pip install 'sae-workbench\[{kind}\]'"):
        open_tracker(kind, **ARGUMENTS, folder=tmp_path)


def test_neither_package_is_imported_unless_it_is_asked_for():
    program = "import sys, sae.cli, sae.training.session, sae.training.trackers; print({'wandb', 'trackio'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
