"""The names that people give to splits: Training, val, test_images, seg_train, trainset."""

import re
from typing import NamedTuple

WORDS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "validate": "valid",
    "dev": "valid", "development": "valid", "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
# Words that say nothing of what is in a folder.
NEUTRAL = {
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "jpg", "jpeg", "png", "pic", "pics",
    "picture", "pictures", "photo", "photos", "split", "splits", "folder", "archive", "input", "raw", "class",
    "classes", "all", "the", "my",
}  # fmt: skip
# Names of folders with pictures of no known class, beside NEUTRAL and WORDS.
UNKNOWN = {"unknown", "unlabeled", "unlabelled", "unclassified", "none", "pred", "predict"}
_WORDS, _NEUTRAL = ("|".join(sorted(words, key=len, reverse=True)) for words in (WORDS, NEUTRAL))
_GLUED = re.compile(f"(?:{_NEUTRAL})?({_WORDS})(?:{_NEUTRAL})?")


class SplitName(NamedTuple):
    """A `split` (train, valid or test), and the other words of the folder's name, such as ("seg",) of seg_train."""

    split: str
    others: tuple[str, ...]


def parse_split_name(name: str) -> SplitName | None:
    """The split that a folder is named after, or None."""
    splits, others = set(), []
    for word in _words(name):
        glued = _GLUED.fullmatch(word)
        if glued:
            splits.add(WORDS[glued[1]])
        elif word not in NEUTRAL and not word.isdecimal():
            others.append(word)
    return SplitName(splits.pop(), tuple(others)) if len(splits) == 1 else None


def split_of(text: str) -> str | None:
    """The split in a cell of a table, "" for an empty cell, and None for what is no split."""
    parsed = parse_split_name(text)
    if parsed is not None and not parsed.others:
        return parsed.split
    return None if text.strip() else ""


def is_neutral(name: str) -> bool:
    """Whether a folder's name says nothing of what is in it, such as images."""
    return bool(_words(name)) and set(_words(name)) <= NEUTRAL


def is_of_no_class(name: str) -> bool:
    """Whether a folder's name says that the pictures in it have no label, such as unknown, images or test."""
    parsed = parse_split_name(name)
    is_unknown = bool(_words(name)) and set(_words(name)) <= NEUTRAL | UNKNOWN
    return is_unknown or (parsed is not None and not parsed.others)


def _words(name: str) -> list[str]:
    """`trainSet_2017` as ["train", "set", "2017"]."""
    return re.findall(r"[^\W\d_]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
