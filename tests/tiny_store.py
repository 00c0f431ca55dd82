"""Small real activation stores: of a tiny random language model, and of a model with planted activations that is cheap and exactly known."""

import dataclasses

import torch
from tiny import tiny_language_model

from sae.activations.collect import collect
from sae.activations.corpus import from_texts
from sae.activations.manifest import CaptureConfig
from sae.activations.store import ActivationStore
from sae.models.language_model import LanguageModel
from sae.models.sites import ModelShape, Site, matching, site_names
from sae.models.tokens import offsets_in_document

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
TEXTS = [
    "The nation and the people. " * 60,
    "A dog is an animal; " * 80,
    "birds can fly " * 120,
    "law and peace " * 140,
    "war was over " * 90,
]
D_IN = 32
RESID, MLP = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"
BOOSTS = (3.0, 5.0, 7.0, 30.0)


def tiny_store(path, *, seed=0, dtype="bfloat16"):
    """The store, made at `path`; both sites have width `D_IN`."""
    config = CaptureConfig(sites=SITES, n_tokens=90 * 16, context=16, rows_per_shard=24, rows_per_batch=10, dtype=dtype)
    for _ in collect(tiny_language_model(seed, n_layers=2), from_texts(TEXTS), path, config):
        pass
    return ActivationStore.open(path)


def files(folder):
    """Every file under a folder with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def changed(config, **options):
    """The config with other options; a config dataclass is checked again."""
    return dataclasses.replace(config, **options)


def letters(n=30, length=90, seed=1):
    """Texts of random letters, of half to twice the length."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(length // 2, length * 2, (n,), generator=generator).tolist()
    return ["".join(chr(97 + int(c)) for c in torch.randint(0, 26, (size,), generator=generator)) for size in sizes]


class PlantedModel(LanguageModel):
    """Acts are table[token] + 0.3 * wave[position]; half more at position 0; separators are 3, 5, 7 or 30 times as large.

    Where documents are isolated, positions are counted from the document's first token in the row.
    """

    shape = dtype = device = separator_id = None  # plain attributes here

    def __init__(self, *, d_vocab=300, digest="d" * 64, seed=0, dtype=torch.float32):
        self.name, self.digest, self.separator_id = "planted", digest, 0
        self.shape = ModelShape(n_layers=3, d_model=8, d_mlp=24, n_heads=2, d_head=4, d_vocab=d_vocab, n_ctx=64)
        self.dtype, self.device, self.tokenizer = dtype, torch.device("cpu"), self
        generator = torch.Generator().manual_seed(seed)
        self.tables = {width: torch.randn(300, width, generator=generator) + torch.arange(width) / width for width in (8, 24)}
        self.waves = {width: torch.randn(64, width, generator=generator) for width in (8, 24)}
        self.n_rows_run = 0
        self.poison = {}  # (row, position) -> value

    def site(self, name):
        return Site.parse(name, self.shape)

    def sites(self, patterns):
        return tuple(self.site(name) for name in matching(patterns, site_names(self.shape)))

    def tokenize(self, texts, *, special_tokens=False):
        return [[1 + byte for byte in text.encode()] for text in texts]

    def get_vocab(self):
        return {f"<{i}>": i for i in range(self.shape.d_vocab)}

    def capture(self, tokens, sites, *, edits=(), document_ids=None):
        rows = torch.zeros_like(tokens) if document_ids is None else document_ids
        positions = offsets_in_document(rows)
        captured = {}
        for site in sites:
            acts = self.tables[site.width][tokens] + 0.3 * self.waves[site.width][positions]
            acts *= torch.where(tokens == 0, torch.tensor(BOOSTS)[positions % 4], 1.0)[..., None]
            acts *= torch.where(positions == 0, 1.5, 1.0)[..., None]
            for (row, position), value in self.poison.items():
                if self.n_rows_run <= row < self.n_rows_run + len(tokens):
                    acts[row - self.n_rows_run, position, 3] = value
            captured[site] = acts.to(self.dtype)
        self.n_rows_run += len(tokens)
        return captured
