"""How long the evaluation of a whole dictionary takes, and what memory it needs.

    base      a TopK dictionary of 16,384 latents (k = 32) on 100,000 cached tokens: reconstruction, densities, description length, and the
              cross-entropy and KL of the language model; every measure by itself and their sum
    full      what else `sae evaluate --model` runs besides: absorption, probing, ablation, attributes, of those that are installed
    memory    growth of anonymous memory by the measures that read the store, on 25,000 and on 100,000 tokens of it, side by side
    again     the same evaluation read from the cache

The dictionary is trained for some steps on the store, so that its codes are of the usual kind. Without `--store` activations of the default
model are captured first, which is not counted. Every part runs in a process of its own. Beside the seconds stand those of the processor, which
another program on the machine changes less. `--only PART` runs one part; `--quick` is a short version with the measures' quick settings;
`--json FILE` writes rows of name, value, unit.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_index import Memory
from bench_train import Table

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import state_of_the_union
from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.init import initialise_
from sae.evaluation.batteries import Inputs, Task, perform
from sae.evaluation.report import evaluation_inputs, evaluation_report, evaluation_tasks
from sae.evaluation.suite.registry import evaluations
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective

K, SITE, CONTEXT = 32, "blocks.15.hook_resid_post", 128
BASE = ("fidelity", "lengths", "effects")
MORE = ("absorption", "probing", "ablation", "attributes")
BASE_BAR, FULL_BAR, MEMORY_BAR = 300.0, 900.0, 1.25
PARTS = ("base", "full", "memory", "again")
TOKENS = (25_000, 100_000)


def capture(folder: Path, n_tokens: int) -> ActivationStore:
    """A store of the default model."""
    config = CaptureConfig(sites=(SITE,), n_tokens=n_tokens, context=CONTEXT)
    for _ in collect(LanguageModel.load(default_model()), state_of_the_union(), folder, config):
        pass
    return ActivationStore.open(folder)


def trained(store: ActivationStore, site: str, d_sae: int, n_steps: int) -> Dictionary:
    """A TopK dictionary after some plain steps: densities unequal, reconstructions good, as of a real one."""
    width = store.site(site).width
    config = AutoencoderConfig(d_in=width, d_sae=d_sae, activation=TopK(k=K))
    sample = store.gather(site, store.usable_tokens(site)[:8192], dtype=torch.float32)
    provenance = {"site": site, "model_digest": store.manifest.model.digest if store.manifest.model else None}
    dictionary = Autoencoder(config, scaling=fit_scaling(store, site), provenance=provenance)
    initialise_(dictionary, sample, atoms="data")
    batches = store.batches(site, batch_size=1024, seed=0)
    for _ in train(dictionary, batches, ReconstructionObjective(), TrainConfig(n_steps=n_steps)):
        pass
    return dictionary.eval()


class Timed:
    """Measures one after the other, with their seconds of the wall and of the processor."""

    def __init__(self, table: Table, inputs: Inputs):
        self.table, self.inputs, self.done = table, inputs, []
        self.wall = self.processor = 0.0

    def __call__(self, task: Task, note: str = "") -> None:
        wall, processor = time.perf_counter(), time.process_time()
        done = perform(task, self.inputs)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.wall, self.processor = self.wall + wall, self.processor + processor
        self.done.append(done)
        said = done.reason or note
        self.table.add(task.label, wall, "s", "", f"left out: {said}" if done.outcome is None else said)
        self.table.add(f"{task.label}, processor over {torch.get_num_threads()} threads", processor / torch.get_num_threads(), "s")

    def total(self, name: str, bar: str) -> None:
        self.table.add(name, self.wall, "s", bar)
        self.table.add(f"{name}, processor over {torch.get_num_threads()} threads", self.processor / torch.get_num_threads(), "s")


def inputs_of(options: argparse.Namespace, cache: Path, *, model: bool) -> Inputs:
    """The dictionary and store of the benchmark, with results in a folder of their own."""
    store, dictionary = ActivationStore.open(options.store), load_dictionary(options.dictionary).eval()
    loaded = None
    if model:
        dtype = getattr(torch, store.manifest.model.dtype) if store.manifest.model else None
        loaded = LanguageModel.load(options.model or default_model(), dtype=dtype)
    return evaluation_inputs(dictionary, store, model=loaded, site=options.site, cache=cache)


def bench_base(table: Table, options: argparse.Namespace) -> None:
    """What reads the store, and the cross-entropy."""
    inputs = inputs_of(options, options.cache, model=True)
    timed = Timed(table, inputs)
    for task in evaluation_tasks(inputs, BASE, quick=options.quick):
        timed(task, ", ".join(f"{name} {value}" for name, value in vars(task.config).items()))
    timed.total("base: total", f"<= {BASE_BAR:g}")
    report = evaluation_report(timed.done, inputs, quick=options.quick)
    print(", ".join(f"{line.label} {line.found.value:.4g}" for line in report.lines if line.found.value is not None))


def bench_full(table: Table, options: argparse.Namespace) -> None:
    """What needs labels."""
    inputs = inputs_of(options, options.cache, model=True)
    timed = Timed(table, inputs)
    for name in [name for name in MORE if name in evaluations()]:
        for task in evaluation_tasks(inputs, [name], quick=options.quick):
            timed(task)
    timed.total("labelled: total", "")


def bench_again(table: Table, options: argparse.Namespace) -> None:
    """Everything read back."""
    started = time.perf_counter()
    inputs = inputs_of(options, options.cache, model=False)
    opened = time.perf_counter() - started
    done = [perform(task, inputs) for task in evaluation_tasks(inputs, ("fidelity", "lengths"), quick=options.quick)]
    evaluation_report(done, inputs, quick=options.quick)
    table.add(
        "again: from the cache", time.perf_counter() - started - opened, "s", "", f"{sum(d.cached for d in done)} of {len(done)} cached"
    )


def bench_memory(table: Table, options: argparse.Namespace) -> None:
    """Growth of memory by a number of tokens; run in a process for each."""
    with tempfile.TemporaryDirectory() as cache:
        inputs = inputs_of(options, Path(cache), model=False)
        tasks = evaluation_tasks(inputs, ("fidelity", "lengths"), quick=options.quick)
        warm = dataclasses.replace(tasks[0].config, n_tokens=2048)
        perform(dataclasses.replace(tasks[0], config=warm), inputs)  # compiles what is compiled
        with Memory() as memory:
            for task in tasks:
                taken = options.tokens if task.battery.name == "fidelity" else min(options.tokens, task.config.n_tokens)
                perform(dataclasses.replace(task, config=dataclasses.replace(task.config, n_tokens=taken)), inputs)
        table.add(f"memory: growth on {options.tokens} tokens", memory.growth, "MiB")


def in_process(part: str, options: argparse.Namespace, **more: Any) -> list[dict]:
    """Run a part in a process of its own; its rows."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "rows.json"
        arguments = ["--only", part, "--inside", "--json", str(written)]
        for name in ("store", "dictionary", "cache", "site", "model", "threads"):
            value = getattr(options, name)
            arguments += [f"--{name}", str(value)] if value is not None else []
        arguments += [item for name, value in more.items() for item in (f"--{name}", str(value))]
        subprocess.run([sys.executable, __file__, *arguments, *(["--quick"] if options.quick else [])], check=True)
        return json.loads(written.read_text())


def bench_all(options: argparse.Namespace) -> list[dict]:
    """The chosen parts on a dictionary and a store that are made where they are not given."""
    with tempfile.TemporaryDirectory() as folder:
        made, table = Path(folder), Table()
        if options.store is None:
            options.store = made / "acts"
            capture(options.store, 12_000 if options.quick else 110_000)
        store = ActivationStore.open(options.store)
        options.site = options.site or (store.site_names[0] if len(store.site_names) == 1 else SITE)
        if options.dictionary is None:
            options.dictionary = made / "dictionary"
            steps, d_sae = (20, 2048) if options.quick else (200, 16_384)
            save_dictionary(trained(store, options.site, d_sae, steps), options.dictionary)
        options.cache = options.cache or made / "results"
        rows = []
        for part in [options.only] if options.only else PARTS:
            if part == "memory":
                pair = [in_process(part, options, tokens=n) for n in ((2500, 10_000) if options.quick else TOKENS)]
                rows += [row for several in pair for row in several]
                small, large = (several[0]["value"] for several in pair)
                table.add("memory: four times the tokens over once", large / max(small, 1.0), "ratio", f"<= {MEMORY_BAR:g}")
            else:
                rows += in_process(part, options)
        totals = {row["name"]: row["value"] for row in rows}
        if {"base: total", "labelled: total"} <= set(totals):
            table.add("full: total", totals["base: total"] + totals["labelled: total"], "s", f"<= {FULL_BAR:g}")
        return rows + table.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--store", type=Path, help="an activation store of the model (default: captured now)")
    parser.add_argument("--site", help="its site")
    parser.add_argument("--dictionary", type=Path, help="the dictionary (default: trained shortly now)")
    parser.add_argument("--model", help="folder of the store's model (default: the default model)")
    parser.add_argument("--cache", type=Path, help="folder of results (default: one of its own, empty)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.inside:
        table = Table()
        globals()[f"bench_{options.only}"](table, options)
        rows = table.rows
    else:
        rows = bench_all(options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
