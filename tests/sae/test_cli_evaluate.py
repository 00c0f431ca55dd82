"""`sae evaluate` and `sae compare` as a user runs them: what they run, write, cache and print, on dictionaries of any format, and their errors."""

import json
import re

import pytest
from evaluated import counted_batteries
from planted_dictionaries import dictionary_of, random_atoms, structured_atoms
from tiny import tiny_language_model
from tiny_store import D_IN, SITES, tiny_store
from typer.testing import CliRunner

import sae.cli.evaluate as program
import sae.evaluation.suite.registry as registry
from sae.cli import app
from sae.cli.screen import console
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import ConfigError, FormatError
from sae.evaluation.headlines import HEADLINES
from sae.evaluation.report import EvalReport
from sae.interop.formats import write
from sae.storage import read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store, dictionaries of two sizes, one of another library, and a run."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_store(folder / "acts")
    save_dictionary(dictionary_of(structured_atoms(64, D_IN), site=SITES[0]), folder / "small")
    save_dictionary(dictionary_of(random_atoms(128, D_IN, seed=4), seed=1, site=SITES[0]), folder / "large")
    save_dictionary(dictionary_of(random_atoms(32, D_IN, seed=5), seed=2), folder / "run" / "dictionary")
    write(dictionary_of(random_atoms(48, D_IN, seed=6), seed=3, site=SITES[0]), folder / "stranger", "saelens")
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Runs of the counted measures that take the place of the real ones."""
    noted = []
    monkeypatch.setattr(registry, "EVALUATIONS", counted_batteries(noted))
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    return noted


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "results"


def run(command, *arguments, cache, out=None):
    """The program's result; an error of the workbench is raised."""
    options = ["--cache", str(cache), *(["--out", str(out)] if out else [])]
    result = CliRunner().invoke(app, [command, *map(str, arguments), *options], terminal_width=150)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_dictionary_gets_a_page_and_a_file_and_a_second_run_reads_the_cache(made, calls, cache, tmp_path):
    first = run("evaluate", made / "small", "--store", made / "acts", cache=cache, out=tmp_path / "one")
    assert [name for name, *_ in calls] == ["reconstruction", "description"]
    assert re.search(r"reconstruction +[\d.]+ s", first.output)
    page = (tmp_path / "one" / "report" / "index.html").read_text()
    for text in ("<!doctype html>", "Evaluation of small", "sum |a - a_hat|^2 / sum |a - mean|^2", "0.110 to 0.140", SITES[0]):
        assert text in page, text
    report = EvalReport.load(tmp_path / "one")
    assert report.value("reconstruction", "FVU") == 8 / 64
    assert report.facts["Site"] == SITES[0]
    again = run("evaluate", made / "small", "--store", made / "acts", cache=cache, out=tmp_path / "two")
    assert len(calls) == 2
    assert re.search(r"reconstruction +cached", again.output) and re.search(r"description +cached", again.output)
    assert EvalReport.load(tmp_path / "two").findings == report.findings


def test_a_run_that_was_stopped_goes_on_with_the_rest(made, calls, cache, tmp_path, monkeypatch):
    def stopped(task, inputs, perform=program.perform):
        if task.measure.name == "description":
            raise KeyboardInterrupt
        return perform(task, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(program, "perform", stopped)
        result = run("evaluate", made / "small", "--store", made / "acts", cache=cache, out=tmp_path / "out")
    assert result.exit_code == 130
    assert "stopped; the same command goes on" in result.output
    assert not (tmp_path / "out").exists()
    run("evaluate", made / "small", "--store", made / "acts", cache=cache, out=tmp_path / "out")
    assert [name for name, *_ in calls] == ["reconstruction", "description"]


def test_batteries_seeds_and_the_quick_look_are_what_was_asked_for(made, calls, cache, tmp_path):
    run(
        "evaluate",
        made / "small",
        "--store",
        made / "acts",
        "--battery",
        "lengths",
        "--quick",
        "--seed",
        "3",
        cache=cache,
        out=tmp_path / "e",
    )
    assert calls == [("description", "small", 10)]
    report = EvalReport.load(tmp_path / "e")
    assert report.quick and report.results.seed == 3
    other = run("evaluate", made / "small", "--other", made / "large", cache=cache, out=tmp_path / "o")
    assert [name for name, *_ in calls[1:]] == ["stability"]
    assert "not measured: Title of reconstruction: needs a store (store, --store)" in " ".join(other.output.split())


def test_a_language_model_is_loaded_in_the_precision_of_the_store(made, calls, cache, tmp_path, monkeypatch):
    asked = []

    def load(source, *, stored, dtype, device):
        asked.append((source, stored.model.name, dtype))
        return tiny_language_model(0, n_layers=2)

    monkeypatch.setattr(program, "load_model", load)
    run("evaluate", made / "small", "--store", made / "acts", "--model", "somewhere/lm", cache=cache, out=tmp_path / "e")
    assert [name for name, *_ in calls] == ["reconstruction", "description", "downstream", "disentanglement"]
    ((source, stored, dtype),) = asked
    assert (source, dtype) == ("somewhere/lm", None) and stored
    assert EvalReport.load(tmp_path / "e").facts["Model"].startswith("lm;")
    run("compare", made / "small", made / "large", "--store", made / "acts", "--model", "lm", cache=cache, out=tmp_path / "c")
    assert len(asked) == 2  # once for all dictionaries


def test_a_dictionary_of_another_library_is_measured_and_said_to_be_one(made, calls, cache, tmp_path):
    result = run("evaluate", made / "stranger", "--store", made / "acts", cache=cache, out=tmp_path / "e")
    assert "from another library (saelens)" in result.output
    assert "could not be checked" in result.output
    page = (tmp_path / "e" / "report" / "index.html").read_text()
    assert "Before the numbers" in page and "saelens" in page
    assert EvalReport.load(tmp_path / "e").value("reconstruction", "L0") == 6
    named = run("evaluate", made / "stranger", "--store", made / "acts", "--format", "saelens", cache=cache, out=tmp_path / "f")
    assert re.search(r"reconstruction +cached", named.output)


def test_everything_is_printed_as_json_and_nothing_else_is(made, calls, cache, tmp_path):
    result = run("evaluate", made / "small", "--store", made / "acts", "--json", cache=cache, out=tmp_path / "e")
    assert json.loads(result.output) == read_json(tmp_path / "e" / "evaluation.json")
    both = run("compare", made / "small", made / "large", "--store", made / "acts", "--json", cache=cache, out=tmp_path / "c")
    assert json.loads(both.output) == read_json(tmp_path / "c" / "comparison.json")


def test_several_dictionaries_are_put_side_by_side(made, calls, cache, tmp_path):
    run("evaluate", made / "small", "--store", made / "acts", cache=cache, out=tmp_path / "e")
    result = run(
        "compare",
        made / "small",
        made / "large",
        made / "run",
        "--store",
        made / "acts",
        "--site",
        SITES[0],
        cache=cache,
        out=tmp_path / "c",
    )
    assert [(name, which) for name, which, _ in calls] == [
        (name, which) for which in ("small", "large", "run") for name in ("reconstruction", "description")
    ]  # small was there already
    found = read_json(tmp_path / "c" / "comparison.json")
    assert found["comparison"]["names"] == ["small", "large", "run"]
    (fvu,) = [row for row in found["comparison"]["rows"] if row["label"] == "FVU"]
    assert (fvu["best"], fvu["better"]) == ("large", "lower")
    page = (tmp_path / "c" / "report" / "index.html").read_text()
    assert re.search(r'class="x best"><bdi>0.06250</bdi>', page)
    assert page.count("<svg") == 1  # cross-entropy needs a model
    for text in ("L0 against FVU", "small", "large", "run", "PCA", "Pareto", "0.110 to 0.140"):
        assert text in page, text
    assert "FVU" in result.output


@pytest.mark.parametrize("width", [40, 160])
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_the_table_fits_the_screen(made, calls, cache, tmp_path, monkeypatch, width, command):
    monkeypatch.setattr(console, "_width", width)
    paths = [made / "small"] if command == "evaluate" else [made / "small", made / "large"]
    output = run(command, *paths, "--store", made / "acts", cache=cache, out=tmp_path / "e").output
    table = output.split("Evaluation of" if command == "evaluate" else "Comparison")[1].split("The dictionary")[0]
    assert max(len(line) for line in table.splitlines()) <= width
    assert "0.1250" in table


def test_what_there_is_to_measure_is_listed(calls):
    output = CliRunner().invoke(app, ["evaluate", "--list"]).output
    assert all(name in output for name in ("fidelity", "lengths", "effects", "seeds", "reconstruction", "downstream"))
    assert "needs a dictionary and a store and a model" in " ".join(output.split())


def test_errors_say_what_to_do_before_anything_is_written(made, calls, cache, tmp_path):
    out = tmp_path / "e"
    (tmp_path / "empty").mkdir()
    (tmp_path / "own" / "report").mkdir(parents=True)
    (tmp_path / "own" / "report" / "thesis.tex").write_text("years of work")
    store = ("--store", made / "acts")
    cases = [
        ("evaluate", (), ConfigError, "DICTIONARY must be given"),
        ("evaluate", (made / "small",), ConfigError, "nothing can be measured of a dictionary alone"),
        ("evaluate", (tmp_path / "nothing", *store), FormatError, "nothing does not exist"),
        ("evaluate", (tmp_path / "empty", *store), FormatError, "is of no format that is known"),
        ("evaluate", (made / "small", *store, "--format", "parquet"), ConfigError, "format must be one of .*'parquet'"),
        ("evaluate", (made / "small", *store, "--battery", "sparkle"), ConfigError, "battery must be one of fidelity, .*'sparkle'"),
        ("evaluate", (made / "small", *store, "--battery", "effects"), ConfigError, "battery 'effects' needs .*model"),
        ("evaluate", (made / "small", *store, "--site", "blocks.9"), ConfigError, "--site must match a site of the store"),
        ("evaluate", (made / "run", *store), ConfigError, "--site must name one site .*does not say where it was trained"),
        ("evaluate", (made / "small", "--site", SITES[0]), ConfigError, "site goes with a store"),
        ("evaluate", (made / "small", "--store", made / "small"), ConfigError, "--store must be the folder of an activation store"),
        ("compare", (made / "small", *store), ConfigError, "DICTIONARY must be given twice or more, got 1"),
    ]
    for command, arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            run(command, *arguments, cache=cache, out=out)
    assert not out.exists() and calls == []
    with pytest.raises(ConfigError, match="is not a report: choose another folder"):
        run("evaluate", made / "small", *store, cache=cache, out=tmp_path / "own")
    assert (tmp_path / "own" / "report" / "thesis.tex").read_text() == "years of work"


def test_the_measures_of_the_package_are_run_and_every_headline_is_one_of_theirs(made, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    run("evaluate", made / "small", "--store", made / "acts", "--quick", cache=cache, out=tmp_path / "e")
    report = EvalReport.load(tmp_path / "e")
    assert {row["battery"] for row in report.table} == {"fidelity", "lengths"}
    assert report.value("reconstruction", "L0") == 4.0
    found = report.finding("reconstruction", "FVU")
    assert found.value > 0 and found.formula and found.meaning
    assert report.value("reconstruction", "explained variance") == pytest.approx(1 - found.value)
    known = {measure.name: measure for battery in registry.EVALUATIONS.values() for measure in battery.measures}
    assert all(measure.quantity(h.quantity) for h in HEADLINES if (measure := known.get(h.measure)))
    assert {h.measure for h in HEADLINES} & set(known) == {
        "reconstruction", "downstream", "description", "disentanglement", "stability", "recovery",
    }  # fmt: skip


def test_batteries_that_are_installed_with_the_package_are_known():
    pytest.importorskip("probes.evaluation")
    assert {"fidelity", "effects", "lengths", "attributes", "seeds", "planted"} <= set(registry.evaluations())
    assert len(registry.evaluations()) > len(registry.EVALUATIONS)
