"""The notebook runs from top to bottom, and trains where there are no runs."""

import json
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

NOTEBOOK = REPOSITORY / "notebooks/separable_convolution.ipynb"


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPCONV_RUNS", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(REPOSITORY / "notebooks")}}).execute()
    results = sorted(tmp_path.glob("digits/separable/*/result.json"))
    assert len(results) == 4
    text = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "Cost(parameters=39, macs=351)" in text
    assert text.count("image/png") == 5  # pictures, not what they are made of
    assert len(text) < 600_000
    assert f"{100 * json.loads(results[0].read_text())['test_accuracy']:.2f}"[:3] in text


def test_notebook_is_committed_with_small_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.get("outputs") is not None for cell in notebook.cells if cell.cell_type == "code")
    assert sum("image/png" in json.dumps(cell.get("outputs")) for cell in notebook.cells) == 5
    assert NOTEBOOK.stat().st_size < 500_000
    assert str(REPOSITORY) not in NOTEBOOK.read_text()
