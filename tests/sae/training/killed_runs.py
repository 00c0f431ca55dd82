"""Run by test_training_session.py in a process of its own: training runs that are killed, started again until they are done, and compared with
one that was left alone.

Prints one JSON object a line for every case: where its processes were killed, what each left, and what differs from the uninterrupted run.
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
from tiny_store import D_IN, SITES, tiny_store

from sae.dictionaries.activations import BatchTopK, ReLU, TopK
from sae.dictionaries.autoencoder import AutoencoderConfig
from sae.dictionaries.pursuit import PursuitConfig
from sae.training.feed import FeedConfig
from sae.training.loop import TrainConfig
from sae.training.objectives import MatryoshkaObjective, ReconstructionObjective
from sae.training.plans import Plan
from sae.training.resume import checkpoints, load_training
from sae.training.revival import Resampling
from sae.training.schedules import KAnnealing
from sae.training.session import Upkeep, train_from_store

D_SAE, N_STEPS, EVERY = 48, 24, 5
UPKEEP = Upkeep(checkpoint_every=EVERY)
OPERATIONS = ("fsync", "replace")


def plans():
    """Everything that a run keeps besides its weights is in one of these."""

    def plan(dictionary, objective=None, **training):
        shared = {"n_steps": N_STEPS, "learning_rate": 1e-2, "warmup_steps": 3, "dead_tokens": 150}
        return Plan(dictionary=dictionary, objective=objective or ReconstructionObjective(), training=TrainConfig(**{**shared, **training}))

    def autoencoder(activation, **options):
        return AutoencoderConfig(d_in=D_IN, d_sae=D_SAE, activation=activation, **options)

    everything = {"ema_decay": 0.9, "resampling": Resampling(every=4), "annealing": KAnnealing(start=9.0)}
    steered = ReconstructionObjective(sparsity_coefficient=0.1, target_l0=5.0, control_rate=0.3)
    return {
        "top_k": plan(autoencoder(TopK(4))),
        "batch_top_k": plan(autoencoder(BatchTopK(4.0)), MatryoshkaObjective(n_sampled=3)),
        "pursuit": plan(PursuitConfig(d_in=D_IN, d_sae=D_SAE, k=4)),
        "everything": plan(autoencoder(TopK(3)), **everything),
        "steered": plan(autoencoder(ReLU()), steered, ema_decay=0.8, resampling=Resampling(every=3)),
        "transcoder": plan(autoencoder(TopK(4), d_out=D_IN, skip=True)),
        "sweep": {f"k_{k}": plan(autoencoder(TopK(k))) for k in (2, 5)},
    }


def feed(name):
    return FeedConfig(site=SITES[0], target_site=SITES[1] if name == "transcoder" else None, batch_size=64, held_out=0.2)


def results(folder):
    """The bytes of everything a run leaves, its log without the times."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != "log.jsonl":
            found[str(file.relative_to(folder))] = file.read_bytes()
        elif file.is_file():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found[str(file.relative_to(folder))] = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]
    return found


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


def run(store, plan, name, folder, *, kill_at_step=None, kill_at_operation=None, count=None):
    """A run in this process, which kills itself after a step, or just before its n-th fsync or rename (or counts those, into a file)."""
    seen = 0
    originals = {operation: getattr(os, operation) for operation in OPERATIONS}

    def intercept(operation):
        def call(*arguments, **options):
            nonlocal seen
            seen += 1
            if seen == kill_at_operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return originals[operation](*arguments, **options)

        return call

    for operation in OPERATIONS:
        setattr(os, operation, intercept(operation))
    for n, _ in enumerate(train_from_store(store, plan, feed(name), folder, upkeep=UPKEEP), start=1):
        if n == kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
    if count is not None:
        count.write_text(str(seen))


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(folder):
    """What a killed process leaves: the steps of its checkpoints, all of which must load, and how much is half-written."""
    runs = [folder / "k_2", folder / "k_5"] if (folder / "k_2").exists() else [folder]
    steps, torn = [], 0
    for path in runs:
        found = checkpoints(path)
        steps.append([load_training(checkpoint)[1].step for checkpoint in found])
        assert steps[-1] == [int(checkpoint.name.removeprefix("step-")) for checkpoint in found]
        assert not found or load_training(path)[1].step == steps[-1][-1]
        torn += len(list(path.glob(".partial-*")))
    return {"checkpoints": steps, "torn": torn}


def log_facts(results):
    """What happened in a run, from its log: a test of resuming is worth something only if there was something to resume."""
    lines = next(value for name, value in results.items() if name.endswith("log.jsonl"))
    facts = {"most_dead": max(line["dead_share"] for line in lines), "n_revived": sum(line["n_revived"] for line in lines)}
    return {
        **facts,
        "n_pressures": len({line["pressure"] for line in lines}),
        "l0": [lines[0]["l0"], lines[-1]["l0"]],
        "n_lines": len(lines),
    }


def main(root, n_points, seed):
    torch.set_num_threads(1)
    generator = random.Random(seed)
    store = tiny_store(root / "store")
    for name, plan in plans().items():
        list(train_from_store(store, plan, feed(name), root / name / "warm", upkeep=UPKEEP))  # compiles kernels before there are children
        started = time.perf_counter()
        run_until = in_child(lambda plan=plan, name=name: run(store, plan, name, root / name / "whole", count=root / f"{name}.count"))
        assert wait(run_until) == 0
        duration = time.perf_counter() - started
        expected, n_operations = results(root / name / "whole"), int((root / f"{name}.count").read_text())
        points = [
            {"kill_at_step": step} for step in sorted({EVERY - 1, EVERY, *generator.sample(range(1, N_STEPS + 1), n_points)})[:n_points]
        ]
        points += [{"kill_at_operation": k} for k in sorted(generator.sample(range(1, n_operations + 1), min(2 * n_points, n_operations)))]
        points += [{"seconds": generator.uniform(0.1, 1.0) * duration} for _ in range(n_points - 1)]
        for number, point in enumerate(points):
            folder = root / name / str(number)
            codes, states = [], []
            for kill in (point, points[generator.randrange(len(points))], {}):  # killed, perhaps killed again, then left alone
                options = {key: value for key, value in kill.items() if key != "seconds"}
                child = in_child(lambda options=options, folder=folder, plan=plan, name=name: run(store, plan, name, folder, **options))
                if "seconds" in kill:
                    time.sleep(kill["seconds"])
                    os.kill(child, signal.SIGKILL)
                codes.append(wait(child))
                states.append(left(folder))
            found = results(folder)
            wrong = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
            report = {
                "name": name,
                "point": point,
                "of": n_operations,
                "codes": codes,
                "left": states,
                "wrong": wrong,
                **log_facts(expected),
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
