from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.baselines import LeadingColumns, RandomColumns, ValidatedProbe, nearest_neighbours


class Named:
    """A function with a name that is the same in every process, as names of tests must be."""

    def __init__(self, function):
        self.function = function

    def __call__(self, n, d):
        return self.function(n, d)

    def __repr__(self):
        return self.function.__name__


def two_strengths(n, d):
    return [{"C": 1.0}, {"C": 0.01}]


def named(probe):
    return probe.set_params(settings=Named(probe.settings))


@parametrize_with_checks(
    [
        LeadingColumns(),
        RandomColumns(),
        named(ValidatedProbe(LogisticRegression(), two_strengths)),
        named(nearest_neighbours()),
    ]
)
def test_baseline_passes_every_check_of_scikit_learn(estimator, check):
    check(estimator)
