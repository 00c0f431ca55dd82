"""Curvature against closed forms and a loop over tokens."""

import itertools
import math

import numpy as np
import pytest
import torch
from universal import Measure, check, check_calibrated

from sae.errors import ConfigError
from sae.geometry.layerwise import compare_curvature, curvature
from sae.geometry.layerwise.curvature import shuffled_within


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one(points, **arguments):
    return curvature(points, torch.tensor([len(points)]), **arguments).item()


def polygon(n):
    angles = torch.arange(n + 1, dtype=torch.float64) * 2 * math.pi / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def direct(points, variant="differences"):
    z = points.numpy()
    steps = z - z.mean(0) if variant == "token" else np.diff(z, axis=0)
    angles = []
    for u, v in itertools.pairwise(steps):
        if np.linalg.norm(u) > 0 and np.linalg.norm(v) > 0:
            angles.append(math.acos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)))
    return np.mean(angles)


def test_a_line_does_not_turn_and_a_line_walked_to_and_fro_turns_back():
    line = torch.arange(12, dtype=torch.float64)[:, None] * gaussian(1, 9) + gaussian(1, 9, seed=1)
    assert one(line) == pytest.approx(0, abs=1e-12)
    assert one(line[[0, 3, 1, 5, 2]]) == pytest.approx(math.pi, abs=1e-12)


@pytest.mark.parametrize("n", [3, 4, 7, 360, 100_000])
def test_a_regular_polygon_turns_by_a_full_turn_over_its_corners(n):
    assert one(polygon(n)) == pytest.approx(2 * math.pi / n, rel=1e-4 if n > 1000 else 1e-9)


def test_a_random_walk_turns_by_a_right_angle_and_independent_tokens_by_two_thirds_of_pi():
    steps = gaussian(400, 2000)
    assert one(steps.cumsum(0)) == pytest.approx(math.pi / 2, abs=0.005)
    assert one(steps) == pytest.approx(2.0944, abs=0.005)
    assert one(steps, variant="token") == pytest.approx(math.pi / 2, abs=0.005)


@pytest.mark.parametrize("variant", ["differences", "token"])
def test_curvature_of_ragged_prompts_is_the_mean_angle_of_each(variant):
    lengths = torch.tensor([5, 9, 3, 30])
    tokens = gaussian(int(lengths.sum()), 4).cumsum(0)
    expected = [direct(part, variant) for part in tokens.split(lengths.tolist())]
    np.testing.assert_allclose(curvature(tokens, lengths, variant=variant).numpy(), expected, rtol=1e-9)


def test_steps_of_no_length_are_left_out_and_short_prompts_have_no_curvature():
    path = gaussian(6, 3)
    standing = path[[0, 1, 1, 2, 3, 4, 5]]
    angles = [direct(path[i : i + 3]) for i in range(4)]
    assert one(standing) == pytest.approx(np.mean(angles[1:]))  # the turn at the standing point has no angle
    found = curvature(path, torch.tensor([2, 1, 3]))
    assert found.isnan().tolist() == [True, True, False]
    assert curvature(path, torch.tensor([2, 1, 3]), variant="token").isnan().tolist() == [False, True, False]
    assert math.isnan(one(torch.ones(5, 3)))


def test_smooth_paths_stand_out_from_their_shuffled_order():
    lengths = torch.tensor([20] * 10)
    angles = torch.linspace(0, 6, 20, dtype=torch.float64)
    path = torch.stack([angles.cos(), angles.sin(), angles], dim=1).repeat(10, 1) + 0.02 * gaussian(200, 3)
    found = compare_curvature(path, lengths, n_null=19, generator=torch.Generator().manual_seed(0))
    assert found.p_less == 1 / 20 and found.null_mean > 1.5 > found.value


def test_shuffling_keeps_every_token_in_its_prompt():
    lengths = torch.tensor([4, 1, 7])
    order = shuffled_within(lengths, generator=torch.Generator().manual_seed(0))
    for part, start in zip(order.split(lengths.tolist()), (0, 4, 5), strict=True):
        assert part.sort().values.tolist() == list(range(start, start + len(part)))
    drawn = torch.stack([shuffled_within(lengths, generator=torch.Generator().manual_seed(s)) for s in range(400)])
    assert (drawn[:, 0] == 2).float().mean() == pytest.approx(0.25, abs=0.07)


def test_p_values_of_curvature_are_uniform_for_tokens_without_order(unchecked):
    def p_value(seed):
        tokens = gaussian(14, 3, seed=seed).exp()
        return compare_curvature(tokens, torch.tensor([8, 6]), n_null=19, generator=torch.Generator().manual_seed(900 + seed)).p_less

    check_calibrated(p_value, n_draws=150)


@pytest.mark.parametrize("variant", ["differences", "token"])
def test_curvature_has_the_properties_of_its_definition(variant):
    check(
        Measure(
            variant,
            lambda x: curvature(x, torch.tensor([len(x)]), variant=variant),
            rotation=True,
            scale=True,
            translation=True,
            linear=False,
            permutation=False,
        )
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature(gaussian(5, 3), torch.tensor([5]), variant="steps"), "variant must be"),
        (lambda: curvature(gaussian(5, 3), torch.tensor([6])), "add up"),
        (lambda: compare_curvature(gaussian(2, 3), torch.tensor([2]), n_null=3, generator=torch.Generator()), "NaN"),
    ],
)
def test_bad_input_to_curvature_is_refused_by_name(call, message, unchecked):
    with pytest.raises(ConfigError, match=message):
        call()
