"""Texts to a store of vectors: row t is the vector of the t-th text, killed and continued it is the same, and dictionaries train on it."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import TEXT
from tiny_encoder import tiny_encoder

from sae.activations.corpus import from_texts, state_of_the_union
from sae.activations.embeddings import EmbeddingConfig, collect_embeddings, passages
from sae.activations.scaling import fit_scaling
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.init import initialise_
from sae.errors import ConfigError, FormatError
from sae.evaluation.reconstruction import reconstruction
from sae.models.assets import default_encoder
from sae.models.text_encoder import TextEncoder
from sae.training.loop import TrainConfig, train
from sae.training.objectives import ReconstructionObjective

SPEECH = "My fellow citizens: Mr. Smith and J. Q. Adams have come. They left!\n\nWhy? \"Peace.\" 'So it is,' said No. 3 of them\nand went."


def phrases(n, seed=0):
    """Random phrases of one to twelve words."""
    generator, words = random.Random(seed), TEXT.split()
    return [" ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(n)]


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("tokenizer"))


def embedded(encoder, corpus, path, **options):
    steps = list(collect_embeddings(encoder, corpus, path, EmbeddingConfig(**options)))
    return ActivationStore.open(path), steps


def test_documents_are_cut_into_the_texts_asked_for():
    corpus = from_texts([SPEECH, "  \n", "one"], [{"n": 1}, {"n": 2}, {"n": 3}])
    cut = {unit: [document.text for document in passages(corpus, unit)] for unit in ("document", "paragraph", "line", "sentence")}
    assert cut["document"] == [SPEECH, "one"]
    assert cut["paragraph"] == [SPEECH.split("\n\n")[0], SPEECH.split("\n\n")[1], "one"]
    assert cut["line"] == [line for line in SPEECH.split("\n") if line] + ["one"]
    assert cut["sentence"] == [
        "My fellow citizens: Mr. Smith and J. Q. Adams have come.",
        "They left!",
        "Why?",
        '"Peace."',
        "'So it is,' said No. 3 of them and went.",
        "one",
    ]
    sentences = list(passages(corpus, "sentence"))
    assert [document.id for document in sentences] == [0, 0, 0, 0, 0, 2]
    assert [document.labels["n"] for document in sentences] == [1, 1, 1, 1, 1, 3]


def test_rows_are_the_vectors_of_the_texts(encoder, tmp_path):
    corpus = from_texts([" ".join(phrases(9, seed)) + "." for seed in range(20)] + [SPEECH], licence="CC0")
    store, steps = embedded(encoder, corpus, tmp_path / "store", unit="sentence", texts_per_shard=7, batch=3)
    texts = list(passages(corpus, "sentence"))
    assert (store.context, store.n_rows, store.has_tokens, store.dtype) == (1, len(texts), False, torch.float32)
    found = torch.cat(list(store.shards("embedding")))
    torch.testing.assert_close(found, encoder.encode([document.text for document in texts]), atol=1e-6, rtol=1e-5)
    assert store.document_ids().flatten().tolist() == [document.id for document in texts]
    assert bool(store.mask("embedding").all())
    store.verify()
    manifest = store.manifest
    assert (manifest.model.digest, manifest.corpus.licence, manifest.sites[0].kind) == (encoder.digest, "CC0", "external")
    shown = [step.n_tokens for step in steps if step.stage == "capture"]
    assert shown == sorted(shown) and len(shown) == -(-len(texts) // 7) and shown[-1] == len(texts)


def test_an_embedding_that_is_stopped_is_continued_to_the_same_bytes_and_nothing_is_encoded_twice(encoder, tmp_path):
    corpus = from_texts(phrases(60))
    options = {"texts_per_shard": 8, "batch": 3}
    embedded(encoder, corpus, tmp_path / "whole", **options)
    for stop in range(1, 12):
        steps = collect_embeddings(encoder, corpus, tmp_path / str(stop), EmbeddingConfig(**options))
        for _ in range(stop):
            next(steps, None)
        steps.close()
        _, rest = embedded(encoder, corpus, tmp_path / str(stop), **options)
        assert max(step.n_tokens_run for step in rest) <= max(0, 60 - 8 * stop)
        assert files(tmp_path / str(stop)) == files(tmp_path / "whole")


def test_finished_shards_are_not_encoded_again(encoder, tmp_path, monkeypatch):
    corpus, seen = from_texts(phrases(30)), []
    steps = collect_embeddings(encoder, corpus, tmp_path / "store", EmbeddingConfig(texts_per_shard=8))
    next(steps), next(steps)
    steps.close()
    original = TextEncoder.encode_counted
    monkeypatch.setattr(
        TextEncoder, "encode_counted", lambda self, texts, **options: seen.extend(texts) or original(self, texts, **options)
    )
    embedded(encoder, corpus, tmp_path / "store", texts_per_shard=8)
    assert seen == phrases(30)[16:]
    embedded(encoder, corpus, tmp_path / "store", texts_per_shard=8)
    assert len(seen) == 14


def test_a_process_that_is_killed_is_continued_by_another(encoder, tmp_path):
    texts = phrases(600)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "tokenizer").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("embedding_program.py"))]
    arguments = [str(tmp_path / name) for name in ("texts.json", "tokenizer", "store")]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = [process.stdout.readline() for _ in range(4)]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lines == [f"capture {n} of 600\n" for n in (50, 100, 150, 200)]
    corpus, options = from_texts(texts), {"texts_per_shard": 50, "batch": 8}
    store, rest = embedded(encoder, corpus, tmp_path / "store", **options)
    assert 0 < max(step.n_tokens_run for step in rest) <= 400
    store.verify()
    embedded(encoder, corpus, tmp_path / "whole", **options)
    assert files(tmp_path / "store") == files(tmp_path / "whole")


def test_more_texts_are_added_to_what_is_there(encoder, tmp_path):
    corpus = from_texts(phrases(50))
    embedded(encoder, corpus, tmp_path / "grown", n_texts=20, texts_per_shard=8)
    store, steps = embedded(encoder, corpus, tmp_path / "grown", n_texts=40, texts_per_shard=8)
    assert store.n_rows == 40
    assert max(step.n_tokens_run for step in steps) <= 24
    embedded(encoder, corpus, tmp_path / "whole", n_texts=40, texts_per_shard=8)
    assert files(tmp_path / "grown") == files(tmp_path / "whole")
    short, _ = embedded(encoder, corpus, tmp_path / "all", n_texts=1000)
    assert short.n_rows == 50


def test_another_encoder_or_unit_is_another_store(encoder, tmp_path):
    corpus = from_texts(phrases(20))
    embedded(encoder, corpus, tmp_path / "store")
    with pytest.raises(ConfigError, match=r"model\.digest is"):
        embedded(encoder.with_config(pooling="cls"), corpus, tmp_path / "store")
    with pytest.raises(ConfigError, match=r"corpus\.digest is"):
        embedded(encoder, corpus, tmp_path / "store", unit="line")
    with pytest.raises(FormatError, match="was captured from"):
        ActivationStore.open(tmp_path / "store", model_digest="0" * 64)
    assert ActivationStore.open(tmp_path / "store", model_digest=encoder.digest).n_rows == 20


def test_texts_that_were_cut_are_counted_once_at_the_end(encoder, tmp_path, caplog):
    corpus = from_texts(["peace " * n for n in (5, 60, 3, 70, 38, 80, 39)])  # the encoder takes 40 tokens, two of them special
    with caplog.at_level(logging.WARNING, logger="sae"):
        embedded(encoder, corpus, tmp_path / "store", texts_per_shard=2)
    expected = "4 of the 7 texts encoded have more than max_length=40 tokens and were cut"
    assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_config_out_of_range_is_refused(unchecked):
    for options, message in {
        ("unit", "word"): "unit must be one of document, paragraph, line, sentence, got 'word'",
        ("dtype", "float8"): "dtype must be one of .*, got 'float8'",
        ("n_texts", 0): "n_texts must be at least 1, or None for all, got 0",
        ("batch", 0): "batch must be at least 1, got 0",
        ("texts_per_shard", 0): "texts_per_shard must be at least 1, got 0",
    }.items():
        with pytest.raises(ConfigError, match=message):
            EmbeddingConfig(**dict([options]))


def fvu_of(store, dictionary):
    return reconstruction(dictionary, store.batches("embedding", batch_size=256, seed=0, split="held_out")).scores.fvu


def trained(store, *, d_sae, k, n_steps, learning_rate):
    """(FVU untrained, FVU trained), both on held-out documents."""
    scaling = fit_scaling(store, "embedding")
    width = store.site("embedding").width
    dictionary = Autoencoder(AutoencoderConfig(d_in=width, d_sae=d_sae, activation=TopK(k)), scaling, seed=1)
    initialise_(dictionary, next(store.batches("embedding", batch_size=512, seed=1)), seed=2)
    before = fvu_of(store, dictionary)
    config = TrainConfig(n_steps=n_steps, learning_rate=learning_rate, warmup_steps=10, decay_share=0.3)
    for _ in train(dictionary, store.batches("embedding", batch_size=256, seed=3), ReconstructionObjective(), config):
        pass
    return before, fvu_of(store, dictionary)


def test_a_dictionary_trains_on_embeddings(encoder, tmp_path, unchecked):
    store, _ = embedded(encoder, from_texts(phrases(3000, seed=3)), tmp_path / "store", texts_per_shard=1000, batch=64)
    before, after = trained(store, d_sae=96, k=6, n_steps=200, learning_rate=5e-3)
    assert after < 0.5 * before
    assert after < 0.5


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
def test_a_dictionary_trains_on_sentences_of_presidents(tmp_path, unchecked):
    encoder = TextEncoder.load(default_encoder())
    store, steps = embedded(encoder, state_of_the_union(), tmp_path / "store", unit="sentence", n_texts=4000)
    assert sum(step.stage == "capture" for step in steps) == 8
    before, after = trained(store, d_sae=768, k=16, n_steps=300, learning_rate=2e-3)
    variances = torch.linalg.eigvalsh(store.covariance("embedding"))
    linear = float(1 - variances[-16:].sum() / variances.sum())  # as many numbers a text, fitted to the held-out texts as well
    print(f"FVU {before:.3f} untrained, {linear:.3f} PCA of rank 16, {after:.3f} trained")
    assert after < 0.65 * before
