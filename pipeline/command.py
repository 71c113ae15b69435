"""The command line of a stage: `python -m stages.NAME`, which is what `mlflow run` calls.

Everything that a user can get wrong in the recipe is checked here, before torch or mlflow is imported.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.backbones import check_backbone, find_weights
from pipeline.console import warn
from pipeline.contract import RunRef, Stage
from pipeline.disk import told_when_full
from pipeline.errors import UserError
from pipeline.fingerprint import PROJECT
from pipeline.interrupts import raise_on_signals
from pipeline.processes import end_mlflow_run, end_with_parent
from pipeline.recipe import Recipe
from pipeline.recipe_file import check_overrides, help_text, override_recipe, read_recipe
from pipeline.sources import list_source

DEFAULT_RECIPE = PROJECT / "recipes" / "elpv.yaml"
# Keys that say how to run and not what comes out, so that a run may set them anew on any upstream.
FREE_KEYS = ("device", "reuse", "data.max_store_gib", "data.max_logged_gib")

Run = Callable[[Recipe, str | None], RunRef]


@dataclass(frozen=True)
class Option:
    """What a command without a recipe takes as `--NAME VALUE`; it has to be given if it has no `default`."""

    name: str
    help: str
    default: str | None = None


def main(stage: Stage, doc: str | None, run: Run, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a stage from the command line and exit: 0 when done, 2 for a mistake of the user's, told in a sentence,
    130 when stopped."""

    def work() -> None:
        recipe, upstream = _read(stage, doc, sys.argv[1:] if arguments is None else arguments)
        run(recipe, upstream)

    _exit_after(stage.name, work)


def main_without_recipe(
    name: str,
    doc: str | None,
    options: Sequence[Option],
    run: Callable[..., object],
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """The same for what takes no recipe: `run` is called with the `options`, as text, by their names."""

    def work() -> None:
        run(**_read_options(name, doc, options, sys.argv[1:] if arguments is None else arguments))

    _exit_after(name, work)


def _exit_after(name: str, work: Callable[[], None]) -> NoReturn:
    raise_on_signals()
    # Read by OpenMP when torch is loaded. Threads that wait give up the core: where anything else runs on it, waiting
    # in a loop makes training on the CPU several times slower, and where nothing does it gains nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    by_mlflow_run = bool(os.environ.get("MLFLOW_RUN_ID"))
    if by_mlflow_run:
        end_with_parent()  # `mlflow run` itself, when it is ended or killed, leaves its process running
    try:
        with told_when_full("what the run has made"):
            work()
    except UserError as error:
        warn(str(error))
        _tag_reason(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        warn(f"{name} was stopped; its run is marked KILLED. The same command goes on from what was kept.")
        if by_mlflow_run:
            end_mlflow_run()
        sys.exit(130)
    sys.exit(0)


def check_inputs(recipe: Recipe) -> None:
    """Raises UserError if there is no such backbone, no such weights, or nothing to train on."""
    check_backbone(recipe.model.backbone)
    find_weights(recipe.model.backbone, recipe.model.weights, recipe.seed)
    list_source(recipe.data.source, recipe.data.extensions)


def _read(stage: Stage, doc: str | None, arguments: Sequence[str]) -> tuple[Recipe, str | None]:
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage.name}",
        description=doc,
        epilog=f"any key of the recipe, as --KEY VALUE:\n{help_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe", default="", metavar="FILE", help=f"a recipe (default: recipes/{DEFAULT_RECIPE.name})"
    )
    for name, key in stage.short_for.items():
        parser.add_argument(f"--{name}", default="", metavar="VALUE", help=f"short for --{key}")
    if not stage.follows:
        parser.add_argument("--data", default="", metavar="FOLDER", help="short for --data.source")
    else:
        parser.add_argument("--upstream", default="", metavar="RUN_ID", help=f"a run of {' or '.join(stage.follows)}")
    known, rest = parser.parse_known_args(arguments)
    short = {key: getattr(known, name) for name, key in stage.short_for.items() if getattr(known, name)}
    overrides = _overrides(rest) | short | ({"data": known.data} if getattr(known, "data", "") else {})
    upstream = getattr(known, "upstream", "")
    if not stage.follows:
        recipe = read_recipe(Path(known.recipe or DEFAULT_RECIPE), overrides)
        check_inputs(recipe)
        return recipe, None
    if not upstream:
        raise UserError(
            f"{stage.name} needs an upstream run; give the id of a run of {' or '.join(stage.follows)}: "
            "-P upstream=<run id>."
        )
    return _on_upstream(stage, known.recipe, upstream, overrides), upstream


def _read_options(name: str, doc: str | None, options: Sequence[Option], arguments: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=doc, allow_abbrev=False)
    for option in options:
        default = f" (default: {option.default})" if option.default else ""
        parser.add_argument(f"--{option.name}", default=option.default or "", help=option.help + default)
    known, rest = parser.parse_known_args(arguments)
    names = [option.name for option in options]
    for key in _overrides(rest):
        close = difflib.get_close_matches(key, names, n=1, cutoff=0)[0]
        raise UserError(f"{key} is nothing that {name} takes; the nearest is {close}.")
    given: dict[str, str] = vars(known)
    for option in options:
        if option.default is None and not given[option.name]:
            raise UserError(f"{name} needs {option.name}, {option.help}: -P {option.name}=<{option.name}>.")
    return given


def _on_upstream(stage: Stage, recipe_file: str, upstream: str, overrides: dict[str, str]) -> Recipe:
    """The upstream run's recipe, with this stage's sections from the file, where one is given, and the overrides."""
    check_overrides(overrides)
    for key in overrides:
        if key.split(".")[0] not in stage.sections and key not in FREE_KEYS:
            raise UserError(
                f"{key} is fixed by the upstream run {upstream}; leave it out, or start again from a stage before it."
            )
    given = read_recipe(Path(recipe_file)) if recipe_file else None

    from pipeline.execute import upstream_recipe

    recipe = read_recipe(upstream_recipe(upstream))
    if given is not None:
        recipe = recipe.model_copy(update={name: getattr(given, name) for name in stage.sections})
    return override_recipe(recipe, overrides)


def _overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--a.b 1 --c=2` as {"a.b": "1", "c": "2"}."""
    overrides: dict[str, str] = {}
    waiting = list(rest)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UserError(f"{word!r} stands alone on the command line; write --KEY VALUE, such as --seed 1.")
        if not equals:
            if not waiting:
                raise UserError(f"--{key} has no value; write --{key} VALUE.")
            value = waiting.pop(0)
        overrides[key] = value
    return overrides


def _tag_reason(reason: str) -> None:
    """Where `mlflow run` made the run, it shows why it failed."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        from pipeline import tracking

        tracking.try_tag(run_id, reason)
