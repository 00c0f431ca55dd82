"""A small store of random activations in memory, dictionaries for it, and dense oracles."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.fingerprint import digest, digest_tensors
from sae.inspection import FeatureIndex, IndexConfig, build_index

SITE = "blocks.1.hook_resid_post"
HOSTILE = "<script>alert('x')</script>"


@dataclass(frozen=True)
class MemoryStore:
    """The part of a store that an index reads."""

    ids: Tensor
    documents: Tensor
    acts: Tensor
    masked: Tensor

    @property
    def digest(self) -> str:
        return digest_tensors(vars(self))

    @property
    def site_names(self) -> tuple[str, ...]:
        return (SITE,)

    def tokens(self):
        return self.ids

    def document_ids(self):
        return self.documents

    def mask(self, site):
        return ~self.masked

    def gather(self, site, token_index):
        return self.acts[token_index]


def random_store(seed=0, n_rows=14, context=16, d_in=6, n_vocabulary=12):
    """Rows of random tokens in documents of random length, position 0 and a few other tokens masked."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(n_vocabulary, (n_rows, context), generator=g, dtype=torch.int32)
    documents = (torch.rand(n_rows * context, generator=g) < 0.12).cumsum(0).reshape(n_rows, context) * 3 + 5
    masked = torch.rand(n_rows * context, generator=g) < 0.05
    masked[::context] = True
    shared = torch.randn(n_vocabulary, d_in, generator=g)[ids.flatten().long()]
    acts = shared + 0.7 * torch.randn(n_rows * context, d_in, generator=g) + torch.randn(d_in, generator=g)
    return MemoryStore(ids, documents.to(torch.int32), acts, masked)


def random_autoencoder(seed=1, d_in=6, d_sae=20, k=4):
    dictionary = Autoencoder(AutoencoderConfig(d_in=d_in, d_sae=d_sae, activation=TopK(k=k)), seed=seed)
    return _randomised(dictionary, seed)


def random_pursuit(seed=2, d_in=6, d_sae=20, k=5):
    dictionary = MatchingPursuit(PursuitConfig(d_in=d_in, d_sae=d_sae, k=k, selection="signed"), seed=seed)
    return _randomised(dictionary, seed)


def _randomised(dictionary, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name != "W_dec":
                parameter.copy_(torch.randn(parameter.shape, generator=g))
        if isinstance(dictionary, Autoencoder):
            dictionary.b_enc[:3] = -100.0  # dead latents
    return dictionary


def random_model(n_vocabulary=12, d_model=6, seed=3):
    """The part of a language model that an index reads."""
    unembedding = torch.randn(d_model, n_vocabulary, generator=torch.Generator().manual_seed(seed))
    return SimpleNamespace(
        digest=digest(["model", seed]),
        shape=SimpleNamespace(d_model=d_model),
        vocabulary=lambda: [f" w{i}" for i in range(n_vocabulary)],
        logit_effects=lambda directions: (directions @ unembedding) - (directions @ unembedding).mean(1, keepdim=True),
        unembedding=unembedding,
    )


def built(folder, store, dictionary, **options):
    """The index of a dictionary over a store, in segments of five rows, its values as exact as they were encoded."""
    defaults = {"batch_tokens": 37, "segment_tokens": 80, "config": IndexConfig(value_dtype="float32")}
    for _ in build_index(store, SITE, dictionary, folder, **defaults | options):
        pass
    return FeatureIndex.open(folder)


def dense_codes(store, dictionary):
    """[n_tokens, d_sae] of every value, zero where masked: the oracle."""
    with torch.no_grad():
        codes = dictionary.encode(store.acts).dense()
    return (codes * ~store.masked[:, None]).numpy()


def hostile_vocabulary(n=12):
    texts = [HOSTILE, '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "&amp;", "\u202eabc", "\n", " ", "\t"]
    return (texts + [f"w{i}" for i in range(n)])[:n]


def as_numpy(store):
    return store.ids.numpy(), store.documents.numpy(), np.flatnonzero(~store.masked.numpy())
