"""The default model's own tokenizer, vocabulary and answers."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from probes.features import ArraySource, RowConfig, from_model
from probes.features.location import locate
from probes.sparse import KSparseProbe
from probes.tasks import Task, arithmetic_answers, token_kinds, vocabulary_problem
from probes.tasks.offsets import token_offsets, token_strings
from sae.errors import ConfigError
from sae.models.assets import default_model
from sae.storage import map_tensors

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(default_model())


WORDS = [
    "dog",
    " naïve",
    " café",
    " 日本語",
    " 🙂",
    "👩‍👩‍👧",
    " 17",
    "+",
    " =",
    "\n",
    " Ωμέγα",
    "…",
    " don’t",
    "\t",
    " x_1",
    '("a",)',
    " 한국",
]


def test_spans_take_the_tokens_with_their_bytes(tokenizer):
    """Against lengths in bytes: a piece of this byte-level vocabulary has one character per byte."""
    rng, texts, spans = np.random.default_rng(0), [], []
    for i in range(200):
        words = ["Text", *rng.choice(WORDS, rng.integers(1, 12))]
        text = "".join(words)
        begin = int(rng.integers(0, len(text)))
        spans.append((i, begin, int(rng.integers(begin + 1, len(text) + 1))))
        texts.append(text)
    task = Task("t", "token", tuple(texts), np.arange(200) % 2, np.arange(200), ("a", "b"), "here", "none", spans=np.array(spans))
    located = locate([task], tokenizer, RowConfig(token_pooling="mean"))
    number = {text: i for i, text in enumerate(located.texts)}
    for row, (i, begin, end) in enumerate(spans):
        text = texts[i]
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        ends = np.cumsum([len(piece) for piece in pieces])
        assert ends[-1] == len(text.encode())
        first, last = len(text[:begin].encode()), len(text[:end].encode())
        own = np.flatnonzero((ends > first) & (ends - [len(piece) for piece in pieces] < last))
        start = located.starts[number[text]]
        place = located.rows[0][row]
        found = np.arange(located.first[place], located.stop[place]) - start
        inside = [j for j in found if j in own]
        # a token with some bytes of a character counts as having that character, so a token more may be taken, never one less
        assert inside == own.tolist(), (text, begin, end)
        assert all(text[begin:end] and "\ufffd" in tokenizer.decode([tokenizer(text)["input_ids"][j]]) for j in found if j not in own)
        last_row = locate([task], tokenizer, RowConfig())
        assert last_row.first[last_row.rows[0][row]] - last_row.starts[number[text]] == found[-1]


def test_last_token_of_a_python_token_ends_with_it(tokenizer):
    task = token_kinds(n_excerpts=60, seed=1)
    located, strings = locate([task], tokenizer, RowConfig()), token_strings(tokenizer)
    number = {text: i for i, text in enumerate(located.texts)}
    n_exact = 0
    for row in np.random.default_rng(0).choice(len(task), 1500, replace=False):
        text = number[task.texts[task.spans[row, 0]]]
        token = located.first[located.rows[0][row]] - located.starts[text]
        written, own = strings[located.tokens[text].ids[token]], task.row_text(row)
        if "\ufffd" in written:
            continue
        assert own[-1] in written
        n_exact += written.strip().endswith(own[-1]) and (own.endswith(written.strip()) or written.strip().endswith(own))
    assert n_exact > 0.8 * 1500  # the others share a token with a neighbour: "):" or '",'


def test_offsets_agree_with_the_model_s_own_tokens(tokenizer):
    texts = ["".join(WORDS), "plain words, and <|endoftext|> spelled out"]
    for text, tokens in zip(texts, token_offsets(tokenizer, texts), strict=True):
        assert tokens.ids == tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
        assert tokenizer.decode(tokens.ids, clean_up_tokenization_spaces=False) == text
        assert tokens.offsets[-1][1] == len(text)


@pytest.fixture(scope="module")
def embedding(tokenizer):
    """The rows of the embedding as a source, and 12,000 tokens of it."""
    matrix = map_tensors(default_model() / "model.safetensors")["model.embed_tokens.weight"].float().numpy()
    return ArraySource({"embedding": matrix}, "the embedding"), np.random.default_rng(42).choice(len(matrix), 12_000, replace=False)


def test_leading_space_is_read_off_the_embedding_as_well_as_the_reference_says(embedding, tokenizer):
    """AUC .966 .992 .996 .998 1.0 and F1 .929 .978 .985 .985 .997 at k = 1, 4, 16, 64, 576, on other random tokens: within .02 and .03."""
    source, tokens = embedding
    problem = vocabulary_problem(token_strings(tokenizer), "has_leading_space", tokens=tokens)
    X = source.read("embedding")[problem.rows]
    train = np.arange(len(problem)) < 0.7 * len(problem)
    X = X / X[train].std(axis=0)
    expected = {1: (0.966, 0.929), 4: (0.992, 0.978), 16: (0.996, 0.985), 64: (0.998, 0.985), 576: (1.0, 0.997)}
    for k, (auc, f1) in expected.items():
        probe = KSparseProbe(k=k, ranking="mean_difference").fit(X[train], problem.y[train])
        assert roc_auc_score(problem.y[~train], probe.decision_function(X[~train])) == pytest.approx(auc, abs=0.02)
        assert f1_score(problem.y[~train], probe.predict(X[~train])) == pytest.approx(f1, abs=0.03)


def test_a_digit_is_a_token_of_its_own_so_too_few_have_one(embedding, tokenizer):
    strings, (_, tokens) = token_strings(tokenizer), embedding
    with pytest.raises(ConfigError, match=r"at least 20 tokens of each class, got 11,?\d+ of 'no' and \d of 'yes'.*contains_digit"):
        vocabulary_problem(strings, "contains_digit", tokens=tokens)


@pytest.mark.slow
def test_sums_are_answered_rightly_and_wrongly_and_the_answer_is_located(tmp_path):
    from sae.models.language_model import LanguageModel

    model = LanguageModel.load(default_model())
    task = arithmetic_answers(model, n=72)
    assert len(task) > 65
    assert min(task.counts.values()) >= 20
    for row, label in enumerate(task.y):
        line = task.texts[task.spans[row, 0]].splitlines()[-1]
        left = line.split("=")[0]
        assert (eval(left) != int(task.row_text(row))) == bool(label)
    data = from_model(model, [task], ["blocks.15.hook_resid_post"])
    assert data.lost[0].n_kept == len(data.problems[0]) > 60
