"""Circular probes and patches on models whose read-out is known, and explanations of states by regression."""

import math

import pytest
import torch

from sae.errors import ConfigError
from sae.geometry.multidimensional import (
    circle_of_labels,
    circle_points,
    explain_by_regression,
    fit_circle_probe,
    logit_difference,
    off_circle_sweep,
    one_hot,
    patch_in_subspace,
    patch_on_circle,
)

N_CLASSES, D = 7, 40


def planted(seed=0, n=210, noise=0.05):
    """(activations, classes, the two directions of the circle, mean): a circle on an oblique ellipse, far from the origin, among other variance."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, 4, generator=generator, dtype=torch.float64)).Q.T
    labels = torch.arange(n) % N_CLASSES
    y = circle_of_labels(labels, n_classes=N_CLASSES)
    plane = torch.tensor([[3.0, 0.5], [-0.8, 2.0]], dtype=torch.float64) @ basis[:2]
    other = torch.randn(n, 2, generator=generator, dtype=torch.float64) @ (1.5 * basis[2:])
    mean = 4 * torch.randn(D, generator=generator, dtype=torch.float64)
    acts = mean + y @ plane + other + noise * torch.randn(n, D, generator=generator, dtype=torch.float64)
    return acts, labels, plane, basis


def angles_of(labels):
    return 2 * math.pi * labels.double() / N_CLASSES


def test_a_probe_reads_the_angle_of_a_planted_circle():
    acts, labels, _, basis = planted()
    probe = fit_circle_probe(acts, angles_of(labels))
    torch.testing.assert_close(probe.coordinates(acts), circle_of_labels(labels, n_classes=N_CLASSES), atol=0.15, rtol=0)
    assert probe.r_squared > 0.99
    turned = (probe.angles(acts) - angles_of(labels) + math.pi) % (2 * math.pi) - math.pi
    assert turned.abs().max() < 0.15
    torch.testing.assert_close(probe.plane @ probe.plane.T, torch.eye(2, dtype=torch.float64))
    assert (probe.plane @ basis[:2].T).norm() == pytest.approx(math.sqrt(2), abs=0.02)  # the same plane


def test_the_probe_is_the_least_squares_map_of_the_components():
    acts, labels, _, _ = planted(1, noise=0.8)
    probe = fit_circle_probe(acts, angles_of(labels), n_components=4)
    scores = (acts - acts.mean(0)) @ torch.linalg.svd(acts - acts.mean(0), full_matrices=False).Vh[:4].T
    y = circle_of_labels(labels, n_classes=N_CLASSES)
    fitted = scores @ torch.linalg.pinv(scores) @ y
    torch.testing.assert_close(probe.coordinates(acts), fitted)
    assert probe.r_squared == pytest.approx(1 - ((fitted - y).square().sum() / y.square().sum()).item())


def test_a_patch_has_the_probe_output_it_was_asked_for_and_nothing_else():
    acts, labels, _, _ = planted(2)
    probe = fit_circle_probe(acts, angles_of(labels))
    targets = circle_points(torch.tensor([0.3, 2.0, -1.0]), radius=1.7)
    patched = patch_on_circle(probe, targets)
    torch.testing.assert_close(probe.coordinates(patched), targets)
    outside = torch.eye(D, dtype=torch.float64) - probe.plane.T @ probe.plane
    assert ((patched - probe.mean) @ outside).abs().max() < 1e-9
    kept = patch_on_circle(probe, targets, acts=acts[:3])
    torch.testing.assert_close(probe.coordinates(kept), targets)
    torch.testing.assert_close(kept @ outside, acts[:3] @ outside)


def test_subtracting_the_raw_mean_shifts_every_patch_by_the_mean_in_the_plane():
    acts, labels, _, _ = planted(3)
    probe = fit_circle_probe(acts, angles_of(labels))
    targets = circle_points(torch.tensor([0.3, 2.0]))
    shift = patch_on_circle(probe, targets) - patch_on_circle(probe, targets, subtract_raw_mean=True)
    torch.testing.assert_close(shift, (probe.mean @ probe.plane.T @ probe.plane).expand(2, -1))
    assert (probe.coordinates(patch_on_circle(probe, targets, subtract_raw_mean=True)) - targets).abs().max() > 0.1


def read_out(acts, plane, mean, beta):
    """Logits k . (R_beta y) over the answers k: a model that adds beta to the angle that it reads off the plane."""
    y = (acts - mean) @ torch.linalg.pinv(plane)
    turn = 2 * math.pi * beta.double() / N_CLASSES
    turned = torch.stack([turn.cos() * y[:, 0] - turn.sin() * y[:, 1], turn.sin() * y[:, 0] + turn.cos() * y[:, 1]], 1)
    return turned @ circle_of_labels(torch.arange(N_CLASSES), n_classes=N_CLASSES).T


def test_patches_in_the_plane_move_every_answer_and_patches_in_a_random_plane_do_not():
    acts, labels, plane, _ = planted(4, noise=0.01)
    mean = acts.mean(0)
    alpha, beta, target = torch.cartesian_prod(*[torch.arange(N_CLASSES)] * 3).T
    changed = target != alpha
    alpha, beta, target = alpha[changed], beta[changed], target[changed]
    probe = fit_circle_probe(acts, angles_of(labels))
    clean = torch.stack([acts[labels == a][0] for a in alpha.tolist()])
    answer, wanted = (alpha + beta) % N_CLASSES, (target + beta) % N_CLASSES
    assert (read_out(clean, plane, mean, beta).argmax(1) == answer).all()

    goal = circle_of_labels(target, n_classes=N_CLASSES)
    for patched in (patch_on_circle(probe, goal), patch_on_circle(probe, goal, acts=clean)):
        logits = read_out(patched, plane, mean, beta)
        assert (logits.argmax(1) == wanted).all()
        assert (logit_difference(logits, answer, wanted) < 0).all()

    generator = torch.Generator().manual_seed(5)
    random = torch.randn(2, D, generator=generator, dtype=torch.float64)
    random = random - random @ torch.linalg.pinv(plane) @ plane
    elsewhere = clean + 3 * goal @ torch.linalg.qr(random.T).Q.T
    assert (read_out(elsewhere, plane, mean, beta).argmax(1) == wanted).double().mean() == 0

    source = torch.stack([acts[labels == t][1] for t in target.tolist()])
    for basis in (torch.eye(D, dtype=torch.float64), probe.basis, probe.plane):
        for centre in (None, probe.mean):
            moved = read_out(patch_in_subspace(clean, source, basis, mean=centre), plane, mean, beta)
            assert (moved.argmax(1) == wanted).all()


def test_answers_follow_the_angle_of_the_sweep_at_every_radius():
    acts, labels, plane, _ = planted(6, noise=0.01)
    probe = fit_circle_probe(acts, angles_of(labels))
    angles = angles_of(torch.arange(N_CLASSES))
    sweep = off_circle_sweep(probe, radii=torch.tensor([0.3, 1.0, 4.0]), angles=angles)
    assert sweep.shape == (3, N_CLASSES, D)
    for each in sweep:
        assert read_out(each, plane, acts.mean(0), torch.zeros(N_CLASSES, dtype=torch.int64)).argmax(1).tolist() == list(range(N_CLASSES))
    torch.testing.assert_close(sweep[1], patch_on_circle(probe, circle_points(angles)))


def test_states_are_explained_by_what_they_were_made_of_and_by_no_more():
    generator = torch.Generator().manual_seed(7)
    alpha, beta = torch.cartesian_prod(torch.arange(N_CLASSES), torch.arange(N_CLASSES)).T
    gamma = (alpha + beta) % N_CLASSES
    maps = [torch.randn(k, 20, generator=generator, dtype=torch.float64) for k in (N_CLASSES, N_CLASSES, 2)]
    explanations = [one_hot(alpha, n_classes=N_CLASSES), one_hot(beta, n_classes=N_CLASSES), circle_of_labels(gamma, n_classes=N_CLASSES)]
    acts = sum((x @ w for x, w in zip(explanations, maps, strict=True)), start=torch.zeros(49, 20).double())
    found = explain_by_regression(acts, explanations)
    assert (found.r_squared.diff() > 0.01).all()
    assert found.r_squared[-1].item() == pytest.approx(1)
    for step in (1, 2, 3):
        design = torch.cat([torch.ones(49, 1).double(), *explanations[:step]], 1)
        residual = acts - design @ torch.linalg.pinv(design, atol=1e-6) @ acts
        centred = acts - acts.mean(0)
        assert found.r_squared[step - 1].item() == pytest.approx(1 - (residual.square().sum() / centred.square().sum()).item())
    left = explain_by_regression(acts, explanations[:2])
    assert left.residual_shares[:2].sum().item() == pytest.approx(1)  # what is left is the circle of the answer, a plane
    nothing = explain_by_regression(acts, [torch.zeros(49, 3)])
    assert nothing.r_squared.tolist() == [0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, a: fit_circle_probe(x, a, n_components=1), "n_components"),
        (lambda x, a: fit_circle_probe(x[:2], a[:2]), "at least 3"),
        (lambda x, a: fit_circle_probe(x * 0, a), "at least 2 directions"),
        (lambda x, a: fit_circle_probe(x, a * 0), "rank 1"),
        (lambda x, a: fit_circle_probe(x, a / 0), "finite"),
        (lambda x, a: patch_on_circle(fit_circle_probe(x, a), circle_points(a), acts=x[:2]), "acts must have a row"),
        (lambda x, a: patch_on_circle(fit_circle_probe(x, a), circle_points(a), acts=x, subtract_raw_mean=True), "subtract_raw_mean"),
        (lambda x, a: explain_by_regression(x, []), "explanations"),
        (lambda x, a: explain_by_regression(x, [x[:3]]), "explanations"),
        (lambda x, a: explain_by_regression(x * 0, [x]), "vary"),
        (lambda x, a: one_hot(torch.tensor([0, 7]), n_classes=7), "labels"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    acts, labels, _, _ = planted(8, n=21)
    with pytest.raises(ConfigError, match=message):
        call(acts, angles_of(labels + 0.1))
