import errno
import os

import pytest

from sae.errors import CacheError, FormatError
from sae.storage import atomic_folder, atomic_path, read_json, user_cache_dir, write_bytes, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    target = tmp_path / "f.json"
    write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "d") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "x").write_text(content)
            assert (tmp_path / "d").exists() == (content == "two")
    assert (tmp_path / "d" / "sub" / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_cache_error_that_names_the_file(tmp_path, monkeypatch, code):
    def full(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match=r"no space left on device while writing .*big\.bin"):
        write_bytes(tmp_path / "big.bin", b"x")
    assert list(tmp_path.iterdir()) == []


def test_other_write_errors_are_passed_on_as_they_are(tmp_path, monkeypatch):
    def denied(*args):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(OSError, match="I/O error"):
        write_bytes(tmp_path / "f", b"x")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "m.json").write_text('{"a": ')
    with pytest.raises(FormatError, match=r"m\.json is not valid JSON"):
        read_json(tmp_path / "m.json")
    with pytest.raises(FormatError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")


def test_nan_is_never_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_WORKBENCH_HOME", str(tmp_path))
    assert user_cache_dir() == tmp_path
    monkeypatch.delenv("SAE_WORKBENCH_HOME")
    assert user_cache_dir().name == "sae-workbench"
