import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.readers.sources import list_source
from pipeline.evaluation.folder_predictions import (
    UNREADABLE,
    count_metrics,
    label_counts,
    predict_pictures,
    predict_together,
)
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import Classifier, Member, load_classifier, save_classifier
from pipeline.ranks.team import together
from pipeline.system.errors import UserError
from pipeline.system.tables import write_table
from tests.several_processes import environments, run_led, start_led


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "50% dog"], 8, 0.5, 32, "crop", True)
    network = build_network(facts).eval()
    torch.nn.init.normal_(network.head[-1].weight, std=3)
    return Classifier((Member(network, facts),), 1.0, torch.device("cpu"))


@pytest.fixture
def pictures(tmp_path):
    """Seven real pictures, the second, the fifth and the last of them broken."""
    listing = list_source("elpv", [])
    paths = [tmp_path / f"{index}.png" for index in range(7)]
    for index, path in enumerate(paths):
        shutil.copy(listing.root / listing.paths[300 * index], path)
    paths[1].write_bytes(paths[1].read_bytes()[:500])
    paths[4].write_bytes(b"")
    paths[6].unlink()
    return paths


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_broken_pictures_are_rows_with_an_error_and_do_not_shift_the_others(classifier, pictures, tmp_path, batch_size):
    table = predict_pictures(classifier, tmp_path, pictures, batch_size)
    assert table["path"].tolist() == [path.name for path in pictures]
    assert (table["error"] != "").tolist() == [index in (1, 4, 6) for index in range(7)]
    for index in (0, 2, 3, 5):
        wanted = classifier.probabilities([classifier.decode(pictures[index].read_bytes())], 1)[0]
        found = table.loc[index, ["probability/cat", "probability/50% dog"]].to_numpy(float)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert table["label"][index] == classifier.checkpoint.classes[wanted.argmax()]
    assert table.loc[[1, 4, 6], ["label", "confidence", "probability/cat"]].isna().all(axis=None)
    assert table["probability/cat"].nunique() > 2, "the pictures have to be told apart for this to mean anything"


def test_where_all_are_broken_there_is_a_table_still(classifier, pictures, tmp_path):
    table = predict_pictures(classifier, tmp_path, [pictures[1], pictures[4]], 4)
    assert table["label"].isna().all()
    assert label_counts(table).to_numpy().tolist() == [[UNREADABLE, 2]]


@pytest.mark.parametrize(("name", "read"), [("a.csv", pd.read_csv), ("a.parquet", pd.read_parquet)])
def test_the_table_reads_back_as_it_was(classifier, pictures, tmp_path, name, read):
    table = predict_pictures(classifier, tmp_path, pictures, 4)
    write_table(table, tmp_path / name)
    pd.testing.assert_frame_equal(read(tmp_path / name).fillna({"error": ""}), table, check_dtype=False)


def test_labels_are_counted_and_named_as_metrics_may_be():
    table = pd.DataFrame({"label": ["50% dog", "cat", "50% dog", None], "error": ["", "", "", "cut"]})
    counts = label_counts(table)
    assert counts.to_numpy().tolist() == [["50% dog", 2], ["cat", 1], [UNREADABLE, 1]]
    metrics = count_metrics(counts)
    assert list(metrics.values()) == [2, 1, 1]
    assert list(metrics)[1:] == ["pictures/cat", f"pictures/{UNREADABLE}"]


def test_no_count_overwrites_another_whatever_labels_hold():
    labels = ["🐱", "🐶", "C++", "C#", "a/b", "/a", "..", "Cat", "cat", UNREADABLE, None]
    table = pd.DataFrame({"label": labels, "error": [""] * 10 + ["cut"]})
    metrics = count_metrics(label_counts(table))
    assert list(metrics.values()) == [1] * 11
    assert list(metrics)[-1] == f"pictures/{UNREADABLE}"


def test_a_label_has_the_same_name_whichever_others_were_predicted():
    counts = label_counts(pd.DataFrame({"label": ["cat"], "error": [""]}))
    of_both = label_counts(pd.DataFrame({"label": ["cat", "Cat"], "error": ["", ""]}))
    assert next(iter(count_metrics(counts, ["Cat", "cat"]))) in count_metrics(of_both, ["Cat", "cat"])


def test_a_folder_that_cannot_be_read_is_a_row_with_the_reason(classifier, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    listing = os.listdir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "listdir", refuse)
    table = predict_pictures(classifier, tmp_path, [tmp_path / "locked"], 4)
    assert table["path"].tolist() == ["locked"]
    assert "Permission denied" in table["error"][0]


def lead(folder: Path, pictures: list[Path]) -> None:
    classifier = load_classifier(folder / "model", torch.device("cpu"))
    predict_together(folder / "model", classifier, folder / "pictures", pictures, 2).to_pickle(folder / "found.pkl")


@pytest.fixture
def saved(classifier, pictures, tmp_path):
    """(A folder with the model and the pictures, the pictures' new paths)."""
    save_checkpoint(classifier.members[0].network, classifier.checkpoint, tmp_path / "checkpoint")
    save_classifier([tmp_path / "checkpoint"], 1.0, tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    moved = [tmp_path / "pictures" / path.name for path in pictures]
    for old, new in zip(pictures, moved, strict=True):
        if old.exists():
            old.rename(new)
    return tmp_path, moved


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_table_of_one(classifier, saved, processes):
    folder, pictures = saved
    run_led(lead, folder, pictures, processes=processes, cache=folder / "cache")
    found, expected = (
        pd.read_pickle(folder / "found.pkl"),
        predict_pictures(classifier, folder / "pictures", pictures, 2),
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, atol=1e-6)


def hide(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        is_dir = Path.is_dir
        Path.is_dir = lambda self: self != folder and is_dir(self)


def lead_without_pictures(folder: Path, pictures: list[Path]) -> None:
    with together(hide, folder / "pictures"):
        pass
    try:
        lead(folder, pictures)
    except UserError as error:
        (folder / "error").write_text(str(error))


def test_pictures_that_are_not_on_every_machine_are_not_taken_for_broken_ones(saved):
    folder, _ = saved
    given = environments({"THAW_CACHE": str(folder / "cache")}, 2)
    assert start_led(lead_without_pictures, saved, given)[0].wait(600) == 0
    assert "which is not on " in (folder / "error").read_text()
