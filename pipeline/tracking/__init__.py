"""All that is said to the tracking server: runs, values, artifacts, models. Nothing else imports mlflow, but the
served model's own file."""

from pipeline.tracking.artifacts import artifact, has_artifact, log_file, log_folder, log_text
from pipeline.tracking.contact import meet_server
from pipeline.tracking.models import log_classifier, log_dataset, model_checkpoint, show_result
from pipeline.tracking.names import (
    CHAMPION,
    DESCRIPTION,
    DONE,
    EVALUATED_ON,
    FINGERPRINT,
    MODEL,
    PROCESS,
    REASON,
    RESUMED,
    REUSED,
    SECONDS,
    STAGE,
    UPSTREAM,
    VERDICT,
)
from pipeline.tracking.reading import evaluated_on, evaluation_of, pages_beside, read_curve
from pipeline.tracking.registry import crown, register
from pipeline.tracking.runs import find_done, is_open, is_there, mark_done, open_run, run_of, try_tag
from pipeline.tracking.sender import ask, flush
from pipeline.tracking.values import (
    add_to_description,
    copy_curves,
    describe_run,
    log_metrics,
    log_points,
    name_run,
    rename_run,
    set_tags,
)

__all__ = [
    "CHAMPION",
    "DESCRIPTION",
    "DONE",
    "EVALUATED_ON",
    "FINGERPRINT",
    "MODEL",
    "PROCESS",
    "REASON",
    "RESUMED",
    "REUSED",
    "SECONDS",
    "STAGE",
    "UPSTREAM",
    "VERDICT",
    "add_to_description",
    "artifact",
    "ask",
    "copy_curves",
    "crown",
    "describe_run",
    "evaluated_on",
    "evaluation_of",
    "find_done",
    "flush",
    "has_artifact",
    "is_open",
    "is_there",
    "log_classifier",
    "log_dataset",
    "log_file",
    "log_folder",
    "log_metrics",
    "log_points",
    "log_text",
    "mark_done",
    "meet_server",
    "model_checkpoint",
    "name_run",
    "open_run",
    "pages_beside",
    "read_curve",
    "register",
    "rename_run",
    "run_of",
    "set_tags",
    "show_result",
    "try_tag",
]
