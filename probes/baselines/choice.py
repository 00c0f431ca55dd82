"""A setting chosen on validation rows, which come out of the training rows and nowhere else.

    n rows to train on     validation
    n <= 3                 none: the first setting is taken, and its AUC is that on the training rows
    n <= 12                every pair of rows in turn
    n < 128                six folds, stratified and shuffled
    otherwise              the last min(n / 5, 100) rows

    AUC of a setting = mean over folds of the AUC on the rows left out;     the first of equal settings wins

Folds whose validation rows lack a class are dropped, and so are those whose training rows do. Kantamneni et al., 2025, arXiv 2502.16681,
appendix. Where documents have several rows the same rules are applied to documents instead of rows.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import rankdata
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import LeavePGroupsOut, LeavePOut, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from probes.validation.splits import Fold
from sae.errors import ConfigError, SaeError

Settings: TypeAlias = Callable[[int, int], Sequence[Mapping[str, Any]]]
"""(rows of the smallest training part, columns) -> settings of an estimator, the one that wins a tie first."""
NO_SEARCH, PAIRS, FOLDS = 3, 12, 128
"""Up to how many rows there is no search; up to how many every pair is left out; below how many there are six folds."""
N_FOLDS, LAST_SHARE, LAST_ROWS = 6, 0.2, 100
TIE_DECIMALS = 12


def validation_folds(y: Shaped[np.ndarray, " n"], groups: Shaped[np.ndarray, "_"] | None = None, *, seed: int = 42) -> list[Fold]:
    """The folds of the rules above; none where there is nothing to search with. `groups`: document of each row, kept on one side.

    Raises ConfigError for groups of another length.
    """
    n = len(y)
    groups = np.arange(n) if groups is None else groups
    if len(groups) != n:
        raise ConfigError(f"groups must have one entry per label, got {len(groups)} for {n} (validation_folds)")
    _, first, document = np.unique(groups, return_index=True, return_inverse=True)
    n_documents, single = len(first), len(first) == n
    if n_documents <= NO_SEARCH:
        return []
    rows = np.zeros((n, 1))
    if n_documents <= PAIRS:
        splits = list(LeavePOut(2).split(rows)) if single else list(LeavePGroupsOut(2).split(rows, y, document))
    elif n_documents < FOLDS:
        splitter = StratifiedKFold if single else StratifiedGroupKFold
        with warnings.catch_warnings():  # folds that lack a class are dropped below
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            splits = list(splitter(N_FOLDS, shuffle=True, random_state=seed).split(rows, y, None if single else document))
    else:
        n_last = int(min(LAST_SHARE * n_documents, LAST_ROWS))
        last = np.isin(document, np.argsort(first)[-n_last:])
        splits = [(np.flatnonzero(~last), np.flatnonzero(last))]
    n_classes = len(np.unique(y))
    return [Fold(*split) for split in splits if all(len(np.unique(y[side])) == n_classes for side in split)]


def ranking_auc(y: np.ndarray, decision: np.ndarray) -> float:
    """Share of pairs of a 1 and a 0 that the decision orders rightly, ties counting one half. NaN without both classes."""
    positive = y == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    return float((rankdata(decision)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


class ValidatedProbe(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A probe for two classes of which the setting is chosen on validation rows by the rules of this module, and which is then fitted to all rows.

    estimator: any classifier or pipeline with `decision_function` or `predict_proba`; what it scales or selects it learns inside the folds.
    settings: a function of rows and columns that gives the settings to choose from (`Settings`). A setting that does not converge is passed over.

    Attributes after `fit`: `classes_`; `probe_`, the fitted estimator; `setting_`; `val_auc_`, its AUC on validation rows, or on the
    training rows where `n_validation_` is 0; `val_aucs_`, that of every setting (NaN where it was not fitted or did not converge);
    `n_validation_`, the number of folds; `n_features_in_`.
    """

    def __init__(self, estimator: Any, settings: Any, seed: Any = 42) -> None:
        self.estimator = estimator
        self.settings = settings
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> "ValidatedProbe":
        """Choose and fit. X: array-like, or scipy sparse where the estimator takes it; y: two classes of any kind, the greater is positive.

        Raises ConfigError for no settings, SaeError if none converges, ValueError (as scikit-learn does) for X or y that cannot be used.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr" if get_tags(self.estimator).input_tags.sparse else False, dtype=np.float64)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        if not callable(self.settings):
            raise ConfigError(f"settings must be a function of rows and columns, got {self.settings!r} (ValidatedProbe)")
        classes, y = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("Classifier can't train when only one class is present.")
        folds = validation_folds(y, None if groups is None else np.asarray(groups), seed=self.seed)
        settings = list(self.settings(min((len(fold.train) for fold in folds), default=len(y)), X.shape[1]))
        if not settings:
            raise ConfigError(f"settings must give at least one setting, got none for {X.shape} (ValidatedProbe)")
        aucs = np.full(len(settings), np.nan)
        if folds:
            per_fold = [_aucs(self.estimator, settings, X, y, fold) for fold in folds]
            aucs = np.mean(per_fold, axis=0).round(TIE_DECIMALS)
        order = [i for i in np.argsort(-aucs, kind="stable").tolist() if not folds or np.isfinite(aucs[i])]
        chosen, probe = self._first_that_converges(settings, order, X, y)
        if not folds:
            aucs[chosen] = ranking_auc(y, _decision(probe, X))
        self.classes_, self.probe_, self.setting_ = classes, probe, dict(settings[chosen])
        self.val_aucs_, self.val_auc_, self.n_validation_ = aucs, float(aucs[chosen]), len(folds)
        return self

    def _first_that_converges(self, settings: Sequence[Mapping[str, Any]], order: Sequence[int], X: Any, y: np.ndarray) -> tuple[int, Any]:
        for i in order:
            probe = _fitted(self.estimator, settings[i], X, y)
            if probe is not None:
                return i, probe
        raise SaeError(f"none of {len(settings)} settings of {type(self.estimator).__name__} converged on {len(y)} rows: allow more steps")

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """The chosen probe's decision, above 0 for the positive class; its probability less 1/2 where it has no decision."""
        X = self._checked(X)
        return _decision(self.probe_, X)

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row."""
        X = self._checked(X)
        return self.classes_[np.asarray(self.probe_.predict(X), dtype=np.int64)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n 2"]:
        """Probability of each class, in the order of `classes_`."""
        X = self._checked(X)
        return self.probe_.predict_proba(X)

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        sparse = "csr" if get_tags(self.estimator).input_tags.sparse else False
        return validate_data(self, X, accept_sparse=sparse, dtype=np.float64, reset=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.sparse = get_tags(self.estimator).input_tags.sparse
        return tags


def _aucs(estimator: Any, settings: Sequence[Mapping[str, Any]], X: Any, y: np.ndarray, fold: Fold) -> list[float]:
    """The AUC of every setting on the fold's validation rows; what comes before a pipeline's last step is fitted once if no setting is of it."""
    train, test = X[fold.train], X[fold.test]
    if isinstance(estimator, Pipeline) and len(estimator.steps) > 1:
        name, last = estimator.steps[-1]
        own = f"{name}__"
        if all(key.startswith(own) for setting in settings for key in setting):
            before: Any = clone(Pipeline(estimator.steps[:-1]))
            train, test = before.fit_transform(train, y[fold.train]), before.transform(test)
            estimator, settings = last, [{key.removeprefix(own): value for key, value in setting.items()} for setting in settings]
    probes = (_fitted(estimator, setting, train, y[fold.train]) for setting in settings)
    return [float("nan") if probe is None else ranking_auc(y[fold.test], _decision(probe, test)) for probe in probes]


def _fitted(estimator: Any, setting: Mapping[str, Any], X: Any, y: np.ndarray) -> Any:
    """A fitted clone, or None where it does not converge."""
    probe: Any = clone(estimator).set_params(**setting)
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return probe.fit(X, y)
        except ConvergenceWarning:
            return None


def _decision(probe: Any, X: Any) -> np.ndarray:
    if hasattr(probe, "decision_function"):
        return np.asarray(probe.decision_function(X), dtype=np.float64)
    return np.asarray(probe.predict_proba(X), dtype=np.float64)[:, 1] - 0.5
