import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import fingerprint as module
from pipeline.fingerprint import PROJECT, fingerprint, imported_modules, source_digest
from pipeline.recipe import Recipe
from pipeline.recipe_file import build_recipe

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
    return fingerprint("resize", sections, recipe.seed, {}, "code")


def test_the_same_things_have_the_same_fingerprint_in_any_order():
    turned = {name: dict(reversed(inner.items())) for name, inner in reversed(GIVEN["sections"].items())}
    assert fingerprint(**GIVEN | {"sections": turned}) == fingerprint(**GIVEN)


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
    assert fingerprint(**GIVEN | change) != fingerprint(**GIVEN)


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
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project, whose sources are digested in place of the real ones."""
    for name in module.PACKAGES:
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    module._read_module.cache_clear()
    yield tmp_path
    module._read_module.cache_clear()


def put(path: Path, text: str) -> None:
    """Write a file, which is read anew, as by another process."""
    path.write_text(text, encoding="utf-8")
    module._read_module.cache_clear()


def add(path: Path, text: str) -> None:
    put(path, path.read_text(encoding="utf-8") + text)


def test_where_the_project_lies_does_not_matter(copy, monkeypatch):
    here = source_digest("stages.resize")
    monkeypatch.setattr(module, "PROJECT", PROJECT)
    module._read_module.cache_clear()
    assert source_digest("stages.resize") == here


@pytest.mark.parametrize("place", ["stages/resize.py", "pipeline/fit.py"])
def test_comments_and_blank_lines_do_not_change_the_digest(copy, place):
    before = source_digest("stages.resize")
    text = (copy / place).read_text(encoding="utf-8")
    put(copy / place, "# said better\n" + text.replace("\n\n\ndef ", "\n\n\n\n# and here\ndef "))
    assert source_digest("stages.resize") == before


@pytest.mark.parametrize(
    "place", ["stages/resize.py", "pipeline/fit.py", "pipeline/augment.py", "pipeline/__init__.py"]
)
def test_code_that_a_stage_runs_changes_its_digest(copy, place):
    before = source_digest("stages.resize")
    add(copy / place, "\nMORE = 1\n")
    after = source_digest("stages.resize")
    put(copy / place, (copy / place).read_text(encoding="utf-8").replace("MORE = 1", "MORE = 2"))
    assert len({before, after, source_digest("stages.resize")}) == 3


def test_code_that_a_stage_does_not_run_leaves_its_digest_alone(copy):
    resize, evaluate = source_digest("stages.resize"), source_digest("stages.evaluate")
    add(copy / "pipeline" / "metrics.py", "\nMORE = 1\n")
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
