import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.corrections import count_corrections, decided_pictures
from pipeline.data.manifest import Manifest, build_manifest, describe_manifest, load_manifest, save_manifest
from pipeline.data.readers.sources import list_source


@pytest.fixture
def root(tmp_path):
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            picture = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            picture.save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def corrections_of(root, *rows) -> Path:
    """The file of corrections (hash, action, label)."""
    lines = [
        "hash,path,action,label",
        *(f"{content},was/{content[:3]},{action},{label}" for content, action, label in rows),
    ]
    (root.parent / "corrections.csv").write_text("\n".join(lines), encoding="utf-8")
    return root.parent / "corrections.csv"


def manifest_of(root, *rows) -> Manifest:
    """The manifest with corrections (hash, action, label)."""
    listing = list_source(str(root), [".png"], str(corrections_of(root, *rows)))
    return build_manifest(listing, 0.2, 0.2, 0.0, 0)


def by_path(manifest, column):
    return dict(zip(manifest.table["path"], manifest.table[column], strict=True))


def test_a_picture_gets_the_label_of_its_hash_whatever_it_is_called_now(root):
    content = by_path(manifest_of(root), "hash")["cat/3.png"]
    (root / "cat" / "3.png").rename(root / "cat" / "renamed.png")
    manifest = manifest_of(root, (content, "relabel", "dog"))
    assert by_path(manifest, "label")["cat/renamed.png"] == "dog"
    assert (manifest.table["label"] == "dog").sum() == 13
    assert manifest.corrected.to_dict("records") == [
        {"hash": content, "path": "cat/renamed.png", "was": "cat", "action": "relabel", "label": "dog"}
    ]


def test_a_dropped_picture_is_in_no_split_and_keeps_its_row_so_that_stores_are_found_again(root):
    before = manifest_of(root)
    manifest = manifest_of(root, (by_path(before, "hash")["dog/5.png"], "drop", ""))
    assert by_path(manifest, "split")["dog/5.png"] == "dropped"
    assert manifest.table["hash"].tolist() == before.table["hash"].tolist()
    assert sum(len(manifest.rows(split)) for split in ("train", "valid", "test")) == 23


def test_no_other_picture_changes_its_split(root):
    before = manifest_of(root)
    contents = by_path(before, "hash")
    rows = [(contents[f"cat/{number}.png"], "relabel", "dog") for number in range(4)]
    rows += [(contents[f"dog/{number}.png"], "drop", "") for number in range(3)]
    after, expected = by_path(manifest_of(root, *rows), "split"), by_path(before, "split")
    assert after == expected | {f"dog/{number}.png": "dropped" for number in range(3)}


def test_the_digest_changes_with_a_correction_and_the_corrections_are_kept_with_the_manifest(root, tmp_path):
    before = manifest_of(root)
    content = by_path(before, "hash")["cat/0.png"]
    relabelled, dropped = (manifest_of(root, (content, *what)) for what in (("relabel", "dog"), ("drop", "")))
    assert len({before.digest, relabelled.digest, dropped.digest}) == 3
    save_manifest(dropped, tmp_path / "saved")
    loaded = load_manifest(tmp_path / "saved")
    assert loaded.digest == dropped.digest
    assert loaded.corrected.to_dict() == dropped.corrected.to_dict()
    assert "  Pictures relabelled by data.corrections: 0, dropped: 1" in describe_manifest(loaded)
    save_manifest(before, tmp_path / "plain")
    assert count_corrections(load_manifest(tmp_path / "plain").corrected) == ""
    assert not (tmp_path / "plain" / "corrections.csv").exists()


def test_a_label_that_is_kept_changes_nothing_and_is_kept_with_the_manifest(root, tmp_path):
    before = manifest_of(root)
    contents = by_path(before, "hash")
    kept = manifest_of(root, (contents["cat/2.png"], "keep", "cat"), (contents["dog/1.png"], "drop", ""))
    dropped = manifest_of(root, (contents["dog/1.png"], "drop", ""))
    assert kept.digest == dropped.digest
    assert kept.table.equals(dropped.table)
    assert count_corrections(kept.corrected) == "Pictures relabelled by data.corrections: 0, dropped: 1, kept: 1"
    save_manifest(kept, tmp_path / "saved")
    assert load_manifest(tmp_path / "saved").corrected.to_dict("records") == [
        {"hash": contents["dog/1.png"], "path": "dog/1.png", "was": "dog", "action": "drop", "label": ""},
        {"hash": contents["cat/2.png"], "path": "cat/2.png", "was": "cat", "action": "keep", "label": "cat"},
    ]


def test_a_label_that_was_kept_and_is_another_now_may_be_doubted_and_is_named(root):
    content = by_path(manifest_of(root), "hash")["cat/3.png"]
    (root / "cat" / "3.png").rename(root / "dog" / "moved.png")
    manifest = manifest_of(root, (content, "keep", "cat"))
    assert by_path(manifest, "label")["dog/moved.png"] == "dog"
    assert manifest.corrected.empty
    (note,) = manifest.notes
    assert "no longer there or keep a label that is another now" in note


def test_of_copies_in_two_classes_whose_label_is_kept_none_is_chosen(root):
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "0.png").read_bytes())
    content = hashlib.sha256((root / "cat" / "0.png").read_bytes()).hexdigest()
    listing = list_source(str(root), [".png"], str(corrections_of(root, (content, "keep", "cat"))))
    manifest = build_manifest(listing, 0.2, 0.2, 0.1, 0)
    assert sorted(manifest.set_aside["path"]) == ["cat/0.png", "dog/copy.png"]


def test_what_is_kept_now_counts_and_not_what_was_kept_when_the_manifest_was_made(root):
    contents = by_path(manifest_of(root), "hash")
    made_with = (contents["dog/1.png"], "relabel", "cat"), (contents["cat/2.png"], "keep", "cat")
    manifest = manifest_of(root, *made_with)
    source = str(corrections_of(root, made_with[0], (contents["cat/3.png"], "keep", "cat")))

    def decided(source):
        return decided_pictures(manifest.corrected, manifest.table, manifest.classes, source)["path"].tolist()

    assert decided(source) == ["dog/1.png", "cat/3.png"]
    assert decided("") == ["dog/1.png"]
    assert decided(str(root / "gone.csv")) == ["dog/1.png", "cat/2.png"]


def test_corrections_of_pictures_that_are_gone_are_counted_named_and_ignored(root):
    gone = [(f"{number:064x}", "drop", "") for number in range(1, 5)]
    manifest = manifest_of(root, (by_path(manifest_of(root), "hash")["cat/0.png"], "drop", ""), *gone)
    assert manifest.notes == [
        "4 of 5 corrections in data.corrections are for pictures that are no longer there "
        "(was/000, was/000, was/000, …), and are ignored."
    ]
    assert len(manifest.corrected) == 1
    assert manifest_of(root).notes == []


def test_a_correction_settles_which_class_copies_in_two_classes_are_of(root):
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "0.png").read_bytes())
    content = hashlib.sha256((root / "cat" / "0.png").read_bytes()).hexdigest()
    manifest = manifest_of(root, (content, "relabel", "cat"))
    labels, splits = by_path(manifest, "label"), by_path(manifest, "split")
    assert labels["dog/copy.png"] == labels["cat/0.png"] == "cat"
    assert splits["dog/copy.png"] == splits["cat/0.png"]
    assert manifest.set_aside.empty
