"""`sae serve` as a program: it starts at once, without torch; a bad index does not keep the others from being served; it bears load."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from sae.cli import app
from sae.cli.program import COMMANDS, LazyGroup, load
from sae.cli.serve import _listen, named_folder, open_indexes, server_settings
from sae.errors import ConfigError
from scripts.bench_server import Server, measure
from tests.sae.inspection.server.served import planted_indexes

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("indexes")
    planted_indexes(found)
    return found


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_serving_imports_no_torch_and_takes_less_than_a_second_of_processor_time(folder):
    program = (
        "import sys, time\n"
        "from sae.cli.serve import open_indexes, server_settings\n"
        "from sae.inspection.server.app import create_app\n"
        "from sae.inspection.server.context import Registry, ServerContext, Source\n"
        "import uvicorn\n"
        f"opened, failures = open_indexes(['topk={folder}/topk', 'mp={folder}/mp'])\n"
        "create_app(ServerContext(Registry({n: Source(n, i) for n, i in opened.items()}, failures)))\n"
        "heavy = [m for m in ('torch', 'transformer_lens', 'transformers', 'datasets', 'scipy.stats', 'numba') if m in sys.modules]\n"
        "print(heavy, time.process_time())\n"
    )
    found = []
    for _ in range(3):
        result = run("-c", program)
        assert result.returncode == 0, result.stderr
        heavy, seconds = result.stdout.strip().rsplit(" ", 1)
        assert heavy == "[]"
        found.append(float(seconds))
    assert min(found) < 1.0, f"processor time of three starts: {found}"


def test_help_imports_no_command_but_the_one_it_is_about():
    for arguments in (["--help"], ["serve", "--help"]):
        code = (
            f"import atexit, sys; sys.argv = ['sae', *{arguments!r}]\n"
            "atexit.register(lambda: print('torch' in sys.modules))\n"
            "from sae.cli import main; main()"
        )
        result = run("-c", code)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().endswith("False")
    assert "--no-token" in result.stdout


def test_every_command_of_the_program_can_be_loaded_and_has_a_line_of_help():
    for name, lazy in COMMANDS.items():
        command = load(name, lazy)
        assert command.name == name and lazy.help.endswith(".")
    listed = CliRunner().invoke(app, ["--help"]).stdout
    assert all(name in listed for name in COMMANDS)
    assert not LazyGroup.listing
    assert CliRunner().invoke(app, ["absent"]).exit_code == 2


def test_the_name_of_an_index_is_its_folders_or_the_one_given(tmp_path):
    assert named_folder("a=/x/y") == ("a", Path("/x/y"))
    assert named_folder(str(tmp_path / "run" / "index"))[0] == "run"
    assert named_folder(str(tmp_path / "my index!"))[0] == "my-index"


def test_an_index_given_twice_is_refused(folder):
    with pytest.raises(ConfigError, match="different names"):
        open_indexes([f"{folder}/topk", f"{folder}/topk"])
    assert set(open_indexes([f"{folder}/topk", f"again={folder}/topk"])[0]) == {"topk", "again"}


def test_an_origin_is_a_site_and_a_host_is_known_by_its_names():
    with pytest.raises(ConfigError, match="--allow-origin"):
        server_settings("127.0.0.1", 0, token=None, origins=["lab.example/path"], hosts=[])
    open_ = server_settings("0.0.0.0", 0, token="long-enough", origins=["https://lab.example"], hosts=["Lab.Example"])
    assert open_.hosts == ("127.0.0.1", "localhost", "[::1]", "lab.example")
    assert "10.0.0.7" in server_settings("10.0.0.7", 0, token="long-enough", origins=[], hosts=[]).hosts
    with pytest.raises(ConfigError, match="needs a token"):
        server_settings("0.0.0.0", 0, token=None, origins=[], hosts=[])


def _missing(path):
    shutil.rmtree(path)


def _truncated(path):
    file = path / "summary.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _newer(path):
    data = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(data | {"format_version": 99}))


def _other_shape(path):
    data = json.loads((path / "manifest.json").read_text())
    data["source"]["d_sae"] = 21
    (path / "manifest.json").write_text(json.dumps(data))


def _other_dtype(path):
    data = (path / "summary.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F64"', b'"F99"', 1).replace(b'"F32"', b'"F99"', 1)
    (path / "summary.safetensors").write_bytes(data[:8] + header + data[8 + length :])


def _no_json(path):
    (path / "manifest.json").write_text("{")


DAMAGE = {f.__name__.strip("_"): f for f in (_missing, _truncated, _newer, _other_shape, _other_dtype, _no_json)}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_bad_index_is_named_in_one_line_and_the_others_are_served(folder, tmp_path, damage):
    for name in ("topk", "mp"):
        shutil.copytree(folder / name, tmp_path / name)
    damage(tmp_path / "mp")
    opened, failures = open_indexes([f"{tmp_path}/topk", f"{tmp_path}/mp"])
    assert set(opened) == {"topk"} and set(failures) == {"mp"}
    assert "\n" not in failures["mp"] and len(failures["mp"]) > 20


def test_without_any_index_that_opens_the_program_ends_with_the_reasons(tmp_path):
    result = run("-m", "sae.cli", "serve", str(tmp_path / "absent"))
    assert result.returncode == 2
    assert "absent is not served" in result.stdout and "no index could be opened" in result.stdout


def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(folder):
    for arguments, reason in (
        (["--dictionary", "d"], "give --model"),
        (["--host", "0.0.0.0", "--no-token"], "needs a token"),
        (["--token", "short"], "at least 8"),
        (["--model", "default"], "--dictionary must name"),
    ):
        result = run("-m", "sae.cli", "serve", f"{folder}/topk", *arguments)
        assert result.returncode == 2 and reason in " ".join(result.stdout.split()), result.stdout


def test_a_port_that_is_taken_is_refused(folder):
    server = Server(folder / "topk")
    try:
        result = run("-m", "sae.cli", "serve", f"{folder}/topk", "--port", str(server.port))
        assert result.returncode == 2 and "--port 0 takes a free one" in " ".join(result.stdout.split())
    finally:
        server.stop()


def test_answers_do_not_wait_for_acknowledgements():
    listening = _listen(
        "127.0.0.1", 0
    )  # asyncio switches Nagle's algorithm off only where the protocol is named; else an answer takes 40 ms
    assert listening.proto == socket.IPPROTO_TCP
    listening.close()


def test_the_program_serves_behind_its_token_and_writes_notes(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sae.cli",
        "serve",
        f"{folder}/topk",
        f"bad={tmp_path}/absent",
        "--port",
        "0",
        "--notes",
        f"{tmp_path}/n.sqlite",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "SAE_TOKEN"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        said = ""
        while not (found := re.search(r"(http://[0-9.:]+/)\?token=(\S+)", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        assert "bad is not served" in said and "no language model" in said
        url, token = found[1], found[2]
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as browser:
            assert browser.get("/").status_code == 401
            assert browser.get(f"/?token={token}", follow_redirects=True).status_code == 200
            assert browser.get("/s/topk/f/4").status_code == 200
            assert browser.post("/api/v1/sources/topk/features/4/explanations", json={"text": "x"}).status_code == 201
            assert browser.get("/api/v1/capabilities").json()["failures"].keys() == {"bad"}
            assert "server" not in browser.get("/").headers
    finally:
        process.terminate()
        assert process.wait(20) in (0, -15, 143)
        process.stdout.close()


def test_eight_clients_lose_no_request_and_memory_does_not_grow(folder):
    rows = {row["name"]: row["value"] for row in measure(folder / "topk", seconds=3.0, clients=8)}
    assert [name for name, value in rows.items() if name.endswith(".lost") and value] == []
    assert min(value for name, value in rows.items() if name.endswith(".n")) >= 8
    assert rows["mixture.memory"] - rows["paced.memory"] < 30
