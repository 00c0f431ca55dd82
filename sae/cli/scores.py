"""Held-out scores of trained dictionaries, beside an untrained one and the best linear code with as many numbers per token.

autoencoders   the linear code is PCA: k principal components
transcoders    it is the best linear map of rank k from the input site to the output site
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from sae.activations.store import ActivationStore
from sae.cli.screen import console
from sae.dictionaries.checkpoint import load_dictionary
from sae.evaluation.reconstruction import pca_fvu, reconstruction
from sae.evaluation.transcoding import linear_fvu, transcoding
from sae.storage import read_json, write_json
from sae.training.feed import FeedConfig, held_out_batches, train_batches, usable_tokens
from sae.training.plans import Plan
from sae.training.session import untrained

ROWS = 2048
MAX_FIT_TOKENS = 131_072
"""Tokens that the linear code is fitted on."""


def print_scores(
    store: ActivationStore, plans: Mapping[str, Plan], feed: FeedConfig, out: Path, *, n_tokens: int, device: torch.device
) -> None:
    """Measure what was trained, write `scores.json` beside each dictionary, and print a table; what is there already is not measured again."""
    if not n_tokens or not feed.held_out:
        why = "no documents are held out" if n_tokens else "not asked for"
        console.print(f"not measured: {why}; the dictionaries are in {out}", highlight=False, soft_wrap=True)
        return
    table = Table("", "FVU", "L0", "dead", title_justify="left")
    n_measured = 0
    for name, plan in plans.items():
        scores = _scores(store, plan, feed, out / name, n_tokens, device)
        n_measured = scores["n_tokens"]
        label = "" if name == "." else f"{name}: "
        for row in scores["rows"]:
            table.add_row(
                label + row["name"],
                f"{row['fvu']:.4f}",
                f"{row['l0']:.1f}",
                "" if row["dead_share"] is None else f"{row['dead_share']:.1%}",
            )
    table.title = f"{n_measured:,} tokens of documents held out"
    console.print(table)
    console.print(f"saved in {', '.join(str(out / name / 'dictionary') for name in plans)}", highlight=False, soft_wrap=True)


def _scores(store: ActivationStore, plan: Plan, feed: FeedConfig, folder: Path, n_tokens: int, device: torch.device) -> dict[str, Any]:
    trained = {name: load_dictionary(folder / name) for name in ("dictionary", "averaged") if (folder / name).is_dir()}
    key = {"digests": {name: dictionary.digest for name, dictionary in trained.items()}, "asked": n_tokens}
    path = folder / "scores.json"
    if path.exists() and (stored := read_json(path)).get("key") == key:
        return stored
    rows = []
    n_measured = 0
    for name, dictionary in {**trained, "untrained": untrained(store, plan, feed)}.items():
        batches = _held_out(store, feed, n_tokens, device)
        measured: Any = transcoding(dictionary.to(device), batches) if plan.is_transcoder else reconstruction(dictionary, batches).scores
        n_measured = measured.n_tokens
        rows.append({"name": name, "fvu": measured.fvu, "l0": measured.l0, "dead_share": measured.dead_share})
    k = max(1, min(round(plan.k or rows[0]["l0"]), min(store.site(site).width for site in feed.sites)))
    fit, held = _fit(store, feed), _held_out(store, feed, n_tokens, torch.device("cpu"))
    linear = pca_fvu if feed.target_site is None else linear_fvu
    what = "PCA" if feed.target_site is None else "linear map"
    rows.append({"name": f"{what}, {k} numbers", "fvu": linear(fit, held, [k]).fvu[0], "l0": float(k), "dead_share": None})
    scores = {"key": key, "n_tokens": n_measured, "rows": rows}
    write_json(path, scores)
    return scores


def _held_out(store: ActivationStore, feed: FeedConfig, n_tokens: int, device: torch.device) -> Iterator[Any]:
    """Batches of the first held-out tokens in random order."""
    batches = itertools.islice(held_out_batches(store, feed, batch_size=min(ROWS, n_tokens)), -(-n_tokens // ROWS))
    return ((b[0].to(device), b[1].to(device)) if isinstance(b, tuple) else b.to(device) for b in batches)


def _fit(store: ActivationStore, feed: FeedConfig) -> Iterator[Any]:
    """Batches to fit the linear code on, each token at most once."""
    n = min(len(usable_tokens(store, feed)), MAX_FIT_TOKENS)
    return itertools.islice(train_batches(store, feed), max(1, n // feed.batch_size))
