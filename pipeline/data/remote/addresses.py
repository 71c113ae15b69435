"""Addresses of pictures: which can be opened, what they are called in messages, and their places in the cache."""

import hashlib
import importlib.util
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from pipeline.cache.location import cache_folder
from pipeline.cache.maintenance import PICTURES
from pipeline.system.errors import UserError

WEB = ("http", "https")
# What fsspec opens an address with, where it is a package of its own.
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
}
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.IGNORECASE | re.DOTALL)
# Parts of an address that say who asks, and change each time that it is signed anew.
_SIGNATURE = re.compile(r"(x-amz-|x-goog-)", re.IGNORECASE)
# What not every disk takes in a name.
_UNFIT = re.compile(r'[\x00-\x1f\x7f%/\\:*?"<>|]')
_LONGEST_NAME_BYTES, _KEPT_BYTES = 120, 60


class Parts(NamedTuple):
    """An address: `scheme` is what stands before ://, `host` a server or bucket without name and password; `query` is
    what a web server is asked beside the path."""

    scheme: str
    host: str
    path: str
    query: str


def is_address(text: str) -> bool:
    """Whether this is the address of something that may lie on no disk; file:// does."""
    found = _ADDRESS.match(text)
    return found is not None and found[1].lower() != "file"


def split_address(address: str) -> Parts:
    """The parts of an address, without what says who asks: name, password and signature."""
    scheme, _, rest = address.partition("://")
    scheme = scheme.lower()
    host, _, path = rest.partition("/")
    host, query = host.rpartition("@")[2], ""
    if scheme in WEB:  # names of others may have these characters
        path, _, query = path.partition("#")[0].partition("?")
        query = "&".join(part for part in query.split("&") if part and not _SIGNATURE.match(part))
        host = host.lower()
    return Parts(scheme, host, path, query)


def has_secrets(address: str) -> bool:
    """Whether the address holds a name, a password, or a signature."""
    scheme, _, rest = address.partition("://")
    asked = rest.partition("#")[0].partition("?")[2].split("&") if scheme.lower() in WEB else []
    return "@" in rest.partition("/")[0] or any(_SIGNATURE.match(part) for part in asked)


def without_secrets(address: str) -> str:
    """The address without name, password and signature, to be shown and kept."""
    parts = split_address(address)
    return f"{parts.scheme}://{parts.host}/{parts.path}{'?' if parts.query else ''}{parts.query}"


def check_address(address: str, where: str) -> None:
    """UserError if `address`, which stands at `where`, has no server or no path, or wants a package that is missing."""
    scheme, host, path, _ = split_address(address)
    if not host or not path.strip("/"):
        raise UserError(f"{where} names {without_secrets(address)}, which is no whole address; mend it.")
    package = _PACKAGES.get(scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        file = "-r requirements-s3.txt" if package == "s3fs" else package
        raise UserError(
            f"{where} names {without_secrets(address)}, and the package {package}, which opens such addresses, is not "
            f"installed; run pip install {file}."
        )


def check_source(address: str, option: str) -> None:
    """UserError if the address of a table, given as the `option`, is none that can be opened, or holds a password."""
    check_address(address, option)
    if has_secrets(address):
        raise UserError(
            f"{option} is {without_secrets(address)} with a password or a signature in it, which the run's page would "
            "show; leave that out, and put the password into ~/.netrc."
        )


def places_of(addresses: Sequence[str]) -> tuple[str, list[str]]:
    """(the folder that all of `addresses` have in common, the path of each below it): in a folder of the cache's
    PICTURES for their server or bucket, and named as they are. Different addresses have different places."""
    whole = [split_address(address) for address in addresses]
    places = [_place(parts) for parts in whole]
    counts = Counter(place.lower() for place in places)  # where a disk takes both cases for one
    places = [
        _with_hash(place, parts) if counts[place.lower()] > 1 or _is_odd(parts) else place
        for place, parts in zip(places, whole, strict=True)
    ]
    common = posixpath.commonpath([posixpath.dirname(place) for place in places])
    return common, [posixpath.relpath(place, common or ".") for place in places]


def pictures_folder() -> Path:
    """The folder of the cache in which fetched pictures are."""
    return Path(os.path.abspath(cache_folder())) / PICTURES


def address_beside(table: str, text: str, where: str) -> str:
    """The address of a picture that the table at the address `table` names: as it is, or relative to the table's
    folder; UserError if it is elsewhere."""
    if is_address(text):
        return text
    path = posixpath.normpath(text.replace("\\", "/"))
    if path.startswith(("/", "../")) or path in (".", ".."):
        raise UserError(f"{where} names {text}, outside the table's folder; give its address.")
    scheme = split_address(table).scheme
    folder = table.partition("?")[0] if scheme in WEB else table
    return f"{folder.rpartition('/')[0]}/{quote(path) if scheme in WEB else path}"


def common_address(addresses: Sequence[str]) -> str:
    """The address of the folder that all of `addresses` are in; "" if they have none in common."""
    whole = [split_address(address) for address in addresses]
    if len({(parts.scheme, parts.host) for parts in whole}) != 1:
        return ""
    common = posixpath.commonpath([posixpath.dirname(parts.path) for parts in whole])
    return f"{whole[0].scheme}://{whole[0].host}/{common}"


def _place(parts: Parts) -> str:
    """server/folders/name, each as a name that any disk takes."""
    names = parts.path.split("/")
    if parts.scheme in WEB:
        names = [unquote(name) for name in names]
    return "/".join([_name(f"{parts.scheme}+{parts.host}"), *(_name(name) for name in names if name)])


def _name(text: str) -> str:
    name = _UNFIT.sub(lambda found: f"%{ord(found[0]):02X}", text)
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name.encode()) <= _LONGEST_NAME_BYTES:
        return name
    start = name.encode()[:_KEPT_BYTES].decode(errors="ignore")
    return f"{start}~{_hash(text)}{posixpath.splitext(name)[1][:10]}"


def _is_odd(parts: Parts) -> bool:
    """Whether the name of the place does not say all, or may be that of a folder."""
    return bool(parts.query) or not posixpath.splitext(parts.path)[1] or "//" in parts.path


def _with_hash(place: str, parts: Parts) -> str:
    start, ending = posixpath.splitext(place)
    return f"{start}~{_hash('/'.join(parts))}{ending}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
