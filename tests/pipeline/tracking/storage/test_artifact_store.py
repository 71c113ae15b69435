import botocore.exceptions
import pytest
import requests
from boto3.exceptions import S3UploadFailedError
from mlflow.exceptions import MlflowException

from pipeline.system.errors import UserError
from pipeline.tracking import sender
from pipeline.tracking.sender import call_server
from pipeline.tracking.server import Unreachable
from pipeline.tracking.storage import artifact_store
from pipeline.tracking.storage.artifact_store import check_store, store_trouble

ADDRESS = "https://s3.example.org/bucket?list-type=2&prefix=very/long"
AWAY = botocore.exceptions.EndpointConnectionError(endpoint_url=ADDRESS, error=OSError("refused"))
HANDED_ON = "https://mlflow.example.org/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts/big.npy"


REFUSED = f"API request to {HANDED_ON} failed with exception HTTPConnectionPool: Connection refused"


def answered(code, status, words="No."):
    facts = {"Error": {"Code": code, "Message": words}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(facts, "GetObject")


def handed_on(status):
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(f"{status} Server Error for url: {HANDED_ON}", response=answer)


def raised_while(error, other):
    try:
        try:
            raise other
        except Exception:
            raise error  # noqa: B904 -- as boto3 does
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AWAY, r"The artifact store at https://s3\.example\.org/bucket is away \(Could not connect\)"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url=ADDRESS), r"at https://s3\.example\.org/bucket is away"),
        (answered("SlowDown", 503), r"is out of order \(SlowDown, status 503\)"),
        (answered("InternalError", 500), r"is out of order \(InternalError, status 500\)"),
        (answered("RequestTimeout", 400), "is out of order"),
        (handed_on(500), r"The store behind the tracking server is out of order \(status 500\)"),
        (
            MlflowException(f"API request to {HANDED_ON} failed: too many 502 error responses"),
            "behind the tracking server",
        ),
        (raised_while(S3UploadFailedError("Failed to upload"), answered("SlowDown", 503)), "SlowDown"),
    ],
)
def test_what_passes_is_waited_for_and_then_told(error, words, tracking_server, monkeypatch):
    trouble = store_trouble(error)
    assert trouble.refusal is None
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "0")

    def call():
        raise error

    with pytest.raises(Unreachable, match=words):
        call_server(call)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            botocore.exceptions.NoCredentialsError(),
            r"lets nobody in without keys \(Unable to locate credentials\); set AWS_",
        ),
        (answered("AccessDenied", 403, "Access Denied"), r"refuses .*Access Denied\); check the keys"),
        (answered("InvalidAccessKeyId", 403), "check the keys"),
        (answered("NoSuchBucket", 404), "make the bucket"),
        (raised_while(S3UploadFailedError("Failed to upload"), answered("AccessDenied", 403)), "check the keys"),
    ],
)
def test_what_is_refused_is_told_at_once(error, words, monkeypatch):
    monkeypatch.setattr(sender, "check_server", lambda uri: pytest.fail("nothing is waited for"))

    def call():
        raise error

    with pytest.raises(UserError, match=words):
        call_server(call)


def test_a_file_that_is_gone_is_no_matter_of_the_store():
    def call():
        raise answered("NoSuchKey", 404)

    with pytest.raises(FileNotFoundError):
        call_server(call)


@pytest.mark.parametrize(
    "error",
    [handed_on(404), MlflowException(REFUSED), MlflowException("No run"), ValueError("wrong"), OSError("full")],
)
def test_other_errors_are_not_taken_for_the_stores(error):
    assert store_trouble(error) is None


def test_an_experiment_whose_artifacts_cannot_be_reached_is_told_with_their_address(monkeypatch):
    def repository(location):
        raise AWAY

    monkeypatch.setattr(artifact_store, "get_artifact_repository", repository)
    with pytest.raises(UserError, match=r"is away .*lie at s3://bucket/1: set AWS_ENDPOINT_URL"):
        check_store("s3://bucket/1")
    check_store("mlflow-artifacts:/1")
    check_store("/home/me/mlruns/1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"s3://bucket/1, and the package boto3.*pip install -r requirements-s3\.txt"):
        check_store("s3://bucket/1")
