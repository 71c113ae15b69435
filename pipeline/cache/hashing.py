"""Short names for what something is made from, versions of libraries, and checksums of files."""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any


def content_key(key_parts: Mapping[str, Any]) -> str:
    """A short name for these parts, the same on every machine and in any order."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def library_versions(*packages: str) -> dict[str, str]:
    """The installed versions of these packages, as major.minor: patches and builds change no numbers."""
    return {name: ".".join(metadata.version(name).partition("+")[0].split(".")[:2]) for name in packages}


def file_checksum(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
