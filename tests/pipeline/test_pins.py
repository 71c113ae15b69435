import re
import tomllib

import pytest
import yaml

from pipeline.fingerprint import PROJECT
from pipeline.pins import SERVED_MODEL, SERVING, pinned

STAGES = (
    "main", "precompute", "lr_find", "train_head", "fine_tune", "resize", "evaluate", "predict", "compare",
    "sweep_head",
)  # fmt: skip
LINES = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
MLPROJECT = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))


def test_every_requirement_is_one_exact_version():
    assert LINES
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", line), line


def test_no_package_is_named_twice():
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in LINES]
    assert len(names) == len(set(names))


def test_the_conda_environment_has_the_requirements_line_for_line():
    environment = yaml.safe_load((PROJECT / "conda.yaml").read_text(encoding="utf-8"))
    python, pip, pins = environment["dependencies"]
    assert re.fullmatch(r"python=\d+\.\d+(\.\d+)?", python)
    assert pip.split("=")[0] == "pip"
    assert pins == {"pip": LINES}


def test_the_packages_dependencies_are_the_requirements_and_it_names_no_version_itself():
    content = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "dependencies" in content["project"]["dynamic"]
    assert "dependencies" not in content["project"]
    assert "optional-dependencies" not in content["project"]
    dynamic = content["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    for extra in dynamic.get("optional-dependencies", {}).values():
        assert all((PROJECT / name).is_file() for name in extra["file"])


def test_torch_and_torchvision_are_a_pair_that_was_released_together():
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(LINES)


def test_a_served_model_gets_the_lines_of_its_packages_and_no_more():
    assert set(pinned()) <= set(LINES)
    assert [line.split("==")[0] for line in pinned()] == list(SERVING)
    assert pinned(["torch", "numpy"]) == [
        next(one for one in LINES if one.startswith(f"{name}==")) for name in ("torch", "numpy")
    ]


def test_a_package_that_is_not_pinned_cannot_be_served():
    with pytest.raises(KeyError, match="nonesuch"):
        pinned(["nonesuch"])


def test_the_served_models_file_is_there():
    assert SERVED_MODEL.is_file()


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_an_entry_point_that_starts_its_module(name):
    command = MLPROJECT["entry_points"][name]["command"]
    assert command.startswith(f"python -m stages.{name} ")
    assert (PROJECT / "stages" / f"{name}.py").is_file()


def test_every_entry_point_starts_the_stage_of_its_name_and_uses_the_parameters_it_declares():
    for name, entry in MLPROJECT["entry_points"].items():
        assert entry["command"].split()[:3] == ["python", "-m", f"stages.{name}"]
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"])


def test_the_projects_environment_is_a_file_that_exists():
    assert (PROJECT / MLPROJECT["conda_env"]).is_file()


def test_the_default_recipes_of_the_entry_points_exist():
    taking_one = [
        entry["parameters"] for entry in MLPROJECT["entry_points"].values() if "recipe" in entry["parameters"]
    ]
    defaults = {parameters["recipe"]["default"] for parameters in taking_one}
    assert len(taking_one) >= 7
    assert all((PROJECT / default).is_file() for default in defaults if default)
