"""Questions that a language model answers rightly or wrongly: is that known inside, at the tokens of the answer?

    prompt --greedy--> continuation --pattern--> answer --string match--> right or wrong         row: the characters of the answer

Label 1 is a wrong answer, as in Orgad et al., "LLMs Know More Than They Show", 2024, arXiv 2410.02707: what is asked of a probe is to see an
error. Rows are the answers as the model wrote them, within the text of question and answer; groups are questions, so that no question is
on both sides of a split.
"""

import itertools
import logging
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.tasks.task import MIN_PER_CLASS, Task, numbered
from probes.tasks.wordnet import class_words, kinds_above
from sae.errors import ConfigError

logger = logging.getLogger(__name__)
CLASSES = ("right", "wrong")
NUMBER = r"-?\d+"
WORD = r"[a-z]+"
KINDS = "A hammer is a kind of tool.\nA violin is a kind of instrument.\n"
EXAMPLES = {"+": ("7 + 5 = 12", "20 + 14 = 34"), "-": ("12 - 5 = 7", "34 - 14 = 20"), "*": ("3 * 4 = 12", "7 * 5 = 35")}
"""Solved lines that stand before a question, so that the model answers with a number."""


class Question(NamedTuple):
    """A question with its right answers."""

    prompt: str
    """The text that the model goes on with."""
    accepted: tuple[str, ...]
    """Right answers; upper and lower case count as the same."""
    group: str
    """What splits keep together."""


@runtime_checkable
class Answering(Protocol):
    """What is needed of a language model; `LanguageModel` has it."""

    tokenizer: Any
    name: str

    @property
    def separator_id(self) -> int:
        """Token that opens a document."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def run(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context d_vocab"]:
        """Logits."""
        ...


def arithmetic_questions(operation: str = "+", *, largest: int = 20, n: int = 400, n_examples: int = 2, seed: int = 0) -> list[Question]:
    """`n` different sums (or differences, "-", or products, "*") of two numbers from 1 to `largest`, or all there are, drawn by `seed`.

    After `n_examples` solved lines, which are asked of nobody. a + b and b + a are one group. Raises ConfigError for another operation.
    """
    if operation not in EXAMPLES:
        raise ConfigError(f"operation must be one of {', '.join(EXAMPLES)}, got {operation!r} (arithmetic_questions)")
    if largest < 2 or n < 1 or not 0 <= n_examples <= len(EXAMPLES[operation]):
        given = f"largest={largest}, n={n}, n_examples={n_examples}"
        raise ConfigError(f"largest must be at least 2, n at least 1, n_examples 0..2, got {given} (arithmetic_questions)")
    shown = EXAMPLES[operation][:n_examples]
    pairs = [(a, b) for a, b in itertools.product(range(1, largest + 1), repeat=2) if operation != "-" or a > b]
    pairs = [(a, b) for a, b in pairs if not any(line.startswith(f"{a} {operation} {b} =") for line in shown)]
    order = np.random.default_rng(seed).permutation(len(pairs))[:n]
    results = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    before = "".join(f"{line}\n" for line in shown)
    found = []
    for a, b in (pairs[i] for i in order):
        group = f"{a} {operation} {b}" if operation == "-" else f"{min(a, b)} {operation} {max(a, b)}"
        found.append(Question(f"{before}{a} {operation} {b} =", (str(results[operation](a, b)),), group))
    return found


def noun_questions(
    classes: Sequence[str] = ("animal", "plant", "food", "vehicle", "clothing"),
    *,
    n: int = 200,
    seed: int = 0,
    among: Collection[str] | None = None,
) -> list[Question]:
    """`n` questions what a noun names a kind of, drawn by `seed` from the words of `classes` (those of `among`, where that is given).

    Accepted is whatever WordNet says that it is a kind of, in any sense and however general, as one word: a robin is a bird, and an animal.
    What WordNet does not say counts as wrong, though people may: a dress is clothing there, but no garment.
    Raises ConfigError for a class there is not, and when there are fewer words.
    """
    found = class_words(tuple(classes))
    words = sorted(word for name in classes for word in found[name] if among is None or word in among)
    if not 1 <= n <= len(words):
        raise ConfigError(f"n must be in 1..{len(words)}, the number of words of {', '.join(classes)}, got {n} (noun_questions)")
    chosen = [words[i] for i in np.random.default_rng(seed).permutation(len(words))[:n]]
    return [Question(f"{KINDS}{'An' if word[0] in 'aeiou' else 'A'} {word} is a kind of", kinds_above(word), word) for word in chosen]


def answered(
    model: Answering,
    questions: Sequence[Question],
    *,
    name: str = "answers",
    pattern: str = NUMBER,
    n_tokens: int = 6,
    batch_rows: int = 32,
    source: str = "questions given",
    licence: str = "not stated",
    min_per_class: int = MIN_PER_CLASS,
) -> Task:
    """The task of kind "token" whose rows are the answers that `model` gives, and whose labels say which are wrong (1).

    The answer is the first match of `pattern` in the greedy continuation of `n_tokens` tokens, up to the end of its line; a question without
    one has no row, and their number is logged. Raises ConfigError for no question, and, with the counts, when too few answers are right,
    or wrong.
    """
    if not questions or n_tokens < 1:
        raise ConfigError(f"questions must hold at least one and n_tokens be at least 1, got {len(questions)} and {n_tokens} (answered)")
    continuations = greedy(model, [question.prompt for question in questions], n_tokens=n_tokens, batch_rows=batch_rows)
    texts, spans, y, groups = [], [], [], []
    for question, continuation in zip(questions, continuations, strict=True):
        match = re.search(pattern, continuation)
        if match is None:
            continue
        spans.append((len(texts), len(question.prompt) + match.start(), len(question.prompt) + match.end()))
        texts.append(question.prompt + continuation)
        y.append(int(match.group().casefold() not in {answer.casefold() for answer in question.accepted}))
        groups.append(question.group)
    if len(texts) < len(questions):
        logger.info("%s: %d of %d questions have no answer that matches %r", name, len(questions) - len(texts), len(questions), pattern)
    return Task(
        name,
        "token",
        tuple(texts),
        np.array(y, dtype=np.int64),
        numbered(groups),
        CLASSES,
        f"{source}, answered by {model.name}",
        licence,
        spans=np.array(spans, dtype=np.int64).reshape(-1, 3),
        min_per_class=min_per_class,
    )


def _line_end(text: str) -> int:
    """Where the first line that is not blank ends; the end of a text that is blank."""
    start = len(text) - len(text.lstrip())
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def arithmetic_answers(
    model: Answering, *, operation: str = "+", largest: int = 20, n: int = 400, seed: int = 0, batch_rows: int = 32
) -> Task:
    """Whether the model's answer to a small sum is wrong: `answered` on `arithmetic_questions`. Raises ConfigError as these do."""
    questions = arithmetic_questions(operation, largest=largest, n=n, seed=seed)
    options: dict[str, Any] = {"source": f"two numbers up to {largest}, {operation}", "licence": "the workbench's own questions"}
    return answered(model, questions, name="arithmetic_answers", batch_rows=batch_rows, **options)


def noun_answers(model: Answering, *, n: int = 200, seed: int = 0, batch_rows: int = 32, among: Collection[str] | None = None) -> Task:
    """Whether the model is wrong about what a noun names a kind of: `answered` on `noun_questions`. Raises ConfigError as these do."""
    options: dict[str, Any] = {"source": "nouns of WordNet 3.0", "licence": "WordNet 3.0 licence (words)", "pattern": WORD}
    return answered(model, noun_questions(n=n, seed=seed, among=among), name="noun_answers", batch_rows=batch_rows, **options)


def greedy(model: Answering, prompts: Sequence[str], *, n_tokens: int, batch_rows: int = 32) -> list[str]:
    """What the model goes on with: the likeliest token each time, at most `n_tokens` times, up to the end of its line.

    The separator opens every prompt. Prompts of equal length run together, so nothing is padded; every step is a pass over the whole text, and
    a batch ends early when every text in it has ended its line. Raises ConfigError for a blank prompt.
    """
    lists = model.tokenize(prompts)
    blank = next((i for i, prompt in enumerate(prompts) if not prompt.strip()), None)
    if blank is not None:
        raise ConfigError(f"prompts must not be blank, prompts[{blank}] is {prompts[blank]!r} (greedy)")
    found = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(lists[i]))
    for _, same in itertools.groupby(order, key=lambda i: len(lists[i])):
        rows = list(same)
        for start in range(0, len(rows), batch_rows):
            batch = rows[start : start + batch_rows]
            tokens = torch.tensor([[model.separator_id, *lists[i]] for i in batch])
            n_prompt = tokens.shape[1]
            for _ in range(n_tokens):
                tokens = torch.cat([tokens, model.run(tokens)[:, -1].argmax(dim=1, keepdim=True).cpu()], dim=1)
                for i, row in zip(batch, tokens, strict=True):
                    found[i] = model.tokenizer.decode(row[n_prompt:].tolist(), clean_up_tokenization_spaces=False)
                if all("\n" in found[i].lstrip() for i in batch):
                    break
    return [continuation[: _line_end(continuation)] for continuation in found]
