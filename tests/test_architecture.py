"""Who may import whom, and what every file has; read from the syntax tree, so that nothing is imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.pins import SERVING

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")
FILES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
CHAINS_STAGES = {"stages.main", "stages.sweep"}
IMPORT_MLFLOW = ("pipeline.tracking", "pipeline.serving")
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "mlflow",
    "matplotlib",
    "sklearn",
    "pandas",
    "optuna",
    "onnx",
    "onnxruntime",
    "scipy",
}
LONGEST_FILE = 325
TESTED_WITHIN_OTHERS = {"__init__", "__main__", "errors", "contract", "device", "recipe_types"}
IN_PYPI = {"PIL": "pillow"}


def name_of(path: Path) -> str:
    """`pipeline/fit.py` as "pipeline.fit", and `pipeline/__init__.py` as "pipeline"."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
STAGES = [name for name in TREES if name.startswith("stages.")]
LIBRARY = [name for name in TREES if name.split(".")[0] == "pipeline"]


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at run time: all of them, or without those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(other, everywhere)
        elif everywhere or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, everywhere)


def imports(module: str, everywhere: bool = True) -> set[str]:
    """What `module` imports: modules of the project by full name, and the top packages of others."""
    found = set()
    for statement in statements(TREES[module], everywhere):
        if isinstance(statement, ast.Import):
            named = {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{module} has a relative import, which these tests do not follow"
            whole = {f"{statement.module}.{alias.name}" for alias in statement.names}
            named = {name if name in TREES else str(statement.module) for name in whole}
        found |= {name if name in TREES else name.split(".")[0] for name in named}
    return found


def reached(module: str, everywhere: bool) -> set[str]:
    """All that is imported by `module`, directly or through others of the project."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports(name, everywhere) if name in TREES else []
    return seen - {module}


def test_there_is_something_to_look_at():
    assert {"stages.main", "stages.evaluate"} <= set(STAGES)
    assert {"pipeline.fit", "pipeline.tracking"} <= set(LIBRARY)
    assert "torch" in imports("pipeline.fit")
    assert "pipeline.tracking" in imports("stages.evaluate")
    assert "pipeline.tracking" not in imports("stages.evaluate", everywhere=False)


@pytest.mark.parametrize("module", STAGES)
def test_a_stage_imports_no_other_stage_but_main_and_sweep_do(module):
    if module not in CHAINS_STAGES:
        assert not {name for name in imports(module) if name.split(".")[0] == "stages"}


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_knows_nothing_of_stages(module):
    assert not {name for name in imports(module) if name.split(".")[0] == "stages"}


@pytest.mark.parametrize("module", [*LIBRARY, *STAGES])
def test_no_module_imports_itself_through_others(module):
    through = {name for name in imports(module) if name in TREES and module in reached(name, everywhere=True)}
    assert not through


def test_mlflow_is_imported_by_tracking_and_the_served_model_alone():
    importers = {name for name in TREES if "mlflow" in imports(name)}
    assert {".".join(name.split(".")[:2]) for name in importers} == set(IMPORT_MLFLOW)


def test_optuna_is_imported_by_the_sweep_alone():
    importers = {name for name in TREES if "optuna" in imports(name)}
    assert {".".join(name.split(".")[:2]) for name in importers} <= {"pipeline.sweep"}


@pytest.mark.parametrize("module", STAGES)
def test_a_mistake_is_told_before_anything_heavy_is_imported(module):
    assert not reached(module, everywhere=False) & HEAVY


def test_all_that_the_served_model_imports_is_among_its_requirements():
    outside = {name for name in reached("pipeline.serving", everywhere=True) if name not in TREES}
    packages = {IN_PYPI.get(name, name) for name in outside - sys.stdlib_module_names}
    assert {"torch", "mlflow", "pillow"} <= packages
    assert packages <= set(SERVING)


def public(tree: ast.Module | ast.ClassDef, of: str) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{of}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{of}.{node.name}")


@pytest.mark.parametrize("module", TREES)
def test_whatever_is_public_says_what_it_is(module):
    assert ast.get_docstring(TREES[module])
    assert not [name for name, node in public(TREES[module], module) if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long_to_be_read_in_one_go(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", LIBRARY)
def test_every_module_of_the_library_has_tests_of_its_own_or_of_its_package(module):
    *packages, name = module.removeprefix("pipeline").lstrip(".").split(".")
    folder = PROJECT.joinpath("tests", "pipeline")
    own = folder.joinpath(*packages, f"test_{name}.py").is_file() or folder.joinpath(*packages, name).is_dir()
    of_package = bool(packages) and (folder / f"test_{packages[0]}.py").is_file()
    assert own or of_package or (name or "__init__") in TESTED_WITHIN_OTHERS


def test_all_of_the_library_but_tracking_and_the_served_model_imports_without_mlflow():
    modules = [name for name in LIBRARY if not name.startswith(IMPORT_MLFLOW)]
    program = (
        f"import importlib, sys\nsys.modules['mlflow'] = None\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
