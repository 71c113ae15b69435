"""Names of metrics for labels, whatever these hold."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST_LABEL, DIGEST = 100, 8
# What any tracking server takes as one part of a metric's name.
_PLAIN = re.compile(r"(?!\.{1,2}$)(?! )[\w.\- ]*[\w.\-]")
_WITH_DIGEST = re.compile(rf".*-[0-9a-f]{{{DIGEST}}}", re.DOTALL)


def metric_names(prefix: str, labels: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """A metric's name for each of `labels`, such as `pictures/cat`: valid, and another one for each label.

    A label that no name can hold has a digest of it in its name. So have those that some databases take for the same
    as another label or as one of the words `taken`, such as those that differ in case or in accents.
    """
    alike = Counter(_folded(label) for label in (*labels, *taken))
    return [
        f"{prefix}/{label if _is_plain(label) and alike[_folded(label)] == 1 else _digested(label)}" for label in labels
    ]


def _is_plain(label: str) -> bool:
    is_own = len(label) <= LONGEST_LABEL and _WITH_DIGEST.fullmatch(label) is None
    return is_own and _PLAIN.fullmatch(label) is not None


def _folded(label: str) -> str:
    letters = unicodedata.normalize("NFKD", label.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).strip()


def _digested(label: str) -> str:
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    words = re.sub(r"[^\w.\-]+", "_", label).strip("_.")[:LONGEST_LABEL]
    return f"{words or 'label'}-{digest}"
