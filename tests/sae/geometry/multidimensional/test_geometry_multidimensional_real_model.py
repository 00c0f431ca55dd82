"""Days and months in the default language model: in order round a circle in the plane of their means, on a cone, not a loop in the full space."""

import functools

import pytest
import torch

import sae
from sae.geometry.multidimensional import circle_of_classes, class_means, strongest
from sae.geometry.topology import compare_axis_share, compare_loops, compare_order, cone_of

WORDS = {
    "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "months": ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"],
}
TEMPLATES = {
    "days": (
        "The meeting is on {}", "See you next {}", "The shop is closed every {}", "It all started last {}", "The report is due by {}",
        "He called me on {}", "The concert will take place this {}", "Today is {}", "Tomorrow will be {}", "They arrived late on {}",
    ),
    "months": (
        "The meeting is in {}", "See you next {}", "The shop is closed every {}", "It all started last {}", "The report is due by {}",
        "He moved here in {}", "The concert will take place this {}", "The war began in {}", "The class starts in {}", "They arrived late in {}",
    ),
}  # fmt: skip
LAYERS = (2, 8, 15, 21, 28)


@functools.cache
def activations(kind):
    """The last token of every sentence, by layer: [layers, templates * classes, width], and its class."""
    model = sae.LanguageModel.load(sae.default_model(), dtype=torch.float32)
    sites = [model.site(f"blocks.{layer}.hook_resid_post") for layer in LAYERS]
    parts = []
    for template in TEMPLATES[kind]:
        tokens = model.tokenize([template.format(word) for word in WORDS[kind]])
        acts = model.capture(torch.tensor([[model.separator_id, *row] for row in tokens]), sites)
        parts.append(torch.stack([acts[site][:, -1] for site in sites]))
    return torch.cat(parts, dim=1), torch.arange(len(WORDS[kind])).repeat(len(TEMPLATES[kind]))


@functools.cache
def circles(kind):
    acts, labels = activations(kind)
    return [circle_of_classes(each, labels, n_classes=len(WORDS[kind]), n_null=999, seed=0) for each in acts]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["days", "months"])
def test_days_and_months_are_in_order_round_a_circle_that_closes(kind):
    found = circles(kind)
    for statistic in ("held out", "circle", "plane"):
        # Days have 360 circular orders, so their p-values do not go far below 1/360.
        assert strongest(found, statistic=statistic)[1].p_greater < 0.01
    for each in found[:4]:
        assert each.held_out.value > 0.85
        assert each.held_out.p_greater < 0.01
        assert each.plane.value > 0.9
        assert 0.9 < each.closure < 1.4  # 1 for a circle, 6 and 11 for a line
        # With 7 classes distances along a line are much like those along a circle: the ends and the held-out classes tell.
        assert kind == "days" or each.circle.value > each.line.value
    # The last layers bend the week towards a line, and keep the months' order with less of their shape.
    assert found[-1].circle.value < max(each.circle.value for each in found[:4]) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["days", "months"])
def test_the_circle_is_a_ring_on_a_narrow_cone_and_no_loop_of_the_full_space(kind):
    acts, labels = activations(kind)
    generator = torch.Generator().manual_seed(0)
    means = class_means(acts[LAYERS.index(15)], labels, n_classes=len(WORDS[kind]))
    cone = cone_of(means)
    assert cone.mean_cosine > 0.8  # a great circle would have -1/6 and -1/11
    assert cone.axis_share > 0.8
    assert compare_axis_share(means, n_null=99, generator=generator).p_greater == 1 / 100
    # The plane of the circle holds about half of what tells the classes apart; the rest puts each at nearly the same distance from all others.
    assert 0.3 < cone.plane_share < 0.7
    assert compare_order(means, n_null=999, generator=generator).p_greater < 0.01
    centred = means - means.mean(0)
    assert compare_loops(centred, n_null=99, generator=generator).lifetime.p_greater > 0.05
    in_plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    # A dozen points have little to say about loops even there.
    plane = compare_loops(in_plane, n_null=99, generator=generator).lifetime
    assert plane.value > plane.null_mean
