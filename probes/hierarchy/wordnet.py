"""The nouns of WordNet as a taxonomy, and the part of it that a vocabulary has enough words for.

    words(s) = lemmas of all senses below s that are one token with a space before,      kept: more than 5 of them
    merge:     a sense with one sense below it takes that one's place (and its children), unless the lower has another parent and
               5 words or more fewer; what it has beyond the lower's words becomes the category "... , other"
    expand:    word -> word, Word, words, Words, those that are tokens;                   kept: more than 50, merged again

Park, Choe, Jiang, Veitch, "The Geometry of Categorical and Hierarchical Concepts in Large Language Models", ICLR 2025 (arXiv 2406.01506),
section 5; senses from `sae.activations.corpus.wordnet_nouns`, which a named instance (Paris) is below its class in.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from probes.hierarchy.inflection import word_forms
from probes.unembedding import Unembedding
from sae.activations.corpus import Synset
from sae.errors import ConfigError, FormatError

MORE_WORDS = 5
"""A category is kept with more words than this, before its other forms are added; a remainder of so many is dropped."""


class Taxonomy:
    """Noun senses with what is above and below each."""

    def __init__(self, synsets: Sequence[Synset]) -> None:
        self.synsets = {synset.id: synset for synset in synsets}

    @cached_property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """The senses directly above each: those it is a kind of, then those it is an instance of."""
        above = {s.id: (*s.hypernyms, *s.instances) for s in self.synsets.values()}
        for child, parents in above.items():
            for parent in parents:
                if parent not in above:
                    raise FormatError(f"the sense above {child}, {parent}, is not among the {len(above)} senses (Taxonomy)")
        return above

    @cached_property
    def children(self) -> Mapping[str, tuple[str, ...]]:
        """The senses directly below each."""
        return _inverse(self.parents)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Every sense after all that are above it. Raises FormatError for a sense that is above itself."""
        return topological(self.parents)

    def ancestors(self, synset_id: str) -> frozenset[str]:
        """All senses above one. Raises ConfigError for an unknown sense."""
        if synset_id not in self.synsets:
            raise ConfigError(f"synset_id must be one of the {len(self.synsets)} senses, got {synset_id!r} (Taxonomy.ancestors)")
        found: set[str] = set()
        waiting = list(self.parents[synset_id])
        while waiting:
            sense = waiting.pop()
            if sense not in found:
                found.add(sense)
                waiting += self.parents[sense]
        return frozenset(found)

    def words_below(self, keep: Iterable[str]) -> dict[str, frozenset[str]]:
        """The lemmas of all senses below each sense that are in `keep`, for senses that have any."""
        allowed = frozenset(keep)
        below: dict[str, set[str]] = {}
        for sense in reversed(self.order):
            own = allowed.intersection(self.synsets[sense].lemmas) | below.get(sense, set())
            if own:
                for parent in self.parents[sense]:
                    below.setdefault(parent, set()).update(own)
        return {sense: frozenset(words) for sense, words in below.items()}


def topological(parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The keys, each after all its parents, otherwise in their order. Raises FormatError for a cycle."""
    children, waiting = _inverse(parents), {node: len(above) for node, above in parents.items()}
    order = [node for node, count in waiting.items() if count == 0]
    for node in order:  # grows as it is read
        for child in children[node]:
            waiting[child] -= 1
            if waiting[child] == 0:
                order.append(child)
    if len(order) < len(parents):
        stuck = next(node for node, count in waiting.items() if count > 0)
        raise FormatError(f"{len(parents) - len(order)} senses are above themselves or below such a one, {stuck} for one (topological)")
    return tuple(order)


def _inverse(parents: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    below: dict[str, list[str]] = {node: [] for node in parents}
    for node, above in parents.items():
        for parent in above:
            below[parent].append(node)
    return {node: tuple(children) for node, children in below.items()}


@dataclass(frozen=True, eq=False)
class ConceptHierarchy:
    """Categories of words in a vocabulary, with their parents."""

    names: tuple[str, ...]
    """First word of each sense; with the sense's number where two share it."""
    ids: tuple[str, ...]
    """Number of each sense, with "other" after it for what a merged category left over."""
    rows: tuple[Int[np.ndarray, "_"], ...]
    """Rows of the unembedding of each category's words, ascending."""
    families: Int[np.ndarray, " n_tokens"]
    """Word family of each row of the unembedding: forms of one noun share it, so that a split can keep them together."""
    parents: tuple[tuple[int, ...], ...]
    """Numbers of the categories directly above each."""

    def __len__(self) -> int:
        return len(self.names)

    def edges(self, *, largest_share: float = 0.8) -> Int[np.ndarray, "n 2"]:
        """(parent, child) for each child that has at most `largest_share` of its parent's words and lies within it.

        A child that is nearly its parent leaves too little of it to compare with. Raises ConfigError for a share outside 0..1.
        """
        if not 0 < largest_share <= 1:
            raise ConfigError(f"largest_share must be above 0 and at most 1, got {largest_share} (ConceptHierarchy.edges)")
        found = [
            (parent, child)
            for child, above in enumerate(self.parents)
            for parent in above
            if len(self.rows[child]) <= largest_share * len(self.rows[parent])
            and len(np.setdiff1d(self.rows[parent], self.rows[child])) > 1
        ]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def index(self, name: str) -> int:
        """The number of a category by its name or its sense's number. Raises ConfigError, naming some, for an unknown one."""
        for known in (self.names, self.ids):
            if name in known:
                return known.index(name)
        near = [known for known in self.names if name.lower() in known.lower()][:5] or self.names[:5]
        raise ConfigError(f"name must be one of the {len(self)} categories, got {name!r}; there are {', '.join(near)} (ConceptHierarchy)")


@dataclass
class _Node:
    """A category under construction."""

    words: frozenset[str]
    parents: list[str]
    lemma: str


def vocabulary_hierarchy(
    unembedding: Unembedding, synsets: Sequence[Synset] | None = None, *, more_than: int = 50, merge_again: bool = True
) -> ConceptHierarchy:
    """The categories of nouns that more than `more_than` tokens of the vocabulary belong to. `synsets` None: WordNet's, shipped.

    Raises ConfigError when no category has so many.
    """
    from sae.activations.corpus import wordnet_nouns

    taxonomy = Taxonomy(wordnet_nouns() if synsets is None else synsets)
    known = {token[1:] for token in unembedding.tokens if token.startswith(" ") and len(token) > 1}
    below = taxonomy.words_below(known)
    kept = {sense for sense, words in below.items() if len(words) > MORE_WORDS}
    nodes = {
        sense: _Node(below[sense], [p for p in taxonomy.parents[sense] if p in kept], taxonomy.synsets[sense].lemmas[0])
        for sense in taxonomy.order
        if sense in kept
    }
    nodes = _merged(nodes)
    families = _families(frozenset().union(*(node.words for node in nodes.values())), unembedding)
    for node in nodes.values():
        node.words = frozenset(form for word in node.words for form in word_forms(word) if form in known)
    nodes = _without_small(nodes, more_than)
    if merge_again:
        nodes = _without_small(_merged(nodes), more_than)
    if not nodes:
        largest = max(map(len, below.values()), default=0)
        raise ConfigError(
            f"no category has more than {more_than} of the vocabulary's {len(known)} words, the largest has {largest} lemmas; give a smaller "
            "more_than, or a vocabulary of English words that begin with a space (vocabulary_hierarchy)"
        )
    return _numbered(nodes, families, unembedding)


def _merged(nodes: Mapping[str, _Node]) -> dict[str, _Node]:
    """Chains merged, the lowest first: a node with one child takes the child's place."""
    merged = {name: _Node(node.words, list(node.parents), node.lemma) for name, node in nodes.items()}
    children = {name: list(below) for name, below in _inverse({n: node.parents for n, node in merged.items()}).items()}
    for name in reversed(topological({n: node.parents for n, node in merged.items()})):
        if len(children[name]) != 1:
            continue
        (child,) = children[name]
        left_over = merged[name].words - merged[child].words
        if len(merged[child].parents) > 1 and len(left_over) > MORE_WORDS:
            continue
        children[name] = children.pop(child)
        others = [parent for parent in merged.pop(child).parents if parent != name]
        for grandchild in children[name]:
            above = merged[grandchild].parents
            merged[grandchild].parents = list(dict.fromkeys(name if parent == child else parent for parent in above))
        for parent in others:  # the child's other parents lose it; what is below it stays below them
            children[parent] = list(dict.fromkeys(c for below in children[parent] for c in (children[name] if below == child else [below])))
            for grandchild in children[name]:
                if parent not in merged[grandchild].parents:
                    merged[grandchild].parents.append(parent)
        if len(left_over) > MORE_WORDS:
            other = f"{name}.other"
            merged[other] = _Node(left_over, [name], f"{merged[name].lemma}, other")
            children[name] = [*children[name], other]
            children[other] = []
    return merged


def _without_small(nodes: Mapping[str, _Node], more_than: int) -> dict[str, _Node]:
    """The nodes with more words than that; a parent that goes is replaced by its own nearest that stay."""
    nearest: dict[str, list[str]] = {}
    for name in topological({n: node.parents for n, node in nodes.items()}):
        kept = [p for parent in nodes[name].parents for p in ([parent] if len(nodes[parent].words) > more_than else nearest[parent])]
        nearest[name] = list(dict.fromkeys(kept))
    return {name: _Node(node.words, nearest[name], node.lemma) for name, node in nodes.items() if len(node.words) > more_than}


def _families(nouns: Iterable[str], unembedding: Unembedding) -> Int[np.ndarray, " n_tokens"]:
    """The least row of each row's word family; nouns with a form in common are one family."""
    family = np.arange(len(unembedding))
    for noun in sorted(nouns):
        rows = [row for row in map(unembedding.row_of_word, word_forms(noun)) if row is not None]
        roots = [_root(family, row) for row in rows]
        family[roots] = min(roots, default=0)
    return np.array([_root(family, row) for row in range(len(family))], dtype=np.int64)


def _root(family: np.ndarray, row: int) -> int:
    while family[row] != row:
        row = int(family[row])
    return row


def _numbered(nodes: Mapping[str, _Node], families: np.ndarray, unembedding: Unembedding) -> ConceptHierarchy:
    ids = tuple(topological({n: node.parents for n, node in nodes.items()}))
    number = {name: i for i, name in enumerate(ids)}
    counts = Counter(nodes[name].lemma for name in ids)
    lemmas = [nodes[name].lemma.replace("_", " ") for name in ids]
    names = tuple(f"{lemma} ({name})" if counts[nodes[name].lemma] > 1 else lemma for lemma, name in zip(lemmas, ids, strict=True))
    found = [[unembedding.row_of_word(word) for word in nodes[name].words] for name in ids]
    rows = tuple(np.array(sorted(row for row in each if row is not None), dtype=np.int64) for each in found)
    return ConceptHierarchy(names, ids, rows, families, tuple(tuple(number[parent] for parent in nodes[name].parents) for name in ids))
