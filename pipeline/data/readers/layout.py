"""Finds the class folders of a folder of pictures: at its top, in split folders, or a level further down."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pipeline.data.readers.split_names import is_neutral, is_of_no_class, parse_split_name
from pipeline.data.readers.tree import SetAside, Tree, join, shown
from pipeline.system.errors import UserError
from pipeline.system.text import plain_name


class ClassFolder(NamedTuple):
    """A folder whose pictures, at any depth, are of one class and one split; `split` is "" if none is given."""

    path: str
    label: str
    split: str


@dataclass
class Layout:
    """The class folders of a tree, what lies outside them with the reason, and `notes`, sentences for the user."""

    classes: list[ClassFolder] = field(default_factory=list)
    set_aside: SetAside = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_layout(tree: Tree) -> Layout:
    """The layout of `tree`; UserError for split folders that contradict each other or hold no classes to learn, and
    for class folders that hold split folders or classes themselves."""
    layout, below = Layout(), ""
    while True:
        folders, files = tree.top(below)
        layout.set_aside += [(shown(join(below, name)), "lies outside the class folders") for name in files]
        splits = _split_folders(tree, below, folders)
        inner = None if splits else _wrapped(tree, below, folders)
        if inner is None:
            break
        beside = [name for name in folders if name != inner]
        layout.set_aside += [(shown(join(below, name)), f"lies beside {inner}, with all pictures") for name in beside]
        below = join(below, inner)
    if splits:
        beside = [name for name in folders if name not in splits]
        layout.set_aside += [(shown(join(below, name)), "lies beside the split folders") for name in beside]
        # Training comes first, since its classes say which folders of the others are classes.
        for folder, split in sorted(splits.items(), key=lambda item: (item[1] != "train", item[0])):
            _add_split(layout, tree, join(below, folder), split)
        layout.classes.sort(key=lambda one: one.path.split("/"))
    else:
        layout.classes = _classes_over_splits(tree, below, folders) or _classes(layout, tree, below, "")
    return layout


def _add_split(layout: Layout, tree: Tree, folder: str, split: str) -> None:
    inner = _unwrapped(tree, folder, split)
    if split != "train" and not _is_labelled(layout, tree, inner):
        count = len(tree.find(inner).pictures)
        if count:
            reason = f"holds {count:,} pictures in no folder of a class"
            layout.set_aside.append((shown(folder), reason))
            layout.notes.append(
                f"{shown(str(tree.root / folder))} {reason}, so that they are not used; a trained model labels them "
                "by the command predict."
            )
        return
    strays = tree.top(inner)[1]
    layout.set_aside += [(shown(join(inner, name)), "lies outside the class folders") for name in strays]
    layout.classes += _classes(layout, tree, inner, split)


def _is_labelled(layout: Layout, tree: Tree, below: str) -> bool:
    labels = {plain_name(name) for name in tree.full_folders(below)}
    known = {one.label for one in layout.classes}
    return bool(labels) and (bool(labels & known) or not all(is_of_no_class(label) for label in labels))


def _classes(layout: Layout, tree: Tree, below: str, split: str) -> list[ClassFolder]:
    """The folders in the folder `below` as classes; notes it where they hold nothing but folders."""
    folders = tree.top(below)[0]
    if split in ("", "train"):
        note = _check_level(tree, below, folders)
        layout.notes += [note] if note else []
    for name in folders:
        if not plain_name(name):
            raise UserError(f"{tree.root / below} has a folder whose name is blanks alone, {name!r}; name its class.")
    return [ClassFolder(join(below, name), plain_name(name), split) for name in folders]


def _check_level(tree: Tree, below: str, folders: Sequence[str]) -> str | None:
    """A note if all `folders` with pictures hold nothing but folders; UserError if those look like the classes: several
    of them hold folders of the same names."""
    if any(tree.has_pictures_itself(join(below, name)) for name in folders):
        return None
    inner = {name: list(tree.full_folders(join(below, name))) for name in folders}
    inner = {name: names for name, names in inner.items() if names}
    # Folders of one class are often numbered: days, patients.
    counts = Counter(
        plain_name(one).lower()
        for names in inner.values()
        for one in names
        if not is_neutral(one) and not any(letter.isdigit() for letter in one)
    )
    if not inner or (len(inner) > 1 and len({one for names in inner.values() for one in names}) == 1):
        return None
    first, names = next(iter(inner.items()))
    where = shown(str(tree.root / below))
    holds = (
        f"In {where} every class folder ({_some(list(inner))}) holds nothing but folders ({_some(names)} in "
        f"{shown(first)})"
    )
    if len(inner) == 1 or sum(count > 1 for count in counts.values()) > 1:
        raise UserError(
            f"{holds}, which look like the classes; name a folder whose own folders are the classes, such as "
            f"{shown(str(tree.root / join(below, first)))}, name split folders train, valid and test, or give a table."
        )
    return f"{holds}; if these are the classes, name a folder whose own folders they are, or give a table."


def _classes_over_splits(tree: Tree, below: str, folders: Sequence[str]) -> list[ClassFolder]:
    """The class folders of cat/train, cat/test, dog/train …; none if the folders are not so."""
    classes: list[ClassFolder] = []
    for name in folders:
        folder = join(below, name)
        parsed = {inner: parse_split_name(inner) for inner in tree.full_folders(folder)}
        splits = {inner: one.split for inner, one in parsed.items() if one is not None and not one.others}
        is_split = len(splits) == len(parsed) == len(set(splits.values())) and "train" in splits.values()
        if not is_split or tree.has_pictures_itself(folder):
            return []
        classes += [ClassFolder(join(folder, inner), plain_name(name), split) for inner, split in splits.items()]
    return classes


def _split_folders(tree: Tree, below: str, folders: Sequence[str]) -> dict[str, str]:
    """The split folders among `folders` with the names of their splits; empty if there are none."""
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in folders:
        parsed = parse_split_name(name)
        if parsed is not None:
            groups.setdefault(parsed.others, {})[name] = parsed.split
    for others in sorted(groups, key=lambda words: (len(words), words)):
        given = {name: split for name, split in groups[others].items() if tree.is_full(join(below, name))}
        beside = [
            name
            for name in folders
            if name not in groups[others] and not is_of_no_class(name) and tree.is_full(join(below, name))
        ]
        if given and _are_splits(tree, below, given, beside, bool(others)):
            return _one_for_each(tree, below, given)
    return {}


def _are_splits(tree: Tree, below: str, given: Mapping[str, str], beside: Sequence[str], has_others: bool) -> bool:
    """Whether these folders are splits, and not classes of such names `beside` others."""
    kinds = set(given.values())
    if "train" not in kinds:
        if beside or (has_others and not any(_count_classes(tree, join(below, name)) for name in given)):
            return False
        raise UserError(
            f"{tree.root / below} has a folder {min(given)}/ but none called train/; add one, or rename that."
        )
    trainers = [join(below, name) for name, split in given.items() if split == "train"]
    most = max(_count_classes(tree, folder) for folder in trainers)
    if len(kinds) > 1:
        return most > 0 or not (beside and has_others)
    if not beside:
        return True
    is_class = most < 2 or has_others or any(tree.has_pictures_itself(folder) for folder in trainers)
    are_flat = all(tree.has_pictures_itself(join(below, name)) for name in beside)
    return not is_class and (are_flat or len(beside) == 1)


def _one_for_each(tree: Tree, below: str, given: Mapping[str, str]) -> dict[str, str]:
    """`given` with one folder for each split: of two, the one with class folders. UserError if both have some."""
    chosen: dict[str, str] = {}
    for split in dict.fromkeys(given.values()):
        named = [name for name in given if given[name] == split]
        best = [name for name in named if _count_classes(tree, join(below, name))] or named
        if len(best) > 1:
            raise UserError(
                f"{tree.root / below} has two folders for the same split, {best[0]}/ and {best[1]}/; keep one of them."
            )
        chosen[best[0]] = split
    return chosen


def _count_classes(tree: Tree, folder: str) -> int:
    """The number of class folders in a split folder, 2 standing for any more."""
    parsed = parse_split_name(folder.rpartition("/")[2])
    return len(list(islice(tree.full_folders(_unwrapped(tree, folder, parsed.split if parsed else "")), 2)))


def _unwrapped(tree: Tree, folder: str, split: str) -> str:
    """The folder of the class folders: seg_train/seg_train and train/images of seg_train and train."""
    while (name := _only_folder(tree, folder)) is not None:
        parsed = parse_split_name(name)
        is_same = name.lower() == folder.rpartition("/")[2].lower() or (parsed is not None and parsed.split == split)
        if not (is_same or is_neutral(name)) or next(tree.full_folders(join(folder, name)), None) is None:
            break
        folder = join(folder, name)
    return folder


def _wrapped(tree: Tree, below: str, folders: Sequence[str]) -> str | None:
    """The one folder with pictures, if it only wraps the class or split folders; None otherwise."""
    name = _only_folder(tree, below)
    if name is None or tree.has_pictures_itself(join(below, name)):
        return None
    parents = {below.rpartition("/")[2].lower(), tree.root.name.lower()}
    inner = tree.top(join(below, name))[0]
    if is_neutral(name) or name.lower() in parents or _split_folders(tree, join(below, name), inner):
        return name
    return None


def _only_folder(tree: Tree, below: str) -> str | None:
    """The only folder with pictures in a folder that has none itself."""
    names = list(islice(tree.full_folders(below), 2))
    return names[0] if len(names) == 1 and not tree.has_pictures_itself(below) else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
