"""Convexity of classes on neighbour graphs: shapes whose answer is known, and paths walked one by one."""

import math

import pytest
import torch
from scipy.sparse.csgraph import dijkstra
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.topology import compare_convexity, convexity, neighbour_graph


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_scores(x, labels, k):
    graph = neighbour_graph(x, k=k)
    lengths, before = dijkstra(graph, directed=False, return_predecessors=True)
    scores = {}
    for label in sorted({int(c) for c in labels}):
        members = [i for i in range(len(x)) if int(labels[i]) == label]
        shares = []
        for i in members:
            for j in members:
                if i == j or math.isinf(lengths[i, j]):
                    continue
                path, at = [], int(before[i, j])
                while at != i:
                    path.append(at)
                    at = int(before[i, at])
                shares.append(sum(int(labels[p]) == label for p in path) / len(path) if path else 1.0)
        scores[label] = sum(shares) / len(shares)
    return scores


def test_scores_are_those_of_paths_walked_one_by_one():
    x = normal(60, 3, 0)
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))
    found, slow = convexity(x, labels, k=5), slow_scores(x, labels, 5)
    assert found.classes.tolist() == list(slow) and found.scores.tolist() == pytest.approx(list(slow.values()), abs=1e-12)
    assert found.mean == pytest.approx(sum(slow.values()) / 3)
    assert convexity(x, labels, k=5, block_elements=1).scores.tolist() == pytest.approx(found.scores.tolist(), abs=1e-12)


def test_half_spaces_are_convex_and_a_middle_between_two_halves_is_not():
    x = torch.linspace(0, 1, 90, dtype=torch.float64)[:, None]
    halves = (x[:, 0] > 0.5).long()
    assert convexity(x, halves, k=2).scores.tolist() == [1.0, 1.0]
    outside = ((x[:, 0] > 1 / 3) & (x[:, 0] < 2 / 3)).long()  # class 0 surrounds class 1
    found = convexity(x, outside, k=2)
    assert float(found.scores[1]) == 1.0 and 0.5 < float(found.scores[0]) < 0.9


def test_a_short_line_has_its_exact_score():
    x = torch.tensor([0.0, 1.0, 1.9, 2.7, 3.4], dtype=torch.float64)[:, None]  # k = 1: a chain, each joined to the next
    labels = torch.tensor([0, 1, 0, 1, 0])
    assert neighbour_graph(x, k=1).nnz == 8
    # Class 0: 0-2 and 2-4 pass a stranger each, 0-4 passes two and one of its own; class 1: 1-3 passes one stranger.
    assert convexity(x, labels, k=1).scores.tolist() == pytest.approx([(0 + 0 + 1 / 3) / 3, 0.0])


def test_planted_clusters_stand_out_and_shuffled_labels_have_their_share():
    centres = 4 * normal(4, 5, 2)
    labels = torch.arange(200) % 4
    x = centres[labels] + normal(200, 5, 3)
    found = compare_convexity(x, labels, k=8, n_null=19, generator=torch.Generator().manual_seed(0))
    assert found.value > 0.95 and found.p_greater == 0.05
    assert 0.15 < found.null_mean < 0.6 and found.value > found.null_mean + 10 * found.null_sd


def test_p_values_of_convexity_are_calibrated(unchecked):
    def p(seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (24,), generator=generator)
        return compare_convexity(normal(24, 3, seed), labels, k=4, n_null=19, generator=generator).p_greater

    check_calibrated(p, n_draws=100)


def test_pairs_without_a_path_are_counted_and_left_out():
    x = torch.cat([normal(15, 2, 4), normal(15, 2, 5) + 100])
    labels = torch.tensor([0] * 10 + [1] * 5 + [0] * 15)
    found = convexity(x, labels, k=4)
    assert found.disconnected == pytest.approx(2 * 10 * 15 / (25 * 24 + 5 * 4))
    apart = torch.tensor([0] * 14 + [1] + [2] * 14 + [1])  # class 1 has one member on either side
    lonely = convexity(x, apart, k=4)
    assert lonely.scores[1].isnan() and lonely.mean == pytest.approx(float(lonely.scores[[0, 2]].mean()))


LABELS = torch.arange(60) % 3


MEASURES = [
    Measure(
        "convexity", lambda x: convexity(x, LABELS, k=6).scores, rotation=True, scale=True, translation=True, linear=False, permutation=None
    ),
]


@pytest.mark.parametrize("measure", MEASURES, ids=str)
def test_convexity_has_the_properties_of_its_definition(measure):
    check(measure)


def test_bad_input_is_refused_with_a_reason():
    x = normal(10, 2, 6)
    with pytest.raises(ConfigError, match="one label per row, got 9 for 10"):
        convexity(x, torch.zeros(9, dtype=torch.int64), k=3)
    with pytest.raises(ConfigError, match="at least two members"):
        convexity(x, torch.arange(10), k=3)
    with pytest.raises(ConfigError, match=r"k must be in 1\.\.9"):
        convexity(x, torch.zeros(10, dtype=torch.int64), k=10)
    apart = torch.cat([normal(5, 2, 7), normal(5, 2, 8) + 100])
    with pytest.raises(ConfigError, match="raise k"):
        convexity(apart, torch.tensor([0, 1, 2, 3, 4, 0, 5, 6, 7, 8]), k=2)
