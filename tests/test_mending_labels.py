"""Labels are mended where they are looked at, in a real Chromium: from a click to the pictures of the next run. Where
there is no Chromium it skips."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data.manifest import Manifest, build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.reports.page import Mending, Pictures, Section, html_report
from pipeline.reports.pictures import CaptionedPictures, with_mending
from tests.chromium import CHROMIUM, Page, opened_page

CLASSES = ["cat", "dog", 'hen, "the" <third>']
COUNT, DOWNLOAD = "#mend-count", "#mend-download"


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for label in CLASSES:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            square = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(square).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def manifest_of(photos, corrections="") -> Manifest:
    return build_manifest(list_source(str(photos), [".png"], str(corrections)), 0.3, 0.0, 0.0, 0)


def report_of(manifest, path, key):
    """A page with a card for each picture, all predicted to be dogs."""
    table = manifest.table.reset_index(names="row").assign(predicted="dog")
    square = np.zeros((8, 8, 3), np.uint8)
    shown = [CaptionedPictures([square], [one, one]) for one in table["path"]]
    cards = with_mending(shown, [[row] for row in table["row"]], table)
    earlier = manifest.corrected.to_dict("records")
    bar = Mending(CLASSES, ["train", "valid"], earlier, "mlflow run .", key)
    path.write_text(html_report("Mend", [Section("", [bar]), Section("All", [Pictures("All", cards, path)])]))
    return path


def card(path: str, inner: str = "") -> str:
    return f'.mend[data-path="{path}"] {inner}'


def count(page: Page) -> str:
    return str(page.run(f"document.querySelector('{COUNT}').value"))


def pressed(page: Page, path: str) -> list[str]:
    """Which buttons of a card are pressed."""
    buttons = card(path, "[aria-pressed=true]")
    return list(page.run(f"[...document.querySelectorAll({buttons!r})].map((one) => one.dataset.action)"))


def choose(page: Page, selector: str, presses: int) -> None:
    """Move a select's choice down, by keyboard."""
    page.run(f"document.querySelector({selector!r}).focus()")
    for _ in range(presses):
        page.press("ArrowDown")


def downloaded(page: Page, path: Path) -> Path:
    """The file that the button makes, moved to `path`."""
    page.click(DOWNLOAD)
    end = time.monotonic() + 30
    while not (made := page.downloads / "corrections.csv").is_file():
        assert time.monotonic() < end
        time.sleep(0.02)
    return made.rename(path)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")
def test_from_a_click_on_the_page_to_the_labels_of_the_next_run(photos, tmp_path):
    manifest = manifest_of(photos)
    with opened_page(tmp_path / "chromium") as page:
        page.open(report_of(manifest, tmp_path / "report.html", "first"))
        assert count(page) == "Nothing is decided yet."
        assert page.run(f"document.querySelector('{DOWNLOAD}').disabled")
        assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 0
        page.click(card("cat/0.png", "[data-action=drop]"))
        page.click(card("cat/1.png", "[data-action=relabel]"))
        choose(page, card("cat/2.png", "select"), 2)
        page.click(card("dog/0.png", "[data-action=drop]"))
        assert count(page) == "2 relabelled, 2 dropped, 0 kept."
        page.run(f"document.querySelector({card('dog/0.png', '[data-action=keep]')!r}).focus()")
        page.press(" ")
        assert count(page) == "2 relabelled, 1 dropped, 1 kept."
        page.click(card("dog/1.png", "[data-action=drop]"))
        page.click(card("dog/1.png", "[data-action=drop]"))
        page.reload()
        assert count(page) == "2 relabelled, 1 dropped, 1 kept."
        assert pressed(page, "dog/0.png") == ["keep"]
        assert pressed(page, "dog/1.png") == []
        assert page.run(f"document.querySelector({card('cat/2.png', 'select')!r}).value") == CLASSES[2]
        choose(page, "[data-filter=label]", 2)
        choose(page, "[data-filter=error]", 2)
        assert page.run("document.querySelector('#cards-shown').textContent") == "6 of 18 cards shown"
        first = downloaded(page, tmp_path / "first.csv")
        corrected = manifest_of(photos, first)
        labels = dict(zip(corrected.table["path"], corrected.table["label"], strict=True))
        assert (labels["cat/1.png"], labels["cat/2.png"], labels["dog/0.png"]) == ("dog", CLASSES[2], "dog")
        changed = corrected.table["split"] != manifest.table["split"]
        assert corrected.table.loc[changed, ["path", "split"]].to_numpy().tolist() == [["cat/0.png", "dropped"]]

        page.open(report_of(corrected, tmp_path / "second.html", "second"))
        assert count(page) == "Nothing is decided yet. 4 decisions of before stay."
        assert pressed(page, "dog/0.png") == pressed(page, "cat/1.png") == ["keep"]
        for path in ("dog/0.png", "cat/1.png", "dog/4.png"):  # of which only the last was not decided before
            page.click(card(path, "[data-action=keep]"))
        page.click(card("dog/3.png", "[data-action=drop]"))
        assert count(page) == "0 relabelled, 1 dropped, 1 kept. 4 decisions of before stay."
        rows = pd.read_csv(downloaded(page, tmp_path / "second.csv"), keep_default_na=False)
        assert rows[["path", "was", "action", "label"]].to_numpy().tolist() == [
            ["cat/0.png", "cat", "drop", ""],
            ["cat/1.png", "cat", "relabel", "dog"],
            ["cat/2.png", "cat", "relabel", CLASSES[2]],
            ["dog/0.png", "dog", "keep", "dog"],
            ["dog/4.png", "dog", "keep", "dog"],
            ["dog/3.png", "dog", "drop", ""],
        ]
