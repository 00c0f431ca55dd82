"""Rows of tasks as ranges of tokens: which tokens of which text each row is read from, before any activation is known.

    all texts' tokens are numbered through:  text i has the tokens starts[i] .. starts[i + 1] - 1
    row r  =  the tokens first[r] .. stop[r] - 1 that count, pooled (mean, max), or the last of them

A row of kind "text" is all of its text; one of kind "token" the tokens that share a character with its span. Tokens that do not count
(massive activations, the first of a text where that is asked for) are never read. Tasks that ask about the same tokens share a row.
"""

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse

from probes.problem import Features, FeatureSource, Problem
from probes.results import Table
from probes.tasks.lexical import TokenTask
from probes.tasks.offsets import TextTokens, Tokenizer, token_offsets
from probes.tasks.task import Task, check_counts
from sae.errors import ConfigError
from sae.fingerprint import canonical

logger = logging.getLogger(__name__)
Pooling = Literal["mean", "last", "max"]


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """How rows are read from tokens."""

    text_pooling: Pooling = "mean"
    """How the tokens of a text become one row: their mean, the last that counts, the largest value of each coordinate."""
    token_pooling: Pooling = "last"
    """The same for the tokens of a span; "last" is the token with its last character, and the row is left out where that does not count."""
    skip_first: int = 0
    """Tokens at the start of each text that do not count (tokens); Gurnee et al. take 10."""
    missing: Literal["error", "drop"] = "error"
    """What happens to rows that the store (or the context) does not have: an error that says which, or they are left out."""

    def __post_init__(self) -> None:
        for name in ("text_pooling", "token_pooling"):
            if getattr(self, name) not in get_args(Pooling):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(Pooling))}, got {getattr(self, name)!r} (RowConfig)")
        if self.missing not in ("error", "drop"):
            raise ConfigError(f"missing must be 'error' or 'drop', got {self.missing!r} (RowConfig)")
        if self.skip_first < 0:
            raise ConfigError(f"skip_first must be at least 0, got {self.skip_first} (RowConfig)")


class Lost(NamedTuple):
    """What became of the rows of a task."""

    task: str
    """Name of the task."""
    n_rows: int
    """Rows that it has."""
    n_missing: int
    """Rows of which a token is not in the store, or beyond the context."""
    n_masked: int
    """Rows without a token that counts."""
    n_ambiguous: int
    """Rows that ask about the same tokens as another and have another answer: two spans that end in one token."""
    n_repeated: int
    """Rows that ask about the same tokens as one before and have its answer."""

    @property
    def n_kept(self) -> int:
        """Rows that are left."""
        return self.n_rows - self.n_missing - self.n_masked - self.n_ambiguous - self.n_repeated


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Problems with the source of their matrices; what `sweep` takes. Made by `from_store` and `from_model`."""

    source: FeatureSource
    """The matrices, one per site and per dictionary."""
    problems: tuple[Problem, ...]
    """One per task."""
    lost: tuple[Lost, ...]
    """What became of each task's rows."""

    def report(self) -> Table:
        """Rows of each task that are left, and why others are not."""
        rows = tuple((each.task, each.n_rows, each.n_kept, *each[2:]) for each in self.lost)
        columns = ("task", "rows", "kept", "missing", "masked", "ambiguous", "repeated")
        return Table("Rows of the tasks", columns, rows, "masked: no token that counts; ambiguous: one token, two answers")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Tokens of every row, row after row: row r has tokens[starts[r] : starts[r + 1]]."""

    tokens: Int[np.ndarray, " n_flat"]
    """Token numbers."""
    starts: Int[np.ndarray, " n_rows_and_one"]
    """Where each row begins, and the end."""
    reduce: str
    """How the tokens of a row become one: "mean" or "max"."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def digest(self) -> str:
        """SHA-256 of the rows."""
        state = hashlib.sha256(canonical([self.reduce, len(self.tokens)]).encode("ascii"))
        for part in (self.tokens, self.starts):
            state.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return state.hexdigest()


@dataclass(frozen=True, eq=False)
class Located:
    """Where the rows of tasks are; see the module's text. Made by `locate`."""

    tasks: tuple[Task, ...]
    """The tasks, those about tokens' strings labelled."""
    texts: tuple[str, ...]
    """Every different text that has rows."""
    tokens: list[TextTokens]
    """The tokens of each text."""
    starts: Int[np.ndarray, " n_texts_and_one"]
    """Number of each text's first token, and the number of all tokens."""
    first: Int[np.ndarray, " n_rows"]
    """First token of each row; ascending."""
    stop: Int[np.ndarray, " n_rows"]
    """The token after each row's last."""
    whole: Bool[np.ndarray, " n_rows"]
    """Whether the row is a whole text."""
    rows: tuple[Int[np.ndarray, "_"], ...]
    """Row of each label of each task; -1 where the tokenizer leaves the span no token."""
    config: RowConfig
    """How rows are read."""
    reduce: str
    """How several tokens become one row: "mean" or "max"."""

    @property
    def digest(self) -> str:
        """SHA-256 over tokens and ranges: with the model's and the sites' names, all that decides the matrices."""
        state = hashlib.sha256(
            canonical([self.config.text_pooling, self.config.token_pooling, self.config.skip_first, self.reduce]).encode("ascii")
        )
        ids = np.array([token for tokens in self.tokens for token in tokens.ids], dtype="<i8")
        for part in (ids, self.starts, self.first, self.stop, self.whole):
            state.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return state.hexdigest()

    def offsets(self) -> Int[np.ndarray, " n_tokens"]:
        """Tokens before each token in its text."""
        return np.arange(self.starts[-1]) - np.repeat(self.starts[:-1], np.diff(self.starts))

    def token_rows(self, counted: Bool[np.ndarray, " n_tokens"], rows: Int[np.ndarray, "_"] | None = None) -> TokenRows:
        """The tokens that count of the given rows (None: all), numbered as here; rows without one are empty."""
        first, stop, whole = (part if rows is None else part[rows] for part in (self.first, self.stop, self.whole))
        numbers = np.flatnonzero(counted)
        low, high = np.searchsorted(numbers, first), np.searchsorted(numbers, stop)
        if self.config.text_pooling == "last":
            low = np.where(whole & (high > low), high - 1, low)
        lengths = high - low
        starts = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.repeat(low - starts[:-1], lengths) + np.arange(starts[-1])
        return TokenRows(numbers[flat], starts, self.reduce)

    def problems(
        self, present: Bool[np.ndarray, " n_tokens"], counted: Bool[np.ndarray, " n_tokens"], *, cut: bool, where: str
    ) -> tuple[tuple[Problem, ...], tuple[Lost, ...]]:
        """The tasks' problems over the rows that are left, and what became of the others. With `cut` a text may lack its end.

        Raises ConfigError for rows that are missing, unless these are to be dropped, and when too few rows of a class are left.
        """
        before = np.concatenate([[0], np.cumsum(present)])
        n_present = before[self.stop] - before[self.first]
        there = np.where(self.whole & cut, n_present > 0, n_present == self.stop - self.first)
        usable = np.diff(self.token_rows(counted & present).starts) > 0
        made = [self._problem(task, rows, there, usable, where) for task, rows in zip(self.tasks, self.rows, strict=True)]
        return tuple(problem for problem, _ in made), tuple(lost for _, lost in made)

    def _problem(self, task: Task, rows: Int[np.ndarray, "_"], there: np.ndarray, usable: np.ndarray, where: str) -> tuple[Problem, Lost]:
        missing = rows >= 0
        missing[missing] = ~there[rows[missing]]
        if missing.any() and self.config.missing == "error":
            row = int(np.flatnonzero(missing)[0])
            shown = f"{int(missing.sum())} of {len(rows)} rows of task {task.name!r} are not in {where}, the first in {task.row_text(row)[:60]!r}"
            raise ConfigError(f"{shown}; make the store from task_corpus(*tasks), take a longer context, or set missing='drop' (RowConfig)")
        masked = ~missing & (rows < 0)
        seen = ~missing & ~masked
        masked[seen] = ~usable[rows[seen]]
        left = np.flatnonzero(~missing & ~masked)
        ambiguous, repeated = _repeats(rows[left], task.y[left]) if task.kind == "token" else (np.zeros(len(left), bool),) * 2
        keep = left[~ambiguous & ~repeated]
        lost = Lost(task.name, len(rows), *(int(part.sum()) for part in (missing, masked, ambiguous, repeated)))
        if lost.n_kept < lost.n_rows:
            logger.info("%s: %d of %d rows left in %s (%s)", task.name, lost.n_kept, lost.n_rows, where, lost)
        if task.classes:
            counts = dict(zip(task.classes, np.bincount(task.y[keep], minlength=len(task.classes)).tolist(), strict=True))
            check_counts(
                counts, task.min_per_class, "rows", f"task {task.name!r}, of whose {len(rows)} rows {len(keep)} can be read in {where}"
            )
        y = task.y[keep] if task.classes else task.y[keep].astype(np.float64)
        return Problem(task.name, rows[keep], y, task.groups[keep], task.classes), lost


def _repeats(rows: Int[np.ndarray, "_"], y: Shaped[np.ndarray, "_"]) -> tuple[Bool[np.ndarray, "_"], Bool[np.ndarray, "_"]]:
    """Which labels share a row with another label that differs, and which only repeat one before."""
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    differs = np.zeros(len(first), dtype=bool)
    np.logical_or.at(differs, inverse, y != y[first][inverse])
    ambiguous = differs[inverse]
    return ambiguous, ~ambiguous & (np.arange(len(rows)) != first[inverse])


def locate(tasks: Sequence[Task | TokenTask], tokenizer: Tokenizer, config: RowConfig) -> Located:
    """Where the rows of `tasks` are in their texts' tokens.

    Raises ConfigError for no task, two of one name, and for texts pooled one way with spans pooled another (mean and max).
    """
    if not tasks or isinstance(tasks, (Task, TokenTask)):
        raise ConfigError(f"tasks must be a list of at least one task, got {tasks!r}")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"tasks must have names of their own, got {names}: rename one with dataclasses.replace(task, name=...)")
    whole = tuple(task.labelled(tokenizer) if isinstance(task, TokenTask) else task for task in tasks)
    poolings = {config.text_pooling if task.kind == "text" else config.token_pooling for task in whole}
    if poolings == {"mean", "max"}:
        raise ConfigError("text_pooling and token_pooling must not be mean and max in one source: read the two kinds of tasks apart")
    texts = tuple(dict.fromkeys(text for task in whole for text in _used_texts(task)))
    number = {text: i for i, text in enumerate(texts)}
    tokens = token_offsets(tokenizer, texts)
    starts = np.concatenate([[0], np.cumsum([len(each.ids) for each in tokens])]).astype(np.int64)
    bounds = [
        (np.array([b for b, _ in each.offsets], dtype=np.int64), np.array([e for _, e in each.offsets], dtype=np.int64)) for each in tokens
    ]
    ranges = [_ranges(task, number, starts, bounds, config) for task in whole]
    every = np.concatenate(ranges)
    found, inverse = np.unique(every[every[:, 1] > every[:, 0]], axis=0, return_inverse=True)
    numbers = np.full(len(every), -1)
    numbers[every[:, 1] > every[:, 0]] = inverse.reshape(-1)
    rows = tuple(np.split(numbers, np.cumsum([len(part) for part in ranges])[:-1]))
    return Located(
        whole,
        texts,
        tokens,
        starts,
        found[:, 0],
        found[:, 1],
        found[:, 2].astype(bool),
        rows,
        config,
        "max" if "max" in poolings else "mean",
    )


def _used_texts(task: Task) -> tuple[str, ...]:
    return task.texts if task.spans is None else tuple(task.texts[i] for i in np.unique(task.spans[:, 0]))


def _ranges(
    task: Task,
    number: dict[str, int],
    starts: Int[np.ndarray, "_"],
    bounds: list[tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]],
    config: RowConfig,
) -> Int[np.ndarray, "n 3"]:
    """(first token, the one after the last, whether it is a whole text) of each row of a task."""
    if task.spans is None:
        texts = np.array([number[text] for text in task.texts])
        return np.stack([starts[texts], starts[texts + 1], np.ones(len(texts), dtype=np.int64)], axis=1)
    found = np.zeros((len(task), 3), dtype=np.int64)
    for i in np.unique(task.spans[:, 0]):
        text, mine = number[task.texts[i]], task.spans[:, 0] == i
        begins, ends = bounds[text]
        found[mine, 0] = starts[text] + np.searchsorted(ends, task.spans[mine, 1], side="right")
        found[mine, 1] = starts[text] + np.searchsorted(begins, task.spans[mine, 2], side="left")
    if config.token_pooling == "last":
        some = found[:, 1] > found[:, 0]
        found[some, 0] = found[some, 1] - 1
    return found


def pool_rows(
    x: Float[np.ndarray, "n_flat width"], starts: Int[np.ndarray, " n_rows_and_one"], reduce: str
) -> Float[np.ndarray, "n_rows width"]:
    """The rows of `x` between successive `starts`, each reduced to its mean (summed in float64) or maximum, float32; 0 where there is none."""
    lengths = np.diff(starts)
    if (lengths == 1).all():
        return x
    if (lengths <= 1).all():
        out = np.zeros((len(lengths), x.shape[1]), dtype=np.float32)
        out[lengths == 1] = x
        return out
    if reduce == "mean":
        weights = np.repeat(1 / np.maximum(lengths, 1), lengths)
        average = sparse.csr_matrix((weights, np.arange(len(x)), starts), shape=(len(lengths), len(x)))
        return (average @ x).astype(np.float32)
    out, some = np.zeros((len(lengths), x.shape[1]), dtype=np.float32), lengths > 0
    if some.any():
        out[some] = np.maximum.reduceat(x, starts[:-1][some], axis=0)
    return out


def pool_codes(
    z: sparse.csr_matrix, place: Int[np.ndarray, " n_flat"], starts: Int[np.ndarray, " n_rows_and_one"], reduce: str
) -> Features:
    """The same for sparse rows: place[f] is the row of `z` that the f-th token has. A latent that is silent on a token counts there as 0."""
    lengths = np.diff(starts)
    if (lengths == 1).all():
        return sparse.csr_matrix(z[place], dtype=np.float32)
    if reduce == "mean":
        weights = np.repeat(1 / np.maximum(lengths, 1), lengths)
        average = sparse.csr_matrix((weights, place, starts), shape=(len(lengths), z.shape[0]))
        return sparse.csr_matrix(average @ z, dtype=np.float32)
    empty = sparse.csr_matrix((1, z.shape[1]), dtype=np.float32)
    parts = [z[place[a:b]].max(axis=0) if b > a else empty for a, b in itertools.pairwise(starts)]
    return sparse.csr_matrix(sparse.vstack(parts), dtype=np.float32)
