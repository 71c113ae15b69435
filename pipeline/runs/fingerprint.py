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
    digests = "".join(f"{name} {_read_module(name)[0]}\n" for name in sorted(imported_modules(module)))
    return hashlib.sha256(digests.encode()).hexdigest()


def imported_modules(module: str) -> set[str]:
    """The project's modules that running `module` loads, now or `later`, itself included, but for the command line."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += direct_imports(name) - set(NOT_CODE)
    return seen


def direct_imports(module: str) -> frozenset[str]:
    """The project's modules that `module` names in its own import statements, or hands to `later`."""
    return _read_module(module)[1]


def git_tags() -> dict[str, str]:
    """The project's commit, and whether it has uncommitted changes, as one tag; empty outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git("status", "--porcelain")
    since = "" if changes == "" else ", maybe changed since" if changes is None else ", changed since"
    return {"thaw.git_commit": f"{commit}{since}"}


class _WithoutSentences(ast.NodeTransformer):
    """Removes docstrings, and what is said to the user."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in SENTENCES:
            node.args = []
        return node


def _read_module(module: str) -> tuple[str, frozenset[str]]:
    """(a hash of the module's source without sentences, the project's modules that it imports)."""
    digest, named = _parse(_path(module).read_text(encoding="utf-8"))
    return digest, frozenset(name for name in named if _path(name).is_file())


@cache
def _parse(source: str) -> tuple[str, frozenset[str]]:
    """(a hash of the source without sentences, what it imports of the project, modules and names in them alike, and
    the modules of functions that are called `later`)."""
    tree = ast.parse(source)
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "later":
            named.add(ast.literal_eval(node.args[0]).rpartition(".")[0])
    ours = frozenset(name for name in named if name.split(".")[0] in PACKAGES)
    return hashlib.sha256(ast.dump(_WithoutSentences().visit(tree)).encode()).hexdigest(), ours


def _path(module: str) -> Path:
    path = PROJECT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
