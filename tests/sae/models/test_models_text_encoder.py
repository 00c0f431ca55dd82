"""Texts to vectors, against hand-made pooling in float64 of what a plain Hugging Face model gives for one text at a time."""

import json
import logging
import shutil

import pytest
import torch
from tiny import tiny_hf_model, tiny_tokenizer
from tiny_encoder import tiny_bert, word_tokenizer

from sae.errors import ConfigError, FormatError, SaeError
from sae.models.assets import default_encoder
from sae.models.text_encoder import EncoderConfig, TextEncoder, pool

TEXTS = [
    "a dog",
    "The nation and the people, the law and the peace.",
    "birds",
    "peace in the year 1865",
    "a dog can not fly and a bird can",
    "war",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny bert"
    folder.mkdir()
    tokenizer = word_tokenizer(folder)
    tiny_bert(len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.fixture
def published(plain, tmp_path):
    """The same as a folder of sentence-transformers: 12 tokens, mean, unit length; write(name, value) changes one of its files."""
    folder = shutil.copytree(plain, tmp_path / "published")

    def write(name, value):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))

    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    write("modules.json", [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in zip(paths, kinds, strict=True)])
    write("1_Pooling/config.json", {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    write("sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    return folder, write


def by_hand(folder, text, pooling, normalise):
    """The vector of one text: no padding, no batch, float64."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
    vector = {"mean": hidden.sum(0) / len(ids), "cls": hidden[0], "last": hidden[-1]}[pooling]
    return vector / vector.square().sum().sqrt() if normalise else vector


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_hand_made_pooling(plain, pooling, normalise):
    encoder = TextEncoder.load(plain, pooling=pooling, normalise=normalise)
    assert encoder.width == 24
    expected = torch.stack([by_hand(plain, text, pooling, normalise) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS, batch=4).double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_do_not_depend_on_the_batch_nor_on_the_order(plain, pooling):
    encoder = TextEncoder.load(plain, pooling=pooling, normalise=False)
    together = encoder.encode(TEXTS, batch=6)
    for batch in (1, 2, 5):
        torch.testing.assert_close(encoder.encode(TEXTS, batch=batch), together, atol=1e-6, rtol=1e-5)
    order = [3, 0, 5, 2, 4, 1]
    torch.testing.assert_close(encoder.encode([TEXTS[i] for i in order], batch=3), together[order], atol=1e-6, rtol=1e-5)
    assert encoder.encode([], batch=3).shape == (0, 24)


def test_pooling_looks_at_unmasked_positions_only():
    hidden = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    for pooling, chosen in {"cls": [0, 2, 0], "last": [2, 3, 4]}.items():
        assert torch.equal(pool(hidden, mask, pooling), hidden[torch.arange(3), chosen])
    rows = [hidden[0, :3].mean(0), hidden[1, 2:4].mean(0), hidden[2].mean(0)]
    torch.testing.assert_close(pool(hidden, mask, "mean"), torch.stack(rows))


def test_a_folder_of_sentence_transformers_says_how_it_pools(published):
    folder, write = published
    assert TextEncoder.load(folder).config == EncoderConfig(pooling="mean", normalise=True, max_length=12)
    write("modules.json", json.loads((folder / "modules.json").read_text())[:2])
    write("1_Pooling/config.json", {"embedding_dimension": 24, "pooling_mode": "lasttoken", "include_prompt": True})
    write("sentence_bert_config.json", {})
    write("config_sentence_transformers.json", {"prompts": {"query": "the law: ", "passage": ""}, "default_prompt_name": "query"})
    newer = TextEncoder.load(folder)
    assert newer.config == EncoderConfig(pooling="last", normalise=False, max_length=40, prompt="the law: ")
    expected = by_hand(folder, "the law: a dog", "last", False)
    torch.testing.assert_close(newer.encode(["a dog"])[0].double(), expected, atol=2e-6, rtol=1e-5)
    assert TextEncoder.load(folder, pooling="cls", normalise=True, max_length=9).config == EncoderConfig(
        pooling="cls", normalise=True, max_length=9, prompt="the law: "
    )


def test_a_transformer_in_a_folder_of_its_own_is_found(plain, published, tmp_path):
    folder, write = published
    (folder / "0_Transformer").mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    write("modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    encoder = TextEncoder.load(folder)
    assert encoder.config.max_length == 12
    torch.testing.assert_close(encoder.encode(["a dog"])[0].double(), by_hand(plain, "a dog", "mean", True), atol=2e-6, rtol=1e-5)


def test_modules_that_would_change_the_vectors_are_refused(published):
    folder, write = published
    modules = json.loads((folder / "modules.json").read_text())
    write("modules.json", [*modules, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(FormatError, match=r"Transformer, Pooling, Normalize, Dense; only .* import_arrays"):
        TextEncoder.load(folder)
    write("modules.json", modules)
    write("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True})
    with pytest.raises(FormatError, match="asks for pooling by max and mean; known here is one of mean, cls, lasttoken"):
        TextEncoder.load(folder)
    write("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(FormatError, match="pooling by mean without the prompt"):
        TextEncoder.load(folder)
    write("1_Pooling/config.json", {"pooling_mode": "mean"})
    write("sentence_bert_config.json", {"do_lower_case": True})
    with pytest.raises(FormatError, match="lower the texts first"):
        TextEncoder.load(folder)


def test_long_texts_are_cut_and_counted(published, caplog):
    folder, _ = published
    encoder = TextEncoder.load(folder)
    long, exact = "peace " * 30, "peace " * 10  # with [CLS] and [SEP], `exact` has 12 tokens
    assert encoder.n_tokens([long, exact, "war"]) == [32, 12, 3]
    with caplog.at_level(logging.WARNING, logger="sae"):
        vectors = encoder.encode([long, exact, "war"])
    assert [record.getMessage() for record in caplog.records] == ["1 of 3 texts have more than max_length=12 tokens and were cut"]
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-6, rtol=1e-5)
    caplog.clear()
    encoder.encode([exact])
    assert not caplog.records


def test_the_digest_covers_weights_and_config_but_not_the_dtype(plain):
    from transformers import AutoModel, AutoTokenizer

    encoder = TextEncoder.load(plain, pooling="mean", normalise=True)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    low = TextEncoder.load(plain, pooling="mean", normalise=True, dtype=torch.bfloat16)
    loaded = TextEncoder.load(AutoModel.from_pretrained(plain), tokenizer=tokenizer, pooling="mean", normalise=True)
    assert encoder.digest == low.digest == loaded.digest
    assert (low.dtype, encoder.dtype) == (torch.bfloat16, torch.float32)
    assert encoder.with_config(pooling="cls").digest != encoder.digest
    assert encoder.with_config(max_length=7).digest != encoder.digest
    other = AutoModel.from_pretrained(plain)
    with torch.no_grad():
        other.encoder.layer[1].output.dense.bias[3] += 1e-3
    changed = TextEncoder.load(other, tokenizer=tokenizer, pooling="mean", normalise=True)
    assert changed.digest != encoder.digest
    similarity = torch.nn.functional.cosine_similarity(low.encode(TEXTS), encoder.encode(TEXTS))
    assert float(similarity.min()) > 0.999 and not torch.equal(low.encode(TEXTS), encoder.encode(TEXTS))


def test_the_pooler_that_a_folder_may_lack_is_not_part_of_the_digest(plain, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    bare = AutoModel.from_pretrained(plain, add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    settings = {"pooling": "cls", "normalise": False}
    assert TextEncoder.load(tmp_path, **settings).digest == TextEncoder.load(plain, **settings).digest


def test_a_causal_model_gives_its_last_hidden_state():
    model = tiny_hf_model(architecture="gpt2")
    encoder = TextEncoder.load(model, tokenizer=tiny_tokenizer(), pooling="last", normalise=False)
    assert encoder.config.max_length == 256
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
            expected.append(model.double()(ids, output_hidden_states=True).hidden_states[-1][0, -1])
    model.float()
    torch.testing.assert_close(encoder.encode(TEXTS, batch=4).double(), torch.stack(expected), atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"every text must have a token, texts\[1\] '' has none"):
        encoder.encode(["a", ""])


def test_of_an_encoder_decoder_the_encoder_is_used(plain, tmp_path):
    from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5Model

    tokenizer = AutoTokenizer.from_pretrained(plain)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = T5Model(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = TextEncoder.load(tmp_path, pooling="mean", normalise=False)
    assert encoder.width == 16
    alone = T5EncoderModel.from_pretrained(tmp_path, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([alone(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0) for text in TEXTS])
    torch.testing.assert_close(encoder.encode(TEXTS, batch=4).double(), expected, atol=2e-5, rtol=1e-4)
    assert encoder.digest == TextEncoder.load(model, tokenizer=tokenizer, pooling="mean", normalise=False).digest


def test_a_config_out_of_range_is_refused(unchecked):
    with pytest.raises(ConfigError, match="pooling must be one of mean, cls, last, got 'max'"):
        EncoderConfig(pooling="max", normalise=True, max_length=3)
    with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
        EncoderConfig(pooling="cls", normalise=True, max_length=0)


def test_what_is_missing_is_named(plain, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ConfigError, match=r"pooling and normalise must be given: tiny bert has no modules\.json"):
        TextEncoder.load(plain)
    with pytest.raises(ConfigError, match="normalise must be given"):
        TextEncoder.load(plain, pooling="mean")
    with pytest.raises(ConfigError, match=r"source .*nowhere' does not exist; give the folder of an encoder or a hub name"):
        TextEncoder.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="tokenizer must be given with a loaded model"):
        TextEncoder.load(tiny_bert(50))
    with pytest.raises(SaeError, match="'somebody/some-encoder' is neither a folder here nor can it be had from the Hugging Face hub"):
        TextEncoder.load("somebody/some-encoder", pooling="mean", normalise=True)
    with pytest.raises(FormatError, match="does not hold a text encoder with its tokenizer"):
        TextEncoder.load(tmp_path, pooling="mean", normalise=True)
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.2.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"lacks 1 of the weights of a BertModel, encoder\.layer\.2\.output\.dense\.weight for one"):
        TextEncoder.load(tmp_path, pooling="mean", normalise=True)


def test_bad_calls_are_refused(plain):
    encoder = TextEncoder.load(plain, pooling="mean", normalise=True)
    with pytest.raises(ConfigError, match="texts must be a sequence of strings, got one string 'a dog'"):
        encoder.encode("a dog")
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        encoder.encode(["a dog"], batch=0)
    with torch.no_grad():
        encoder._model.embeddings.word_embeddings.weight[encoder.tokenizer.convert_tokens_to_ids("war")] = float("inf")
    with pytest.raises(FormatError, match=r"NaN or infinite values in torch\.float32 for texts\[1\] 'war'"):
        encoder.encode(["a dog", "war"], batch=1)


@pytest.mark.real_model
def test_the_default_encoder_equals_plain_transformers_and_tells_meanings_apart():
    encoder = TextEncoder.load(default_encoder())
    assert encoder.config == EncoderConfig(pooling="mean", normalise=True, max_length=256)
    texts = ["A dog is an animal.", "A puppy is a creature.", "Inflation rose by three percent last year, which nobody had foreseen."]
    vectors = encoder.encode(texts)
    expected = torch.stack([by_hand(default_encoder(), text, "mean", True) for text in texts])
    torch.testing.assert_close(vectors.double(), expected, atol=1e-6, rtol=1e-5)
    cosines = vectors @ vectors.T
    assert float(cosines[0, 1]) > 0.7 and float(cosines[0, 2]) < 0.1
