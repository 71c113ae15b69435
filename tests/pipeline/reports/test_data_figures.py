import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.augment import Augmentation
from pipeline.data.manifest import Manifest, class_counts
from pipeline.reports.data_figures import (
    augmented_figure,
    manifest_figure,
    samples_figure,
    size_table,
    write_manifest_figures,
)

SPLITS = ["test", "valid", "train", "train", "train"]
AUGMENTATION = Augmentation("sideways", 10, 1.1, 0.9, 0.2, 1.0)


def manifest_of(per_class, classes=("cat", "dog")):
    """Pictures of two sizes; of every five of a class one is for the test and one for validation."""
    rows = []
    for index, label in enumerate(classes):
        for number in range(per_class):
            width, mode = 640 if number % 2 else 480, "RGB" if number % 3 else "L"
            names = (f"{label}/{number}.png", label, SPLITS[number % 5], f"{index}{number:03}")
            rows.append((*names, width, 480, mode, "", 1.0))
    columns = ["path", "label", "split", "hash", "width_px", "height_px", "mode", "group", "weight"]
    table = pd.DataFrame(rows, columns=columns)
    return Manifest("pets", Path("/nowhere"), list(classes), table, pd.DataFrame(columns=["path", "reason"]))


def pixels_of(manifest, channels=3):
    """Each picture flat, of the brightness of its row."""
    rows = np.arange(len(manifest.table), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(rows, (len(rows), 16, 16, channels)).copy()


def shown(figure):
    return [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]


def test_sizes_and_modes_are_counted():
    sizes = size_table(manifest_of(6, ("cat",)))
    assert list(sizes.columns) == ["width_px", "height_px", "mode", "pictures"]
    counts = {tuple(row[:3]): row[3] for row in sizes.itertuples(index=False, name=None)}
    assert counts == {(480, 480, "RGB"): 2, (640, 480, "RGB"): 2, (480, 480, "L"): 1, (640, 480, "L"): 1}
    assert sizes["pictures"].is_monotonic_decreasing


def test_a_bar_is_as_long_as_its_class_has_pictures():
    manifest = manifest_of(10)
    axes = manifest_figure(class_counts(manifest), size_table(manifest)).axes[0]
    lengths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert lengths == [[6, 6], [2, 2], [2, 2]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "valid", "test"]


def test_of_hundreds_of_classes_the_largest_and_smallest_are_drawn():
    counts = pd.DataFrame({"train": range(1, 201)}, index=[f"class {number}" for number in range(1, 201)])
    axes = manifest_figure(counts, size_table(manifest_of(5))).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 40
    assert (labels[0], labels[-1]) == ("class 200", "class 1")
    assert "largest and smallest of 200" in axes.get_title()


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_training_pictures_as_they_are_stored(channels):
    manifest = manifest_of(20)
    pictures = shown(samples_figure(manifest, pixels_of(manifest, channels)))
    rows = [int(picture[0, 0, 0]) for picture in pictures]
    assert len(rows) == len(set(rows)) == 12
    assert set(manifest.table["split"].iloc[rows]) == {"train"}
    assert list(manifest.table["label"].iloc[rows]) == ["cat"] * 6 + ["dog"] * 6


def test_a_class_of_few_pictures_shows_those():
    manifest = manifest_of(3)
    assert len(shown(samples_figure(manifest, pixels_of(manifest)))) == 2


def test_augmented_pictures_stand_beside_the_plain_one():
    manifest = manifest_of(10)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    figure = augmented_figure(manifest, pixels, AUGMENTATION, 0)
    pictures = shown(figure)
    assert len(pictures) == 2 * 6
    for line in (pictures[:6], pictures[6:]):
        assert any((line[0] == pixels[row]).all() for row in manifest.rows("train"))
        assert all((one != line[0]).any() for one in line[1:])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["as it is", "augmented", "augmented"]


def test_augmented_pictures_are_those_of_the_seed():
    manifest, pixels = manifest_of(10), np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    first, again, other = (shown(augmented_figure(manifest, pixels, AUGMENTATION, seed))[1] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_tables_and_figures_are_written(tmp_path):
    manifest = manifest_of(10, ("$cat$", "dog, large"))
    write_manifest_figures(manifest, pixels_of(manifest), tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert files == {"manifest/classes.csv", "manifest/sizes.csv", "figures/manifest.png", "figures/samples.png"}
    counts = pd.read_csv(tmp_path / "manifest" / "classes.csv", index_col=0)
    assert counts.to_dict("index") == {label: {"train": 6, "valid": 2, "test": 2} for label in ("$cat$", "dog, large")}


def test_names_that_the_font_cannot_draw_warn_of_nothing(tmp_path):
    manifest = manifest_of(8, ("cat 🐈", "two\nlines $x$", "犬", "猫"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_manifest_figures(manifest, pixels_of(manifest), tmp_path)
        figure = augmented_figure(manifest, pixels_of(manifest), AUGMENTATION, 0)
        figure.savefig(tmp_path / "augmented.png")
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == [
        "cat ?", "two lines $x$", "no. 3", "no. 4"
    ]  # fmt: skip
