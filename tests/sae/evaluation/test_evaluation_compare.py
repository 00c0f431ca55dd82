"""Dictionaries side by side: rows, what is best, the frontiers, and what differed between the reports."""

import dataclasses
import itertools

import pytest
import torch
from planted_dictionaries import dictionary_of, random_atoms, structured_atoms
from tiny_store import D_IN, SITES, tiny_store

from sae.errors import ConfigError
from sae.evaluation.batteries import Finding, Group, Results
from sae.evaluation.common_distortion import SLACK, common_lengths
from sae.evaluation.description_length import description_length
from sae.evaluation.frontiers import FVU, best_of, compare, frontier, pareto
from sae.evaluation.report import EvalReport, evaluation_inputs
from sae.evaluation.suite.sample import sample
from sae.fingerprint import from_json


def a_finding(name, value, low=None, high=None, measure="reconstruction", subject=""):
    options = {"unit": "", "null_mean": None, "null_sd": None, "n_null": None, "p": None, "alternative": "two-sided", "null": ""}
    said = {"meaning": f"What {name} means.", "source": "here", "note": "", "tries": 1, "stands_out": "no null"}
    return Finding(
        name=name, subject=subject, measure=measure, value=value, low=low, high=high, formula=f"formula of {name}", **options, **said
    )


def a_report(name, l0, fvu, *, d_sae=64, half=0.01, dense=(), more=(), **facts):
    ends = (None, None) if half is None else (fvu - half, fvu + half)
    findings = (a_finding("L0", *(float(l0),) * 3), a_finding("FVU", fvu, *ends), *more)
    group = Group("reconstruction", "fidelity", "Title", "Text.", findings, (), (), {}, 0.1, 0, 1)
    told = {"Store": "s", "Site": "x"} | facts
    return EvalReport(name, "Autoencoder (TopK)", d_sae, told, Results((group,), (), 0.05, 0), dense=dense)


def reports_of(*points, **options):
    return {f"d{i}": a_report(f"d{i}", l0, fvu, **options) for i, (l0, fvu) in enumerate(points)}


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_frontier_is_the_dictionaries_that_no_other_beats(better):
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        l0 = {str(i): float(v) for i, v in enumerate(torch.randint(1, 8, (9,), generator=generator))}
        value = {str(i): float(v) for i, v in enumerate(torch.randint(1, 8, (9,), generator=generator))}
        kept = pareto(l0, value, better)
        worse = (lambda a, b: a > b) if better == "lower" else (lambda a, b: a < b)
        for name in l0:
            beaten = any(
                not l0[o] > l0[name] and not worse(value[o], value[name]) and (l0[o] < l0[name] or worse(value[name], value[o])) for o in l0
            )
            assert (name not in kept) == beaten
        for a, b in itertools.pairwise(kept):
            assert l0[a] < l0[b] or (l0[a], value[a]) == (l0[b], value[b])


def test_the_best_is_marked_only_where_its_interval_overlaps_no_other():
    far = {"a": a_finding("x", 1.0, 0.9, 1.1), "b": a_finding("x", 2.0, 1.8, 2.2), "c": a_finding("x", 3.0, 2.9, 3.1)}
    assert (best_of(far, "lower"), best_of(far, "higher"), best_of(far, "")) == ("a", "c", "")
    near = far | {"d": a_finding("x", 1.15, 1.05, 1.25)}
    assert (best_of(near, "lower"), best_of(near, "higher")) == ("", "c")
    touching = {"a": a_finding("x", 1.0, 0.9, 1.1), "b": a_finding("x", 1.2, 1.1, 1.3)}
    assert best_of(touching, "lower") == ""
    assert best_of({"a": a_finding("x", 1.0), "b": a_finding("x", 2.0, 1.9, 2.1)}, "lower") == ""
    assert best_of({"a": a_finding("x", 1.0, 0.9, 1.1)}, "lower") == ""
    negative = {"a": a_finding("x", -1.0, -1.1, -0.9), "b": a_finding("x", -2.0, -2.1, -1.9)}
    assert (best_of(negative, "lower"), best_of(negative, "higher")) == ("b", "a")


def test_every_number_of_every_report_has_its_row():
    reports = reports_of((32, 0.2), (64, 0.1))
    reports["d1"] = a_report("d1", 64, 0.1, more=(a_finding("cosine", 0.9, subject="a"),))
    found = compare(reports)
    assert found.names == ("d0", "d1")
    labels = {row.label: row for row in found.rows}
    assert {"L0", "FVU"} <= set(labels)
    assert set(labels["cosine, a"].findings) == {"d1"}
    assert found.row("FVU").findings["d0"].value == 0.2
    with pytest.raises(ConfigError, match=r"label must be one of .*'FVU'.*got 'R2'"):
        found.row("R2")
    with pytest.raises(ConfigError, match="reports must be two or more, got 1"):
        compare({"d0": reports["d0"]})


def test_the_figure_has_a_named_point_with_its_interval_for_each_and_the_pareto_line():
    figure = frontier(reports_of((32, 0.2), (64, 0.1), (64, 0.3), half=0.05), FVU, "lower")
    points = {s.name: s for s in figure.series if s.mark == "points"}
    assert set(points) == {"d0", "d1", "d2"}
    assert (points["d0"].x, points["d0"].y) == ((32,), (0.2,))
    assert points["d0"].low + points["d0"].high == pytest.approx((0.15, 0.25))
    assert points["d0"].labels == ("d0",) and points["d0"].named
    (line,) = [s for s in figure.series if s.name == "Pareto"]
    assert (line.x, line.y) == ((32, 64), (0.2, 0.1))
    assert "formula of FVU" in figure.caption and "Lower is better" in figure.caption


def test_dictionaries_of_one_kind_and_width_are_joined_and_others_not():
    reports = reports_of((64, 0.1), (16, 0.4), (32, 0.2)) | {"wide": a_report("wide", 32, 0.15, d_sae=128)}
    other = dataclasses.replace(a_report("mp", 48, 0.12), kind="MatchingPursuit")
    figure = frontier(reports | {"mp": other}, FVU, "lower")
    (family,) = [s for s in figure.series if s.mark == "line" and s.role == "result" and s.name != "Pareto"]
    assert (family.x, family.y) == ((16, 32, 64), (0.4, 0.2, 0.1))
    assert "64" in family.name


def test_principal_components_are_drawn_where_all_were_measured_on_one_store():
    dense = tuple((1 << i, 1 / (i + 2)) for i in range(10))
    figure = frontier(reports_of((16, 0.4), (64, 0.1), dense=dense), FVU, "lower")
    (curve,) = [s for s in figure.series if s.name == "PCA"]
    assert curve.x == (8, 16, 32, 64, 128)
    assert curve.y == tuple(dict(dense)[k] for k in curve.x)
    other = reports_of((16, 0.4), (64, 0.1), dense=dense)
    other["d1"] = a_report("d1", 64, 0.1, dense=dense[:4])
    assert not any(s.name == "PCA" for s in frontier(other, FVU, "lower").series)


def test_a_frontier_needs_two_dictionaries_with_both_numbers():
    reports = reports_of((32, 0.2), (64, 0.1))
    assert frontier(reports, ("downstream", "CE increase", ""), "lower") is None
    assert frontier({"d0": reports["d0"]}, FVU, "lower") is None
    assert frontier(reports | {"none": a_report("none", 32, 0.2, half=None)}, FVU, "lower") is not None
    equal = frontier(reports_of((32, 0.2), (32, 0.2)), FVU, "lower")
    assert all(len(s.x) == len(s.y) for s in equal.series)


def test_what_differs_between_the_reports_is_said():
    reports = reports_of((32, 0.2), (64, 0.1))
    assert compare(reports).notes == ()
    reports["d1"] = dataclasses.replace(a_report("d1", 64, 0.1, Site="y"), caveats=("Beware.",))
    assert compare(reports).notes == ("Site differs: d0: x; d1: y", "d1: Beware.")
    both = {name: dataclasses.replace(report, caveats=("Beware.",)) for name, report in reports_of((32, 0.2), (64, 0.1)).items()}
    assert compare(both).notes == ("Beware.",)


def test_a_comparison_goes_through_json_and_a_notebook_shows_it():
    found = compare(reports_of((32, 0.2), (64, 0.1)))
    assert from_json(type(found), found.to_json()) == found
    html = found._repr_html_()
    for text in ("d0", "d1", "0.2000", "0.190 to 0.210", "formula of FVU"):
        assert text in html, text
    assert "<script" not in html
    assert repr(found) == "Comparison(d0, d1: 2 numbers)"


def test_lengths_at_one_distortion_are_those_of_each_dictionary_at_it(tmp_path, monkeypatch):
    store = tiny_store(tmp_path / "acts")
    dictionaries = {"a": dictionary_of(structured_atoms(64, D_IN), k=16), "b": dictionary_of(random_atoms(128, D_IN), k=8, seed=1)}
    inputs = {name: evaluation_inputs(each, store, site=SITES[0], cache=tmp_path / "r") for name, each in dictionaries.items()}
    index = sample(inputs["a"], 600).index
    acts = store.gather(SITES[0], index, dtype=torch.float32)
    variance = float((acts - acts.mean(0)).square().sum())
    fvus = {name: float((acts - each(acts).detach()).square().sum()) / variance for name, each in dictionaries.items()}
    found = common_lengths(inputs, fvus, n_tokens=600)
    assert found.fvu == pytest.approx(SLACK * max(fvus.values()))
    assert found.n_tokens == len(index)
    for each in found.lengths:
        alone = description_length(dictionaries[each.name], acts, target_fvu=found.fvu)
        assert (each.bits, each.index_bits, each.value_bits) == pytest.approx((alone.bits, alone.index_bits, alone.value_bits))
        assert each.bits == pytest.approx(each.index_bits + each.value_bits)
        assert alone.fvu_quantised <= found.fvu * 1.001
    assert found.shortest == min(found.lengths, key=lambda each: each.bits).name
    # Of dictionaries that miss more here than was said, the distortion is what they reach; the result is kept.
    optimistic = common_lengths(inputs, {name: value / 3 for name, value in fvus.items()}, n_tokens=600)
    assert optimistic.fvu == pytest.approx(found.fvu, rel=1e-5)
    monkeypatch.setattr("sae.evaluation.common_distortion.choose", lambda *_, **__: pytest.fail("computed again"))
    assert common_lengths(inputs, fvus, n_tokens=600) == found
    other = evaluation_inputs(dictionaries["b"], store, site=SITES[1], cache=tmp_path / "r")
    with pytest.raises(ConfigError, match="dictionaries must read one site of one store"):
        common_lengths(inputs | {"b": other}, fvus, n_tokens=600)
