"""Reports of evaluation: what is run on what there is, what is cached, what a report says, keeps and shows; and batteries of other packages."""

import re
from html.parser import HTMLParser
from importlib.metadata import EntryPoint

import pytest
import torch
from evaluated import counted_batteries, counted_measure, share
from planted_dictionaries import dictionary_of, random_atoms
from tiny import tiny_language_model
from tiny_store import D_IN, SITES, tiny_store

import sae.evaluation.suite.registry as registry
from sae.errors import ConfigError, FormatError
from sae.evaluation.batteries import Battery, perform
from sae.evaluation.report import EvalReport, evaluate, evaluation_inputs, evaluation_tasks, principal_curve
from sae.evaluation.suite.registry import evaluations


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("evaluated") / "acts")


@pytest.fixture
def calls(monkeypatch):
    """Runs of the counted measures that take the place of the real ones."""
    noted = []
    monkeypatch.setattr(registry, "EVALUATIONS", counted_batteries(noted))
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    return noted


def a_dictionary(n=32, seed=0, **provenance):
    dictionary = dictionary_of(random_atoms(n, D_IN, seed=seed), seed=seed, site=SITES[0])
    dictionary.provenance.update(provenance)
    return dictionary


class Tags(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_what_is_there_decides_what_is_run_and_the_rest_is_named(calls, store, tmp_path):
    report = evaluate(a_dictionary(), store, cache=tmp_path)
    assert [name for name, *_ in calls] == ["reconstruction", "description"]
    reasons = dict(report.unmeasured)
    assert set(reasons) == {"Title of downstream", "Title of disentanglement", "Title of stability"}
    assert reasons["Title of downstream"] == "needs a language model (model, --model)"
    assert reasons["Title of stability"] == "needs another dictionary (other, --other)"
    with_other = evaluate(a_dictionary(), store, other=a_dictionary(seed=1), batteries=["fidelity"], cache=tmp_path)
    assert dict(with_other.unmeasured)["Title of stability"] == "was not asked for; its battery is seeds"
    calls.clear()
    evaluate(a_dictionary(), other=a_dictionary(seed=1), cache=tmp_path)
    assert [name for name, *_ in calls] == ["stability"]


def test_a_language_model_adds_its_batteries(calls, store, tmp_path):
    report = evaluate(a_dictionary(), store, model=tiny_language_model(0, n_layers=2), cache=tmp_path)
    assert [name for name, *_ in calls] == ["reconstruction", "description", "downstream", "disentanglement"]
    assert report.value("downstream", "CE increase") == 0.25
    assert "Model" in report.facts


def test_without_a_store_the_site_in_a_model_is_the_one_asked_for_or_that_of_the_dictionary(calls, tmp_path):
    model = tiny_language_model(0, n_layers=2)
    own = evaluate(a_dictionary(), model=model, cache=tmp_path)
    assert (own.value("disentanglement", "other"), own.facts["Site"]) == (0.0, SITES[0])
    asked = evaluate(a_dictionary(), model=model, site="blocks.1.hook_resid_post", cache=tmp_path)
    assert (asked.value("disentanglement", "other"), asked.facts["Site"]) == (1.0, "blocks.1.hook_resid_post")
    assert [name for name, *_ in calls] == ["disentanglement"] * 2


def test_a_second_run_performs_nothing_and_another_dictionary_or_setting_does(calls, store, tmp_path):
    first = evaluate(a_dictionary(), store, cache=tmp_path)
    again = evaluate(a_dictionary(), store, cache=tmp_path)
    assert len(calls) == 2
    assert first.findings == again.findings
    assert sum(group.n_cached for group in again.results.groups) == 2
    evaluate(a_dictionary(seed=3), store, cache=tmp_path)
    assert len(calls) == 4
    quick = evaluate(a_dictionary(), store, cache=tmp_path, quick=True)
    assert calls[-1] == ("description", "dictionary", 10)
    assert quick.caveats[-1].startswith("This is a quick look")


def test_after_an_interruption_only_the_rest_is_performed(calls, store, tmp_path):
    inputs = evaluation_inputs(a_dictionary(), store, cache=tmp_path)
    tasks = evaluation_tasks(inputs, None, quick=False)
    perform(tasks[0], inputs)
    assert [name for name, *_ in calls] == ["reconstruction"]
    evaluate(a_dictionary(), store, cache=tmp_path)
    assert [name for name, *_ in calls] == ["reconstruction", "description"]


def test_numbers_are_asked_for_by_name_and_what_there_is_is_said(calls, store, tmp_path):
    report = evaluate(a_dictionary(64), store, other=a_dictionary(64, seed=1), cache=tmp_path)
    assert report.value("reconstruction", "FVU") == pytest.approx(8 / 64)
    assert report.value("stability", "other", "b") is None
    assert report.finding("reconstruction", "FVU").formula.startswith("sum |a - a_hat|^2")
    for arguments, message in (
        (("nothing", "FVU"), "measure must be one of 'reconstruction', 'description', 'stability', got 'nothing'"),
        (("reconstruction", "R2"), "quantity must be one of 'FVU', 'L0', got 'R2'"),
        (("stability", "other", "c"), "subject must be one of 'a', 'b', got 'c'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            report.value(*arguments)


def test_the_table_has_a_row_for_every_number_with_its_definition(calls, store, tmp_path):
    report = evaluate(a_dictionary(), store, cache=tmp_path)
    assert [(row["measure"], row["quantity"]) for row in report.table] == [
        ("reconstruction", "FVU"), ("reconstruction", "L0"), ("description", "other"),
    ]  # fmt: skip
    row = report.table[0]
    assert (row["battery"], row["value"], row["low"], row["high"]) == ("fidelity", 0.25, 0.22, pytest.approx(0.28))
    assert row["formula"] == "sum |a - a_hat|^2 / sum |a - mean|^2"
    assert row["meaning"] == "What FVU means."


def test_a_report_goes_through_its_file_unchanged_and_a_damaged_one_is_named(calls, store, tmp_path):
    report = evaluate(a_dictionary(), store, other=a_dictionary(seed=1), cache=tmp_path / "cache")
    path = report.save(tmp_path / "deep" / "folder")
    assert EvalReport.load(tmp_path / "deep" / "folder") == report == EvalReport.load(path)
    path.write_text(path.read_text().replace('"caveats"', '"caveat"'))
    with pytest.raises(FormatError, match=f"{re.escape(str(path))} is not an evaluation: unknown key 'caveat'"):
        EvalReport.load(path)


def test_principal_components_do_what_a_decomposition_of_the_tokens_says(store, tmp_path):
    inputs = evaluation_inputs(a_dictionary(), store, cache=tmp_path)
    curve = dict(principal_curve(inputs))
    acts = store.gather(SITES[0], store.mask(SITES[0]).nonzero().squeeze(1), dtype=torch.float32).double()
    values = torch.linalg.svdvals(acts - acts.mean(0)).square()
    assert sorted(curve) == [1, 2, 4, 8, 16, 32]
    for k, fvu in curve.items():
        assert fvu == pytest.approx(float(values[k:].sum() / values.sum()), abs=1e-5)


def test_what_does_not_fit_together_is_said_in_words(calls, store, tmp_path):
    digest = store.manifest.model.digest
    cases = (
        ({"model_digest": digest}, []),
        ({}, ["does not say which weights it was trained on"]),
        ({"model_digest": "f" * 64}, ["was trained on a model with digest ffffffffffff", "their weights differ"]),
        ({"model": "gpt2"}, ["could not be checked. It names gpt2."]),
        ({"foreign": {"format": "saelens", "config": {}, "notes": ["the scale is not in it"]}, "model_digest": digest},
         ["from another library (saelens)", "The scale is not in it."]),
        ({"site": "blocks.7.hook_mlp_out", "model_digest": digest}, ["says that it belongs to blocks.7.hook_mlp_out, and was measured at"]),
    )  # fmt: skip
    for provenance, expected in cases:
        report = evaluate(a_dictionary(**provenance), store, site=SITES[0], cache=tmp_path)
        text = " ".join(report.caveats)
        assert all(part in text for part in expected), (provenance, text)
        assert bool(report.caveats) == bool(expected)
    report = evaluate(a_dictionary(model_digest=digest), store, model=tiny_language_model(5, n_layers=2), cache=tmp_path)
    assert "is not the one that the store was captured from" in " ".join(report.caveats)


def test_errors_say_what_to_give(calls, store, tmp_path):
    wide = dictionary_of(random_atoms(16, 8))
    for call, message in (
        (lambda: evaluate(a_dictionary(), cache=tmp_path), "nothing can be measured of a dictionary alone: give .*--store"),
        (lambda: evaluate(a_dictionary(), store, batteries=["effects"], cache=tmp_path), "battery 'effects' needs .*model"),
        (lambda: evaluate(a_dictionary(), store, batteries=["sparkle"], cache=tmp_path), "battery must be one of fidelity, .*'sparkle'"),
        (lambda: evaluate(a_dictionary(), store, site="blocks.9.x", cache=tmp_path), "--site must match a site of the store"),
        (lambda: evaluate(wide, store, site=SITES[0], cache=tmp_path), "dictionary must take activations of width 32 .*got d_in=8"),
        (lambda: evaluate(wide, store, cache=tmp_path), "--site must name one site.*none was given"),
        (lambda: evaluate(a_dictionary(), site=SITES[0], other=wide, cache=tmp_path), "site goes with a store"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    assert calls == []


def test_a_notebook_shows_it_without_script_address_or_style_of_its_own_and_nothing_is_unescaped(calls, store, tmp_path):
    names = {"dictionary": "<script>alert(1)</script>"}
    report = evaluate(a_dictionary(), store, other=a_dictionary(seed=1), cache=tmp_path, names=names)
    found = Tags(report._repr_html_())
    assert found.open == []
    assert not {"script", "style", "link", "img", "iframe"} & {tag for tag, _ in found.tags}
    assert not any(name in ("href", "src", "onclick", "class", "id") for _, attributes in found.tags for name in attributes)
    styles = " ".join(attributes.get("style", "") for _, attributes in found.tags)
    assert not re.search(r"(?<![-\w])color:(?!inherit)|background:(?!none)", styles)
    assert "url(" not in styles
    for text in ("<script>alert(1)</script>", "0.2500", "0.220 to 0.280", "sum |a - a_hat|^2", "What FVU means.", "3.500"):
        assert text in found.text, text
    assert "FVU 0.25" in repr(report) or "numbers" in repr(report)


def offered(monkeypatch, value, batteries=None):
    """An entry point of a package; `batteries` is what it gives."""
    module = type("Module", (), {"BATTERIES": batteries})
    point = EntryPoint("stranger", value, registry.GROUP)
    if batteries is not None:
        monkeypatch.setitem(__import__("sys").modules, value.split(":")[0], module)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "sae.evaluations" else [])


def test_batteries_of_other_packages_are_known_and_run(calls, store, tmp_path, monkeypatch):
    extra = Battery("absorption", "Absorption", "x", (counted_measure("absorbed", calls, share),), family="evaluation")
    offered(monkeypatch, "a_stranger:BATTERIES", (extra,))
    assert list(evaluations()) == ["fidelity", "lengths", "effects", "attributes", "seeds", "absorption"]
    report = evaluate(a_dictionary(), store, batteries=["absorption"], cache=tmp_path)
    assert report.value("absorbed", "L0") == 4


@pytest.mark.parametrize(
    ("value", "batteries", "message"),
    [
        ("no_such_module_here:BATTERIES", None, r"stranger = 'no_such_module_here:BATTERIES' cannot be imported \(ModuleNotFoundError"),
        ("math:BATTERIES", None, r"stranger = 'math:BATTERIES' cannot be imported \(AttributeError"),
        ("a_stranger:BATTERIES", [1, 2], "must be a tuple of Battery, got list"),
        ("a_stranger:BATTERIES", (Battery("x", "X", "x", ()),), "must offer batteries of the family 'evaluation', 'x' is of 'geometry'"),
        ("a_stranger:BATTERIES", (Battery("fidelity", "X", "x", (), family="evaluation"),), "the battery 'fidelity', a name that"),
        ("a_stranger:BATTERIES", (Battery("y", "Y", "y", (counted_measure("reconstruction", [], share),), family="evaluation"),),
         "offers the measure 'reconstruction', a name that the battery 'fidelity' has already"),
    ],
    ids=["no module", "no attribute", "no tuple", "another family", "a battery's name", "a measure's name"],
)  # fmt: skip
def test_a_broken_offer_of_another_package_is_an_error_that_names_it(calls, monkeypatch, value, batteries, message):
    offered(monkeypatch, value, batteries)
    with pytest.raises(ConfigError, match=message):
        evaluations()
