"""What a noun names, by WordNet: an animal, a plant, a food, a vehicle; alone, or in a sentence that gives nothing away.

    w is of class c   <=>   every noun sense of w is c, or a kind of c        w is of no class   <=>   no sense of w is of any class asked

A word that has a sense in a class and another outside of it (a crane lifts, and flies) is left out, so that its label is right whatever is
meant; what remains is the less common part of each class. Miller, "WordNet: a lexical database for English", CACM 38 (1995).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np

from probes.tasks.task import Task
from sae.activations.corpus import Synset, wordnet_nouns
from sae.errors import ConfigError

NOUN_CLASSES: Mapping[str, str] = {
    "animal": "00015388",
    "plant": "00017222",
    "person": "00007846",
    "food": "07555863",
    "vehicle": "04524313",
    "clothing": "03051540",
    "building": "02913152",
    "furniture": "03405725",
    "instrument": "03800933",
    "disease": "14070360",
    "bird": "01503061",
    "body part": "05220461",
}
"""Classes by name: the WordNet 3.0 sense that all of a class's words are kinds of. Bird is a part of animal."""
WORD = re.compile("[a-z]{3,10}")
SENTENCES = (
    "There was something in the paper about the {} this morning.",
    "She thought about the {} for a while.",
    "The word for the {} is short.",
    "He had never heard of the {} before.",
)
"""What a noun is put into; none says anything about it, and each takes a singular, a plural or a substance."""
LICENCE = "WordNet 3.0 licence (words); the sentences are the workbench's own"


@cache
def noun_senses() -> tuple[dict[str, tuple[frozenset[str], ...]], dict[str, Synset]]:
    """(senses of each word in lower case, synset of each identifier): a sense is itself with all that it is a kind or an instance of.

    A sense that is written with a capital (a proper name) has no classes: an empty set.
    """
    synsets = {synset.id: synset for synset in wordnet_nouns()}
    known: dict[str, frozenset[str]] = {}

    def above(sense: str) -> frozenset[str]:
        if sense not in known:
            parents = (*synsets[sense].hypernyms, *synsets[sense].instances)
            known[sense] = frozenset({sense}).union(*(above(parent) for parent in parents))
        return known[sense]

    senses: dict[str, list[frozenset[str]]] = {}
    for synset in synsets.values():
        for lemma in synset.lemmas:
            senses.setdefault(lemma.lower(), []).append(above(synset.id) if lemma.islower() else frozenset())
    return {lemma: tuple(found) for lemma, found in senses.items()}, synsets


def kinds_above(word: str) -> tuple[str, ...]:
    """The single words for what `word` names a kind of, in any sense: that of a dog has animal, canine, pet. Sorted; without the word itself.

    Raises ConfigError for a word that is no noun of WordNet.
    """
    senses, synsets = noun_senses()
    if word.lower() not in senses:
        raise ConfigError(f"word must be a noun of WordNet, got {word!r} (kinds_above)")
    above = frozenset().union(*senses[word.lower()])
    return tuple(sorted({lemma.lower() for sense in above for lemma in synsets[sense].lemmas if "_" not in lemma} - {word.lower()}))


@cache
def class_words(classes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The words of each class, sorted, and under "" the nouns of none: single words of 3 to 10 lower-case letters without a proper sense.

    The words with senses both inside and outside of a class, or in two classes, are in none of these. Raises ConfigError for a class that is
    neither one of NOUN_CLASSES nor the 8 digits of a WordNet sense.
    """
    senses, synsets = noun_senses()
    roots = [NOUN_CLASSES.get(name, name) for name in classes]
    for name, root in zip(classes, roots, strict=True):
        if root not in synsets:
            raise ConfigError(f"classes must be of {', '.join(NOUN_CLASSES)}, or WordNet senses of 8 digits, got {name!r} (class_words)")
    words: dict[str, list[str]] = {name: [] for name in (*classes, "")}
    for lemma, found in senses.items():
        if not WORD.fullmatch(lemma):
            continue
        inside = [[root in sense for sense in found] for root in roots]
        whole = [name for name, flags in zip(classes, inside, strict=True) if all(flags)]
        if len(whole) == 1 and sum(any(flags) for flags in inside) == 1:
            words[whole[0]].append(lemma)
        elif not any(any(flags) for flags in inside) and all(found):
            words[""].append(lemma)
    return {name: tuple(sorted(found)) for name, found in words.items()}


def noun_class(
    classes: Sequence[str] = ("animal", "plant", "food", "vehicle", "clothing"),
    *,
    n_per_class: int = 150,
    in_sentence: bool = True,
    seed: int = 0,
    among: Collection[str] | None = None,
) -> Task:
    """Which class a noun names a member of; see `is_a` for the rows. At most `n_per_class` words of each class, drawn by `seed`.

    Raises ConfigError for a class that is not there, fewer than two, or one with too few words (`class_words` has them all).
    """
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ConfigError(f"classes must be two or more, all different, got {list(classes)} (noun_class)")
    words = _among(class_words(tuple(classes)), among)
    drawn = [(word, label) for label, name in enumerate(classes) for word in _draw(words[name], n_per_class, seed + label)]
    return _task("noun_class", drawn, tuple(classes), in_sentence, seed)


def is_a(
    class_name: str = "animal", *, n_per_class: int = 300, in_sentence: bool = True, seed: int = 0, among: Collection[str] | None = None
) -> Task:
    """Whether a noun names a member of a class, against nouns no sense of which does. As many of one as of the other, at most `n_per_class`.

    A row is the noun: in one of SENTENCES, drawn by `seed`, or alone after a space (" dog"). Every word is a row and a group of its own; as
    kinds of one thing share the ends of their names (-fish, -bird), what a probe reads may be letters. `among` keeps the words that are
    in it: many a word of WordNet is rare, and those that are a token by themselves, `{text.strip() for text in model.vocabulary()}`, are not.
    Raises ConfigError as `noun_class` does.
    """
    words = _among(class_words((class_name,)), among)
    drawn = [(word, label) for label, name in enumerate(("", class_name)) for word in _draw(words[name], n_per_class, seed + label)]
    n = min(sum(label == 0 for _, label in drawn), sum(label == 1 for _, label in drawn))
    kept = [pair for label in (0, 1) for pair in [pair for pair in drawn if pair[1] == label][:n]]
    return _task(f"is_{class_name}", kept, (f"not {class_name}", class_name), in_sentence, seed)


def _among(words: Mapping[str, tuple[str, ...]], among: Collection[str] | None) -> Mapping[str, tuple[str, ...]]:
    return words if among is None else {name: tuple(word for word in found if word in among) for name, found in words.items()}


def _draw(words: Sequence[str], n: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(words))
    return [words[i] for i in order[:n]]


def _task(name: str, drawn: Sequence[tuple[str, int]], classes: tuple[str, ...], in_sentence: bool, seed: int) -> Task:
    generator = np.random.default_rng(seed)
    texts, spans = [], []
    for i, (word, _) in enumerate(drawn):
        pattern = SENTENCES[generator.integers(len(SENTENCES))] if in_sentence else " {}"
        begin = pattern.index("{}")
        texts.append(pattern.format(word))
        spans.append((i, begin, begin + len(word)))
    return Task(
        name,
        "token",
        tuple(texts),
        np.array([label for _, label in drawn], dtype=np.int64),
        np.arange(len(drawn)),
        classes,
        "nouns of WordNet 3.0, shipped with the workbench",
        LICENCE,
        spans=np.array(spans, dtype=np.int64),
    )
