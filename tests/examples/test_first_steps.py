"""The notebook runs from top to bottom, and no outputs are committed with it."""

import os

import nbformat
import pytest
from nbclient import NotebookClient
from support import ROOT

NOTEBOOK = ROOT / "examples" / "first_steps.ipynb"


def test_the_notebook_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(ROOT / "examples")}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()
    printed = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    assert "student: " in printed and "truth: " in printed
    # 25 discs of 24 pixels of 5 nm were drawn.
    (sentence,) = [line for line in printed.splitlines() if line.startswith("Measured: 25 ")]
    assert "nm" in sentence
    assert "Does it see?" in printed and "Where does it fail?" in printed
    (folder,) = tmp_path.glob("first-steps-*")
    assert (folder / "student" / "adapter_config.json").is_file()
    assert (folder / "report" / "index.html").is_file()
