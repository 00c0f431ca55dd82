"""Task: a question about texts, or about places in texts, with its answers. It is a value, known without any language model.

    kind "text"     row i is texts[i]                                            answer y[i]
    kind "token"    row i is the characters begin..end-1 of one of the texts     answer y[i],    spans[i] = (text, begin, end)

What is answered is one class of two, one of several, or a number. Rows of one document share its vocabulary and often its answer, so a split
must keep `groups` apart (`probes.validation`). `probes.features` turns a task into matrices: tokens of a span are found there, by offsets.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int, Shaped

from probes.problem import Target
from probes.results import Table
from sae.errors import ConfigError
from sae.fingerprint import canonical

Kind = Literal["text", "token"]
MIN_PER_CLASS = 20
EXCERPT = 40  # characters shown before and after a span


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled texts, or labelled places in texts; see the module's text.

    Raises ConfigError for lengths that differ, labels that are no class number, a number that is not finite, a class with fewer than
    `min_per_class` rows (saying how many each has), a text that is blank, and a span outside of its text.
    """

    name: str
    """What to call it in a table or a file name."""
    kind: Kind
    """What a row is: "text", a text; "token", some characters of a text."""
    texts: tuple[str, ...]
    """The texts: one per row of kind "text", any number for kind "token"."""
    y: Shaped[np.ndarray, "_"]
    """Answer of each row: class number 0, 1, ..., or a number to predict."""
    groups: Int[np.ndarray, "_"]
    """Document (or speaker, or question) of each row; splits keep these together."""
    classes: tuple[str, ...]
    """What the labels 0, 1, ... mean; empty where y is a number. Of two, the second is the positive one."""
    source: str
    """Where the texts and labels come from."""
    licence: str
    """Licence of the texts, in words."""
    spans: Int[np.ndarray, "_ 3"] | None = None
    """For kind "token": text number, first character and the one after the last, of each row; None for kind "text"."""
    min_per_class: int = MIN_PER_CLASS
    """Rows that every class must have."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r} (task {self.name!r})")
        if (self.spans is None) != (self.kind == "text"):
            raise ConfigError(f"spans must be given for kind 'token' and only then, kind is {self.kind!r} (task {self.name!r})")
        n_rows = len(self.texts) if self.spans is None else len(self.spans)
        if not n_rows == len(self.y) == len(self.groups):
            what, sizes = ("text", "texts") if self.spans is None else ("span", "spans")
            sizes = f"{n_rows} {sizes}, {len(self.y)} labels, {len(self.groups)} groups"
            raise ConfigError(f"{what}s, y and groups must have one entry per {what}, got {sizes} (task {self.name!r})")
        blank = next((i for i, text in enumerate(self.texts) if not text.strip()), None) if self.kind == "text" else None
        if blank is not None:
            raise ConfigError(f"texts must not be blank, texts[{blank}] is {self.texts[blank]!r}: leave that row out (task {self.name!r})")
        self._check_labels()
        self._check_spans()
        if self.classes:
            check_counts(self.counts, self.min_per_class, "texts" if self.kind == "text" else "rows", f"task {self.name!r}")

    def _check_labels(self) -> None:
        if len(self.classes) == 1 or len(set(self.classes)) != len(self.classes):
            what = "two classes or more, all different, or none for a number"
            raise ConfigError(f"classes must name {what}, got {list(self.classes)} (task {self.name!r})")
        kind = self.y.dtype.kind
        if not self.classes:
            if kind not in "iuf" or not np.isfinite(self.y).all():
                bad = int((~np.isfinite(self.y)).sum()) if kind == "f" else len(self.y)
                raise ConfigError(f"y must hold finite numbers, got {bad} of {len(self.y)} that are none: leave them out ({self.name!r})")
        elif kind not in "iu" or not np.isin(self.y, range(len(self.classes))).all():
            last, found = len(self.classes) - 1, np.unique(self.y)[:5].tolist()
            allowed = "0 and 1" if last == 1 else f"0..{last}"
            advice = "task_from_rows takes labels that are strings or booleans"
            raise ConfigError(f"y must hold {allowed} only, one number per class, got {found}; {advice} (task {self.name!r})")

    def _check_spans(self) -> None:
        if self.spans is None:
            return
        lengths = np.array([len(text) for text in self.texts], dtype=np.int64)
        text, begin, end = self.spans.T
        inside = (text >= 0) & (text < len(lengths))
        inside[inside] = (begin >= 0)[inside] & (begin < end)[inside] & (end[inside] <= lengths[text[inside]])
        if not inside.all():
            row = int(np.flatnonzero(~inside)[0])
            allowed = f"text in 0..{len(lengths) - 1} and 0 <= begin < end <= its length"
            raise ConfigError(
                f"spans must be (text, begin, end) with {allowed}, spans[{row}] is {self.spans[row].tolist()} ({self.name!r})"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        found = ", ".join(f"{n:,} {name}" for name, n in self.counts.items()) or f"{self.y.min():.3g} to {self.y.max():.3g}"
        return f"Task({self.name!r}: {len(self):,} rows of kind {self.kind} in {len(np.unique(self.groups)):,} groups; {found})"

    @property
    def target(self) -> Target:
        """What is answered: "binary", "classes" or "number"."""
        return {0: "number", 2: "binary"}.get(len(self.classes), "classes")  # type: ignore[return-value]

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each class, by its name; empty where y is a number."""
        if not self.classes:
            return {}
        return dict(zip(self.classes, np.bincount(self.y.astype(np.int64), minlength=len(self.classes)).tolist(), strict=True))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields but `min_per_class`: the task's part of a cache key."""
        head = [self.name, self.kind, list(self.classes), self.source, self.licence, len(self.texts), len(self.y)]
        state = hashlib.sha256(canonical(head).encode("ascii"))
        for text in self.texts:
            state.update(canonical([text]).encode("ascii"))
        state.update(canonical([self.y.tolist(), self.groups.tolist()]).encode("ascii"))
        if self.spans is not None:
            state.update(np.ascontiguousarray(self.spans, dtype="<i8").tobytes())
        return state.hexdigest()

    def row_text(self, row: int | np.integer) -> str:
        """The characters of a row: the text, or the span."""
        if self.spans is None:
            return self.texts[row]
        text, begin, end = self.spans[row]
        return self.texts[text][begin:end]

    def take(self, rows: Int[np.ndarray, "_"]) -> "Task":
        """The task with the given rows, in that order. A task of kind "token" keeps all its texts, so that one store serves all its parts."""
        texts = tuple(self.texts[i] for i in rows) if self.spans is None else self.texts
        return replace(self, texts=texts, y=self.y[rows], groups=self.groups[rows], spans=None if self.spans is None else self.spans[rows])

    def subsample(self, n_per_class: int, *, seed: int = 0) -> "Task":
        """The task with `n_per_class` rows of each class, drawn without replacement, in their old order. Raises ConfigError when a class has
        fewer, and for a number, of which `sample` draws.
        """
        if not self.classes:
            raise ConfigError(f"subsample draws rows of each class, task {self.name!r} asks for a number: use sample(n)")
        fewest = min(self.counts.values())
        if not self.min_per_class <= n_per_class <= fewest:
            raise ConfigError(f"n_per_class must be in {self.min_per_class}..{fewest}, got {n_per_class} (task {self.name!r})")
        return self._drawn([n_per_class] * len(self.classes), seed)

    def sample(self, n: int, *, seed: int = 0) -> "Task":
        """The task with `n` of its rows, drawn uniformly without replacement, in their old order. Raises ConfigError when there are fewer."""
        if not 1 <= n <= len(self):
            raise ConfigError(f"n must be in 1..{len(self)}, got {n} (task {self.name!r}, sample)")
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))

    def balanced(self, positive_share: float = 0.5, n: int | None = None, *, seed: int = 0) -> "Task":
        """The task with `positive_share` of its rows in class 1 (to the nearest row): `n` rows in all, or as many as there can be.

        Rows are drawn without replacement and keep their order. Raises ConfigError for a task that is not binary, a share outside of
        (0, 1), and when a class has too few rows for it, saying how many there are.
        """
        if self.target != "binary":
            raise ConfigError(f"balanced needs a task of two classes, {self.name!r} has {len(self.classes) or 'a number'} to answer")
        if not 0 < positive_share < 1:
            raise ConfigError(f"positive_share must be between 0 and 1, got {positive_share} (task {self.name!r})")
        negative, positive = self.counts.values()
        most = int(min(positive / positive_share, negative / (1 - positive_share)) + 1e-9)
        wanted = most if n is None else n
        n_positive = round(wanted * positive_share)
        if wanted - n_positive > negative or n_positive > positive or wanted < 1:
            have = f"it has {negative} of {self.classes[0]!r} and {positive} of {self.classes[1]!r}"
            raise ConfigError(f"n must be in 1..{most} at a positive share of {positive_share}, got {n}: {have} (task {self.name!r})")
        return self._drawn([wanted - n_positive, n_positive], seed)

    def _drawn(self, n_of_class: Sequence[int], seed: int) -> "Task":
        generator = np.random.default_rng(seed)
        chosen = [generator.choice(np.flatnonzero(self.y == label), n, replace=False) for label, n in enumerate(n_of_class)]
        return self.take(np.sort(np.concatenate(chosen)))

    def examples(self, n: int = 5, *, seed: int = 0) -> Table:
        """`n` rows of each class drawn at random (of all, for a number), to look at: a span stands between » and «."""
        generator, rows = np.random.default_rng(seed), []
        parts = [np.flatnonzero(self.y == label) for label in range(len(self.classes))] or [np.arange(len(self))]
        for part in parts:
            for row in np.sort(generator.choice(part, min(n, len(part)), replace=False)):
                answer = self.classes[int(self.y[row])] if self.classes else f"{self.y[row]:.3g}"
                rows.append((answer, int(self.groups[row]), self._shown(int(row))))
        return Table(f"{self.name}: {len(self):,} rows of kind {self.kind}", ("answer", "group", "row"), tuple(rows), self.source)

    def _shown(self, row: int) -> str:
        if self.spans is None:
            return " ".join(self.texts[row].split())[: 3 * EXCERPT]
        text, begin, end = self.spans[row]
        whole = self.texts[text]
        marked = f"{whole[max(0, begin - EXCERPT) : begin]}»{whole[begin:end][: 2 * EXCERPT]}«{whole[end : end + EXCERPT]}"
        return marked.replace("\n", "\\n")


def check_counts(
    counts: dict[str, int], least: int, unit: str, where: str, advice: str = "give more texts, leave the class out, or set min_per_class"
) -> None:
    """Raises ConfigError, saying how many rows each class has, when one has fewer than `least`."""
    if counts and min(counts.values()) >= least:
        return
    named = [f"{n} of {name!r}" for name, n in sorted(counts.items(), key=lambda item: item[1])] if len(counts) > 2 else None
    found = (
        ", ".join([*named[:4], f"and {len(named) - 4} other classes"] if len(named) > 5 else named)
        if named
        else " and ".join(f"{n} of {name!r}" for name, n in counts.items())
    )
    raise ConfigError(f"a task needs at least {least} {unit} of each class, got {found}; {advice} ({where})")


def numbered(values: Sequence[object]) -> Int[np.ndarray, "_"]:
    """0, 1, 2, ... for every different value, in the order of their first appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
