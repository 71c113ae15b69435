"""Who may import whom, and what every file has; read from the syntax tree, so that nothing is imported."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pipeline.runs.served_code import SERVING

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "stages")
FILES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))

# What each wing may import beside itself: whole wings, or single files of one.
FLOORS: dict[str, set[str]] = {
    "system": set(),
    "cache": {"system"},
    "ranks": {"system", "cache"},
    "recipe": {"system", "cache"},
    "data": {"system", "cache", "ranks"},
    "tracking": {"system", "cache"},
    "models": {"system", "cache", "ranks", "recipe.fields", "data"},
    "training": {"system", "cache", "ranks", "recipe", "data", "models"},
    "evaluation": {"system", "cache", "ranks", "recipe", "data", "models"},
    "reports": {"system", "cache", "data", "models", "training", "evaluation"},
    "runs": {"system", "cache", "ranks", "recipe", "data", "tracking", "models", "training", "evaluation", "reports"},
    "tryout": {"system", "data", "models", "evaluation", "reports"},
    "sweep": {
        "system",
        "cache",
        "ranks",
        "recipe",
        "training.schedule",
        "training.history",
        "training.records",
        "reports",
        "tracking",
        "runs",
    },
    "serving": {"system", "cache", "data", "models"},
    "__main__": {"system", "cache", "recipe", "tracking"},
}
# Packages that one part of the project alone imports.
ONLY_IN = {
    "mlflow": {"tracking", "serving"},
    "optuna": {"sweep"},
    "plotly": {"sweep"},
    "matplotlib": {"reports"},
    "jinja2": {"reports"},
    "starlette": {"tryout"},
    "uvicorn": {"tryout"},
}
HEAVY = {
    "torch", "torchvision", "timm", "safetensors", "mlflow", "optuna", "plotly", "matplotlib", "sklearn", "scipy",
    "pandas", "pyarrow", "cleanlab", "onnx", "onnxruntime", "starlette", "uvicorn",
}  # fmt: skip
# What a mistake is reported with, before anything heavy is imported.
LIGHT = (
    "pipeline.recipe.*", "pipeline.data.readers.*", "pipeline.models.weights", "pipeline.training.schedule",
    "pipeline.training.records", "pipeline.runs.stage", "pipeline.runs.fingerprint", "pipeline.sweep.space",
    "pipeline.system.errors", "pipeline.system.later", "pipeline.system.console", "pipeline.system.disk",
    "pipeline.system.processes", "pipeline.cache.hashing", "pipeline.ranks.environment", "pipeline.ranks.door",
    "pipeline.tryout.address", "stages.registry", "stages.__main__",
)  # fmt: skip
CHAINS_STAGES = {"stages.main", "stages.sweep"}
# What finds a finished run: the tracking server, and the manifest of the pictures.
NEEDED_TO_REUSE = {"mlflow", "pandas", "pyarrow"}
LOADS_OPTUNA = {"stages.sweep"}
IMPORTS_WITHIN_FUNCTIONS = {"pipeline.data.readers.table", "pipeline.models.classifier"}
HANDS_ON_NAMES = "pipeline.tracking"
IMPORT_MLFLOW = ("pipeline.tracking", "pipeline.serving")
LONGEST_FILE, LONGEST_STAGE, MOST_FILES, MOST_PARAMETERS = 325, 80, 13, 7
COMMAND_LINE = {"__init__", "__main__", "registry"}
TESTED_WITHIN_OTHERS = {
    "pipeline.ranks.watch", "pipeline.models.engine.spread", "pipeline.models.engine.helpers",
    "pipeline.training.joint.forward", "pipeline.training.joint.whole_batch", "pipeline.training.joint.pictures",
    "pipeline.training.records", "pipeline.runs.work.materials", "pipeline.runs.work.new_run",
    "pipeline.runs.plan.estimate", "pipeline.system.errors", "pipeline.cache.hashing", "pipeline.recipe.fields",
    "pipeline.tracking.names", "pipeline.tracking.artifacts", "pipeline.tracking.values", "pipeline.runs.stage",
}  # fmt: skip
IN_PYPI = {"PIL": "pillow"}


def name_of(path: Path) -> str:
    """`pipeline/training/fit.py` as "pipeline.training.fit", and `pipeline/__init__.py` as "pipeline"."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PATHS = {name_of(path): path for path in FILES}
STAGES = [name for name in TREES if name.startswith("stages.")]
LIBRARY = [name for name in TREES if name.split(".")[0] == "pipeline"]
LIGHT_MODULES = [name for name in TREES if any(re.fullmatch(one.replace(".*", r"(\..*)?"), name) for one in LIGHT)]


def wing_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.walk(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child


@cache
def loaded_later(module: str) -> frozenset[str]:
    """The full names of the functions that `module` hands to `later`, whose modules are loaded when they are called."""
    calls = (node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call))
    return frozenset(ast.literal_eval(one.args[0]) for one in calls if getattr(one.func, "id", "") == "later")


@cache
def imports(module: str) -> frozenset[str]:
    """What `module` imports: modules of the project by full name, and the top packages of others."""
    if module in IMPORTS_WITHIN_FUNCTIONS:
        found = [one for one in TREES[module].body if isinstance(one, ast.Import | ast.ImportFrom)]
    else:
        found = list(statements(TREES[module]))
    names = set()
    for statement in found:
        if isinstance(statement, ast.Import):
            named = {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{module} has a relative import, which these tests do not follow"
            whole = {f"{statement.module}.{alias.name}" for alias in statement.names}
            named = {name if name in TREES else str(statement.module) for name in whole}
        names |= {name if name in TREES else name.split(".")[0] for name in named}
    return frozenset(names)


@cache
def reached(module: str) -> frozenset[str]:
    """All that is imported by `module`, directly or through others of the project."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports(name) if name in TREES else []
    return frozenset(seen - {module})


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


def test_there_is_something_to_look_at():
    assert {"stages.main", "stages.evaluate", "stages.tools.predict"} <= set(STAGES)
    assert {"pipeline.training.fit", "pipeline.tracking", "pipeline.recipe.schema"} <= set(LIBRARY)
    assert "torch" in imports("pipeline.training.fit")
    assert "pipeline.tracking" in imports("stages.evaluate")
    assert {"pipeline.recipe.schema", "pipeline.data.readers.table"} <= set(LIGHT_MODULES)
    assert set(FLOORS) == {wing_of(name) for name in LIBRARY} - {""}


@pytest.mark.parametrize("module", [name for name in LIBRARY if name != "pipeline"])
def test_a_wing_imports_only_the_wings_below_it(module):
    allowed = FLOORS[wing_of(module)]
    for name in (imports(module) & set(TREES)) | {name.rpartition(".")[0] for name in loaded_later(module)}:
        inner = name.removeprefix("pipeline.")
        assert name != "pipeline" or module == "pipeline"
        assert wing_of(name) in {wing_of(module)} | allowed or inner in allowed, f"{module} imports {name}"


def test_what_is_loaded_later_is_there():
    names = {name for module in TREES for name in loaded_later(module)}
    assert {"stages.work.evaluate.work", "pipeline.runs.work.new_run.run_alone"} <= names
    for name in names:
        module, _, function = name.rpartition(".")
        assert function in [node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)], name


@pytest.mark.parametrize("module", [name for name in STAGES if name.count(".") == 1 and name not in LOADS_OPTUNA])
def test_a_stage_that_is_reused_loads_no_torch(module):
    assert not reached(module) & (HEAVY - NEEDED_TO_REUSE)


def test_nothing_imports_the_doors():
    doors = {"pipeline.serving", "pipeline.__main__", "stages.__main__"}
    assert not [name for name in TREES if imports(name) & doors]


@pytest.mark.parametrize("module", [*LIBRARY, *STAGES])
def test_no_module_imports_itself_through_others(module):
    assert not {name for name in imports(module) if name in TREES and module in reached(name)}


@pytest.mark.parametrize("module", STAGES)
def test_a_stage_imports_no_other_stage_but_main_and_sweep_do(module):
    if module not in CHAINS_STAGES:
        assert {name for name in imports(module) if name.split(".")[0] == "stages"} <= {"stages.registry"}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_by_its_own_part_alone(package):
    importers = {name for name in TREES if package in imports(name)}
    assert {wing_of(name) for name in importers if name.startswith("pipeline")} == ONLY_IN[package]
    assert not [name for name in importers if name.startswith("stages")]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_a_mistake_is_reported_before_anything_heavy_is_imported(module):
    assert not reached(module) & HEAVY


def test_imports_stand_at_the_top_of_a_file():
    within = [name for name, node in functions() if any(statements(node))]
    assert {name.rpartition(".")[0] for name in within} <= IMPORTS_WITHIN_FUNCTIONS
    assert not [name for name in TREES if "TYPE_CHECKING" in ast.unparse(TREES[name])]


@pytest.mark.parametrize("module", [name_of(path) for path in FILES if path.stem == "__init__"])
def test_an_init_file_is_one_docstring_so_that_nobody_loads_a_wing_for_one_file_of_it(module):
    body = TREES[module].body
    assert len((ast.get_docstring(TREES[module]) or "").split()) > 5
    assert len(body) == 1 or module == HANDS_ON_NAMES


def test_all_that_the_served_model_imports_is_among_its_requirements():
    outside = {name for name in reached("pipeline.serving") if name not in TREES}
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
def test_whatever_is_public_has_a_docstring(module):
    assert ast.get_docstring(TREES[module])
    assert not [name for name, node in public(TREES[module], module) if not ast.get_docstring(node)]


@pytest.mark.parametrize("module", TREES)
def test_no_file_is_too_long_to_be_read_in_one_go(module):
    is_stage = module in STAGES and PATHS[module].stem not in COMMAND_LINE
    lines = PATHS[module].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (LONGEST_STAGE if is_stage else LONGEST_FILE)


def test_no_folder_has_too_many_files():
    counts = Counter(path.parent for path in FILES if path.stem != "__init__")
    assert not {folder: count for folder, count in counts.items() if count > MOST_FILES}


def test_no_function_has_too_many_parameters():
    parameters = {
        name: [one.arg for one in node.args.args + node.args.kwonlyargs if one.arg not in ("self", "cls")]
        for name, node in functions()
    }
    assert not {name: given for name, given in parameters.items() if len(given) > MOST_PARAMETERS}


@pytest.mark.parametrize("module", [name for name in LIBRARY if PATHS[name].stem != "__init__"])
def test_the_tests_lie_in_the_same_tree_as_the_code(module):
    *packages, name = module.split(".")
    test = PROJECT.joinpath("tests", *packages, f"test_{name}.py")
    assert test.is_file() or module in TESTED_WITHIN_OTHERS


def test_tables_are_written_and_read_in_one_module():
    """A table of the user's own is read by readers/table.py."""
    calls = {"to_csv", "to_parquet", "read_csv", "read_parquet", "read_table"}
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in calls and ast.unparse(node.value) != "pq"
    }
    assert found == {"pipeline.system.tables"}


def test_names_of_test_files_are_unique_and_those_of_the_library_have_a_file_that_they_test():
    tests = list((PROJECT / "tests").rglob("test_*.py"))
    assert not [name for name, count in Counter(path.name for path in tests).items() if count > 1]
    for path in (PROJECT / "tests" / "pipeline").rglob("test_*.py"):
        tested = path.relative_to(PROJECT / "tests").with_name(path.name.removeprefix("test_"))
        assert (PROJECT / tested).is_file(), f"{path.name} tests no file of its name"


@pytest.mark.slow
def test_all_of_the_library_but_tracking_and_what_logs_imports_without_mlflow():
    modules = [name for name in LIBRARY if not any(one.startswith(IMPORT_MLFLOW) for one in reached(name) | {name})]
    assert {"pipeline.evaluation.evaluation", "pipeline.training.phases"} <= set(modules)
    program = (
        f"import importlib, sys\nsys.modules['mlflow'] = None\nfor name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_package_is_offered_that_could_not_be_used():
    """Commands need the project's folder (recipes, pins, MLproject), which a package would not bring."""
    settings = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert "[project]" not in settings
    assert "[build-system]" not in settings
