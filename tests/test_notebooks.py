"""Notebooks: the committed .ipynb is the .py, executed; and the .py runs, with the claims it asserts."""

from pathlib import Path

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_notebook_is_its_source_executed(source):
    text, executed = jupytext.read(source), jupytext.read(source.with_suffix(".ipynb"))
    assert cells(text) == cells(executed)
    assert len(text.cells) <= 25
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("assert " in cell.source for cell in code)
    outputs = str([cell.outputs for cell in code])
    assert "Traceback" not in outputs
    assert "/root/" not in outputs


ALSO_A_SCRIPT = ("00_quickstart",)
"""What `test_quickstart.py` runs anyway."""


@pytest.mark.real_model
@pytest.mark.parametrize(
    "source",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in ALSO_A_SCRIPT else path for path in SOURCES],
    ids=[path.stem for path in SOURCES],
)
def test_the_notebook_runs_at_the_fast_size(source, monkeypatch):
    monkeypatch.setenv("SAE_FAST", "1")
    notebook = jupytext.read(source)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
