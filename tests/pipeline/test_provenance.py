import subprocess
from pathlib import Path

import pytest

from pipeline import provenance
from pipeline.provenance import git_tags


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", folder, *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the project; no checkout yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(provenance, "PROJECT", folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def commit(project: Path) -> str:
    """The one commit of the project."""
    git(project, "init", "--quiet")
    (project / "code.py").write_text("x = 1\n")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "First")
    return git(project, "rev-parse", "HEAD")


def test_a_clean_checkout_is_named_by_its_commit(commit):
    assert git_tags() == {"thaw.git_commit": commit, "thaw.git_dirty": "false"}


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_changed_or_new_file_makes_it_dirty(project, commit, name):
    (project / name).write_text("x = 2\n")
    assert git_tags() == {"thaw.git_commit": commit, "thaw.git_dirty": "true"}


def test_the_working_folder_does_not_matter(commit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_tags()["thaw.git_commit"] == commit


def test_outside_a_checkout_nothing_is_said(project):
    assert git_tags() == {}


def test_without_git_nothing_is_said(commit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_tags() == {}
