"""The notebooks run from top to bottom, with the numbers of a long training made small, and have no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path("notebooks")
SMALL = {
    "the_process_by_hand": {"TRAIN_IMAGES = 60_000": "TRAIN_IMAGES = 2_560"},
    "your_own_images": {
        "TRAIN_IMAGES = 60_000": "TRAIN_IMAGES = 640",
        "SAMPLES = 64": "SAMPLES = 20",
        "dim=32": "dim=8",
        '"steps": 15': '"steps": 4',
    },
}


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    # What it writes lies in a folder that Python's `tempfile` makes.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read(name)
    for shown, instead in SMALL[name].items():
        (cell,) = [cell for cell in code(notebook) if shown in cell.source]
        cell.source = cell.source.replace(shown, instead)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}}).execute()
    pictures = [each for cell in code(notebook) for each in cell.outputs if "image/png" in each.get("data", {})]
    assert len(pictures) >= 4


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert [cell for cell in code(notebook) if cell.outputs or cell.execution_count is not None] == []
