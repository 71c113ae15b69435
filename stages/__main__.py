"""The one door: `python -m stages` lists the commands, `python -m stages NAME …` runs one, as `mlflow run` does.

Everything that a user can get wrong in a recipe or an option is checked here, before torch or mlflow is imported. A
worker of a sweep may import this file again, and must find nothing heavy in it.
"""

import argparse
import ast
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.system.errors import report_missing_packages

with report_missing_packages():
    from pipeline.cache.location import check_cache, report_unwritable
    from pipeline.data.readers.sources import list_source
    from pipeline.models.weights import check_backbone, find_weights
    from pipeline.ranks.door import DEFAULT, OPTION, asked_processes, help_leader, launch, leading
    from pipeline.ranks.environment import own_rank, take_own_gpu
    from pipeline.recipe.mistakes import check_held_out, check_positive_class
    from pipeline.recipe.presets import GOOD, PACKAGED, describe_preset, read_preset
    from pipeline.recipe.recipe_file import (
        check_overrides,
        help_text,
        override_recipe,
        read_recipe,
    )
    from pipeline.recipe.schema import Recipe
    from pipeline.runs.stage import RECIPE_FILE, Stage
    from pipeline.system.console import OUTPUT_CLOSED_STATUS, OutputClosed, guarded_output, say, warn
    from pipeline.system.disk import report_full_disk
    from pipeline.system.errors import UserError
    from pipeline.system.machine import check_gpu, check_system, fix_cublas
    from pipeline.system.memory import keep_freed_memory
    from pipeline.system.processes import end_mlflow_run, end_with_parent, raise_on_signals, stop_reason
    from stages.registry import CHECKS, FILES, OPTIONS, STAGES, Option

COMMANDS = (*STAGES, *OPTIONS)
# The default of MLproject's parameters, so that an empty one, as `-P data=$UNSET` gives, is told from none.
NOT_GIVEN = "(not given)"
# The stage that takes several upstream runs, whose networks it averages.
AVERAGES = "evaluate"
REGISTERING = ("main", "sweep")
# Keys that say how to run and not what results, so that a run may set them anew on any upstream.
FREE_KEYS = (
    "device", "reuse", "compile", "deterministic", "data.max_store_gib", "data.max_logged_gib", "data.max_download_gib",
    "data.recheck_hours",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 when done, 2 for a mistake of the user's, told in a sentence, 130 when stopped."""
    name, *rest = words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h"):
        say(_list_commands())
        sys.exit(0)
    rank = own_rank()
    take_own_gpu(rank)
    if not rank.leads:
        help_leader(rank, rest)

    def work() -> None:
        check_system()
        processes = asked_processes(name, rest, rank)
        if processes > rank.processes:
            if name in STAGES and not STAGES[name].follows:
                _read(STAGES[name], rest)  # what is wrong with the recipe is told before torch is loaded
            launch(processes, words)
        elif name in STAGES:
            stage = STAGES[name]
            recipe, preset, upstream = _read(stage, rest)
            check_gpu(recipe.device)
            if recipe.deterministic:
                fix_cublas()
            data = check_inputs(recipe) if upstream is None else ""
            for check in stage.checks:
                check(recipe)
            check_cache()
            if preset:
                say(preset)
            with leading(rank):
                _use_experiment(data, upstream)
                if name in REGISTERING and recipe.evaluate.register_as:
                    _check_registry(recipe.evaluate.register_as, data)
                _module(name).run(recipe, upstream)
        elif name in OPTIONS:
            options = _read_options(name, OPTIONS[name], rest)
            check_gpu(str(options.get("device")))
            if name in CHECKS:
                CHECKS[name](options)
            check_cache()
            with leading(rank):
                _module(name).run(**options)
        else:
            close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
            raise UserError(f"{name} is not a command; the nearest is {close}, and python -m stages lists all.")

    _exit_after(name, work)


def check_inputs(recipe: Recipe) -> str:
    """The name of the data; UserError if there is no such backbone, no such weights or nothing to train on, or if a key
    does not fit the pictures."""
    check_backbone(recipe.model.backbone)
    find_weights(recipe.model.backbone, recipe.model.weights, recipe.seed)
    data = recipe.data
    labels = data.corrections, data.soft_labels, data.uncertain_weight
    listing = list_source(data.source, data.extensions, *labels)
    check_positive_class(recipe.evaluate.positive_class, set(listing.labels))
    check_held_out(recipe, listing.splits is not None)
    for note in listing.notes:
        say(note)
    return listing.name


def _exit_after(name: str, work: Callable[[], None]) -> NoReturn:
    raise_on_signals()
    keep_freed_memory()
    # Read by OpenMP when torch is loaded. Threads that wait give up the core: where anything else runs on it, waiting
    # in a loop makes training on the CPU several times slower, and where nothing does it gains nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    by_mlflow_run = bool(os.environ.get("MLFLOW_RUN_ID"))
    if by_mlflow_run:
        end_with_parent()  # `mlflow run` itself, when it is ended or killed, leaves its process running
    try:
        with report_unwritable(), report_full_disk("the results of the run"):
            work()
    except UserError as error:
        warn(str(error))
        _tag_reason(str(error))
        sys.exit(2)
    except KeyboardInterrupt as stop:
        is_closed = isinstance(stop, OutputClosed)
        if is_closed:
            pass  # whoever read the output has gone
        elif getattr(stop, "__notes__", None):  # left by the run that it ended
            if reason := stop_reason():
                warn(reason)
            warn(f"{name} was stopped; its run is marked KILLED. The same command resumes from the last backup.")
        else:
            warn(f"{name} was stopped before its run began; the same command starts anew.")
        if by_mlflow_run and "MLFLOW_RUN_ID" not in os.environ:  # else no run was opened, and it marks its own FAILED
            end_mlflow_run()
        sys.exit(OUTPUT_CLOSED_STATUS if is_closed else 130)
    sys.exit(0)


def _list_commands() -> str:
    lines = [f"  {name:<12}{_doc(name).partition(': ')[2]}" for name in COMMANDS]
    return "\n".join(["usage: python -m stages COMMAND …", "", *lines, "", "COMMAND --help lists what it takes."])


def _doc(name: str) -> str:
    """The docstring of a command's file, in one line, read without importing it."""
    tree = ast.parse(Path(__file__).parents[1].joinpath(*_place(name).split(".")).with_suffix(".py").read_text("utf-8"))
    return " ".join((ast.get_docstring(tree) or "").split())


def _read(stage: Stage, arguments: Sequence[str]) -> tuple[Recipe, str, str | None]:
    """(the recipe, a sentence on the preset that was named, the id of the upstream run); UserError for whatever is
    wrong with them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages {stage.name}",
        description=_doc(stage.name),
        epilog=f"any key of the recipe, as --KEY VALUE:\n{help_text()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        default=NOT_GIVEN,
        metavar="FILE",
        help="a recipe (default: photos.yaml; without data elpv.yaml, of recipes/)",
    )
    if not stage.follows:
        words = "quick (minutes), good (the default) or best (a night), in the place of a recipe"
        parser.add_argument("--preset", default=NOT_GIVEN, metavar="NAME", help=words)
    for name, key in stage.short_for.items():
        parser.add_argument(f"--{name}", default=NOT_GIVEN, metavar="VALUE", help=f"short for --{key}")
    if not stage.follows:
        parser.add_argument("--data", default=NOT_GIVEN, metavar="FOLDER", help="short for --data.source")
    else:
        several = ", or several with commas between them" if stage.name == AVERAGES else ""
        help_ = f"a run of {' or '.join(stage.follows)}{several}"
        parser.add_argument("--upstream", default="", metavar="RUN_ID", help=help_)
    _add_processes(parser)
    known, rest = parser.parse_known_args(arguments)
    given: dict[str, str] = {name: value for name, value in vars(known).items() if value != NOT_GIVEN}
    for name in ("recipe", "preset", "data", *stage.short_for):
        if given.get(name) == "" and name != "storage":
            raise UserError(f"{name} is empty, as a variable is that was never set; give a value, or leave it out.")
    short = {key: given[name] for name, key in stage.short_for.items() if name in given}
    overrides = _overrides(rest) | short | ({"data": given["data"]} if "data" in given else {})
    recipe_file, upstream = given.get("recipe", ""), given.get("upstream", "")
    if not stage.follows:
        return *_read_first(recipe_file, given.get("preset", ""), overrides), None
    if not upstream:
        raise UserError(
            f"{stage.name} needs an upstream run; give the id of a run of {' or '.join(stage.follows)}: "
            "-P upstream=<run id>."
        )
    if "preset" in overrides:
        raise UserError(
            f"{stage.name} takes no preset, since its recipe is that of its upstream run; leave preset out, or give it "
            "to main."
        )
    first = upstream.split(",")[0].strip() if stage.name == AVERAGES else upstream
    return _on_upstream(stage, recipe_file, first, overrides), "", upstream


def _read_first(recipe_file: str, preset: str, overrides: dict[str, str]) -> tuple[Recipe, str]:
    """The recipe of a command that begins with pictures, and a sentence on the preset, if one was named."""
    if preset and recipe_file:
        raise UserError(
            f"preset is {preset} and recipe is {recipe_file}, but a preset is a recipe itself; leave one of them out."
        )
    if recipe_file:
        return read_recipe(Path(recipe_file), overrides), ""
    source = overrides.get("data", overrides.get("data.source", PACKAGED))
    return read_preset(preset or GOOD, source, overrides), describe_preset(preset, source) if preset else ""


def _read_options(name: str, options: Sequence[Option], arguments: Sequence[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog=f"python -m stages {name}", description=_doc(name), allow_abbrev=False)
    for option in options:
        default = f" (default: {option.default})" if option.default else ""
        parser.add_argument(f"--{option.name}", default=option.default or "", help=option.help + default)
    _add_processes(parser)
    known, rest = parser.parse_known_args(arguments)
    names = [option.name for option in options]
    for key in _overrides(rest):
        close = difflib.get_close_matches(key, names, n=1, cutoff=0)[0]
        raise UserError(f"{name} takes no {key}; the nearest is {close}.")
    given: dict[str, str] = vars(known)
    for option in options:
        if option.default is None and not given[option.name]:
            raise UserError(f"{name} needs {option.name}; give {option.help}: -P {option.name}=<{option.name}>.")
    return {option.name: option.parse(given[option.name]) for option in options}


def _add_processes(parser: argparse.ArgumentParser) -> None:
    text = f"how many processes of this machine do it together, one for each GPU (default: {DEFAULT})"
    parser.add_argument(f"--{OPTION}", default=DEFAULT, metavar="NUMBER", help=text)


def _on_upstream(stage: Stage, recipe_file: str, upstream: str, overrides: dict[str, str]) -> Recipe:
    """The upstream run's recipe, with this stage's sections from the file, where one is given, and the overrides."""
    check_overrides(overrides)
    for key in overrides:
        if key.split(".")[0] not in stage.sections and key not in FREE_KEYS:
            raise UserError(
                f"{key} is fixed by the upstream run {upstream}; leave it out, or start again from a stage before it."
            )
    given = read_recipe(Path(recipe_file)) if recipe_file else None
    tracking = importlib.import_module("pipeline.tracking")
    recipe = read_recipe(tracking.artifact(tracking.run_of(upstream).run_id, RECIPE_FILE))
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


def _use_experiment(data: str, upstream: str | None) -> None:
    """The experiment named after the data, or the upstream run's; unless the user named one."""
    tracking = importlib.import_module("pipeline.tracking")
    if upstream is None:
        tracking.use_experiment(data)
    else:
        tracking.use_experiment_of(upstream.split(",")[0].strip())


def _check_registry(register_as: str, data: str) -> None:
    """A word before all training, if the registry will not take the model."""
    tracking = importlib.import_module("pipeline.tracking")
    tracking.check_registry(tracking.registered_name(register_as, data))


def _module(name: str) -> Any:
    """The command's own file, which loads torch and all else that it needs."""
    return importlib.import_module(_place(name))


def _place(name: str) -> str:
    return f"stages.tools.{FILES.get(name, name)}" if name in OPTIONS else f"stages.{name}"


def _tag_reason(reason: str) -> None:
    """Where `mlflow run` made the run, it shows why it failed."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        importlib.import_module("pipeline.tracking").tag_reason(run_id, reason)


if __name__ == "__main__":
    with report_missing_packages(), guarded_output():
        main()
