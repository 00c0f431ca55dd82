"""Run by test_activations_embeddings.py in a process of its own, to be killed: embeds the texts of a JSON file, a line per shard."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[3]))

import torch
from tiny_encoder import tiny_encoder

from sae.activations.corpus import from_texts
from sae.activations.embeddings import EmbeddingConfig, collect_embeddings


def main(texts: Path, tokenizer: Path, path: Path) -> None:
    torch.set_num_threads(1)
    corpus = from_texts(json.loads(texts.read_text()))
    for step in collect_embeddings(tiny_encoder(tokenizer), corpus, path, EmbeddingConfig(texts_per_shard=50, batch=8)):
        print(f"{step.stage} {step.n_tokens} of {step.n_tokens_total}", flush=True)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
