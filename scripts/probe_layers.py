"""What k neurons, k latents of TopK and k latents of matching pursuit say about twelve questions, layer by layer, in SmolLM2-135M.

    neurons    blocks.L.mlp.hook_post               k columns of 1536
    TopK       codes of blocks.L.hook_resid_post    k latents of 2048, 32 active
    pursuit    the same activations, pursued        k latents of 2048, 32 steps at most
    residual   blocks.L.hook_resid_post             the dense probe is the baseline of both dictionaries

1. a store of speeches, docstrings and Python sources at the residual streams of five layers, and two dictionaries trained on each
2. the tasks' texts through the model, every site in one pass; the codes of every dictionary, sparse
3. a sweep for each kind of features over tasks, layers and k, with the dense probe, shuffled labels and random coordinates

Everything is kept in the cache, so a second run only prints. `--fast` is a small version of all of it. The tables are mean AUCs over the
tasks, layer by layer, and then task by task at the layer that validation chooses. `--json FILE` writes the tables, `--figures FOLDER` the figures.
"""

import argparse
import json
import os
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console

from probes.features import ProbeData, RowConfig, from_model
from probes.sweep import SweepConfig, SweepResult, compare_sweeps, sweep
from probes.tasks import CATALOGUE, Task, TokenTask
from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import Corpus, from_texts, installed_docstrings, mixture, state_of_the_union
from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.fingerprint import digest, to_json
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.storage import Key, ResultCache, user_cache_dir
from sae.training.loop import TrainConfig, describe, train
from sae.training.objectives import ReconstructionObjective

TASKS = (
    "era",
    "party",
    "sentiment",
    "prose_or_code",
    "docstring_package",
    "token_kinds",
    "compound",
    "is_animal",
    "has_leading_space",
    "leading_capital",
    "contains_digit",
    "ends_ing",
)
KS = (1, 2, 4, 16, 64)
console = Console()


@dataclass(frozen=True)
class Size:
    """How big a run is."""

    layers: tuple[int, ...]
    """Layers that are probed."""
    n_tokens: int
    """Tokens that the dictionaries are trained on."""
    d_sae: int
    """Latents of each dictionary."""
    n_steps: dict[str, int]
    """Training steps of each kind of dictionary, of 1024 tokens."""
    n_rows: int
    """Rows of a task at most."""
    n_shuffles: int
    """Label shuffles behind each null."""


FULL = Size((5, 11, 17, 23, 29), 250_000, 2048, {"TopK": 600, "pursuit": 200}, 600, 5)
FAST = Size((5, 11), 12_000, 512, {"TopK": 60, "pursuit": 20}, 160, 2)


def stream(layer: int) -> str:
    """The residual stream after a layer."""
    return f"blocks.{layer}.hook_resid_post"


def neurons(layer: int) -> str:
    """The neurons of a layer."""
    return f"blocks.{layer}.mlp.hook_post"


def training_text() -> Corpus:
    """Beginnings of speeches, of standard library modules, and docstrings, mixed."""
    speeches = from_texts([document.text[:3800] for document in state_of_the_union().documents()], name="speeches", licence="public domain")
    files = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    code = from_texts([text[:3000] for text in files if len(text) > 3000], name="standard_library", licence="PSF-2.0")
    return mixture([speeches, code, installed_docstrings(max_documents=400, seed=0)], seed=0)


def capture(model: LanguageModel, size: Size) -> ActivationStore:
    """The store that the dictionaries are trained on."""
    corpus, config = training_text(), CaptureConfig(sites=tuple(map(stream, size.layers)), n_tokens=size.n_tokens)
    wanted = digest({"model": model.digest, "corpus": corpus.digest, "config": to_json(config)})
    path = user_cache_dir() / "stores" / wanted[:24]
    with console.status("tokens") as status:
        for progress in collect(model, corpus, path, config):
            status.update(f"{progress.stage}: {progress.n_tokens:,} tokens")
    return ActivationStore.open(path)


def dictionary(store: ActivationStore, site: str, kind: str, size: Size, cache: ResultCache) -> Dictionary:
    """A dictionary of `kind` trained on a site of the store."""
    objective, config = ReconstructionObjective(), TrainConfig(n_steps=size.n_steps[kind], learning_rate=4e-3)
    key = Key(
        "probe_layers.dictionary",
        1,
        {"site": site, "kind": kind, "d_sae": size.d_sae, **describe(config, objective)},
        {"store": store.digest},
    )

    def fill(folder: Path) -> None:
        scaling, sizes = fit_scaling(store, site), {"d_in": store.site(site).width, "d_sae": size.d_sae}
        known = store.manifest.model
        provenance = {"site": site, "model_digest": known.digest if known else None, "store_digest": store.digest}
        if kind == "TopK":
            made: Dictionary = Autoencoder(AutoencoderConfig(**sizes, activation=TopK(k=32)), scaling, seed=0, provenance=provenance)
        else:
            made = MatchingPursuit(PursuitConfig(**sizes, k=32), scaling, seed=0, provenance=provenance)
        tokens = store.usable_tokens(site)
        chosen = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))[: max(8192, 4 * size.d_sae)]]
        initialise_(made, store.gather(site, chosen).float())
        with console.status(f"{kind} of {site}") as status:
            for step in train(made, store.batches(site, batch_size=1024, seed=0), objective, config):
                status.update(f"{kind} of {site}: step {step.index + 1}, batch FVU {step.fvu:.3f}")
        console.print(f"{kind} of {site}: batch FVU {step.fvu:.3f}, dead {step.dead_share:.1%}", highlight=False)
        save_dictionary(made, folder / "dictionary")

    return load_dictionary(cache.build(key, fill) / "dictionary")


def tasks(size: Size) -> list[Task | TokenTask]:
    """The tasks, at most `n_rows` rows each, as many of every class."""
    return [_smaller(CATALOGUE[name].make(), size.n_rows) for name in TASKS]


def _smaller(task: Task | TokenTask, n_rows: int) -> Task | TokenTask:
    if isinstance(task, TokenTask):
        chosen = sorted(random.Random(0).sample(range(len(task.texts)), min(len(task.texts), n_rows // 3)))
        return replace(task, texts=tuple(task.texts[i] for i in chosen), groups=task.groups[chosen], n_rows=n_rows)
    return task.subsample(min(n_rows // len(task.classes), *task.counts.values()), seed=0)


def features(model: LanguageModel, size: Size, cache: ResultCache) -> ProbeData:
    """The tasks' rows at every site and under every dictionary."""
    store = capture(model, size)
    kinds = {kind: {layer: dictionary(store, stream(layer), kind, size, cache) for layer in size.layers} for kind in size.n_steps}
    named = {f"{kind}, blocks.{layer}.hook_resid_post": found for kind, layers in kinds.items() for layer, found in layers.items()}
    sites = [site(layer) for layer in size.layers for site in (neurons, stream)]
    rows = RowConfig(missing="drop")  # of long excerpts, what lies beyond the context
    return from_model(model, tasks(size), sites, dictionaries=named, cache=cache, config=rows, context=320)


def sweeps(data: ProbeData, size: Size, cache: ResultCache) -> Iterator[SweepResult]:
    """A sweep over the layers for each kind of features."""
    config = SweepConfig(ks=KS, n_shuffles=size.n_shuffles)
    kinds = {
        "neurons": [neurons(layer) for layer in size.layers],
        "TopK latents": [f"TopK, {stream(layer)}" for layer in size.layers],
        "pursuit latents": [f"pursuit, {stream(layer)}" for layer in size.layers],
        "residual stream": [stream(layer) for layer in size.layers],
    }
    for name, matrices in kinds.items():
        yield sweep(data.problems, data.source, config, name=name, matrices=matrices, cache=cache, n_jobs=2)


def main() -> None:
    """Run the stages and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    size, cache = FAST if options.fast else FULL, ResultCache(user_cache_dir() / "results")
    data = features(LanguageModel.load(default_model()), size, cache)
    print(data.report().text())
    found = list(sweeps(data, size, cache))
    compared = compare_sweeps(found)
    tables = {each.name: each.table() for each in found} | {"compared": compared.table(), "sparsity": compared.sparsity()}
    for name, table in tables.items():
        if name != "sparsity":  # a line for every layer and task: in the file
            print(f"\n{table.text()}")
    if options.json:
        options.json.write_text(
            json.dumps({name: {"rows": table.records(), "note": table.note} for name, table in tables.items()}, indent=2) + "\n"
        )
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        for name, figure in {**{each.name: each.figure() for each in found}, "compared": compared.figure()}.items():
            figure.write_html(options.figures / f"{name.replace(' ', '_')}.html", include_plotlyjs="directory")


if __name__ == "__main__":
    main()
