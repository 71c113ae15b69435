"""The manifest: the ordered table of a run's pictures, each with its label, split and content hash."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.data.corrections import CORRECTED_COLUMNS, DROPPED, apply_corrections, count_corrections, note_unused
from pipeline.data.decode import GREY_MODES
from pipeline.data.deep import Choice, Span, choose_ranges, describe_ranges, kind_of, span_of_set
from pipeline.data.inspection import Inspected, inspect_all
from pipeline.data.readers.corrections_file import RELABEL
from pipeline.data.readers.listing import Listing
from pipeline.data.readers.soft_labels import CERTAIN_FROM
from pipeline.data.remote.addresses import common_address, pictures_folder, without_secrets
from pipeline.data.splits import MOVED_COLUMNS, SPLITS, assign_splits, contradictions
from pipeline.system.errors import UserError
from pipeline.system.tables import read_table, write_table

Duplicates: TypeAlias = Literal["move", "stop"]

COLUMNS = ["path", "label", "split", "hash", "width_px", "height_px", "mode", "group", "weight"]
SET_ASIDE_COLUMNS = ["path", "reason"]
SHARE = "share/"  # and a class's name: columns of a manifest with soft labels, after COLUMNS
ADDRESS_COLUMNS = ["path", "address"]
TEXT_COLUMNS = ("path", "label", "split", "hash", "mode", "group")
ROWS_AT_ONCE = 10_000
# Files that `describe_manifest` names.
MOST_NAMED = 10


def _no_rows(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns), dtype=str)


@dataclass(frozen=True)
class Manifest:
    """`table` has a row per picture (see COLUMNS and SHARE; paths are below `root`), `classes` the labels in the order
    of the network's outputs, `set_aside` the files left out (`path`, `reason`), `moved` the copies that were moved to
    another split (`path`, `moved_from`, `moved_to`, `same_as`), `drawn` the splits whose pictures the recipe's
    fractions choose, and not the source. Deep pictures are scaled from `ranges`; `spans` are those of the training
    pictures. `corrected` are the pictures that data.corrections relabels, keeps, or drops, which gives them the split
    DROPPED (CORRECTED_COLUMNS); `notes` are sentences for the user. `addresses`, by path, are those of pictures that
    are fetched to `root`, in the cache; none if they are on disk."""

    name: str
    root: Path
    classes: list[str]
    table: pd.DataFrame
    set_aside: pd.DataFrame
    moved: pd.DataFrame = field(default_factory=partial(_no_rows, MOVED_COLUMNS))
    drawn: tuple[str, ...] = ("valid", "test")
    ranges: dict[str, list[float]] = field(default_factory=dict)
    spans: dict[str, Span] = field(default_factory=dict)
    corrected: pd.DataFrame = field(default_factory=partial(_no_rows, CORRECTED_COLUMNS))
    notes: list[str] = field(default_factory=list)
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where the pictures come from: their folder, or the address that they have in common."""
        return common_address(list(self.addresses.values())) or str(self.root)

    @property
    def is_here(self) -> bool:
        """Whether the pictures seem to be on this machine."""
        return (self.paths[0] if self.addresses else self.root).exists()

    @property
    def digest(self) -> str:
        """A hash of the pictures' contents, order, labels, splits and weights, but not of their paths."""
        columns = ["hash", "label", "split", "weight", *self.share_columns]
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for start in range(0, len(self.table), ROWS_AT_ONCE):
            chunk = self.table[columns].iloc[start : start + ROWS_AT_ONCE]
            digest.update(json.dumps(chunk.to_numpy().tolist()).encode())
        return digest.hexdigest()

    @property
    def is_grey(self) -> bool:
        """Whether all pictures are grey, so that one channel is enough."""
        return bool(self.table["mode"].isin(list(GREY_MODES)).all())

    @property
    def paths(self) -> list[Path]:
        """The path of each picture."""
        return [self.root / path for path in self.table["path"]]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Each picture's class, as its index in `classes`."""
        codes = pd.Categorical(self.table["label"], categories=self.classes).codes
        return codes.astype(np.int64)

    @property
    def share_columns(self) -> list[str]:
        """The columns of `table` with the share of each class in a picture's label; none where labels are not soft."""
        return [f"{SHARE}{label}" for label in self.classes if f"{SHARE}{label}" in self.table]

    @property
    def shares(self) -> npt.NDArray[np.float32] | None:
        """The share of each class in each picture's label (pictures, classes), or None where labels are not soft."""
        return self.table[self.share_columns].to_numpy(dtype=np.float32) if self.share_columns else None

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Row numbers of one split."""
        return np.flatnonzero((self.table["split"] == split).to_numpy()).astype(np.int64)


def build_manifest(
    listing: Listing,
    valid_fraction: float,
    test_fraction: float,
    max_bad: float,
    seed: int,
    duplicates: Duplicates = "move",
    range_: Choice = "auto",
) -> Manifest:
    """Open every picture of `listing`, set the bad ones aside, and split those that have no split yet.

    Pictures of the same content in two classes are bad. Copies in two splits are moved to one of them. Raises
    UserError if more than `max_bad` of the pictures are bad, a class has too few good ones, or, if `duplicates` is
    "stop", the same content is in two classes or splits. `range_` is from what deep pictures are scaled.
    """
    table, errors = _inspected(listing)
    corrected = apply_corrections(table, listing.corrections)
    shares = _add_shares(table, listing)
    several_classes = {row: reason for row, reason in contradictions(table).items() if not errors[row]}
    errors.loc[list(several_classes)] = list(several_classes.values())
    bad = table.loc[errors != "", ["path"]].assign(reason=errors[errors != ""])
    if several_classes and duplicates == "stop":
        _stop_at_copies(table["path"].iloc[next(iter(several_classes))], next(iter(several_classes.values())))
    if len(bad) > max_bad * len(table):
        first = bad.iloc[0]
        raise UserError(
            f"{len(bad)} of {len(table)} pictures in {listing.root} cannot be used, more than data.max_bad = "
            f"{max_bad:g} allows; the first is {first['path']}, which {first['reason']}. Repair or remove them."
        )
    good = table[errors == ""].reset_index(drop=True) if len(bad) else table
    by_listed = good.assign(label=good["listed_label"])
    good["split"], moved = assign_splits(by_listed, valid_fraction, test_fraction, seed)
    good.loc[good["is_dropped"], "split"] = DROPPED
    if len(moved) and duplicates == "stop":
        first = moved.iloc[0]
        _stop_at_copies(
            first["path"], f"of {first['moved_from']} belongs with {first['same_as']}, of {first['moved_to']}"
        )
    # Of a set that comes split, validation pictures are taken from those to train on, and test pictures from none.
    given = set(listing.splits or [""])
    drawn = tuple(name for name in ("valid", "test") if name not in given and (name == "valid" or "" in given))
    _check_enough(good, sorted(set(listing.labels)), listing.root, drawn)
    set_aside = pd.DataFrame(listing.set_aside, columns=SET_ASIDE_COLUMNS)
    set_aside = pd.concat([set_aside, bad], ignore_index=True) if len(bad) else set_aside
    spans = _spans(good[good["split"] == "train"])
    ranges, table = choose_ranges(range_, spans), good[[*COLUMNS, *shares]]
    _release_memory()
    classes = sorted(set(good["label"]))
    notes = note_unused(listing.corrections, corrected)
    addresses = {path: without_secrets(listing.addresses[path]) for path in table["path"]} if listing.addresses else {}
    found = set_aside, moved, drawn, ranges, spans, corrected, notes, addresses
    return Manifest(listing.name, listing.root, classes, table, *found)


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.csv`, `set_aside.csv`, `duplicates.csv`, `manifest.json`, and `corrections.csv` if there are any,
    and `addresses.csv` if the pictures have some, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"manifest": manifest.table, "set_aside": manifest.set_aside, "duplicates": manifest.moved}
    tables |= {"corrections": manifest.corrected} if len(manifest.corrected) else {}
    if manifest.addresses:
        tables["addresses"] = pd.DataFrame(list(manifest.addresses.items()), columns=ADDRESS_COLUMNS)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")
    facts = {
        "name": manifest.name,
        "root": str(manifest.root.relative_to(pictures_folder()) if manifest.addresses else manifest.root),
        "classes": manifest.classes,
        "digest": manifest.digest,
        "drawn": manifest.drawn,
        "ranges": manifest.ranges,
        "spans": manifest.spans,
    }
    (folder / "manifest.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """The manifest that `save_manifest` wrote; UserError if it is damaged, changed, or names files outside its root."""
    try:
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        table = read_table(folder / "manifest.csv", TEXT_COLUMNS)
        set_aside = read_table(folder / "set_aside.csv", SET_ASIDE_COLUMNS)
        moved = read_table(folder / "duplicates.csv", MOVED_COLUMNS)
        corrections = folder / "corrections.csv"
        corrected = read_table(corrections, CORRECTED_COLUMNS) if corrections.exists() else _no_rows(CORRECTED_COLUMNS)
        spans = {kind: Span(*span) for kind, span in facts.get("spans", {}).items()}
        listed = folder / "addresses.csv"
        addresses = dict(read_table(listed, ADDRESS_COLUMNS).to_numpy().tolist()) if listed.exists() else {}
        ranges, root = facts.get("ranges", {}), Path(facts["root"])
        drawn = tuple(facts.get("drawn", ("valid", "test")))
        found = table, set_aside, moved, drawn, ranges, spans, corrected, list[str](), addresses
        manifest = Manifest(facts["name"], pictures_folder() / root if addresses else root, facts["classes"], *found)
        is_whole = manifest.digest == facts["digest"] and list(table.columns) == [*COLUMNS, *manifest.share_columns]
        is_whole = is_whole and (not addresses or list(addresses) == table["path"].tolist())
        paths = (root / path if addresses else Path(path) for path in table["path"])
        escaping = next((path for path in paths if path.is_absolute() or ".." in path.parts or not path.name), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The manifest in {folder} cannot be read ({error}); run precompute again.") from None
    if escaping is not None:
        raise UserError(f"The manifest in {folder} names {escaping}, outside its folder; run precompute again.")
    _release_memory()
    if not is_whole:
        raise UserError(f"The manifest in {folder} was changed after it was written; run precompute again.")
    return manifest


def class_counts(manifest: Manifest) -> pd.DataFrame:
    """The number of pictures of each class (a row) in each split (a column)."""
    counts = pd.crosstab(manifest.table["label"], manifest.table["split"])
    counts = counts[[split for split in SPLITS if split in counts]]
    counts.index.name = counts.columns.name = None
    return counts


def describe_manifest(manifest: Manifest) -> str:
    """The number of pictures by class and split, and the files that were set aside, in lines for the console."""
    lines = [f"  {line}" for line in class_counts(manifest).to_string().splitlines()]
    lines += describe_ranges(manifest.ranges, manifest.spans) + _describe_shares(manifest)
    if len(manifest.corrected):
        lines.append(f"  {count_corrections(manifest.corrected)}; manifest/corrections.csv")
    if len(manifest.moved):
        first = manifest.moved.iloc[0]
        lines.append(
            f"  copies moved to another split: {len(manifest.moved)}, such as {first['path']} from "
            f"{first['moved_from']} to {first['moved_to']}, where {first['same_as']} is; manifest/duplicates.csv"
        )
    if len(manifest.set_aside):
        lines.append(f"  set aside: {len(manifest.set_aside)}")
    for path, reason in manifest.set_aside.head(MOST_NAMED).itertuples(index=False, name=None):
        lines.append(f"    {path}: {reason}")
    if len(manifest.set_aside) > MOST_NAMED:
        lines.append("    and more, in manifest/set_aside.csv of the run")
    return "\n".join(lines)


def _inspected(listing: Listing) -> tuple[pd.DataFrame, pd.Series]:
    """A table of all pictures (COLUMNS), and the reason why each cannot be used, or ""."""
    inspected = inspect_all(listing.root, listing.paths)
    chunks = iter(lambda: list(islice(inspected, ROWS_AT_ONCE)), [])
    table = pd.concat([pd.DataFrame(chunk, columns=Inspected._fields) for chunk in chunks], ignore_index=True)
    given = {"path": listing.paths, "label": listing.labels, "split": listing.splits, "group": listing.groups}
    for name, values in given.items():
        table[name] = pd.Series("" if values is None else values, index=table.index, dtype=str)
    if listing.missing:
        reasons = pd.Series([listing.missing.get(path, "") for path in listing.paths], dtype=str)
        table["error"] = table["error"].where(reasons == "", reasons)
    table["weight"] = 1.0 if listing.weights is None else listing.weights
    return table[[*COLUMNS, "span"]], table["error"].astype(str)


def _add_shares(table: pd.DataFrame, listing: Listing) -> list[str]:
    """Add the shares of the classes to `table`, where labels are soft, and give their columns; a corrected label is
    certain."""
    if listing.soft is None:
        return []
    columns = [f"{SHARE}{label}" for label in listing.soft.classes]
    table[columns] = np.array(listing.soft.shares)
    relabelled = table["hash"].isin([content for content, one in listing.corrections.items() if one.action == RELABEL])
    for label, column in zip(listing.soft.classes, columns, strict=True):
        table.loc[relabelled, column] = (table.loc[relabelled, "label"] == label).astype(float)
    return columns


def _describe_shares(manifest: Manifest) -> list[str]:
    shares = manifest.shares
    if shares is None:
        return []
    uncertain = int((shares.max(1) < CERTAIN_FROM).sum())
    return [f"  soft labels: {uncertain:,} of {len(shares):,} pictures have no class of {CERTAIN_FROM:g} or more"]


def _spans(table: pd.DataFrame) -> dict[str, Span]:
    """The spans of the deep pictures of `table`, by the kind of their numbers."""
    deep = table[table["span"] != ""]
    by_kind: dict[str, list[Span]] = {}
    for mode, span in zip(deep["mode"], deep["span"], strict=True):
        by_kind.setdefault(kind_of(mode), []).append(Span(*json.loads(span)))
    return {kind: span_of_set(spans) for kind, spans in by_kind.items()}


def _release_memory() -> None:
    """Return memory to the system: Arrow's pool, which holds text columns, keeps several times the table's size."""
    pa.default_memory_pool().release_unused()


def _stop_at_copies(path: str, what: str) -> None:
    raise UserError(
        f"{path} {what}; remove one of them, or set data.duplicates to move, which moves copies to one split and sets "
        "aside those of two classes."
    )


def _check_enough(table: pd.DataFrame, labels: list[str], root: Path, drawn: Sequence[str]) -> None:
    fractions = " and ".join(f"data.{name}_fraction" for name in drawn)
    other = {"train": f", or lower {fractions}" if drawn else "", "valid": ", or raise data.valid_fraction"}
    for split in ("train", "valid"):
        counts = table.loc[table["split"] == split, "label"].value_counts()
        for label in labels:
            if counts.get(label, 0) == 0:
                raise UserError(
                    f"The class {label} has no good picture left to {'train' if split == 'train' else 'validate'} with "
                    f"in {root}; add pictures (of other groups, where there are groups)"
                    f"{other[split] if split == 'train' or split in drawn else ''}."
                )
