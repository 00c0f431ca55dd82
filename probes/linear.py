"""The dense baseline: what a linear probe reads from all coordinates.

A sparse probe is read against it: the gap is what k coordinates miss. It is the logistic fit of `probes.base` on every column.
"""

import numpy as np

from probes.base import Choice, LinearProbe
from probes.selection import Matrix


class DenseProbe(LinearProbe):
    """L2-penalised logistic regression on all columns, each z-scored with the training rows' mean and standard deviation.

    C: inverse strength of the penalty on the z-scored columns. class_weight: as in scikit-learn. A sparse matrix stays sparse (columns
    are scaled, not centred: the same rule, since the intercept is free). It equals `KSparseProbe(k=d)`. Z-scoring weighs a latent that
    fires on one training row as much as one that fires on half of them: with many rare latents it overfits, and C should be lowered.
    """

    def __init__(self, C=1.0, class_weight="balanced"):
        self.C = C
        self.class_weight = class_weight

    def _choose(self, X: Matrix, y: np.ndarray, sample_weight: np.ndarray) -> Choice:
        return Choice(np.arange(X.shape[1]), None)

    def _columns(self, X: Matrix, support: np.ndarray) -> Matrix:
        return X
