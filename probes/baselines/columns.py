"""Columns to read: those whose class means lie furthest apart, or some drawn without looking.

    m_j = max_c |mean of x_j in class c - mean of x_j elsewhere| / a_j        two classes: the difference of their means
    a_j = mean of |x_j| where x_j is not 0                                    1 unless columns are divided, and for a column of zeros

Kantamneni et al., 2025, arXiv 2502.16681, rank latents so, and divide them in later versions of their code.
"""

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probes.selection import mean_difference, top_k
from sae.errors import ConfigError


class LeadingColumns(TransformerMixin, BaseEstimator):
    """The k columns with the largest difference of class means, as a dense matrix; a sparse X is read as it is, never made dense.

    divide: whether each column is first divided by a_j, so that latents are compared by how often they are active and not by how strongly;
    with few rows this favours latents that are active once. k above the number of columns takes all.

    Attributes after `fit`: `support_` (columns, best first), `scale_` (what each of them is divided by), `n_features_in_`.
    """

    def __init__(self, k: Any = 16, divide: Any = False) -> None:
        self.k = k
        self.divide = divide

    def fit(self, X: Any, y: Any) -> "LeadingColumns":
        """Choose the columns. X: dense or scipy sparse [n, d]; y: two classes or more. ConfigError for k below 1."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        check_classification_targets(y)
        if not isinstance(self.k, (int, np.integer)) or self.k < 1:
            raise ConfigError(f"k must be a whole number of at least 1, got {self.k!r} (LeadingColumns)")
        if not isinstance(self.divide, (bool, np.bool_)):
            raise ConfigError(f"divide must be True or False, got {self.divide!r} (LeadingColumns)")
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError("y must hold two classes or more, got one class")
        sides = classes[1:] if len(classes) == 2 else classes
        difference = np.max([np.abs(mean_difference(X, (y == label).astype(np.int64))) for label in sides], axis=0)
        scale = _mean_where_active(X) if self.divide else np.ones(X.shape[1])
        self.support_ = top_k(difference / scale, min(int(self.k), X.shape[1]))
        self.scale_ = scale[self.support_]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The chosen columns, divided: dense [n, k]."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        columns = X[:, self.support_]
        return (columns.toarray() if sparse.issparse(columns) else columns) / self.scale_

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the chosen columns."""
        check_is_fitted(self)
        names = [f"x{i}" for i in range(self.n_features_in_)] if input_features is None else input_features
        names = getattr(self, "feature_names_in_", names)
        return np.asarray(names, dtype=object)[self.support_]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = True
        return tags


class RandomColumns(SelectorMixin, BaseEstimator):
    """A share of the columns, drawn by seed without looking at them. Attributes after `fit`: `mask_`, `n_features_in_`."""

    def __init__(self, share: Any = 0.5, random_state: Any = 0) -> None:
        self.share = share
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "RandomColumns":
        """Draw the columns: round(share d), at least one. ConfigError for a share outside (0, 1]."""
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64)
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be in (0, 1], got {self.share} (RandomColumns)")
        d = X.shape[1]
        chosen = np.random.default_rng(self.random_state).permutation(d)[: max(1, round(self.share * d))]
        self.mask_ = np.isin(np.arange(d), chosen)
        return self

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self.mask_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _mean_where_active(X: Any) -> np.ndarray:
    """Mean of |x| over the rows where a column is not 0; 1 where it never is."""
    size = abs(X)
    total = np.asarray(size.sum(axis=0), dtype=np.float64).ravel()
    active = np.asarray((size > 0).sum(axis=0), dtype=np.float64).ravel()
    return np.where(active > 0, total / np.maximum(active, 1), 1.0)
