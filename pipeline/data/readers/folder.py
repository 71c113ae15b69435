"""Lists the pictures of a folder: of class folders, maybe within split folders; or of any folder of pictures."""

from collections.abc import Collection
from pathlib import Path

from pipeline.data.readers.layout import find_layout
from pipeline.data.readers.listing import Listing
from pipeline.data.readers.paths import as_written, set_name, without_scheme
from pipeline.data.readers.tree import Found, Tree, cannot_be_read, shown
from pipeline.system.console import say
from pipeline.system.errors import UserError


def list_folder(root: Path, extensions: Collection[str]) -> Listing:
    """The files below `root` that end in one of `extensions` (lower case), by class folder, sorted by path.

    Links are followed, but to each folder once for a class, so that loops end. Hidden files and folders are left out.
    UserError for a class folder without pictures or that cannot be read, and as `find_layout` raises it.
    """
    tree = Tree(root, extensions)
    layout = find_layout(tree)
    set_aside = layout.set_aside
    rows: list[tuple[str, str, str]] = []
    for folder, label, split in layout.classes:
        found = tree.find(folder)
        set_aside += [(shown(path), reason) for path, reason in sorted(found.unreadable + found.others)]
        if not found.pictures:
            _report_empty(root / folder, label, extensions, found)
        rows += [(path, label, split) for path in found.pictures]
    paths, labels, splits = ([row[column] for row in rows] for column in range(3))
    splits_given = splits if any(splits) else None
    return Listing(set_name(root), root, paths, labels, splits_given, set_aside, notes=layout.notes)


def list_pictures(data: str, extensions: Collection[str]) -> tuple[Path, list[Path]]:
    """The folder `data`, and all pictures at any depth below it, sorted, by the rules by which those of a class are
    listed; what cannot be read is among them, and what is left out is reported. UserError if there is no such folder
    or no picture in it."""
    root = _existing_folder(data)
    found = Tree(root, {extension.lower() for extension in extensions}).find("")
    if not found.pictures and not found.unreadable:
        raise UserError(
            f"data is {data}, where no file, at any depth, ends in {', '.join(extensions)}; name a folder of pictures."
        )
    if found.others:
        path, reason = found.others[0]
        say(f"left out: {len(found.others):,} of the files in {shown(str(root))}, such as {shown(path)}: {reason}")
    return root, sorted(root / path for path in (*found.pictures, *dict(found.unreadable)))


def find_folder(data: str) -> Path:
    """The folder `data`, absolute, with its links kept; UserError if there is none, or no file in it at any depth."""
    root = _existing_folder(data)
    if not Tree(root, None).is_full(""):
        raise UserError(f"data is {data}, where no file, at any depth, is a picture; name a folder of pictures.")
    return root


def _existing_folder(data: str) -> Path:
    try:
        root = as_written(Path(without_scheme(data)))
        root.resolve()  # raises an error for what no file can be called, and for loops of links
        what = "" if root.is_dir() else "is a file, not a folder" if root.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:
        what = f"cannot be read ({error})"
    if what:
        raise UserError(f"data is {data}, which {what} (looked for in {Path.cwd()}); name a folder of pictures.")
    Tree(root, None).top("")  # raises an error if it cannot be read
    return root


def _report_empty(folder: Path, label: str, extensions: Collection[str], found: Found) -> None:
    if found.unreadable:
        path, reason = found.unreadable[0]
        raise cannot_be_read(folder, f"{shown(path)}: {reason.removeprefix('cannot be read: ')}")
    raise UserError(
        f"The class {shown(label)} has no picture: {shown(str(folder))} holds none that ends in "
        f"{', '.join(sorted(extensions))}; add some, or remove the folder."
    )
