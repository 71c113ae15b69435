"""A PostgreSQL server on loopback with an empty database, from Debian's package, for as long as a test wants it."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEBIANS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
UNPRIVILEGED = "nobody"  # the server refuses to be root's


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The address of the database, whose files lie in `folder`; the test is skipped where there is no PostgreSQL."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, DEBIANS)])
    initdb, postgres = (shutil.which(name, path=places) for name in ("initdb", "postgres"))
    if initdb is None or postgres is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    user = UNPRIVILEGED if os.getuid() == 0 else None
    data = folder / "postgres"
    data.mkdir(parents=True)
    if user:
        shutil.chown(data, user)
        for place in (folder, *folder.parents):  # pytest's own folders are closed to others
            if place.stat().st_uid == 0 and place.is_relative_to("/tmp") and place != Path("/tmp"):
                place.chmod(place.stat().st_mode | 0o011)
    command = [initdb, "--pgdata", str(data), "--username", "thaw", "--auth", "trust", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, user=user, cwd="/")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "fsync=off"]
    command = [postgres, "-D", str(data), *(word for setting in settings for word in ("-c", setting))]
    with (folder / "postgres.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd="/")
    try:
        _wait(server, port, folder / "postgres.log")
        yield f"postgresql://thaw@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # without waiting for clients
        server.wait(timeout=30)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    while server.poll() is None:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="thaw", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            pass
    raise RuntimeError(log.read_text())
