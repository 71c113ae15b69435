"""Helpers get ready while the leader goes on."""

import sys
from pathlib import Path

import torch

from pipeline.ranks.exchange import ask_all
from pipeline.ranks.readiness import ready_helpers
from pipeline.ranks.team import together
from tests.several_processes import run_led

MODULE = "waits_for_leader"
CODE = """
import time
from pathlib import Path
while not Path({go!r}).exists():
    time.sleep(0.01)
"""


def has_module() -> list[bool]:
    return ask_all(MODULE in sys.modules)


def lead(go: Path, found: Path) -> None:
    ready_helpers([MODULE], torch.device("cpu"))
    go.touch()  # nothing would end if the leader waited
    with together(has_module):
        found.write_text(str(has_module()))


def test_helpers_load_modules_while_the_leader_goes_on(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text(CODE.format(go=str(tmp_path / "go")))
    monkeypatch.syspath_prepend(str(tmp_path))
    run_led(lead, tmp_path / "go", tmp_path / "found", processes=3, cache=tmp_path / "cache")
    assert (tmp_path / "found").read_text() == "[False, True, True]"


def test_without_helpers_nothing_is_loaded():
    ready_helpers(["no_such_module"], torch.device("cpu"))
