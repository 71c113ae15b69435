"""Which pictures there are, before any is opened: the packaged set, or a folder tree.

Nothing is decoded here, so a mistake in a folder is told at once.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Listing:
    """Pictures by path below `root`, with their labels, their splits where given, and what is no picture."""

    name: str
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    set_aside: list[tuple[str, str]] = field(default_factory=list)


def list_source(source: str, extensions: Sequence[str]) -> Listing:
    """The pictures of `source`, "elpv" or a folder, sorted by path; UserError where one cannot train on them."""
    if source == "elpv":
        listing = _list_elpv()
    else:
        listing = _list_folder(source, {extension.lower() for extension in extensions})
    _check(listing, source)
    return listing


def _list_elpv() -> Listing:
    """Solar cells, "defective" where the defect probability is above 0.5 (Deitsch et al. 2019, section 4.1)."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise UserError(
            "data.source is elpv, but the package elpv-dataset is not installed; "
            "run 'pip install elpv-dataset' or name a folder of your own."
        )
    root = Path(package.origin).parent / "data"
    with (root / "labels.csv").open(encoding="utf-8") as file:
        rows = [line.split() for line in file if line.strip()]
    rows.sort()
    labels = ["defective" if float(row[1]) > 0.5 else "functional" for row in rows]
    return Listing("elpv", root, [row[0] for row in rows], labels, None)


def _list_folder(source: str, extensions: set[str]) -> Listing:
    root = _existing_folder(source)
    parents = _split_folders(root)
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    beside = [folder for folder in _folders(root) if parents and folder not in parents]
    set_aside = [(_below(root, folder), "lies beside the split folders") for folder in beside]
    for parent in [root, *parents]:
        strays = [parent / name for name in _names(parent, folders=False)]
        set_aside += [(_below(root, path), "lies outside the class folders") for path in strays]
    for parent in parents or {root: ""}:
        for class_folder in _folders(parent):
            found, others = _pictures(class_folder, extensions)
            if not found:
                raise UserError(
                    f"The class {class_folder.name} has no picture: {class_folder} holds none that ends in "
                    f"{', '.join(sorted(extensions))}; add some, or remove the folder."
                )
            paths += [str(path.relative_to(root)) for path in found]
            labels += [class_folder.name] * len(found)
            splits += [parents.get(parent, "")] * len(found)
            set_aside += [(_below(root, path), reason) for path, reason in others]
    return Listing(root.name, root, paths, labels, splits if parents else None, set_aside)


def _existing_folder(source: str) -> Path:
    try:
        root = Path(source).expanduser().resolve()
        if root.is_dir():
            return root
        what = "is a file, not a folder" if root.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:
        what = f"cannot be looked at ({error})"
    hint = "" if Path(source).is_absolute() else f" (looked for in {Path.cwd()})"
    raise UserError(f"data.source is {source}, which {what}{hint}; name a folder of class folders, or elpv.")


def _split_folders(root: Path) -> dict[Path, str]:
    """The folders of the splits with their splits' names; empty where the pictures do not come split."""
    folders = _folders(root)
    found = {folder: SPLITS[folder.name.lower()] for folder in folders if folder.name.lower() in SPLITS}
    given = list(found.values())
    if "train" not in given:
        if given and len(found) == len(folders):
            raise UserError(f"{root} has a folder {min(found).name}/ but none called train/; add one, or rename that.")
        return {}
    if len(given) != len(set(given)):
        raise UserError(f"{root} has two folders for the same split, such as valid/ and val/; keep one of them.")
    return found


def _names(root: Path, folders: bool) -> list[str]:
    """Names of the folders, or of the files, that lie in `root` itself, hidden ones left out."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() == folders and not path.name.startswith("."))


def _folders(parent: Path) -> list[Path]:
    return [parent / name for name in _names(parent, folders=True)]


def _pictures(folder: Path, extensions: set[str]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Files at any depth below `folder`: (pictures, others with the reason), both sorted, hidden ones left out."""
    found: list[Path] = []
    others: list[tuple[Path, str]] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if _printable(path) != str(path):
                others.append((path, "its name is not UTF-8"))
            elif path.suffix.lower() in extensions:
                found.append(path)
            else:
                others.append((path, f"{path.suffix or 'no ending'} is not in data.extensions"))
    return found, others


def _below(root: Path, path: Path) -> str:
    return _printable(path.relative_to(root))


def _printable(path: Path) -> str:
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def _check(listing: Listing, source: str) -> None:
    classes = sorted(set(listing.labels))
    if not classes:
        raise UserError(
            f"data.source is {source}, where there is no class folder with pictures; "
            "put the pictures of each class into a folder named after the class."
        )
    if len(classes) == 1:
        raise UserError(
            f"data.source is {source}, which has one class alone, {classes[0]}; "
            "a classifier needs two or more class folders."
        )
    for split in sorted(set(listing.splits or [])):
        present = {label for label, name in zip(listing.labels, listing.splits or [], strict=True) if name == split}
        missing = [label for label in classes if label not in present]
        if missing and split == "train":
            raise UserError(f"The class {missing[0]} has no picture in train/; add some, or remove its other folders.")
        if missing and split == "valid":
            raise UserError(f"The class {missing[0]} has no picture in the validation folder; add some.")
