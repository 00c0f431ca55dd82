"""WordNet's nouns, the forms of words, and a vocabulary's categories."""

import numpy as np
import pytest

from probes.hierarchy import ConceptHierarchy, Taxonomy, plural, vocabulary_hierarchy, word_forms
from probes.hierarchy.wordnet import topological
from probes.unembedding import clean_unembedding
from sae.activations.corpus import Synset, wordnet_nouns
from sae.errors import ConfigError, FormatError


@pytest.fixture(scope="module")
def taxonomy():
    return Taxonomy(wordnet_nouns())


def test_wordnet_has_its_nouns_and_an_animal_is_an_organism_and_an_entity(taxonomy):
    assert len(taxonomy.synsets) == 82_115
    animal = taxonomy.synsets["00015388"]
    assert animal.lemmas[0] == "animal"
    names = {taxonomy.synsets[sense].lemmas[0] for sense in taxonomy.ancestors("00015388")}
    assert names == {"organism", "living_thing", "whole", "object", "physical_entity", "entity"}
    assert len(taxonomy.order) == 82_115
    place = {sense: i for i, sense in enumerate(taxonomy.order)}
    assert all(place[parent] < place[child] for child, parents in taxonomy.parents.items() for parent in parents)


def test_words_below_a_sense_are_those_of_all_its_descendants(taxonomy):
    words = {"dog", "robin", "spaniel", "oak", "animal", "Vienna"}  # Vienna is an instance only
    below = taxonomy.words_below(words)
    assert below["00015388"] >= {"dog", "robin", "spaniel"} and not {"oak", "animal"} & below["00015388"]
    assert below["00001740"] == words  # entity
    children = [c for c in taxonomy.children["00015388"] if c in below]
    own = {word for child in taxonomy.children["00015388"] for word in words.intersection(taxonomy.synsets[child].lemmas)}
    assert below["00015388"] == frozenset().union(own, *(below[c] for c in children))  # by recursion, as an oracle


def test_unknown_senses_cycles_and_missing_parents_are_refused(taxonomy):
    with pytest.raises(ConfigError, match="one of the 82115 senses, got '1'"):
        taxonomy.ancestors("1")
    with pytest.raises(FormatError, match="2 senses are above themselves"):
        topological({"a": ("b",), "b": ("a",), "c": ()})
    with pytest.raises(FormatError, match="the sense above a, z, is not among the 1"):
        _ = Taxonomy([Synset("a", ("x",), ("z",), ())]).parents


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("dog", "dogs"), ("city", "cities"), ("boy", "boys"), ("box", "boxes"), ("church", "churches"), ("leaf", "leaves"), ("child", "children"),
     ("postman", "postmen"), ("human", "humans"), ("woman", "women"), ("sheep", "sheep"), ("crisis", "crises"), ("y", "ys")],
)  # fmt: skip
def test_plurals_follow_the_rules_and_their_exceptions(noun, expected):
    assert plural(noun) == expected


def test_a_noun_has_four_forms_and_a_name_one():
    assert word_forms("bird") == ("bird", "Bird", "birds", "Birds")
    assert word_forms("sheep") == ("sheep", "Sheep")
    assert word_forms("Paris") == ("Paris",)


def senses():
    """thing > (animal > creature > (bird, fish), tool): creature is a link of a chain; each leaf class has ten words of its own."""
    tree = {"thing": [], "animal": ["thing"], "creature": ["animal"], "bird": ["creature"], "fish": ["creature"], "tool": ["thing"]}
    synsets = [Synset(name, (name,), tuple(parents), ()) for name, parents in tree.items()]
    return synsets + [Synset(f"{k}{i}", (f"{k}x{i}",), (k,), ()) for k in ("bird", "fish", "tool") for i in range(10)]


def vocabulary(extra=()):
    words = [f"{k}x{i}" for k in ("bird", "fish", "tool") for i in range(10)]
    forms = [f" {form}" for word in words for form in word_forms(word)[:3]]
    tokens = [*forms, "birdx0", *extra]
    return clean_unembedding(np.random.default_rng(0).normal(size=(len(tokens), 5)), tokens)


def members(hierarchy, unembedding, name):
    return {unembedding.tokens[row] for row in hierarchy.rows[hierarchy.index(name)]}


def test_categories_are_the_words_below_with_their_forms_and_chains_are_merged():
    unembedding = vocabulary()
    hierarchy = vocabulary_hierarchy(unembedding, senses(), more_than=20)
    assert set(hierarchy.names) == {"thing", "animal", "bird", "fish", "tool"}  # creature merged into animal
    parents = {name: {hierarchy.names[p] for p in above} for name, above in zip(hierarchy.names, hierarchy.parents, strict=True)}
    assert parents == {"thing": set(), "animal": {"thing"}, "tool": {"thing"}, "bird": {"animal"}, "fish": {"animal"}}
    assert members(hierarchy, unembedding, "bird") == {f" {form}" for i in range(10) for form in word_forms(f"birdx{i}")[:3]}
    assert members(hierarchy, unembedding, "animal") == members(hierarchy, unembedding, "bird") | members(hierarchy, unembedding, "fish")
    family = hierarchy.families
    birds = [unembedding.row_of(f" {form}") for form in word_forms("birdx3")[:3]]
    assert len(set(family[birds].tolist())) == 1
    assert len(np.unique(family)) == 31  # thirty nouns and a token that is none
    assert {(hierarchy.names[p], hierarchy.names[c]) for p, c in hierarchy.edges()} == {
        ("thing", "animal"), ("thing", "tool"), ("animal", "bird"), ("animal", "fish"),
    }  # fmt: skip
    assert len(hierarchy.edges(largest_share=0.4)) == 1


def test_what_a_merged_parent_has_beyond_its_child_is_kept_as_another_category():
    synsets = [*senses(), *[Synset(f"beast{i}", (f"beastx{i}",), ("animal",), ()) for i in range(8)]]
    unembedding = vocabulary([f" {form}" for i in range(8) for form in word_forms(f"beastx{i}")])
    hierarchy = vocabulary_hierarchy(unembedding, synsets, more_than=20)
    assert members(hierarchy, unembedding, "animal, other") == {f" {form}" for i in range(8) for form in word_forms(f"beastx{i}")}
    assert {"bird", "fish", "animal, other"} == {
        name for name, above in zip(hierarchy.names, hierarchy.parents, strict=True) if hierarchy.index("animal") in above
    }


def test_a_child_with_two_parents_stays_where_it_is():
    synsets = [
        *senses(),
        Synset("shared", ("shared",), ("bird", "tool"), ()),
        *[Synset(f"s{i}", (f"sx{i}",), ("shared",), ()) for i in range(9)],
    ]
    unembedding = vocabulary([f" {form}" for i in range(9) for form in word_forms(f"sx{i}")])
    hierarchy = vocabulary_hierarchy(unembedding, synsets, more_than=20)
    shared = hierarchy.index("shared")
    assert {hierarchy.names[p] for p in hierarchy.parents[shared]} == {"bird", "tool"}


def test_a_vocabulary_without_the_words_is_refused():
    tokens = [f"piece{i}" for i in range(40)]
    with pytest.raises(ConfigError, match="no category has more than 50"):
        vocabulary_hierarchy(clean_unembedding(np.random.default_rng(0).normal(size=(40, 5)), tokens), senses())
    with pytest.raises(ConfigError, match="the largest has 30 lemmas"):
        vocabulary_hierarchy(vocabulary(), senses(), more_than=200)
    with pytest.raises(ConfigError, match="one of the 5 categories, got 'ird'; there are bird"):
        vocabulary_hierarchy(vocabulary(), senses(), more_than=20).index("ird")
    with pytest.raises(ConfigError, match="largest_share must be above 0"):
        vocabulary_hierarchy(vocabulary(), senses(), more_than=20).edges(largest_share=0.0)


def test_two_senses_with_the_same_first_word_are_told_apart():
    synsets = [s if s.id != "tool" else Synset("tool", ("bird",), ("thing",), ()) for s in senses()]
    hierarchy = vocabulary_hierarchy(vocabulary(), synsets, more_than=20)
    assert {"bird (bird)", "bird (tool)"} <= set(hierarchy.names)
    assert isinstance(hierarchy, ConceptHierarchy)
