"""The tracking page in a real browser, on the runs of the other tests here. Where there is no Chromium it skips.

The screenshots lie in the test's folder, or in $THAW_SCREENSHOTS.
"""

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
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.chromium import CHROMIUM, Page, opened_page
from tests.mlflow_server import WITHOUT_JOBS

HTML = "document.documentElement.outerHTML"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")


@dataclass(frozen=True)
class Browser:
    """Looks at pages of the tracking server; keeps a picture of each."""

    address: str
    folder: Path
    page: Page

    def look(self, name: str, path: str, *words: str) -> str:
        """The page's rendered text and tags, once all of these words are there; its picture is NAME.png."""
        self.page.open("about:blank")  # so that nothing is left of the page before
        self.page.open(f"{self.address}/{path}")
        for word in words:
            self.page.wait(f"{HTML}.includes({json.dumps(word)})")
        picture = self.folder / f"{name}.png"
        self.page.picture(picture)
        assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 50, f"{name} is blank"
        return str(self.page.run(HTML))


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
            command, cwd=workplace.folder, env=workplace.environment() | WITHOUT_JOBS, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (folder / "server.log").read_text()
                    time.sleep(0.2)
            with opened_page(tmp_path_factory.mktemp("chromium")) as page:
                yield Browser(address, folder, page)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # it takes its time to end on a busy machine
            server.wait()


def address_of(run) -> str:
    """Of the page of a run."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def test_the_page_of_a_finished_run_shows_its_stages_figures_and_verdict(browser, main):
    verdict = main.stage("evaluate").data.tags["thaw.verdict"]
    figures = "test/accuracy", "best_valid_accuracy"
    browser.look(
        "run", address_of(main.parent), "Finished", "precompute", "fine_tune", "evaluate", *figures,
        "thaw.verdict", verdict,
    )  # fmt: skip


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
    header = 'white-space: pre;">'
    titles = [f"{header}{section}<" for section in sections]
    page = browser.look(f"charts_{stage}", f"{address_of(run)}/model-metrics", *titles)
    found = rf'data-testid="experiment-view-compare-runs-section-header".*?{header}([^<]+)<'
    assert re.findall(found, page, flags=re.DOTALL) == sections


def test_the_description_begins_with_the_verdict(browser, main):
    for run in (main.parent, main.stage("evaluate")):
        page = browser.look("described", address_of(run), "Description", "<p><strong>")
        begins = re.search(r"<p><strong>([^<]+)</strong>: ", page[page.index("Description") :])
        assert begins is not None
        assert begins.group(1) == run.data.tags["thaw.verdict"]


def test_two_runs_stand_side_by_side_in_the_compare_view(browser, main, main_again):
    ids = [run.parent.info.run_id for run in (main, main_again)]
    experiment = main.parent.info.experiment_id
    query = urllib.parse.urlencode({"runs": json.dumps(ids), "experiments": json.dumps([experiment])})
    words = "fine_tune.weight_decay", "best_valid_accuracy", "overfit/gap"
    browser.look("compare", f"#/compare-runs?{query}", *ids, *words)


def test_the_models_page_shows_the_champion_and_its_card(browser, main):
    browser.look("model", "#/models/thaw-smoke", "champion")
    words = "champion", "defective", "How it was trained", "Limits", "Licence"
    browser.look("version", "#/models/thaw-smoke/versions/1", *words)


@pytest.mark.slow
def test_the_page_of_a_sweep_shows_its_trials_and_the_best_so_far(browser, sweep):
    words = "Finished", "best/valid_accuracy", "seeds/valid_accuracy_mean", "test/accuracy", "over 2 seeds"
    browser.look("sweep", address_of(sweep.parent), *words)
    trial = sweep.trials()[-1]
    words = trial.info.run_name, "fine_tune.lr", "setting/fine_tune.lr", "valid/accuracy"
    browser.look("trial", address_of(trial), *words)
    report = browser.folder / "sweep.html"
    shutil.copy(sweep.artifact("sweep.html"), report)
    page = replace(browser, address="file://").look("sweep_report", f"{report}", "fine_tune.cycle_len")
    assert page.count('class="main-svg"') >= 4, "the figures are drawn without a network"


def test_the_reports_read_by_themselves(browser, main):
    report = browser.folder / "report.html"
    shutil.copy(main.files("evaluate") / "report.html", report)
    replace(browser, address="file://").look("report", f"{report}", "accuracy")
