"""How long a sweep of probes takes, beside a loop of scikit-learn's LogisticRegression over the same columns, and whether both find the same.

    sweep      `probes.sweep.sweep`: 10 problems x 30 layers x k = 1, 2, 4, 16, 64 on 5,000 tokens of a store of SmolLM2's neurons (mlp.hook_post),
               with validation folds, shuffled labels, random coordinates, bootstrap intervals and the dense baseline; two processes of one
               thread each; reading the store included
    layer      a few layers of it without the dense baseline, in one process, against the loop over them: the same fits on the same rows,
               ranked by numpy, z-scored, LogisticRegression (lbfgs, its default tolerance, balanced classes, the same C), AUC, F1 and MCC by
               scikit-learn, no intervals. In alternation; the loop over all 30 layers would take too long, a few stand for them
    fits       the fits alone, columns chosen and cut out beforehand
    tight      the same with scikit-learn's tolerance at 1e-8, which is about as near the minimum as ours ends

Labels: strings of the tokens, their place, the year and party of the address. The store is captured first (about a minute) unless `--store`
has it. `--quick` is a short version; `--json FILE` writes rows of name, value, unit. A bar is printed beside each row that has one.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the quickstart sets it; read when torch is loaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from bench_train import Table, alternate
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score
from threadpoolctl import threadpool_limits

from probes.features.location import TokenRows
from probes.features.stored import StoreSource
from probes.newton import fit_nested
from probes.problem import Problem
from probes.selection import random_scores, top_k
from probes.sweep import SweepConfig, sweep
from probes.sweep.plan import Fit, Plan, plan
from probes.tasks.lexical import PROPERTIES
from probes.tasks.offsets import token_strings
from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts, state_of_the_union
from sae.activations.store import ActivationStore
from sae.models.assets import default_model
from sae.models.language_model import LanguageModel
from sae.storage import user_cache_dir

N_LAYERS, N_ROWS, CHARACTERS = 30, 5000, 700
SECONDS_BAR, SPEED_BAR, AUC_BAR = 600.0, 5.0, 0.005
STRINGS = ("has_leading_space", "leading_capital", "punctuation", "ends_s", "lower_without_space")


def captured(folder: Path, kind: str) -> ActivationStore:
    """The store at `folder`; captured first if there is none: a passage of every address, all layers."""
    if not (folder / "manifest.json").exists():
        print(f"capturing {kind} of {N_LAYERS} layers to {folder}", flush=True)
        documents = list(state_of_the_union().documents())
        texts = [document.text[len(document.text) // 2 :][:CHARACTERS] for document in documents]
        corpus = from_texts(texts, [dict(document.labels) for document in documents], name="passages of addresses")
        sites = tuple(f"blocks.{layer}.{kind}" for layer in range(N_LAYERS))
        config = CaptureConfig(sites=sites, n_tokens=40_000, rows_per_batch=16, if_short="accept")
        for _ in collect(LanguageModel.load(default_model()), corpus, folder, config):
            pass
    return ActivationStore.open(folder)


def problems_of(store: ActivationStore, tokens: torch.Tensor) -> list[Problem]:
    """Ten questions about the same tokens."""
    from transformers import AutoTokenizer

    strings = token_strings(AutoTokenizer.from_pretrained(default_model()))
    view = store.token_view(tokens)
    text = [strings[i] for i in view.token.tolist()]
    before = [strings[i] if i >= 0 else "" for i in view.neighbours(1)[:, 0].tolist()]
    labels = [document.labels for document in state_of_the_union().documents()]
    documents = view.document.numpy()
    answers = {name: [bool(PROPERTIES[name].holds(s)) if s else False for s in text] for name in STRINGS}
    answers["long word"] = [len(s.strip()) >= 7 for s in text]
    answers["after punctuation"] = [bool(s) and bool(PROPERTIES["punctuation"].holds(s)) for s in before]
    answers["late in the passage"] = (view.offset >= 64).tolist()
    answers["since 1900"] = [int(labels[i]["year"]) >= 1900 for i in documents]
    answers["Republican"] = [labels[i]["party"] == "Republican" for i in documents]
    rows, groups = np.arange(len(tokens)), documents.astype(np.int64)
    return [Problem(name, rows, np.array(y).astype(np.int64), groups, ("no", "yes")) for name, y in answers.items()]


class Loop:
    """The sweep as one would write it with scikit-learn."""

    def __init__(self, source: StoreSource, plans: list[Plan], config: SweepConfig):
        self.source, self.plans, self.config = source, plans, config
        self.auc: dict[tuple[str, str, int], float] = {}
        self.supports: dict[tuple[str, str], tuple[int, ...]] = {}

    def __call__(self, site: str) -> None:
        X, k_max = self.source.read(site), max(self.config.ks)
        drawn = [top_k(random_scores(X.shape[1], seed=i), k_max) for i in range(self.config.n_random)]
        for each in self.plans:
            for number, fit in enumerate(each.fits):
                x, y = X[fit.train], fit.y[fit.train]
                difference = x[y == 1].mean(0, dtype=np.float64) - x[y == 0].mean(0, dtype=np.float64)
                support = np.argsort(-np.abs(difference), kind="stable")[:k_max]
                auc = self.scored(X, fit, support)
                if number == 0:
                    self.supports[each.problem.name, site] = tuple(support.tolist())
                    self.auc |= {(each.problem.name, site, k): value for k, value in zip(self.config.ks, auc, strict=True)}
            for support in drawn:
                self.scored(X, each.test, support)

    def scored(self, X: np.ndarray, fit: Fit, support: np.ndarray) -> list[float]:
        """AUC of every k; F1 and MCC are computed too."""
        chosen = X[:, support].astype(np.float64)
        mean, sd = chosen[fit.train].mean(0), chosen[fit.train].std(0)
        z = (chosen - mean) / np.where(sd > 0, sd, 1.0)
        found = []
        for k in self.config.ks:
            decision = logistic(z[fit.train, :k], fit.y[fit.train], self.config.C).decision_function(z[fit.test, :k])
            f1_score(fit.y[fit.test], decision > 0), matthews_corrcoef(fit.y[fit.test], decision > 0)
            found.append(float(roc_auc_score(fit.y[fit.test], decision)))
        return found


def logistic(z: np.ndarray, y: np.ndarray, C: float, tol: float = 1e-4) -> LogisticRegression:
    """scikit-learn's fit, which must converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return LogisticRegression(C=C, class_weight="balanced", tol=tol, max_iter=10_000).fit(z, y)


def layers(table: Table, source: StoreSource, problems: list[Problem], config: SweepConfig, sites: list[str], rounds: int) -> None:
    """A few layers by the sweep and by the loop, in alternation, and what both find."""
    loop = Loop(source, [plan(problem, config) for problem in problems], config)
    result = sweep(problems, source, config, matrices=sites)  # compiles what is compiled
    ways = {"ours": lambda: sweep(problems, source, config, matrices=sites), "loop": lambda: [loop(site) for site in sites]}
    seconds = alternate(ways, rounds)
    per_layer = {name: statistics.median(values) / len(sites) for name, values in seconds.items()}
    n_fits = len(problems) * (1 + config.n_folds + config.n_shuffles + config.n_random) * len(config.ks)
    for name, value in per_layer.items():
        table.add(f"layer: {name}", value, "s", note=f"{n_fits} fits; mean of layers {', '.join(site.split('.')[1] for site in sites)}")
    table.add("layer: loop over ours", per_layer["loop"] / per_layer["ours"], "ratio", f">= {SPEED_BAR:g}")
    cells = [(problem.name, site, k) for problem in problems for site in sites for k in config.ks]
    differences = [abs(loop.auc[p, site, k] - result.estimate(p, site, k=k).value) for p, site, k in cells]
    table.add("layer: largest difference of an AUC", max(differences), "", f"<= {AUC_BAR:g}", f"{len(cells)} cells")
    k_max = max(config.ks)
    equal = [loop.supports[p.name, site] == result.cell(p.name, site, k=k_max).support for p in problems for site in sites]
    table.add("layer: equal selections", float(np.mean(equal)), "share", "== 1", f"{len(equal)} selections of {k_max}")


def fits(table: Table, source: StoreSource, problems: list[Problem], config: SweepConfig, sites: list[str], rounds: int) -> None:
    """The fits to all training documents alone, columns cut out beforehand."""
    work = []
    for site in sites:
        X = source.read(site)
        for problem in problems:
            fit = plan(problem, config).test
            x, y = X[fit.train], fit.y[fit.train]
            support = top_k(x[y == 1].mean(0, dtype=np.float64) - x[y == 0].mean(0, dtype=np.float64), max(config.ks))
            columns = np.ascontiguousarray(x[:, support].T)
            z = columns.T.astype(np.float64)
            work.append((columns, (z - z.mean(0)) / z.std(0), y))

    def ours() -> None:
        for columns, _, y in work:
            fit_nested(columns, y, ks=config.ks, C=config.C)

    def loop(tol: float) -> None:
        for _, z, y in work:
            for k in config.ks:
                logistic(z[:, :k], y, config.C, tol)

    seconds = alternate({"ours": ours, "loop": lambda: loop(1e-4), "tight": lambda: loop(1e-8)}, rounds)
    median = {name: statistics.median(values) / len(work) for name, values in seconds.items()}
    for name, value in median.items():
        table.add(f"fits: {name}", 1e3 * value, "ms", note=f"to k = {', '.join(map(str, config.ks))}; mean of {len(work)} nested fits")
    table.add("fits: loop over ours", median["loop"] / median["ours"], "ratio", f">= {SPEED_BAR:g}")
    table.add("fits: tight loop over ours", median["tight"] / median["ours"], "ratio", f">= {SPEED_BAR:g}")


def whole(table: Table, source: StoreSource, problems: list[Problem], config: SweepConfig, sites: list[str], n_jobs: int) -> None:
    """The whole sweep from the store to its table."""
    started = time.perf_counter()
    result = sweep(problems, source, config, name="neurons", matrices=sites, n_jobs=n_jobs)
    taken = time.perf_counter() - started
    n_fits = len(problems) * len(sites) * (1 + config.n_folds + config.n_shuffles + config.n_random) * len(config.ks)
    controls = "dense baseline and controls included" if config.dense else "controls included, no dense baseline"
    note = f"{len(problems)} problems x {len(sites)} layers x {len(config.ks)} k, {n_fits} sparse fits, {controls}, {n_jobs} processes"
    table.add(f"sweep{'' if config.dense else ' without the dense baseline'}", taken, "s", f"<= {SECONDS_BAR:g}", note)
    print(result.table().text())
    print(result.best_table().text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--store", type=Path, help="where the store is, or will be captured to; in the user's cache folder otherwise")
    parser.add_argument("--kind", default="mlp.hook_post", help="what of every block to read")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 14, 26], help="layers that are compared with the loop")
    parser.add_argument("--only", choices=("fits", "layer", "sweep", "sparse"), help="sparse: the sweep without the dense baseline")
    options = parser.parse_args()
    store = captured(options.store or user_cache_dir() / "stores" / f"bench-probes-{options.kind}", options.kind)
    usable = store.usable_tokens(store.site_names[0], held_out=0.0)
    for name in store.site_names[1:]:
        usable = usable[store.mask(name)[usable]]
    n_rows = min(1500 if options.quick else N_ROWS, len(usable))
    tokens = usable[torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(usable))[:n_rows]))]
    source = StoreSource(store, TokenRows(tokens.numpy(), np.arange(n_rows + 1), "mean"), store.site_names, {}, {}, None)
    problems = problems_of(store, tokens)[: 3 if options.quick else None]
    sites = [f"blocks.{layer}.{options.kind}" for layer in (options.layers[:1] if options.quick else options.layers)]
    rounds, table = 1 if options.quick else options.rounds, Table()
    config, plain = SweepConfig(), SweepConfig(dense=False)
    shares = ", ".join(f"{problem.name} {problem.y.mean():.0%}" for problem in problems)
    print(f"{n_rows} tokens of {len(np.unique(problems[0].groups))} documents, d = {store.site(sites[0]).width}; {shares}")
    with threadpool_limits(1):
        if options.only in (None, "fits"):
            fits(table, source, problems, plain, sites, rounds)
        if options.only in (None, "layer"):
            layers(table, source, problems, plain, sites, rounds)
    swept = list(store.site_names[:2] if options.quick else store.site_names)
    if options.only in (None, "sparse"):
        whole(table, source, problems, plain, swept, options.jobs)
    if options.only in (None, "sweep"):
        whole(table, source, problems, config, swept, options.jobs)
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
