import json
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_hf_model, tiny_tokenizer
from typer.testing import CliRunner

from probes import cli
from probes.features import write_features
from probes.table import ProbeRow
from probes.tasks import CATALOGUE
from sae.errors import ConfigError
from sae.fingerprint import from_json


def saved(path, n=120):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, 12))
    X[:, 5] += 4 * y
    write_features(path, {"neurons": X, "noise": rng.normal(size=(n, 8))}, y, np.arange(n))
    return path


def test_tasks_are_listed_with_source_and_licence():
    result = CliRunner().invoke(cli.app, ["tasks"])
    assert result.exit_code == 0
    for name, entry in CATALOGUE.items():
        assert name in result.stdout
        assert entry.source in result.stdout
        assert entry.licence in result.stdout


def test_fit_prints_scores_with_their_nulls_and_writes_the_rows(tmp_path):
    out = tmp_path / "rows.json"
    file = saved(tmp_path / "f.npz")
    result = CliRunner().invoke(
        cli.app, ["fit", str(file), "--k", "1", "--k", "2", "--shuffles", "2", "--bootstrap", "10", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "120 rows in 120 groups, 50% with label 1" in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith("neurons") and "mean_difference" in line]
    assert len(lines) == 2
    assert all("(null 0." in line for line in lines)
    rows = [from_json(ProbeRow, row) for row in json.loads(out.read_text())["rows"]]
    assert [row.k for row in rows if row.features == "neurons" and not row.control] == [1, 2]
    assert rows[0].scores.auc.value > 0.95


def test_errors_are_one_line_and_a_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["probes", "fit", str(tmp_path / "absent.npz")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "absent.npz" in text
    assert text.count("\n") == 1


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, probes; print([m for m in ('torch', 'sklearn', 'scipy', 'numpy', 'transformer_lens') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_unknown_name_of_the_package_is_an_attribute_error():
    import probes

    with pytest.raises(AttributeError, match="no attribute 'KSparseProb'"):
        probes.KSparseProb  # noqa: B018
    assert set(probes.__all__) <= set(dir(probes))


WORDS = {"good": "the happy cat sat", "bad": "on a mat where dogs ran"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny model"
    tiny_hf_model(5, n_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path):
    """Texts of which the label can be read off the words; 30 documents of four rows."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        verdict = ("good", "bad")[i % 2]
        words = rng.permutation([*WORDS[verdict].split(), "of", "and"])
        rows.append({"review": " ".join(words), "verdict": verdict, "film": i // 4})
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("--task", file, "--text-column", "review", "--label-column", "verdict", "--group-column", "film")


def probes(*arguments):
    """The program's output; an error of the workbench is raised."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_task_can_be_looked_at():
    shown = probes("tasks", "era", "--n", 2)
    assert "before 1900" in shown and "1900 or later" in shown and "corpus state_of_the_union" in shown
    assert "contains_digit" in probes("tasks", "contains_digit")


def test_an_unknown_task_is_refused_with_the_ones_there_are():
    with pytest.raises(ConfigError, match="era, party"):
        probes("tasks", "eras")


def test_sweep_reads_a_file_of_texts_and_goes_on_from_the_cache(model, reviews, tmp_path):
    out, figures = tmp_path / "tables.json", tmp_path / "figures"
    options = (
        "sweep",
        *reviews,
        "--model",
        model,
        "--site",
        "blocks.*.hook_resid_post",
        "--k",
        1,
        "--k",
        4,
        "--bootstrap",
        20,
        "--shuffles",
        2,
    )
    first = probes(*options, "--json", out, "--figures", figures)
    assert "1/2  blocks.0.hook_resid_post: 1 problem fitted" in first
    tables = json.loads(out.read_text())
    assert {"rows", "reviews", "best"} == set(tables)
    assert [row["matrix"] for row in tables["reviews"]["rows"]] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert all(row["dense"] > 0.9 > row["shuffled labels"] for row in tables["reviews"]["rows"])
    assert {path.name for path in figures.iterdir()} == {"reviews.html", "against_k.html", "plotly.min.js"}
    assert "1/2  blocks.0.hook_resid_post: read from the cache" in probes(*options)


def test_directions_are_compared_and_transferred(model, reviews):
    shown = probes("directions", *reviews, "--model", model, "--site", "blocks.1.hook_resid_post", "--shuffles", 2, "--bootstrap", 20)
    assert "Directions for 'reviews'" in shown and "Stability of directions" in shown
    assert all(name in shown for name in ("mean difference", "LDA", "logistic", "random direction"))
    with pytest.raises(ConfigError, match="must name one site"):
        probes("directions", *reviews, "--model", model, "--site", "blocks.*.hook_resid_post")


def test_a_sweep_needs_sites_or_a_store(reviews):
    with pytest.raises(ConfigError, match="--site must be given"):
        probes("sweep", *reviews)


def test_figures_do_not_replace_a_file(tmp_path):
    from probes.cli.output import draw

    (tmp_path / "f").write_text("kept")
    with pytest.raises(ConfigError, match="must be a folder"):
        draw({}, tmp_path / "f")
    assert (tmp_path / "f").read_text() == "kept"


@pytest.mark.real_model
def test_concepts_and_hierarchy_of_the_default_model(tmp_path):
    shown = probes("concepts", "--json", tmp_path / "c.json")
    assert "singular" in shown and "most alike" in shown
    found = {row["inner product"]: row["median |cos|"] for row in json.loads((tmp_path / "c.json").read_text())["cosines"]["rows"]}
    assert found["causal"] < 0.3 * found["Euclidean"]
    probes("hierarchy", "--edges", 20, "--categories", 20, "--json", tmp_path / "h.json")
    rows = {row["condition"]: row for row in json.loads((tmp_path / "h.json").read_text())["edges"]["rows"]}
    assert rows["hierarchy"]["disjoint projection"] > rows["random nested sets"]["disjoint projection"] + 0.3
