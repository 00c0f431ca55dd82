"""Run by the tests of faults in a process of its own: work on a store that is killed, done again, and compared with what was not killed.

Prints one JSON object a line for every kill point: where it was killed, whether the result is byte-identical, what could be read in between.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from tiny_store import MLP, RESID, PlantedModel, files, letters

from sae.activations.collect import collect, extend
from sae.activations.corpus import from_texts
from sae.activations.maintenance import repair
from sae.activations.manifest import CaptureConfig
from sae.activations.merging import merge
from sae.activations.store import ActivationStore
from sae.errors import FormatError

CONFIG = CaptureConfig(sites=(RESID, MLP), n_tokens=44 * 32, context=32, rows_per_shard=12, rows_per_batch=4)
CORPUS, OTHER = from_texts(letters()), from_texts(letters(seed=8))
OPERATIONS = ("fsync", "replace", "link", "unlink")


class Work(NamedTuple):
    """Something done to a store."""

    before: Callable[[Path], None]
    """Makes what is there before."""
    run: Callable[[Path], list]
    """Does it; may be called again; returns the steps."""


def captured(path, **options):
    return list(collect(PlantedModel(), options.pop("corpus", CORPUS), path, replace(CONFIG, **options)))


def damaged(path):
    captured(path)
    shards = path / "shards"
    shutil.rmtree(shards / "00000")
    file = shards / "00001" / f"{MLP}.safetensors"
    file.write_bytes(file.read_bytes()[:-7] + b"damaged")
    (shards / "00002" / f"{RESID}.safetensors").unlink()
    (shards / "00002" / "shard.json").write_text("{")
    tokens = shards / "00003-8" / "tokens.safetensors"
    tokens.write_bytes(tokens.read_bytes()[:-30])
    for array in (path / "statistics").iterdir():
        array.write_bytes(array.read_bytes()[:-9] + b"Statistic")


def sources(path):
    captured(path.parent / "one", rows_per_shard=12)
    captured(path.parent / "two", corpus=OTHER, rows_per_shard=10, n_tokens=25 * 32)


WORK = {
    "capture": Work(lambda path: None, captured),
    "append": Work(lambda path: captured(path, n_tokens=29 * 32), captured),
    "extend": Work(lambda path: captured(path, sites=(RESID,)), lambda path: list(extend(PlantedModel(), path, [MLP]))),
    "merge": Work(sources, lambda path: list(merge([path.parent / "one", path.parent / "two"], path))),
    "repair": Work(damaged, lambda path: list(repair(path, PlantedModel(), CORPUS))),
}


def in_child(function):
    """Runs the function in a forked child; returns its process id at once."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return child


def killing_itself_at(operation, function, count=None):
    """The function, in a process that is killed just before its n-th flush, rename, link or removal (or counts them, into a file)."""
    seen = 0
    originals = {name: getattr(os, name) for name in OPERATIONS}

    def intercept(name):
        def call(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return originals[name](*arguments, **options) if name != "fsync" else None

        return call

    for name in OPERATIONS:
        setattr(os, name, intercept(name))
    function()
    if count is not None:
        count.write_text(str(seen))


def readable(path):
    """(digest or None, what opening and verifying says)"""
    try:
        store = ActivationStore.open(path)
        store.verify()
    except FormatError as error:
        return None, str(error)
    return store.digest, "complete"


def fresh(work, root, name):
    """A folder of its own with what is there before; returns the path of the store in it."""
    path = root / name / "store"
    path.parent.mkdir()
    if (root / "before").exists():
        shutil.copytree(root / "before", path.parent, dirs_exist_ok=True)
    return path


def rows_of_whole_shards(path, reference):
    """Rows of the shards that are as they will be, by their own records."""
    rows, needed = 0, {f"{site}.safetensors" for site in CONFIG.sites}
    for record in path.glob("shards/[0-9]*/shard.json"):
        if (reference / "shards" / record.parent.name).exists() and record.read_bytes()[-2:] == b"}\n":
            data = json.loads(record.read_text())
            rows += data["n_rows"] if needed <= set(data["files"]) else 0
    return rows


def main(root, name, n_operations_tried, n_moments, seed):
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # nobody cuts the power
    generator, work = random.Random(seed), WORK[name]
    (root / "before").mkdir()
    work.before(root / "before" / "store")
    before = readable(root / "before" / "store")[0]
    reference = fresh(work, root, "reference")
    started = time.perf_counter()
    work.run(reference)
    duration = time.perf_counter() - started
    expected, after = files(reference.parent), readable(reference)[0]
    counted = fresh(work, root, "counted")
    child = in_child(lambda: killing_itself_at(None, lambda: work.run(counted), root / "count"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    n_operations = int((root / "count").read_text())
    points = [("operation", k) for k in sorted(generator.sample(range(1, n_operations + 1), min(n_operations_tried, n_operations)))]
    points += [("seconds", generator.uniform(0.1, 1.0) * duration) for _ in range(n_moments)]
    for number, (kind, point) in enumerate(points):
        path = fresh(work, root, f"killed{number}")
        if kind == "operation":
            child = in_child(lambda path=path, point=point: killing_itself_at(point, lambda: work.run(path)))
        else:
            child = in_child(lambda path=path: work.run(path))
            time.sleep(point)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        rows_there = rows_of_whole_shards(path, reference)
        digest, half = readable(path)
        state = {before: "as before", after: "done"}.get(digest, "something else") if digest else "not readable"
        rows_run = max(step.n_tokens_run for step in work.run(path)) // CONFIG.context
        found = files(path.parent)
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        report = {"kind": kind, "point": point, "of": n_operations, "code": code, "wrong": wrong, "half": half, "state": state}
        print(json.dumps({**report, "rows_there": rows_there, "rows_run": rows_run}), flush=True)
        shutil.rmtree(path.parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *(int(number) for number in sys.argv[3:]))
