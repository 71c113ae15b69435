"""The tracking server: whether it can be reached, and what its errors mean."""

import logging
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line

SECONDS_TO_ANSWER = 5
SEND = "python -m pipeline tracking send"
ASKED = "/api/2.0/mlflow/experiments/get-by-name"
# Statuses that do not depend on what was sent: the same may be taken later.
TAKEN_LATER = (401, 403, 408, 429)

# MLflow's client tries seven times, for minutes, each time it is called; how long to wait is decided here instead.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for each attempt
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback of what is raised as well


class Unreachable(UserError):
    """The server is away, and what was logged is kept; `done` is the run that only has to be sent."""

    done: str | None = None


def patience_seconds() -> float:
    """How long to wait for a server that is away: `$THAW_TRACKING_PATIENCE_SECONDS`, else ten minutes."""
    given = os.environ.get("THAW_TRACKING_PATIENCE_SECONDS", "600")
    try:
        return float(given)
    except ValueError:
        raise UserError(
            f"THAW_TRACKING_PATIENCE_SECONDS is {given}, which is no number; give seconds, such as 600."
        ) from None


def check_server(uri: str) -> None:
    """Raises UserError if there is no tracking server at `uri`, within seconds."""
    if uri.startswith(("http://", "https://")):
        problem = _problem_of_server(uri)
    elif uri.startswith("sqlite:///"):
        problem = _problem_of_file(Path(_sqlite_file(uri)))
    else:
        problem = None
    if problem is not None:
        raise UserError(f"The tracking server at {shown(uri)} {problem}, or set MLFLOW_TRACKING_URI to another.")


def is_lasting(error: Exception) -> bool:
    """Whether the server will refuse the same entry again; else it is away, or hindered for now."""
    answer = getattr(error, "response", None)
    if isinstance(error, OSError) and answer is not None:  # an artifact's upload, refused
        return _lasts(answer.status_code)
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError):  # the entry itself is wrong
        return not isinstance(error, OSError | JSONDecodeError)
    # An answer that is not MLflow's own comes from a proxy before the server, or from another program.
    if not isinstance(error, MlflowException) or str(error).startswith("API request to"):
        return False
    return _lasts(error.get_http_status_code())  # type: ignore[no-untyped-call]


def is_absent(error: Exception) -> bool:
    """Whether the server says that there is no such thing. All other errors leave that open."""
    return isinstance(error, MlflowException) and error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def is_invalid(error: Exception) -> bool:
    """Whether the server says that it takes no such value, as for an id that nothing can have."""
    return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"


def cause(error: Exception) -> str:
    """The last message in a chain of errors: `Connection refused`, `Name or service not known`."""
    words = first_line(error).partition(" (read timeout")[0].rstrip(")'\"")
    mark = next((mark for mark in ("] ", "('", '("', ": ") if mark in words), "")
    return words.rpartition(mark)[2] if mark else words


def shown(uri: str) -> str:
    """The address of a server without name and password, to be shown."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def absolute(uri: str) -> str:
    """The address that is valid in any working folder."""
    file = _sqlite_file(uri) if uri.startswith("sqlite:///") else ""
    return uri.replace(file, os.path.abspath(file), 1) if file not in ("", ":memory:") else uri


def _lasts(status: int) -> bool:
    return 400 <= status < 500 and status not in TAKEN_LATER


def _sqlite_file(uri: str) -> str:
    return uri.removeprefix("sqlite:///").partition("?")[0]


def _problem_of_server(uri: str) -> str | None:
    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            ASKED,
            "GET",
            max_retries=0,
            timeout=SECONDS_TO_ANSWER,
            raise_on_status=False,
            params={"experiment_name": "Default"},
        )
    except MlflowException as error:
        why = "does not answer in time" if "timeout" in str(error).lower() else f"cannot be reached ({cause(error)})"
        return f"{why}; start it (mlflow server), mend the address"
    if answer.status_code in (401, 403):
        return (
            f"does not let you in (status {answer.status_code}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if answer.status_code >= 500:
        return f"is out of order (status {answer.status_code}); look at its log, wait"
    if not _is_of_mlflow(answer):
        return f"answers, but is no MLflow server (status {answer.status_code}); mend the address"
    return None


def _is_of_mlflow(answer: Any) -> bool:
    try:
        content = answer.json()
    except ValueError:
        return False
    return isinstance(content, Mapping) and ("experiment" in content or "error_code" in content)


def _problem_of_file(file: Path) -> str | None:
    if str(file) in (".", ":memory:"):
        return None
    if file.is_dir():
        return "is a folder; name the file within it"
    if not file.exists():
        folder = next(folder for folder in file.absolute().parents if folder.exists())
        whole = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        return None if whole else f"cannot be made, because {folder} cannot be written to; mend that"
    if not os.access(file, os.R_OK | os.W_OK):
        return "cannot be read and written; mend its permissions"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # locked, which passes
        return None
    except sqlite3.DatabaseError as error:
        return f"is no SQLite database ({error}); mend the path"
    return None
