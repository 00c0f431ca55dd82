"""Documents become token ids in order, in pieces when they are long, and the pieces' ids are those of the whole."""

import itertools
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TEXT, tiny_tokenizer

from sae.activations.corpus import Document, from_texts, state_of_the_union
from sae.activations.tokenisation import CHUNK_CHARACTERS, PIECE_CHARACTERS, pieces, token_lists
from sae.errors import ConfigError

FRAGMENTS = [
    *TEXT.split(),
    "naïve",
    "第三份",
    "文件。",
    "x_1",
    "don't",
    "3.14",
    "…",
    "\t",
    "\n",
    "\n\n",
    "  ",
    "   ",
    "-",
    "(",
    "e\u0301",
    "\x00",
    "🙂",
    "I'll",
]


def tokenize(texts, *, special_tokens=False):
    options = {"add_special_tokens": False, "split_special_tokens": not special_tokens, "return_attention_mask": False}
    return tiny_tokenizer()(list(texts), **options)["input_ids"]


def prose(n_characters, seed):
    """Words and odder things, most of them with a space between."""
    generator = random.Random(seed)
    return "".join(generator.choice(FRAGMENTS) + generator.choice(["", " ", " ", " ", " "]) for _ in range(n_characters // 4))


def whole(document):
    return (document.id, tokenize([document.text], special_tokens=document.special_tokens)[0])


def joined(pairs):
    """(id, ids) with the ids of consecutive pairs of one id laid end to end."""
    return [(number, [i for _, ids in group for i in ids]) for number, group in itertools.groupby(pairs, key=lambda pair: pair[0])]


def test_short_documents_come_one_pair_each_in_order_with_the_ids_of_each_alone():
    documents = [Document(3 * i, prose(n, i), {}) for i, n in enumerate([5, 300, 1, 20, 700, 4, 4, 4])]
    for chunk in (1, 30, 10_000):
        assert list(token_lists(documents, tokenize, chunk_characters=chunk)) == [whole(document) for document in documents]


def test_documents_are_tokenised_many_at_a_time_and_a_long_one_a_piece_at_a_time():
    calls = []

    def recorded(texts, *, special_tokens=False):
        calls.append([len(text) for text in texts])
        return tokenize(texts)

    documents = from_texts(["short text " * 100] * 200 + ["one long document " * 20_000] + ["short again "] * 3)
    pairs = token_lists(documents.documents(), recorded)
    first = next(pairs)
    assert first[0] == 0
    assert len(calls) == 1
    assert CHUNK_CHARACTERS <= sum(calls[0]) < 2 * CHUNK_CHARACTERS
    rest = list(pairs)
    assert [number for number, _ in itertools.chain([first], rest)] == [*range(200), *[200] * 4, 201, 202, 203]
    assert max(map(sum, calls)) <= PIECE_CHARACTERS
    assert joined([first, *rest])[200][1] == whole(Document(200, "one long document " * 20_000, {}))[1]


@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_any_length_give_the_ids_of_the_whole(seed):
    text = prose(4_000, seed)
    for n_characters in (60, 150, 777, 3_999):
        parts = list(pieces(text, tokenize, n_characters))
        assert "".join(parts) == text
        assert len(parts) > 1
        assert max(map(len, parts)) <= n_characters
        assert [i for part in parts for i in tokenize([part])[0]] == tokenize([text])[0]


def test_a_text_of_just_the_length_of_a_piece_is_one():
    text = prose(500, 1)
    assert list(pieces(text, tokenize, len(text))) == [text]
    assert len(list(pieces(text, tokenize, len(text) - 1))) == 2


@pytest.mark.parametrize(
    "text",
    ["文件第三份。" * 500, "line\n" * 600, "a1b2c3d4" * 400, " \n" * 1500, "www.example.org/" * 200, ". . ." * 600],
    ids=["chinese", "lines", "digits", "blank", "url", "dots"],
)
def test_texts_without_a_space_before_a_word_are_cut_elsewhere_and_give_the_ids_of_the_whole(text):
    parts = list(pieces(text, tokenize, 1_000))
    assert "".join(parts) == text
    assert [i for part in parts for i in tokenize([part])[0]] == tokenize([text])[0]


def test_a_text_with_no_place_to_cut_is_cut_at_full_length_with_all_its_characters(caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"x": 0, "xx": 1, "[UNK]": 2}, unk_token="[UNK]"))  # a text of letters is one token
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def one_token(texts, *, special_tokens=False):
        return [encoding.ids for encoding in words.encode_batch(list(texts))]

    text = "".join(random.Random(0).choices(string.ascii_letters, k=3_500))
    with caplog.at_level("INFO"):
        assert [len(part) for part in pieces(text, one_token, 1_000)] == [1_000, 1_000, 1_000, 500]
    assert "no place to cut in the 500 characters before character 1000" in caplog.text
    letters = "a" * 3_000_000
    pairs = list(token_lists([Document(0, letters, {})], tokenize))
    assert tiny_tokenizer().decode([i for _, ids in pairs for i in ids]) == letters


@pytest.mark.parametrize(("opening", "between"), [("before every text", " "), ("before a text without one", "")])
def test_a_tokenizer_that_adds_a_space_gets_pieces_that_make_up_for_it(opening, between):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    spaced = Tokenizer(models.BPE())
    if opening == "before every text":
        spaced.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        spaced.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    else:
        spaced.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    spaced.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(vocab_size=200, show_progress=False))

    def tokenize_spaced(texts, *, special_tokens=False):
        return [encoding.ids for encoding in spaced.encode_batch(list(texts), add_special_tokens=False)]

    text = " ".join(random.Random(0).choices(TEXT.split(), k=2_000))
    parts = list(pieces(text, tokenize_spaced, 700))
    assert between.join(parts) == text
    assert len(parts) > 10
    assert [i for part in parts for i in tokenize_spaced([part])[0]] == tokenize_spaced([text])[0]


def test_documents_say_whether_text_that_spells_a_special_token_is_that_token():
    text = "<|bos|>the nation<|endoftext|>"
    documents = [Document(0, text, {}), Document(1, text, {}, True), Document(2, text * 100, {}, True), Document(3, text, {})]
    pairs = joined(token_lists(documents, tokenize, piece_characters=500))
    assert pairs == [whole(document) for document in documents]
    bos = tiny_tokenizer().bos_token_id
    assert [ids.count(bos) for _, ids in pairs] == [0, 1, 100, 0]


def test_a_tokenizer_that_knows_no_special_tokens_is_enough_for_plain_documents():
    assert [number for number, _ in token_lists([Document(4, "a b", {})], lambda texts: tokenize(texts))] == [4]


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        ([Document(1, "a", {}), Document(1, "b", {})], {}, r"documents must have ids of their own, two that follow each other have 1"),
        ([], {"chunk_characters": 0}, r"chunk_characters must be at least 1 and piece_characters 2, got 0 and 100000"),
        ([], {"piece_characters": 1}, r"chunk_characters must be at least 1 and piece_characters 2, got 50000 and 1"),
    ],
)
def test_what_cannot_be_is_refused(documents, options, message):
    with pytest.raises(ConfigError, match=message):
        list(token_lists(documents, tokenize, **options))


@pytest.mark.real_model
def test_the_default_model_gives_a_document_of_millions_of_characters_the_ids_of_the_whole():
    from transformers import AutoTokenizer

    import sae

    tokenizer = AutoTokenizer.from_pretrained(sae.default_model())

    def tokenize_real(texts, *, special_tokens=False):
        return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    addresses = [document.text for document in itertools.islice(state_of_the_union().documents(), 0, 200, 8)]
    document = Document(0, "\n".join(addresses) + prose(300_000, 5) + json.dumps(addresses[:3]), {})
    pairs = list(token_lists([document], tokenize_real))
    assert len(pairs) > 10
    assert [i for _, ids in pairs for i in ids] == tokenize_real([document.text])[0]


PEAK = """
import random, resource, sys
sys.path.insert(0, sys.argv[1])
from tiny import tiny_tokenizer
from sae.activations.corpus import Document
from sae.activations.tokenisation import token_lists
tokenizer, generator = tiny_tokenizer(), random.Random(0)
words = ["".join(generator.choices("abcdefghij", k=1 + i % 9)) for i in range(2000)]
text = " ".join(" ".join(generator.choices(words, k=10_000)) for _ in range(int(sys.argv[2])))
options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
tokenize = lambda texts: tokenizer(texts, **options)["input_ids"]
for _ in token_lists([Document(0, text[:1_000_000], {})], tokenize):
    pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = sum(len(ids) for _, ids in token_lists([Document(0, text, {})], tokenize))
print(len(text), n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_document():
    folder = Path(__file__).parents[2]
    command = [sys.executable, "-c", PEAK, str(folder), "2000"]  # 100 MB of text
    printed = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True).stdout.split()
    n_characters, n_tokens, grown_kilobytes = map(int, printed)
    assert n_characters > 90_000_000
    assert n_tokens > n_characters / 4
    assert grown_kilobytes < 30_000
