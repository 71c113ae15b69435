"""Screenshots of pages in a Chromium, where there is one."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.chromium import CHROMIUM, Page, opened_page

SETTLE_SECONDS = 1.5
COLOURS = 200
ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"  # MLflow's own, which opens itself once


@dataclass(frozen=True)
class Screens:
    """A window of a Chromium, whose pictures go into `folder`."""

    page: Page
    folder: Path

    def look(self, name: str, where: Path | str, size_px: tuple[int, int], words: str, drawn: int = 0) -> None:
        """Open a file or an address, wait until it shows `words` and has this many charts `drawn`, and keep a picture
        of this width and height as `NAME.png`."""
        self.page.open("about:blank")
        self.page.resize(*size_px)
        self.page.open(where)
        self.page.wait(f"document.body.innerText.includes({words!r})")
        self.page.wait(f"document.querySelectorAll('.main-svg').length >= {drawn}")
        self.keep(name)

    def keep(self, name: str) -> None:
        """A picture of the window as it is, once it has settled, in few colours, since it goes into the repository."""
        time.sleep(SETTLE_SECONDS)
        if self.page.run(f"document.querySelector({ASSISTANT!r}) !== null"):
            self.page.click(ASSISTANT)
            time.sleep(SETTLE_SECONDS)
        path = self.folder / f"{name}.png"
        self.page.picture(path)
        picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def open_screens(folder: Path, work: Path) -> Iterator[Screens | None]:
    """A window within a block; None where there is no Chromium. Its profile lies in `work`."""
    if CHROMIUM is None:
        print("There is no Chromium here, so that screenshots stay as they are.")
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with opened_page(work) as page:
        yield Screens(page, folder)
