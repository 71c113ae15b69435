"""A copy of the project, in which commands are run as a newcomer types them, and what they print."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from docs.make.pages import PROJECT

LOG_LINE = re.compile(
    r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d |Registered model '|Created version '|Successfully registered"
    r"| - \S+ \(current: |To fix the mismatches"
)
EPOCH_LINE = re.compile(r"  epoch \d+: ")
COLUMNS = "110"
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Copy:
    """A copy of the project in `folder`, with a cache of its own beside it, and a link `photos` to pictures."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """That of a terminal with the environment activated, in which nothing is set for MLflow or Thaw."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "THAW_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        cache = str(self.folder.parent / "cache")
        return own | {"PATH": path, "THAW_CACHE": cache, "COLUMNS": COLUMNS, "PYTHONUNBUFFERED": "1"}

    def run(self, command: str) -> str:
        """What the command prints; RuntimeError, with all of it, if it fails."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command}\n{done.stdout}")
        return done.stdout.replace(str(self.folder), "~/thaw")

    @contextmanager
    def serving(self, command: str, health: str) -> Iterator[None]:
        """Run a server within a block, from when it answers at the address `health`."""
        with (self.folder.parent / "server.log").open("wb") as log:
            server = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        try:
            end = time.monotonic() + PATIENCE_SECONDS
            while not _answers(health):
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command} does not answer; see {log.name}.")
                time.sleep(0.3)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def copy_project(folder: Path, photos: Path) -> Copy:
    """Copy all files of the project that git tracks or would, as they are now, with a link to the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
    link = folder / "photos"
    link.unlink(missing_ok=True)
    link.symlink_to(photos.resolve())
    return Copy(folder)


def transcript(command: str, printed: str, keep: Sequence[str] = ()) -> str:
    """The command after a prompt, and the lines that it printed which match one of `keep` (all, if there are none),
    with "…" for others between them. What MLflow logs is left out, and so is each epoch that another follows."""
    kept, wanted, is_cut = [f"$ {command}"], [re.compile(pattern) for pattern in keep], False
    lines = [line.rstrip() for line in printed.splitlines() if line.strip() and not LOG_LINE.match(line)]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        is_passed = EPOCH_LINE.match(line) and EPOCH_LINE.match(following)
        if not is_passed and (not wanted or any(pattern.search(line) for pattern in wanted)):
            kept += ["  …"] * is_cut + [line]
            is_cut = False
        else:
            is_cut = True
    return "\n".join(kept)


def _answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
        return bool(answer.status == 200)
    return False
