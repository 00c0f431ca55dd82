"""Run by test_activations_resume.py in a process of its own: captures that are killed, continued, and compared with one that was not.

Prints one JSON object a line for every kill point: where it was killed, whether the result is byte-identical, and how many rows ran twice.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from tiny import tiny_language_model

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.errors import FormatError

SITES = ("blocks.0.hook_resid_post", "blocks.1.mlp.hook_post")
CONFIG = CaptureConfig(sites=SITES, n_tokens=44 * 16, context=16, rows_per_shard=12, rows_per_batch=4)
OPERATIONS = ("fsync", "replace")


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


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
    """The function, in a process that is killed just before its n-th fsync or rename (or counts them, into a file)."""
    seen = 0
    originals = {name: getattr(os, name) for name in OPERATIONS}

    def intercept(name):
        def call(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return originals[name](*arguments, **options)

        return call

    for name in OPERATIONS:
        setattr(os, name, intercept(name))
    function()
    if count is not None:
        count.write_text(str(seen))


def main(root, n_operations_tried, n_moments, seed):
    torch.set_num_threads(1)
    generator = random.Random(seed)
    model = tiny_language_model(n_layers=2)
    corpus = from_texts(["The nation and the people. " * 30, "A dog is an animal; " * 40, "birds can fly " * 60, "law and peace " * 70])

    def capture(path):
        return list(collect(model, corpus, path, CONFIG))

    started = time.perf_counter()
    capture(root / "reference")
    duration = time.perf_counter() - started
    expected = files(root / "reference")
    child = in_child(lambda: killing_itself_at(None, lambda: capture(root / "counted"), root / "count"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    n_operations = int((root / "count").read_text())
    points = [("operation", k) for k in sorted(generator.sample(range(1, n_operations + 1), min(n_operations_tried, n_operations)))]
    points += [("seconds", generator.uniform(0.2, 1.0) * duration) for _ in range(n_moments)]
    for number, (kind, point) in enumerate(points):
        path = root / f"killed{number}"
        if kind == "operation":
            child = in_child(lambda path=path, point=point: killing_itself_at(point, lambda: capture(path)))
        else:
            child = in_child(lambda path=path: capture(path))
            time.sleep(point)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        rows_there = sum(json.loads(f.read_text())["n_rows"] for f in path.glob("shards/[0-9]*/shard.json"))
        try:
            ActivationStore.open(path).verify()
            half = "complete"
        except FormatError as error:
            half = str(error)
        rows_run = max(step.n_tokens_run for step in capture(path)) // CONFIG.context
        found = files(path)
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        report = {"kind": kind, "point": point, "of": n_operations, "code": code, "wrong": wrong, "half": half}
        print(json.dumps({**report, "rows_there": rows_there, "rows_run": rows_run}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(number) for number in sys.argv[2:]))
