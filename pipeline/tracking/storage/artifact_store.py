"""The store of artifacts: S3, which each client reaches by itself, or whatever the tracking server hands files on to.

Its libraries are an extra, so that their errors are known here by name.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line

# Its client tries five times, each time it is called; how long to wait is decided by call_server instead.
os.environ.setdefault("AWS_MAX_ATTEMPTS", "2")
LIBRARIES = ("boto3", "botocore", "s3transfer")
NO_KEYS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
)  # fmt: skip
# Refusals that do not depend on what was asked for.
TAKEN_LATER = ("RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "SlowDown")
# In the address of a file that the tracking server hands on.
HANDED_ON = "mlflow-artifacts/artifacts"
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or fill in ~/.aws/credentials"


@dataclass(frozen=True)
class StoreTrouble:
    """What is wrong with the store of artifacts: `what` names it and says why, for a sentence; `refusal` is the error
    to raise if it does not pass by itself. It `is_behind` the tracking server if that has said so, which may itself be
    what is out of order."""

    what: str
    refusal: UserError | OSError | None = None
    is_behind: bool = False


def store_trouble(error: BaseException) -> StoreTrouble | None:
    """What an error says about the store of artifacts; None if it comes from elsewhere."""
    if not _is_of_library(error):
        status = _status(error) if HANDED_ON in str(error) else 0
        what = f"The store behind the tracking server is out of order (status {status})"
        return StoreTrouble(what, is_behind=True) if status >= 500 else None
    inner = error.__context__ if error.__context__ is not None and _is_of_library(error.__context__) else error
    if type(inner).__name__ in NO_KEYS:
        what = f"The artifact store lets nobody in without keys ({first_line(_as_exception(inner))})"
        return StoreTrouble(what, UserError(f"{what}; {KEYS}."))
    answer = getattr(inner, "response", None)
    if not isinstance(answer, dict):
        place = getattr(inner, "kwargs", {}).get("endpoint_url", "")
        named = f" at {_without_query(place)}" if place else ""
        return StoreTrouble(f"The artifact store{named} is away ({_why(inner)})")
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    if status >= 500 or code in TAKEN_LATER:
        return StoreTrouble(f"The artifact store is out of order ({code}, status {status})")
    words = first_line(_as_exception(inner))
    if status == 404 and code != "NoSuchBucket":
        return StoreTrouble(words, FileNotFoundError(words))
    what = f"The artifact store refuses what it is asked for ({words})"
    advice = "make the bucket" if code == "NoSuchBucket" else "check the keys (AWS_ACCESS_KEY_ID) and what they may do"
    return StoreTrouble(what, UserError(f"{what}; {advice}, or have the experiment's artifacts lie elsewhere."))


def check_store(location: str) -> None:
    """UserError, within seconds, if artifacts at this address cannot be read: without the package that opens it,
    without keys, with a bucket that is away or refuses."""
    if urlsplit(location).scheme != "s3":
        return
    if importlib.util.find_spec("boto3") is None:
        raise UserError(
            f"The experiment's artifacts lie at {location}, and the package boto3, which opens it, is not installed; "
            "run pip install -r requirements-s3.txt."
        )
    try:
        get_artifact_repository(location).list_artifacts("none of this name")  # one request, whatever there is
    except Exception as error:  # of libraries that are not imported here
        trouble = store_trouble(error)
        if trouble is None:
            raise
        raise trouble.refusal or UserError(
            f"{trouble.what}; the experiment's artifacts lie at {location}: set AWS_ENDPOINT_URL if it is a server of "
            "your own, or wait until it is back."
        ) from None


def _is_of_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in LIBRARIES


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else Exception(str(error))


def _why(error: BaseException) -> str:
    """Without the address, which is as long as what was asked for."""
    return first_line(_as_exception(error)).partition(": ")[0].partition(" for ")[0].partition(" to the endpoint")[0]


def _status(error: BaseException) -> int:
    """The status that a server answered with; 0 if it did not answer."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return int(answer.status_code)
    found = re.search(r"too many (\d+) error responses", str(error))
    return int(found[1]) if found else 0


def _without_query(address: str) -> str:
    return urlsplit(address)._replace(query="", fragment="").geturl()
