"""A server in a thread on a free loopback port, with indexes of planted stores and an encoder that needs no language model."""

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import uvicorn

from sae.errors import ConfigError
from sae.inspection.encoded import Contrast, EncodedText, TextTooLongError, TokenisedText, check_texts
from sae.inspection.index import FeatureIndex
from sae.inspection.server.app import create_app
from sae.inspection.server.context import Registry, ServerContext, ServerSettings, Source
from sae.inspection.server.notes import Notes
from tests.sae.inspection.planted_store import (
    SITE,
    built,
    hostile_vocabulary,
    random_autoencoder,
    random_model,
    random_pursuit,
    random_store,
)

TOKEN = "a-token-of-this-test"
LIMIT = 16


class FakeLive:
    """Encodes texts without a model: a word is a token, and its letters decide what fires."""

    def __init__(self, index, *, seconds=0.0, error=None):
        self.index, self.seconds, self.error = index, seconds, error
        self.site_name, self.dictionary_digest, self.limit = SITE, index.manifest.source.dictionary_digest, LIMIT
        self.n_calls = 0

    def tokenise(self, texts):
        check_texts(texts)
        rows = []
        for i, text in enumerate(texts):
            words = ["<bos>", *text.split()]
            if len(words) > LIMIT:
                raise TextTooLongError(f"texts[{i}] has {len(words)} tokens, the limit is {LIMIT}", n_tokens=len(words), limit=LIMIT)
            rows.append(TokenisedText(text, tuple(words), tuple(sum(map(ord, word)) % 997 for word in words), 1))
        return rows

    def encode(self, texts, *, top_k=None, masked=False):
        self.n_calls += 1
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        if top_k is not None and not 1 <= top_k <= self.index.d_sae:
            raise ConfigError(f"top_k must be in 1..d_sae, got {top_k}")
        pursuit = self.index.manifest.n_steps > 0
        found = []
        for row in self.tokenise(texts):
            rows = [self.fires(i) if masked or place else [] for place, i in enumerate(row.token_ids)]
            rows = [sorted(sorted(r, key=lambda p: -abs(p[1]))[:top_k]) if top_k else r for r in rows]
            latents, values = (tuple(tuple(pair[j] for pair in r) for r in rows) for j in (0, 1))
            steps = tuple(tuple(range(len(r))) for r in rows) if pursuit else None
            special = tuple(place == 0 for place in range(len(rows)))
            found.append(EncodedText(row.text, row.tokens, row.token_ids, special, latents, values, steps))
        return found

    def fires(self, token_id):
        """(latent, value) of a token: three latents, the last negative."""
        d = self.index.d_sae
        return [(token_id % d, 1.5 + token_id / 100), ((token_id + 7) % d, 0.5), ((token_id + 11) % d, -0.25)]

    def atoms(self, latents):
        return np.stack([np.cos(np.arange(6) * (latent + 1)) for latent in latents])

    def contrast(self, texts_a, texts_b, *, n=50):
        a, b = self.encode(texts_a), self.encode(texts_b)
        return [Contrast(i, 1.0 - 0.1 * i, float(len(a)), float(len(b)), 1.0, 0.0, None) for i in range(min(n, 3))]


@contextmanager
def serving(context):
    """The base URL of a server in a thread."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(context), http="h11", ws="none", log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@contextmanager
def client(context, **options):
    """A client of a server of its own."""
    with serving(context) as url, httpx.Client(base_url=url, timeout=30, trust_env=False, **options) as found:
        yield found


def planted_indexes(folder):
    """Indexes of an autoencoder (with a model's texts and effects) and of a signed pursuit (with hostile token texts)."""
    store = random_store()
    topk = built(folder / "topk", store, random_autoencoder(), model=random_model())
    pursuit = built(folder / "mp", store, random_pursuit(), vocabulary=hostile_vocabulary())
    return {"topk": topk, "mp": pursuit}


def context_of(indexes, *, live=True, notes=None, results=None, live_options=None, **settings):
    """A context of the indexes, with encoders of this file or without."""
    made = {name: FakeLive(index, **(live_options or {})) if live else None for name, index in indexes.items()}
    sources = {name: Source(name, index, made[name]) for name, index in indexes.items()}
    return ServerContext(
        Registry(sources, {"broken": "manifest.json is missing"}),
        results=results,
        notes=Notes.open(notes) if notes else None,
        settings=ServerSettings(**settings),
    )


def dense(index):
    """[d_sae, n_tokens] of an index's values."""
    found = np.zeros((index.d_sae, index.table.n_tokens), np.float32)
    for latent in range(index.d_sae):
        entries = index.entries(latent)
        found[latent, entries.ids] = entries.values
    return found


def opened(folder):
    """The indexes in a folder, opened again."""
    return {path.name: FeatureIndex.open(path) for path in sorted(folder.iterdir()) if path.is_dir()}
