"""The quality of layers as a measure: its numbers are those of `layer_quality`, each with the p-value of its side, and what it cannot do is said."""

import dataclasses

import pytest
from tiny import TEXT, tiny_language_model

from sae.errors import ConfigError
from sae.evaluation.batteries import MEASURES, Inputs, gather, perform, plan
from sae.evaluation.batteries.measures.quality import ALTERNATIVES, QualityConfig, quality
from sae.evaluation.layer_quality import METRICS, LayerQualityConfig, layer_quality
from sae.storage import ResultCache

WORDS = TEXT.split()
TEXTS = tuple(" ".join(WORDS[i % 60 : i % 60 + 3 + i % 9]) for i in range(72))
MEASURE = MEASURES["layer_quality"]
TITLES = dict(zip(METRICS, [quantity.name for quantity in MEASURE.quantities], strict=True))
CONFIG = QualityConfig(n_prompts=36, max_tokens=10, n_null=4)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model(seed=0, n_layers=2)


def inputs_of(tmp_path, model, prompts=TEXTS, seed=0):
    return Inputs(ResultCache(tmp_path / "cache"), seed, model=model, prompts=tuple(prompts))


@pytest.fixture(scope="module")
def outcome(model, tmp_path_factory):
    return quality(inputs_of(tmp_path_factory.mktemp("quality"), model, seed=5), CONFIG)


def test_numbers_are_those_of_the_curves_with_the_p_value_of_their_side(model, outcome):
    expected = layer_quality(model, TEXTS[:36], LayerQualityConfig(max_tokens=10, n_null=4, seed=5))
    assert len(outcome.numbers) == 2 * len(METRICS)
    for name in METRICS:
        null = expected.curve(name).null
        numbers = [number for number in outcome.numbers if number.quantity == TITLES[name]]
        assert [number.subject for number in numbers] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        for i, number in enumerate(numbers):
            found = (number.value, number.null_mean, number.null_sd, number.n_null)
            assert found == (null.values[i].item(), null.null_mean[i].item(), null.null_sd[i].item(), 4), name
            less, greater = null.p_less[i].item(), null.p_greater[i].item()
            side = ALTERNATIVES.get(name, "two-sided")
            assert number.p == {"less": less, "greater": greater, "two-sided": min(1.0, 2 * min(less, greater))}[side], name
    n_tokens = sum(min(10, len(ids)) for ids in model.tokenize(TEXTS[:36]))
    assert outcome.notes == (f"36 prompts, {n_tokens:,} tokens.",)


def test_every_quantity_says_what_it_means_where_it_is_from_and_what_its_null_is():
    assert set(ALTERNATIVES) < set(METRICS)
    for quantity in MEASURE.quantities:
        assert quantity.null, quantity
        assert quantity.source, quantity
        assert "null" not in quantity.meaning
        assert quantity.meaning[0].isupper() or quantity.meaning[0].isdigit(), quantity


def test_a_null_of_the_first_prompts_is_beside_their_value_and_the_note_has_that_of_all(model, tmp_path):
    found = quality(inputs_of(tmp_path, model), QualityConfig(n_prompts=72, max_tokens=6, n_null=2))
    expected = layer_quality(model, TEXTS, LayerQualityConfig(metrics=("curvature", "average_cosine"), max_tokens=6, n_null=2))
    curve = expected.curve("curvature")
    numbers = {number.quantity: number for number in found.numbers if number.subject.startswith("blocks.1.")}
    assert numbers["curvature"].value == curve.null.values[1].item() != curve.values[1].item()
    assert numbers["curvature"].note == f"first prompts; {curve.values[1].item():.4g} over all"
    assert numbers["average cosine"].value == expected.curve("average_cosine").values[1].item()
    assert numbers["average cosine"].note == ""


def test_lidar_is_left_out_with_a_note_where_there_are_fewer_prompts_than_dimensions(model, tmp_path):
    found = quality(inputs_of(tmp_path, model), dataclasses.replace(CONFIG, n_prompts=32))
    assert "LiDAR" not in {number.quantity for number in found.numbers}
    assert found.notes[1] == "LiDAR is left out: it needs more than 32 prompts."
    assert {number.quantity for number in found.numbers} == set(TITLES.values()) - {"LiDAR"}


def test_every_quantity_is_drawn_over_the_layers_with_its_null(model, tmp_path):
    inputs = inputs_of(tmp_path, model)
    (task,) = plan(["layer_quality"], inputs, configs={"layer_quality": CONFIG})
    (group,) = gather([perform(task, inputs)], seed=0).groups
    assert [figure.title for figure in group.figures] == [f"{title}, by site" for title in TITLES.values()]
    for figure in group.figures:
        null, values = figure.series
        assert (null.role, values.role) == ("null", "result")
        assert figure.x.names == ("0", "1")
        shown = {f.subject: f for f in group.findings if f.name == values.name}
        assert values.y == tuple(f.value for f in shown.values())
        assert null.low == tuple(f.null_mean - 2 * f.null_sd for f in shown.values())


def test_a_model_of_one_layer_has_numbers_and_no_curves(tmp_path):
    inputs = inputs_of(tmp_path, tiny_language_model(seed=1, n_layers=1))
    (task,) = plan(["layer_quality"], inputs, configs={"layer_quality": CONFIG})
    (group,) = gather([perform(task, inputs)], seed=0).groups
    assert len(group.findings) == len(METRICS) and group.figures == ()


def test_two_prompts_are_too_few_and_the_reason_is_kept(model, tmp_path):
    inputs = inputs_of(tmp_path, model, TEXTS[:2])
    with pytest.raises(ConfigError, match="prompts must be at least 3, got 2: give more lines with --prompts"):
        quality(inputs, CONFIG)
    (task,) = plan(["layer_quality"], inputs, quick=True)
    ((label, reason),) = gather([perform(task, inputs)], seed=0).left_out
    assert label == "layer_quality" and "at least 3" in reason


def test_other_prompts_are_another_result(model, tmp_path):
    first, other = inputs_of(tmp_path, model), inputs_of(tmp_path, model, TEXTS[1:])
    (task,) = plan(["layer_quality"], first, quick=True)
    assert task.key(first) != task.key(other)
    assert task.key(first) == task.key(inputs_of(tmp_path, model))
