"""What a stage's result depends on, as one hash."""

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.store import content_key

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")


def fingerprint(
    stage: str, sections: Mapping[str, Mapping[str, Any]], seed: int, inputs: Mapping[str, Any], code: str
) -> str:
    """The hash of a stage's sections of the recipe, its seed, its inputs (fingerprints, digests) and its code.

    Numbers count as numbers: 1e-2 is 0.01.
    """
    return content_key({"stage": stage, "sections": sections, "seed": seed, "inputs": inputs, "code": code})


def source_digest(module: str) -> str:
    """A hash of the source of `module` (such as "stages.resize") and of all of the project that it imports,
    directly or through others; comments and blank lines do not count."""
    digests = "".join(f"{name} {_read_module(name)[0]}\n" for name in sorted(imported_modules(module)))
    return hashlib.sha256(digests.encode()).hexdigest()


def imported_modules(module: str) -> set[str]:
    """The project's modules that running `module` may load, itself included, imports inside functions too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += direct_imports(name)
    return seen


def direct_imports(module: str) -> frozenset[str]:
    """The project's modules that `module` names in its own import statements."""
    return _read_module(module)[1]


@cache
def _read_module(module: str) -> tuple[str, frozenset[str]]:
    """(a hash of the module's source without comments, the project's modules that it imports)."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = frozenset(name for name in named if name.split(".")[0] in PACKAGES and _path(name).is_file())
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), ours


def _path(module: str) -> Path:
    path = PROJECT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
