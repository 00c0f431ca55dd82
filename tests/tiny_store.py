"""A small real activation store: two sites of a tiny random language model over five texts, 1,440 tokens, a few seconds to make."""

from tiny import tiny_language_model

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
TEXTS = ["The nation and the people. " * 60, "A dog is an animal; " * 80, "birds can fly " * 120, "law and peace " * 140, "war was over " * 90]
D_IN = 32


def tiny_store(path, *, seed=0, dtype="bfloat16"):
    """The store, made at `path`; both sites have width `D_IN`."""
    config = CaptureConfig(sites=SITES, n_tokens=90 * 16, context=16, rows_per_shard=24, rows_per_batch=10, dtype=dtype)
    for _ in collect(tiny_language_model(seed, n_layers=2), from_texts(TEXTS), path, config):
        pass
    return ActivationStore.open(path)
