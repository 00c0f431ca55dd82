"""A model with planted activations: cheap, exactly known, with outliers where a test wants them."""

import pytest
import torch

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.models.language_model import LanguageModel
from sae.models.sites import ModelShape, Site

RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"


class PlantedModel(LanguageModel):
    """Acts are table[token] + 0.3 * wave[position]; half more at position 0; separators are 3, 5, 7 or 30 times as large."""

    shape = dtype = device = separator_id = None  # plain attributes here

    def __init__(self, *, d_vocab=300, digest="d" * 64, seed=0):
        self.name, self.digest, self.separator_id = "planted", digest, 0
        self.shape = ModelShape(n_layers=3, d_model=8, d_mlp=24, n_heads=2, d_head=4, d_vocab=d_vocab, n_ctx=64)
        self.dtype, self.device, self.tokenizer = torch.float32, torch.device("cpu"), self
        generator = torch.Generator().manual_seed(seed)
        self.tables = {width: torch.randn(300, width, generator=generator) + torch.arange(width) / width for width in (8, 24)}
        self.waves = {width: torch.randn(64, width, generator=generator) for width in (8, 24)}
        self.n_rows_run = 0
        self.poison = {}  # (row, position) -> value

    def site(self, name):
        return Site.parse(name, self.shape)

    def sites(self, patterns):
        return tuple(self.site(name) for name in patterns)

    def tokenize(self, texts):
        return [[1 + byte for byte in text.encode()] for text in texts]

    def get_vocab(self):
        return {f"<{i}>": i for i in range(self.shape.d_vocab)}

    def capture(self, tokens, sites, *, edits=()):
        captured = {}
        for site in sites:
            acts = self.tables[site.width][tokens] + 0.3 * self.waves[site.width][: tokens.shape[1]]
            boosts = torch.tensor([3.0, 5.0, 7.0, 30.0])[torch.arange(tokens.shape[1]) % 4]
            acts *= torch.where(tokens == 0, boosts, 1.0)[..., None]
            acts[:, 0] *= 1.5
            for (row, position), value in self.poison.items():
                if self.n_rows_run <= row < self.n_rows_run + len(tokens):
                    acts[row - self.n_rows_run, position, 3] = value
            captured[site] = acts
        self.n_rows_run += len(tokens)
        return captured


def texts(n=30, length=90, seed=1):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(length // 2, length * 2, (n,), generator=generator).tolist()
    return ["".join(chr(97 + int(c)) for c in torch.randint(0, 26, (size,), generator=generator)) for size in sizes]


@pytest.fixture
def planted():
    return PlantedModel


@pytest.fixture
def corpus():
    return from_texts(texts(), [{"parity": i % 2} for i in range(30)], name="letters", licence="none")


@pytest.fixture
def config():
    """16 + 16 + 16 + 7 rows of 32 tokens, at two sites."""
    return CaptureConfig(sites=(RESID, MLP), n_tokens=55 * 32, context=32, rows_per_shard=16, rows_per_batch=5)


@pytest.fixture(scope="session", params=["bfloat16", "float16", "float32", "int8"])
def store(request, tmp_path_factory):
    """A finished store, in each storage dtype; not to be changed."""
    path = tmp_path_factory.mktemp("store") / request.param
    config = CaptureConfig(sites=(RESID, MLP), n_tokens=55 * 32, context=32, rows_per_shard=16, rows_per_batch=5, dtype=request.param)
    for _ in collect(PlantedModel(), from_texts(texts(), name="letters"), path, config):
        pass
    return ActivationStore.open(path)
