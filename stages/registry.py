"""All commands in one table: the stages, and the options of the commands that take no recipe. Imports nothing heavy."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.readers.unlabelled import find_pictures
from pipeline.models.weights import check_backbone, find_weights
from pipeline.recipe.mistakes import steps_without_growth
from pipeline.recipe.schema import Recipe
from pipeline.runs.stage import RECIPE_FILE, Stage
from pipeline.sweep.space import SPACE_KEY, check_space, varied_models
from pipeline.system.console import warn
from pipeline.system.disk import check_writable
from pipeline.system.errors import UserError
from pipeline.tryout.address import check_address, parse_port

TRAINING = ("train_head", "fine_tune", "resize")
TABLE_ENDINGS = (".csv", ".parquet")


@dataclass(frozen=True)
class Option:
    """An option of a command without a recipe, given as `--NAME VALUE`; required unless it has a `default`. `parse`
    turns the text into a value, or raises UserError."""

    name: str
    help: str
    default: str | None = None
    parse: Callable[[str], object] = str


def check_stored_heads(recipe: Recipe) -> None:
    """UserError if the recipe trains no head on stored activations that others could be compared with."""
    if recipe.train_head.stored_epochs == 0:
        raise UserError(
            "train_head.stored_epochs is 0, so that the recipe trains no head on stored activations to compare others "
            "with; set it to 1 or more."
        )
    if recipe.precompute.cut != "head":
        raise UserError(
            f"The activations of the upstream run are stored below the {recipe.precompute.cut} layer group, after "
            "which comes more than a head; run precompute with precompute.cut=head."
        )
    if recipe.training.keep == "moving_average" and recipe.training.early_stop_epochs:
        raise UserError(
            f"training.keep is moving_average and training.early_stop_epochs is {recipe.training.early_stop_epochs}, "
            "but sweep_head has no average of where each of its heads would have stopped; set early_stop_epochs to 0."
        )
    if recipe.training.max_minutes:
        raise UserError(
            f"training.max_minutes is {recipe.training.max_minutes:g}, which sweep_head cannot share out among heads "
            "that it trains at once; set it to 0."
        )


def warn_of_sizes(recipe: Recipe) -> None:
    """A sentence on each step of resize at a size that is no larger than the one before it."""
    for sentence in steps_without_growth(recipe):
        warn(sentence)


def check_models(recipe: Recipe) -> None:
    """UserError if one of the backbones or weights that trials may have does not exist."""
    try:
        for backbone, weights in varied_models(recipe):
            check_backbone(backbone)
            find_weights(backbone, weights, recipe.seed)
    except UserError as error:
        raise UserError(f"In {SPACE_KEY}: {error}") from None


def parse_run_ids(text: str) -> list[str]:
    """The ids in "a,b,c"; UserError unless there are two or more, each once."""
    ids = [one.strip() for one in text.split(",") if one.strip()]
    if len(ids) < 2:
        raise UserError(f"runs is {text!r}, which names {len(ids)} run; give two or more: -P runs=<run id>,<run id>.")
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise UserError(f"runs names {twice} twice; give each run once.")
    return ids


def parse_output(text: str) -> Path:
    """The path of a table; UserError for another ending than .csv or .parquet, or if it cannot be written."""
    path = Path(text).expanduser()
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise UserError(f"output is {text}, which ends neither in .csv nor in .parquet; name such a file.")
    if not path.parent.is_dir():
        raise UserError(f"output is {text}, but there is no folder {path.parent.resolve()}; make it first.")
    if path.exists() and not path.is_file():
        raise UserError(f"output is {text}, which is {'a folder' if path.is_dir() else 'no file'}; name a file.")
    try:
        check_writable(path)
    except OSError as error:
        raise UserError(
            f"output is {text}, which cannot be written ({error.strerror or error}); name another, or mend its "
            "permissions."
        ) from None
    return path


def parse_batch_size(text: str) -> int:
    """A whole number from 1 up; UserError for all else."""
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"batch_size is {text}; give a whole number from 1 up.")
    return int(text)


def parse_device(text: str) -> str:
    """auto, cpu or cuda; UserError for all else."""
    if text not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {text}; give auto, cpu or cuda.")
    return text


def parse_gib(text: str) -> float:
    """A number from 0 up; UserError for all else."""
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise UserError(f"max_download_gib is {text}; give a number of GiB from 0 up.")
    return gib


def parse_tta(text: str) -> bool:
    """Whether TTA is asked for; UserError for all but true and false."""
    if text not in ("true", "false"):
        raise UserError(f"tta is {text}; give true or false.")
    return text == "true"


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("main", checks=(warn_of_sizes,)),
        Stage("precompute", ("precompute",), artifacts=("activations", "checkpoint", "manifest", RECIPE_FILE)),
        Stage(
            "lr_find",
            ("training", "lr_find", "head", "augment"),
            ("precompute", *TRAINING),
            artifacts=("curve.csv", RECIPE_FILE),
        ),
        Stage(
            "train_head",
            ("training", "train_head", "head", "augment"),
            ("lr_find", "precompute"),
            artifacts=("checkpoint", RECIPE_FILE),
        ),
        Stage(
            "fine_tune",
            ("training", "fine_tune", "augment"),
            ("lr_find", *TRAINING),
            artifacts=("checkpoint", RECIPE_FILE),
        ),
        Stage(
            "resize",
            ("training", "resize", "augment"),
            (*TRAINING, "lr_find"),
            artifacts=("checkpoint", RECIPE_FILE),
            checks=(warn_of_sizes,),
        ),
        Stage(
            "evaluate",
            ("evaluate", "augment"),
            tuple(reversed(TRAINING)),
            artifacts=("predictions.csv", "report.html", "report.md", RECIPE_FILE),
        ),
        Stage(
            "sweep",
            short_for={"trials": "sweep.trials", "workers": "sweep.workers", "storage": "sweep.storage"},
            checks=(check_space, check_models, warn_of_sizes),
        ),
        Stage(
            "sweep_head",
            ("sweep_head", "training", "train_head", "head", "lr_find"),
            ("precompute",),
            artifacts=("heads.csv", "settings.csv", "best_recipe.yaml", RECIPE_FILE),
            checks=(check_stored_heads,),
        ),
    )
}

OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "predict": (
        Option("model", "models:/thaw-elpv@champion, a run's id, or the folder of a model"),
        Option(
            "data",
            "a folder of pictures, nested as you like, or a table with a column path, on disk or at an address",
            None,
            find_pictures,
        ),
        Option("output", "the file to write, .csv or .parquet", "predictions.csv", parse_output),
        Option("batch_size", "how many pictures go through the network at a time", "32", parse_batch_size),
        Option("device", "auto, cpu or cuda", "auto", parse_device),
        Option("tta", "true or false: the mean over the views that the model was evaluated with", "false", parse_tta),
        Option("max_download_gib", "the most that pictures at addresses may take in the cache", "20", parse_gib),
    ),
    "try": (
        Option("model", "models:/thaw-elpv@champion, a run's id, or the folder of a model"),
        Option("host", "which of this machine's addresses the page is at; 0.0.0.0 is all of them", "127.0.0.1"),
        Option("port", "the port of the page, or 0 for any that is free", "5002", parse_port),
        Option("device", "auto, cpu or cuda", "auto", parse_device),
    ),
    "compare": (
        Option(
            "runs", "the ids of two or more runs of main or evaluate, with commas between them", None, parse_run_ids
        ),
    ),
}

# What is checked of a command's options together.
CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "try": lambda options: check_address(options["host"], options["port"]),
}
# The file of a command in tools/, if it is not called as the command is.
FILES = {"try": "try_model"}
