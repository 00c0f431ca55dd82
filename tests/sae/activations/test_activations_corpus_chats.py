"""Conversations become documents through a chat template; what is no conversation is named."""

import copy
import json

import pytest
from tiny import tiny_hf_model, tiny_tokenizer

from sae.activations.corpus import from_chats, from_texts, mixture, shuffled
from sae.activations.tokenisation import token_lists
from sae.errors import ConfigError, FormatError
from sae.models.language_model import LanguageModel

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no role ' + message.role) }}{% endif %}"
    "{{ bos_token + message.role + '\\n' + message.content + eos_token }}{% endfor %}{{ ending | default('') }}"
)
CHATS = [
    [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day — to you."}],
    [],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "第三"}, {"role": "assistant", "content": ""}],
]
RENDERED = [
    (0, "<|bos|>user\nHello?<|endoftext|><|bos|>assistant\nGood day — to you.<|endoftext|>"),
    (2, "<|bos|>system\nBe brief.<|endoftext|><|bos|>user\n第三<|endoftext|><|bos|>assistant\n<|endoftext|>"),
]


@pytest.fixture
def tokenizer():
    own = copy.deepcopy(tiny_tokenizer())
    own.chat_template = TEMPLATE
    return own


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def found(corpus):
    return [(document.id, document.text) for document in corpus.documents()]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "loaded", "streamed", "copied"])
def test_every_source_gives_the_text_that_the_template_writes(tmp_path, tokenizer, kind):
    import datasets

    rows = [{"messages": chat, "n": i} for i, chat in enumerate(CHATS)]
    source = jsonl(tmp_path / "a.jsonl", rows)
    table = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        table.to_parquet(source := tmp_path / "a.parquet")
    elif kind in ("loaded", "streamed"):
        source = table if kind == "loaded" else table.to_iterable_dataset()
    corpus = from_chats(source, tokenizer, label_columns=["n"], streaming=kind != "copied")
    assert found(corpus) == found(corpus) == RENDERED
    assert [document.labels for document in corpus.documents()] == [{"n": 0}, {"n": 2}]
    assert corpus.special_tokens
    assert all(document.special_tokens for document in corpus.documents())


def test_the_ids_of_the_text_are_those_that_the_template_gives_directly(tmp_path, tokenizer):
    corpus = from_chats(jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS]), tokenizer)
    for document in corpus.documents():
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.apply_chat_template(CHATS[document.id], return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == len(CHATS[document.id])


def test_a_model_tokenises_a_conversation_as_its_template_and_a_text_as_text(tmp_path, tokenizer):
    model = LanguageModel.load(tiny_hf_model(n_layers=1), tokenizer=tokenizer)
    chats = from_chats(jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS]), tokenizer)
    texts = from_texts([text for _, text in RENDERED])
    ids = [list(ids) for _, ids in token_lists(mixture([chats, texts], seed=1).documents(), model.tokenize)]
    expected = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS if chat]
    spelled = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for _, text in RENDERED]
    assert sorted(ids) == sorted(expected + spelled)
    assert expected != spelled


def test_keys_and_roles_of_other_forms_are_renamed(tmp_path, tokenizer):
    chats = [[{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Good day — to you."}]]
    file = jsonl(tmp_path / "a.jsonl", [{"conversations": chat} for chat in chats])
    names = {"role_key": "from", "content_key": "value", "roles": {"human": "user", "gpt": "assistant"}}
    assert found(from_chats(file, tokenizer, messages_column="conversations", **names)) == RENDERED[:1]


def test_keys_that_a_table_filled_in_with_nothing_do_not_reach_the_template(tokenizer):
    import datasets

    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% if m.name is defined %}({{ m.name }}){% endif %}{% endfor %}"
    first, second = {"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "b"}
    table = datasets.Dataset.from_list([{"messages": [first, second]}])
    assert table[0]["messages"][1]["name"] is None
    assert found(from_chats(table, tokenizer)) == [(0, "a(Ann)b")]


def test_a_struct_of_lists_is_a_list_of_messages(tokenizer):
    import datasets

    table = datasets.Dataset.from_dict(
        {"messages": [{key: [message[key] for message in chat] for key in ("role", "content")} for chat in CHATS]}
    )
    assert found(from_chats(table, tokenizer)) == RENDERED


def test_the_digest_covers_template_options_special_tokens_and_renaming(tmp_path, tokenizer):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|bos|>"
    ended = from_chats(file, tokenizer, template_options={"ending": "!"})
    assert found(ended) == [(i, text + "!") for i, text in RENDERED]
    digests = [
        from_chats(file, tokenizer).digest,
        from_chats(file, tokenizer, template=TEMPLATE + " ").digest,
        from_chats(file, tokenizer, roles={"user": "system"}).digest,
        from_chats(file, other).digest,
        ended.digest,
    ]
    assert len(set(digests)) == 5
    assert from_chats(file, copy.deepcopy(tokenizer)).digest == digests[0]
    assert from_chats(file, tokenizer, template=TEMPLATE).digest == digests[0]


def test_a_mixture_of_chats_and_texts_says_of_each_document_whether_its_tags_are_tokens(tmp_path, tokenizer):
    chats = from_chats(jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS]), tokenizer)
    mixed = shuffled(mixture([chats, from_texts(["plain <|bos|> text", "more"])]), seed=0)
    assert mixed.special_tokens
    assert {document.labels["corpus"]: document.special_tokens for document in mixed.documents()} == {"a.jsonl": True, "texts": False}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "Hello"}, r"messages_column must hold lists of messages, 'messages' of line 2 of .*a\.jsonl is a str"),
        ({"messages": ["Hello"]}, r"message 0 in 'messages' of line 2 of .* must have a role and a content, it is the str 'Hello'"),
        ({"messages": [{"from": "human", "value": "x"}]}, r"message 0 in 'messages' of line 2 .* under 'role', its keys are from, value; say with role_key"),
        ({"messages": [{"role": "user"}]}, r"message 0 .* of line 2 of .* must have a string under 'content', got none; leave the row out"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"must have a string under 'content', got a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"template does not take the conversation of line 2 of .*a\.jsonl, with roles tool: no role tool; "),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, r"'messages' of line 2 of .* has the lone surrogate .*encoding_errors='replace'"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_named_with_what_to_do(tmp_path, tokenizer, row, message):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": CHATS[0]}, row])
    with pytest.raises(FormatError, match=message):
        found(from_chats(file, tokenizer))


def test_a_lone_surrogate_in_a_message_is_replaced_when_asked(tmp_path, tokenizer):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "a\ud83d"}]}])
    assert found(from_chats(file, tokenizer, encoding_errors="replace")) == [(0, "<|bos|>user\na\ufffd<|endoftext|>")]


def test_a_template_that_asks_for_the_date_must_be_given_it(tmp_path, tokenizer):
    tokenizer.chat_template = (
        "{% if not day is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}{{ day }}: {{ messages[0].content }}"
    )
    file = jsonl(tmp_path / "a.jsonl", [{"messages": CHATS[0]}])
    with pytest.raises(ConfigError, match=r"the chat template asks for today's date, .* template_options=\{'date_string': '26 Jul 2024'\}"):
        found(from_chats(file, tokenizer))
    assert found(from_chats(file, tokenizer, template_options={"day": "1 May"})) == [(0, "1 May: Hello?")]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {}, r"the tokenizer has no chat template to use; give template= the text of one, or use the tokenizer of a chat model"),
        ({"a": TEMPLATE, "b": TEMPLATE}, {}, r"the tokenizer has no chat template to use; give template= one of a, b"),
        ({"a": TEMPLATE, "b": TEMPLATE}, {"template": "c"}, r"template must be .* one the tokenizer has \(\['a', 'b'\]\), got 'c'"),
        (TEMPLATE, {"template_options": {"tokenize": True}}, r"template_options must not have 'tokenize'"),
        (TEMPLATE, {"template_options": {"clock": object()}}, r"a object has no JSON form"),
        (TEMPLATE, {"messages_column": "chat"}, r"has no column 'chat'; its columns are messages"),
        (TEMPLATE, {"max_documents": -1}, r"max_documents must be at least 1, got -1"),
    ],
)
def test_bad_arguments_are_named(tmp_path, tokenizer, change, options, message):
    tokenizer.chat_template = change
    with pytest.raises(ConfigError, match=message):
        found(from_chats(jsonl(tmp_path / "a.jsonl", [{"messages": CHATS[0]}]), tokenizer, **options))


def test_a_template_is_taken_by_its_name_and_a_model_is_no_tokenizer(tmp_path, tokenizer):
    file = jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in CHATS])
    tokenizer.chat_template = {"default": "{{ 'other' }}", "short": TEMPLATE}
    assert found(from_chats(file, tokenizer, template="short")) == RENDERED
    with pytest.raises(ConfigError, match=r"tokenizer must be a Hugging Face tokenizer \(model.tokenizer\), got a str"):
        from_chats(file, "SmolLM2")


@pytest.mark.real_model
def test_the_default_model_reads_conversations_as_its_own_template_gives_them(tmp_path):
    from transformers import AutoTokenizer

    import sae

    tokenizer = AutoTokenizer.from_pretrained(sae.default_model())
    chats = [CHATS[0], CHATS[2]]
    corpus = from_chats(jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats]), tokenizer)
    for document in corpus.documents():
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.apply_chat_template(chats[document.id], return_dict=False)
        assert document.text.endswith("<|im_end|>\n")
        assert tokenizer.convert_tokens_to_ids("<|im_start|>") in ids
