import itertools
import re
import string
from collections import Counter

import numpy as np
import pytest
from tiny import tiny_language_model

from probes.tasks import NOUN_CLASSES, PROPERTIES, class_words, compound, is_a, kinds_above, noun_class, token_task, vocabulary_problem
from probes.tasks.offsets import token_offsets
from probes.tasks.wordnet import SENTENCES
from sae.activations.corpus import from_texts, state_of_the_union, wordnet_nouns
from sae.errors import ConfigError

STRINGS = {
    "contains_digit": (["a1", "7", " 19"], ["a", " b", "one"]),
    "all_digits": (["7", " 19", "²"], ["a1", " ", "1.5"]),
    "contains_capital": (["aB", " É"], ["ab", "1", "ß"]),
    "leading_capital": (["Ab", " Ab", "É"], ["aB", " 1", "."]),
    "all_capitals": (["AB", " NATO"], ["A", " I", "Ab", "A1", "."]),
    "contains_whitespace": ([" a", "a\n", "\t"], ["a", "."]),
    "has_leading_space": ([" a", "  "], ["a", "\na", "a "]),
    "lower_without_space": (["ing", "é"], [" ing", "Ing", "a1"]),
    "all_whitespace": ([" ", "\n\n"], [" a", "."]),
    "punctuation": ([".", '),"', " (", "—"], ["a.", " ", "1", "_a"]),
    "not_alphanumeric": ([".", " ", "\n("], ["a", "1", " é"]),
    "not_ascii": (["é", " 日", "—"], ["e", " "]),
    "ends_ing": (["ing", " having", "Ring"], ["ings", "in-ing", "1ing", ""]),
    "ends_s": ([" laws", "s", "is"], ["less", "law", "s.", "1s"]),
}


@pytest.mark.parametrize("name", sorted(PROPERTIES))
def test_property_holds_for_its_strings_alone(name):
    yes, no = STRINGS[name]
    assert [s for s in yes if not PROPERTIES[name].holds(s)] == []
    assert [s for s in no if s and PROPERTIES[name].holds(s)] == []


TEXTS = [
    f"In {1800 + i} the Law of PEACE, and the 日本 people; café number {i}!" + " the law and the people of the nation" * (i % 3)
    for i in range(60)
]


@pytest.mark.parametrize("name", ["contains_digit", "leading_capital", "has_leading_space", "punctuation"])
def test_token_task_labels_the_tokens_that_the_tokenizer_cuts(name):
    model = tiny_language_model()
    made = token_task(name, TEXTS, np.arange(60) // 2, n_rows=200, seed=1)
    task = made.labelled(model.tokenizer)
    assert (task.kind, task.classes) == ("token", ("no", "yes"))
    assert len(task) == 200
    assert task.counts == {"no": 100, "yes": 100}
    vocabulary = model.vocabulary()
    tokens = token_offsets(model.tokenizer, TEXTS)
    for (text, begin, end), label, group in zip(task.spans, task.y, task.groups, strict=True):
        number = [tuple(pair) for pair in tokens[text].offsets].index((begin, end))
        written = vocabulary[tokens[text].ids[number]]
        assert written == TEXTS[text][begin:end]  # so parts of a character are left out
        assert bool(label) == PROPERTIES[name].holds(written)
        assert group == text // 2


def test_too_few_tokens_with_a_property_are_counted():
    with pytest.raises(ConfigError, match=r"at least 20 tokens of each class, got \d+ of 'no' and 3 of 'yes'; give more texts"):
        token_task("contains_digit", ["the law and the people"] * 30 + ["7 8 9"]).labelled(tiny_language_model().tokenizer)


def test_token_task_is_a_value_with_a_digest():
    import dataclasses

    made = token_task("contains_digit", TEXTS)
    changed = [
        dataclasses.replace(made, property="all_digits"),
        dataclasses.replace(made, texts=(*TEXTS[:-1], "x")),
        dataclasses.replace(made, groups=np.arange(60)[::-1].copy()),
        dataclasses.replace(made, seed=1),
        dataclasses.replace(made, n_rows=10),
        dataclasses.replace(made, positive_share=None),
    ]
    assert len({made.digest, *(other.digest for other in changed)}) == 7
    assert made.digest == token_task("contains_digit", TEXTS).digest


def test_share_of_tokens_can_be_as_it_comes():
    model = tiny_language_model()
    task = token_task("contains_digit", TEXTS, n_rows=100_000, positive_share=None).labelled(model.tokenizer)
    total = sum(len(tokens.ids) for tokens in token_offsets(model.tokenizer, TEXTS))
    n_bytes = sum(len("日本é".encode()) for _ in TEXTS)
    assert total - n_bytes <= len(task) < total
    assert task.counts["yes"] < 0.3 * len(task)


def test_vocabulary_problem_has_one_row_per_token_with_a_string():
    strings = [*string.ascii_lowercase, *(f" {c}" for c in string.ascii_lowercase), "\ufffd", "<unused 53>", " \ufffd", ""]
    problem = vocabulary_problem(strings, "has_leading_space")
    assert problem.rows.tolist() == list(range(52))
    assert problem.y.tolist() == [0] * 26 + [1] * 26
    assert problem.classes == ("no", "yes")
    some = vocabulary_problem(strings, "has_leading_space", tokens=np.arange(4, 48))
    assert some.rows.tolist() == list(range(4, 48))


def test_digits_that_are_tokens_by_themselves_are_too_few_and_said_so():
    strings = [*(f"word{c}" for c in string.ascii_letters), *string.digits]
    with pytest.raises(
        ConfigError, match=r"at least 20 tokens of each class, got 52 of 'no' and 10 of 'yes'.*contains_digit over 62 tokens"
    ):
        vocabulary_problem(strings, "contains_digit")


def brute_force(first, second, corpus):
    """(positive, second without first, first without second) counted on words in lower case."""
    counts = Counter()
    for document in corpus.documents():
        words = [(m.group().lower(), m.start(), m.end()) for m in re.finditer(r"[^\W\d_]+(?:['’][^\W\d_]+)?", document.text)]
        for before, word in itertools.pairwise(words):
            follows = before[0] == first and not document.text[before[2] : word[1]].strip() and before[2] < word[1]
            counts["both"] += follows and word[0] == second
            counts["second"] += not follows and word[0] == second
            counts["first"] += follows and word[0] != second
    return counts


def test_compound_has_hard_negatives_of_both_sorts():
    recent = [document.text for document in state_of_the_union().documents() if int(document.labels["year"]) > 1945]
    corpus = from_texts(recent)
    counts = brute_force("social", "security", corpus)
    task = compound(corpus=corpus)
    assert task.counts["social security"] == min(counts["both"], task.counts["social security"])
    sorts = Counter()
    for row, (text, begin, end) in enumerate(task.spans):
        whole = task.texts[text]
        assert end == len(whole)
        assert len(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", whole)) <= 24
        last, before = whole[begin:end].lower(), whole[:begin].split()[-1].lower()
        follows = whole[:begin].lower().endswith("social ") or re.search(r"(^|\W)social\s$", whole[:begin].lower()) is not None
        sort = "both" if follows and last == "security" else "first" if follows else "second"
        assert (sort == "both") == bool(task.y[row])
        assert follows or (last == "security" and before != "social")
        sorts[sort] += 1
    assert sorts["first"] == sorts["second"]
    assert abs(sorts["both"] - 0.2 * len(task)) < 1
    assert sorts["first"] == min(counts["first"], counts["second"])  # the scarcer sort is all there


def test_compound_groups_are_documents_and_rows_follow_the_seed():
    corpus = from_texts([f"so big apple {i}. a red apple, a big house " * 3 for i in range(30)])
    task, again, other = (compound("big", "apple", corpus, positive_share=0.4, n_rows=60, seed=seed) for seed in (0, 0, 1))
    assert task.digest == again.digest != other.digest
    assert task.counts == {"only one word of big apple": 36, "big apple": 24}
    assert set(task.groups) <= set(range(30))


def test_punctuation_between_the_words_makes_no_compound():
    corpus = from_texts(["the big. apple and the big apple, a red apple and a big house "] * 40)
    task = compound("big", "apple", corpus, positive_share=0.5)
    rows = [task.texts[t][max(0, b - 6) : e] for t, b, e in task.spans]
    assert all("big. apple" not in row for row, label in zip(rows, task.y, strict=True) if label)


def nltk_like_descendants(root):
    """Synsets below `root`, found downwards, which is not how the task finds them."""
    children = {}
    for synset in wordnet_nouns():
        for parent in (*synset.hypernyms, *synset.instances):
            children.setdefault(parent, []).append(synset.id)
    found, queue = {root}, [root]
    while queue:
        for child in children.get(queue.pop(), []):
            if child not in found:
                found.add(child)
                queue.append(child)
    return found


@pytest.mark.parametrize("name", ["animal", "vehicle"])
def test_words_of_a_class_have_no_sense_outside_of_it(name):
    below, senses = nltk_like_descendants(NOUN_CLASSES[name]), {}
    for synset in wordnet_nouns():
        for lemma in synset.lemmas:
            senses.setdefault(lemma.lower(), []).append((lemma, synset.id))
    words = class_words((name,))
    expected = {
        lemma
        for lemma, found in senses.items()
        if re.fullmatch("[a-z]{3,10}", lemma) and all(written == lemma and sense in below for written, sense in found)
    }
    assert set(words[name]) == expected
    assert not any(sense in below or written != word for word in words[""] for written, sense in senses[word])


def test_classes_are_what_they_are_named():
    synsets = {synset.id: synset for synset in wordnet_nouns()}
    for name, sense in NOUN_CLASSES.items():
        assert any(lemma.replace("_", " ") in (name, f"musical {name}") for lemma in synsets[sense].lemmas), name
    known = class_words(("animal", "plant", "vehicle", "food"))
    assert {"koala", "jackal", "beagle"} <= set(known["animal"])
    assert {"baobab", "hydrangea"} <= set(known["plant"])
    assert {"ambulance", "bicycle"} <= set(known["vehicle"])
    everywhere = [word for words in known.values() for word in words]
    assert len(everywhere) == len(set(everywhere))
    assert not {"crane", "orange", "bass", "dog"} & set(everywhere)  # each has another sense


@pytest.mark.parametrize("in_sentence", [True, False])
def test_span_of_a_noun_is_the_noun(in_sentence):
    task, words = is_a("bird", n_per_class=50, in_sentence=in_sentence), class_words(("bird",))
    assert task.counts == {"not bird": 50, "bird": 50}
    assert len(np.unique(task.groups)) == 100
    for row in range(len(task)):
        word, text = task.row_text(row), task.texts[task.spans[row, 0]]
        assert word in words["bird" if task.y[row] else ""]
        assert text == f" {word}" if not in_sentence else text in {sentence.format(word) for sentence in SENTENCES}


def test_noun_classes_and_the_words_they_are_taken_among():
    task = noun_class(("animal", "plant", "person"), n_per_class=40)
    assert list(task.counts.values()) == [40, 40, 40]
    few = is_a(among={"koala", "jackal", *class_words(("animal",))[""][:40], *class_words(("animal",))["animal"][:30]})
    assert few.counts["animal"] == few.counts["not animal"] >= 30


def test_kinds_above_a_word_are_its_hypernyms():
    assert {"canine", "animal", "organism"} <= set(kinds_above("dog"))
    assert "dog" not in kinds_above("dog")
    assert {"bird", "vertebrate"} <= set(kinds_above("Robin".lower()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: token_task("is_nice", TEXTS), ["property must be one of contains_digit", "is_nice"]),
        (lambda: token_task("contains_digit", TEXTS, np.arange(59)), ["one entry per text", "59 for 60"]),
        (lambda: vocabulary_problem(["a", " b"], "has_leading_space", tokens=np.array([5])), ["tokens must be in 0..1", "5..5"]),
        (lambda: compound("big", "bad wolf"), ["second must be one word", "bad wolf"]),
        (
            lambda: compound("a", "b", from_texts(["a b a c "] * 30)),
            ["at least 20 occurrences", "0 of 'b without a'", "choose other words"],
        ),
        (lambda: compound("no", "suchword", from_texts(["a b c"])), ["0 of 'no suchword'"]),
        (lambda: compound(positive_share=1.0), ["positive_share must be between 0 and 1"]),
        (lambda: is_a("dragon"), ["classes must be of animal", "8 digits", "dragon"]),
        (lambda: noun_class(("animal",)), ["two or more", "['animal']"]),
        (lambda: noun_class(("animal", "furniture"), n_per_class=10), ["at least 20", "10 of 'furniture'"]),
        (lambda: kinds_above("xyzzy"), ["noun of WordNet", "xyzzy"]),
    ],
)
def test_bad_word_task_is_named(call, words):
    with pytest.raises(ConfigError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
