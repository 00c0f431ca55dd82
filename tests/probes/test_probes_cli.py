import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from probes import cli
from probes.features import write_features
from probes.table import ProbeRow
from probes.tasks import CATALOGUE
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


def test_run_prints_scores_with_their_nulls_and_writes_the_rows(tmp_path):
    out = tmp_path / "rows.json"
    file = saved(tmp_path / "f.npz")
    result = CliRunner().invoke(
        cli.app, ["run", str(file), "--k", "1", "--k", "2", "--shuffles", "2", "--bootstrap", "10", "--json", str(out)]
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
    monkeypatch.setattr(sys, "argv", ["probes", "run", str(tmp_path / "absent.npz")])
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
