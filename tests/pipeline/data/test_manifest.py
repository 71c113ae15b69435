import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data.manifest import build_manifest, describe_manifest, load_manifest, save_manifest
from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError


def make_pictures(root, *folders, count=10, mode="RGB", first=0):
    """`count` pictures in each of these folders, no two of three folders alike even in black and white."""
    for index, folder in enumerate(folders, first):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            colour = (index, number, len(folder))
            picture = Image.new("RGB", (8, 6), colour)
            picture.putpixel((number % 8, (number // 8 + 2 * index) % 6), (255, 255, 255))
            picture.convert(mode).save(root / folder / f"{number}.png")
    return root


def manifest_of(root, valid=0.2, test=0.2, max_bad=0.0, seed=0, duplicates="move"):
    return build_manifest(list_source(str(root), [".png"]), valid, test, max_bad, seed, duplicates)


def spoil(path):
    path.write_bytes(b"no picture")


@pytest.fixture
def root(tmp_path):
    return make_pictures(tmp_path / "photos", "cat", "dog")


def counts(manifest):
    return manifest.table.value_counts(["label", "split"]).to_dict()


def test_every_picture_has_its_row(root):
    manifest = manifest_of(root)
    assert list(manifest.table.columns) == [
        "path", "label", "split", "hash", "width_px", "height_px", "mode", "group", "weight",
    ]  # fmt: skip
    assert list(manifest.table["path"]) == [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(10)]
    assert set(zip(manifest.table["width_px"], manifest.table["height_px"], strict=True)) == {(8, 6)}
    assert manifest.classes == ["cat", "dog"]
    assert list(manifest.targets) == [0] * 10 + [1] * 10
    assert all(path.is_file() for path in manifest.paths)
    assert manifest.set_aside.empty


def test_each_class_is_split_by_the_same_shares(root):
    manifest = manifest_of(root)
    assert counts(manifest) == {
        (label, split): number
        for label in ("cat", "dog")
        for split, number in (("train", 6), ("valid", 2), ("test", 2))
    }


def test_the_rows_of_the_splits_are_all_the_rows_once(root):
    manifest = manifest_of(root)
    rows = np.concatenate([manifest.rows(split) for split in ("train", "valid", "test")])
    assert sorted(rows) == list(range(20))
    assert set(manifest.table["split"].iloc[manifest.rows("valid")]) == {"valid"}


def test_the_digest_does_not_depend_on_where_the_pictures_lie(root, tmp_path):
    shutil.copytree(root, tmp_path / "elsewhere" / "other name")
    assert manifest_of(tmp_path / "elsewhere" / "other name").digest == manifest_of(root).digest


def test_the_digest_is_the_same_for_the_same_pictures_under_other_names(root):
    digest = manifest_of(root).digest
    assert manifest_of(root).digest == digest
    (root / "cat" / "9.png").rename(root / "cat" / "9 renamed.png")
    assert manifest_of(root).digest == digest


def test_the_digest_depends_on_the_bytes_of_a_picture(root):
    before = manifest_of(root)
    Image.new("RGB", (8, 6), "white").save(root / "cat" / "0.png")
    after = manifest_of(root)
    assert after.digest != before.digest
    assert list(after.table["path"]) == list(before.table["path"])


@pytest.mark.parametrize("change", ["order", "label", "split", "hash", "weight"])
def test_the_digest_depends_on_order_labels_splits_and_hashes(root, change):
    manifest = manifest_of(root)
    before = manifest.digest
    table = manifest.table
    if change == "order":
        table.iloc[[0, 1]] = table.iloc[[1, 0]].to_numpy()
    else:
        column = table.columns.get_loc(change)
        table.iloc[0, column] = {"label": "dog", "split": "elsewhere", "hash": "0" * 64, "weight": 2.0}[change]
    assert manifest.digest != before


def test_the_digest_depends_on_the_seed_of_the_split_and_on_class_names(root):
    digest = manifest_of(root).digest
    assert manifest_of(root, seed=1).digest != digest
    (root / "dog").rename(root / "wolf")
    assert manifest_of(root).digest != digest


def test_a_manifest_loaded_is_the_manifest_saved(root, tmp_path):
    (root / "cat" / "notes.txt").write_text("not a picture")
    saved = manifest_of(root)
    save_manifest(saved, tmp_path / "saved")
    loaded = load_manifest(tmp_path / "saved")
    pd.testing.assert_frame_equal(loaded.table, saved.table, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.set_aside, saved.set_aside, check_dtype=False)
    assert (loaded.name, loaded.root, loaded.classes) == (saved.name, saved.root, saved.classes)
    assert loaded.digest == saved.digest
    assert (loaded.targets == saved.targets).all()
    assert loaded.paths == saved.paths


@pytest.mark.parametrize(
    "labels",
    [
        ["NA", "null"],
        ["nan", "None"],
        ["1", "01"],
        ["1e3", "True"],
        ["кошка", "犬 ü"],
        ["a,b", 'say "a"'],
        ["-", "#x"],
        ["c at", "c  at"],
        ["<NA>", "inf"],
        ["c\rat", "d\nog"],
    ],
    ids=str,
)
def test_class_names_stay_what_they_are(tmp_path, labels):
    saved = manifest_of(make_pictures(tmp_path / "photos", *labels, count=4))
    assert saved.classes == sorted(labels)
    save_manifest(saved, tmp_path / "saved")
    loaded = load_manifest(tmp_path / "saved")
    assert list(loaded.table["label"]) == list(saved.table["label"])
    assert loaded.paths == saved.paths
    assert loaded.digest == saved.digest


def change_label(text):
    return text.replace(',"cat",', ',"dog",', 1)


def change_split(text):
    return text.replace(',"test",', ',"train",', 1)


def drop_row(text):
    return text[: text.rstrip().rindex("\n") + 1]


def swap_rows(text):
    lines = text.splitlines()
    return "\n".join([lines[0], lines[2], lines[1], *lines[3:]])


@pytest.mark.parametrize("tamper", [change_label, change_split, drop_row, swap_rows])
def test_a_manifest_that_was_changed_is_refused(root, tmp_path, tamper):
    save_manifest(manifest_of(root), tmp_path / "saved")
    file = tmp_path / "saved" / "manifest.csv"
    text = file.read_text(encoding="utf-8")
    assert tamper(text) != text
    file.write_text(tamper(text), encoding="utf-8")
    with pytest.raises(UserError, match=r"saved was changed after it was written"):
        load_manifest(tmp_path / "saved")


def empty(text):
    return ""


def open_a_quote(text):
    return text + '"'


def rename_column(text):
    return text.replace("hash", "hush", 1)


@pytest.mark.parametrize("damage", [empty, open_a_quote, rename_column])
def test_a_manifest_that_is_no_table_any_more_is_refused(root, tmp_path, damage):
    save_manifest(manifest_of(root), tmp_path / "saved")
    file = tmp_path / "saved" / "manifest.csv"
    file.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=r"saved cannot be read \(.*\); run precompute again"):
        load_manifest(tmp_path / "saved")


@pytest.mark.parametrize("outside", ["/etc/passwd", "../cat/0.png", "cat/../../0.png"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(root, tmp_path, outside):
    save_manifest(manifest_of(root), tmp_path / "saved")
    file = tmp_path / "saved" / "manifest.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("cat/0.png", outside), encoding="utf-8")
    with pytest.raises(UserError, match=f"saved names {outside}, outside its folder; run precompute again"):
        load_manifest(tmp_path / "saved")


def test_bad_pictures_are_set_aside_with_the_reason(root):
    spoil(root / "cat" / "3.png")
    (root / "dog" / "5.png").write_bytes(b"")
    (root / "dog" / "notes.txt").write_text("not a picture")
    manifest = manifest_of(root, max_bad=0.1)
    reasons = dict(manifest.set_aside.itertuples(index=False, name=None))
    assert set(reasons) == {"cat/3.png", "dog/5.png", "dog/notes.txt"}
    assert reasons["cat/3.png"].startswith("cannot be decoded")
    assert reasons["dog/5.png"] == "is empty"
    assert reasons["dog/notes.txt"] == ".txt is not in data.extensions"
    assert len(manifest.table) == 18
    assert not set(manifest.table["path"]) & set(reasons)


def test_more_bad_pictures_than_the_recipe_allows_stop_the_run(root):
    spoil(root / "cat" / "3.png")
    manifest_of(root, max_bad=0.05)
    with pytest.raises(UserError) as caught:
        manifest_of(root, max_bad=0.04)
    sentence = str(caught.value)
    assert sentence.startswith(
        f"1 of 20 pictures in {root.resolve()} cannot be used, more than data.max_bad = 0.04 allows"
    )
    assert "the first is cat/3.png, which cannot be decoded" in sentence


def test_other_files_do_not_count_as_bad_pictures(root):
    for number in range(5):
        (root / "cat" / f"{number}.txt").touch()
    assert len(manifest_of(root, max_bad=0).set_aside) == 5


def test_a_class_left_without_good_pictures_is_named(root):
    for path in (root / "dog").iterdir():
        spoil(path)
    with pytest.raises(UserError, match="The class dog has no good picture left to train with"):
        manifest_of(root, max_bad=1)


def test_a_class_too_small_to_be_validated_is_named(tmp_path):
    root = make_pictures(tmp_path / "photos", "cat", "dog")
    for number in range(1, 10):
        (root / "dog" / f"{number}.png").unlink()
    with pytest.raises(UserError, match="The class dog has no good picture left to validate with"):
        manifest_of(root)


@pytest.mark.parametrize(
    ("splits", "drawn"), [((), ("valid", "test")), (("train", "val", "test"), ()), (("train", "test"), ("valid",))]
)
def test_a_manifest_keeps_which_splits_its_source_left_open(tmp_path, splits, drawn):
    names = [f"{split}/{label}" for split in splits or ("",) for label in ("cat", "dog")]
    manifest = manifest_of(make_pictures(tmp_path / "photos", *(name.strip("/") for name in names)))
    save_manifest(manifest, tmp_path / "saved")
    assert manifest.drawn == load_manifest(tmp_path / "saved").drawn == drawn


def test_fractions_are_advised_only_where_they_apply(tmp_path):
    names = [f"{split}/{label}" for split in ("train", "val") for label in ("cat", "dog")]
    for spoiled, part in (("val", "validate"), ("train", "train")):
        root = make_pictures(tmp_path / spoiled, *names, count=3)
        for path in (root / spoiled / "dog").iterdir():
            spoil(path)
        with pytest.raises(UserError, match=f"left to {part} with") as caught:
            manifest_of(root, max_bad=1)
        assert "data." not in str(caught.value)


def test_given_splits_are_kept(tmp_path):
    names = [f"{split}/{label}" for split in ("train", "val", "test") for label in ("cat", "dog")]
    table = manifest_of(make_pictures(tmp_path / "photos", *names, count=3), valid=0.5, test=0.4).table
    folder = table["path"].str.split("/").str[0].replace("val", "valid")
    assert (table["split"] == folder).all()
    assert set(table["label"]) == {"cat", "dog"}


def test_without_validation_pictures_some_are_taken_from_training_and_none_from_the_test(tmp_path):
    names = [f"{split}/{label}" for split in ("train", "test") for label in ("cat", "dog")]
    manifest = manifest_of(make_pictures(tmp_path / "photos", *names), valid=0.3, test=0.4)
    table = manifest.table
    in_test_folder = table["path"].str.startswith("test/")
    assert (in_test_folder == (table["split"] == "test")).all()
    assert counts(manifest) == {
        (label, split): number
        for label in ("cat", "dog")
        for split, number in (("train", 7), ("valid", 3), ("test", 10))
    }


def test_a_train_folder_alone_is_split_into_training_and_validation(tmp_path):
    manifest = manifest_of(make_pictures(tmp_path / "photos", "train/cat", "train/dog"), valid=0.3, test=0.4)
    assert len(manifest.rows("train")) == 14
    assert len(manifest.rows("valid")) == 6


def test_the_split_goes_by_content_and_not_by_name(root, tmp_path):
    before = manifest_of(root).table
    for path in sorted((root / "cat").iterdir()):
        path.rename(path.with_name(f"{9 - int(path.stem)} renamed.png"))
    after = manifest_of(root).table
    assert dict(zip(after["hash"], after["split"], strict=True)) == dict(
        zip(before["hash"], before["split"], strict=True)
    )


@pytest.mark.parametrize(("modes", "is_grey"), [(("L", "L"), True), (("L", "1"), True), (("L", "RGB"), False)])
def test_a_set_is_grey_where_all_of_its_pictures_are(tmp_path, modes, is_grey):
    for number, mode in enumerate(modes):
        make_pictures(tmp_path / "photos", f"class {number}", mode=mode, first=number)
    assert manifest_of(tmp_path / "photos").is_grey is is_grey


def test_a_table_gives_splits_groups_and_weights(root):
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(10)]
    rows = [f"{name},{name[:3]},{'test' if number % 5 == 0 else ''},{number // 2},{number + 1}" for number, name in
            enumerate(names)]  # fmt: skip
    (root / "pets.csv").write_text("\n".join(["path,label,split,group,weight", *rows]))
    manifest = manifest_of(root / "pets.csv")
    table = manifest.table
    assert list(table["path"]) == names
    assert list(table["weight"]) == [float(number) for number in range(1, 21)]
    assert table.groupby("group")["split"].nunique().max() == 1
    assert (table["split"][::5] == "test").all()
    assert manifest.paths[3] == root.resolve() / "cat" / "3.png"


def test_without_a_table_every_picture_weighs_one_and_is_of_no_group(root):
    table = manifest_of(root).table
    assert set(table["weight"]) == {1.0}
    assert set(table["group"]) == {""}


def split_tree(root):
    names = [f"{split}/{label}" for split in ("train", "valid", "test") for label in ("cat", "dog")]
    make_pictures(root, *names, count=4)
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "copy.png")
    return root


def test_copies_in_two_splits_are_moved_to_one_named_and_saved(tmp_path):
    manifest = manifest_of(split_tree(tmp_path / "photos"))
    moves = [["test/cat/copy.png", "test", "train", "train/cat/0.png"]]
    assert manifest.moved.to_numpy().tolist() == moves
    assert counts(manifest)["cat", "train"] == 5
    assert (
        "  copies moved to another split: 1, such as test/cat/copy.png from test to train, where train/cat/0.png is; "
        "manifest/duplicates.csv"
    ) in describe_manifest(manifest).splitlines()
    save_manifest(manifest, tmp_path / "saved")
    assert load_manifest(tmp_path / "saved").moved.to_numpy().tolist() == moves


def test_copies_in_two_splits_stop_the_run_where_the_recipe_says_so(tmp_path):
    root = split_tree(tmp_path / "photos")
    with pytest.raises(UserError, match=r"test/cat/copy\.png of test belongs with train/cat/0\.png, of train; remove"):
        manifest_of(root, duplicates="stop")
    (root / "test" / "cat" / "copy.png").unlink()
    assert manifest_of(root, duplicates="stop").moved.empty


def test_a_picture_in_two_classes_is_bad_in_both(root):
    shutil.copy(root / "cat" / "0.png", root / "dog" / "copy.png")
    manifest = manifest_of(root, max_bad=0.1)
    assert dict(manifest.set_aside.itertuples(index=False, name=None)) == {
        "cat/0.png": "has the same content as dog/copy.png, of the class dog",
        "dog/copy.png": "has the same content as cat/0.png, of the class cat",
    }
    with pytest.raises(UserError, match=r"2 of 21 pictures .* the first is cat/0\.png, which has the same content as"):
        manifest_of(root, max_bad=0.05)
    with pytest.raises(UserError, match=r"cat/0\.png has the same content as dog/copy\.png, of the class dog; remove"):
        manifest_of(root, max_bad=0.1, duplicates="stop")


def test_a_description_counts_the_pictures_and_names_what_was_set_aside(root):
    (root / "cat" / "notes.txt").touch()
    lines = describe_manifest(manifest_of(root)).splitlines()
    assert lines[0].split() == ["train", "valid", "test"]
    assert lines[1].split() == ["cat", "6", "2", "2"]
    assert lines[2].split() == ["dog", "6", "2", "2"]
    assert lines[3:] == ["  set aside: 1", "    cat/notes.txt: .txt is not in data.extensions"]


def test_a_description_does_not_name_hundreds(root):
    for number in range(30):
        (root / "cat" / f"{number}.txt").touch()
    lines = describe_manifest(manifest_of(root)).splitlines()
    assert "  set aside: 30" in lines
    assert len([line for line in lines if line.startswith("    cat/")]) == 10
    assert "and more" in lines[-1]


@pytest.fixture
def soft_table(root):
    """The pictures of `root` with their folder's class at 0.8, 0.6 or 1."""
    lines = ["path,cat,dog"]
    for label in ("cat", "dog"):
        for number in range(10):
            share = (0.8, 0.6, 1.0)[number % 3]
            lines.append(f"{label}/{number}.png,{share if label == 'cat' else 1 - share:g},"
                         f"{share if label == 'dog' else 1 - share:g}")  # fmt: skip
    table = root / "soft.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def test_soft_labels_are_columns_of_their_own_and_come_back_as_they_were(soft_table, root, tmp_path):
    soft, hard = manifest_of(soft_table), manifest_of(root)
    assert soft.share_columns == ["share/cat", "share/dog"] == list(soft.table.columns[-2:])
    assert soft.shares.tolist()[:2] == [pytest.approx([0.8, 0.2]), pytest.approx([0.6, 0.4])]
    assert soft.shares.sum(1) == pytest.approx(1)
    assert (hard.shares, hard.share_columns) == (None, [])
    assert soft.table["split"].tolist() == hard.table["split"].tolist()  # stratified by the likeliest class
    save_manifest(soft, tmp_path / "saved")
    loaded = load_manifest(tmp_path / "saved")
    pd.testing.assert_frame_equal(loaded.table, soft.table)
    assert "soft labels: 14 of 20 pictures have no class of 0.9 or more" in describe_manifest(loaded)


def test_the_digest_depends_on_the_shares(soft_table, root):
    first = manifest_of(soft_table).digest
    soft_table.write_text(soft_table.read_text().replace("cat/0.png,0.8,0.2", "cat/0.png,0.7,0.3"))
    assert len({first, manifest_of(soft_table).digest, manifest_of(root).digest}) == 3


def test_a_corrected_label_is_certain(soft_table, tmp_path):
    hashes = manifest_of(soft_table).table["hash"]
    (tmp_path / "corrections.csv").write_text(f"hash,action,label\n{hashes[0]},relabel,dog\n{hashes[1]},drop,\n")
    listing = list_source(str(soft_table), [], str(tmp_path / "corrections.csv"))
    shares = build_manifest(listing, 0.2, 0.2, 0.0, 0).shares
    assert shares[0].tolist() == [0, 1]
    assert shares[1].tolist() == pytest.approx([0.6, 0.4])
