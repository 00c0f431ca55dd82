"""Words with the letters that they begin with: the concepts of the first-letter task, and how well the activations know them.

    words: tokens of the vocabulary that are a space and lower-case letters, up to n of each letter; read at the word in "{word} has the first letter:"
    probe of letter l:  logistic regression on the activations of the training words;      the probe is right about a word of l:  logit > 0
    F1_l = 2 TP / (2 TP + FP + FN) on the test words

Chanin et al. 2024, arXiv 2409.14507; Karvonen et al. 2025, arXiv 2503.09532. A letter counts where F1_l > 0.6, and the task where 20 letters do: small
models do not know how their tokens are spelled. Departures: probes are run to convergence on z-scored activations, words are drawn evenly over the letters,
and the prompt shows no examples: a causal model sees none of it at the word but what stands before it.
"""

import re
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.base import fit_logistic
from sae.errors import ConfigError
from sae.evaluation.batteries import Inputs
from sae.evaluation.batteries.inputs import verified
from sae.models.language_model import LanguageModel
from sae.models.sites import Site
from sae.storage import Key, load_tensors, read_json, save_tensors, write_json

LETTERS = string.ascii_lowercase
LEAST_F1 = 0.6
"""F1 of a letter's probe above which the letter counts."""
LEAST_LETTERS = 20
"""Letters that must count for the task to say something."""
LEAST_WORDS = 10
"""Words that a letter must have."""
WORD = re.compile(" [a-z]{2,}")
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Which words are read, and how."""

    n_per_letter: int = 200
    """Words of each letter at most (words)."""
    test_share: float = 0.3
    """Share of each letter's words that probes are tested on."""
    template: str = "{word} has the first letter:"
    """The prompt; `{word}` stands for the word with a space before it."""
    C: float = 1.0
    """Inverse strength of the probes' L2 penalty on z-scored activations."""

    def __post_init__(self) -> None:
        if self.template.count("{word}") != 1:
            raise ConfigError(f"template must hold {{word}} once, got {self.template!r} (WordsConfig)")
        if self.n_per_letter < LEAST_WORDS or not 0 < self.test_share < 1 or not self.C > 0:
            given = f"n_per_letter={self.n_per_letter}, test_share={self.test_share}, C={self.C}"
            raise ConfigError(
                f"n_per_letter must be at least {LEAST_WORDS}, test_share inside (0, 1), C positive, got {given} (WordsConfig)"
            )


@dataclass(frozen=True, eq=False)
class Words:
    """Words with their activations, and a probe for each letter."""

    words: tuple[str, ...]
    """The words."""
    letter: Int[np.ndarray, " n"]
    """First letter of each: 0 for a, ..., 25 for z."""
    is_train: Bool[np.ndarray, " n"]
    """Which words probes are fitted to; the others test them."""
    acts: Float[Tensor, "n d_in"]
    """Activation of each word."""
    probes: Float[Tensor, "26 d_in"]
    """Direction of each letter's probe, in the units of the activations; 0 for a letter with too few words."""
    intercepts: Float[Tensor, "26"]
    """Logit of each probe at 0."""
    f1: Float[np.ndarray, "26"]
    """F1 of each probe on the test words; nan for a letter with too few words."""

    @property
    def letters(self) -> list[int]:
        """The letters that there are words enough of."""
        return [int(number) for number in np.flatnonzero(~np.isnan(self.f1))]

    @property
    def counted(self) -> list[int]:
        """The letters that the activations know: those with F1 above 0.6."""
        return [number for number in self.letters if self.f1[number] > LEAST_F1]

    def known(self, letter: int) -> Int[np.ndarray, " n_known"]:
        """Test words of the letter about which its probe is right."""
        rows = np.flatnonzero((self.letter == letter) & ~self.is_train)
        logits = self.acts[torch.from_numpy(rows)].double() @ self.probes[letter].double() + self.intercepts[letter].double()
        return rows[logits.numpy() > 0]

    def validity(self) -> str:
        """What the number of letters that count says about the task, in a sentence."""
        n = len(self.counted)
        rule = f"{n} of {len(self.letters)} letters have a probe with F1 above {LEAST_F1}"
        if n >= LEAST_LETTERS:
            return f"{rule}, {LEAST_LETTERS} are asked for: the task is valid here. SAEBench recommends models of 2 billion parameters and more."
        return (
            f"{rule}, and {LEAST_LETTERS} are asked for: the task is NOT valid for this model at this site. It knows too little of how its tokens are "
            "spelled (SAEBench recommends models of 2 billion parameters and more); the values are shown, and should not be compared."
        )


def f1_score(predicted: Bool[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where there is none of these."""
    found = float((predicted & truth).sum())
    total = float(predicted.sum() + truth.sum())
    return 2 * found / total if total else 0.0


def split_words(letter: Int[np.ndarray, " n"], *, test_share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which words are for training: of each letter the same share, at least one word on either side."""
    generator, is_train = np.random.default_rng(seed), np.ones(len(letter), dtype=bool)
    for number in np.unique(letter):
        rows = generator.permutation(np.flatnonzero(letter == number))
        is_train[rows[: min(max(round(test_share * len(rows)), 1), len(rows) - 1)]] = False
    return is_train


def probed_words(words: tuple[str, ...], acts: Float[Tensor, "n d_in"], *, config: WordsConfig, seed: int) -> Words:
    """The words with a probe for each letter that at least 10 of them begin with.

    Raises ConfigError for words that do not begin with a letter a to z, and where fewer than two letters have words enough.
    """
    wrong = next((word for word in words if word.strip()[:1] not in LETTERS or not word.strip()), None)
    if wrong is not None:
        raise ConfigError(f"words must begin with a letter a to z, got {wrong!r} (probed_words)")
    letter = np.array([LETTERS.index(word.strip()[0]) for word in words], dtype=np.int64)
    is_train = split_words(letter, test_share=config.test_share, seed=seed)
    counts = np.bincount(letter, minlength=len(LETTERS))
    if (counts >= LEAST_WORDS).sum() < 2:
        raise ConfigError(
            f"words must hold two letters or more with {LEAST_WORDS} words each, got {int((counts >= LEAST_WORDS).sum())} (probed_words)"
        )
    X = acts.float().numpy()
    probes, intercepts = np.zeros((len(LETTERS), X.shape[1])), np.zeros(len(LETTERS))
    f1, weight = np.full(len(LETTERS), np.nan), np.ones(int(is_train.sum()))
    for number in np.flatnonzero(counts >= LEAST_WORDS):
        y = letter == number
        fit = fit_logistic(X[is_train], y[is_train].astype(np.int64), weight, C=config.C, class_weight=None)
        probes[number], intercepts[number] = fit.coef, fit.intercept
        f1[number] = f1_score(X[~is_train] @ fit.coef + fit.intercept > 0, y[~is_train])
    return Words(words, letter, is_train, acts, torch.from_numpy(probes).float(), torch.from_numpy(intercepts).float(), f1)


def vocabulary_words(vocabulary: list[str], *, n_per_letter: int, seed: int) -> Int[np.ndarray, " n"]:
    """Tokens that are a space and two lower-case letters a to z or more, at most `n_per_letter` of each first letter, drawn by `seed`; ascending."""
    able = np.array([number for number, text in enumerate(vocabulary) if WORD.fullmatch(text)], dtype=np.int64)
    drawn = np.random.default_rng(seed).permutation(able)
    first = np.array([vocabulary[number][1] for number in drawn])
    kept = [drawn[first == letter][:n_per_letter] for letter in LETTERS]
    return np.sort(np.concatenate(kept))


def word_activations(model: LanguageModel, site: Site, tokens: Int[np.ndarray, " n"], *, template: str) -> Float[Tensor, "n width"]:
    """Activations at the word in the template, after the token that opens a document. What stands behind the word is not seen, and left out."""
    before = model.tokenize([template.partition("{word}")[0].rstrip(" ")])[0]
    opening = [model.separator_id, *before]
    parts = []
    for start in range(0, len(tokens), BATCH):
        rows = torch.tensor([[*opening, int(token)] for token in tokens[start : start + BATCH]])
        parts.append(model.capture(rows, [site])[site][:, -1].float().cpu())
    acts = torch.cat(parts)
    if not bool(torch.isfinite(acts).all()):
        raise ConfigError(f"activations at {site.name} must be finite, a word gives NaN or Inf (word_activations)")
    return acts


def read_words(inputs: Inputs, site: Site, config: WordsConfig) -> Words:
    """The words of the model's vocabulary with activations and probes, from the result cache or computed: once for a model and a site.

    Raises ConfigError for a vocabulary without words enough.
    """
    model = inputs.language_model

    def fill(folder: Path) -> None:
        vocabulary = model.vocabulary()
        tokens = vocabulary_words(vocabulary, n_per_letter=config.n_per_letter, seed=inputs.seed)
        texts = tuple(vocabulary[number] for number in tokens.tolist())
        acts = word_activations(model, site, tokens, template=config.template) if len(tokens) else torch.zeros(0, site.width)
        made = probed_words(texts, acts, config=config, seed=inputs.seed)
        tensors = {"acts": acts, "probes": made.probes, "intercepts": made.intercepts, "f1": torch.from_numpy(made.f1)}
        save_tensors(folder / "words.safetensors", {**tensors, "is_train": torch.from_numpy(made.is_train)})
        write_json(folder / "words.json", list(texts))

    options = {"config": vars(config), "site": site.name, "seed": inputs.seed, "dtype": str(model.dtype)}
    path = verified(inputs.cache, Key("evaluation.words", 1, options, {"model": model.digest}), fill)
    kept, words = load_tensors(path / "words.safetensors"), tuple(read_json(path / "words.json"))
    letter = np.array([LETTERS.index(word.strip()[0]) for word in words], dtype=np.int64)
    is_train = kept["is_train"].numpy().astype(bool)
    return Words(words, letter, is_train, kept["acts"], kept["probes"], kept["intercepts"], kept["f1"].numpy())
