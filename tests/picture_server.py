"""A web server of pictures on loopback that can go wrong, and counts what it is asked for."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.mlflow_server import SECONDS_BETWEEN_LOOKS, free_port


class PictureServer:
    """Serves the files in `folder`. `requests` counts them by method and path; `statuses` are those of paths that are
    refused, `cut` are paths of which only half comes, `pages` those that answer with a web page. With `tells_state` an
    answer has the file's ETag. An answer takes `seconds`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.requests: Counter[str] = Counter()
        self.statuses: dict[str, int] = {}
        self.cut: set[str] = set()
        self.pages: set[str] = set()
        self.tells_state = True
        self.seconds = 0.0
        self._server: ThreadingHTTPServer | None = None

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                if server._server is None:  # shut, while a client has a connection open
                    self.close_connection = True
                    return
                path = self.path.partition("?")[0].lstrip("/")
                server.requests[f"{self.command} {path}"] += 1
                time.sleep(server.seconds)
                file = server.folder / path
                status = server.statuses.get(path, 200 if file.is_file() else 404)
                content = file.read_bytes() if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if path in server.pages:
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                if server.tells_state and status == 200:
                    self.send_header("ETag", hashlib.sha256(content).hexdigest())
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content[: len(content) // 2] if path in server.cut else content)
                self.close_connection |= path in server.cut

            do_GET = do_HEAD = answer

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(SECONDS_BETWEEN_LOOKS,), daemon=True).start()

    def shut(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def count(self, method: str) -> int:
        """How many requests there were by this method."""
        return sum(number for request, number in self.requests.items() if request.startswith(f"{method} "))


@contextmanager
def picture_server(folder: Path) -> Iterator[PictureServer]:
    """For as long as a test wants it."""
    server = PictureServer(folder)
    server.open()
    try:
        yield server
    finally:
        server.shut()
