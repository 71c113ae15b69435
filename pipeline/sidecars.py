"""What lies beside a store `<key>/`, under names that begin with its key.

`<key>.lock` is held while the store is built or looked over. `<key>.uses` names the runs that used it, and was modified
when it was last used. `<key>.suspect` says that its content has to be looked at when it is next opened.
`.<key>.building-…` and `.<key>.discarded-…` are folders on their way to being, and not being, the store.
"""

import time
import uuid
from pathlib import Path

LOCK, USES, SUSPECT = ".lock", ".uses", ".suspect"
BUILDING, DISCARDED = "building", "discarded"


def beside(place: Path, suffix: str) -> Path:
    """The file with this suffix beside a store."""
    return place.with_name(place.name + suffix)


def new_name(place: Path, purpose: str) -> Path:
    """A name beside a store that nothing has yet, for a folder that is being built or has been discarded."""
    return place.with_name(f".{place.name}.{purpose}-{uuid.uuid4().hex[:8]}")


def half_done(place: Path) -> list[Path]:
    """The folders that those who built or removed a store have not been through with."""
    return [left for purpose in (BUILDING, DISCARDED) for left in place.parent.glob(f".{place.name}.{purpose}-*")]


def note_use(place: Path, run_id: str) -> None:
    """Remember that a run used the store at `place`, and that it was used now."""
    if run_id not in used_by(place):
        with beside(place, USES).open("a", encoding="utf-8") as file:  # a short line is written in one piece
            file.write(f"{run_id}\n")
    beside(place, USES).touch()


def used_by(place: Path) -> list[str]:
    """The ids of the runs that used a store, the first one first."""
    uses = beside(place, USES)
    return list(dict.fromkeys(uses.read_text(encoding="utf-8").split())) if uses.exists() else []


def last_used(place: Path) -> float:
    """When a store was last opened, or else last changed, in seconds since 1970."""
    uses = beside(place, USES)
    try:
        return (uses if uses.exists() else place).stat().st_mtime
    except OSError:  # it has just gone
        return time.time()
