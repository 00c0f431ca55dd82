from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.baselines import LeadingColumns, RandomColumns, ValidatedProbe, nearest_neighbours


class TwoStrengths:
    """Settings with a name that is the same in every process, as names of tests must be."""

    def __call__(self, n, d):
        return [{"C": 1.0}, {"C": 0.01}]

    def __repr__(self):
        return "TwoStrengths()"


@parametrize_with_checks(
    [
        LeadingColumns(),
        RandomColumns(),
        ValidatedProbe(LogisticRegression(), TwoStrengths()),
        nearest_neighbours(),
    ]
)
def test_baseline_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)
