"""The notebooks of the documentation run, and what they show holds no path."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from paths import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "WMLSEARCH_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    content = nbformat.read(notebook, 4)
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:  # short, and instead of ports of this machine
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/k")
        place = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(content, km=kernel, timeout=800, startup_timeout=200, resources=place).execute()
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    shown = json.dumps([output for output in outputs if output.get("name") != "stderr"])  # tqdm's about ipywidgets
    assert "image/png" in shown
    about = "warning: the sealed test has "  # the page says why
    assert shown.lower().count("warning") == shown.count(about) == 1, "nothing else that a reader would ask about"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_notebook_is_small_and_names_no_place(notebook: Path) -> None:
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 200_000
    cells: list[dict[str, Any]] = json.loads(text)["cells"]
    texts = json.dumps([{k: v for k, v in cell.items() if k != "attachments"} for cell in cells])
    texts = re.sub(r'"image/png": "[^"]*"', "", texts)
    assert not re.search(r"/(tmp|home|root|work|Users|private)/|ipykernel_\d", texts)
    assert not any(output["output_type"] == "error" for cell in cells for output in cell.get("outputs", []))
