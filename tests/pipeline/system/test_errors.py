"""A Python that lacks what the commands need, or is too old, is told in a sentence."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.errors import report_missing_packages

PROJECT = Path(__file__).parents[3]
BEFORE_THE_CHECK = ("stages/__init__.py", "stages/__main__.py", "pipeline/__init__.py", "pipeline/__main__.py",
                    "pipeline/system/__init__.py", "pipeline/system/errors.py")  # fmt: skip


@pytest.mark.parametrize("words", [["stages", "main"], ["stages", "--help"], ["pipeline", "cache", "list"]])
def test_a_python_without_packages_is_named_with_what_it_lacks_and_what_to_do(words):
    bare = [sys.executable, "-S", "-m", *words]  # without the folder that packages are installed in
    done = subprocess.run(bare, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{sys.executable} (Python 3.")
    assert "lacks the package " in line
    assert "activate the environment that has it (. .venv/bin/activate)" in line


def test_a_package_that_is_missed_only_later_is_named_too(capsys):
    with pytest.raises(SystemExit) as ended, report_missing_packages():
        importlib.import_module("no_such_package.inner")
    assert ended.value.code == 2
    assert "lacks the package no_such_package;" in capsys.readouterr().err


def test_a_module_of_the_project_that_is_missing_is_no_fault_of_the_environment():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), report_missing_packages():
        importlib.import_module("pipeline.no_such_module")


def test_a_python_that_is_too_old_is_told_before_anything_is_tried(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    tried = []
    with pytest.raises(SystemExit) as ended, report_missing_packages():
        tried.append("an import")
    assert (ended.value.code, tried) == (2, [])
    assert "is Python 3.9, and Thaw needs 3.11 or newer" in capsys.readouterr().err


@pytest.mark.parametrize("file", BEFORE_THE_CHECK)
def test_what_is_read_before_the_check_is_no_mistake_to_an_old_python(file):
    ast.parse((PROJECT / file).read_text(encoding="utf-8"), feature_version=(3, 8))
