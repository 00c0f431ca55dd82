"""Ordered classes: planted circles, lines and simplices, against slow references, exchanged orders and searches over layers."""

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.multidimensional import circle_of_classes, class_means, strongest
from sae.geometry.multidimensional.classes import STATISTICS
from sae.geometry.topology import order_resultant


def embedded(means, *, n_each=20, d=60, noise=0.3, seed=0):
    """(points, labels) about class means, turned into R^d and moved far from the origin, the classes' points mixed."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(d, means.shape[1], generator=generator, dtype=torch.float64)).Q.T
    labels = torch.arange(len(means)).repeat(n_each)[torch.randperm(n_each * len(means), generator=generator)]
    points = means.double()[labels] @ frame + noise * torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    return points + 5 * torch.randn(d, generator=generator, dtype=torch.float64), labels


def ring(n):
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_a_planted_circle_is_found_in_order_and_closed():
    points, labels = embedded(3 * ring(12))
    found = circle_of_classes(points, labels, n_classes=12, n_null=199, seed=0)
    for name in ("held_out", "circle", "plane"):
        assert getattr(found, name).p_greater == 1 / 200, name
        assert getattr(found, name).value > 0.95, name
    assert found.line.value < found.circle.value - 0.2
    assert found.closure == pytest.approx(1, abs=0.15)
    assert found.plane_share > 0.9
    error = (found.predicted_angles - 2 * math.pi * torch.arange(12) / 12 + math.pi) % (2 * math.pi) - math.pi
    assert error.abs().max() < 0.4


def test_classes_in_another_order_are_not():
    order = torch.tensor([0, 5, 10, 3, 8, 1, 6, 11, 4, 9, 2, 7])  # every fifth: the same circle, walked in steps of five
    points, labels = embedded(3 * ring(12)[order])
    found = circle_of_classes(points, labels, n_classes=12, n_null=99, seed=0)
    for name in ("held_out", "circle", "plane"):
        assert getattr(found, name).p_greater > 0.1, name
    assert found.plane_share > 0.9  # a circle it is


def test_a_line_is_told_from_a_circle_by_its_ends():
    points, labels = embedded(torch.linspace(-4, 4, 9)[:, None])
    found = circle_of_classes(points, labels, n_classes=9, n_null=199, seed=0)
    assert found.line.value > 0.99
    assert found.line.p_greater == 1 / 200
    assert found.circle.value < found.line.value - 0.2
    assert found.closure == pytest.approx(8, rel=0.2)


def test_classes_at_equal_distances_have_no_order():
    points, labels = embedded(4 * torch.eye(7), noise=0.0)
    found = circle_of_classes(points, labels, n_classes=7, n_null=99, seed=0)
    assert (found.circle.value, found.line.value) == (0, 0)
    assert found.held_out.p_greater > 0.05
    assert found.plane_share == pytest.approx(2 / 6)


def test_held_out_angles_are_those_of_a_ridge_map_that_has_not_seen_the_class():
    points, labels = embedded(ring(7), noise=1.0, seed=3)
    means = class_means(points, labels, n_classes=7).numpy()
    y, cosines = ring(7).numpy(), []
    for c in range(7):
        seen = [k for k in range(7) if k != c]
        known = means[seen] - means[seen].mean(0)
        penalty = 0.5 * (known**2).sum(1).mean()
        predicted = KernelRidge(alpha=penalty).fit(known, y[seen]).predict(means[[c]] - means[seen].mean(0))[0]
        cosines.append(predicted @ y[c] / np.linalg.norm(predicted))
    found = circle_of_classes(points, labels, n_classes=7, n_null=9, seed=0, ridge=0.5)
    assert found.held_out.value == pytest.approx(np.mean(cosines))


def test_correlations_and_the_resultant_are_those_of_their_definitions():
    points, labels = embedded(ring(8), noise=1.5, seed=4)
    found = circle_of_classes(points, labels, n_classes=8, n_null=9, seed=0)
    means = torch.stack([points[labels == c].mean(0) for c in range(8)])
    torch.testing.assert_close(class_means(points, labels, n_classes=8), means)
    pairs = [(i, j) for i in range(8) for j in range(i)]
    distances = [(means[i] - means[j]).norm().item() for i, j in pairs]
    chords = [math.dist(ring(8)[i].tolist(), ring(8)[j].tolist()) for i, j in pairs]
    assert found.circle.value == pytest.approx(np.corrcoef(distances, chords)[0, 1])
    assert found.line.value == pytest.approx(np.corrcoef(distances, [i - j for i, j in pairs])[0, 1])
    left, lengths, _ = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    scores = left * lengths
    assert found.plane.value == pytest.approx(order_resultant(torch.atan2(scores[:, 1], scores[:, 0])))


def test_null_draws_are_the_statistics_of_classes_in_exchanged_orders():
    points, labels = embedded(ring(6), noise=1.0, seed=5)
    found = circle_of_classes(points, labels, n_classes=6, n_null=4, seed=7)
    generator = torch.Generator().manual_seed(7)
    for draw in found.null_draws:
        order = torch.randperm(6, generator=generator)
        again = circle_of_classes(points, order[labels], n_classes=6, n_null=4, seed=7)
        values = [getattr(again, name.replace(" ", "_")).value for name in STATISTICS]
        assert draw.tolist() == pytest.approx(values, abs=1e-9)


def test_search_over_layers_is_in_the_null_of_the_strongest():
    rows = [embedded(scale * ring(7), noise=1.0, seed=seed) for seed, scale in enumerate((0.0, 0.0, 3.0, 0.0))]
    results = [circle_of_classes(points, labels, n_classes=7, n_null=199, seed=0) for points, labels in rows]
    best, found = strongest(results, statistic="circle")
    assert best == 2
    assert found.value == results[2].circle.value
    assert found.null_mean > max(each.circle.null_mean for each in results)
    assert found.p_greater >= results[2].circle.p_greater
    assert found.null_mean == pytest.approx(torch.stack([each.null_draws[:, 1] for each in results]).amax(0).mean().item())


def test_p_values_are_uniform_for_classes_without_order():
    found = {}

    def results(seed):
        if seed not in found:
            generator = torch.Generator().manual_seed(seed)
            means = torch.randn(9, 5, generator=generator, dtype=torch.float64)
            found[seed] = circle_of_classes(means, torch.arange(9), n_classes=9, n_null=19, seed=seed + 105_000)
        return found[seed]

    for name in ("held_out", "circle", "line", "plane"):
        check_calibrated(lambda seed, name=name: getattr(results(seed), name).p_greater)


def statistics(x):
    found = circle_of_classes(x, torch.arange(len(x)) % 6, n_classes=6, n_null=2, seed=0)
    return torch.tensor([found.held_out.value, found.circle.value, found.line.value, found.plane.value, found.closure, found.plane_share])


def test_statistics_have_the_properties_of_their_definitions():
    # Rows belong to classes, so their order is part of the data.
    check(Measure("classes", statistics, rotation=True, scale=True, translation=True, linear=False, permutation=None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: circle_of_classes(x, y % 3, n_classes=3, n_null=9, seed=0), "n_classes"),
        (lambda x, y: circle_of_classes(x, y, n_classes=6, n_null=9, seed=0), "class 5"),
        (lambda x, y: circle_of_classes(x, y, n_classes=4, n_null=9, seed=0), "labels"),
        (lambda x, y: circle_of_classes(x, y, n_classes=5, n_null=1, seed=0), "n_null"),
        (lambda x, y: circle_of_classes(x, y, n_classes=5, n_null=9, seed=0, ridge=0.0), "ridge"),
        (lambda x, y: circle_of_classes(x * 0 + 1, y, n_classes=5, n_null=9, seed=0), "differ"),
        (lambda x, y: circle_of_classes(x / 0, y, n_classes=5, n_null=9, seed=0), "finite"),
        (lambda x, y: strongest([], statistic="circle"), "results"),
        (lambda x, y: strongest([], statistic="ring"), "statistic"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5)
