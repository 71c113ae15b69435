"""Where the page is: a host and a port of this machine. Imports nothing heavy, so that a mistake is told at once."""

import errno
import ipaddress
import socket
from contextlib import suppress

from pipeline.system.errors import UserError

LARGEST_PORT = 65535
LOCALHOST = "localhost"
WHICH_HOST = "give 127.0.0.1 for this machine alone, or 0.0.0.0 for all that can reach it"


def parse_port(text: str) -> int:
    """A port from 1 to 65535, or 0 for any that is free; UserError for all else."""
    if not text.isdecimal() or int(text) > LARGEST_PORT:
        raise UserError(f"port is {text}; give a whole number from 1 to {LARGEST_PORT}, or 0 for any that is free.")
    return int(text)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; UserError if the host is none of this machine's, or the port is taken."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(
            f"host is {host}, which cannot be looked up ({error.strerror or error}); {WHICH_HOST}."
        ) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(_why_not(host, port, error)) from None
    return listening


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host is {host}, which is no address of this machine; {WHICH_HOST}."
    why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
    other = port % LARGEST_PORT + 1
    return f"Port {port} of {host} {why}; name another, as in -P port={other}, or 0 for any that is free."


def check_address(host: str, port: int) -> None:
    """UserError if no page can be there."""
    listen(host, port).close()


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches the host."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == LOCALHOST


def page_url(listening: socket.socket, host: str) -> str:
    """The address to type into a browser on this machine."""
    port = listening.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
