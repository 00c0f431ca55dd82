"""The forms in which a noun is written: as it is, with a capital, in the plural, in the plural with a capital.

English rules for the plural and a list of irregular nouns. A form that is no word does no harm where only tokens of a vocabulary are kept.
"""

from types import MappingProxyType

_IRREGULAR = """
    man men woman women child children foot feet tooth teeth goose geese mouse mice louse lice person people ox oxen penny pence die dice
    leaf leaves life lives wife wives knife knives half halves wolf wolves shelf shelves self selves calf calves thief thieves loaf loaves
    elf elves sheaf sheaves scarf scarves hoof hooves
    crisis crises analysis analyses basis bases thesis theses axis axes hypothesis hypotheses diagnosis diagnoses oasis oases
    datum data medium media bacterium bacteria curriculum curricula criterion criteria phenomenon phenomena stratum strata
    index indices matrix matrices vertex vertices appendix appendices fungus fungi nucleus nuclei cactus cacti focus foci radius radii
    stimulus stimuli alumnus alumni larva larvae formula formulae alga algae antenna antennae vertebra vertebrae genus genera corpus corpora
    sheep sheep fish fish deer deer species species series series aircraft aircraft salmon salmon trout trout moose moose
    hero heroes potato potatoes tomato tomatoes echo echoes veto vetoes torpedo torpedoes
"""
IRREGULAR_PLURALS = MappingProxyType(dict(zip(_IRREGULAR.split()[::2], _IRREGULAR.split()[1::2], strict=True)))
"""Noun -> plural where no rule gives it."""
_HISSING = ("s", "x", "z", "ch", "sh")


def plural(noun: str) -> str:
    """The plural of an English noun in lower case.

    >>> plural("city"), plural("box"), plural("child"), plural("postman")
    ('cities', 'boxes', 'children', 'postmen')
    """
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("man", "woman")) and noun not in ("human", "german", "roman", "talisman", "shaman", "ottoman"):
        return f"{noun[:-2]}en"
    if noun.endswith(_HISSING):
        return f"{noun}es"
    if noun.endswith("y") and len(noun) > 1 and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def word_forms(noun: str) -> tuple[str, ...]:
    """The noun, capitalised, in the plural, and both, each once; a noun with a capital of its own is a name, and has one form.

    >>> word_forms("bird"), word_forms("Paris")
    (('bird', 'Bird', 'birds', 'Birds'), ('Paris',))
    """
    if noun != noun.lower():
        return (noun,)
    many = plural(noun)
    return tuple(dict.fromkeys((noun, noun.capitalize(), many, many.capitalize())))
