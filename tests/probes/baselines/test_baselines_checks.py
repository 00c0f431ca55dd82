from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.baselines import LeadingColumns, RandomColumns, ValidatedProbe, nearest_neighbours


def two_strengths(n, d):
    return [{"C": 1.0}, {"C": 0.01}]


@parametrize_with_checks(
    [
        LeadingColumns(),
        RandomColumns(),
        ValidatedProbe(LogisticRegression(), two_strengths),
        nearest_neighbours(),
    ]
)
def test_baseline_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)
