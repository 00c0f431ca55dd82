"""Conditions under which a probe may be asked to work, as splits of rows: enough data, little, unequal classes, wrong labels, another source.

    normal       n = min(size - 100, 1024) training rows with equal classes, the rest to test on; size = rows that a balanced set can hold
    scarce       the first n of the same training rows for n = 2 ... 1024, evenly spaced in log n, and the same test rows
    imbalance    a positive share of 0.05, 0.10, ... 0.95 in training and test rows, the numbers of rows the same throughout
    noise        exactly round(p n) labels of the training rows turned over for p = 0, 0.05, ... 0.5; validation rows are among those
    shift        trained on one source, tested on held-out rows of that source (value 0) and on rows of another (value 1)

Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda, 2025, arXiv 2502.16681, section 3. A document is on one side of every split; without
`groups` every row is a document of its own. The training rows are in random order, because validation may take the last of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from sae.errors import ConfigError

Classes = Int[np.ndarray, " n"] | Bool[np.ndarray, " n"]
Documents = Shaped[np.ndarray, "_"] | None
MOST, TEST_ROWS, SHIFTED_ROWS = 1024, 100, 300
"""Training rows at most; rows kept for testing at least; test rows of another source at most."""
SIZES = tuple(int(n) for n in np.unique(np.logspace(1, 10, 20, base=2).round()))
SHARES = tuple(round(0.05 * i, 2) for i in range(1, 20))
NOISE = tuple(round(0.05 * i, 2) for i in range(11))


@dataclass(frozen=True, eq=False)
class RegimeSplit:
    """Rows to train on with the labels they are given, and rows to test on with the true ones."""

    regime: str
    """One of "normal", "scarce", "imbalance", "noise" or "shift"."""
    value: float
    """What varies: training rows, positive share, share of labels turned over, or 1 for another source."""
    train: Int[np.ndarray, " n_train"]
    """Row numbers, in random order."""
    y_train: Int[np.ndarray, " n_train"]
    """Labels of the training rows, 0 and 1, wrong ones included."""
    test: Int[np.ndarray, " n_test"]
    """Row numbers, in ascending order; their documents have no row in `train`."""


def normal_split(
    y: Classes, groups: Documents = None, *, n_train: int | None = None, positive_share: float = 0.5, seed: int = 42
) -> RegimeSplit:
    """`n_train` rows (min(size - 100, 1024) unless given) with round(positive_share n_train) positives; of the documents that are left, as
    many rows as the same share allows.

    Documents are taken in random order until they hold the training rows. Raises ConfigError, with the counts, where there are too few.
    """
    y, groups = _checked(y, groups, "normal_split")
    return _balanced(y, groups, np.arange(len(y)), n_train, positive_share, seed, ("normal", float(positive_share)))


def scarce_splits(y: Classes, groups: Documents = None, *, sizes: Sequence[int] | None = None, seed: int = 42) -> list[RegimeSplit]:
    """One split per size, the smaller ones within the larger, all with the test rows of the largest.

    `sizes` are those of the twenty that leave 100 test rows unless given. Raises ConfigError for a size below 2, or too large.
    """
    y, groups = _checked(y, groups, "scarce_splits")
    most = _most(y, 0.5)
    sizes = [n for n in SIZES if n <= most] if sizes is None else sorted(sizes)
    if not sizes or sizes[0] < 2:
        raise ConfigError(f"sizes must hold numbers of at least 2, got {list(sizes)} with {most} balanced rows to train on (scarce_splits)")
    largest = _balanced(y, groups, np.arange(len(y)), sizes[-1], 0.5, seed, ("scarce", float(sizes[-1])))
    by_class = [largest.train[largest.y_train == label] for label in (0, 1)]
    splits = []
    for n in sizes:
        rows = np.concatenate([by_class[1][: n // 2], by_class[0][: n - n // 2]])
        rows = rows[np.argsort(_place(rows, largest.train))]
        splits.append(RegimeSplit("scarce", float(n), rows, y[rows], largest.test))
    return splits


def imbalance_splits(
    y: Classes, groups: Documents = None, *, shares: Sequence[float] = SHARES, n_train: int | None = None, seed: int = 42
) -> list[RegimeSplit]:
    """One split per positive share, with the same number of training rows and of test rows for all: those that the most unequal allows.

    Raises ConfigError for a share outside (0, 1), or too few rows of a class.
    """
    y, groups = _checked(y, groups, "imbalance_splits")
    if not shares or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"shares must lie in (0, 1), got {list(shares)} (imbalance_splits)")
    n_train = min(_most(y, share) for share in shares) if n_train is None else n_train
    whole = np.arange(len(y))
    splits = [_balanced(y, groups, whole, n_train, share, seed, ("imbalance", float(share))) for share in shares]
    n_test = min(len(split.test) for split in splits)
    trimmed = []
    for split in splits:
        test = _draw(y, split.test, n_test, split.value, np.random.default_rng(seed))
        trimmed.append(RegimeSplit("imbalance", split.value, split.train, split.y_train, test))
    return trimmed


def noise_splits(
    y: Classes, groups: Documents = None, *, shares: Sequence[float] = NOISE, n_train: int | None = None, seed: int = 42
) -> list[RegimeSplit]:
    """The normal split with exactly round(share n) training labels turned over, those of a smaller share among those of a larger.

    The test labels are the true ones. Raises ConfigError for a share outside 0..1.
    """
    y, groups = _checked(y, groups, "noise_splits")
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"shares must lie in 0..1, got {list(shares)} (noise_splits)")
    clean = _balanced(y, groups, np.arange(len(y)), n_train, 0.5, seed, ("noise", 0.0))
    order = np.random.default_rng(seed).permutation(len(clean.train))
    splits = []
    for share in shares:
        turned = order[: round(share * len(order))]
        labels = clean.y_train.copy()
        labels[turned] = 1 - labels[turned]
        splits.append(RegimeSplit("noise", float(share), clean.train, labels, clean.test))
    return splits


def shift_splits(
    y: Classes, shifted: Bool[np.ndarray, "_"], groups: Documents = None, *, n_train: int | None = None, seed: int = 42
) -> list[RegimeSplit]:
    """Two splits with the same training rows, none of which is `shifted`: tested on held-out rows like them, and on the shifted rows, of
    which at most 300 are taken, with equal classes.

    Raises ConfigError where a side lacks a class, or a document has rows of both kinds.
    """
    y, groups = _checked(y, groups, "shift_splits")
    if len(shifted) != len(y):
        raise ConfigError(f"shifted must have one entry per label, got {len(shifted)} for {len(y)} (shift_splits)")
    shared = np.intersect1d(groups[shifted], groups[~shifted])
    if len(shared):
        raise ConfigError(
            f"groups must be of one source each, got {len(shared)} with shifted rows and others, e.g. {shared.tolist()[0]!r} (shift_splits)"
        )
    counts = [int((y[shifted] == label).sum()) for label in (0, 1)]
    if min(counts) == 0:
        raise ConfigError(f"shifted rows must hold both classes, got {counts[0]} of class 0 and {counts[1]} of class 1 (shift_splits)")
    own = _balanced(y, groups, np.flatnonzero(~shifted), n_train, 0.5, seed, ("shift", 0.0))
    size = min(2 * min(counts), SHIFTED_ROWS)
    other = _draw(y, np.flatnonzero(shifted), size, 0.5, np.random.default_rng(seed))
    return [own, RegimeSplit("shift", 1.0, own.train, own.y_train, other)]


def _checked(y: np.ndarray, groups: np.ndarray | None, where: str) -> tuple[np.ndarray, np.ndarray]:
    groups = np.arange(len(y)) if groups is None else groups
    if len(groups) != len(y):
        raise ConfigError(f"groups must have one entry per label, got {len(groups)} for {len(y)} ({where})")
    if not np.isin(y, (0, 1)).all():
        raise ConfigError(f"y must hold 0 and 1 only, got {np.unique(y)[:5].tolist()} ({where})")
    y = y.astype(np.int64)
    if len(np.unique(y)) < 2:
        raise ConfigError(f"y must hold both classes, got {int((y == 0).sum())} of class 0 and {int((y == 1).sum())} of class 1 ({where})")
    return y, groups


def _size(counts: Sequence[int], share: float) -> int:
    """Rows of a set with that positive share that these counts of class 0 and 1 can fill."""
    return int(min(counts[1] / share, counts[0] / (1 - share)) + 1e-9)


def _most(y: np.ndarray, share: float) -> int:
    return max(min(_size([int((y == 0).sum()), int((y == 1).sum())], share) - TEST_ROWS, MOST), 0)


def _balanced(
    y: np.ndarray, groups: np.ndarray, pool: np.ndarray, n_train: int | None, share: float, seed: int, name: tuple[str, float]
) -> RegimeSplit:
    if not 0 < share < 1:
        raise ConfigError(f"positive_share must be in (0, 1), got {share} (regime {name[0]!r})")
    available = [int((y[pool] == label).sum()) for label in (0, 1)]
    n_train = _most(y[pool], share) if n_train is None else n_train
    wanted = _parts(n_train, share)
    found = f"got {available[0]} rows of class 0 and {available[1]} of class 1"
    if n_train < 2 or any(want >= have for want, have in zip(wanted, available, strict=True)):
        raise ConfigError(
            f"y must hold more than {wanted[0]} and {wanted[1]} rows to train on {max(n_train, 2)} at a positive share of {share:g} and keep some "
            f"to test on (at least {TEST_ROWS} unless n_train is given), {found}: give a smaller n_train, or label more rows (regime {name[0]!r})"
        )
    generator = np.random.default_rng(seed)
    documents, document = np.unique(groups[pool], return_inverse=True)
    place = generator.permutation(len(documents))[document]
    order = pool[np.lexsort((generator.permutation(len(pool)), place))]
    train = np.concatenate([order[y[order] == label][:want] for label, want in zip((0, 1), wanted, strict=True)])
    left = pool[~np.isin(groups[pool], groups[train])]
    counts = [int((y[left] == label).sum()) for label in (0, 1)]
    size = _size(counts, share)
    if min(counts) == 0 or min(_parts(size, share)) == 0:
        raise ConfigError(
            f"groups must leave documents of both classes to test on, got {counts[0]} rows of class 0 and {counts[1]} of class 1 outside the "
            f"documents of {n_train} training rows: give a smaller n_train, or more documents (regime {name[0]!r})"
        )
    train = generator.permutation(train)
    return RegimeSplit(*name, train, y[train], _draw(y, left, size, share, generator))


def _parts(n: int, share: float) -> tuple[int, int]:
    """Rows of class 0 and of class 1."""
    positive = min(max(round(share * n), 1), n - 1)
    return n - positive, positive


def _draw(y: np.ndarray, pool: np.ndarray, n: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """n rows of the pool with that positive share, ascending."""
    chosen = [generator.permutation(pool[y[pool] == label])[:want] for label, want in zip((0, 1), _parts(n, share), strict=True)]
    return np.sort(np.concatenate(chosen))


def _place(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where each of `rows` stands in `order`."""
    sorter = np.argsort(order)
    return sorter[np.searchsorted(order, rows, sorter=sorter)]
