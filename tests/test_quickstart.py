"""The quickstart as its user runs it: the small size, on the real default model, killed on the way and run again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.real_model


def start(home: Path, report: Path) -> subprocess.Popen:
    environment = {**os.environ, "SAE_WORKBENCH_HOME": str(home), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "scripts/quickstart.py"), "--fast", "--no-serve", "--threads", "2", "--report", str(report)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)


def kill_after(process: subprocess.Popen, line: str, seconds: float) -> list[str]:
    """Kill the run `seconds` after the stage line that starts with `line`; returns the lines it had printed."""
    seen = []
    for text in process.stdout:
        seen.append(text)
        if text.startswith(line):
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            break
    process.wait(timeout=60)
    process.stdout.close()
    return seen


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache folder of its own that shares the fetched model with other runs."""
    from sae.models.assets import default_model

    folder = tmp_path_factory.mktemp("home")
    (folder / "assets").symlink_to(default_model().parent)
    return folder


def test_a_run_that_is_killed_goes_on_and_a_finished_one_is_reused(home, tmp_path):
    first = kill_after(start(home, tmp_path / "report"), "capture", 4.0)
    assert any(line.startswith("capture") for line in first), "".join(first)
    assert not (tmp_path / "report").exists()

    second = start(home, tmp_path / "report")
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    assert re.search(r"^capture +reused", output, re.M), output
    index = (tmp_path / "report" / "index.html").read_bytes()
    pages = sorted(path.relative_to(tmp_path / "report") for path in (tmp_path / "report").rglob("*.html"))
    assert len(pages) > 20

    third = start(home, tmp_path / "again")
    started = time.perf_counter()
    output, _ = third.communicate(timeout=600)
    assert third.returncode == 0, output
    stages = [line for line in output.splitlines() if not line.startswith("report")]
    assert stages
    assert all(" reused " in line for line in stages), output
    assert (tmp_path / "again" / "index.html").read_bytes() == index
    assert time.perf_counter() - started < 120
