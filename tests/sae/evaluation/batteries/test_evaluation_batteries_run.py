"""Running batteries: the cache, what a setting changes, what is left out, and that chance does not stand out."""

import dataclasses
import json

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms, structured_atoms

import sae.evaluation.batteries.run as run_module
from sae.errors import CacheError, ConfigError
from sae.evaluation.batteries import BATTERIES, MEASURES, Battery, Inputs, Measure, Number, Outcome, Quantity, gather, perform, plan
from sae.evaluation.figures import Axis, Figure, HeatMap, Series
from sae.fingerprint import from_json, to_json
from sae.storage import ResultCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingConfig:
    """Settings of the counted measures."""

    n: int = 3
    """A number."""


def counted(name, calls, *, needs=("dictionary",), figure=None):
    def compute(inputs, config):
        calls.append((name, config.n, inputs.seed))
        if config.n < 0:
            raise ConfigError(f"n must not be negative, got {config.n}")
        value = inputs.atoms().sum().item() + config.n
        return Outcome((Number("sum", value), Number("other", None)), (figure,) if figure else (), ("a note",))

    quantities = (Quantity("sum", "A sum.", "here"), Quantity("other", "Nothing.", "here"))
    return Measure(name, name, "text", needs, quantities, compute, CountingConfig(), CountingConfig(n=1))


@pytest.fixture
def counting(monkeypatch):
    """(calls, name of a battery of two counted measures)."""
    calls = []
    figure = Figure("f", Axis("x"), Axis("y"), (Series("s", (0.0, 1.0), (1.0, 2.0)),))
    battery = Battery("counting", "Counting", "counts", (counted("one", calls, figure=figure), counted("two", calls)))
    monkeypatch.setitem(run_module.BATTERIES, "counting", battery)
    return calls


def inputs_of(tmp_path, seed=0, atoms=None):
    return Inputs(ResultCache(tmp_path / "cache"), seed, dictionary_of(random_atoms() if atoms is None else atoms))


def test_a_second_run_reads_the_cache_and_gives_the_same(counting, tmp_path):
    inputs = inputs_of(tmp_path)
    first = [perform(task, inputs) for task in plan(["counting"], inputs)]
    again = [perform(task, inputs) for task in plan(["counting"], inputs_of(tmp_path))]
    assert counting == [("one", 3, 0), ("two", 3, 0)]
    assert [done.cached for done in first + again] == [False, False, True, True]
    assert [done.outcome for done in first] == [done.outcome for done in again]
    assert gather(first, seed=0).findings == gather(again, seed=0).findings


def test_a_changed_setting_seed_or_input_computes_again_what_depends_on_it_and_nothing_else(counting, tmp_path):
    inputs = inputs_of(tmp_path)
    for configs in ({}, {"two": CountingConfig(n=5)}):
        [perform(task, inputs) for task in plan(["counting"], inputs, configs=configs)]
    assert counting == [("one", 3, 0), ("two", 3, 0), ("two", 5, 0)]
    [perform(task, inputs_of(tmp_path, seed=1)) for task in plan(["counting"], inputs)]
    assert counting[3:] == [("one", 3, 1), ("two", 3, 1)]
    other = inputs_of(tmp_path, atoms=random_atoms(seed=9))
    [perform(task, other) for task in plan(["counting"], other)]
    assert len(counting) == 7
    [perform(task, inputs) for task in plan(["counting"], inputs, quick=True)]
    assert counting[7:] == [("one", 1, 0), ("two", 1, 0)]


def test_a_damaged_result_is_an_error_that_names_it(counting, tmp_path):
    inputs = inputs_of(tmp_path)
    (task, _) = plan(["counting"], inputs)
    perform(task, inputs)
    path = inputs.cache.path(task.key(inputs)) / "outcome.json"
    text = path.read_text()
    path.write_text(text.replace("a note", "a NOTE"))  # as long as before
    with pytest.raises(CacheError, match=r"outcome\.json is damaged") as error:
        perform(task, inputs)
    assert str(path.parent) in str(error.value)
    assert "sae cache prune" in str(error.value)
    path.write_text(text[:-20])
    with pytest.raises(CacheError, match="damaged"):
        perform(task, inputs)
    assert len(counting) == 1


def test_what_cannot_be_measured_is_left_out_with_its_reason_and_not_cached(counting, tmp_path):
    inputs = inputs_of(tmp_path)
    for _ in range(2):
        done = [perform(task, inputs) for task in plan(["counting"], inputs, configs={"one": CountingConfig(n=-1)})]
        assert done[0].outcome is None
        results = gather(done, seed=0)
        assert results.left_out == (("one", "n must not be negative, got -1"),)
        assert [group.measure for group in results.groups] == ["two"]
    assert len(counting) == 3


def test_batteries_that_are_not_known_or_lack_their_inputs_are_refused(tmp_path):
    inputs = inputs_of(tmp_path)
    with pytest.raises(ConfigError, match=r"battery must be one of atoms, .*got 'atom'"):
        plan(["atom"], inputs)
    with pytest.raises(ConfigError, match="battery 'layers' needs store and sites, got dictionary"):
        plan(["layers"], inputs)
    with pytest.raises(ConfigError, match="inputs must be a dictionary, a store or a model"):
        plan(None, Inputs(ResultCache(tmp_path)))


def test_outcomes_go_through_json():
    bars = Figure("b", Axis("x", "u", "log"), Axis("y"), (Series("s", (1.0, 2.0, 4.0), (0.0, 2.0), mark="bars", role="null"),), equal=False)
    heat = HeatMap("h", Axis("x", names=("a", "b")), Axis("y", names=("c",)), ((1.0, None),), "label", -1.0, 1.0)
    outcome = Outcome((Number("q", 1.0, "s", 0.0, 1.0, 99, 0.01, "note", 3), Number("r", None)), (bars, heat), ("n",))
    assert from_json(Outcome, json.loads(json.dumps(to_json(outcome)))) == outcome


def test_names_of_measures_and_batteries_are_different_and_every_quantity_says_what_it_means():
    names = [measure.name for battery in BATTERIES.values() for measure in battery.measures]
    assert len(set(names)) == len(names) == len(MEASURES)
    for measure in MEASURES.values():
        assert type(measure.config) is type(measure.quick)
        for quantity in measure.quantities:
            assert quantity.meaning.endswith((".", "?")), quantity
            assert len(quantity.meaning) > 20
            assert quantity.source


def atoms_battery(tmp_path, atoms, seed):
    inputs = inputs_of(tmp_path, seed, atoms)
    return gather([perform(task, inputs) for task in plan(["atoms"], inputs, quick=True)], seed=seed)


def test_a_dictionary_of_random_atoms_stands_out_in_nothing_beyond_the_rate_of_false_discoveries(tmp_path):
    hits = [any(f.stands_out == "yes" for f in atoms_battery(tmp_path, random_atoms(seed=seed), seed).findings) for seed in range(12)]
    assert sum(hits) <= 3  # at 5 % each: more with a chance of 0.2 %


def test_planted_structure_stands_out(tmp_path):
    found = {f.name: f for f in atoms_battery(tmp_path, structured_atoms(), 0).findings}
    assert all(f.stands_out != "too few draws" for f in found.values())
    for name in ("mutual coherence", "Babel function", "mean nearest cosine", "share of atoms with a near twin", "participation ratio",
                 "largest eigenvalue", "frame potential", "mean feature dimensionality"):  # fmt: skip
        assert found[name].stands_out == "yes", found[name]
    assert found["participation ratio"].value < found["participation ratio"].null_mean
    assert found["mutual coherence"].value > found["mutual coherence"].null_mean


def test_planted_groups_of_near_atoms_stand_out_from_atoms_of_the_same_covariance(tmp_path):
    centres = random_atoms(64, 64).repeat_interleave(4, dim=0)
    rows = centres + 0.08 * torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    inputs = inputs_of(tmp_path, atoms=rows / rows.norm(dim=1, keepdim=True))
    (task,) = [task for task in plan(["atoms"], inputs, quick=True) if task.measure.name == "clusters"]
    share = gather([perform(task, inputs)], seed=0).findings[0]
    assert (share.name, share.value, share.stands_out) == ("share of atoms in clusters", 1.0, "yes")
    assert share.null_mean < 0.1


def test_p_values_of_random_atoms_are_those_of_a_null(tmp_path):
    found = []
    for seed in range(40):
        inputs = inputs_of(tmp_path, seed, random_atoms(48, 16, seed))
        configs = {"coherence": dataclasses.replace(MEASURES["coherence"].quick, n_null=2)}
        tasks = [task for task in plan(["atoms"], inputs, quick=True, configs=configs) if task.measure.name in ("coherence", "nearest")]
        findings = gather([perform(task, inputs) for task in tasks], seed=seed).findings
        found.append([f.p for f in findings if f.name in ("mutual coherence", "mean nearest cosine")])
    p = torch.tensor(found)
    assert p.shape == (40, 2)
    assert ((p.mean(dim=0) - 0.5).abs() < 3.5 * (1 / 12 / 40) ** 0.5).all(), p.mean(dim=0)
