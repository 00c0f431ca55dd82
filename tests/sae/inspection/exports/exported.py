"""Indexes to export: an autoencoder's, and a signed pursuit's with another number of latents a token; and one whose texts are hostile."""

import atexit
import copy
import dataclasses
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import torch

from sae.dictionaries.codes import SparseCodes
from sae.inspection.exports import FORMATS
from sae.inspection.exports.provenance import Provenance
from sae.inspection.index import FeatureIndex
from tests.sae.inspection.planted_store import built, random_autoencoder, random_model, random_pursuit, random_store

TEXTS = Provenance(model="Tiny/Model-1", dataset="speeches", revision="abc123", licence="public domain")
EVIL = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\ud800",
    "\x00",
    "\x1b[31m",
    "\u202eabc",
    "\u2028",
    "\r\n",
    "",
)
FORMAT_NAMES = tuple(FORMATS)
KINDS = ("autoencoder", "pursuit")


class UnevenPursuit:
    """Makes the codes of a pursuit uneven: of each token the first latents only, from none to all of them."""

    def __init__(self, dictionary):
        self.pursue = dictionary.pursue

    def __call__(self, x, **options):
        found = self.pursue(x, **options)
        steps = found.steps
        counts = torch.minimum(steps.counts, torch.arange(len(x)) % (steps.indices.shape[1] + 1))
        return SimpleNamespace(steps=SparseCodes(steps.indices, steps.values, counts, steps.d_sae))


def make_index(folder, kind, *, seed=0, uneven=False, d_sae=20, **options):
    """The index of a random dictionary over a random store."""
    make = {"autoencoder": random_autoencoder, "pursuit": random_pursuit}[kind]
    dictionary, store = make(seed + 1, d_sae=d_sae), random_store(seed)
    if uneven:
        dictionary.pursue = UnevenPursuit(dictionary)
    labels = {int(document): {"year": 1900 + int(document), "title": "<b>"} for document in store.documents.unique()}
    return built(folder, store, dictionary, **{"model": random_model(), "labels": labels, "name": "Small Dictionary"} | options)


@cache
def small_index(kind):
    """One index of each kind for all tests of a process; nobody writes to it."""
    folder = Path(mkdtemp(prefix="exported-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_index(folder / "index", kind, uneven=kind == "pursuit")


class HostileIndex(FeatureIndex):
    """An index whose records hold texts that want to break out."""

    def record(self, latent):
        record = super().record(latent)

        def evil(example):
            tokens = tuple(EVIL[(place + latent) % len(EVIL)] for place in range(len(example.tokens)))
            return dataclasses.replace(example, tokens=tokens, labels={"\ud800<b>": EVIL[latent % len(EVIL)]})

        def words(items):
            return tuple(dataclasses.replace(item, token=EVIL[place % len(EVIL)]) for place, item in enumerate(items))

        return dataclasses.replace(
            record,
            source=dataclasses.replace(record.source, dictionary=EVIL[0]),
            examples=tuple(map(evil, record.examples)),
            negative_examples=tuple(map(evil, record.negative_examples)),
            intervals=tuple(dataclasses.replace(i, examples=tuple(map(evil, i.examples))) for i in record.intervals),
            driving_tokens=words(record.driving_tokens),
            promoted=words(record.promoted),
            suppressed=words(record.suppressed),
        )

    @property
    def texts(self):
        return [EVIL[i % len(EVIL)] for i in range(len(super().texts))]


def hostile_index(kind):
    index = copy.copy(small_index(kind))
    index.__class__ = HostileIndex
    return index


def content(folder):
    """Bytes of every file, by relative name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def active(index):
    """Latents that fire."""
    return [latent for latent in range(index.d_sae) if index.statistics.n_active[latent]]
