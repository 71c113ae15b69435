"""A page in a real Chromium, driven by clicks and keys through its DevTools pipe, with the standard library alone."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"ArrowDown": 40, "Tab": 9, "Enter": 13, " ": 32}
PATIENCE_SECONDS = 60


class Page:
    """One tab; `downloads` is where files go that it makes."""

    def __init__(self, pipe: Callable[..., dict[str, Any]], downloads: Path) -> None:
        self._pipe, self.downloads = pipe, downloads
        target = pipe("Target.createTarget", url="about:blank")["targetId"]
        self._session = pipe("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        pipe("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def _call(self, method: str, **given: Any) -> dict[str, Any]:
        return self._pipe(method, self._session, **given)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; AssertionError if it throws."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, page: Path | str) -> None:
        """Load a file or an address, and wait until it is there."""
        address = page.as_uri() if isinstance(page, Path) else page
        self._call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.protocol === '{address.partition(':')[0]}:'")

    def resize(self, width_px: int, height_px: int) -> None:
        """Give the window another size."""
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def reload(self) -> None:
        """The same page anew."""
        self.run("window.isOld = true")
        self._call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def wait(self, script: str) -> None:
        """Until an expression holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Press the mouse on the first element that the selector finds."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"{element}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str) -> None:
        """Press a key, for the element that has the focus."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **code)
        self._call("Input.dispatchKeyEvent", type="keyUp", **code)

    def drop(self, paths: Sequence[Path], selector: str) -> None:
        """Drop files on the first element that the selector finds, as from the desktop."""
        box = self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        files = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self._call("Input.dispatchDragEvent", type=kind, x=box["x"] + 5, y=box["y"] + 5, data=files)

    def choose(self, paths: Sequence[Path], selector: str) -> None:
        """Choose files in an input."""
        element = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        files = [str(path) for path in paths]
        self._call("DOM.setFileInputFiles", files=files, objectId=element["result"]["objectId"])

    def prefer(self, scheme: str) -> None:
        """Ask pages for a dark or a light scheme of colours."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        """Keep a picture of what the window shows."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def opened_page(folder: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, whose profile and downloads lie in `folder`."""
    assert CHROMIUM
    (folder / "downloads").mkdir(parents=True)
    # Chromium reads commands from file descriptor 3 and answers on 4; ours lie above, so that none is overwritten.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for pair in (os.pipe(), os.pipe()) for end in pair]
    commands, to_browser, from_browser, answers = ends

    def use_pipes() -> None:
        os.dup2(commands, 3)
        os.dup2(answers, 4)

    browser = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1400"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=use_pipes,
    )  # fmt: skip
    os.close(commands)
    os.close(answers)
    numbers = iter(range(1, 10**9))
    with os.fdopen(to_browser, "wb", buffering=0) as sending, os.fdopen(from_browser, "rb") as receiving:
        waiting = b""

        def call(method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
            nonlocal waiting
            number = next(numbers)
            message = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
            sending.write(json.dumps(message).encode() + b"\0")
            while True:
                while b"\0" not in waiting:
                    read = receiving.read1(1 << 16)
                    assert read, "Chromium has ended"
                    waiting += read
                answer, _, waiting = waiting.partition(b"\0")
                content = json.loads(answer)
                if content.get("id") == number:
                    assert "error" not in content, content["error"]
                    return content["result"]

        try:
            yield Page(call, folder / "downloads")
        finally:
            with suppress(OSError, AssertionError):
                call("Browser.close")
            browser.kill()
            browser.wait()
