import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs import fingerprint as module
from pipeline.runs.fingerprint import PROJECT, git_tags, imported_modules, source_digest, stage_fingerprint

GIVEN = {
    "stage": "resize",
    "sections": {"resize": {"lr": 0.01, "image_px": 64}, "augment": {"zoom": 1.1}},
    "seed": 0,
    "inputs": {"upstream": "abc"},
    "code": "def",
}


def of_recipe(content: dict, overrides: dict[str, str] | None = None) -> str:
    recipe: Recipe = build_recipe(content, overrides or {}, "a test")
    sections = {name: getattr(recipe, name).model_dump() for name in ("resize", "augment")}
    return stage_fingerprint("resize", sections, recipe.seed, {}, "code")


def test_the_same_things_have_the_same_fingerprint_in_any_order():
    turned = {name: dict(reversed(inner.items())) for name, inner in reversed(GIVEN["sections"].items())}
    assert stage_fingerprint(**GIVEN | {"sections": turned}) == stage_fingerprint(**GIVEN)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "fine_tune"},
        {"sections": {"resize": {"lr": 0.02, "image_px": 64}, "augment": {"zoom": 1.1}}},
        {"sections": {"resize": {"lr": 0.01, "image_px": 64}, "augment": {"zoom": 1.2}}},
        {"sections": {"resize": {"lr": 0.01, "image_px": 64}}},
        {"seed": 1},
        {"inputs": {"upstream": "abd"}},
        {"inputs": {"upstream": "abc", "manifest": ""}},
        {"inputs": {}},
        {"code": "dee"},
    ],
    ids=str,
)
def test_whatever_changes_changes_the_fingerprint(change):
    assert stage_fingerprint(**GIVEN | change) != stage_fingerprint(**GIVEN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"resize.lr": "1e-2"}, {"resize.lr": "0.01"}),
        ({"resize.lr": "1.0e-2"}, {"resize.lr": "0.010"}),
        ({"resize.lr_ratio": "1"}, {"resize.lr_ratio": "1.0"}),
        ({"resize.lr": "1"}, {"resize.lr": "1.0"}),
        ({"resize.lr": "[1, 1e-2, 0.1]"}, {"resize.lr": "[1.0, 0.01, 1e-1]"}),
    ],
)
def test_numbers_count_as_numbers_however_they_are_written(one, other):
    assert of_recipe({}, one) == of_recipe({}, other)


def test_a_number_in_the_file_is_the_same_as_on_the_command_line():
    assert of_recipe({"augment": {"zoom": 2}}) == of_recipe({}, {"augment.zoom": "2.0"})


def test_the_default_written_out_changes_nothing():
    assert of_recipe({"resize": {"image_px": Recipe().resize.image_px}}) == of_recipe({})


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, whose sources are digested in place of the real ones."""
    for name in module.PACKAGES:
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def add(path: Path, text: str) -> None:
    put(path, path.read_text(encoding="utf-8") + text)


def test_where_the_project_lies_does_not_matter(copy, monkeypatch):
    here = source_digest("stages.resize")
    monkeypatch.setattr(module, "PROJECT", PROJECT)
    assert source_digest("stages.resize") == here


@pytest.mark.parametrize("place", ["stages/resize.py", "pipeline/training/fit.py"])
def test_comments_and_blank_lines_do_not_change_the_digest(copy, place):
    before = source_digest("stages.resize")
    text = (copy / place).read_text(encoding="utf-8")
    put(copy / place, "# said better\n" + text.replace("\n\n\ndef ", "\n\n\n\n# and here\ndef "))
    assert source_digest("stages.resize") == before


def test_better_docstrings_and_sentences_for_the_user_do_not_change_the_digest(copy):
    before = source_digest("stages.resize")
    for path, old, new in (
        ("stages/resize.py", '"""resize: the same network', '"""resize: that very network'),
        ("pipeline/training/step.py", '"""One step of descent', '"""A step of descent'),
        ("pipeline/training/fit.py", "lower the stage's lr.", "take a lower one."),
        ("pipeline/runs/runner.py", "took {duration", "it took {duration"),
        ("pipeline/__init__.py", '"""', '"""More. '),
    ):
        text = (copy / path).read_text(encoding="utf-8")
        assert old in text
        put(copy / path, text.replace(old, new, 1))
    assert source_digest("stages.resize") == before


def test_the_command_line_does_not_change_the_digest(copy):
    before = source_digest("stages.resize")
    add(copy / "stages" / "registry.py", "\nMORE = 1\n")
    add(copy / "stages" / "__main__.py", "\nMORE = 1\n")
    assert source_digest("stages.resize") == before


@pytest.mark.parametrize(
    "place", ["stages/resize.py", "pipeline/training/fit.py", "pipeline/data/augment.py", "pipeline/recipe/fields.py"]
)
def test_code_that_a_stage_runs_changes_its_digest(copy, place):
    before = source_digest("stages.resize")
    add(copy / place, "\nMORE = 1\n")
    after = source_digest("stages.resize")
    put(copy / place, (copy / place).read_text(encoding="utf-8").replace("MORE = 1", "MORE = 2"))
    assert len({before, after, source_digest("stages.resize")}) == 3


def test_code_that_a_stage_does_not_run_leaves_its_digest_alone(copy):
    resize, evaluate = source_digest("stages.resize"), source_digest("stages.evaluate")
    add(copy / "pipeline" / "evaluation" / "metrics.py", "\nMORE = 1\n")
    assert source_digest("stages.resize") == resize
    assert source_digest("stages.evaluate") != evaluate


def test_the_same_code_in_another_module_is_other_code(copy):
    put(copy / "stages" / "twin.py", (copy / "stages" / "resize.py").read_text(encoding="utf-8"))
    assert source_digest("stages.twin") != source_digest("stages.resize")


def test_imports_of_every_kind_and_within_functions_count(copy):
    put(copy / "pipeline" / "far.py", "FAR = 1\n")
    put(copy / "pipeline" / "near.py", "def f():\n    import pipeline.far\n    return pipeline.far\n")
    put(copy / "stages" / "one.py", "import os\ndef g():\n    from pipeline import near\n    return near, os\n")
    put(copy / "stages" / "two.py", "from pipeline.near import f\n")
    for stage in ("stages.one", "stages.two"):
        found = imported_modules(stage)
        assert {stage, "pipeline.near", "pipeline.far"} <= found
        assert all(name.split(".")[0] in module.PACKAGES for name in found)
    before = source_digest("stages.one")
    add(copy / "pipeline" / "far.py", "FAR = 2\n")
    assert source_digest("stages.one") != before


def test_modules_that_import_each_other_are_walked_once(copy):
    put(copy / "pipeline" / "hen.py", "import pipeline.egg\n")
    put(copy / "pipeline" / "egg.py", "import pipeline.hen\n")
    assert {"pipeline.hen", "pipeline.egg"} == imported_modules("pipeline.hen") - {"pipeline"}


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", folder, *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the project; no checkout yet."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(module, "PROJECT", folder)
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
    assert git_tags() == {"thaw.git_commit": commit}


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_changed_or_new_file_makes_it_dirty(project, commit, name):
    (project / name).write_text("x = 2\n")
    assert git_tags() == {"thaw.git_commit": f"{commit}, changed since"}


def test_the_working_folder_does_not_matter(commit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert git_tags()["thaw.git_commit"] == commit


def test_outside_a_checkout_nothing_is_said(project):
    assert git_tags() == {}


def test_without_git_nothing_is_said(commit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_tags() == {}
