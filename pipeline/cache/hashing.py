"""Short names for what something is made from, and checksums of files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def content_key(key_parts: Mapping[str, Any]) -> str:
    """A short name for these parts, the same on every machine and in any order."""
    text = json.dumps(key_parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
