"""README and docs: short enough, with links that lead somewhere and commands that exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline.recipe.mistakes import field_of
from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe
from pipeline.system.errors import UserError
from stages.registry import OPTIONS, STAGES

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
LONGEST_README = 200
PROJECT_FILE = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))
# What stands for something of the user's own in a command.
PLACEHOLDERS = {"RUN_ID", "my.yaml", "afternoon.yaml", "", "…"}
# What a page shows a mistake with.
ON_PURPOSE = {"mlflow run . --env-manager local -P fine_tune.cycle_length=2"}
HOUSEKEEPING = ("cache", "tracking", "recipe")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"(?m)^#+ (.+)$", text_of(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """Where the page's links and pictures lead, within the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    return [link for link in found if not link.startswith(("http://", "https://"))]


def commands(page: Path) -> list[str]:
    """All `mlflow run .` and `python -m stages|pipeline` of a page, without comments and prompts."""
    pattern = r"(?:mlflow run \.|python -m (?:stages|pipeline)\b)[^`\n#|]*"
    text = re.sub(r"\\\n +", "", text_of(page))  # a command that goes on in the next line
    return [match.strip() for match in re.findall(pattern, text) if match.strip()]


def parse(command: str) -> tuple[str, dict[str, str]]:
    """(the command's name, what it is given) of one by `mlflow run` or `python -m`."""
    words = shlex.split(command)
    if words[0] == "mlflow":
        name = words[words.index("-e") + 1] if "-e" in words else "main"
        return name, dict(words[at + 1].partition("=")[::2] for at, word in enumerate(words) if word == "-P")
    options = [at for at, word in enumerate(words) if word.startswith("--") and word != "--help"]
    return (words[3] if len(words) > 3 else ""), {words[at][2:]: words[at + 1] for at in options}


def problem(command: str) -> str:
    """What is wrong with a shown command; empty if nothing is."""
    name, given = parse(command)
    if command.startswith("python -m pipeline"):
        return "" if name in ("", *HOUSEKEEPING) else f"no command {name}"
    if name in ("", "NAME", "--help"):
        return ""
    if name not in PROJECT_FILE["entry_points"] or name not in (*STAGES, *OPTIONS):
        return f"no command {name}"
    declared = PROJECT_FILE["entry_points"][name]["parameters"]
    keys = {key: value for key, value in given.items() if key not in declared}
    if name in OPTIONS:
        return f"{name} takes no {', '.join(keys)}" if keys else ""
    unknown = [key for key in keys if field_of(key.split(".")) is None]
    if unknown:
        return f"no key {', '.join(unknown)}"
    recipe = given.get("recipe", "")
    if recipe not in PLACEHOLDERS and not (PROJECT / recipe).is_file():
        return f"no recipe {recipe}"
    try:
        override_recipe(Recipe(), {key: value for key, value in keys.items() if value not in PLACEHOLDERS})
    except UserError as error:
        return str(error)
    return ""


def test_the_readme_is_what_a_newcomer_reads_in_one_go():
    assert len(text_of(PROJECT / "README.md").splitlines()) < LONGEST_README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_that_is_shown_exists_with_its_keys_and_values(page):
    shown = set(commands(page)) - ON_PURPOSE
    assert not {command: problem(command) for command in shown if problem(command)}


def test_every_page_and_picture_is_reached_from_the_readme():
    reached, waiting = set(), [PROJECT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached:
            reached.add(page)
            waiting += [page.parent / link.partition("#")[0] for link in links(page)] if page.suffix == ".md" else []
    shown = {path for ending in ("md", "png", "ipynb") for path in (PROJECT / "docs").rglob(f"*.{ending}")}
    assert not {path.name for path in shown - reached}


@pytest.mark.parametrize("name", PROJECT_FILE["entry_points"])
def test_every_command_is_shown_somewhere(name):
    shown = {parse(command)[0] for page in PAGES for command in commands(page)}
    assert name in shown | {"precompute", "lr_find", "train_head", "resize"}, "the last four are parts of main"


def test_what_is_wrong_in_a_command_is_found():
    run = "mlflow run . --env-manager local"
    assert problem(f"{run} -P data=photos/ -P fine_tune.cycle_len=2") == ""
    assert "cycle_length" in problem(f"{run} -P fine_tune.cycle_length=2")
    assert "no command tune" in problem(f"{run} -e tune")
    assert "takes no size" in problem(f"{run} -e predict -P size=3")
    assert "stages" in problem(f"{run} -P stages=precompute,train")
    assert "no recipe" in problem(f"{run} -P recipe=recipes/none.yaml")
    assert "fine_tune.cycle_len" in problem(f"{run} -P fine_tune.cycle_len=soon")
    assert problem("python -m stages fine_tune --upstream RUN_ID --fine_tune.lr 1e-3") == ""
    assert "no command cash" in problem("python -m pipeline cash list")
