"""All that is said to the tracking server: runs, values, artifacts, models. Nothing else imports mlflow, but the
served model's own file."""

from pipeline.tracking.artifacts import artifact, log_folder, log_text
from pipeline.tracking.contact import meet_server
from pipeline.tracking.models import log_classifier, log_dataset, show_result
from pipeline.tracking.names import (
    DESCRIPTION,
    DONE,
    EVALUATED_ON,
    FINGERPRINT,
    MODEL,
    REASON,
    REUSED,
    SECONDS,
    STAGE,
    UPSTREAM,
    VERDICT,
)
from pipeline.tracking.runs import find_done, is_open, mark_done, open_run, run_of, try_tag
from pipeline.tracking.sender import ask, flush
from pipeline.tracking.values import copy_curves, describe_run, log_metrics, log_points, set_tags

__all__ = [
    "DESCRIPTION",
    "DONE",
    "EVALUATED_ON",
    "FINGERPRINT",
    "MODEL",
    "REASON",
    "REUSED",
    "SECONDS",
    "STAGE",
    "UPSTREAM",
    "VERDICT",
    "artifact",
    "ask",
    "copy_curves",
    "describe_run",
    "find_done",
    "flush",
    "is_open",
    "log_classifier",
    "log_dataset",
    "log_folder",
    "log_metrics",
    "log_points",
    "log_text",
    "mark_done",
    "meet_server",
    "open_run",
    "run_of",
    "set_tags",
    "show_result",
    "try_tag",
]
