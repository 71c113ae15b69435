"""What a stage's result depends on, as one hash; and the state of the project that a run was made from."""

import ast
import hashlib
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.cache.hashing import content_key

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "stages")
# The command line, on which no result depends.
NOT_CODE = ("stages.registry", "stages.__main__")
# Calls whose arguments are sentences for the user.
SENTENCES = ("UserError", "say", "warn")
HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def stage_fingerprint(
    stage: str, sections: Mapping[str, Mapping[str, Any]], seed: int, inputs: Mapping[str, Any], code: str
) -> str:
    """The hash of a stage's sections of the recipe, its seed, its inputs (such as digests) and its code.

    Numbers count as numbers: 1e-2 is 0.01.
    """
    return content_key({"stage": stage, "sections": sections, "seed": seed, "inputs": inputs, "code": code})


def source_digest(module: str) -> str:
    """A hash of the source of `module` (such as "stages.resize") and of all of the project that it imports, directly
    or through others. Comments, docstrings and sentences for the user do not count, nor does the command line."""
    digests = "".join(f"{name} {digest}\n" for name, (digest, _) in sorted(_read_modules(module).items()))
    return hashlib.sha256(digests.encode()).hexdigest()


def imported_modules(module: str) -> set[str]:
    """The project's modules that running `module` loads, now or `later`, itself included, but for the command line."""
    return set(_read_modules(module))


def git_tags() -> dict[str, str]:
    """The project's commit, and whether it has uncommitted changes, as one tag; empty outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git("status", "--porcelain")
    since = "" if changes == "" else ", maybe changed since" if changes is None else ", changed since"
    return {"thaw.git_commit": f"{commit}{since}"}


def _read_modules(module: str) -> dict[str, tuple[str, frozenset[str]]]:
    """What `_parse` gives of each of the project's modules that running `module` loads, but for the command line."""
    paths, read = _paths(), dict[str, tuple[str, frozenset[str]]]()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in read:
            read[name] = _parse(paths[name].read_text(encoding="utf-8"))
            waiting += (read[name][1] & paths.keys()) - set(NOT_CODE)
    return read


def _paths() -> dict[str, Path]:
    """The files of the project's modules, by the modules' names."""
    found = {}
    for path in (path for package in PACKAGES for path in (PROJECT / package).rglob("*.py")):
        *folders, _ = path.relative_to(PROJECT).parts
        found[".".join(folders if path.stem == "__init__" else [*folders, path.stem])] = path
    return found


@cache
def _parse(source: str) -> tuple[str, frozenset[str]]:
    """(a hash of the source without docstrings and sentences for the user, what it imports of the project, modules and
    names in them alike, and the modules of functions that are called `later`)."""
    tree = ast.parse(source)
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "later":
                named.add(ast.literal_eval(node.args[0]).rpartition(".")[0])
            elif node.func.id in SENTENCES:
                node.args = []
        elif isinstance(node, HAVE_DOCSTRINGS) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    ours = frozenset(name for name in named if name.split(".")[0] in PACKAGES)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), ours


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
