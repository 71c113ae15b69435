import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException, RestException

from pipeline.system.errors import UserError
from pipeline.tracking import server
from pipeline.tracking.server import absolute, cause, check_server, is_lasting, patience_seconds, shown


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a web server that answers everything with one status and one page."""
    status, body = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def problem(uri: str) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as told:
        check_server(uri)
    assert time.monotonic() - started < 8
    return str(told.value)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def test_a_wrong_port_is_told_with_what_to_do(closed_port):
    uri = f"http://127.0.0.1:{closed_port}"
    assert problem(uri) == (
        f"The tracking server at {uri} cannot be reached (Connection refused); start it (mlflow server), mend the "
        "address, or set MLFLOW_TRACKING_URI to another."
    )


def test_a_wrong_host_is_told():
    assert "cannot be reached (" in problem("http://nowhere.invalid:5000")


def test_a_server_that_never_answers_is_told_within_seconds(monkeypatch):
    monkeypatch.setattr(server, "SECONDS_TO_ANSWER", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "does not answer in time" in problem(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ((503, b"back soon"), "is out of order (status 503)"),
        ((500, b'{"error_code": "INTERNAL_ERROR"}'), "is out of order (status 500)"),
        ((200, b"<html>welcome</html>"), "answers, but is no MLflow server"),
        ((404, b"<html>not here</html>"), "answers, but is no MLflow server"),
        ((200, b'{"of": "another service"}'), "answers, but is no MLflow server"),
        ((401, b"who are you?"), "does not let you in (status 401)"),
    ],
    indirect=["page"],
    ids=["503", "500", "a page", "404", "JSON of something else", "401"],
)
def test_what_is_not_a_server_in_order_is_told(page, words):
    assert words in problem(page)


@pytest.mark.parametrize(
    "page",
    [(200, b'{"experiment": {"experiment_id": "0"}}'), (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')],
    indirect=True,
    ids=["with the experiment", "without it"],
)
def test_a_server_that_answers_as_mlflow_does_is_taken(page):
    check_server(page)


def test_a_name_and_a_password_are_never_shown(closed_port):
    uri = f"http://anna:secret@127.0.0.1:{closed_port}"
    assert "secret" not in problem(uri)
    assert shown(uri) == f"http://127.0.0.1:{closed_port}"
    assert shown("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"


def test_a_database_that_is_there_or_can_be_made_is_taken(tmp_path, empty_database):
    check_server(f"sqlite:///{empty_database}")
    check_server(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    (tmp_path / "empty.db").touch()
    check_server(f"sqlite:///{tmp_path}/empty.db")
    assert not (tmp_path / "new").exists()


def test_a_database_that_cannot_be_is_told(tmp_path):
    (tmp_path / "notes.txt").write_text("milk, bread")
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert "is no SQLite database (file is not a database)" in problem(f"sqlite:///{tmp_path}/broken.db")
    assert "is no SQLite database" in problem(f"sqlite:///{tmp_path}/notes.txt")
    assert "is a folder" in problem(f"sqlite:///{tmp_path}")
    assert f"{tmp_path}/notes.txt cannot be written to" in problem(f"sqlite:///{tmp_path}/notes.txt/mlflow.db")


def test_an_address_is_made_right_for_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in (f"sqlite:///{tmp_path}/mlflow.db", "http://127.0.0.1:5000", "sqlite://"):
        assert absolute(uri) == uri


def refused(code: str) -> RestException:
    return RestException({"error_code": code, "message": "no"})


@pytest.mark.parametrize("code", ["INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"])
def test_what_the_server_refuses_for_what_it_says_is_refused_for_ever(code):
    assert is_lasting(refused(code))


@pytest.mark.parametrize(
    "error",
    [
        refused("INTERNAL_ERROR"),
        refused("TEMPORARILY_UNAVAILABLE"),
        refused("REQUEST_LIMIT_EXCEEDED"),
        refused("PERMISSION_DENIED"),
        MlflowException("API request to http://x failed with exception [Errno 111] Connection refused"),
        # A proxy's own page while the server behind it is away.
        MlflowException("API request to endpoint /api failed with error code 404 != 200.", error_code=9),
        ConnectionResetError("reset by peer"),
        PermissionError("no"),
    ],
    ids=str,
)
def test_what_is_hindered_for_now_may_be_taken_later(error):
    assert not is_lasting(error)


def test_an_error_is_told_in_its_last_and_plainest_words():
    whole = "failed with exception HTTPConnectionPool(host='x', port=1): Max retries exceeded with url: /a (Caused by "
    refused = "NewConnectionError(\"HTTPConnection(host='x', port=1): Failed to establish: [Errno 111] No way\"))"
    gone = "ProtocolError('Connection aborted.', RemoteDisconnected('Remote end closed connection')))"
    assert cause(MlflowException(whole + refused)) == "No way"
    assert cause(MlflowException(whole + gone)) == "Remote end closed connection"
    assert cause(MlflowException("HTTPConnectionPool(): Read timed out. (read timeout=30)")) == "Read timed out."
    assert cause(OSError()) == "OSError"


def test_patience_is_told_in_seconds(monkeypatch):
    monkeypatch.delenv("THAW_TRACKING_PATIENCE_SECONDS", raising=False)
    assert patience_seconds() == 600
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "2.5")
    assert patience_seconds() == 2.5
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "long")
    with pytest.raises(UserError, match=r"THAW_TRACKING_PATIENCE_SECONDS is long, .*; give seconds, such as 600"):
        patience_seconds()


def test_a_recipe_that_is_right_is_not_run_where_the_server_is_away(closed_port, tmp_path):
    """The command of a stage, as a user gives it: one sentence, exit code 2, before any picture is opened."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "stages", "main", "--recipe", "recipes/elpv.yaml"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{closed_port}", "THAW_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"The tracking server at http://127.0.0.1:{closed_port} cannot be reached (")
    assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - started < 60
    assert not (tmp_path / "pixels").exists()
