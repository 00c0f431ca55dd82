"""The index over a real store, with a real (tiny) language model: everything that is made elsewhere fits together."""

import torch

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.inspection import FeatureIndex, build_index
from tests.tiny import tiny_language_model

SITE = "blocks.1.hook_resid_post"


def test_an_index_over_a_captured_store_shows_the_texts_labels_and_effects(tmp_path):
    model = tiny_language_model()
    corpus = from_texts(
        [f"the cat {i} sat on the mat and saw café 日本 number {i * 7}" for i in range(60)], [{"parity": i % 2} for i in range(60)]
    )
    for _ in collect(model, corpus, tmp_path / "store", CaptureConfig(sites=(SITE,), n_tokens=512, context=32, dtype="float32")):
        pass
    store = ActivationStore.open(tmp_path / "store")
    dictionary = Autoencoder(AutoencoderConfig(d_in=32, d_sae=64, activation=TopK(k=4)))
    labels = {document.id: document.labels for document in corpus.documents()}
    for _ in build_index(store, SITE, dictionary, tmp_path / "index", model=model, labels=labels, batch_tokens=100):
        pass
    index = FeatureIndex.open(tmp_path / "index", store_digest=store.digest, dictionary_digest=dictionary.digest)
    assert index.n_tokens == int(store.mask(SITE).sum())
    vocabulary, ids = model.vocabulary(), store.tokens()
    record = next(card.record for card in index if card.record.alive)
    example = record.examples[0]
    shown = ids[example.row, example.position - example.peak : example.position - example.peak + len(example.tokens)].tolist()
    assert [a == b or "\ufffd" in b for a, b in zip(example.tokens, (vocabulary[i] for i in shown), strict=True)] == [True] * len(shown)
    assert not any("\ufffd" in token for token in example.tokens)
    assert example.labels == {"parity": example.document % 2}
    with torch.no_grad():
        effects = model.logit_effects(torch.nn.functional.normalize(dictionary.W_dec, dim=1))
        codes = dictionary.encode(store.gather(SITE, torch.tensor([example.row * 32 + example.position])).float()).dense()
    assert record.promoted[0].token_id == int(effects[record.index].argmax())
    assert abs(example.value - float(codes[0, record.index])) <= 2**-11 * abs(example.value)
