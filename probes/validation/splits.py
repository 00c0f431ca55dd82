"""Splits of rows by document, and labels that have lost their meaning but not their place in documents.

    train documents and test documents are disjoint,      classes have the same shares in every fold as far as documents allow

Labels of floating point are numbers to predict, all others are classes.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, StratifiedGroupKFold

from sae.errors import ConfigError

Groups = Shaped[np.ndarray, "_"]
Labels = Shaped[np.ndarray, " n"]


class Fold(NamedTuple):
    """Row numbers of one split."""

    train: Int[np.ndarray, " n_train"]
    """Rows to fit on."""
    test: Int[np.ndarray, " n_test"]
    """Rows to score on; their documents have no row in `train`."""


class Split(NamedTuple):
    """Labels with their folds."""

    y: Labels
    """Classes, or numbers to predict."""
    folds: list[Fold]
    """Splits of the rows by document."""


def group_folds(y: Labels, groups: Groups, *, n_folds: int = 5, seed: int = 0) -> list[Fold]:
    """`n_folds` folds that split documents, shuffled by `seed`; for classes the folds keep their shares alike.

    scikit-learn's StratifiedGroupKFold for classes, of any kind and number, and its GroupKFold for numbers (labels of floating point).
    Raises ConfigError, with the counts, when there are fewer documents than folds, when a class is found in fewer than `n_folds`
    documents, or when a fold would lack a class.
    """
    check_labels(y, groups)
    if n_folds < 2:
        raise ConfigError(f"n_folds must be at least 2, got {n_folds} (group_folds)")
    rows = np.zeros((len(y), 1))
    if is_number(y):
        n_groups = len(np.unique(groups))
        if n_groups < n_folds:
            raise ConfigError(
                f"groups must hold at least n_folds={n_folds} groups, got {n_groups}: take fewer folds or more documents (group_folds)"
            )
        folds = [Fold(*fold) for fold in GroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, y, groups)]
    else:
        classes = check_classes(y, "group_folds")
        counts = [len(np.unique(groups[y == label])) for label in classes]
        if min(counts) < n_folds:
            found = ", ".join(f"{count} for class {label}" for label, count in zip(classes.tolist(), counts, strict=True))
            raise ConfigError(
                f"groups must hold each class in at least n_folds={n_folds} groups, got {found}: take fewer folds or more documents "
                "(group_folds)"
            )
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():  # it counts rows of a class, we have counted its documents
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            folds = [Fold(*fold) for fold in splitter.split(rows, y, groups)]
    for fold in folds:
        check_fold(fold, y, groups)
    return folds


def group_holdout(y: Labels, groups: Groups, *, test_share: float = 0.3, seed: int = 0) -> Fold:
    """One split with `test_share` of the documents held out (scikit-learn's GroupShuffleSplit). ConfigError if a side lacks a class."""
    check_labels(y, groups)
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share must be in (0, 1), got {test_share} (group_holdout)")
    if len(np.unique(groups)) < 2:
        raise ConfigError("groups must hold at least 2 different groups, got 1 (group_holdout)")
    splitter = GroupShuffleSplit(1, test_size=test_share, random_state=seed)
    fold = Fold(*next(splitter.split(np.zeros((len(y), 1)), y, groups)))
    check_fold(fold, y, groups)
    return fold


def shuffle_labels(y: Labels, groups: Groups, *, seed: int) -> Labels:
    """Labels without their meaning, but as alike within documents as before.

    Where every document has one label, documents exchange labels. Otherwise each document's labels are turned round by a random number of
    rows, and the documents' labels, laid end to end in one random order, are dealt to the rows of the documents in another. Runs of equal
    labels survive, and so do a document's share of each class (up to where the borders fall) and each class's count. Without the first
    step, labels that follow one pattern in all documents, as those of pairs do, would come out as they were.
    """
    check_labels(y, groups)
    generator = np.random.default_rng(seed)
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    labels = y[first]
    if (labels[inverse] == y).all():
        return generator.permutation(labels)[inverse]
    target = np.argsort(generator.permutation(len(first))[inverse], kind="stable")
    shuffled = np.empty_like(y)
    shuffled[target] = y[_turned(inverse, generator)]
    return shuffled


def _turned(document: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Row numbers: documents in a random order, each beginning at a random one of its rows and going round."""
    rows = np.argsort(generator.permutation(document.max() + 1)[document], kind="stable")
    sizes = np.bincount(document)[document[rows]]
    first = np.maximum.accumulate(np.where(np.r_[True, document[rows][1:] != document[rows][:-1]], np.arange(len(rows)), 0))
    shift = generator.integers(0, 1 << 62, size=document.max() + 1)[document[rows]]
    return rows[first + (np.arange(len(rows)) - first + shift) % sizes]


def null_splits(y: Labels, groups: Groups, folds: Sequence[Fold], *, n_shuffles: int, seed: int) -> list[Split]:
    """`n_shuffles` shuffles of the labels, each with as many folds as `folds`, made by `group_folds` from the shuffled labels.

    A single fold, a hold-out, is kept as it is.
    """
    if n_shuffles < 0:
        raise ConfigError(f"n_shuffles must be at least 0, got {n_shuffles} (null_splits)")
    shuffled = [shuffle_labels(y, groups, seed=seed + 1 + i) for i in range(n_shuffles)]
    single = len(folds) == 1
    return [Split(labels, list(folds) if single else group_folds(labels, groups, n_folds=len(folds), seed=seed)) for labels in shuffled]


def is_number(y: np.ndarray) -> bool:
    """Whether the labels are numbers to predict: labels of floating point are, all others are classes."""
    return y.dtype.kind == "f"


def check_labels(y: np.ndarray, groups: np.ndarray) -> None:
    """ConfigError unless there is a group for every label, there is a label, and numbers are finite."""
    if len(y) != len(groups):
        raise ConfigError(f"groups must have one entry per label, got {len(groups)} for {len(y)}")
    if not len(y):
        raise ConfigError("y must hold at least one label, got none")
    if is_number(y) and not np.isfinite(y).all():
        raise ConfigError(f"y must be finite, got {int((~np.isfinite(y)).sum())} of {len(y)} entries that are not: leave those rows out")


def check_classes(y: np.ndarray, where: str) -> np.ndarray:
    """The classes there are, sorted. ConfigError unless there are two or more."""
    classes = np.unique(y)
    if len(classes) < 2:
        raise ConfigError(f"y must hold two classes or more, got only {classes.tolist()[0]!r} on all {len(y)} rows ({where})")
    return classes


def check_fold(fold: Fold, y: np.ndarray, groups: np.ndarray) -> None:
    """ConfigError if a document is on both sides, a side is empty, or a side lacks a class."""
    shared = np.intersect1d(groups[fold.train], groups[fold.test])
    if len(shared):
        raise ConfigError(f"folds must not share groups between train and test, got {len(shared)} shared, e.g. {shared.tolist()[0]!r}")
    for side, rows in zip(fold._fields, fold, strict=True):
        if not len(rows):
            raise ConfigError(f"every fold must have rows on both sides, got none in {side}")
        if is_number(y):
            continue
        classes, counts = np.unique(y), dict(zip(*np.unique(y[rows], return_counts=True), strict=True))
        if len(counts) < len(classes):
            found = " and ".join(f"{int(counts.get(label, 0))} of class {label}" for label in classes)
            raise ConfigError(
                f"every fold must hold {'both' if len(classes) == 2 else 'all'} classes on both sides, got {found} in {side}: "
                "take fewer folds or more documents"
            )
