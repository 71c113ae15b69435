"""try as a user meets it: from a picture dropped on the page, in a real Chromium, to what the model says of it. Where
there is no Chromium, the tests that need one skip."""

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.chromium import CHROMIUM, Page, opened_page
from tests.forked_processes import Forked, fork_command

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")
DONE = "[...document.querySelectorAll('.answer')].map((card) => card.dataset.done)"


@contextmanager
def tried(workplace, model: str, *settings: str) -> Iterator[tuple[str, Forked]]:
    """The address of the page, while the command runs, and its process."""
    words = ["try", "--model", model, "--port", "0", *settings]
    process = fork_command("stages", words, workplace.environment())
    try:
        said = process.stdout.readline()
        while " answers at " not in said:
            assert said, "it ended without a page"
            said = process.stdout.readline()
        yield said.partition(" answers at ")[2].partition(",")[0], process
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()


def ask(address: str, picture: Path) -> dict:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{address}answer", picture.read_bytes(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def evaluated(main):
    """What evaluate predicted for the test split."""
    table = pd.read_csv(main.files("evaluate") / "predictions.csv")
    return table[table["split"] == "test"].reset_index(drop=True)


def test_it_says_what_evaluate_said_and_ends_quietly_at_ctrl_c(workplace, main, evaluated):
    with tried(workplace, "thaw-smoke") as (address, process):
        for row in evaluated.head(5).itertuples():
            found = ask(address, workplace.pictures / row.path)
            assert found["label"] == row.predicted
            assert found["probabilities"][0]["probability"] == pytest.approx(row.calibrated_confidence, abs=1e-4)
            trained = set(pd.read_csv(main.files("evaluate") / "neighbours/pictures.csv")["path"])
            assert {one["path"] for one in found["neighbours"]} <= trained
            assert len(found["neighbours"]) == 6
        os.kill(process.pid, signal.SIGINT)
        rest, _ = process.communicate()
        assert (rest, process.returncode) == ("", 0)
    assert not workplace.runs(stage="try"), "to look at pictures is no run"


def test_a_model_is_also_meant_by_a_run_or_a_folder(workplace, main, evaluated, tmp_path):
    picture = workplace.pictures / evaluated["path"][0]
    (output,) = workplace.client.get_run(main.stage("evaluate").info.run_id).outputs.model_outputs
    folder = workplace.client.get_logged_model(output.model_id).artifact_location.removeprefix("file://")
    answers = []
    for model in (main.parent.info.run_id, folder):
        with tried(workplace, model) as (address, _):
            answers.append(ask(address, picture))
    assert answers[0] == answers[1]
    assert answers[0]["neighbours"]


def test_a_mistake_is_told_in_a_sentence(workplace, main):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = workplace.command("try", "model=thaw-smoke", f"port={port}", expect=2)
        assert said.startswith(f"Port {port} of 127.0.0.1 is taken; name another")
    said = workplace.command("try", "model=models:/nowhere@champion", "port=0", expect=2)
    assert "The model models:/nowhere@champion cannot be fetched" in said


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].map((one) => one.textContent)")


@in_chromium
def test_from_a_dropped_picture_to_its_label(workplace, main, evaluated, tmp_path):
    pictures = [workplace.pictures / path for path in evaluated["path"][:2]]
    trained = pd.read_csv(main.files("evaluate") / "neighbours/pictures.csv")["path"][0]
    (tmp_path / "notes.png").write_text("no picture")
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 255).save(tmp_path / "deep.tif")
    with tried(workplace, "thaw-smoke") as (address, process), opened_page(tmp_path / "chromium") as page:
        page.open(address)
        page.drop([*pictures, tmp_path / "notes.png"], "body")
        page.wait(f"{DONE}.every(Boolean) && {DONE}.length === 3")
        assert page.run(DONE) == ["answered", "answered", "failed"]
        said = texts(page, ".said")
        for row, sentence in zip(evaluated.head(2).itertuples(), said, strict=False):
            assert sentence == f"{row.predicted} {row.calibrated_confidence:.1%}"
        assert said[2].startswith("It cannot be opened as a picture: it is in no format")
        assert texts(page, ".answer h2") == [*(path.name for path in pictures), "notes.png"]
        widths = page.run("[...document.querySelector('.bars').querySelectorAll('.track')].map((track) => "
                          "track.firstChild.offsetWidth / track.offsetWidth)")  # fmt: skip
        assert widths == pytest.approx(sorted(evaluated.loc[0, ["probability/defective", "probability/functional"]],
                                              reverse=True), abs=0.05)  # fmt: skip
        assert "All 3 are done." in page.run("document.querySelector('#status').textContent")
        loaded = page.run("[...document.images].map((one) => one.naturalWidth)")
        assert len(loaded) == 2 * (2 + 6)
        assert min(loaded) > 0

        page.choose([tmp_path / "deep.tif", workplace.pictures / trained], "#files")
        page.wait(f"{DONE}.every(Boolean) && {DONE}.length === 5")
        assert texts(page, ".answer h2")[:2] == ["deep.tif", Path(trained).name], "the newest come first"
        assert page.run(DONE)[:2] == ["answered", "answered"]
        (doubts,) = page.run("[[...document.querySelectorAll('.answer')[1].querySelectorAll('.verdict')]"
                             ".map((one) => one.textContent)]")  # fmt: skip
        assert f"It is all but the same as {trained}, on which the model was trained" in " ".join(doubts)

        content = np.asarray(bytearray(pictures[0].read_bytes())).tolist()
        page.run(f"""(() => {{
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array({content})], "image.png", {{ type: "image/png" }}));
            document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData: data, bubbles: true }}));
        }})()""")
        page.wait(f"{DONE}.every(Boolean) && {DONE}.length === 6")
        assert texts(page, ".said")[0] == said[0]

        os.kill(process.pid, signal.SIGINT)
        process.communicate()
        page.choose([pictures[0]], "#files")
        page.wait(f"{DONE}.every(Boolean) && {DONE}.length === 7")
        assert "is the command still running?" in texts(page, ".said")[0]


@in_chromium
def test_the_page_works_by_keyboard_and_says_to_a_screen_reader_what_it_shows(workplace, main, evaluated, tmp_path):
    with tried(workplace, "thaw-smoke") as (address, _), opened_page(tmp_path / "chromium") as page:
        page.open(address)
        page.press("Tab")
        assert page.run("document.activeElement.id") == "files"
        assert page.run("document.querySelector('#files').labels[0].textContent") == "Choose pictures"
        page.drop([workplace.pictures / evaluated["path"][0]], "body")
        page.wait(f"{DONE}.every(Boolean) && {DONE}.length === 1")
        assert page.run("document.querySelector('#status').getAttribute('role')") == "status"
        assert evaluated["predicted"][0] in page.run("document.querySelector('#status').textContent")
        assert all(page.run("[...document.images].map((one) => one.alt)"))
        colours = []
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            colours.append(page.run("getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(24, 26, 29)"]
