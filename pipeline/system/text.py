"""Names as they are compared: those that look the same are the same."""

import re
import unicodedata

# Blanks, and characters that take no room, such as a byte order mark.
_BLANK = r"[\s\u200b-\u200f\u2060\ufeff]+"
_ENDS = re.compile(f"^{_BLANK}|{_BLANK}$")


def plain_name(name: str) -> str:
    """`name` in Unicode's form NFC, without blanks at its ends: how a label or a group is stored and compared."""
    return _ENDS.sub("", unicodedata.normalize("NFC", name))
