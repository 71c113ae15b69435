"""The tracking page in a real browser, on the runs of the other tests here. Where there is no Chromium it skips.

The screenshots lie in the test's folder, or in $THAW_SCREENSHOTS.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=25000",
)  # fmt: skip


@dataclass(frozen=True)
class Browser:
    """Looks at pages of the tracking server; keeps a picture of each."""

    address: str
    folder: Path

    def look(self, name: str, path: str, size: str = "1280,1400") -> str:
        """The page's rendered text and tags, after its scripts have run; its picture is NAME.png."""
        picture = self.folder / f"{name}.png"
        common = [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder / 'profile'}", f"--window-size={size}"]
        done = subprocess.run(
            [*common, f"--screenshot={picture}", "--dump-dom", f"{self.address}/{path}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert picture.is_file(), done.stderr
        pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("L"))
        assert len(np.unique(pixels)) > 50, f"{name} is blank"
        return done.stdout


@pytest.fixture(scope="module")
def browser(workplace, main, tmp_path_factory) -> Iterator[Browser]:
    folder = Path(os.environ.get("THAW_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=workplace.folder, env=workplace.environment(), stdout=log, stderr=log, start_new_session=True
        )
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (folder / "server.log").read_text()
                    time.sleep(0.2)
            yield Browser(address, folder)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # it takes its time to end on a busy machine
            server.wait()


def test_the_page_of_a_finished_run_shows_its_stages_figures_and_verdict(browser, main):
    info = main.parent.info
    page = browser.look("run", f"#/experiments/{info.experiment_id}/runs/{info.run_id}", "1280,2400")
    for words in ("Finished", "precompute", "fine_tune", "evaluate", "test/accuracy", "best_valid_accuracy"):
        assert words in page
    assert "thaw.verdict" in page
    assert main.stage("evaluate").data.tags["thaw.verdict"] in page


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("main", ["overfit", "test", "train", "valid", "Model metrics"]),
        ("fine_tune", ["overfit", "train", "valid", "Model metrics"]),
        ("evaluate", ["test", "train", "valid", "Model metrics"]),
    ],
)
def test_results_and_curves_come_before_rates_and_single_figures_and_the_machines_are_apart(
    browser, main, stage, sections
):
    (run,) = [one for one in (main.parent, *main.nested) if one.data.tags["thaw.stage"] == stage]
    info = run.info
    path = f"#/experiments/{info.experiment_id}/runs/{info.run_id}/model-metrics"
    page = browser.look(f"charts_{stage}", path, "1600,6000")
    header = r'data-testid="experiment-view-compare-runs-section-header".*?white-space: pre;">([^<]+)<'
    assert re.findall(header, page, flags=re.DOTALL) == sections


def test_the_description_begins_with_the_verdict(browser, main):
    for run in (main.parent, main.stage("evaluate")):
        page = browser.look("described", f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}", "1280,2400")
        begins = re.search(r"<p><strong>([^<]+)</strong>: ", page[page.index("Description") :])
        assert begins is not None
        assert begins.group(1) == run.data.tags["thaw.verdict"]


def test_two_runs_stand_side_by_side_in_the_compare_view(browser, main, main_again):
    ids = [run.parent.info.run_id for run in (main, main_again)]
    experiment = main.parent.info.experiment_id
    query = urllib.parse.urlencode({"runs": json.dumps(ids), "experiments": json.dumps([experiment])})
    page = browser.look("compare", f"#/compare-runs?{query}", "1280,2400")
    for words in (*ids, "fine_tune.weight_decay", "best_valid_accuracy", "overfit/gap"):
        assert words in page


def test_the_models_page_shows_the_champion_and_its_card(browser, main):
    page = browser.look("model", "#/models/thaw-smoke")
    assert "champion" in page
    page = browser.look("version", "#/models/thaw-smoke/versions/1", "1280,1600")
    for words in ("champion", "defective", "How it was trained", "Limits", "Licence"):
        assert words in page


@pytest.mark.slow
def test_the_page_of_a_sweep_shows_its_trials_and_the_best_so_far(browser, sweep):
    info = sweep.parent.info
    page = browser.look("sweep", f"#/experiments/{info.experiment_id}/runs/{info.run_id}", "1280,2400")
    for words in ("Finished", "best/valid_accuracy", "seeds/valid_accuracy_mean", "test/accuracy", "over 2 seeds"):
        assert words in page
    trial = sweep.trials()[-1]
    page = browser.look("trial", f"#/experiments/{info.experiment_id}/runs/{trial.info.run_id}", "1280,2400")
    for words in (trial.info.run_name, "fine_tune.lr", "setting/fine_tune.lr", "valid/accuracy"):
        assert words in page
    report = browser.folder / "sweep.html"
    shutil.copy(sweep.artifact("sweep.html"), report)
    page = Browser("file://", browser.folder).look("sweep_report", f"{report}", "1280,2400")
    assert "fine_tune.cycle_len" in page
    assert page.count('class="main-svg"') >= 4, "the figures are drawn without a network"


def test_the_reports_read_by_themselves(browser, main, workplace):
    report = browser.folder / "report.html"
    shutil.copy(main.files("evaluate") / "report.html", report)
    page = Browser("file://", browser.folder).look("report", f"{report}", "1280,2400")
    assert "accuracy" in page
