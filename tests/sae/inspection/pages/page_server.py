"""A small server for tests of pages: two planted indexes with hostile texts, labels and lists, and an encoder that needs no model."""

import numpy as np

from sae.errors import ConfigError
from sae.inspection.encoded import Contrast, EncodedText
from sae.inspection.server.app import create_app
from sae.inspection.server.context import Registry, ServerContext, Source
from sae.inspection.server.notes import ListItem, Notes
from sae.storage import ResultCache, write_json
from sae.storage.cache import Key
from tests.sae.inspection.planted_store import (
    HOSTILE,
    built,
    hostile_vocabulary,
    random_autoencoder,
    random_model,
    random_pursuit,
    random_store,
)

FIGURE = {
    "title": f"Errors {HOSTILE}", "caption": HOSTILE, "equal": False, "rules": [],
    "x": {"label": "k", "unit": "", "scale": "log", "names": []}, "y": {"label": "error", "unit": "", "scale": "linear", "names": []},
    "series": [{"name": HOSTILE, "x": [1.0, 2.0, 4.0], "y": [3.0, 2.0, 1.0], "low": [], "high": [], "mark": "line", "role": "result", "labels": []}],
}  # fmt: skip


class FakeLive:
    """Encodes a text as its words: feature `len(word)` fires on each word, feature 3 on every one."""

    def __init__(self, *, signed=False, steps=False, site_name="blocks.1.hook_resid_post", dictionary_digest="0" * 64):
        self.signed, self.steps = signed, steps
        self.site_name, self.dictionary_digest, self.limit = site_name, dictionary_digest, 51

    def tokenise(self, texts):
        raise NotImplementedError

    def atoms(self, latents):
        return np.eye(20)[list(latents)]

    def encode(self, texts, *, top_k=None, masked=False):
        found = []
        for text in texts:
            if not text.strip():
                raise ConfigError("texts[0] must have a character that is not whitespace")
            words = [" " + word for word in text.split()]
            if len(words) > 50:
                raise ConfigError(f"texts[0] has {len(words)} tokens, limit is 50")
            latents = tuple((3, 4 + len(word) % 10) for word in words)
            values = tuple((0.5 + 0.1 * i, -1.0 if self.signed else 1.0 + i) for i in range(len(words)))
            steps = ((), *((0, 1) for _ in words)) if self.steps else None
            special = (True, *(False for _ in words))
            found.append(
                EncodedText(text, ("<bos>", *words), (0, *range(1, len(words) + 1)), special, ((), *latents), ((), *values), steps)
            )
        return found

    def contrast(self, texts_a, texts_b, *, n=50):
        return [Contrast(3, 0.9, 2.0, 0.5, 1.0, 0.25, 0.01), Contrast(4, 0.2, 0.1, 0.7, 0.5, 1.0, None)][:n]


def context_of(folder, *, live=True, notes=True):
    """Everything a server shows, in `folder`."""
    store = random_store()
    labels = {int(d): {"party": HOSTILE} for d in store.documents.unique()}
    options = {"model": random_model(), "vocabulary": hostile_vocabulary(), "labels": labels}
    one = built(folder / "one", store, random_autoencoder(), name=f"TopK {HOSTILE}", **options)
    two = built(folder / "two", store, random_pursuit(), name="Pursuit", **options)
    kept = None
    if notes:
        kept = Notes.open(folder / "notes.sqlite")
        digest = one.manifest.source.dictionary_digest
        kept.add_explanation(digest, 8, f"label {HOSTILE}", author=HOSTILE)
        kept.set_note(digest, 8, f"note {HOSTILE}")
        items = [ListItem(digest, 8, HOSTILE), ListItem("f" * 64, 1)]
        kept.set_list("kept", title=f"Kept {HOSTILE}", description=HOSTILE, items=items)
    sources = [
        Source("topk", one, FakeLive() if live else None),
        Source("pursuit", two, FakeLive(signed=True, steps=True) if live else None),
    ]
    registry = Registry({source.name: source for source in sources}, {"broken": f"is no index {HOSTILE}"})
    return ServerContext(registry, results=results_of(folder / "results"), notes=kept)


def results_of(folder):
    """A cache with a result of geometry and a sweep of probes."""
    cache = ResultCache(folder)
    score = {"value": 0.9, "low": 0.8, "high": 0.95, "null_mean": 0.5, "null_sd": 0.02}
    cells = [
        {
            "matrix": "m",
            "problem": f"task {HOSTILE}",
            "method": "mean difference",
            "k": k,
            "d": 20,
            "test": {"auc": score | {"value": 0.6 + k / 50}},
        }
        for k in (1, 4, 16)
    ]
    numbers = [{"quantity": f"angle {HOSTILE}", "value": 0.25, "null_mean": 0.5, "p": 0.01, "note": ""}]
    outcome = {"figures": [FIGURE], "numbers": numbers, "notes": []}
    cache.build(Key("geometry.angles", 1, {"seed": 0}, {"dictionary": "d" * 64}), lambda path: write_json(path / "outcome.json", outcome))
    cache.build(Key("probes.sweep", 1, {"matrix": "m"}, {"source": "s" * 64}), lambda path: write_json(path / "cells.json", cells))
    return cache


def addresses(context):
    """An address of every kind of page, with states."""
    document = int(np.unique(context.registry.get("topk").index.table.documents)[0])
    results = [f"/results/{path.parent.name}/{path.name}" for path in context.results.folders()]
    features = [
        f"/s/{source}/f/{query}"
        for source in ("topk", "pursuit")
        for query in (
            "3",
            "0",
            "8?tab=intervals",
            "8?tab=random",
            "8?tab=near&context=5",
            "8?context=full",
            "8?text=some+words+here",
            "8?embed=1",
        )
    ]
    of_source = [
        "",
        "?sort=density&order=asc&page=1",
        "?q=w3",
        "?token=w&min_density=0.0001&max_max=99",
        "?alive=all",
        "/map",
        "/map?by=bits&f=8",
        "/doc",
    ]
    typed = [
        "/text",
        "/text?text=some+words+here",
        "/text?text=some+words&at=1&order=value&f=3",
        "/text?text=a+b&against=c+d",
        "/compare",
        "/compare?f=8&f=14",
    ]
    return [
        "/", "/about", "/docs", "/lists", "/lists/kept", "/probes", "/geometry", "/?theme=dark", *results, *features,
        *[f"/s/topk{path}" for path in (*of_source, *typed)], "/s/pursuit?sort=max", "/s/pursuit/text?text=two+words&at=1", "/s/pursuit/map?by=steps",
        f"/s/topk/doc/{document}", f"/s/topk/doc/{document}?at=1&f=8", "/s/pursuit/f/10?tab=negative",
    ]  # fmt: skip


__all__ = ["HOSTILE", "FakeLive", "addresses", "context_of", "create_app", "results_of"]
