import re

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from probes.tasks import answered, arithmetic_answers, arithmetic_questions, noun_questions
from probes.tasks.answers import Question, greedy
from sae.errors import ConfigError


class Clerk:
    """Answers sums in letters of the tokenizer, rightly when the first number is even; says how long its texts were."""

    name = "clerk"
    tokenizer = tiny_tokenizer()
    separator_id = 0

    def __init__(self, reply=lambda a, b: f" {a + b + a % 2}\nQ: next"):
        self.reply, self.lengths, self.rows = reply, [], 0

    def tokenize(self, texts):
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def run(self, tokens):
        assert (tokens[:, 0] == 0).all()
        self.lengths.append(tokens.shape[1])
        self.rows += len(tokens)
        logits = torch.zeros(*tokens.shape, len(self.tokenizer))
        for i, row in enumerate(tokens):
            text = self.tokenizer.decode(row[1:].tolist(), clean_up_tokenization_spaces=False)
            line, done = text.rsplit("=", 1)
            a, b = map(int, re.findall(r"\d+", line.rsplit("\n", 1)[-1]))
            left = self.tokenizer(self.reply(a, b)[len(done) :], add_special_tokens=False)["input_ids"]
            logits[i, -1, left[0] if left else 5] = 1.0
        return logits


def test_answers_are_labelled_by_string_match_and_located():
    task = answered(Clerk(), arithmetic_questions(largest=9, n=60), n_tokens=8, source="sums")
    assert (task.kind, task.classes, task.source) == ("token", ("right", "wrong"), "sums, answered by clerk")
    assert len(task) == 60
    for row, label in enumerate(task.y):
        text, begin, end = task.spans[row]
        assert task.texts[text].count("\n") == 2  # the solved lines, and nothing after the answer's line
        assert task.texts[text][:begin].endswith("= ")
        assert end == len(task.texts[text])
        a, b = map(int, re.findall(r"\d+", task.texts[text].splitlines()[-1])[:2])
        assert label == int(int(task.row_text(row)) != a + b) == a % 2


def test_groups_are_questions_and_a_sum_is_one_with_its_mirror():
    questions = arithmetic_questions(largest=6, n=1000, n_examples=0)
    assert len({question.prompt for question in questions}) == 36
    assert len({question.group for question in questions}) == 21
    by_group = {}
    for question in questions:
        by_group.setdefault(question.group, []).append(question)
    for group, found in by_group.items():
        assert len({question.accepted for question in found}) == 1
        assert len(found) == (1 if len(set(group.split(" + "))) == 1 else 2)
    task = answered(Clerk(), questions, n_tokens=8, min_per_class=5)
    assert len(np.unique(task.groups)) == 21


@pytest.mark.parametrize("operation", ["+", "-", "*"])
def test_accepted_answers_are_right_and_solved_lines_are_not_asked(operation):
    questions = arithmetic_questions(operation, largest=20, n=1000, seed=2)
    asked = [question.prompt.splitlines()[-1] for question in questions]
    solved = questions[0].prompt.splitlines()[:2]
    for line in solved:
        left, right = line.split(" = ")
        assert eval(left) == int(right)
        assert f"{left} =" not in asked
    for question, line in zip(questions, asked, strict=True):
        assert question.accepted == (str(eval(line.removesuffix("="))),)
    assert operation != "-" or all(int(question.accepted[0]) > 0 for question in questions)
    assert arithmetic_questions(operation, n=50, seed=2) == arithmetic_questions(operation, n=50, seed=2)
    assert arithmetic_questions(operation, n=50, seed=2) != arithmetic_questions(operation, n=50, seed=3)


def test_question_without_an_answer_has_no_row():
    model = Clerk(lambda a, b: f" {a + b + a % 2}\n" if b > 2 else " who knows\n")
    task = answered(model, arithmetic_questions(largest=9, n=1000), n_tokens=10)
    assert len(task) == 9 * 7 - 1  # 7 + 5 is solved
    assert all(int(re.findall(r"\d+", task.texts[t].splitlines()[-1])[1]) > 2 for t in task.spans[:, 0])


def test_batches_end_when_all_lines_have_and_their_size_does_not_matter():
    prompts = [question.prompt for question in arithmetic_questions(largest=12, n=40)]
    whole, single = Clerk(), Clerk()
    assert greedy(whole, prompts, n_tokens=8, batch_rows=32) == greedy(single, prompts, n_tokens=8, batch_rows=1)
    assert not any("\n" in line for line in greedy(Clerk(), prompts, n_tokens=8))
    assert single.rows <= 40 * 6
    lengths = {len(ids) for ids in whole.tokenize(prompts)}
    assert min(whole.lengths) == min(lengths) + 1


def test_right_and_wrong_must_both_occur():
    with pytest.raises(ConfigError, match=r"at least 20 rows of each class, got 60 of 'right' and 0 of 'wrong'"):
        arithmetic_answers(Clerk(lambda a, b: f" {a + b}\n"), n=60)


def test_nouns_are_asked_once_each_and_what_wordnet_says_is_accepted():
    questions = noun_questions(("animal", "vehicle"), n=100, seed=1)
    assert len({question.group for question in questions}) == 100
    for question in questions:
        assert {"animal", "vehicle"} & set(question.accepted)
        assert question.prompt.endswith(f" {question.group} is a kind of")
        assert question.group not in question.accepted


def test_case_of_an_answer_does_not_matter():
    model = Clerk(lambda a, b: (" Yes\n", " NO\n")[a % 2])
    questions = [Question(f"is {a} even, {b}? =", ("yes",), f"{a} {b}") for a in range(10) for b in range(5)]
    task = answered(model, questions, pattern=r"(?i)\b(yes|no)\b", n_tokens=8)
    assert task.counts == {"right": 25, "wrong": 25}
    assert {task.row_text(i) for i in range(50)} == {"Yes", "NO"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: arithmetic_questions("/"), ["operation must be one of +, -, *", "'/'"]),
        (lambda: arithmetic_questions(n_examples=3), ["n_examples 0..2", "n_examples=3"]),
        (lambda: answered(Clerk(), []), ["questions must hold at least one"]),
        (lambda: greedy(Clerk(), ["1 + 1 =", " "], n_tokens=2), ["prompts[1]", "must not be blank"]),
        (lambda: noun_questions(("vehicle",), n=10_000), ["n must be in 1..", "words of vehicle", "10000"]),
    ],
)
def test_bad_question_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
