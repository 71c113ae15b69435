"""A real MLflow server as a process of its own, and a gate before it that can be shut."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

# How often a web server looks whether it is to end: half a second by itself, for which each test would wait.
SECONDS_BETWEEN_LOOKS = 0.01
# Without it a server starts eight processes for jobs of language models, which take longer to load than the server.
WITHOUT_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
NOT_HANDED_ON = ("host", "connection", "transfer-encoding", "content-length")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class MlflowServer:
    """`mlflow server`, which can be started and stopped: on a database and an artifact folder in `folder`, or on the
    `database` and with the options for `artifacts` that are given, in an environment with `variables`."""

    def __init__(
        self, folder: Path, database: str = "", artifacts: Sequence[str] = (), variables: Mapping[str, str] = {}
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = database or f"sqlite:///{folder / 'server.db'}"
        self._artifacts = artifacts or ("--artifacts-destination", str(folder / "artifacts"))
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        stores = ["--backend-store-uri", self.database, *self._artifacts]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *stores], cwd=self.folder, env={**os.environ, **WITHOUT_JOBS, **self._variables}, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def stop(self, signal_number: int) -> None:
        """Send a signal to the server and all its workers, and wait until they are gone."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal_number)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False


class Gate:
    """Forwards requests to a server, as `mode` says:

    `open`; `shut`: the connection is closed at once; `lost`: the server takes the request, and its answer is lost;
    `503`: a proxy's page; `hanging`: no answer.
    """

    def __init__(self, server_uri: str) -> None:
        self.mode = "open"
        self.requests: list[str] = []
        gate, target = self, urlsplit(server_uri)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.read_body()
                gate.requests.append(self.path)
                self.close_connection = True
                if gate.mode == "hanging":
                    time.sleep(20)
                if gate.mode == "503":
                    self.send_error(503)
                if gate.mode in ("shut", "hanging", "503"):
                    return
                answer, content = gate.hand_on(self, body, target.hostname, target.port)
                if gate.mode == "lost":
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Connection", "close")  # otherwise a client may send its next request into it
                self.end_headers()
                self.wfile.write(content)

            def read_body(self) -> bytes:
                if "Transfer-Encoding" not in self.headers:
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(SECONDS_BETWEEN_LOOKS,), daemon=True).start()

    def hand_on(
        self, request: BaseHTTPRequestHandler, body: bytes, host: str | None, port: int | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(host or "", port)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_HANDED_ON}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
