"""The notebook's cells, run one after the other on a few real pictures, as Jupyter would."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workplace import PROJECT, Workplace, copy_cells

NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_the_stages_leave_finished_runs(tmp_path: Path):
    place = Workplace(tmp_path)
    copy_cells(place.pictures, 32)
    copied = shutil.copy(NOTEBOOK, tmp_path / "notebook.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "docs.make.notebook", str(copied)], cwd=PROJECT, capture_output=True, text=True,
        env=place.environment() | {"PHOTOS": str(place.pictures)}, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [run.data.tags["thaw.stage"] for run in place.runs(done="true")]
    assert stages == ["precompute", "lr_find", "train_head", "train_head", "fine_tune", "evaluate"]
    cells = [cell for cell in json.loads(Path(copied).read_text())["cells"] if cell["cell_type"] == "code"]
    drawn = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "display_data"]
    assert len(drawn) == 2, "the finder's curve and the pictures of the highest losses"
    assert "learning rate" in "".join(cells[3]["source"])
