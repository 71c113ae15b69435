"""The code of a served model, as a package of a name of its own, and the packages that it needs."""

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.runs.fingerprint import PROJECT, imported_modules

OWN = "pipeline"
NAME = "thaw_model_"
DIGEST = 12
SERVING = (
    "mlflow", "filelock", "numpy", "onnxruntime", "pandas", "pillow", "rich", "safetensors", "timm", "torch",
    "torchvision",
)  # fmt: skip


def copy_served_code(loader: Path, folder: Path) -> Path:
    """Copy `loader`, the file that MLflow runs to load a model, and what it imports of this project, into `folder`, as
    a package `thaw_model_<digest of the code>`; gives the file's copy.

    In one process models of several versions of this project then run their own code each, beside any other module
    that is called as this project's own package.
    """
    sources = {path: (PROJECT / path).read_text(encoding="utf-8") for path in sorted(_files(loader))}
    digest = hashlib.sha256(repr([(str(path), source) for path, source in sources.items()]).encode())
    package = f"{NAME}{digest.hexdigest()[:DIGEST]}"
    for path, source in sources.items():
        copy = folder / package / path.relative_to(OWN)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_import_from(package, source), encoding="utf-8")
    return folder / package / loader.relative_to(PROJECT / OWN)


def pinned(names: Sequence[str] = SERVING) -> list[str]:
    """The lines of requirements.txt, such as `torch==2.14.1`, for these packages."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").split()
    by_name = {line.split("==")[0]: line for line in lines}
    return [by_name[name] for name in names]


def _files(loader: Path) -> set[PurePosixPath]:
    """The files, in the project, of the modules that are imported by `loader`, and of the packages that they lie in."""
    found = set()
    for name in imported_modules(".".join(loader.relative_to(PROJECT).with_suffix("").parts)):
        path = PurePosixPath(*name.split("."))
        found |= {parent / "__init__.py" for parent in path.parents if parent.name}
        found.add(path / "__init__.py" if (PROJECT / path).is_dir() else path.with_suffix(".py"))
    return found


def _import_from(package: str, source: str) -> str:
    """`source` with its imports from this project's package taken from `package` instead."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == OWN:
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(f"from {OWN}", f"from {package}", 1)
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == OWN for alias in node.names):
            raise ValueError(f"{ast.unparse(node)} in code that is served cannot be renamed; write from … import …")
    return "".join(lines)
