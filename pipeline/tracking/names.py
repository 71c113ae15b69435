"""Names of tags and metrics, the same in every run, and of what belongs to a set of pictures."""

import re

STAGE = "thaw.stage"
FINGERPRINT = "thaw.fingerprint"
UPSTREAM = "thaw.upstream"
DONE = "thaw.done"
OPENING = "thaw.opening"
REUSED = "thaw.reused"
RESUMED = "thaw.resumed"
REASON = "thaw.reason"
PROCESS = "thaw.process"
# How many processes worked on a stage.
PROCESSES = "thaw.processes"
# Followed by what of the recipe may be auto: device, decoder, and the precision that a stage trained in or computed in.
RESOLVED = "thaw.resolved."
# Which artifacts a finished run has, with their sizes.
FILES = "thaw.files"
SECONDS = "stage_seconds"
DESCRIPTION = "mlflow.note.content"
VERDICT = "thaw.verdict"
EVALUATED_ON = "thaw.evaluated_on"
# What is most wrong with a model, and the command to try next.
ADVICE = "thaw.advice"
# Which stage's network main evaluates, and why.
EVALUATED_STAGE = "thaw.evaluated_stage"
# The runs whose networks an evaluation averages, if they are several.
MEMBERS = "thaw.members"
# Whether the networks of a training's cycles are averaged, and why.
SNAPSHOTS = "thaw.snapshots"
MODEL = "thaw.model"
# The alias, in the registry, of the best version of a model.
CHAMPION_ALIAS = "champion"
CHAMPION = "thaw.champion"
SHOWN = (DESCRIPTION, VERDICT, ADVICE, EVALUATED_ON, MODEL, CHAMPION)


def named_after(data: str) -> str:
    """The name of the experiment and of the registered model of a set of pictures; names take no "/" and no ":"."""
    return "thaw-" + re.sub(r"[^\w.-]+", "-", data)


def registered_name(register_as: str, data: str) -> str:
    """The name in the model registry of a model that the recipe wants to register so."""
    return named_after(data) if register_as == "auto" else register_as


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
