"""From which state of the project a run was made."""

import subprocess

from pipeline.fingerprint import PROJECT


def git_tags() -> dict[str, str]:
    """The project's commit, and whether it has uncommitted changes; empty outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git("status", "--porcelain")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"thaw.git_commit": commit, "thaw.git_dirty": dirty}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
