"""`sae geometry` as a user runs it: what it recognises, what it writes, what it caches, what it says on a narrow screen, and its errors."""

import json
import re

import pytest
from planted_dictionaries import dictionary_of, random_atoms, structured_atoms
from tiny_store import D_IN, SITES, tiny_store
from typer.testing import CliRunner

import sae.cli.findings as screen
from sae.cli import app
from sae.cli.geometry import N_PROMPTS, SHORTEST, prompts_from
from sae.cli.paths import recognise
from sae.dictionaries.checkpoint import save_dictionary
from sae.errors import CacheError, ConfigError
from sae.evaluation.batteries import BATTERIES, MEASURES
from sae.storage import read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a store, two dictionaries and a run that holds one, and a folder for results that the tests share."""
    folder = tmp_path_factory.mktemp("geometry")
    tiny_store(folder / "acts")
    save_dictionary(dictionary_of(structured_atoms(64, D_IN), site=SITES[0]), folder / "planted")
    save_dictionary(dictionary_of(random_atoms(48, D_IN, seed=4), seed=1), folder / "random")
    save_dictionary(dictionary_of(random_atoms(48, D_IN, seed=5), seed=2), folder / "run" / "dictionary")
    return folder


def geometry(made, *arguments, out=None, quick=True):
    """The program's result; an error of the workbench is raised."""
    command = ["geometry", *map(str, arguments), "--cache", str(made / "results"), *(["--quick"] if quick else [])]
    result = CliRunner().invoke(app, [*command, *(["--out", str(out)] if out else [])], terminal_width=150)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_dictionary_gets_a_page_and_findings_and_a_second_run_reads_the_cache(made, tmp_path, monkeypatch):
    result = geometry(made, made / "planted", out=tmp_path / "one")
    assert "Babel function" in result.output
    assert re.search(r"coherence +[\d.]+ s", result.output)
    page, found = (tmp_path / "one" / "report" / "index.html").read_text(), read_json(tmp_path / "one" / "findings.json")
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert {group["measure"] for group in found["groups"]} == {measure.name for measure in BATTERIES["atoms"].measures}
    again = geometry(made, made / "planted", out=tmp_path / "two")
    assert re.search(r"coherence +cached", again.output)
    lines = [line for line in again.output.splitlines() if line.split(" ")[0] in MEASURES]
    assert len(lines) == len(BATTERIES["atoms"].measures)
    assert all(line.endswith("cached") for line in lines)
    numbers = [[group["findings"] for group in read_json(tmp_path / name / "findings.json")["groups"]] for name in ("one", "two")]
    assert numbers[0] == numbers[1]


def test_settings_and_seed_are_printed_and_another_seed_computes_again(made, tmp_path):
    first = geometry(made, made / "random", "--battery", "atoms", out=tmp_path / "g")
    assert "seed 0" in first.output
    assert "n_null 99" in first.output
    other = geometry(made, made / "random", "--battery", "atoms", "--seed", "3", out=tmp_path / "g")
    assert "cached" not in other.output
    assert read_json(tmp_path / "g" / "findings.json")["seed"] == 3


def test_codes_on_a_store_are_measured_at_the_site_that_the_dictionary_was_trained_on(made, tmp_path):
    result = geometry(made, made / "planted", "--store", made / "acts", "--battery", "codes", out=tmp_path / "g")
    found = read_json(tmp_path / "g" / "findings.json")
    assert found["inputs"]["Site"] == SITES[0]
    measured = {group["measure"] for group in found["groups"]} | {name for name, _ in found["left_out"]}
    assert measured == {measure.name for measure in BATTERIES["codes"].measures}
    assert "active latents per token" in result.output
    swapped = geometry(made, made / "acts", made / "planted", "--battery", "codes", out=tmp_path / "h")
    assert re.search(r"density +cached", swapped.output)


def test_a_store_is_measured_site_by_site_and_its_sites_beside_each_other(made, tmp_path):
    geometry(made, made / "acts", out=tmp_path / "g")
    found = read_json(tmp_path / "g" / "findings.json")
    groups = {group["measure"]: group for group in found["groups"]}
    assert set(groups) == {"spectrum", "isotropy", "sparseness", "dimension", "layers"}
    assert {f["subject"] for f in groups["spectrum"]["findings"]} == set(SITES)
    assert groups["layers"]["findings"][0]["subject"].startswith("CKA")
    page = (tmp_path / "g" / "report" / "index.html").read_text()
    assert "participation ratio, by site" in page
    one = geometry(made, made / "acts", "--site", "*mlp*", out=tmp_path / "h")
    assert re.search(rf"spectrum {SITES[1]} +cached", one.output)
    assert "layers" not in one.output


def test_two_dictionaries_are_compared(made, tmp_path):
    geometry(made, made / "random", made / "run", "--store", made / "acts", "--site", SITES[0], out=tmp_path / "g")
    found = read_json(tmp_path / "g" / "findings.json")
    names = {f["name"]: f for group in found["groups"] for f in group["findings"]}
    assert names["mean cosine of pairs"]["stands_out"] in ("no", "too few draws")
    assert names["share of pairs"]["value"] == 0.0
    assert names["mean best correlation"]["p"] > 0


def test_the_findings_are_printed_as_json_and_nothing_else_is(made, tmp_path):
    result = geometry(made, made / "planted", "--json", out=tmp_path / "g")
    assert json.loads(result.output) == read_json(tmp_path / "g" / "findings.json")


def test_the_batteries_are_listed_with_what_they_need():
    output = CliRunner().invoke(app, ["geometry", "--list"]).output
    assert all(name in output for name in (*BATTERIES, *MEASURES))
    assert "needs a dictionary and a store" in output


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_table_fits_the_screen(made, tmp_path, monkeypatch, width):
    monkeypatch.setattr(screen.console, "_width", width)
    output = geometry(made, made / "planted", out=tmp_path / "g").output
    table = output.split("Coherence")[1].split(str(tmp_path))[0]  # what follows are the paths of the files
    assert max(len(line) for line in table.splitlines()) <= width
    assert "mutual" in table
    assert ("exact" in table) == (width == 160)


def test_errors_say_what_to_do(made, tmp_path):
    out = tmp_path / "g"
    (tmp_path / "empty").mkdir()
    cases = [
        ((), "PATH must be given"),
        ((tmp_path / "nothing",), "nothing does not exist"),
        ((tmp_path / "empty",), "empty is none of them"),
        ((made / "planted", "--battery", "nonsense"), "battery must be one of atoms, .*got 'nonsense'"),
        ((made / "planted", "--battery", "pair"), "battery 'pair' needs .*got dictionary"),
        ((made / "random", "--store", made / "acts"), "--site must name one site .*does not say where it was trained"),
        ((made / "planted", "--store", made / "acts", "--site", "blocks.9*"), "--site must match a site of the store"),
        ((made / "planted", "--site", SITES[0]), "--site goes with a store"),
        ((made / "acts", made / "acts"), "one store must be given"),
        ((made / "planted", "--store", made / "planted"), "--store must be the folder of an activation store"),
        ((made / "planted", "--prompts", tmp_path / "p.txt"), "--prompts goes with a language model"),
    ]
    for arguments, message in cases:
        with pytest.raises(ConfigError, match=message):
            geometry(made, *arguments, out=out)
    assert not out.exists()


def test_a_folder_that_holds_something_else_is_not_written_to(made, tmp_path):
    (tmp_path / "g" / "report").mkdir(parents=True)
    (tmp_path / "g" / "report" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not a report: choose another folder"):
        geometry(made, made / "planted", out=tmp_path / "g")
    assert (tmp_path / "g" / "report" / "thesis.tex").read_text() == "years of work"


def test_a_damaged_result_is_named(made, tmp_path):
    command = [
        "geometry",
        str(made / "planted"),
        "--quick",
        "--battery",
        "atoms",
        "--cache",
        str(tmp_path / "results"),
        "--out",
        str(tmp_path / "g"),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    (path,) = (tmp_path / "results").glob("geometry.coherence/*/outcome.json")
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, CacheError)
    assert str(path) in str(result.exception)


def test_what_a_path_is_is_recognised(made, tmp_path):
    assert [recognise(str(made / name)) for name in ("planted", "run", "acts")] == ["dictionary", "dictionary", "store"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert recognise(str(tmp_path / "model")) == recognise("default") == recognise("weights.gguf") == "model"


def test_without_prompts_a_model_is_measured_on_sentences_of_the_speeches(tmp_path):
    sentences = prompts_from(None)
    assert len(sentences) == len(set(sentences)) == N_PROMPTS
    assert all(len(sentence.split()) >= SHORTEST for sentence in sentences)
    (tmp_path / "prompts.txt").write_text("one sentence\n\n another one \n")
    assert prompts_from(tmp_path / "prompts.txt") == ("one sentence", "another one")


@pytest.mark.slow
def test_the_default_model_is_measured_layer_by_layer(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(prompts_from(None)[:40]))
    result = geometry(tmp_path, "default", "--prompts", tmp_path / "prompts.txt", "--battery", "layer_quality", out=tmp_path / "out")
    assert "prompt entropy" in result.output
    found = read_json(tmp_path / "out" / "findings.json")
    assert found["inputs"]["Prompts"] == "40"
    assert len({each["subject"] for group in found["groups"] for each in group["findings"]}) >= 30
