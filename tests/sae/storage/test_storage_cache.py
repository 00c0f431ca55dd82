import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sae.errors import CacheError, ConfigError
from sae.storage import Key, ResultCache, read_json, write_json


def key(**config):
    return Key("evaluation.fvu", 1, {"k": 32, **config}, {"store": "ab" * 32})


def test_a_result_is_computed_once_and_then_reused(tmp_path):
    cache, calls = ResultCache(tmp_path), []

    def fill(folder):
        calls.append(1)
        write_json(folder / "value.json", {"fvu": 0.2})

    first, second = cache.build(key(), fill), cache.build(key(), fill)
    assert first == second
    assert len(calls) == 1
    assert read_json(first / "value.json") == {"fvu": 0.2}


@pytest.mark.parametrize(
    "other", [Key("evaluation.fvu", 2, {"k": 32}, {"store": "ab" * 32}), key(k=33), Key("evaluation.fvu", 1, {"k": 32}, {})]
)
def test_any_change_of_version_config_or_input_is_another_result(tmp_path, other):
    assert other.digest != key().digest
    assert ResultCache(tmp_path).path(other) != ResultCache(tmp_path).path(key())


def test_a_computation_that_fails_leaves_no_entry_and_can_be_tried_again(tmp_path):
    cache = ResultCache(tmp_path)

    def broken(folder):
        write_json(folder / "half.json", 1)
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        cache.build(key(), broken)
    assert not cache.has(key())
    assert list(cache.entries()) == []
    cache.build(key(), lambda folder: write_json(folder / "value.json", 2))
    assert cache.has(key())


def test_a_damaged_entry_is_an_error_that_names_it_and_never_a_silent_recomputation(tmp_path):
    cache = ResultCache(tmp_path)
    path = cache.build(key(), lambda folder: write_json(folder / "value.json", {"fvu": 0.25}))
    (path / "value.json").write_text("{")
    with pytest.raises(CacheError, match=f"{path.name}.*value.json"):
        cache.build(key(), lambda folder: pytest.fail("recomputed"))
    assert "damaged" in cache.verify(path)[0]
    assert cache.prune() == [path]
    cache.build(key(), lambda folder: write_json(folder / "value.json", {"fvu": 0.25}))
    assert cache.verify(path) == []


def test_verify_sees_a_flipped_byte_an_extra_file_and_a_missing_one(tmp_path):
    cache = ResultCache(tmp_path)
    path = cache.build(key(), lambda folder: [write_json(folder / f"{n}.json", [n]) for n in "abc"])
    (path / "a.json").write_bytes((path / "a.json").read_bytes().replace(b"a", b"z"))
    (path / "b.json").unlink()
    (path / "extra").write_text("?")
    problems = " ".join(cache.verify(path))
    assert "a.json is damaged" in problems
    assert "b.json is missing" in problems
    assert "extra is not part" in problems
    assert "c.json" not in problems


def test_an_entry_made_by_another_key_is_refused(tmp_path):
    cache = ResultCache(tmp_path)
    path = cache.build(key(), lambda folder: write_json(folder / "value.json", 1))
    stored = read_json(path / "key.json")
    stored["config"]["k"] = 99
    write_json(path / "key.json", stored)
    with pytest.raises(CacheError, match="another key"):
        cache.has(key())


def test_a_result_may_not_take_the_names_the_cache_keeps_for_itself(tmp_path):
    with pytest.raises(CacheError, match=r"key\.json"):
        ResultCache(tmp_path).build(key(), lambda folder: write_json(folder / "key.json", 1))


def test_a_function_name_that_would_leave_the_cache_folder_is_refused():
    with pytest.raises(ConfigError, match="function"):
        Key("../elsewhere", 1, {}, {})


def test_two_processes_that_want_the_same_result_compute_it_once(tmp_path):
    program = textwrap.dedent("""
        import sys, time, uuid
        from pathlib import Path
        from sae.storage import Key, ResultCache, write_json
        root = Path(sys.argv[1])
        def fill(folder):
            (root / f"ran-{uuid.uuid4().hex}").touch()
            time.sleep(0.5)
            write_json(folder / "value.json", 1)
        ResultCache(root / "cache").build(Key("slow", 1, {}, {}), fill)
    """)
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("ran-*"))) == 1


def test_a_run_killed_while_writing_leaves_nothing_that_counts_as_a_result(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from sae.storage import Key, ResultCache, write_json
        def fill(folder):
            write_json(folder / "value.json", 1)
            (Path(sys.argv[1]) / "started").touch()
            time.sleep(60)
        ResultCache(sys.argv[1]).build(Key("slow", 1, {}, {}), fill)
    """)
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    cache, wanted = ResultCache(tmp_path), Key("slow", 1, {}, {})
    assert not cache.has(wanted)
    assert cache.folders() == []
    partial = next(tmp_path.glob("slow/.partial-*"))
    assert cache.prune() == [], "a folder that may still be in use is left alone"
    os.utime(partial, (0, 0))
    assert cache.prune() == [partial]
    cache.build(wanted, lambda folder: write_json(folder / "value.json", 1))
    assert cache.verify(cache.path(wanted)) == []


def test_prune_drops_the_entries_it_is_told_to_drop(tmp_path):
    cache = ResultCache(tmp_path)
    keep = cache.build(key(), lambda folder: write_json(folder / "v.json", 1))
    drop = cache.build(Key("other", 1, {}, {}), lambda folder: write_json(folder / "v.json", 1))
    assert cache.prune(lambda entry: entry.function == "other") == [drop]
    assert [entry.path for entry in cache.entries()] == [keep]
