"""Whatever is stopped at any moment is continued, and the finished store is that of an uninterrupted run, byte for byte."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_store import changed, files

from sae.activations.collect import collect
from sae.activations.store import ActivationStore

ROOT = Path(__file__).parents[3]
WORK = ("capture", "append", "extend", "merge", "repair")


def killed(tmp_path, work, n_operations, n_moments, seed=0):
    program = Path(__file__).with_name("killed_captures.py")
    command = [sys.executable, str(program), str(tmp_path), work, str(n_operations), str(n_moments), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(work, reports):
    assert {report["code"] for report in reports if report["kind"] == "operation"} == {-signal.SIGKILL}
    for report in reports:
        assert report["wrong"] == [], report
        if work in ("capture", "append", "extend"):
            assert report["rows_run"] == 44 - report["rows_there"], report  # nothing that was stored is run again
        half = {"repair": "`sae store repair`", "append": "-", "extend": "-"}.get(work, "is not complete: ")
        assert report["state"] in (("as before", "done") if half == "-" else ("not readable", "done")), report
        if report["state"] == "not readable":
            assert half in report["half"] or "store is no activation store: name the folder of one" in report["half"], report


@pytest.mark.parametrize("work", WORK)
def test_what_is_killed_and_done_again_ends_in_the_same_bytes(tmp_path, work):
    reports = killed(tmp_path, work, 8, 1)
    assert len(reports) == 9
    check(work, reports)


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_what_is_killed_before_any_single_write_and_done_again_ends_in_the_same_bytes(tmp_path, work):
    reports = killed(tmp_path, work, 10_000, 20)
    assert len(reports) == reports[0]["of"] + 20
    check(work, reports)
    if work == "capture":
        assert len({report["rows_there"] for report in reports}) >= 4


def test_a_consumer_that_stops_at_any_progress_step_can_continue_to_the_same_bytes(planted, corpus, config, tmp_path):
    steps = list(collect(planted(), corpus, tmp_path / "reference", config))
    expected = files(tmp_path / "reference")
    n_before = sum(step.stage != "statistics" for step in steps)
    for stop in [*range(1, n_before + 1, 2), n_before, n_before + 1, n_before + 6, len(steps)]:
        path = tmp_path / str(stop)

        def interrupted(path=path, stop=stop):
            for number, _ in enumerate(collect(planted(), corpus, path, config), start=1):
                if number == stop:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        records = [json.loads(file.read_text()) for file in path.glob("shards/[0-9]*/shard.json")]
        done = sum(record["n_rows"] for record in records if len(record["files"]) == 3)
        model = planted()
        list(collect(model, corpus, path, config))
        assert model.n_rows_run == 55 - done
        assert files(path) == expected


def test_an_abandoned_iterator_does_not_block_the_next_one(planted, corpus, config, tmp_path):
    abandoned = collect(planted(), corpus, tmp_path / "s", config)
    next(abandoned)
    list(collect(planted(), corpus, tmp_path / "s", config))
    before = files(tmp_path / "s")
    list(abandoned)  # goes on, finds every shard there, and completes to the same
    assert files(tmp_path / "s") == before
    ActivationStore.open(tmp_path / "s").verify()


def test_an_abandoned_iterator_does_not_undo_what_was_added_since(planted, corpus, config, tmp_path):
    abandoned = collect(planted(), corpus, tmp_path / "s", changed(config, n_tokens=48 * 32))
    for step in abandoned:
        if step.n_tokens_run == 48 * 32:
            break
    list(collect(planted(), corpus, tmp_path / "s", config))
    before = files(tmp_path / "s")
    list(abandoned)
    assert files(tmp_path / "s") == before
    assert ActivationStore.open(tmp_path / "s").n_rows == 55


def test_an_error_in_the_model_leaves_finished_shards_and_the_next_run_continues(planted, corpus, config, tmp_path):
    list(collect(planted(), corpus, tmp_path / "reference", config))
    for boundary in range(0, 55, 16):
        path, model = tmp_path / str(boundary), planted()
        real = model.capture

        def failing(tokens, sites, model=model, real=real, boundary=boundary):
            if model.n_rows_run >= boundary:
                raise RuntimeError("out of memory")
            return real(tokens, sites)

        model.capture = failing
        with pytest.raises(RuntimeError, match="out of memory"):
            list(collect(model, corpus, path, config))
        assert len(list(path.glob("shards/[0-9]*/*resid_post.safetensors"))) == boundary // 16
        again = planted()
        list(collect(again, corpus, path, config))
        assert again.n_rows_run == 55 - boundary
        assert files(path) == files(tmp_path / "reference")
