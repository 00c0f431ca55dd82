"""ABSORPTION and SPLITTING on first letters: whether a latent for a letter is silent on words that another latent has taken over.

`sae.evaluation.absorption` has the two definitions, `probes.evaluation.words` the probes, `probes.evaluation.splits` the letters' own latents.
Per letter the mean over the test words of the letter about which its probe is right; the score is the mean over the letters that count.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.evaluation.codes import directions, site_of
from probes.evaluation.splits import LetterLatents, Splits, named, own_f1, read_splits
from probes.evaluation.words import LETTERS, Words, WordsConfig, read_words
from sae.dictionaries.codes import SparseCodes
from sae.errors import ConfigError
from sae.evaluation.absorption import full_absorption, probe_absorption
from sae.evaluation.batteries import Inputs, Measure, Number, Outcome, Quantity
from sae.evaluation.batteries.findings import of_null
from sae.evaluation.bootstrap import of_draws, resampled
from sae.evaluation.figures import Axis, Figure, Rule, Series
from sae.geometry.nulls import compare

SAEBENCH = "Karvonen et al. 2025, arXiv 2503.09532 (SAEBench)"
CHANIN = "Chanin et al. 2024, arXiv 2409.14507"


@dataclass(frozen=True, kw_only=True)
class LettersConfig:
    """Settings of `absorption` and `letter_splitting`, which share words, probes and latents where they agree."""

    words: WordsConfig = field(default_factory=WordsConfig)
    """Which words are read."""
    k_max: int = 10
    """Latents of a letter that are tried at most."""
    n_null: int = 20
    """Draws of permuted atoms."""

    def __post_init__(self) -> None:
        if self.k_max < 1 or self.n_null < 2:
            raise ConfigError(f"k_max must be at least 1, n_null at least 2, got {self.k_max} and {self.n_null} (LettersConfig)")


class LetterAbsorption(NamedTuple):
    """What became of the words of a letter that its probe knows."""

    letter: int
    """0 for a, ..., 25 for z."""
    fraction: Float[Tensor, " n_known"]
    """Absorption fraction of each word."""
    full: Bool[Tensor, " n_known"]
    """Whether the word is absorbed in full."""
    null: Float[np.ndarray, "n_null 2"]
    """Means of both with the atoms permuted."""

    @property
    def means(self) -> Float[np.ndarray, "2"]:
        """Mean of both."""
        return np.array([float(self.fraction.double().mean()), float(self.full.double().mean())])


def letter_absorption(
    words: Words, codes: SparseCodes, atoms: Float[Tensor, "d_sae d_in"], splits: Splits, *, letters: Sequence[int], n_null: int, seed: int
) -> list[LetterAbsorption]:
    """Both absorptions of every word that its probe knows, for the letters asked; a letter without a known word is left out.

    The null permutes the atoms among the latents: codes and own latents stay, and directions no longer belong to them.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(atoms), generator=generator) for _ in range(n_null)]
    own = {found.letter: found.own for found in splits.letters}
    made = []
    for letter in letters:
        rows = torch.from_numpy(words.known(letter))
        if not len(rows):
            continue
        acts, probe, part = words.acts[rows], words.probes[letter], codes[rows].merged()
        used, place = torch.cat([part.indices.long().flatten(), torch.tensor(own[letter], dtype=torch.long)]).unique(return_inverse=True)
        main = place[part.indices.numel() :].tolist()
        compact = SparseCodes(place[: part.indices.numel()].view_as(part.indices), part.values, part.counts, len(used))
        fraction, full = _both(acts, compact, atoms[used], probe, main)
        null = [[float(each.double().mean()) for each in _both(acts, compact, atoms[order[used]], probe, main)] for order in orders]
        made.append(LetterAbsorption(letter, fraction, full, np.array(null)))
    return made


def _both(acts: Tensor, codes: SparseCodes, atoms: Tensor, probe: Tensor, main: Sequence[int]) -> tuple[Tensor, Tensor]:
    return probe_absorption(acts, codes, atoms, probe, main), full_absorption(acts, codes, atoms, probe, main)


def absorption(inputs: Inputs, config: LettersConfig) -> Outcome:
    """Both absorptions, mean and letter by letter, over the letters that count; over all that there are where none does."""
    site = site_of(inputs)
    atoms = directions(inputs.chosen("dictionary"))
    words = read_words(inputs, site, config.words)
    codes, splits = read_splits(inputs, site, words, config.words, k_max=config.k_max)
    notes = [words.validity(), f"{len(words.words):,} words, {int(words.is_train.sum()):,} of them for training, at {site.name}."]
    letters = words.counted
    if not letters:
        letters = words.letters
        notes.append("No letter counts: the values are over all letters, of words that their probes are right about.")
    found = letter_absorption(words, codes, atoms, splits, letters=letters, n_null=config.n_null, seed=inputs.seed)
    note = "" if len(words.counted) >= 20 else f"not valid here: {len(words.counted)} letters count, 20 are asked for"
    numbers = [*_overall(found, note, inputs.seed)]
    for each, latents in ((each, _of_letter(splits, each.letter)) for each in found):
        numbers += _of_words(each, named(latents), words.f1[each.letter], inputs.seed)
    numbers += _probe_numbers(words)
    return Outcome(tuple(numbers), _absorption_figures(found), tuple(notes))


def _of_letter(splits: Splits, letter: int) -> LetterLatents:
    return next(each for each in splits.letters if each.letter == letter)


NAMES = ("absorption fraction", "full absorption rate")


def _overall(found: Sequence[LetterAbsorption], note: str, seed: int) -> list[Number]:
    """Means over letters, with the null, and an interval for which words are drawn within letters."""
    if not found:
        return [Number(name, None, note="no test word is known to its probe") for name in NAMES]
    means, null = np.mean([each.means for each in found], axis=0), np.mean([each.null for each in found], axis=0)
    n_words = sum(len(each.fraction) for each in found)
    draws = sum(
        resampled(torch.stack([each.fraction.double(), each.full.double()], dim=1), seed=seed + each.letter) / len(each.fraction)
        for each in found
    )
    numbers = []
    for i, name in enumerate(NAMES):
        beside = of_null(QUANTITY[name], compare(float(means[i]), torch.from_numpy(null[:, i])), note=note)
        ends = of_draws(draws[:, i] / len(found), n_words)
        sizes = f"{len(found)} letters, {n_words:,} words" + (f"; {note}" if note else "")
        kept = {**vars(beside), "note": sizes}
        numbers.append(Number(**(kept if ends is None else {**kept, "low": ends.low, "high": ends.high})))
    return numbers


def _of_words(each: LetterAbsorption, latents: str, f1: float, seed: int) -> list[Number]:
    numbers = []
    for name, values in zip(NAMES, (each.fraction, each.full), strict=True):
        ends = of_draws(resampled(values.double()[:, None], seed=seed)[:, 0] / len(values), len(values))
        low, high = (None, None) if ends is None else ends
        note = f"{len(values)} words; F1 of the probe {f1:.2f}; {latents}"
        numbers.append(Number(name, float(values.double().mean()), LETTERS[each.letter], note=note, low=low, high=high))
    return numbers


def _probe_numbers(words: Words) -> list[Number]:
    listed = ", ".join(f"{LETTERS[number]} {words.f1[number]:.2f}" for number in words.letters)
    mean = float(np.mean(words.f1[words.letters]))
    return [
        Number("F1 of letter probes", mean, note=listed),
        Number("letters that count", float(len(words.counted)), note=words.validity()),
    ]


def _absorption_figures(found: Sequence[LetterAbsorption]) -> tuple[Figure, ...]:
    if not found:
        return ()
    places, values = tuple(range(len(found))), np.array([each.means for each in found])
    axis = Axis("first letter", names=tuple(LETTERS[each.letter] for each in found))
    series = tuple(Series(name, places, tuple(values[:, i].tolist()), mark="points") for i, name in enumerate(NAMES))
    return (
        Figure("Absorption by letter", axis, Axis("absorption"), series, caption="Mean over the words of a letter that its probe knows."),
    )


def splitting(inputs: Inputs, config: LettersConfig) -> Outcome:
    """How many latents every letter has, over the letters that count."""
    site = site_of(inputs)
    directions(inputs.chosen("dictionary"))
    words = read_words(inputs, site, config.words)
    _, splits = read_splits(inputs, site, words, config.words, k_max=config.k_max)
    notes = [words.validity()]
    letters = words.counted or words.letters
    if not words.counted:
        notes.append("No letter counts: the values are over all letters.")
    found = [_of_letter(splits, letter) for letter in letters]
    n_own = torch.tensor([float(each.n_own) for each in found], dtype=torch.float64)
    scores = np.mean([own_f1(each) for each in found], axis=0)
    ends = of_draws(resampled(n_own[:, None], seed=inputs.seed)[:, 0] / len(n_own), len(n_own))
    low, high = (None, None) if ends is None else ends
    spread = Counter(int(n) for n in n_own.tolist())
    shares = ", ".join(f"{n}: {count}" for n, count in sorted(spread.items()))
    numbers = [
        Number(
            "latents of a letter",
            float(n_own.mean()),
            note=f"letters by their latents: {shares}; interval over letters",
            low=low,
            high=high,
        ),
        Number("split letters", float((n_own > 1).double().mean()), note=f"{len(found)} letters"),
        Number("F1 of one latent", float(scores[0])),
        Number("F1 of own latents", float(scores[1])),
        *(Number("latents of a letter", float(each.n_own), LETTERS[each.letter], note=named(each)) for each in found),
    ]
    edges = tuple(n - 0.5 for n in range(config.k_max + 2))
    bars = Series("letters", edges, tuple(spread.get(n, 0) for n in range(config.k_max + 1)), mark="bars")
    mean = Rule("x", float(n_own.mean()), "mean")
    figure = Figure("Latents of a letter", Axis("latents of a letter"), Axis("letters"), (bars,), (mean,))
    return Outcome(tuple(numbers), (figure,), tuple(notes))


QUANTITIES = (
    Quantity(
        "absorption fraction",
        "The part of a letter's direction that other latents carry where the letter's own do not carry all of it. 0: the letter's latents do "
        "their work; 1: on every word others have taken it over. Latents that carry little do not count.",
        SAEBENCH,
        alternative="greater",
        null="the same with the atoms permuted among the latents",
        formula="mean over letters and words of: 0 if main >= a.p or A / (a.p) < 0.4; 1 if main <= 0; else u / (u + main), u = min(A, a.p - main); "
        "main = sum of c_i cos(d_i, p) over the letter's latents, A = the 3 largest c_i cos(d_i, p) > 0 of others with cos >= 0.1",
    ),
    Quantity(
        "full absorption rate",
        "Share of words on which all latents of the letter are silent and one other latent carries the letter's direction. 0: never; high: the "
        "latents of letters have holes that more specific latents fill.",
        f"{CHANIN}; {SAEBENCH}",
        alternative="greater",
        null="the same with the atoms permuted among the latents",
        formula="share of words with z_i < 1e-8 for all latents of the letter, where the latent with the largest c_i cos(d_i, p) has "
        "cos(d_i, p) >= 0.025 and c_i cos(d_i, p) >= 0.4 a.p",
    ),
    Quantity(
        "F1 of letter probes",
        "How well the first letter of a word can be read from the activations, mean over letters. Absorption means nothing where this is low.",
        SAEBENCH,
        formula="2 TP / (2 TP + FP + FN) on test words",
    ),
    Quantity("letters that count", "Letters whose probe has F1 above 0.6. Below 20 of them the task is not valid.", SAEBENCH),
)
QUANTITY = {quantity.name: quantity for quantity in QUANTITIES}
ABSORPTION = Measure(
    name="absorption",
    title="Absorption of first letters",
    text=(
        "Whether a latent that stands for a letter is silent on words that begin with it, because a latent for the word has taken the letter's direction "
        "over. A logistic probe p finds the direction of each letter, a k-sparse probe the latents that stand for it; on test words that p is right about, "
        "the contributions of these and of other latents along p are compared. Letters count where the probe has F1 above 0.6, and the task is "
        "valid for a model where at least 20 do, which takes models of about 2 billion parameters."
    ),
    needs=("dictionary", "model"),
    quantities=QUANTITIES,
    compute=absorption,
    config=LettersConfig(),
    quick=LettersConfig(words=WordsConfig(n_per_letter=40), n_null=10),
)
SPLITTING = Measure(
    name="letter_splitting",
    title="Splitting of first letters",
    text=(
        "Over how many latents a concept is split: a letter has as many latents of its own as raise the F1 of a k-sparse probe by more than 0.03 each. "
        "Wider dictionaries split concepts more."
    ),
    needs=("dictionary", "model"),
    quantities=(
        Quantity(
            "latents of a letter",
            "Mean number of latents that a letter has. 1: every letter has a latent; more: letters are split; 0: no latent says anything of it.",
            f"{CHANIN}, section 4",
            formula="largest k reached while F1(k) > F1(k - 1) + 0.03, k <= 10",
        ),
        Quantity("split letters", "Share of letters with more than one latent.", CHANIN, formula="share of letters with k > 1"),
        Quantity(
            "F1 of one latent",
            "F1 of the best latent of each letter alone, mean over letters.",
            CHANIN,
            formula="mean over letters of F1(1)",
        ),
        Quantity(
            "F1 of own latents",
            "F1 of a probe on all latents of the letter, mean over letters.",
            CHANIN,
            formula="mean over letters of F1(k)",
        ),
    ),
    compute=splitting,
    config=LettersConfig(),
    quick=LettersConfig(words=WordsConfig(n_per_letter=40), n_null=10),
)
