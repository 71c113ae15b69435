"""`python -m docs.make`, which `make docs` runs: all outputs, figures and screenshots of README and docs.

Takes some ten minutes on two cores. Everything is run in a copy of the project, with a cache and a tracking database of
its own; with `--work FOLDER` that is kept, and finished stages are taken from it the next time.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from docs.make.method import make_method
from docs.make.pages import PROJECT, fill_pages
from docs.make.photos import some_cells
from docs.make.project import copy_project
from docs.make.screens import open_screens
from docs.make.tour import Tour

NOTEBOOK = "docs/notebook.ipynb"
PARTS = ("method", "notebook", "tour")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the parts that are named."""
    parser = argparse.ArgumentParser(prog="python -m docs.make", description=__doc__)
    parser.add_argument("--photos", default="", help="a folder of pictures (default: some of the packaged solar cells)")
    parser.add_argument("--work", default="", help="where to work; kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to make (default: everything)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        make_pages(Path(given.work or folder).resolve(), given.photos, given.parts)


def make_pages(work: Path, photos: str, parts: Sequence[str]) -> None:
    """Run the parts in a copy of the project below `work`, and fill the pages."""
    work.mkdir(parents=True, exist_ok=True)
    copy = copy_project(work / "thaw", Path(photos) if photos else some_cells(work / "cells"))
    if "method" in parts:
        print(*fill_pages(make_method(copy, PROJECT / "docs" / "method")), sep="\n")
    if "notebook" in parts:
        copy.run(f"PHOTOS=photos/ MLFLOW_EXPERIMENT_NAME=notebook python -m docs.make.notebook {NOTEBOOK}")
        shutil.copy(copy.folder / NOTEBOOK, PROJECT / NOTEBOOK)
    if "tour" in parts:
        with (
            tempfile.TemporaryDirectory() as profile,
            open_screens(PROJECT / "docs" / "tour", Path(profile) / "chromium") as screens,
        ):
            print(*fill_pages(Tour(copy, screens).walk()), sep="\n")


if __name__ == "__main__":
    main()
