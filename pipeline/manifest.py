"""The manifest: the ordered list of the pictures of a run, each with its label, split and content hash."""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.decode import GREY_MODES
from pipeline.errors import UserError
from pipeline.inspection import inspect_all
from pipeline.sources import Listing
from pipeline.splits import stratified_split

MOST_NAMED = 10
COLUMNS = ["path", "label", "split", "hash", "width_px", "height_px", "mode"]


@dataclass(frozen=True)
class Manifest:
    """`table` has a row per picture (see COLUMNS; paths are below `root`), `classes` the labels in the order of
    the network's outputs, `set_aside` the files left out (`path`, `reason`)."""

    name: str
    root: Path
    classes: list[str]
    table: pd.DataFrame
    set_aside: pd.DataFrame

    @property
    def digest(self) -> str:
        """A hash of the pictures' contents, order, labels and splits; where they lie does not matter."""
        text = json.dumps([self.classes, self.table[["hash", "label", "split"]].to_numpy().tolist()])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def is_grey(self) -> bool:
        """Whether no picture has colour, so that one channel holds all of it."""
        return bool(self.table["mode"].isin(list(GREY_MODES)).all())

    @property
    def paths(self) -> list[Path]:
        """Where each picture lies."""
        return [self.root / path for path in self.table["path"]]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Each picture's class, as its index in `classes`."""
        index = {label: number for number, label in enumerate(self.classes)}
        return np.array([index[label] for label in self.table["label"]], dtype=np.int64)

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Row numbers of one split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy()).astype(np.int64)


def build_manifest(
    listing: Listing, valid_fraction: float, test_fraction: float, max_bad: float, seed: int
) -> Manifest:
    """Open every picture of `listing`, set the bad ones aside, and split the rest where it is not split.

    A listing with a train but no valid split gives `valid_fraction` of its training pictures to validation.
    Raises UserError if more than `max_bad` of the pictures are bad, or a class has too few good ones.
    """
    inspected = inspect_all([listing.root / path for path in listing.paths])
    table = pd.DataFrame(
        {
            "path": listing.paths,
            "label": listing.labels,
            "split": listing.splits if listing.splits is not None else "",
            "hash": [one.hash for one in inspected],
            "width_px": [one.width_px for one in inspected],
            "height_px": [one.height_px for one in inspected],
            "mode": [one.mode for one in inspected],
            "error": [one.error for one in inspected],
        }
    )
    bad = table[table["error"] != ""]
    if len(bad) > max_bad * len(table):
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} of {len(table)} pictures in {listing.root} cannot be used, more than data.max_bad = "
            f"{max_bad:g} allows; the first is {first['path']}, which {first['error']}. Mend or remove them."
        )
    good = table[table["error"] == ""].reset_index(drop=True)
    set_aside = [*listing.set_aside, *bad[["path", "error"]].itertuples(index=False, name=None)]
    good["split"] = _splits(good, listing.splits is not None, valid_fraction, test_fraction, seed)
    classes = sorted(set(good["label"]))
    _check_enough(good, sorted(set(listing.labels)), listing.root)
    return Manifest(
        listing.name, listing.root, classes, good[COLUMNS], pd.DataFrame(set_aside, columns=["path", "reason"])
    )


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.csv`, `set_aside.csv` and `manifest.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest.table.to_csv(folder / "manifest.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    manifest.set_aside.to_csv(folder / "set_aside.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    facts = {
        "name": manifest.name,
        "root": str(manifest.root),
        "classes": manifest.classes,
        "digest": manifest.digest,
    }
    (folder / "manifest.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """What `save_manifest` wrote; UserError if it is damaged, is not what was written, or leaves its root."""
    as_text = {"path": str, "label": str, "split": str, "hash": str, "mode": str}
    try:
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        table = pd.read_csv(folder / "manifest.csv", dtype=as_text, keep_default_na=False)
        set_aside = pd.read_csv(folder / "set_aside.csv", dtype=str, keep_default_na=False)
        manifest = Manifest(facts["name"], Path(facts["root"]), facts["classes"], table, set_aside)
        is_whole = manifest.digest == facts["digest"] and list(table.columns) == COLUMNS
        paths = [Path(path) for path in table["path"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The manifest in {folder} cannot be read ({error}); run precompute again.") from None
    escaping = next((path for path in paths if path.is_absolute() or ".." in path.parts or not path.name), None)
    if escaping is not None:
        raise UserError(f"The manifest in {folder} names {escaping}, outside its folder; run precompute again.")
    if not is_whole:
        raise UserError(f"The manifest in {folder} was changed after it was written; run precompute again.")
    return manifest


def describe_manifest(manifest: Manifest) -> str:
    """How many pictures each class has in each split, and which files were set aside, in lines for the console."""
    counts = pd.crosstab(manifest.table["label"], manifest.table["split"])
    counts = counts[[split for split in ("train", "valid", "test") if split in counts]]
    counts.index.name = counts.columns.name = None
    lines = [f"  {line}" for line in counts.to_string().splitlines()]
    if len(manifest.set_aside):
        lines.append(f"  set aside: {len(manifest.set_aside)}")
    for path, reason in manifest.set_aside.head(MOST_NAMED).itertuples(index=False, name=None):
        lines.append(f"    {path}: {reason}")
    if len(manifest.set_aside) > MOST_NAMED:
        lines.append("    and more, in manifest/set_aside.csv of the run")
    return "\n".join(lines)


def _splits(
    table: pd.DataFrame, is_given: bool, valid_fraction: float, test_fraction: float, seed: int
) -> Sequence[str]:
    labels = [int(code) for code in pd.factorize(table["label"], sort=True)[0]]
    hashes = list(table["hash"])
    if not is_given:
        fractions = {"test": test_fraction, "valid": valid_fraction}
        return stratified_split(labels, hashes, fractions, "train", seed)
    splits = list(table["split"])
    if "valid" in splits:
        return splits
    train = [row for row, split in enumerate(splits) if split == "train"]
    parts = stratified_split(
        [labels[row] for row in train], [hashes[row] for row in train], {"valid": valid_fraction}, "train", seed
    )
    for row, part in zip(train, parts, strict=True):
        splits[row] = part
    return splits


def _check_enough(table: pd.DataFrame, labels: list[str], root: Path) -> None:
    for split in ("train", "valid"):
        counts = table.loc[table["split"] == split, "label"].value_counts()
        for label in labels:
            if counts.get(label, 0) == 0:
                raise UserError(
                    f"The class {label} has no good picture left to {'train' if split == 'train' else 'validate'} with "
                    f"in {root}; add pictures, or raise data.valid_fraction."
                )
