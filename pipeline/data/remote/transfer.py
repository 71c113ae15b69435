"""Fetches one file from its address, and asks in which state it is: a web server by requests, all else by fsspec."""

import errno
import functools
import importlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import requests
from requests.adapters import HTTPAdapter

from pipeline.data.remote.addresses import WEB, split_address
from pipeline.system.errors import UserError

SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 10, 60
CHUNK_BYTES = 2**18
HEADERS = {"User-Agent": "Thaw", "Accept": "image/*,*/*;q=0.8", "Accept-Encoding": "identity"}
# Statuses that the same request may not meet later.
PASSING_STATUSES = (408, 425, 429)
# What tells one state of a file from another, by the names that servers and file systems have for it.
_STATES = {
    "content": ("ETag", "etag", "md5", "md5Hash", "content_md5"),
    "time": ("Last-Modified", "LastModified", "last_modified", "mtime", "updated"),
    "size": ("Content-Length", "size"),
}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, NotImplementedError)
S3 = ("s3", "s3a")
_NO_KEYS = "there are no keys for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or fill in ~/.aws/credentials"
# Errors of the disk that is written to.
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_own = threading.local()
_opening = threading.Lock()

# Called with the number of bytes that come next; raises an error if they are too many.
Allow = Callable[[int], None]


class Absent(Exception):
    """The server answers that it does not give this file; the message says why in a few words."""


class Hindered(Exception):
    """The server is away or busy, so that the same may succeed later, after `pause_seconds` if it says so."""

    def __init__(self, why: str, pause_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.pause_seconds = pause_seconds


def fetch(address: str, target: Path, allow: Allow) -> str:
    """Write what is at `address` into the file `target`; gives its state, for `has_changed`. Absent or Hindered if it
    cannot be had; `target` may be half-written then."""
    if split_address(address).scheme in WEB:
        with _web_errors(), _session().get(address, stream=True, timeout=_timeout()) as answer:
            _check_status(answer)
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise Absent("is a web page")
            with target.open("wb") as file:
                for chunk in answer.iter_content(CHUNK_BYTES):
                    allow(len(chunk))
                    file.write(chunk)
            return _stamp(answer.headers)
    with _file_errors():
        system, path = _file_system(address)
        facts = system.info(path)
        allow(int(facts.get("size") or 0))
        system.get_file(path, str(target))
        if facts.get("size") not in (None, target.stat().st_size):
            raise Hindered(f"only {target.stat().st_size:,} of {facts['size']:,} bytes came")
        return _stamp(facts)


def stamp_of(address: str) -> str:
    """The state of what is at `address`, without fetching it, for `has_changed`. Absent or Hindered if the server does
    not answer for this file."""
    if split_address(address).scheme in WEB:
        with _web_errors():
            answer = _session().head(address, allow_redirects=True, timeout=_timeout())
            _check_status(answer)
            return _stamp(answer.headers)
    with _file_errors():
        system, path = _file_system(address)
        system.invalidate_cache()
        facts = system.info(path)
        return _stamp(facts)


def check_system(address: str) -> None:
    """UserError if nothing opens addresses of this kind."""
    if split_address(address).scheme not in WEB:
        _file_system(address)


def has_changed(before: str, now: str) -> bool:
    """Whether two states that `fetch` or `stamp_of` gave differ in what both tell."""
    told_before, told_now = (json.loads(stamp or "{}") for stamp in (before, now))
    both = [name for name in _STATES if name in told_before and name in told_now]
    return bool(both) and told_before[both[0]] != told_now[both[0]]


def _stamp(facts: Mapping[str, Any]) -> str:
    told = {
        state: next((str(facts[name]) for name in names if facts.get(name)), "") for state, names in _STATES.items()
    }
    return json.dumps({state: text for state, text in told.items() if text})


def _timeout() -> tuple[int, int]:
    return SECONDS_TO_CONNECT, SECONDS_TO_ANSWER


def _session() -> requests.Session:
    """This thread's own, since sessions may not be shared; it keeps connections open."""
    if not hasattr(_own, "session"):
        _own.session = requests.Session()
        _own.session.headers.update(HEADERS)
        for scheme in WEB:
            _own.session.mount(f"{scheme}://", HTTPAdapter(max_retries=0))
    session: requests.Session = _own.session
    return session


def _check_status(answer: requests.Response) -> None:
    if answer.ok:
        return
    words = f"{answer.status_code} {answer.reason or ''}".strip()
    if answer.status_code in PASSING_STATUSES or answer.status_code >= 500:
        wanted = answer.headers.get("Retry-After", "")
        raise Hindered(words, float(wanted) if wanted.isdecimal() else 0.0)
    raise Absent(f"cannot be fetched: {words}")


@contextmanager
def _web_errors() -> Iterator[None]:
    """Absent or Hindered in the place of the errors of requests."""
    try:
        yield
    except (
        requests.exceptions.SSLError,
        requests.exceptions.InvalidURL,
        requests.exceptions.InvalidSchema,
        requests.exceptions.TooManyRedirects,
    ) as error:
        raise Absent(f"cannot be fetched: {_in_short(error)}") from None
    except requests.exceptions.Timeout:
        raise Hindered("it does not answer in time") from None
    except requests.exceptions.RequestException as error:
        raise Hindered(_in_short(error)) from None


@contextmanager
def _file_errors() -> Iterator[None]:
    """Absent or Hindered in the place of the errors of a file system."""
    try:
        yield
    except (Absent, Hindered, UserError):
        raise
    except FileNotFoundError:
        raise Absent("cannot be fetched: there is no such file") from None
    except PermissionError as error:
        advice = f" ({_NO_KEYS})" if _is_anonymous() else ""
        raise Absent(f"cannot be fetched: {_in_short(error)}{advice}") from None
    except _LASTING as error:
        raise Absent(f"cannot be fetched: {_in_short(error)}") from None
    except Exception as error:  # file systems raise whatever the library below them does
        if getattr(error, "errno", None) in _OWN_DISK:
            raise
        raise Hindered(_in_short(error)) from None


def _file_system(address: str) -> tuple[Any, str]:
    """(the file system that opens this address, the path in it). One that works asynchronously is shared by all
    threads; others are made for each."""
    scheme = split_address(address).scheme
    try:
        kind = fsspec.get_filesystem_class(scheme)
        if kind.async_impl:
            with _opening:
                return _shared_system(scheme), kind._strip_protocol(address)
        return fsspec.filesystem(scheme), kind._strip_protocol(address)
    except (ValueError, ImportError) as error:
        raise UserError(f"Nothing here opens addresses that begin with {scheme}:// ({_in_short(error)}).") from None


@functools.cache
def _shared_system(scheme: str) -> Any:
    is_public = scheme in S3 and _is_anonymous()
    return fsspec.filesystem(scheme, anon=True) if is_public else fsspec.filesystem(scheme)


@functools.cache
def _is_anonymous() -> bool:
    """Whether there are no keys for S3, so that public buckets alone can be read."""
    if importlib.util.find_spec("botocore") is None:
        return False
    # By name, since it is an extra.
    return importlib.import_module("botocore.session").get_session().get_credentials() is None


def _in_short(error: Exception) -> str:
    """The last message in a chain of errors, in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words.rpartition(": ")[2].strip("()'\" ") or words
