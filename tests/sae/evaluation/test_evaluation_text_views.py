"""Views of texts: deterministic, local, and what they are named for."""

import pytest

from sae.errors import ConfigError
from sae.evaluation.text_views import halves, sampled_sentences, sentences, text_views, with_character_noise, with_dropped_words

TEXTS = [
    "We the People of the United States, in Order to form a more perfect Union, establish Justice.",
    "A dog is an animal, and a robin is a bird; birds can fly, but dogs cannot.",
    "In 1865 the war was over.",
]


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_halves_are_the_words_in_order():
    first, second = halves("  one two\nthree four  five ")
    assert (first, second) == ("one two", "three four  five")
    assert text_views(TEXTS, kind="halves", n_views=2)[2] == ("In 1865 the", "war was over.")


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_views_depend_on_the_seed_the_place_and_the_view_alone(kind):
    views = text_views(TEXTS, kind=kind, n_views=3, rate=0.3, seed=5)
    assert views == text_views(TEXTS, kind=kind, n_views=3, rate=0.3, seed=5)
    assert views[:1] == text_views(TEXTS[:1], kind=kind, n_views=3, rate=0.3, seed=5)
    assert [v[:2] for v in views] == text_views(TEXTS, kind=kind, n_views=2, rate=0.3, seed=5)
    assert views != text_views(TEXTS, kind=kind, n_views=3, rate=0.3, seed=6)
    assert len(set(views[0])) == 3
    same = text_views([TEXTS[0]] * 2, kind=kind, n_views=1, rate=0.3)
    assert same[0] != same[1]


def test_views_are_the_same_on_every_machine():
    assert with_dropped_words("a b c d e f g h", rate=0.5, seed=0) == "a b c d f"
    assert with_character_noise("the quick brown fox", rate=0.3, seed=0) == "the quicck bhoowwn fxo"


def test_a_rate_of_zero_changes_nothing():
    for text in TEXTS:
        assert with_character_noise(text, rate=0.0, seed=1) == text
        assert with_dropped_words(text, rate=0.0, seed=1) == text


def test_noise_changes_about_its_rate_of_the_letters_and_nothing_else():
    text = " ".join(TEXTS * 20)
    n_letters = sum(c.isalpha() for c in text)
    distances = []
    for seed in range(3):
        noisy = with_character_noise(text, rate=0.1, seed=seed)
        assert len(noisy.split()) == len(text.split())
        assert [c for c in noisy if not c.isalpha()] == [c for c in text if not c.isalpha()]
        distances.append(sum(edit_distance(a, b) for a, b in zip(noisy.split(), text.split(), strict=True)))
    assert 0.07 * n_letters < sum(distances) / 3 < 0.14 * n_letters


def test_dropped_words_leave_a_subsequence_of_about_the_right_length():
    words = " ".join(str(i) for i in range(2000))
    kept = with_dropped_words(words, rate=0.25, seed=3).split()
    assert kept == sorted(kept, key=int) and set(kept) <= set(words.split())
    assert len(kept) == pytest.approx(1500, abs=70)
    assert all(with_dropped_words("one two", rate=0.99, seed=s) in ("one", "two", "one two") for s in range(50))
    assert all(with_character_noise("I", rate=0.99, seed=s) for s in range(50))


def test_sentences_end_where_a_capital_letter_follows():
    text = 'We met. "It is over," he said! Was it, in 1865.5 no.2 terms?  (Yes.) \n\n"So." The U.S. Congress'
    assert sentences(text)[:5] == ["We met.", '"It is over," he said!', "Was it, in 1865.5 no.2 terms?", "(Yes.)", '"So."']
    assert sentences(" ") == []
    assert " ".join(sentences(text)) == " ".join(text.split())


def test_sampled_sentences_are_different_long_enough_and_seeded():
    texts = [f"Number {i} is a sentence of the corpus. Too short. Number {i} is a sentence of the corpus." for i in range(30)]
    drawn = sampled_sentences(texts, 20, seed=1)
    assert len(set(drawn)) == 20 and all("Number" in s for s in drawn)
    assert drawn == sampled_sentences(iter(texts), 20, seed=1) != sampled_sentences(texts, 20, seed=2)
    assert sorted(sampled_sentences(texts, 30)) == sorted({sentences(t)[0] for t in texts})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_views(TEXTS, kind="synonyms", n_views=2), "kind must be one of"),
        (lambda: text_views(TEXTS, kind="halves", n_views=3), "2 for halves"),
        (lambda: text_views(TEXTS, kind="words", n_views=0), "at least 1"),
        (lambda: text_views(TEXTS, kind="words", n_views=1, rate=1.0), "rate must be in"),
        (lambda: halves("word"), "at least 2 words"),
        (lambda: with_dropped_words("  ", rate=0.1, seed=0), "at least 1 word,"),
        (lambda: sampled_sentences(TEXTS, 9), "n must be in 1..3"),
    ],
)
def test_bad_input_to_views_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()
