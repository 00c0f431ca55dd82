"""Live encoding gives what the index holds, for the same tokens; whatever cannot be encoded is refused with the reason."""

import math
import threading

import pytest
import torch

from sae.activations.collect import CaptureConfig, collect
from sae.activations.corpus import from_texts
from sae.activations.store import ActivationStore
from sae.dictionaries.activations import TopK
from sae.dictionaries.autoencoder import Autoencoder, AutoencoderConfig
from sae.dictionaries.pursuit import MatchingPursuit, PursuitConfig
from sae.dictionaries.scaling import Scaling
from sae.errors import ConfigError, FormatError
from sae.inspection import FeatureIndex, build_index
from sae.inspection.encoded import Framing, LiveEncoder, TextTooLongError, check_texts
from sae.inspection.live import Live, framing_of
from tests.tiny import tiny_language_model

SITE, WIDTH, N = "blocks.1.hook_resid_post", 32, 14
SOURCE = [
    "The nation and the people, the law and the peace. My fellow citizens of the Senate",
    "in the year 1865 the war was over, and the states were at peace with all the world",
    "A dog is an animal, and a robin is a bird; birds can fly, but dogs cannot. def capture",
    "We have the honor to report that the government has been good to its people. café 日本",
]


def texts_of_equal_length(model, n_tokens=N):
    """Texts that are exactly `n_tokens` tokens each, so that one fills a row."""
    cut = [model.tokenizer.decode(ids[:n_tokens]) for ids in model.tokenize(SOURCE)]
    kept = [text for text, ids in zip(cut, model.tokenize(cut), strict=True) if len(ids) == n_tokens and "\ufffd" not in text]
    assert len(kept) >= 3
    return kept


def dictionaries():
    scaling = Scaling(0.3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)), 0.7)
    autoencoder = Autoencoder(AutoencoderConfig(d_in=WIDTH, d_sae=70, activation=TopK(k=5)), scaling, seed=1)
    pursuit = MatchingPursuit(PursuitConfig(d_in=WIDTH, d_sae=20, k=16, selection="signed"), scaling, seed=2)  # few atoms: re-selection
    with torch.no_grad():
        for i, parameter in enumerate([autoencoder.b_enc, autoencoder.b_dec, pursuit.b_dec]):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return {"autoencoder": autoencoder, "pursuit": pursuit}


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=4)


def stored(model, folder, *, bos_id=None, separator=True, dtype="float32"):
    context = N + separator + (bos_id is not None)
    config = CaptureConfig(
        sites=(SITE,), n_tokens=context * 3, context=context, rows_per_batch=1, dtype=dtype, bos_id=bos_id, separator=separator
    )
    for _ in collect(model, from_texts(texts_of_equal_length(model)), folder, config):
        pass
    return ActivationStore.open(folder)


FRAMES = {"separator": {}, "bos": {"bos_id": 1}, "bfloat16": {"dtype": "bfloat16"}, "bos only": {"bos_id": 1, "separator": False}}


@pytest.mark.parametrize("kind", ["autoencoder", "pursuit"])
@pytest.mark.parametrize("frame", list(FRAMES))
def test_a_text_gets_the_entries_that_the_index_holds_for_the_same_row(model, tmp_path, kind, frame):
    store, dictionary = stored(model, tmp_path / "store", **FRAMES[frame]), dictionaries()[kind]
    for _ in build_index(store, SITE, dictionary, tmp_path / "index", model=model):
        pass
    index = FeatureIndex.open(tmp_path / "index")
    live = Live(model, dictionary, SITE, framing=framing_of(store, SITE))
    found = live.encode(texts_of_equal_length(model)[:3])
    used, ids = store.mask(SITE).reshape(3, -1).tolist(), store.tokens().tolist()
    n_repeated = 0
    for row, text in enumerate(found):
        assert list(text.token_ids) == ids[row]
        assert list(text.tokens) == [index.reader.texts[i] for i in ids[row]]
        assert [not special for special in text.is_special] == used[row]
        for position in range(store.context):
            entries = index.at_token(row * store.context + position)
            assert list(text.latents[position]) == entries.ids.tolist()
            torch.testing.assert_close(torch.tensor(text.values[position]), torch.from_numpy(entries.values), rtol=2**-11, atol=1e-6)
            if kind == "pursuit":
                assert list(text.steps[position]) == entries.steps.tolist()
                n_repeated += max(text.steps[position], default=0) >= len(text.steps[position])
    assert (found[0].steps is None) == (kind == "autoencoder")
    if kind == "pursuit":
        assert n_repeated > 5  # an atom was selected twice, so steps have gaps
        assert any(value < 0 for text in found for token in text.values for value in token)


@pytest.mark.parametrize("kind", ["autoencoder", "pursuit"])
def test_codes_are_those_of_the_dictionary_on_the_models_own_activations(model, kind):
    dictionary, text = dictionaries()[kind], "The law and the peace of café."
    live = Live(model, dictionary, SITE)
    (found,) = live.encode([text])
    row = torch.tensor([[model.separator_id, *model.tokenize([text])[0]]])
    with torch.no_grad():
        dense = dictionary.encode(model.capture(row, [model.site(SITE)])[model.site(SITE)][0]).dense()
    assert found.is_special == (True, *[False] * (row.shape[1] - 1))
    assert found.latents[0] == ()
    for position in range(1, row.shape[1]):
        mine = torch.zeros(dictionary.d_sae)
        mine[list(found.latents[position])] = torch.tensor(found.values[position])
        torch.testing.assert_close(mine, dense[position], rtol=1e-5, atol=1e-6)
    (whole,) = live.encode([text], masked=True)
    assert len(whole.latents[0]) == int((dense[0] != 0).sum())
    assert whole.latents[1:] == found.latents[1:]


def test_top_k_keeps_the_largest_magnitudes_in_the_order_of_selection(model):
    live = Live(model, dictionaries()["pursuit"], SITE)
    (whole,), (few,) = live.encode([SOURCE[0]]), live.encode([SOURCE[0]], top_k=3)
    for latents, values, kept, kept_values, steps in zip(whole.latents, whole.values, few.latents, few.values, few.steps, strict=True):
        best = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:3]
        assert set(kept) == {latents[i] for i in best}
        assert list(steps) == sorted(steps)
        assert sorted(map(abs, kept_values), reverse=True) == [abs(values[i]) for i in best]


def test_other_texts_of_the_call_and_other_threads_change_nothing(model):
    live = Live(model, dictionaries()["autoencoder"], SITE)
    alone = [live.encode([text])[0] for text in SOURCE]
    assert live.encode(SOURCE) == alone
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: live.encode([SOURCE[i]])[0]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(4)] == alone


def test_a_token_above_the_largest_norm_is_masked(model):
    dictionary = dictionaries()["autoencoder"]
    norms = torch.linalg.vector_norm(Live(model, dictionary, SITE).acts([0, *model.tokenize([SOURCE[0]])[0]]), dim=1)
    bound = float(norms[1:].sort().values[-2])
    (found,) = Live(model, dictionary, SITE, framing=Framing(separator_id=0, largest_norm=bound)).encode([SOURCE[0]])
    assert [i for i, special in enumerate(found.is_special) if special] == [0, int(norms[1:].argmax()) + 1]


REFUSED = {
    "empty": "",
    "whitespace": " \n\t\u2003",
    "nul": "a\x00b",
    "surrogate": "a\ud800b",
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_text_that_is_none_is_refused_by_its_place(model, what):
    live = Live(model, dictionaries()["autoencoder"], SITE)
    with pytest.raises(ConfigError, match=r"texts\[1\] must"):
        live.encode(["fine", REFUSED[what]])
    with pytest.raises(ConfigError, match=r"texts_b\[0\] must"):
        live.contrast(["fine"], [REFUSED[what]])


@pytest.mark.parametrize("texts", ["one string", b"bytes", [], 5, ["fine", 7], ["fine", b"bytes"]], ids=str)
def test_texts_must_be_a_sequence_with_something_in_it(texts):
    with pytest.raises(ConfigError, match=r"texts(\[1\])? must"):
        check_texts(texts)


def test_a_long_text_is_refused_with_its_number_of_tokens_and_never_cut(model):
    live = Live(model, dictionaries()["autoencoder"], SITE, context=10)
    n = len(model.tokenize([SOURCE[0]])[0]) + 1
    with pytest.raises(TextTooLongError, match=f"{n} tokens with the 1 that open it, the limit is 10") as error:
        live.encode([SOURCE[0]])
    assert (error.value.n_tokens, error.value.limit) == (n, 10)
    short = next(text for text in ("The law and the peace", "The law and", "The law") if len(model.tokenize([text])[0]) <= 9)
    assert len(live.encode([short])[0].tokens) == len(model.tokenize([short])[0]) + 1
    with pytest.raises(TextTooLongError, match="10000000 characters") as error:  # before the tokenizer sees it
        live.encode(["a" * 10_000_000])
    assert error.value.n_tokens is None
    exact = Live(model, dictionaries()["autoencoder"], SITE, context=n)
    assert len(exact.encode([SOURCE[0]])[0].tokens) == n


@pytest.mark.parametrize("top_k", [0, -1, 71, 10**9, True])
def test_top_k_out_of_range_is_refused(model, top_k):
    with pytest.raises(ConfigError, match=r"top_k must be in 1\.\.d_sae=70"):
        Live(model, dictionaries()["autoencoder"], SITE).encode(["fine"], top_k=top_k)


def test_a_live_encoder_of_other_things_is_refused(model):
    dictionary = dictionaries()["autoencoder"]
    with pytest.raises(ConfigError, match=r"width 32, blocks\.1\.mlp\.hook_post of .* has 64"):
        Live(model, dictionary, "blocks.1.mlp.hook_post")
    with pytest.raises(ConfigError, match=r"context must be in 2\.\.n_ctx=256"):
        Live(model, dictionary, SITE, context=1000)
    with pytest.raises(ConfigError, match="token ids of the framing"):
        Live(model, dictionary, SITE, framing=Framing(bos_id=10**6))
    dictionary.provenance["site"] = "blocks.2.hook_resid_post"
    with pytest.raises(ConfigError, match=r"site_name must be blocks\.2\.hook_resid_post"):
        Live(model, dictionary, SITE)
    dictionary.provenance.update(site=SITE, model_digest="0" * 64)
    with pytest.raises(ConfigError, match="of digest 000000000000"):
        Live(model, dictionary, SITE)
    with pytest.raises(ConfigError, match="dtype must be"):
        Framing(dtype="int8")
    with pytest.raises(ConfigError, match="largest_norm must be positive"):
        Framing(largest_norm=math.nan)


def test_an_index_takes_only_its_own_live_encoder(model, tmp_path):
    store, both = stored(model, tmp_path / "store"), dictionaries()
    for _ in build_index(store, SITE, both["autoencoder"], tmp_path / "index", model=model):
        pass
    index = FeatureIndex.open(tmp_path / "index")
    live = Live(model, both["autoencoder"], SITE)
    assert isinstance(live, LiveEncoder)
    attached = index.attach(live)
    assert attached.live is live
    assert index.live is None
    with pytest.raises(ConfigError, match="no live encoder"):
        index.on("A text")
    with pytest.raises(FormatError, match="dictionary digest"):
        index.attach(Live(model, both["pursuit"], SITE))
    with pytest.raises(FormatError, match="site"):
        index.attach(Live(model, both["autoencoder"], "blocks.2.hook_resid_post"))
    found = attached.on(SOURCE[0], n=5)
    assert found.texts == tuple(live.encode([SOURCE[0]]))
    atoms = both["autoencoder"].W_dec.detach()
    pair = attached.compare(3, 50).pair(3, 50)
    assert pair.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(atoms[3], atoms[50], dim=0)), abs=1e-6)


def test_neither_texts_nor_model_are_changed_by_encoding(model):
    dictionary, texts = dictionaries()["pursuit"], list(SOURCE)
    before = (dictionary.digest, model.digest, dictionary.training)
    Live(model, dictionary, SITE).contrast(texts[:2], texts[2:])
    assert texts == SOURCE
    assert (dictionary.digest, model.digest, dictionary.training) == before
    assert not any(parameter.grad is not None for parameter in dictionary.parameters())
